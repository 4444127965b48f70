"""The examples of the documentation run as they stand, and print what they say they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [page for page in sorted(DOCS.glob("*.md")) if "```python" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_pages_examples_do_what_it_says(page: Path, tmp_path: Path) -> None:
    """All blocks of a page are one program; the comment behind a `print` is the line that it prints."""
    program = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", program, re.MULTILINE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ROLLOUT_")}

    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == expected
    assert expected, "an example shows what comes out of it"
