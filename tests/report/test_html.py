"""HTML pages are self-contained: no external resources, no scripts, only our own charts as images."""

import re

from strategy_core.report.charts import canvas, draw_text, render
from strategy_core.report.html import html_page
from strategy_core.report.markdown import image
from tests.report.reading import Page


def drawn(words: str) -> str:
    svg = canvas(100, 50)
    draw_text(svg, 10, 10, words)
    return image(render(svg), "a chart")


def test_a_page_needs_no_other_file_and_runs_no_script() -> None:
    html = html_page("fib_rsi 2", f"# fib_rsi\n\n{drawn('E')}\n\n| a |\n| --- |\n| b |\n")

    page = Page(html)
    assert page.tags.count("img") == 1
    assert "script" not in page.tags
    assert "link" not in page.tags
    (source,) = (value for name, value in page.attributes if name == "src")
    assert source.startswith("data:image/svg+xml;base64,")
    assert not re.search(r"https?://|@import|url\(", html)
    (policy,) = (value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; img-src data:")


def test_an_image_that_is_not_an_embedded_svg_is_not_shown() -> None:
    for address in ("https://evil.example/x.svg", "data:text/html;base64,PGI+", "javascript:alert(1)", "x.svg"):
        assert "img" not in Page(html_page("x", f"![x]({address})")).tags


def test_the_title_is_text() -> None:
    page = Page(html_page("</title><b>", "# x"))

    assert "b" not in page.tags
    assert "</title><b>" in page.text


def test_a_time_stays_on_one_line() -> None:
    assert "<time>2026-03-02 04:05</time>" in html_page("x", "since 2026-03-02 04:05 UTC")


def test_text_in_a_chart_is_escaped() -> None:
    svg = canvas(10, 10)
    draw_text(svg, 1, 1, "<script>\x00\x1b&")

    assert "&lt;script&gt;" in render(svg)
    assert "\x00" not in render(svg)
