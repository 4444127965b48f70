"""Parsers for reports in tests: tables and charts in Markdown, tags and text in HTML."""

import re
from base64 import b64decode
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

_PICTURE = re.compile(r"!\[[^\]]*\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)")
_SVG = "{http://www.w3.org/2000/svg}"


def pictures(markdown: str) -> list[ET.Element]:
    return [ET.fromstring(b64decode(found)) for found in _PICTURE.findall(markdown)]


def words(svg: ET.Element) -> set[str]:
    return {each.text or "" for each in svg.iter(f"{_SVG}text")}


def tables(markdown: str) -> list[list[dict[str, str]]]:
    """Return the rows of each table, with cells by column name."""
    found: list[list[list[str]]] = []
    before = ""
    for line in markdown.splitlines():
        if line.startswith("| "):
            if not before.startswith("| "):
                found.append([])
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        before = line
    return [[dict(zip(head, row, strict=True)) for row in rows] for head, _, *rows in found]


class Page(HTMLParser):
    """The tags, attributes and text of an HTML page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data
