"""Parsing of JSON and CSV input: unique names, times, rows checked against a model, and names of owners."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, overload

from pydantic import AfterValidator, BaseModel, BeforeValidator, StringConstraints, ValidationError

from strategy_core.domain.errors import Invalid, InvalidName, InvalidReport, InvalidSetting
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
_TIME = "ISO 8601 with an offset, such as 2026-01-31T12:00Z"
_DAY = len("2026-01-31")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_LONGEST_SPAN = timedelta(days=366)
_LONGEST = 200  # characters of a name: a longer text belongs to another column


def _moment(value: object) -> datetime:
    """Return a time in UTC. Only ISO 8601 is accepted, because a bare number has neither zone nor unit."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, datetime):
        raise ValueError(f"{str(value)[:40]!r} is not a time; needed is {_TIME}")  # noqa: TRY004
    try:
        return utc(found, str(value))
    except Invalid as error:
        raise ValueError(str(error)) from None


Moment = Annotated[datetime, BeforeValidator(_moment)]


@overload
def owners_time(text: str, what: str) -> datetime: ...
@overload
def owners_time(text: None, what: str) -> None: ...
@overload
def owners_time(text: str | None, what: str) -> datetime | None: ...
def owners_time(text: str | None, what: str) -> datetime | None:
    """Parse a time that an owner wrote: ISO 8601 with an offset, or a day, which means midnight UTC.

    Raises:
        InvalidName: it is neither. *what* names the option or field.
        NaiveTime, TimeOutOfRange
    """
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidName(f"time for {what}", text, "2026-01-31, or 2026-01-31T12:00Z") from None
    return utc(found.replace(tzinfo=UTC) if len(text) == _DAY else found, what)


Name = Annotated[str, StringConstraints(min_length=1, max_length=_LONGEST, pattern=r"^[^\x00-\x1f]+$")]


PADDED = "is blank or has white space around it; needed is the user id alone"


def is_padded(user_id: str) -> bool:
    """Return whether a user id is blank or has white space around it. Such ids are not taken in: nobody sees them."""
    return user_id != user_id.strip()


def _new_user(user_id: str) -> str:
    if is_padded(user_id):
        raise ValueError(f"{user_id[:40]!r} {PADDED}")
    return user_id


NewUserId = Annotated[Name, AfterValidator(_new_user)]


def owners_span(text: str, what: str) -> timedelta:
    """Return the span that an owner wrote: a whole number and s, m, h, d or w, or 0.

    Raises:
        InvalidSetting: it is another text, or longer than 366 days.
    """
    found = re.fullmatch(r"(\d{1,9})([smhdw])|0", text.strip())
    span = timedelta(0)
    if found is not None and found[2]:
        span = timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
    if found is None or span > _LONGEST_SPAN:
        raise InvalidSetting(what, text, "a whole number and s, m, h, d or w, such as 12h or 3d, of at most 366 days")
    return span


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
    if len(columns) == 1 and (other := next((each for each in ";\t|" if each in columns[0]), None)):
        named = "tab" if other == "\t" else other
        raise InvalidReport(source, f"the columns are separated by {named}; needed is a comma", 1)
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
    if error["type"] == "float_parsing":
        needed = "a number with a decimal point and without thousands separators"
        known = model.model_fields.get(field)
        unknown = "" if known is None or known.is_required() else ", or nothing if it is unknown"
        problem = f"{str(error['input'])[:40]!r} is not a number; needed is {needed}{unknown}"
    return f"{field}: {problem}" if field else problem


def _unknown(model: type[BaseModel], name: str) -> str:
    close = get_close_matches(name, list(model.model_fields), n=1, cutoff=0.5)
    return f"no such field; {f'did you mean {close[0]}?' if close else _needed(model)}"


def _needed(model: type[BaseModel]) -> str:
    needed = [name for name, field in model.model_fields.items() if field.is_required()]
    others = [name for name in model.model_fields if name not in needed]
    return f"needed are {', '.join(needed)}; allowed besides: {', '.join(others)}"


LONGEST_OWNER_NAME = 128  # characters
_OWNER_NAME = f"one line of 1 to {LONGEST_OWNER_NAME} visible characters"
_TOGETHER = (  # UTS 39, highly restrictive: the scripts that people write together
    {"LATIN", "CJK", "HIRAGANA", "KATAKANA"},
    {"LATIN", "CJK", "BOPOMOFO"},
    {"LATIN", "CJK", "HANGUL"},
)
_INVISIBLE = re.compile(  # printable by Python's rules, but without a shape
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def check_owner_name(name: object, what: str = "name of an owner") -> str:
    """Return the name of a person or process that changes something, unless it could pass for another one.

    Raises:
        InvalidName: it is empty, too long, has characters that cannot be seen, or mixes scripts.
    """
    if not isinstance(name, str) or not 0 < len(name.strip()) <= LONGEST_OWNER_NAME or not name.isprintable():
        raise InvalidName(what, name, _OWNER_NAME)
    if _INVISIBLE.search(name):
        raise InvalidName(what, ascii(name), _OWNER_NAME)
    scripts = _scripts(name)
    if len(scripts) > 1 and not any(scripts <= each for each in _TOGETHER):
        found = " and ".join(sorted(each.capitalize() for each in scripts))
        raise InvalidName(what, name, f"letters of one script, but it mixes {found}")
    return name


def same_owner(one: str | None, other: str) -> bool:
    """Return whether two names are the same after NFKC, case folding and without surrounding white space."""
    return one is not None and _folded(one) == _folded(other)


def _folded(name: str) -> str:
    """Fold twice, as Unicode's caseless matching does: folding can undo a normalization."""
    once = unicodedata.normalize("NFKC", name.strip()).casefold()
    return unicodedata.normalize("NFKC", once).casefold().strip()


def _scripts(name: str) -> set[str]:
    """Return the scripts of the letters. Each letter's Unicode name begins with its script."""
    plain = unicodedata.normalize("NFKC", name)
    letters = (each for each in plain if unicodedata.category(each) in ("Lu", "Ll", "Lt", "Lo"))
    return {unicodedata.name(each, "UNKNOWN").split()[0].split("-")[0] for each in letters}
