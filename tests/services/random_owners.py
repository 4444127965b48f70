"""Random hands on one strategy: what owners, alerts and ticks may do, in any order."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from strategy_core.domain.alerts import Message, RollbackRequest, Severity
from strategy_core.domain.audit import Actor
from strategy_core.domain.errors import FeedUnavailable
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.services.alerts import acknowledge, deliver
from strategy_core.services.canary import activate_canary, set_share, update_canary_percent
from strategy_core.services.rollback import AlertRollback, roll_back, roll_back_on_alert
from strategy_core.services.rollouts import Choice, approve, decide_rollout, pause, resume, start_rollout
from strategy_core.services.tick import tick
from strategy_core.services.versions import activate_version, retire_version
from strategy_core.store import alerts
from strategy_core.store.engine import reading
from tests.builders import decision_row, put_decisions, put_version
from tests.pictures import picture
from tests.services.compared import NAME, Compared
from tests.services.ramp_model import HOUR, Terms, Version, candle_before

CATCH_UP = 15  # candles at most
TERMS = [
    Terms(),
    Terms(percents=(10.0, 100.0), approve_before=(), bake=3 * HOUR),
    Terms(percents=(10.0, 100.0), approve_before=(), bake=3 * HOUR, watch=False),
    Terms(answerable=False),
    Terms(answerable=False, on_inconclusive="rollback"),
    Terms(armed=False),
]
SHARES = st.sampled_from([0.0, 0.01, 12.34, 60.0, 100.0])
NUMBERS = st.integers(0, 5)
PEOPLE = st.sampled_from(["ana", "bo"])
SELDOM = st.sampled_from([False, False, False, True])
EVIDENCE = st.sampled_from(["good", "good", "good", "good", "good", "harm", "one arm", "nothing", "no feed"])


def plan_of(terms: Terms) -> Plan:
    stage = {"minimum_time": 7_200, "margins": {"pnl_r": 0.1, "win": 0.05}}
    gates: list[dict[str, Any]] = [
        {"kind": "errors", "dry_run": not terms.armed, "share": 1.0, "minimum_decisions": 10_000}
    ]
    if not terms.answerable:
        gates.append({"kind": "not_worse", "minimum_slots": 10_000})
    return read_plan(
        {
            "stages": [stage | {"percent": percent} for percent in terms.percents],
            "approve_before": terms.approve_before,
            "on_inconclusive": terms.on_inconclusive,
            "maximum_stage_time": terms.maximum.total_seconds(),
            "blind_limit": terms.blind_limit.total_seconds(),
            "bake": terms.bake.total_seconds(),
            "watch": "alert" if terms.watch else "off",
            "gates": gates,
        }
    )


class NeverClosed:
    """A market that is open at every hour; of its feed it tells while it works."""

    name, timeframe = "never closed", "1h"

    def __init__(self, *, works: bool) -> None:
        self._works = works

    def symbols(self) -> tuple[str, ...]:
        return ("GOLD", "SILVER")

    def candles(self, symbol: str, **_: Any) -> Any:
        raise FeedUnavailable("nobody needs a candle here")

    def expected_at(self, symbol: str, now: datetime) -> datetime:
        if not self._works:
            raise FeedUnavailable("the feed is down")
        return candle_before(now)


class Receiver:
    """Takes every message while it works."""

    name, at_least, repeats = "receiver-1", Severity.INFO, True

    def __init__(self, *, works: bool) -> None:
        self._works = works

    def takes(self, kind: str) -> bool:
        return True

    def prepare(self) -> None:
        pass

    def send(self, message: Message, severity: Severity) -> str:
        return "" if self._works else "is down"


class Owners(Compared):
    """Whatever they wish is refused or granted as the model says; see `Compared`."""

    @initialize(active=st.sampled_from([False, True, True, True]), steps=st.integers(0, 9))
    def begin(self, active: bool, steps: int) -> None:
        for number in range(3):
            self.register(number)
        if active:
            self.activate(0, override=False, four_eyes=False, actor="ana")
            self.start(1, TERMS[0], override=False, actor="ana")
            self.let_it_go_on(steps)

    @rule(number=NUMBERS)
    def register(self, number: int) -> None:
        name = str(len(self.model.versions) + 1)
        version = Version(name, "SILVER" if number == 5 else "GOLD")
        if len(self.model.versions) < 6:
            put_version(self.engine, name, symbols=[version.symbol], recorded=True)
            self.model.versions[name] = version
            self.model.trail.append(("register_version", name))
            self.seen = picture(self.engine)

    @rule(number=NUMBERS, override=SELDOM, four_eyes=SELDOM, actor=PEOPLE)
    def activate(self, number: int, override: bool, four_eyes: bool, actor: str) -> None:
        name = self.pick(number)
        refused = self.model.activate(name, override=override, second=four_eyes, actor=actor, now=self.now)
        why = "tested again" if override else ""
        self.wish(refused, activate_version, version=name, override_reason=why, four_eyes=four_eyes, actor=actor)

    @rule(number=NUMBERS)
    def retire(self, number: int) -> None:
        name = self.pick(number)
        self.wish(self.model.retire(name), retire_version, version=name)

    @rule(number=NUMBERS, share=SHARES, override=SELDOM)
    def begin_canary(self, number: int, share: float, override: bool) -> None:
        name, why = self.pick(number), "tested again" if override else " "
        refused = self.model.begin_canary(name, share, override=override, now=self.now)
        self.wish(refused, activate_canary, version=name, rollout_percent=share, override_reason=why)

    @rule(share=SHARES, four_eyes=SELDOM, actor=PEOPLE)
    def set_percent(self, share: float, four_eyes: bool, actor: str) -> None:
        refused = self.model.set_percent(share, second=four_eyes, actor=actor)
        self.wish(refused, update_canary_percent, percent=share, four_eyes=four_eyes, actor=actor)

    @rule(number=NUMBERS, share=SHARES)
    def share(self, number: int, share: float) -> None:
        name = self.pick(number)
        if self.model.versions[name].status == "canary":
            refused = self.model.set_percent(share, second=False, actor="ana")
        else:
            refused = self.model.begin_canary(name, share, override=False, now=self.now)
        self.wish(refused, set_share, version=name, percent=share)

    @rule(number=NUMBERS, terms=st.sampled_from(TERMS), override=SELDOM, actor=PEOPLE)
    def start(self, number: int, terms: Terms, override: bool, actor: str) -> None:
        name, why = self.pick(number), "tested again" if override else ""
        refused = self.model.start(name, terms, override=override, actor=actor, now=self.now)
        self.wish(refused, start_rollout, version=name, plan=plan_of(terms), override_reason=why, actor=actor)

    @rule(four_eyes=SELDOM, actor=PEOPLE, reason=st.sampled_from(["seen the report", " "]))
    def an_approval(self, four_eyes: bool, actor: str, reason: str) -> None:
        refused = self.model.approve(second=four_eyes, actor=actor, stated=bool(reason.strip()))
        self.wish(refused, approve, four_eyes=four_eyes, actor=actor, reason=reason)

    @rule()
    def a_pause(self) -> None:
        self.wish(self.model.pause(), pause)

    @rule()
    def a_resumption(self) -> None:
        self.wish(self.model.resume(self.now), resume)

    @rule(choice=st.sampled_from([Choice.EXTEND, Choice.ADVANCE]), four_eyes=SELDOM, actor=PEOPLE)
    def decide(self, choice: Choice, four_eyes: bool, actor: str) -> None:
        if choice is Choice.EXTEND:
            refused = self.model.extend(self.now)
        else:
            refused = self.model.advance(second=four_eyes, actor=actor, now=self.now)
        self.wish(refused, decide_rollout, choice=choice, reason="so", four_eyes=four_eyes, actor=actor)

    @rule()
    def decide_to_roll_back(self) -> None:
        refused = {"UnknownRollout"}
        if self.model.rollout:
            refused = self.model.roll_back(None, cause="owner", now=self.now)
        self.wish(refused, decide_rollout, choice=Choice.ROLL_BACK, reason="so")

    @rule(number=st.one_of(st.none(), NUMBERS))
    def a_rollback(self, number: int | None) -> None:
        name = None if number is None else self.pick(number)
        self.wish(self.model.roll_back(name, cause="owner", now=self.now), roll_back, version=name, reason="so")

    @rule(number=st.one_of(st.none(), NUMBERS), hours_ago=st.sampled_from([0, 3]), key=st.sampled_from("ab"))
    def hear_an_alert(self, number: int | None, hours_ago: int, key: str) -> None:
        name, fired_at = None if number is None else self.pick(number), self.now - hours_ago * HOUR
        since = self.model.serves_since(name)
        after = deepcopy(self.model)
        refused: set[str] = set()
        if since is None:
            outcome = AlertRollback.NOTHING_SERVES
        elif since > fired_at:
            outcome = AlertRollback.BEGAN_LATER
        elif refused := after.roll_back(name, cause="alert", now=self.now):
            outcome = None
        elif key in self.model.heard:
            outcome = AlertRollback.CAME_AGAIN
        else:
            outcome, self.model = AlertRollback.ROLLED_BACK, after
            after.heard.add(key)

        firing = RollbackRequest(NAME, name, fired_at, key, "it fires")
        said = self.wish(
            refused,
            lambda engine, command, strategy_name: roll_back_on_alert(
                engine, replace(command, actor=Actor("monitoring", idempotency_key=key)), firing, fired_at=fired_at
            ),
        )

        assert outcome is None or said[0] is outcome

    @rule(number=NUMBERS)
    def an_acknowledgement(self, number: int) -> None:
        known = number < len(self.model.alerts)
        self.wish(
            set() if known else {"UnknownAlert"},
            lambda engine, command, strategy_name: acknowledge(engine, replace(command, reason="seen"), [number + 1]),
        )
        self.acknowledged |= {number + 1} if known else set()

    @rule(works=st.sampled_from([True, True, False]))
    def a_delivery(self, works: bool) -> None:
        tried = deliver(self.engine, [Receiver(works=works)], now=self.now)

        assert not self.acknowledged & {each.alert_id for each in tried}
        self.refused |= {each.alert_id for each in tried if each.problem}
        self.taken.update(each.alert_id for each in tried if not each.problem)
        with reading(self.engine) as session:
            raised = alerts.find_alerts(session)
        repeated = {alert.id for alert in raised if alert.severity == "critical"}
        assert {alert_id for alert_id, times in self.taken.items() if times > 1} <= repeated
        news = {alert.id for alert in raised if self.now - alert.at < 24 * HOUR and alert.acknowledged_at is None}
        news -= self.acknowledged | self.refused
        assert not works or news <= set(self.taken)
        self.seen, self.compared = picture(self.engine), False

    @rule(call=st.sampled_from([activate_version, retire_version, activate_canary, start_rollout]))
    def wish_of_a_version_that_is_not_there(self, call: Callable[..., Any]) -> None:
        more: dict[str, Any] = {"version": "none"}
        more |= {"rollout_percent": 5} if call is activate_canary else {}
        more |= {"plan": plan_of(TERMS[0])} if call is start_rollout else {}
        self.wish({"UnknownVersion"}, call, **more)

    @rule(call=st.sampled_from([approve, pause, resume]), number=NUMBERS)
    def wish_by_what_was_true_once(self, call: Callable[..., Any], number: int) -> None:
        past = len(self.model.trail) - 1
        self.wish({"LostRace"}, call, if_generation=past)
        self.wish({"LostRace"}, activate_version, version=self.pick(number), if_generation=past)

    @rule(share=st.sampled_from([-0.01, 100.01, 33.333, float("nan")]))
    def wish_a_share_that_is_none(self, share: float) -> None:
        self.wish({"InvalidPercent"}, update_canary_percent, percent=share)

    @rule(hours=st.sampled_from([1, 2, 3, 4, 7]), evidence=EVIDENCE, late=SELDOM)
    def a_tick(self, hours: int, evidence: str, late: bool) -> None:
        self.now += hours * HOUR
        self.decide_candles(evidence)
        works = evidence != "no feed"
        asked = self.now - 3 * HOUR if late else self.now
        step = self.model.tick(asked, works=works)

        ticked = tick(self.engine, NeverClosed(works=works), now=asked)

        assert [one.ruling and one.ruling.step.value for one in ticked] == ([] if step is None else [step])
        self.seen, self.compared = picture(self.engine), False

    @rule(steps=st.integers(1, 9))
    def let_it_go_on(self, steps: int) -> None:
        """Tick on good evidence, and approve what waits for it: what leads to a promotion, and beyond."""
        for _ in range(steps):
            if self.model.rollout is None:
                return
            if self.model.rollout.state == "awaiting_approval":
                self.an_approval(four_eyes=False, actor="bo", reason="seen the report")
            self.a_tick(3, "good", late=False)
            self.all_is_as_the_model_has_it()

    def decide_candles(self, evidence: str) -> None:
        newest, rollout = candle_before(self.now), self.model.rollout
        harmful = rollout.version if rollout and evidence == "harm" else None
        deaf = rollout.version if rollout and evidence == "one arm" else None
        rows = []
        for version in self.model.versions.values():
            if version.status == "retired" or version.name == deaf or evidence == "nothing":
                continue
            word = "error" if version.name == harmful else "hold"
            first = max([*version.said, newest - CATCH_UP * HOUR]) + HOUR
            candles = [first + step * HOUR for step in range(int((newest - first) / HOUR) + 1)]
            version.said |= dict.fromkeys(candles, word)
            kind = "raised" if word == "error" else ""
            rows += [decision_row(version.name, at, word, symbol=version.symbol, error_kind=kind) for at in candles]
        put_decisions(self.engine, *rows)
