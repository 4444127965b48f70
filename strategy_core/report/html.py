"""Self-contained HTML pages from our Markdown: no scripts, no external resources, readable on screen and on paper."""

import re
from collections.abc import Collection, Sequence
from functools import cache
from html import escape

from markdown_it import MarkdownIt
from markdown_it.token import Token

_EMBEDDED_SVG = re.compile(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+")
_SECTION = re.compile(r"^(?=<h2>)", re.MULTILINE)
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d")
_DISABLED_RULES = ("link", "autolink", "html_inline", "html_block", "reference")  # reports do not use them
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
HEADERS = {"Content-Security-Policy": _POLICY}  # for servers that send the page
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2228; --soft: #59636e; --paper: #fff; --rule: #d5dae0; --shade: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9ba6b2; --paper: #15191e; --rule: #39424d; --shade: #1d232a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
h1 + ul, h2 + ul { list-style: none; padding: 0; margin: .6rem 0 1rem; }
details { border-top: 1px solid var(--rule); }
summary { cursor: pointer; padding: .5rem 0; }
summary h2 { display: inline; border: 0; font-size: 1.05rem; }
h3, h4 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .7rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top;
  overflow-wrap: normal; unicode-bidi: isolate; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--shade); }
time { white-space: nowrap; }
td:last-child { overflow-wrap: anywhere; min-width: 6rem; }
img { display: block; width: 100%; max-width: 880px; height: auto; margin: 1rem 0; border: 1px solid var(--rule);
  border-radius: 6px; }
pre { background: var(--shade); border: 1px solid var(--rule); border-radius: 6px; padding: .7rem .9rem;
  overflow-x: auto; font-size: .86rem; }
code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .92em; }
@media (prefers-color-scheme: dark) { img { filter: invert(.92) hue-rotate(180deg); border-color: #c6bdb2; } }
@media screen and (max-width: 640px) {
  p:has(> img) { overflow-x: auto; }
  img { width: 40rem; max-width: none; }
}
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --rule: #bbb; --shade: #f6f6f6; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  img { filter: none; max-height: 9cm; width: auto; max-width: 100%; }
  img, table, pre { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
  .wide { overflow: visible; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""


def html_page(title: str, markdown: str, *, folded: Collection[str] = ()) -> str:
    """Return *markdown* as a page. *title* is plain text.

    Args:
        folded: headings of the second level whose sections are shown when they are opened.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{_fold(_renderer().render(markdown), folded)}</body>\n</html>\n"
    )


def html_body(markdown: str) -> str:
    """Return *markdown* as a part of a page. It has no styles, which the page's policy may forbid."""
    page = str(_renderer().render(markdown)).replace(' style="text-align:right"', ' class="number"')
    return page.replace('<div class="wide">', '<div class="wide" tabindex="0" role="group" aria-label="Table">')


def _fold(page: str, headings: Collection[str]) -> str:
    """Put the section of each of *headings* into an element that is closed at first. A section ends at the next one."""
    first, *parts = _SECTION.split(page)
    folded = {f"<h2>{escape(heading)}</h2>" for heading in headings}
    for place, part in enumerate(parts):
        heading, _, body = part.partition("\n")
        if heading in folded:
            parts[place] = f"<details><summary>{heading}</summary>\n{body}</details>\n"
    return first + "".join(parts)


@cache
def _renderer() -> MarkdownIt:
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table").disable(list(_DISABLED_RULES))
    renderer.validateLink = lambda url: _EMBEDDED_SVG.fullmatch(url) is not None  # type: ignore[method-assign]
    renderer.add_render_rule("text", _render_text)
    renderer.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    renderer.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return renderer


def _render_text(_renderer: object, tokens: Sequence[Token], position: int, *_: object) -> str:
    """Escape text, and mark times so that they stay on one line."""
    return _TIME.sub(r"<time>\g<0></time>", escape(tokens[position].content))
