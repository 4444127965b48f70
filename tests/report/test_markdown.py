"""Text from people and versions is shown unchanged and stays text, in Markdown and in HTML."""

from datetime import UTC, datetime

import pytest
from markdown_it import MarkdownIt

from strategy_core.report.html import html_page
from strategy_core.report.markdown import (
    Markdown,
    bullet_list,
    cell,
    fact_list,
    plain,
    sections,
    shell_argument,
    shell_block,
    table,
)
from tests.report.reading import Page, tables

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b || c",
    "`code` ``more`` ```",
    "![x](javascript:alert(1))",
    "![x](data:image/svg+xml;base64,PHN2Zy8+)",
    "[x](https://evil.example) [y]: https://evil.example",
    "https://evil.example www.evil.example eve@evil.example <https://evil.example>",
    "one\n# two\n- three\n\n    four\n---\n```\n<b>",
    "\r\n| x | y |\r\n|---|---|\r\n",
    "&lt;script&gt; &#x41; &amp;",
    "***bold*** __too__ ~~gone~~ $x$ 1. 2) + - # > \\",
    "\x1b[2J\x00\u202egnp\u2028next\ufeff",
    "</title></style><style>*{display:none}</style>",
]
OURS = {"html", "head", "meta", "title", "style", "body", "h1", "ul", "li", "pre", "code", "p"}
OURS |= {"div", "table", "thead", "tbody", "tr", "th", "td", "strong"}


def everywhere(words: str) -> str:
    """Return Markdown with *words* in every place where foreign text may appear."""
    return sections(
        f"# {plain(words)}",
        fact_list([("why", words)]),
        table(["who", "why"], [(words, words), ("ana", 7)]),
        bullet_list([words]),
        shell_block([f"rollout rollback {shell_argument(words)} --reason x"]),
        f"A sentence with {plain(words)} in it.",
    )


def seen(words: str) -> str:
    """Return *words* as a reader sees them: on one line, without unprintable characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in words).split())


@pytest.mark.parametrize("words", HOSTILE, ids=range(len(HOSTILE)))
def test_text_does_not_become_markup(words: str) -> None:
    page = Page(html_page(words, everywhere(words)))

    assert set(page.tags) <= OURS
    assert {name for name, _ in page.attributes} <= {
        "lang",
        "charset",
        "name",
        "content",
        "http-equiv",
        "class",
        "style",
    }
    assert page.text.count(seen(words)) >= 6


@pytest.mark.parametrize("words", HOSTILE, ids=range(len(HOSTILE)))
def test_text_does_not_become_html_where_markdown_allows_it(words: str) -> None:
    """Prefect's pages render Markdown themselves, with HTML allowed."""
    html = MarkdownIt("default", {"html": True}).render(everywhere(words))

    assert set(Page(html).tags) <= OURS


@pytest.mark.parametrize("words", HOSTILE, ids=range(len(HOSTILE)))
def test_text_does_not_add_a_cell_or_a_row(words: str) -> None:
    (rows,) = tables(table(["who", "why"], [(words, words), ("ana", "x")]))

    assert [set(row) for row in rows] == [{"who", "why"}] * 2
    assert rows[1] == {"who": "ana", "why": "x"}


def test_right_to_left_text_is_isolated() -> None:
    assert plain("\u05e9\u05dc\u05d5\u05dd") == "\u2068\u05e9\u05dc\u05d5\u05dd\u2069"
    assert plain("shalom") == "shalom"


def test_very_long_text_is_clipped() -> None:
    assert len(plain("x" * 100_000)) < 1_000


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        ("", "–"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (-2e-17, "0"),
        (datetime(2026, 3, 2, 4, 5, 6, tzinfo=UTC), "2026-03-02 04:05"),
        (Markdown("**x**"), "**x**"),
        ("fib_rsi", "fib\\_rsi"),
    ],
)
def test_a_value_is_formatted_for_people(value: object, shown: str) -> None:
    assert cell(value) == shown


def test_only_columns_of_numbers_are_aligned_to_the_right() -> None:
    assert table(["a", "b", "c"], [(1, "x", None), (2.5, "y", 3)]).splitlines()[1] == "| ---: | --- | ---: |"
    assert table(["a"], []).splitlines() == ["| a |", "| --- |"]
