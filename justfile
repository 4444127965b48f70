# What a change needs, by name: `uv run just test`.

# List these recipes.
default:
    @just --list --unsorted

# The tests, on SQLite and a real PostgreSQL.
test *arguments:
    uv run pytest {{ arguments }}

# The tests, then the long suites.
test-all: test
    uv run --group console pytest -m full

# Style, types, layers and the reference.
lint:
    uv run ruff format --check .
    uv run ruff check .
    uv run mypy
    uv run lint-imports
    uv run python docs/generate_reference.py --check

# Serve the pages while you edit them.
docs:
    uv run python docs/generate_reference.py
    uv run --group docs mkdocs serve

# The whole story on a synthetic market.
demo:
    uv run rollout demo
