"""What an installation sets, by environment: database, feed, clock; each edge opens what it needs from here."""

import re
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import Engine

from strategy_core.domain.alerts import DeliveryPace
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import EvidenceUnavailable, InvalidSetting, RolloutError
from strategy_core.domain.plan import Plan
from strategy_core.market.calendars import CALENDARS, Calendar, WeeklySession, read_holidays
from strategy_core.market.open import FeedAccess, is_around_the_clock, open_source
from strategy_core.market.source import AbsentSource, CandleSource, ReplayClock, ReplaySource
from strategy_core.observe.channels import AppriseChannel, read_channels
from strategy_core.observe.prometheus import Prometheus
from strategy_core.services.maintenance import KEEP_AT_LEAST
from strategy_core.store.engine import open_database

_HEADER = re.compile(r"[A-Za-z0-9-]+: *[!-~]([ -~]*[!-~])?")
_TOKEN = re.compile(r"[!-~]+")
_SECRET = (
    "prometheus_url",
    "prometheus_header",
    "oanda_url",
    "oanda_token",
    "alert_urls",
)  # what is wrong with an address may be the password in it


class Settings(BaseSettings):
    """Read from the environment: `ROLLOUT_DATABASE_URL`, `ROLLOUT_FEED`, …

    Attributes:
        database_url: `sqlite:///FILE` or `postgresql://…`.
        feed: where candles come from: see `market.open.open_source`.
        symbol: serve this symbol of the feed alone; a single file's is otherwise its stem.
        calendar: when candles of a live feed or a growing file should come: `metals`, as in `WeeklySession`, or
            `always`, which it is for `ccxt:…` unless set; in a replay a file ends with its last row.
        holidays: of metals, beside those that `market.holidays` knows: dates, or the path of a file of them.
        oanda_token: of the account that an `oanda:…` feed reads with; never shown, never stored.
        oanda_url: what is asked instead of OANDA's own hosts.
        feed_timeout: for one answer of a live feed, in seconds.
        decision_deadline_s: how long a version may take for one decision.
        shadow_workers: how many versions' workers decide at the same time; as many as there are cores, unless set.
        shadow_dask: the scheduler of the Dask cluster that candle runs are shared out to by symbol, as
            `tcp://HOST:PORT` or `tls://HOST:PORT`; `local` makes one of this machine's cores for each run.
        prometheus_url: where external metrics are asked for, as `http://HOST:9090`.
        prometheus_header: what that server wants to see, as `Authorization: Bearer …`; never shown, never stored.
        prometheus_timeout: for one answer, in seconds.
        four_eyes: whoever started a rollout may not also approve or advance it, nor activate its version; to pause it,
            or to take users off it, everybody may at any time.
        alert_urls: channels that alerts are sent to, as apprise has them, separated by commas or blanks; each may begin
            with the least severity that it gets: `slack://… critical=mailto://…`. Never shown, never stored.
        alert_timeout: for one message, in seconds.
        alert_repeat_minutes: how soon a critical alert is told again while nobody has acknowledged it.
        tick_overdue_minutes: how long an open rollout may go without a tick before owners are told.
        keep_days: how old months of decisions grow before `rollout db maintain` drops them; for ever, unless set.
        replay_from, replay_started_at, replay_speed: play the feed as if it were now: `replay_from` is what the clock
            showed at the real moment `replay_started_at`, and it runs `replay_speed` times as fast.
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
    decision_deadline_s: float = Field(default=5.0, gt=0)
    shadow_workers: int | None = Field(default=None, ge=1, le=1_024)
    shadow_dask: str | None = Field(default=None, pattern=r"^(local|(tcp|tls)://[^\s/@]+:\d+)$")
    prometheus_url: AnyHttpUrl | None = None
    prometheus_header: SecretStr | None = None
    prometheus_timeout: float = Field(default=5.0, gt=0, le=60)
    four_eyes: bool = False
    alert_urls: SecretStr | None = None
    alert_timeout: float = Field(default=10.0, gt=0, le=60)
    alert_repeat_minutes: float = Field(default=30.0, ge=1, le=10_080)
    tick_overdue_minutes: float = Field(default=10.0, ge=2, le=10_080)
    keep_days: int | None = Field(default=None, ge=KEEP_AT_LEAST, le=36_525)
    replay_from: datetime | None = None
    replay_started_at: datetime | None = None
    replay_speed: float = 1.0

    @field_validator("prometheus_url")
    @classmethod
    def _address_alone(cls, url: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if url is not None and (url.username or url.password or url.query or url.fragment):
            raise ValueError("an address alone, such as http://HOST:9090; a password goes to ROLLOUT_PROMETHEUS_HEADER")
        return url

    @field_validator("oanda_url")
    @classmethod
    def _safe_for_a_token(cls, url: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if url is None:
            return None
        if url.username or url.password or url.query or url.fragment:
            raise ValueError("an address alone, such as https://HOST; the token goes to ROLLOUT_OANDA_TOKEN")
        if url.scheme == "http" and url.host not in ("127.0.0.1", "localhost", "[::1]"):
            raise ValueError("https://HOST: over http:// anybody on the way could read the token")
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
        """Return the time: the real one, or the replay's."""
        return self.at(datetime.now(UTC))

    def at(self, real: datetime) -> datetime:
        """Return what the clock showed at a real moment, as a server beside the replay tells it."""
        if self.replay_from is None:
            return real
        return ReplayClock(self.replay_started_at or real, self.replay_from, self.replay_speed).now(real)

    def open_engine(self) -> Engine:
        return open_database(self.database_url)

    def open_prometheus(self) -> Prometheus:
        url = str(self.prometheus_url).rstrip("/") if self.prometheus_url else None
        return Prometheus(url, header=self.prometheus_header, timeout=self.prometheus_timeout)

    def open_channels(self) -> list[AppriseChannel]:
        """Return the alert channels; what cannot be meant is told when it is sent to, and keeps no other from sending.

        Raises:
            MissingExtra: there are some, but not what sends to them.
        """
        return read_channels(self.alert_urls, timeout=self.alert_timeout)

    @property
    def alert_pace(self) -> DeliveryPace:
        return DeliveryPace(repeat_after=timedelta(minutes=self.alert_repeat_minutes)).at_speed(self._speed)

    @property
    def tick_overdue(self) -> timedelta:
        return timedelta(minutes=self.tick_overdue_minutes) * self._speed

    def in_replay(self, plan: Plan) -> Plan:
        """Return *plan*, in a replay with what is late and blind widened to the pace of its runs."""
        return plan.at_speed(self._speed, timeframe_delta(self.timeframe))

    @property
    def _speed(self) -> float:
        """How fast the clock runs: what is told in real minutes lasts as much longer on a replay's."""
        return 1.0 if self.replay_from is None else max(1.0, self.replay_speed)

    def open_candles(self, now: datetime) -> CandleSource:
        """Return the feed as it is known at *now*."""
        replayed = (
            self.replay_from is not None
        )  # then the feed lies in the past: none of its candles is still being made
        source = open_source(
            self.feed,
            symbol=self.symbol,
            timeframe=self.timeframe,
            now=None if replayed else now,
            calendar=None if replayed else self._open_calendar(),
            access=FeedAccess(self.oanda_token, str(self.oanda_url) if self.oanda_url else None, self.feed_timeout),
        )
        return ReplaySource(source, now) if replayed else source

    def _open_calendar(self) -> Calendar:
        name = self.calendar or ("always" if is_around_the_clock(self.feed) else "metals")
        if name == "metals" and self.holidays:
            return WeeklySession(read_holidays(self.holidays))
        return CALENDARS[name]

    def candles_if_any(self, now: datetime) -> CandleSource:
        """Return the feed; one that cannot be opened is an AbsentSource: what protects users must run without it."""
        try:
            return self.open_candles(now)
        except RolloutError as error:
            return AbsentSource(self.feed, self.timeframe, error)
        except (OSError, ValueError) as error:
            why = EvidenceUnavailable(f"{self.feed}: {' '.join(str(error).split()) or type(error).__name__}")
            return AbsentSource(self.feed, self.timeframe, why)


def least_settings() -> Settings:
    """Return the settings of the environment, with the usual value for each that is not valid.

    For rollbacks and ticks: they need the database alone, and must not wait for the mending of anything else.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = {str(each["loc"][0]) for each in error.errors()}
        return Settings(**{name: Settings.model_fields[name].default for name in wrong})


def read_settings() -> Settings:
    """Return the settings of the environment; else raise InvalidSetting naming the variable."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        setting = "_".join(str(part) for part in first["loc"])
        shown = "***" if setting in _SECRET else first["input"]
        raise InvalidSetting(f"ROLLOUT_{setting.upper()}", shown, first["msg"]) from None
