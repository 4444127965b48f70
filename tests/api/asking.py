"""The API as a client has it, on a database with two strategies: one in a rollout, the other without."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2 as httpx  # as Starlette's client
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine
from sqlmodel import Session, col, select

from strategy_core.api.app import create_app
from strategy_core.api.auth import Authenticator, Failures
from strategy_core.api.routes import PREFIX
from strategy_core.api.settings import ApiSettings
from strategy_core.domain.audit import AGENT, Actor, Command
from strategy_core.domain.comparison import compare
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.owner_reports import Kind
from strategy_core.domain.plan import read_plan
from strategy_core.domain.race import begin
from strategy_core.domain.ramp import State
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.services.live_trades import ingest
from strategy_core.services.proposals import Proposed, propose
from strategy_core.services.report_facts import ReportFacts
from strategy_core.services.rollouts import start_rollout
from strategy_core.settings import Settings
from strategy_core.store import alerts, races, release_times, rollouts, user_exclusions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import (
    AuditEvent,
    ComparisonReport,
    FreezeRow,
    GateVerdict,
    OwnerReport,
    Race,
    RaceEntry,
    ScheduledStart,
)
from tests.alertmanager import alarm, notified
from tests.api.signing import NOW, SECRET, token
from tests.builders import HOUR, MONDAY, OWNER, decision_row, put_decisions, put_replays, put_version, replay_row

FEED = "synthetic:GOLD?seed=7&days=300"
PAST = datetime(2024, 10, 7, tzinfo=UTC)  # a Monday with candles, which are replayed
DAILY = {"percent": 5, "minimum_time": 86_400, "margins": {"pnl_r": 0.1, "win": 0.05}}
PLAN = {"stages": [DAILY, {**DAILY, "percent": 100}], "gates": [{"kind": "errors"}], "maximum_stage_time": 172_800}
START_ID = UUID("00000000-0000-4000-8000-000000000007")
SYMBOLS = ("GOLD", "OIL", "SILVER")
TOGGLES = '{"notify_only":{"default":false,"type":"boolean"}}'
REPORT: dict[str, Any] = {"checks": [], "warnings": []}
HELD = {
    "owner": token(),
    "other": token(strategies=["other"]),
    "reader": token(scope="read"),
    "user": token(role="user"),
}


@dataclass
class Clock:
    """The market's time, and the real one, as a test sets them."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Api:
    """What a client sees: a request as whoever holds a token, and the answer."""

    engine: Engine
    settings: Settings = field(default_factory=lambda: Settings(feed=FEED, routes_by_symbol=True))
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.app: FastAPI = made(self.engine, self.settings, self.clock)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def __call__(
        self,
        method: str,
        path: str,
        *,
        held: str | None = "owner",
        headers: Mapping[str, str] | None = None,
        **sent: Any,
    ) -> httpx.Response:
        """Ask as whoever holds this token: one of HELD, or a token itself; None: nobody."""
        shown = {} if held is None else {"Authorization": f"Bearer {HELD.get(held, held)}"}
        answer: httpx.Response = self.client.request(
            method, PREFIX + path, headers={**shown, **(headers or {})}, **sent
        )
        return answer

    def get(self, path: str, **sent: Any) -> httpx.Response:
        return self("GET", path, **sent)

    def post(self, path: str, json: Any = None, **sent: Any) -> httpx.Response:
        return self("POST", path, json={} if json is None else json, **sent)


def made(engine: Engine, settings: Settings, clock: Clock) -> FastAPI:
    api = ApiSettings.model_validate({"secret": SECRET})
    authenticator = Authenticator(api, api.open_keys(), Failures(limit=1_000_000), clock=clock)
    return create_app(engine, settings, authenticator, clock=clock)


@dataclass
class World:
    """What stands in the database: `fib_rsi` 2 is 5 % canary of a rollout against 1; `ppo_gold` 1 is active, 2 shadow.

    The canary serves GOLD and OIL; SILVER is excluded.

    Attributes:
        ids: of versions, by (strategy, version).
        rollout: the id of the open rollout.
        alert: the id of the one that tells of its start.
        comparison, report: the ids of a nightly comparison and of a morning note of `fib_rsi`.
        freeze: the id of a freeze of `fib_rsi` in a month.
        proposal: the id of the one to activate `ppo_gold` 2.
        race: the id of one of `fib_rsi` 2 against 1.
    """

    ids: dict[tuple[str, str], str]
    rollout: str
    alert: str
    freeze: str
    comparison: str
    report: str
    proposal: str
    race: str


def put_world(engine: Engine) -> World:
    ids = {}
    for strategy_name in ("fib_rsi", "ppo_gold"):
        for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW), ("3", Status.SHADOW)):
            known: dict[str, Any] = {"strategy_name": strategy_name, "registration_report": REPORT, "symbols": SYMBOLS}
            if strategy_name == "ppo_gold":  # which is replayed on a feed of gold
                known["symbols"] = SYMBOLS[:1]
            else:
                known["toggles"] = TOGGLES
            row = put_version(engine, version, status, **known)
            ids[strategy_name, version] = str(row.id)
    put_decisions(engine, *(decision_row(v, MONDAY + h * HOUR, "buy") for v in ("1", "2") for h in range(3)))
    past = [PAST + hour * HOUR for hour in range(3)]
    for name in ("fib_rsi", "ppo_gold"):
        put_replays(engine, *(replay_row(v, at, strategy_name=name) for v in ("1", "2") for at in past))
    rollout = start_rollout(
        engine, Command(OWNER, MONDAY, "proven"), strategy_name="fib_rsi", version="2", plan=read_plan(PLAN)
    )
    held = {"trade_id": "held", "user_id": "u3", "strategy_name": "fib_rsi", "version": "3", "symbol": "GOLD"}
    ingest(engine, [{**held, "opened_at": MONDAY - HOUR}], now=MONDAY)
    with transaction(engine) as session:
        session.add(verdict(rollout.id))
        rollouts.set_excluded(session, "fib_rsi", {"SILVER": MONDAY})
        later = NOW + timedelta(days=30)
        freeze = release_times.add_freeze(
            session,
            FreezeRow(
                strategy_name="fib_rsi",
                reason="holidays",
                starts_at=later,
                ends_at=later + timedelta(days=1),
                set_at=MONDAY,
                set_by="ana",
            ),
        )
        user_exclusions.exclude(
            session, "fib_rsi", ExclusionKind.OPT_OUT, ["u99"], now=MONDAY, reason="by mail", actor="ana"
        )
    with reading(engine) as session:
        (alert,) = alerts.find_alerts(session, "fib_rsi")
    wish: dict[str, Any] = {"strategy_name": "ppo_gold", "action": Proposed.ACTIVATE, "version": "2"}
    proposal = propose(engine, Command(Actor("assistant", role=AGENT), MONDAY, "better in shadow"), **wish)
    with transaction(engine) as session:
        comparison = put_comparison(session)
        report = put_report(session)
        race = put_race(session)
    named = (str(rollout.id), str(alert.id), str(freeze.id), comparison, report, str(proposal.id), race)
    return World(ids, *named)


def put_race(session: Session) -> str:
    """Store a race of `fib_rsi` 2 alone, which no owner could start, so that 3 may enter."""
    begun = Race(
        strategy_name="fib_rsi",
        plan=PLAN,
        starts=False,
        began=2,
        tried=1,
        started_at=MONDAY,
        started_by="ana",
        first_day=MONDAY,
        next_day=MONDAY,
        pairs=begin(2).stored(),
    )
    named = enumerate(["1", "2"])
    facts: dict[str, Any] = {"race_id": begun.id, "strategy_name": "fib_rsi", "entered_at": MONDAY}
    races.add_race(session, begun, [RaceEntry(position=place, version=name, **facts) for place, name in named])
    return str(begun.id)


def put_comparison(session: Session) -> str:
    stored = ComparisonReport(
        strategy_name="fib_rsi",
        shadow_version="2",
        active_version="1",
        period_start=MONDAY,
        period_end=MONDAY + 3 * HOUR,
        report=compare([]).model_dump(mode="json"),
        created_at=MONDAY + 3 * HOUR,
    )
    session.add(stored)
    return str(stored.id)


def put_report(session: Session) -> str:
    facts = ReportFacts(
        kind=Kind.MORNING,
        subject="2026-03-02",
        strategy_name="fib_rsi",
        active="1",
        at=MONDAY + 3 * HOUR,
        period_start=MONDAY,
        period_end=MONDAY + 3 * HOUR,
        sentence="Nothing can be concluded yet: 3 of 30 slots; next: wait.",
        risk_fraction=0.01,
    )
    kept = facts.model_dump(include={"kind", "strategy_name", "subject", "period_start", "period_end", "sentence"})
    stored = OwnerReport(**kept, facts=facts.model_dump(mode="json"), html_sha256="0" * 64, created_at=facts.at)
    session.add(stored)
    return str(stored.id)


def put_start(engine: Engine) -> None:
    """Schedule the start of `fib_rsi` 3 in a month, once."""
    with transaction(engine) as session:
        if session.get(ScheduledStart, START_ID) is None:
            release_times.add_start(
                session,
                ScheduledStart(
                    id=START_ID,
                    strategy_name="fib_rsi",
                    version="3",
                    plan=PLAN,
                    start_at=NOW + timedelta(days=30),
                    asked_at=MONDAY,
                    actor="ana",
                    role="owner",
                    source="api",
                ),
            )


def verdict(rollout_id: Any, **changes: Any) -> GateVerdict:
    facts = {
        "rollout_id": rollout_id,
        "ticked_at": MONDAY + HOUR,
        "stage_index": 0,
        "gate": "errors",
        "verdict": "pass",
        "armed": True,
        "reason": "0 of 3 decisions failed",
        "value": 0.0,
        "limit": 3.0,
        "n": 3,
    }
    return GateVerdict(**facts | changes)


def put_state(engine: Engine, state: State) -> None:
    with transaction(engine) as session:
        rollout = rollouts.open_rollout(session, "fib_rsi")
        assert rollout is not None
        rollouts.change_rollout(session, rollout, state=state.value)


def newest_event(session: Session) -> AuditEvent:
    return session.exec(select(AuditEvent).order_by(col(AuditEvent.id).desc()).limit(1)).one()


@dataclass(frozen=True)
class Sample:
    """A request that this world answers with success; `{…}` in its path stands for an id.

    Attributes:
        state: that the rollout must be in.
        changes: the strategy that it changes; "" when it changes none.
    """

    method: str
    path: str
    json: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    state: State | None = None
    changes: str = ""
    status: int = 200

    def send(self, api: Api, world: World, **more: Any) -> httpx.Response:
        if self.json is not None:
            more = {"json": self.json, **more}
        if "{start}" in self.path:
            put_start(api.engine)
        return api(self.method, placed(self.path, world), params=self.params, **more)


def placed(path: str, world: World) -> str:
    named = {f"{strategy}/{version}": known for (strategy, version), known in world.ids.items()}
    names = ("rollout", "alert", "freeze", "comparison", "report", "proposal", "race")
    ids = {"start": str(START_ID)} | {name: getattr(world, name) for name in names}
    for name, known in {**named, **ids}.items():
        path = path.replace(f"{{{name}}}", known)
    return path


BY_NAME = {"strategy_name": "fib_rsi"}
FREE = {"strategy_name": "ppo_gold", "version": "2"}
TRADE = {
    "trade_id": "t1",
    "user_id": "u2",
    "strategy_name": "fib_rsi",
    "version": "1",
    "symbol": "GOLD",
    "opened_at": (NOW - timedelta(hours=1)).isoformat(),
}
REGISTRATION = {
    **BY_NAME,
    "version": "9",
    "entry_point": "fib_rsi",
    "config": {"rsi_period": 9},
    "symbols": ["GOLD"],
    "timeframe": "1h",
}
WHY = {"reason": "it is time"}
SAMPLES: dict[str, Sample] = {
    "register": Sample("POST", "/versions", REGISTRATION, changes="fib_rsi", status=201),
    "list_versions": Sample("GET", "/versions", params=BY_NAME),
    "show_version": Sample("GET", "/versions/{fib_rsi/1}"),
    "activate": Sample("POST", "/versions/{ppo_gold/2}/activate", WHY, changes="ppo_gold"),
    "retire": Sample("POST", "/versions/{ppo_gold/2}/retire", WHY, changes="ppo_gold"),
    "set_rollout_percent": Sample("PATCH", "/rollout", {**FREE, "rollout_percent": 12.5}, changes="ppo_gold"),
    "list_canaries": Sample("GET", "/canary", params=BY_NAME),
    "start": Sample("POST", "/rollouts", {**FREE, "plan": PLAN}, changes="ppo_gold", status=201),
    "preview_rollout": Sample("POST", "/rollouts/plan", FREE),
    "list_rollouts": Sample("GET", "/rollouts", params=BY_NAME),
    "show_rollout": Sample("GET", "/rollouts/{rollout}"),
    "list_verdicts": Sample("GET", "/rollouts/{rollout}/verdicts"),
    "show_report": Sample("GET", "/rollouts/{rollout}/report"),
    "show_report_page": Sample("GET", "/rollouts/{rollout}/report.html"),
    "list_comparisons": Sample("GET", "/comparisons", params=BY_NAME),
    "show_comparison": Sample("GET", "/comparisons/{comparison}"),
    "show_comparison_page": Sample("GET", "/comparisons/{comparison}.html"),
    "list_reports": Sample("GET", "/reports", params=BY_NAME),
    "show_feed": Sample("GET", "/reports.atom", params=BY_NAME),
    "show_owner_report": Sample("GET", "/reports/{report}.html"),
    "pause": Sample("POST", "/rollouts/{rollout}/pause", WHY, changes="fib_rsi"),
    "resume": Sample("POST", "/rollouts/{rollout}/resume", WHY, state=State.PAUSED, changes="fib_rsi"),
    "exclude": Sample("POST", "/rollouts/{rollout}/exclude", {**WHY, "symbol": "OIL"}, changes="fib_rsi"),
    "list_races": Sample("GET", "/races", params=BY_NAME),
    "show_race": Sample("GET", "/races/{race}"),
    "start_race": Sample(
        "POST", "/races", {"strategy_name": "ppo_gold", "versions": ["2", "3"]}, changes="ppo_gold", status=201
    ),
    "enter_race": Sample("POST", "/races/{race}/entries", {"version": "3"}, changes="fib_rsi"),
    "withdraw_from_race": Sample("POST", "/races/{race}/withdraw", {**WHY, "version": "2"}, changes="fib_rsi"),
    "close_race": Sample("POST", "/races/{race}/close", WHY, changes="fib_rsi"),
    "list_freezes": Sample("GET", "/freezes", params=BY_NAME),
    "freeze": Sample(
        "POST",
        "/freezes",
        {**WHY, **BY_NAME, "ends_at": (NOW + timedelta(days=2)).isoformat()},
        changes="fib_rsi",
        status=201,
    ),
    "lift": Sample("POST", "/freezes/{freeze}/lift", WHY, changes="fib_rsi"),
    "list_exclusions": Sample("GET", "/exclusions", params=BY_NAME),
    "exclude_users": Sample(
        "POST", "/exclusions", {**WHY, **BY_NAME, "user_ids": ["u77"]}, changes="fib_rsi", status=201
    ),
    "end_exclusions": Sample("POST", "/exclusions/end", {**WHY, **BY_NAME, "user_ids": ["u99"]}, changes="fib_rsi"),
    "list_starts": Sample("GET", "/starts", params=BY_NAME),
    "schedule": Sample(
        "POST",
        "/starts",
        {**FREE, "plan": PLAN, "start_at": (NOW + timedelta(days=2)).isoformat()},
        changes="ppo_gold",
        status=201,
    ),
    "cancel": Sample("POST", "/starts/{start}/cancel", WHY, changes="fib_rsi"),
    "approve": Sample("POST", "/rollouts/{rollout}/approve", WHY, state=State.AWAITING_APPROVAL, changes="fib_rsi"),
    "decide": Sample(
        "POST",
        "/rollouts/{rollout}/decide",
        {**WHY, "choice": "extend"},
        state=State.AWAITING_DECISION,
        changes="fib_rsi",
    ),
    "roll_back_rollout": Sample("POST", "/rollouts/{rollout}/rollback", WHY, changes="fib_rsi"),
    "roll_back_strategy": Sample("POST", "/rollback", {**BY_NAME, **WHY}, changes="fib_rsi"),
    "list_decisions": Sample("GET", "/decisions", params=BY_NAME),
    "compare": Sample("POST", "/shadow-comparison", {**BY_NAME, "shadow_version": "2", "days": 3}),
    "replay": Sample(
        "POST",
        "/replays",
        {**FREE, "start": PAST.isoformat(), "end": (PAST + 3 * HOUR).isoformat()},
        changes="ppo_gold",
    ),
    "whatif": Sample(
        "POST", "/whatif", {**BY_NAME, "version": "2", "start": PAST.isoformat(), "end": (PAST + 3 * HOUR).isoformat()}
    ),
    "report_outcomes": Sample("POST", "/outcomes", {"trades": [TRADE]}, changes="fib_rsi"),
    "list_positions": Sample("GET", "/positions", params=BY_NAME),
    "count_positions": Sample("GET", "/positions/held", params=BY_NAME),
    "list_exits": Sample("GET", "/positions/exits", params=BY_NAME),
    "hand_over": Sample(
        "POST", "/positions/hand-over", {**WHY, **BY_NAME, "version": "3", "to_version": "1"}, changes="fib_rsi"
    ),
    "flatten": Sample("POST", "/positions/flatten", {**WHY, **BY_NAME, "version": "3"}, changes="fib_rsi"),
    "reconcile": Sample(
        "POST", "/positions/snapshot", {**BY_NAME, "taken_at": NOW.isoformat(), "trades": []}, changes="fib_rsi"
    ),
    "route": Sample("GET", "/route", params={**BY_NAME, "user_id": "u13"}),
    "read_routing": Sample("GET", "/routing"),
    "list_signals": Sample("GET", "/signals", params=BY_NAME),
    "read_toggles": Sample("GET", "/toggles"),
    "list_toggles": Sample("GET", "/toggles/fib_rsi"),
    "resolve_toggles": Sample("GET", "/toggles/fib_rsi/resolve", params={"user_id": "u13"}),
    "set_toggle": Sample("PUT", "/toggles/fib_rsi/notify_only", {**WHY, "rules": [{"value": True}]}, changes="fib_rsi"),
    "list_events": Sample("GET", "/audit", params=BY_NAME),
    "show_state": Sample("GET", "/audit/state", params={**BY_NAME, "at": NOW.isoformat()}),
    "verify": Sample("GET", "/audit/verify", params=BY_NAME),
    "list_alerts": Sample("GET", "/alerts", params=BY_NAME),
    "acknowledge": Sample("POST", "/alerts/{alert}/acknowledge", WHY, changes="fib_rsi"),
    "roll_back_on_alerts": Sample("POST", "/alertmanager", notified(alarm("fib_rsi")), changes="fib_rsi"),
    "list_proposals": Sample("GET", "/proposals", params=BY_NAME),
    "approve_proposal": Sample("POST", "/proposals/{proposal}/approve", WHY, changes="ppo_gold"),
    "reject_proposal": Sample("POST", "/proposals/{proposal}/reject", WHY, changes="ppo_gold"),
    "health": Sample("GET", "/healthz"),
    "metrics": Sample("GET", "/metrics"),
}
