"""Settings from the environment, and the engine, feed, channels and clock that they describe."""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import structlog
from pydantic import AnyHttpUrl, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from strategy_core.domain.alerts import CLOCKS_DIFFER, ClockCheck, DeliveryPace
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import EvidenceUnavailable, InvalidSetting, RolloutError, reason_of
from strategy_core.domain.links import Links
from strategy_core.domain.plan import Plan
from strategy_core.isolation.sandbox import Level
from strategy_core.market.calendars import CALENDARS, DAY_ZONES, Calendar, WeeklySession, read_holidays
from strategy_core.market.open import FeedAccess, is_around_the_clock, open_source
from strategy_core.market.source import AbsentSource, CandleSource, ReplayClock, ReplaySource
from strategy_core.observe.channels import AppriseChannel, read_channels
from strategy_core.observe.prometheus import Prometheus
from strategy_core.services.database import read_clock
from strategy_core.services.maintenance import KEEP_AT_LEAST
from strategy_core.store.engine import open_database

REFRESH_S = 5.0  # a server reads the clock of its database again so often
_HEADER = re.compile(r"[A-Za-z0-9-]+: *[!-~]([ -~]*[!-~])?")
PAGE = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._~%-]*)*")  # inert in Markdown, HTML and a shell
_TOKEN = re.compile(r"[!-~]+")
log = structlog.get_logger(__name__)
_SECRET = (
    "prometheus_url",
    "prometheus_header",
    "oanda_url",
    "oanda_token",
    "alert_urls",
    "report_urls",
    "console_url",
)  # errors must not show these: an invalid address may contain a password


def _networks(given: Any) -> Any:
    """Split a list of addresses and networks. Raise ValueError for anything else, also for `*`."""
    found = [each.strip() for each in given.split(",") if each.strip()] if isinstance(given, str) else given
    return tuple(str(ip_network(each)) for each in found)


Networks = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_networks)]


class Settings(BaseSettings):
    """Read from the environment: `ROLLOUT_DATABASE_URL`, `ROLLOUT_FEED`, …

    Attributes:
        database_url: `sqlite:///FILE` or `postgresql://…`.
        feed: source of candles, see `market.open.open_source`.
        symbol: use only this symbol of the feed. For a single file, its symbol, by default the stem of its name.
        calendar: when candles of a live feed or a growing file are due: `metals`, as in `WeeklySession`, or `always`,
            the default for `ccxt:…`. In a replay, a file ends with its last row.
        holidays: of metals, in addition to those in `market.holidays`: dates, or the path of a file of dates.
        oanda_token: of the account that reads an `oanda:…` feed. It is not shown or stored.
        oanda_url: address to use instead of OANDA's hosts.
        feed_timeout: for one response of a live feed, in seconds.
        models: folder of the model files that `retrain` writes. Versions name them by this path, so it must be the same
            wherever versions run, and stay.
        decision_deadline_s: time limit of a version for one decision, in seconds.
        isolation: the strongest isolation of versions to use, see SECURITY.md. Default: what the machine offers.
        isolation_required: the weakest isolation that is enough. With less, no version runs. Default: any.
        isolation_socket: path of the socket of a sidecar, a process under another user in which versions run.
        shadow_workers: number of versions that decide in parallel. Default: the number of cores.
        shadow_dask: scheduler of a Dask cluster that splits candle runs by symbol, as `tcp://HOST:PORT` or
            `tls://HOST:PORT`. `local` starts a cluster on this machine's cores for each run.
        prometheus_url: server of external metrics, as `http://HOST:9090`.
        prometheus_header: header for that server, as `Authorization: Bearer …`. It is not shown or stored.
        prometheus_timeout: for one response, in seconds.
        four_eyes: the owner who started a rollout may not approve or advance it, nor activate its version. Every owner
            may pause it or roll it back at any time.
        routes_by_symbol: the platform gives the symbol with each question for a version. Then an owner may exclude a
            symbol from a canary.
        console_url: address of the console in a browser, such as `https://rollout.example.org/console`. Reports and
            alerts link to its pages. Without it they show no such link. `rollout up` sets it to the address it serves.
        console_owner_header: header in which a proxy in front of Prefect's UI names the owner who is signed in, such as
            `X-Forwarded-User`. Without it the owner of a form is marked `unverified`. Read by `rollout up`.
        console_proxies: addresses or networks of those proxies, separated by commas. The header counts from no other.
        alert_urls: channels for alerts, as apprise addresses, separated by commas or blanks. Each may start with its
            lowest severity: `slack://… critical=mailto://…`. They are not shown or stored.
        report_urls: channels for reports, such as the morning note, as in `alert_urls`. Default: those of `alert_urls`.
        alert_timeout: for one message, in seconds.
        alert_repeat_minutes: when a critical alert without an acknowledgement is sent again.
        tick_overdue_minutes: how long an open rollout may be without a tick before owners are alerted.
        keep_days: maximum age of monthly partitions of decisions, which `rollout db maintain` drops. Default: keep all.
        audit_key_file: file of the Ed25519 private key (PEM) that signs exports of the audit trail. Only its owner may
            be able to read it (mode 0600).
        audit_folder: folder of the signed exports that the flow `verify-audit` writes every night. Use storage that the
            owners of the database cannot change. Without a key and a folder the flow only verifies.
        replay_from, replay_started_at, replay_speed: replay the feed as if it were live. The clock showed `replay_from`
            at the real time `replay_started_at`, and runs `replay_speed` times as fast. `rollout up` stores its clock
            in the database, where every command finds it without these settings. If both are there, the database's
            counts.
    """

    model_config = SettingsConfigDict(env_prefix="ROLLOUT_", extra="ignore")

    database_url: str = "sqlite:///rollout.db"
    feed: str = "synthetic:GOLD?seed=7&symbols=10&days=3650"
    symbol: str | None = None
    timeframe: str = "1h"
    calendar: Literal["metals", "always"] | None = None
    holidays: str | None = None
    oanda_token: SecretStr | None = None
    oanda_url: AnyHttpUrl | None = None
    feed_timeout: float = Field(default=10.0, gt=0, le=60)
    models: Path = Path("models")
    decision_deadline_s: float = Field(default=5.0, gt=0)
    isolation: Level | None = None
    isolation_required: Level | None = None
    isolation_socket: str | None = None
    shadow_workers: int | None = Field(default=None, ge=1, le=1_024)
    shadow_dask: str | None = Field(default=None, pattern=r"^(local|(tcp|tls)://[^\s/@]+:\d+)$")
    prometheus_url: AnyHttpUrl | None = None
    prometheus_header: SecretStr | None = None
    prometheus_timeout: float = Field(default=5.0, gt=0, le=60)
    four_eyes: bool = False
    routes_by_symbol: bool = False
    console_url: AnyHttpUrl | None = None
    console_owner_header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]+$")
    console_proxies: Networks = ()
    alert_urls: SecretStr | None = None
    report_urls: SecretStr | None = None
    alert_timeout: float = Field(default=10.0, gt=0, le=60)
    alert_repeat_minutes: float = Field(default=30.0, ge=1, le=10_080)
    tick_overdue_minutes: float = Field(default=10.0, ge=2, le=10_080)
    keep_days: int | None = Field(default=None, ge=KEEP_AT_LEAST, le=36_525)
    audit_key_file: Path | None = None
    audit_folder: Path | None = None
    replay_from: datetime | None = None
    replay_started_at: datetime | None = None
    replay_speed: float = 1.0
    _clock_problem: str = PrivateAttr(default="")
    _clock_stands: bool = PrivateAttr(default=False)

    @field_validator("prometheus_url")
    @classmethod
    def _address_alone(cls, url: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if url is not None and (url.username or url.password or url.query or url.fragment):
            raise ValueError("only an address, such as http://HOST:9090; put a password into ROLLOUT_PROMETHEUS_HEADER")
        return url

    @field_validator("console_url")
    @classmethod
    def _page_alone(cls, url: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if url is None:
            return None
        if url.username or url.password or url.query or url.fragment or not PAGE.fullmatch(str(url)):
            raise ValueError("only the address of a page, such as https://HOST/console")
        return AnyHttpUrl(str(url).rstrip("/"))

    @field_validator("oanda_url")
    @classmethod
    def _safe_for_a_token(cls, url: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if url is None:
            return None
        if url.username or url.password or url.query or url.fragment:
            raise ValueError("only an address, such as https://HOST; put the token into ROLLOUT_OANDA_TOKEN")
        if url.scheme == "http" and url.host not in ("127.0.0.1", "localhost", "[::1]"):
            raise ValueError("https://HOST: over http:// the token could be read on the way")
        return url

    @field_validator("oanda_token")
    @classmethod
    def _one_word(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not _TOKEN.fullmatch(token.get_secret_value()):
            raise ValueError("one word of plain characters, as OANDA shows it")
        return token

    @field_validator("prometheus_header")
    @classmethod
    def _one_header(cls, header: SecretStr | None) -> SecretStr | None:
        if header is not None and not _HEADER.fullmatch(header.get_secret_value()):
            raise ValueError("one line of plain characters, `Name: value`")
        return header

    def now(self) -> datetime:
        """Return the real time, or the time of the replay."""
        return self.at(datetime.now(UTC))

    def at(self, real: datetime) -> datetime:
        """Return the time of the replay at a real moment, or that moment without a replay."""
        if self.replay_from is None:
            return real
        return ReplayClock(self.replay_started_at, self.replay_from, self.replay_speed).now(real)

    def on_any_clock_of(self, engine: Engine) -> "Settings":
        """Like `on_clock_of`, but with our own clock, at last real time, in place of an error.

        For rollbacks and ticks, which must work with any clock.
        """
        try:
            found = self.on_clock_of(engine)
            found.now()
        except (SQLAlchemyError, RolloutError) as error:
            why = str(error) if isinstance(error, RolloutError) else type(error).__name__
            found = self.model_copy(update={} if self._has_a_time() else {"replay_from": None})
            found._clock_problem = f"clock disagrees: the database's clock cannot be used: {why}"
        return found

    def _has_a_time(self) -> bool:
        try:
            return bool(self.now())
        except RolloutError:
            return False

    def on_clock_of(self, engine: Engine, real: datetime | None = None) -> "Settings":
        """Return these settings with the clock of the database, if it stores one.

        If ROLLOUT_REPLAY_* are set too and show another time, `clock_check` says so.
        """
        stored, real = read_clock(engine), real or datetime.now(UTC)
        if stored is None:
            return self
        try:
            shown = stored.now(real)
        except RolloutError as error:
            found, problem = self.model_copy(), f"clock disagrees: the database stores a clock that cannot be: {error}"
        else:
            found = self.model_copy(
                update={
                    "replay_from": stored.replay_from,
                    "replay_started_at": stored.started_at,
                    "replay_speed": stored.speed,
                }
            )
            problem = "" if self.replay_from is None else self._disagreement(shown, real)
        found._clock_problem = problem
        found._clock_stands = stored.started_at is None
        return found

    @property
    def clock_note(self) -> str:
        """What a scheduled run says about the database's clock if it stands still, since nothing would ever be due."""
        if not self._clock_stands:
            return ""
        still = f"{self.now():%Y-%m-%d %H:%M} UTC"
        return f"the clock of this database stands still at {still}: rollout db clock --remove lets real time count"

    def _disagreement(self, shown: datetime, real: datetime) -> str:
        try:
            ours = self.at(real)
        except RolloutError as error:
            return f"clock disagrees: {error}; the database's clock is used"
        if abs(ours - shown) <= CLOCKS_DIFFER:
            return ""
        return (
            f"clock disagrees: ROLLOUT_REPLAY_FROM shows {ours:%Y-%m-%d %H:%M} UTC and the database's clock "
            f"{shown:%Y-%m-%d %H:%M} UTC, which is used: unset ROLLOUT_REPLAY_*, or run: rollout db clock --remove"
        )

    @property
    def clock_check(self) -> ClockCheck:
        """Whether this clock is right enough to judge what is late."""
        return ClockCheck(self._clock_problem, CLOCKS_DIFFER * self._speed)

    def open_engine(self) -> Engine:
        return open_database(self.database_url)

    def open_prometheus(self) -> Prometheus:
        url = str(self.prometheus_url).rstrip("/") if self.prometheus_url else None
        return Prometheus(url, header=self.prometheus_header, timeout=self.prometheus_timeout)

    def open_channels(self) -> list[AppriseChannel]:
        """Return the channels of alerts and reports.

        An invalid channel fails when it is used and does not affect the others.

        Raises:
            MissingExtra: channels are set, but the package that sends to them is not installed.
        """
        if self.report_urls is None:
            return read_channels(self.alert_urls, timeout=self.alert_timeout)
        return [
            *read_channels(self.alert_urls, timeout=self.alert_timeout, only="alerts"),
            *read_channels(self.report_urls, timeout=self.alert_timeout, only="reports"),
        ]

    @property
    def console_address(self) -> str:
        """The address of the console without a slash at its end, or an empty text."""
        return str(self.console_url).rstrip("/") if self.console_url else ""

    def links(self, forms: Mapping[str, str] | None = None) -> Links:
        """Return the addresses that reports and alerts link to, of Prefect's *forms* those that are known."""
        return Links(str(self.console_url).rstrip("/") if self.console_url else "", forms or {})

    @property
    def alert_pace(self) -> DeliveryPace:
        return DeliveryPace(repeat_after=timedelta(minutes=self.alert_repeat_minutes)).at_speed(self._speed)

    @property
    def tick_overdue(self) -> timedelta:
        return timedelta(minutes=self.tick_overdue_minutes) * self._speed

    def in_replay(self, plan: Plan) -> Plan:
        """Return *plan*, with the limits for late candles and blindness widened for a replay."""
        return plan.at_speed(self._speed, timeframe_delta(self.timeframe))

    @property
    def _speed(self) -> float:
        """How fast the clock runs. Settings in real minutes are multiplied by it."""
        return 1.0 if self.replay_from is None else max(1.0, self.replay_speed)

    def open_candles(self, now: datetime) -> CandleSource:
        """Return the feed as of *now*."""
        replayed = self.replay_from is not None  # then all candles of the feed have closed
        source = open_source(
            self.feed,
            symbol=self.symbol,
            timeframe=self.timeframe,
            now=None if replayed else now,
            calendar=None if replayed else self.open_calendar(),
            access=FeedAccess(self.oanda_token, str(self.oanda_url) if self.oanda_url else None, self.feed_timeout),
            day_zone=DAY_ZONES[self.calendar_name],
        )
        return ReplaySource(source, now) if replayed else source

    @property
    def calendar_name(self) -> str:
        """The calendar that counts: the one set, or the usual one of the feed."""
        return self.calendar or ("always" if is_around_the_clock(self.feed) else "metals")

    def open_calendar(self) -> Calendar:
        """Return the trading hours of the feed's market."""
        name = self.calendar_name
        if name == "metals" and self.holidays:
            return WeeklySession(read_holidays(self.holidays))
        return CALENDARS[name]

    def candles_if_any(self, now: datetime) -> CandleSource:
        """Return the feed, or an AbsentSource if it cannot be opened, because ticks must run without it."""
        try:
            return self.open_candles(now)
        except RolloutError as error:
            return AbsentSource(self.feed, self.timeframe, error)
        except (OSError, ValueError) as error:
            why = EvidenceUnavailable(f"{self.feed}: {reason_of(error)}")
            return AbsentSource(self.feed, self.timeframe, why)


class DatabaseClock:
    """The settings of a long-lived process, with the clock of its database. Reading it does not wait for the database.

    Args:
        settings: of the environment. Their clock is used until the database was read.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._environment, self.settings = engine, settings, settings

    def now(self) -> datetime:
        return self.settings.now()

    def refresh(self) -> None:
        """Read the clock again. Without the database the last one stays."""
        try:
            found = self._environment.on_clock_of(self._engine)
        except (SQLAlchemyError, RolloutError) as error:
            log.warning("clock.not_read", error=type(error).__name__)
            return
        if found.clock_check.problem and found.clock_check != self.settings.clock_check:
            log.warning("clock.disagrees", problem=found.clock_check.problem)
        self.settings = found

    def fresh_now(self) -> datetime:
        """Return the time after reading the clock again."""
        self.refresh()
        return self.now()

    @contextmanager
    def kept_fresh(self, every_s: float = REFRESH_S) -> Iterator[None]:
        """Read the clock again in a thread, so that no request waits for it: a rollback must not."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(every_s):
                self.refresh()

        threading.Thread(target=work, daemon=True, name="database clock").start()
        try:
            yield
        finally:
            ended.set()


def least_settings() -> Settings:
    """Return the settings of the environment, with the default for each invalid value.

    For rollbacks and ticks, which need only the database and must run even if other settings are invalid.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = {str(each["loc"][0]) for each in error.errors()}
        return Settings(**{name: Settings.model_fields[name].default for name in wrong})


def read_settings() -> Settings:
    """Return the settings of the environment, or raise InvalidSetting, which names the variable."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        setting = "_".join(str(part) for part in first["loc"])
        shown = "***" if setting in _SECRET else first["input"]
        raise InvalidSetting(
            f"ROLLOUT_{setting.upper()}", shown, first["msg"].removeprefix("Input should be ")
        ) from None
