"""The demo: its versions, words, tables and picture. The whole of it runs on three seeds and a file."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from sqlalchemy import Engine

from strategy_core.cli import main
from strategy_core.demo.copy_trading import USERS, CopyTrading
from strategy_core.demo.picture import picture
from strategy_core.demo.result import (
    Act,
    DemoResult,
    Drain,
    Event,
    OpenPositions,
    RolloutResult,
    StageResult,
    VersionResult,
    outcome_of,
)
from strategy_core.demo.run import plan_for, run_demo, run_story
from strategy_core.demo.story import Bound
from strategy_core.demo.terminal import show_result
from strategy_core.domain.errors import InvalidCandles, InvalidSetting
from strategy_core.domain.plan import Plan
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.history import Equity, ServedSpan
from strategy_core.store.engine import reading
from strategy_core.store.users import read_users
from tests.builders import GOLD, MONDAY

START = datetime(2025, 3, 3, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module", params=[23, 7, 11])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    database = tmp_path_factory.mktemp("demo") / "demo.db"
    return run_story(f"synthetic:GOLD?seed={request.param}&symbols=5", None, database, Console(quiet=True))


@pytest.mark.full
@pytest.mark.xdist_group("demo")
class TestOnTheSyntheticMarket:
    @pytest.mark.parametrize("strategy", ["fib_rsi", "ppo_gold"])
    def test_the_better_version_passes_every_stage_and_earns_more(self, story: DemoResult, strategy: str) -> None:
        rollout = story.rollout(strategy, "2.0.0")

        assert rollout is not None
        assert (rollout.control_version, rollout.state) == ("1.0.0", "completed")
        assert [stage.percent for stage in rollout.stages] == [5, 10, 25, 50, 100]
        assert rollout.bounds[-1].low > rollout.bounds[0].low
        assert rollout.difference_r > 0
        assert rollout.users_r > 0

    def test_a_mistake_is_rolled_back_while_few_users_have_it(self, story: DemoResult) -> None:
        rollout = story.rollout("fib_rsi", "3.0.0")

        assert rollout is not None
        assert (rollout.state, rollout.stages[-1].percent) == ("rolled_back", 5)
        assert rollout.reason.startswith(("harm: ", "excess_drawdown: "))
        assert rollout.frozen_at is not None
        assert abs(rollout.users_r) < 2

    def test_open_positions_stay_with_a_version_that_is_rolled_back_until_its_exits_close_them(
        self, story: DemoResult
    ) -> None:
        rollout = story.rollout("fib_rsi", "3.0.0")

        assert rollout is not None
        drain = rollout.drain
        assert drain is not None
        assert (drain.version, drain.since, drain.left) == ("3.0.0", rollout.ended_at, 0)
        assert drain.at_first >= 30
        assert 1 <= drain.candles <= 24  # the horizon of the scoring rule
        at, counts = rollout.positions.at, rollout.positions.by_manager["3.0.0"]
        assert counts[at.index(drain.since)] == drain.at_first
        assert counts[-1] == 0
        assert f"3.0.0 draining {drain.at_first} → 0 in" in rollout_text(story, "fib_rsi", "3.0.0")

    @pytest.mark.parametrize("strategy", ["fib_rsi", "ppo_gold"])
    def test_positions_of_the_replaced_version_drain_from_100_percent_on(
        self, story: DemoResult, strategy: str
    ) -> None:
        rollout = story.rollout(strategy, "2.0.0")

        assert rollout is not None
        drain = rollout.drain
        if drain is not None:  # else no user of 1.0.0 had a position at that moment
            assert (drain.version, drain.since, drain.left) == ("1.0.0", rollout.stages[-1].entered_at, 0)
            assert drain.at_first > 0
        assert max(rollout.positions.by_manager["1.0.0"]) > 0
        assert rollout.positions.by_manager["1.0.0"][-1] == 0
        assert max(rollout.positions.by_manager["2.0.0"]) > 0
        assert story.version(strategy, "1.0.0").status == "retired"  # type: ignore[union-attr]

    def test_each_stage_says_who_is_in_the_canary_and_where_the_cap_on_capital_narrows_it(
        self, story: DemoResult
    ) -> None:
        rollout = story.rollout("fib_rsi", "2.0.0")

        assert rollout is not None
        for stage in rollout.stages:
            assert stage.users is not None
            assert stage.capital is not None
            assert stage.capital <= stage.percent
        assert [(stage.percent, bool(stage.cap_note)) for stage in rollout.stages] == [
            (5, False),
            (10, True),
            (25, False),
            (50, False),
            (100, False),
        ]
        assert rollout.stages[-1].users == USERS
        narrowed = rollout.stages[1]
        assert [event.asked for event in story.timeline if event.percent == narrowed.served][:1] == [10]

    def test_no_trade_is_on_a_version_that_routing_did_not_give(self, story: DemoResult) -> None:
        assert story.trades > 1_000
        assert story.misrouted == 0

    def test_a_model_that_hardly_ever_signals_reaches_no_user(self, story: DemoResult) -> None:
        version = story.version("ppo_gold", "3.0.0")

        assert version is not None
        assert story.rollout("ppo_gold", "3.0.0") is None
        assert version.status == "retired"
        assert version.refused.startswith("its start was refused, because in shadow the canary earns less")
        assert version.outcome.startswith("ppo_gold 3.0.0 reached no user")

    def test_the_timeline_has_every_change_with_its_reason(self, story: DemoResult) -> None:
        actions = [event.action for event in story.timeline]

        assert actions.count("promote") == actions.count("complete") == 2
        assert actions.count("roll_back") == 1
        assert all(event.reason for event in story.timeline if event.actor == "ramp")

    def test_every_line_fits_into_80_columns(self, story: DemoResult) -> None:
        assert_readable(story)


@pytest.mark.full
def test_files_of_several_symbols_and_other_timeframes_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    market = SyntheticSource(("GOLD", "SILVER"), seed=3, timeframe="4h", start=MONDAY.replace(year=2018), days=1500)
    frames = [
        market.candles(symbol, closed_by=MONDAY.replace(year=2025)).assign(symbol=symbol) for symbol in market.symbols()
    ]
    candles = pd.concat(frames).tz_convert("Europe/Athens").tz_localize(None)
    candles.rename_axis("time").to_csv(tmp_path / "both.csv")

    kept = tmp_path / "kept.db"
    code = main(["demo", "--candles", f"{tmp_path}/both.csv?tz=Europe/Athens", "--keep", str(kept), "--json"])

    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert code == 0
    assert (result["timeframe"], result["symbols"]) == ("4h", ["GOLD", "SILVER"])
    assert result["summary"]
    assert kept.exists()
    assert kept.with_suffix(".html").read_text().startswith("<!doctype html>")
    assert f"Picture: {kept.with_suffix('.html')}" in shown.err
    pages = list(kept.with_suffix(".reports").glob("*.html"))
    assert {each.stem.rpartition("-")[2] for each in pages} >= {"weekly", "final"}
    assert all("; next: " in each.read_text() for each in pages)


@pytest.fixture
def short_file(tmp_path: Path) -> Path:
    market = SyntheticSource((GOLD,), seed=3, start=MONDAY.replace(year=2024), days=20)
    market.candles(GOLD, closed_by=MONDAY.replace(year=2025)).to_csv(tmp_path / "SHORT.csv")
    return tmp_path / "SHORT.csv"


def test_a_file_too_short_for_a_story_is_refused_with_the_number_needed(short_file: Path) -> None:
    with pytest.raises(InvalidCandles, match=r"has \d+ of SHORT: the demo needs 3,000 candles or more of a symbol"):
        run_demo(candles=short_file, symbol=None, as_json=False, database=None, console=Console(quiet=True))


def test_a_refused_file_leaves_nothing_behind(short_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidCandles):
        run_demo(
            candles=short_file, symbol=None, as_json=False, database=tmp_path / "new.db", console=Console(quiet=True)
        )

    assert list(tmp_path.iterdir()) == [short_file]


@pytest.mark.parametrize("name", ["mine.db", "mine.html", "mine.models", "mine.reports"])
def test_existing_files_are_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")

    with pytest.raises(InvalidSetting, match=rf"{name}.*does not exist yet"):
        run_demo(candles=None, symbol=None, as_json=False, database=tmp_path / "mine.db", console=Console(quiet=True))
    assert [each.read_text() for each in tmp_path.iterdir()] == ["precious"]


def test_a_database_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="a folder that exists"):
        run_demo(candles=None, symbol=None, as_json=False, database=tmp_path / "no" / "x.db", console=Console())


@pytest.mark.parametrize("hours", [0.25, 1, 4, 24])
def test_the_plan_has_the_same_number_of_candles_in_every_timeframe(hours: float) -> None:
    plan = plan_for(timedelta(hours=hours))

    usual = Plan()
    assert plan.stages[0].minimum_time == hours * usual.stages[0].minimum_time
    assert plan.bake == hours * usual.bake
    assert plan.watch == "off"
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


def rollout_text(story: DemoResult, strategy: str, version: str) -> str:
    """Return the outcome of a version as the demo prints it."""
    found = story.version(strategy, version)
    assert found is not None
    return found.outcome


def rollout_of(state: str, **changed: object) -> RolloutResult:
    bounds = [Bound(START + day * DAY, 5, 30 + day, 0.2, -0.2 + day / 50, -0.15) for day in range(5)]
    stage = StageResult(
        percent=5,
        served=4.5,
        users=9,
        capital=4.96,
        entered_at=START,
        left_at=START + 180 * DAY,
        verdict="inconclusive",
        reason="why",
        bound=bounds[-1],
    )
    known: dict[str, object] = {
        "strategy": "fib_rsi",
        "version": "2.0.0",
        "control_version": "1.0.0",
        "state": state,
        "started_at": START,
        "ended_at": START + 4 * DAY,
        "promoted": False,
        "slots": 34,
        "canary_r": -3.0,
        "control_r": 2.0,
        "users_r": -0.25,
        "signals": 26,
        "control_signals": 30,
        "reason": "harm: the canary earns less",
        "stages": [stage],
        "bounds": bounds,
        "equity": Equity((START, START + DAY), (0.0, -3.0), (0.0, 2.0)),
        "served": [ServedSpan(START, START + 4 * DAY, 5.0)],
    }
    return RolloutResult.model_validate(known | changed)


DRAIN = Drain(version="2.0.0", since=START + 4 * DAY, at_first=37, left=0, candles=24)


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        (rollout_of("rolled_back"), "was rolled back at 4.5 % of users, after 4 days: harm: the canary earns less."),
        (rollout_of("rolled_back", frozen_at=START + 2 * DAY), "Its stage was held after 2 days, when its decisions"),
        (rollout_of("rolled_back", promoted=True), "was rolled back after it had served all users, after 4 days"),
        (rollout_of("rolled_back"), "its first users lost 5.0 R each in 34 slots; over all users that is 0.25 R"),
        (rollout_of("completed", canary_r=9.0, users_r=1.5), "gained 7.0 R each in 34 slots"),
        (rollout_of("rolled_back", signals=2), "It signalled 2 times, 1.0.0 30 times."),
        (
            rollout_of("awaiting_decision", ended_at=None),
            "is at 4.5 % of users: the candles ended after 8 days (awaiting",
        ),
        (rollout_of("running", promoted=True, ended_at=None), "serves all users and is still watched"),
        (rollout_of("rolled_back", slots=0), "No trade had closed by then, so users have gained and lost nothing."),
        (rollout_of("rolled_back", ended_at=START + timedelta(hours=5)), "after 5 hours"),
        (
            rollout_of("rolled_back", drain=DRAIN),
            "Its open positions stayed with it: 2.0.0 draining 37 → 0 in 24 candles.",
        ),
        (
            rollout_of("completed", drain=Drain(version="1.0.0", since=START, at_first=5, left=2, candles=1)),
            "From 100 % on: 1.0.0 draining 5 → 2 in 1 candle.",
        ),
        (None, "reached no user: the canary earns less"),
    ],
)
def test_the_outcome_is_true_whatever_happened(rollout: RolloutResult | None, said: str) -> None:
    assert said in outcome_of("fib_rsi 2.0.0", rollout, "the canary earns less", START + 8 * DAY)


def result_of(*rollouts: RolloutResult) -> DemoResult:
    names = [("fib_rsi", "1.0.0"), ("fib_rsi", "2.0.0"), ("ppo_gold", "1.0.0")]
    return DemoResult(
        feed="synthetic",
        timeframe="1h",
        symbols=[GOLD],
        started_at=START,
        ended_at=START + 8 * DAY,
        candles=1000,
        versions=[
            VersionResult(
                strategy=strategy,
                version=version,
                about="what it is, in some words that are long enough to need a second line on a terminal",
                entry_point="fib_rsi",
                config={},
                differs="FibRsiSeasonal, rsi_overbought: 52, rsi_oversold: 48, fitted_until: 2025-06-19, and more",
                status="shadow",
                quarantined=True,
                decisions=12_345,
                signals=345,
                errors=0,
                refused="",
                outcome="What became of 2.0.0 (in short).",
            )
            for strategy, version in names
        ],
        comparisons=[],
        rollouts=list(rollouts),
        trades=1_234,
        misrouted=0,
        timeline=[
            Event(
                at=START,
                actor="owner",
                action="start_rollout",
                strategy="ppo_gold",
                version="2.0.0",
                percent=4.5,
                asked=5.0,
                reason="why",
            )
        ],
        acts=[Act(title="Act 1", strategy="fib_rsi", versions=["1.0.0", "2.0.0"])],
        summary="What happened.",
    )


def assert_readable(result: DemoResult) -> None:
    """Assert that no line is longer than 80 columns, and that no cell of a short column is broken."""
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    show_result(result, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    for word in ("difference", "quarantined", "decisions", result.summary.split()[0]):
        assert any(word in line for line in lines)
    assert not any("…" in line for line in lines)


def test_the_directory_is_the_same_in_every_run_and_some_capital_is_unknown(engine: Engine) -> None:
    for _ in range(2):
        CopyTrading(engine, SyntheticSource((GOLD,), start=START, days=60)).join(START)

    with reading(engine) as session:
        users = read_users(session)
    known = sorted(capital for capital in users.values() if capital is not None)
    assert len(users) == USERS
    assert 0 < USERS - len(known) < 0.1 * USERS
    assert sum(known[-20:]) > 0.4 * sum(known)  # a tenth of the users hold most of it


def test_every_line_fits_into_80_columns() -> None:
    assert_readable(result_of(rollout_of("rolled_back")))


def test_the_picture_is_one_page_with_the_charts_of_each_rollout() -> None:
    positions = OpenPositions(at=[START, START + DAY], by_manager={"2.0.0": [37, 0], "1.0.0": [200, 210]})
    page = picture(result_of(rollout_of("rolled_back", drain=DRAIN, positions=positions)))

    assert len(re.findall(r'<img src="data:image/svg', page)) == 4
    assert re.search(r"5 %</td>\s*<td[^>]*>4.5 %</td>\s*<td[^>]*>9</td>\s*<td[^>]*>4.96 %</td>", page)
    assert page.count("narrowed") == 1
    assert page.count("What became of 2.0.0 (in short).") == 5
