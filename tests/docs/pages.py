"""Read the fenced blocks of Markdown pages."""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
QUICKSTART = ROOT / "docs" / "quickstart.md"
HOW_TO = sorted((ROOT / "docs" / "how-to").glob("*.md"))
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
SHIPPED = [  # files with commands in comments and texts
    file
    for file in sorted((ROOT / "deployments").rglob("*"))
    if file.suffix in (".yml", ".yaml", ".sh") or file.name in ("Dockerfile", ".env.example")
]
FENCE = re.compile(r'^( *)```(\w+)(?: title="([^"]+)")?\n(.*?)^ *```$', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    title: str  # the file that a python block is saved as
    text: str
    line: int  # of the first line of its text, from 1


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found[2], found[3] or "", dedent(found[4]), text.count("\n", 0, found.start(4)) + 1)
        for found in FENCE.finditer(text)
    ]


def code_of(page: Path) -> list[str]:
    """Return each line of shell blocks and each code span in running text."""
    shell = [block.text.replace("\\\n", "") for block in blocks(page) if block.language in ("sh", "console")]
    spans = re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text()))
    return [line for text in shell for line in text.splitlines()] + [" ".join(span.split()) for span in spans]


def commands_of(program: str) -> list[tuple[str, str]]:
    """Return each command of *program* in pages and in comments of shipped files, with the name of its file."""
    lines = [(name(page), code) for page in PAGES for code in code_of(page)]
    for file in SHIPPED:
        comments = re.findall(r"# +(.*)", file.read_text())
        lines += [(name(file), part) for comment in comments for part in re.split(r"`|: ", comment)]
    return [
        (where, " ".join(line.removeprefix("uv run ").split())) for where, line in lines if line.startswith(program)
    ]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))
