"""Rows of a CSV file that the platform hands over, as a report's model names them; never what they mean."""

import csv
import io
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from strategy_core.domain.errors import InvalidReport
from strategy_core.domain.rows import check_columns

FIRST_ROW = 2  # below the header line
STANDARD_INPUT = Path("-")


def read_csv(path: Path, model: type[BaseModel]) -> list[dict[str, Any]]:
    """Return the rows of a CSV file, `-` being standard input; an empty field is as good as none.

    Raises:
        InvalidReport: it cannot be read, or its columns are not those of *model*.
    """
    source = str(path)
    try:
        text = sys.stdin.read() if path == STANDARD_INPUT else path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidReport(source, f"is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise InvalidReport(source, f"cannot be read: {error.strerror}") from None
    lines = csv.reader(io.StringIO(text), strict=True)
    try:
        header = next(lines, [])
        check_columns(model, header, source=source)
        return [_row(header, fields, source, number) for number, fields in enumerate(lines, FIRST_ROW)]
    except csv.Error as error:
        raise InvalidReport(source, f"is not CSV: {error}", lines.line_num) from None


def _row(header: list[str], fields: list[str], source: str, number: int) -> dict[str, Any]:
    if len(fields) != len(header):
        raise InvalidReport(source, f"has {len(fields)} fields, the header {len(header)}", number)
    return {name: field for name, field in zip(header, fields, strict=True) if field != ""}
