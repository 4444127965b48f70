"""Where alerts are sent: any address that apprise knows; a message is taken or it is not, and no secret is ever told.

A channel's name is its scheme and a slow digest of its address: a password in it cannot be guessed from a log.
"""

import importlib.util
import logging
import re
import threading
from functools import cached_property
from hashlib import pbkdf2_hmac
from typing import Any

from pydantic import SecretStr

from strategy_core.domain.alerts import Message, Severity
from strategy_core.domain.errors import MissingExtra

_SEVERITIES = "|".join(Severity)
_BETWEEN = re.compile(rf"\s+|,(?=(?:(?:{_SEVERITIES})=)?[A-Za-z][\w+.-]*://)")  # an address may hold a comma
_ENTRY = re.compile(rf"(?:(?P<severity>{_SEVERITIES})=)?(?P<url>(?P<scheme>[A-Za-z][\w+.-]*)://.*)")
_ROUNDS = 50_000
_STATUS = re.compile(r"error=(\d{3})\b")
_TELLTALES = ("urllib3", "requests_oauthlib", "oauthlib")  # beneath apprise: their logs quote whole addresses


class AppriseChannel:
    """One address that alerts are sent to.

    Args:
        url: as apprise has it, such as `slack://…`, `tgram://…`, `mailto://…`, `json://HOST`.
        scheme: of that address, as its name shows it.
        at_least: the least severity that it gets.
        timeout: in seconds, for one message; one that may still arrive later counts as not taken, and comes again.
    """

    repeats = True

    def __init__(
        self, url: SecretStr, *, scheme: str, at_least: Severity = Severity.INFO, timeout: float = 10.0
    ) -> None:
        digest = pbkdf2_hmac("sha256", url.get_secret_value().encode(), b"rollout alert channel", _ROUNDS)
        self.name = f"{scheme.lower()}-{digest.hex()[:8]}"
        self.at_least = at_least
        self.timeout = timeout
        self._url = url

    def __repr__(self) -> str:
        return f"Channel({self.name}, {self.at_least}+)"

    def send(self, message: Message, severity: Severity) -> str:
        """Return an empty text when the message was taken; else, in a line, why it was not."""
        said: list[str] = []
        thread = threading.Thread(  # a daemon: what hangs for ever must not keep the process
            target=lambda: said.append(self._try(message, severity)), daemon=True, name=f"alerts {self.name}"
        )
        thread.start()
        thread.join(self.timeout)
        return said[0] if said else f"no answer within {self.timeout:g} s"

    def _try(self, message: Message, severity: Severity) -> str:
        heard.listen()
        try:
            taken = self._service is not None and self._service.notify(
                body=message.body, title=message.title, body_format="text", notify_type=_TYPES[severity]
            )
        except Exception as error:  # noqa: BLE001  a channel's fault is its own; its text may hold the address
            return f"failed: {type(error).__name__}"
        return "" if taken else self._why()

    @cached_property
    def _service(self) -> Any:
        """Return what sends, kept so that it holds a service's rate; None for an address that nobody knows.

        Redirects are not followed: a message is for the server that the owner named, and for no other.
        """
        import apprise

        asset = apprise.AppriseAsset(async_mode=False, http_redirects=False, secure_logging=True)
        service = apprise.Apprise(asset=asset)
        return service if service.add(self._url.get_secret_value()) else None

    def _why(self) -> str:
        if self._service is None:
            return "apprise does not know this address"
        told = "\n".join(heard.lines)
        if status := _STATUS.search(told):
            return f"HTTP {status[1]}"
        return "cannot be reached" if "onnection" in told else "the message was not taken"


class _Heard(logging.Filter):
    """What apprise says in this thread: kept until the next try, shown to nobody, since it may quote an address."""

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()

    @property
    def lines(self) -> list[str]:
        found: list[str] = getattr(self._here, "lines", [])
        return found

    def listen(self) -> None:
        """Begin anew; each time, since whoever sets up logs may have undone it."""
        self._here.lines = []
        logging.getLogger("apprise").addFilter(self)
        for name in _TELLTALES:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)

    def filter(self, record: logging.LogRecord) -> bool:
        self.lines.append(record.getMessage())
        return False


heard = _Heard()
_TYPES = {Severity.INFO: "info", Severity.WARNING: "warning", Severity.CRITICAL: "failure"}


def read_channels(urls: SecretStr | None, *, timeout: float = 10.0) -> list[AppriseChannel]:
    """Return the channels of a text of addresses, separated by commas or blanks; one that stands there twice is one.

    What is no address is a channel too, called `unreadable`, that takes no message.

    Raises:
        MissingExtra: apprise, which sends, is not installed.
    """
    text = urls.get_secret_value() if urls is not None else ""
    entries = [entry for part in _BETWEEN.split(text) if (entry := part.strip(","))]
    if not entries:
        return []
    if importlib.util.find_spec("apprise") is None:
        raise MissingExtra("sending alerts", "alerts")
    found: dict[str, AppriseChannel] = {}
    for entry in entries:
        known = _ENTRY.fullmatch(entry)
        channel = AppriseChannel(
            SecretStr(known["url"] if known else entry),
            scheme=known["scheme"] if known else "unreadable",
            at_least=Severity(known["severity"] or Severity.INFO) if known else Severity.INFO,
            timeout=timeout,
        )
        found.setdefault(channel.name, channel)
    return list(found.values())
