"""Login to the console: a cookie that holds the token, and the checks against forged forms.

The server keeps no session. The secret of a form is derived from the token, which only the browser and the server know.
"""

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from strategy_core.api.requests import BadBody
from strategy_core.domain.audit import UNSTORABLE

HOME = "/console"
LOGIN = f"{HOME}/login"
COOKIE = "rollout_console"
NOTE_COOKIE = "rollout_console_note"
LONGEST_COOKIE = 3_900  # characters: browsers drop a cookie above 4,096 with its name
MOST_FIELDS = 1_000
FORM = "application/x-www-form-urlencoded"
CSRF = "form_secret"  # name of the hidden field

_LONGEST_NOTE = 600
_NOTE_S = 60
_OWN_PATH = re.compile(r"/console(?:[/?][!-\[\]-~]*)?")


class SentForm(Mapping[str, str]):
    """The fields of a form that was sent. A field that was sent several times has its last value here."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs
        self._last = dict(pairs)

    def __getitem__(self, name: str) -> str:
        return self._last[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def all(self, name: str) -> list[str]:
        """Return all values of a field, in the order of the form."""
        return [value for each, value in self._pairs if each == name]


NO_FORM = SentForm([])


def read_form(content_type: str, body: bytes) -> SentForm:
    """Return the fields in *body*.

    Raises:
        HTTPException: 415, it is not a form in UTF-8.
        BadBody: with the field and the reason.
    """
    if not body:
        return NO_FORM
    media_type, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower()
    if media_type.strip().lower() != FORM or charset not in ("", "charset=utf-8", 'charset="utf-8"'):
        raise HTTPException(415, f"a form must be sent as {FORM} in UTF-8")
    try:
        text = body.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=MOST_FIELDS)
    except UnicodeError:
        raise BadBody("body", "is not UTF-8") from None
    except ValueError:
        raise BadBody("body", f"has more than {MOST_FIELDS} fields") from None
    for name, value in pairs:
        if UNSTORABLE.search(name + value):
            raise BadBody(name if name.isprintable() else "body", "has a character that cannot be stored")
    return SentForm([(name, value.replace("\r\n", "\n")) for name, value in pairs])


def token_of(request: Request) -> str | None:
    """Return the token in the request's cookie, if there is one."""
    return request.cookies.get(COOKIE) or None


def form_secret(token: str) -> str:
    """Return the secret that each form of this session carries."""
    return hmac.new(token.encode(), b"console form", sha256).hexdigest()


def check_origin(request: Request) -> None:
    """Raise HTTPException 403 unless one of the console's own pages has sent this form."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site")
    own = urlsplit(origin or "").netloc == request.headers.get("host", "") != ""
    if site == "same-origin" or (site is None and own):
        return
    raise HTTPException(403, "the form was not sent from a page of this console; open the page and send it from there")


def check_form_secret(token: str, form: SentForm) -> None:
    """Raise HTTPException 403 unless the form carries the secret of this session."""
    if not hmac.compare_digest(form.get(CSRF, "").encode(), form_secret(token).encode()):
        raise HTTPException(403, "the form belongs to another login; open the page again and send it from there")


def is_https(request: Request) -> bool:
    """Return whether the browser uses https, also behind a proxy that does not forward the scheme."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")


def keep_token(request: Request, response: Response, token: str, *, seconds: int) -> None:
    """Set the cookie of the session. It ends with the token."""
    _set_cookie(request, response, COOKIE, token, seconds)


def drop_token(request: Request, response: Response) -> None:
    """Delete the cookie of the session."""
    _set_cookie(request, response, COOKIE, "", 0)


def keep_note(request: Request, response: Response, token: str, line: str) -> None:
    """Let the next page show *line* once. It is signed, so that no other site can place one."""
    text = urlsafe_b64encode(line[:_LONGEST_NOTE].encode()).decode().rstrip("=")
    _set_cookie(request, response, NOTE_COOKIE, f"{text}.{_signed(token, text)}", _NOTE_S)


def take_note(request: Request, token: str) -> str:
    """Return the line that the last act left, or an empty text."""
    text, _, signature = request.cookies.get(NOTE_COOKIE, "").partition(".")
    if not text or not hmac.compare_digest(signature.encode(), _signed(token, text).encode()):
        return ""
    return urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()


def drop_note(request: Request, response: Response) -> None:
    """Delete the line, because it was shown."""
    _set_cookie(request, response, NOTE_COOKIE, "", 0)


def own_path(path: str | None) -> str:
    """Return *path* if it is one of the console, else its first page. A link must not lead to another site."""
    return path if path is not None and _OWN_PATH.fullmatch(path) else HOME


def login_path(request: Request) -> str:
    """Return the address of the login page that leads back to this request's page."""
    if request.method != "GET":
        return LOGIN
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return LOGIN if wanted == HOME else f"{LOGIN}?next={quote(wanted, safe='/')}"


def _signed(token: str, text: str) -> str:
    return hmac.new(token.encode(), f"console note {text}".encode(), sha256).hexdigest()


def _set_cookie(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    attributes: dict[str, Any] = {"path": HOME, "httponly": True, "samesite": "strict", "secure": is_https(request)}
    response.set_cookie(name, value, max_age=seconds, **attributes)
