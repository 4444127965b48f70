"""Plain English: how often docstrings, comments, help texts and docs use words that make a sentence hard to read."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("strategy_core", "flows", "deployments")
TEXTS = {"help", "description", "summary"}  # keyword arguments that people read
LIMITS = {  # per 10,000 words; well-read projects stay at or below half of them
    r"\b(tell|tells|told|say|says|said)\b": 10,
    r"\b(whoever|whom|whatever|whichever|whomever)\b": 2,
    r"\bnever\b": 10,
    r"\b(nobody|none|nothing)\b": 40,
    r";": 25,
}

pytestmark = pytest.mark.xdist_group("voice")  # the text is read once


def prose(source: str) -> Iterator[str]:
    """Yield the docstrings, the texts of forms and help, and the comments of a Python file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        elif isinstance(node, ast.keyword) and node.arg in TEXTS and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("# ")


@pytest.fixture(scope="module")
def text() -> str:
    files = [file for name in PACKAGES for file in (ROOT / name).rglob("*.py") if "migrations" not in file.parts]
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    code = [line for file in files for line in prose(file.read_text())]
    return "\n".join([*code, *(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL) for page in pages)])


@pytest.mark.parametrize("pattern", LIMITS)
def test_hard_words_are_rare(text: str, pattern: str) -> None:
    words = len(re.findall(r"[A-Za-z']+", text))

    rate = 10_000 * len(re.findall(pattern, text, re.IGNORECASE)) / words

    assert rate <= LIMITS[pattern]
