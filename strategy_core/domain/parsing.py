"""Parsing of JSON and CSV input: unique names, times, and rows checked against a model."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, StringConstraints, ValidationError

from strategy_core.domain.errors import Invalid, InvalidReport
from strategy_core.domain.lifecycle import utc


def each_name_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Use it as `object_pairs_hook` of `json.loads` to refuse duplicate names.

    Raises:
        ValueError: a name occurs twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(name for name, _ in pairs)
        raise ValueError(f"{next(name for name in times if times[name] > 1)!a} occurs twice")
    return found


Row = TypeVar("Row", bound=BaseModel)
_LONGEST = 200  # characters of a name: a longer text belongs to another column


def _moment(value: object) -> datetime:
    """Return a time in UTC. Only ISO 8601 is accepted, because a bare number has neither zone nor unit."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, datetime):
        raise ValueError(f"{str(value)[:40]!r} is not a time; needed is ISO 8601 with an offset")  # noqa: TRY004
    try:
        return utc(found, str(value))
    except Invalid as error:
        raise ValueError(str(error)) from None


Moment = Annotated[datetime, BeforeValidator(_moment)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=_LONGEST, pattern=r"^[^\x00-\x1f]+$")]


def checked_rows(
    model: type[Row], rows: Iterable[Mapping[str, Any]], *, source: str, first_row: int = 1
) -> Iterator[Row]:
    """Validate *rows* and yield them as instances of *model*.

    Args:
        model: must forbid unknown fields.
        rows: mappings of field names to values. Numbers and times may be texts.
        source: named in errors.
        first_row: number of the first row, 2 below a header line.

    Raises:
        InvalidReport: names the first invalid row, the field and the problem.
    """
    for number, row in enumerate(rows, first_row):
        try:
            yield model.model_validate(row)
        except ValidationError as error:
            raise InvalidReport(source, _problem(model, dict(error.errors()[0])), number) from None


def check_columns(model: type[BaseModel], columns: Sequence[str], *, source: str) -> None:
    """Raise InvalidReport unless *columns* are distinct fields of *model* and include the required ones."""
    fields = model.model_fields
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise InvalidReport(source, f"column {twice!r} occurs twice", 1)
    if stranger := next((name for name in columns if name not in fields), None):
        raise InvalidReport(source, f"column {stranger!r}: {_unknown(model, stranger)}", 1)
    missing = [name for name, field in fields.items() if field.is_required() and name not in columns]
    if missing:
        raise InvalidReport(source, f"no column {', '.join(missing)}; {_needed(model)}", 1)


def _problem(model: type[BaseModel], error: dict[str, Any]) -> str:
    field = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{field}: {_unknown(model, field)}"
    problem = str(error["msg"]).removeprefix("Value error, ")
    return f"{field}: {problem}" if field else problem


def _unknown(model: type[BaseModel], name: str) -> str:
    close = get_close_matches(name, list(model.model_fields), n=1, cutoff=0.5)
    return f"no such field; {f'did you mean {close[0]}?' if close else _needed(model)}"


def _needed(model: type[BaseModel]) -> str:
    needed = [name for name, field in model.model_fields.items() if field.is_required()]
    others = [name for name in model.model_fields if name not in needed]
    return f"needed are {', '.join(needed)}; allowed besides: {', '.join(others)}"
