"""What a request's body may be before anybody reads a field of it: small, JSON, flat, and storable as it stands."""

import json
import math
from collections.abc import Iterable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from strategy_core.domain.audit import UNSTORABLE
from strategy_core.domain.document import each_name_once

LARGEST = 5_000_000  # bytes
DEEPEST = 20  # levels
LARGEST_NUMBER = 2**63 - 1


class BadBody(Exception):
    """A body that no field can be read from; *field* is where, as far as that can be said."""

    def __init__(self, field: str, why: str) -> None:
        self.field = field
        self.why = why
        super().__init__(f"{field}: {why}")


def bounded(request: Request) -> Request:
    """Return the request, whose body cannot be read any more once it has become too large."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > LARGEST:
        raise _too_large()
    return Request(request.scope, _counting(request.receive))


def check_body(content_type: str, body: bytes, *, any_text: bool = False) -> None:
    """Raise HTTPException 415, or BadBody, unless *body* is JSON that can be read and stored.

    Args:
        any_text: pass over characters that no text can hold, since whoever reads the body replaces them.
    """
    if not body:
        return
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, "a body must be sent as application/json")
    try:
        found = json.loads(
            body.decode("utf-8"), object_pairs_hook=each_name_once, parse_constant=_no_number, parse_int=_whole
        )
    except UnicodeDecodeError:
        raise BadBody("body", "is not UTF-8") from None
    except RecursionError:
        raise BadBody("body", f"is nested deeper than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        raise BadBody("body", f"is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise BadBody("body", str(error)) from None
    _check(found, any_text)


def _check(found: Any, any_text: bool) -> None:
    if problem := _problem(found, any_text):
        raise BadBody("body", problem)
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), found)]  # containers: values are millions
    while waiting:
        path, value = waiting.pop()
        if len(path) > DEEPEST:
            raise BadBody(_named(path), f"is nested deeper than {DEEPEST} levels")
        if isinstance(value, dict):
            if wrong := next((name for name in value if not any_text and UNSTORABLE.search(name)), None):
                raise BadBody(_named(path), f"has a name that no text can hold: {wrong!a}")
            within: Iterable[tuple[str | int, Any]] = value.items()
        else:
            within = enumerate(value if isinstance(value, list) else ())
        for part, each in within:
            if isinstance(each, dict | list):
                waiting.append(((*path, part), each))
            elif problem := _problem(each, any_text):
                raise BadBody(_named((*path, part)), problem)


def _problem(value: Any, any_text: bool) -> str | None:
    match value:
        case str() if not any_text and UNSTORABLE.search(value):
            return "holds a character that no text can hold: NUL, or half of a pair"
        case int() if abs(value) > LARGEST_NUMBER:
            return "is a number beyond 64 bits"
        case float() if not math.isfinite(value):
            return "is not a finite number"
    return None


def _named(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path) or "body"


def _whole(text: str) -> int:
    return int(text) if len(text) < 40 else LARGEST_NUMBER + 1  # refused where it stands, by `_check`


def _no_number(text: str) -> float:
    return math.nan if text == "NaN" else math.inf


def _counting(receive: Receive) -> Receive:
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > LARGEST:
            raise _too_large()
        return message

    return counted


def _too_large() -> HTTPException:
    return HTTPException(413, f"a body has at most {LARGEST} bytes")
