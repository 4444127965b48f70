"""The reference pages agree with the code."""

import pytest

from docs.generate_reference import FOLDER, PAGES, current, declaration_schema


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_generates(name: str) -> None:
    """When this fails, run: uv run python docs/generate_reference.py."""
    assert (FOLDER / name).read_text(encoding="utf-8") == current(name)


def test_the_schema_of_declared_files_is_what_the_code_generates() -> None:
    assert (FOLDER / "rollout.schema.json").read_text(encoding="utf-8") == declaration_schema()


def test_the_pages_name_what_the_code_declares() -> None:
    declared = {
        "api.md": "### `POST /rollouts`",
        "cli.md": "## `rollout start`",
        "errors.md": "### `IllegalTransition`",
        "metrics.md": "### `canary_traffic_percent`",
        "settings.md": "### `ROLLOUT_DATABASE_URL`",
    }

    assert {name for name, heading in declared.items() if heading in current(name).splitlines()} == set(PAGES)
