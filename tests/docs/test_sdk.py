"""The examples of the Python reference run, and print what they claim."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sdk.md"


@pytest.mark.full
def test_the_examples_print_what_stands_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All blocks are one program: three registrations in worker processes take a few seconds."""
    program = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", program, re.MULTILINE)
    monkeypatch.chdir(tmp_path)

    exec(compile(program, str(PAGE), "exec"), {})

    assert expected, "an example shows what comes out of it"
    assert capsys.readouterr().out.splitlines() == expected
