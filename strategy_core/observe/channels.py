"""Alert channels: send messages to any address that apprise supports, without showing the address.

An address may hold a password. A channel is named by its scheme and a slow hash of the address, so that the password
cannot be guessed from a log.
"""

import importlib.util
import logging
import re
import threading
from hashlib import pbkdf2_hmac
from typing import Any, Literal

from pydantic import SecretStr

from strategy_core.domain.alerts import REPORT_READY, Message, Severity
from strategy_core.domain.errors import MissingExtra

_SEVERITIES = "|".join(Severity)
_SEPARATOR = re.compile(rf"\s+|,(?=(?:(?:{_SEVERITIES})=)?[A-Za-z][\w+.-]*://)")  # an address may hold a comma
_ENTRY = re.compile(rf"(?:(?P<severity>{_SEVERITIES})=)?(?P<url>(?P<scheme>[A-Za-z][\w+.-]*)://.*)")
_HASH_ROUNDS = 50_000
_HTTP_STATUS = re.compile(r"error=(\d{3})\b")
READY_S = 60.0  # to import apprise and to build a channel, which a busy machine makes slow
_UNSAFE_LOGGERS = ("urllib3", "requests_oauthlib", "oauthlib")  # used by apprise, they log whole addresses
Subject = Literal["alerts", "reports"]
_TYPES = {Severity.INFO: "info", Severity.WARNING: "warning", Severity.CRITICAL: "failure"}


class _AppriseLog(logging.Filter):
    """Captures apprise's log lines per thread and drops them from all handlers, because they may quote an address."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.local()

    @property
    def lines(self) -> list[str]:
        lines: list[str] = getattr(self._thread, "lines", [])
        return lines

    def start(self) -> None:
        """Start with no lines. Called before each message, because a new log configuration may remove the filter."""
        self._thread.lines = []
        logging.getLogger("apprise").addFilter(self)
        for name in _UNSAFE_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)

    def filter(self, record: logging.LogRecord) -> bool:
        self.lines.append(record.getMessage())
        return False


_apprise_log = _AppriseLog()


class AppriseChannel:
    """One address that alerts are sent to.

    Args:
        url: an apprise URL, such as `slack://…`, `tgram://…`, `mailto://…` or `json://HOST`.
        scheme: the scheme of *url*, used in the channel's name.
        at_least: the lowest severity that is sent.
        only: whether reports alone are sent, or all alerts but reports. Default: everything.
        timeout: in seconds, per message. A message that times out counts as failed, so it may arrive twice.
        ready_timeout: in seconds, to import apprise and to build the channel, before the time of a message begins.
    """

    repeats = True

    def __init__(
        self,
        url: SecretStr,
        *,
        scheme: str,
        at_least: Severity = Severity.INFO,
        only: Subject | None = None,
        timeout: float = 10.0,
        ready_timeout: float = READY_S,
    ) -> None:
        digest = pbkdf2_hmac("sha256", url.get_secret_value().encode(), b"rollout alert channel", _HASH_ROUNDS)
        self.name = f"{scheme.lower()}-{digest.hex()[:8]}"
        self.at_least = at_least
        self.only = only
        self.timeout = timeout
        self.ready_timeout = ready_timeout
        self._url = url
        self._service: Any = None  # None too if apprise does not support the address
        self._failure = ""
        self._building = threading.Thread(target=self._build, daemon=True, name=f"open {self.name}")
        self._started = threading.Lock()

    def __repr__(self) -> str:
        return f"Channel({self.name}, {self.at_least}+)"

    def takes(self, kind: str) -> bool:
        """Return whether alerts of this kind go to this channel."""
        return self.only in (None, "reports" if kind == REPORT_READY else "alerts")

    def prepare(self) -> None:
        """Import apprise and build the channel once. Called before the time limit of a message begins."""
        with self._started:
            if self._building.ident is None:
                self._building.start()
        self._building.join(self.ready_timeout)

    def send(self, message: Message, severity: Severity) -> str:
        """Send a message. Return an empty text on success, otherwise the problem in one line."""
        self.prepare()
        if self._building.is_alive():
            return f"not ready within {self.ready_timeout:g} s"
        problems: list[str] = []
        thread = threading.Thread(  # a daemon thread: a hanging service must not keep the process alive
            target=lambda: problems.append(self._notify(message, severity)), daemon=True, name=f"alerts {self.name}"
        )
        thread.start()
        thread.join(self.timeout)
        return problems[0] if problems else f"no answer within {self.timeout:g} s"

    def _notify(self, message: Message, severity: Severity) -> str:
        _apprise_log.start()
        try:
            accepted = self._service is not None and self._service.notify(
                title=message.title, body_format="text", notify_type=_TYPES[severity], **self._content(message)
            )
        except Exception as error:  # noqa: BLE001  apprise may raise anything, and the text may hold the address
            return f"failed: {type(error).__name__}"
        return "" if accepted else self._problem()

    def _content(self, message: Message) -> dict[str, Any]:
        """Return the body, and the page as a file where the service takes files. The body links to it."""
        page = message.page
        if page is None:
            return {"body": message.body}
        body = f"{message.body}\n{page.url}" if page.url else message.body
        if not all(each.attachment_support for each in self._service):
            return {"body": body}
        from apprise import AppriseAttachment
        from apprise.attachment.memory import AttachMemory

        attached = AppriseAttachment()
        attached.add(AttachMemory(page.html, name=page.name, mimetype="text/html"))  # type: ignore[no-untyped-call]
        return {"body": body, "attach": attached}

    def _build(self) -> None:
        """Build the apprise service.

        It is kept, because it limits its own request rate. Redirects are not followed: messages go only to the server
        that the owner configured.
        """
        _apprise_log.start()
        try:
            import apprise

            asset = apprise.AppriseAsset(async_mode=False, http_redirects=False, secure_logging=True)
            service = apprise.Apprise(asset=asset)
            self._service = service if service.add(self._url.get_secret_value()) else None
        except Exception as error:  # noqa: BLE001  as in `_notify`
            self._failure = f"failed: {type(error).__name__}"

    def _problem(self) -> str:
        if self._service is None:
            return self._failure or "apprise does not support this address"
        log = "\n".join(_apprise_log.lines)
        if status := _HTTP_STATUS.search(log):
            return f"HTTP {status[1]}"
        return "cannot be reached" if "onnection" in log else "the message was not accepted"


def read_channels(
    urls: SecretStr | None, *, timeout: float = 10.0, only: Subject | None = None
) -> list[AppriseChannel]:
    """Return one channel per distinct address in *urls*, which are separated by commas or spaces.

    An invalid address becomes a channel named `unreadable-…`, for which every message fails.

    Args:
        only: see `AppriseChannel`.

    Raises:
        MissingExtra: apprise is not installed.
    """
    text = urls.get_secret_value() if urls is not None else ""
    entries = [entry for part in _SEPARATOR.split(text) if (entry := part.strip(","))]
    if not entries:
        return []
    if importlib.util.find_spec("apprise") is None:
        raise MissingExtra("sending alerts", "alerts")
    channels: dict[str, AppriseChannel] = {}
    for entry in entries:
        parsed = _ENTRY.fullmatch(entry)
        channel = AppriseChannel(
            SecretStr(parsed["url"] if parsed else entry),
            scheme=parsed["scheme"] if parsed else "unreadable",
            at_least=Severity(parsed["severity"] or Severity.INFO) if parsed else Severity.INFO,
            only=only,
            timeout=timeout,
        )
        channels.setdefault(channel.name, channel)
    return list(channels.values())
