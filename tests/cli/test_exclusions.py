"""Exclusions of users on the command line."""

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.services.canary import activate_canary
from tests.builders import MONDAY, OWNER, put_version
from tests.cli.conftest import Rollout


@pytest.fixture(autouse=True)
def pair(database: Engine) -> None:
    put_version(database, "1", Status.ACTIVE)
    put_version(database, "2")
    activate_canary(database, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=5)


def test_a_user_opts_out_and_back(rollout: Rollout) -> None:
    before = rollout("route", "u13", "fib_rsi").out
    out = rollout("optout", "u13", "--until", "2026-03-09").out
    after = rollout("route", "u13", "fib_rsi").out
    (listed,) = rollout("exclusions", "list", "fib_rsi", "--json").data
    ended = rollout("exclusions", "end", "*", "u13", "--reason", "changed her mind").out

    assert before == "u13 gets fib_rsi 2: bucket 4.68 < canary percent 5.00\n"
    assert out == "opt_out for all strategies until 2026-03-09 00:00 UTC: u13\n"
    kept = "u13 gets fib_rsi 1: the user stays with the active version: opt_out by"
    assert after.startswith(kept)
    assert after.endswith(" until 2026-03-09 00:00 UTC\n")
    assert (listed["user_id"], listed["kind"], listed["reason"]) == ("u13", "opt_out", "asked by the user")
    assert ended == "exclusions ended for all strategies: u13\n"
    assert rollout("route", "u13", "fib_rsi").out == before
    assert rollout("exclusions").out == "no exclusion\n"
    assert len(rollout("exclusions", "list", "--all", "--json").data) == 1


def test_staff_get_every_canary_and_others_never_do(rollout: Rollout) -> None:
    staff = rollout("exclusions", "always", "fib_rsi", "u2", "u3", "--reason", "staff").out
    again = rollout("exclusions", "always", "fib_rsi", "u2", "--reason", "staff").out
    lawyers = rollout("exclusions", "never", "fib_rsi", *[f"w{i}" for i in range(7)], "--reason", "contract").out

    by = rollout("exclusions", "list", "--user", "u2", "--json").data[0]["actor"]
    assert staff == "always for fib_rsi: u2, u3\n"
    assert again == "always for fib_rsi: no user, nothing has changed\n"
    assert lawyers == "never for fib_rsi: w0, w1, w2, w3, w4 and 2 more\n"
    assert rollout("route", "u2", "fib_rsi").out == (
        f"u2 gets fib_rsi 2: the user always gets the canary: always by {by}\n"
    )
    assert "contract" in rollout("exclusions", "list", "--user", "w6").out


def test_an_unknown_kind_is_refused(rollout: Rollout) -> None:
    refused = rollout("exclusions", "end", "fib_rsi", "u1", "--kind", "banned", "--reason", "x")

    assert refused.code == 2
    assert "'banned' is not a kind of exclusion; allowed: opt_out, never, always, guard, large_account" in refused.err


def test_an_exclusion_for_all_strategies_is_named_where_its_end_is_asked_for_one(rollout: Rollout) -> None:
    rollout("optout", "u13")

    ended = rollout("exclusions", "end", "fib_rsi", "u13", "u14", "--reason", "x")

    assert ended.out == (
        "exclusions ended for fib_rsi: no user, nothing has changed\n"
        "u13: excluded for all strategies. To end that: rollout exclusions end '*' USER\n"
    )


def test_an_always_that_does_not_count_says_why(rollout: Rollout) -> None:
    rollout("exclusions", "never", "*", "u2", "--reason", "contract")

    done = rollout("exclusions", "always", "fib_rsi", "u2", "u3", "--reason", "staff").out

    assert done == (
        "always for fib_rsi: u2, u3\nu2: kept with the active version all the same, by an earlier exclusion\n"
    )


@pytest.mark.parametrize("user", [" ", " moon", "moon\u00a0"])
def test_a_blank_or_padded_user_id_is_refused(user: str, rollout: Rollout) -> None:
    refused = rollout("optout", user)

    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "is not a user id" in refused.err
    assert "white space" in refused.err
