"""Rules of toggles and segments on the command line."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from tests.builders import put_version
from tests.cli.conftest import Rollout, Said, contents

DECLARED = (
    '{"notify_only":{"default":false,"type":"boolean"},'
    '"risk_scale":{"default":1.0,"maximum":1.0,"minimum":0.25,"type":"number"}}'
)
SCALE = ("toggle", "set", "fib_rsi", "risk_scale")


@pytest.fixture(autouse=True)
def declared(database: Engine) -> None:
    put_version(database, "1", Status.ACTIVE, toggles=DECLARED)
    put_version(database, "1", Status.ACTIVE, strategy_name="plain")


@pytest.fixture
def segments(rollout: Rollout, tmp_path: Path) -> str:
    file = tmp_path / "segments.csv"
    file.write_text("user_id,segment\nu1,new\nu2,new\nu2,vip\n", "utf-8")
    assert rollout("toggle", "segments", str(file), "--reason", "nightly").code == 0
    return str(file)


def test_rules_are_set_listed_resolved_and_removed(rollout: Rollout, segments: str) -> None:
    rollout(*SCALE, "0.5", "--segment", "new", "--reason", "a trial")
    added = rollout(*SCALE, "0.25", "--user", "u2", "--user", "u3", "--at", "1").out

    assert added == (
        "risk_scale (1: a number from 0.25 to 1; default 1.0)\n  1. users u2, u3: 0.25\n  2. segment new: 0.5\n"
    )
    assert (
        rollout("toggle", "list", "fib_rsi").out == f"notify_only (1: true, false; default false)\n  no rule\n{added}"
    )
    assert "rule 2: segment new" in rollout("toggle", "resolve", "fib_rsi", "u1").out
    removed = rollout("toggle", "remove", "fib_rsi", "risk_scale", "--rule", "1", "--json").data
    assert removed["rules"] == [{"when": {"segment": "new"}, "value": 0.5}]
    assert rollout("toggle", "remove", "fib_rsi", "risk_scale").out.endswith("  no rule\n")
    assert "default: it has no rule" in rollout("toggle", "resolve", "fib_rsi", "u1").out


def test_all_conditions_and_the_reason_are_kept(rollout: Rollout, segments: str) -> None:
    conditions = ("--segment", "vip", "--capital-at-least", "100", "--capital-at-most", "900", "--percent", "12.5")

    (rule,) = rollout(*SCALE, "0.5", *conditions, "--reason", "a trial", "--json").data["rules"]

    assert rule["when"] == {"segment": "vip", "capital_at_least": 100, "capital_at_most": 900, "percent": 12.5}
    event = rollout("audit", "--json").data[-1]
    assert (event["action"], event["reason"]) == ("set_toggle", "a trial")


def test_a_resolved_user_is_data_for_programs(rollout: Rollout, segments: str) -> None:
    rollout("toggle", "set", "fib_rsi", "notify_only", "true", "--percent", "100")

    found = rollout("toggle", "resolve", "fib_rsi", "u1", "--json").data

    assert (found["user_id"], found["version"]) == ("u1", "1")
    quiet = found["toggles"]["notify_only"]
    assert (quiet["value"], quiet["rule"], quiet["split"]) == (True, 1, True)
    assert found["toggles"]["risk_scale"] == {
        "value": 1.0,
        "why": "default: it has no rule",
        "rule": None,
        "split": False,
    }


def test_a_load_of_segments_says_what_it_changed(rollout: Rollout, segments: str) -> None:
    Path(segments).write_text("user_id,segment\nu1,new\nu4,new\n", "utf-8")

    loaded = rollout("toggle", "segments", segments, "--reason", "nightly")

    assert loaded.out == "1 segment with 2 members: 1 added, 2 removed\n"


def test_a_strategy_without_toggles_says_so(rollout: Rollout) -> None:
    assert rollout("toggle", "list", "plain").out == "no version of plain declares toggles\n"
    assert rollout("toggle", "resolve", "plain", "u1").out == "u1 gets plain 1\nwhich declares no toggles\n"


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ((*SCALE, "2"), 2, "2 is not allowed; allowed: a number from 0.25 to 1"),
        ((*SCALE, "half"), 2, "'half' is not allowed"),
        ((*SCALE, "0.5", "--user", " "), 2, "' ' is blank or has white space around it"),
        ((*SCALE, "0.5", "--percent", "101"), 2, "rule 1, percent"),
        ((*SCALE, "0.5", "--segment", "vip"), 4, "no segment 'vip'; known segments: none"),
        ((*SCALE, "0.5", "--at", "2"), 4, "rules: 1 to 1"),
        (
            ("toggle", "set", "fib_rsi", "leverage", "3"),
            4,
            "notify_only, risk_scale; to change decisions, register a version",
        ),
        (("toggle", "set", "nope", "risk_scale", "1"), 4, "nope"),
        (("toggle", "remove", "fib_rsi", "risk_scale", "--rule", "1"), 4, "no rule 1"),
        (("toggle", "list", "nope"), 4, "nope"),
        (("toggle", "resolve", "fib_rsi", ""), 2, "user id"),
    ],
)
def test_a_wrong_rule_is_refused_in_a_line_and_changes_nothing(
    rollout: Rollout, database: Engine, words: tuple[str, ...], code: int, why: str
) -> None:
    before = contents(database)

    refused = rollout(*words)

    assert (refused.code, refused.out, refused.err.count("\n")) == (code, "", 1)
    assert why in refused.err
    assert contents(database) == before


def test_a_load_without_a_reason_or_without_a_segment_of_a_rule_is_refused(rollout: Rollout, segments: str) -> None:
    rollout(*SCALE, "0.5", "--segment", "vip")
    Path(segments).write_text("user_id,segment\nu1,new\n", "utf-8")

    refused = rollout("toggle", "segments", segments, "--reason", "nightly")

    assert (refused.code, "lacks the segment 'vip'" in refused.err) == (2, True)
    assert rollout("toggle", "segments", segments).code == 2


def test_versions_that_declare_the_same_are_listed_once(rollout: Rollout, database: Engine) -> None:
    put_version(database, "2", toggles=DECLARED)
    put_version(database, "3", toggles=DECLARED.replace("0.25", "0.5"))

    listed = rollout("toggle", "list", "fib_rsi").out

    assert "notify_only (1, 2, 3: true, false; default false)\n" in listed
    assert (
        "risk_scale (1, 2: a number from 0.25 to 1; default 1.0 | 3: a number from 0.5 to 1; default 1.0)\n" in listed
    )


def test_the_log_shows_what_was_set_for_whom(rollout: Rollout, segments: str) -> None:
    rollout(*SCALE, "0.5", "--segment", "new", "--percent", "10")
    rollout(*SCALE, "0.25", "--user", "u2", "--at", "1")
    Path(segments).write_text("user_id,segment\nu1,new\nu2,vip\n", "utf-8")
    rollout("toggle", "segments", segments, "--reason", "nightly")
    rollout("toggle", "remove", "fib_rsi", "risk_scale")
    rollout("exclusions", "never", "fib_rsi", "u1", "u2", "u3", "u4", "--reason", "asked")

    log = " ".join(rollout("audit", "log", "fib_rsi").out.split())

    assert "set_toggle risk_scale: 0.5 for segment new, 10 % of users" in log
    assert "set_toggle risk_scale: 0.25 for 1 user; 0.5 for segment new, 10 % of users" in log
    assert "load_segment new: 0 added, 1 removed" in log
    assert "set_toggle risk_scale: no rule" in log
    assert "exclude_users never: u1, u2, u3 and 1 more" in log


@pytest.mark.parametrize(
    ("words", "second", "what"),
    [(("users",), "", "users"), (("toggle", "segments", "--reason", "nightly"), ",new", "members")],
)
def test_a_load_that_removes_most_is_confirmed(
    words: tuple[str, ...], second: str, what: str, rollout: Rollout, database: Engine, tmp_path: Path
) -> None:
    file, header = tmp_path / "file.csv", "user_id,segment\n" if second else "user_id\n"

    def load(number: int, *more: str) -> Said:
        file.write_text(header + "".join(f"u{each}{second}\n" for each in range(number)), "utf-8")
        return rollout(*words, str(file), *more)

    load(300)
    assert load(160).code == 0, "less than half is removed"
    before = contents(database)

    refused = load(50)

    assert (refused.code, refused.out) == (5, "")
    assert f"110 of 160 {what} would be removed" in refused.err
    assert contents(database) == before
    assert load(50, "--yes").code == 0
    assert load(1).code == 0, "a few are removed without a question"
