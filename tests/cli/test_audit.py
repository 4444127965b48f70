"""`rollout audit`: the trail asked, verified and exported in a shell."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.lifecycle import Status
from strategy_core.store.engine import transaction
from tests.builders import DAY, MONDAY, put_version
from tests.cli.conftest import Rollout, set_clock


@pytest.fixture
def told(rollout: Rollout, database: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Ana starts version 2 on Monday, Ben rolls it back on Tuesday."""
    put_version(database, "1", Status.ACTIVE, recorded=True)
    put_version(database, "2", recorded=True)
    rollout("start", "fib_rsi", "2", "--yes", "--actor", "ana", "--reason", "better")
    set_clock(monkeypatch, MONDAY + DAY)
    rollout("rollback", "fib_rsi", "--actor", "ben", "--reason", "users complain")
    return database


def tamper(engine: Engine, statement: str) -> None:
    with transaction(engine) as session:
        session.connection().execute(text("DROP TRIGGER refuse_update_audit_event"))
        session.connection().execute(text(statement))


def test_the_log_is_narrowed_by_what_is_asked(rollout: Rollout, told: Engine) -> None:
    _, _, *events = rollout("audit", "--json").data

    def actions(*asked: str) -> list[str]:
        return [event["action"] for event in rollout("audit", "log", *asked, "--json").data]

    registered = ["register_version"] * 2
    assert [event["action"] for event in events] == actions()[2:] == ["start_rollout", "roll_back"]
    assert actions("fib_rsi", "--by", "ana") == actions("--until", "2026-03-03") == [*registered, "start_rollout"]
    assert actions("--action", "roll_back") == actions("--since", "2026-03-03") == ["roll_back"]
    assert actions("--rollout", events[0]["rollout_id"], "--limit", "1") == ["roll_back"]
    assert rollout("audit", "--limit", "1").out == rollout("audit", "log", "--limit", "1").out


def test_each_call_has_a_request_id_of_its_own(rollout: Rollout, told: Engine) -> None:
    ids = [event["request_id"] for event in rollout("audit", "--json").data[2:]]

    assert all(len(each) == 32 for each in ids)
    assert len(set(ids)) == 2


def test_a_moment_is_told_with_who_and_why(rollout: Rollout, told: Engine) -> None:
    stood = rollout("audit", "at", "fib_rsi", "2026-03-02T12:00Z", "--json").data
    shown = rollout("audit", "at", "fib_rsi", "2026-03-04").out

    assert (stood["active"], stood["canary"], stood["percent"]) == ("1", "2", 5.0)
    assert stood["rollout"] == {"state": "running", "stage": 0}
    assert (stood["event"]["actor"], stood["made_by"]["canary"]["reason"]) == ("ana", "better")
    assert "ben (cli)" in shown
    assert "users complain" in shown
    before = rollout("audit", "at", "fib_rsi", "2026-02-28")
    assert (before.code, before.err) == (
        4,
        "error: the audit trail has no entry for 'fib_rsi' at 2026-02-28 00:00 UTC or earlier\n",
    )
    assert rollout("audit", "at", "fib_rsi", "yesterday").code == 2


def test_a_rollouts_story_is_shown(rollout: Rollout, told: Engine) -> None:
    (*_, start, _) = rollout("audit", "--json").data

    story = rollout("audit", "rollout", start["rollout_id"])
    data = rollout("audit", "rollout", start["rollout_id"], "--json").data

    assert "fib_rsi 2 against 1: rolled_back" in story.out
    assert [each["kind"] for each in data["happenings"]] == ["change", "alert", "change", "alert"]
    assert data["happenings"][2]["row"]["reason"] == "users complain"
    assert rollout("audit", "rollout", "no-id").code == 2
    assert rollout("audit", "rollout", "6f1b1c2e-53a5-4d0b-9a39-5f8f4a0c7d11").code == 4


def test_a_trail_that_holds_names_its_newest_hash(rollout: Rollout, told: Engine) -> None:
    head = rollout("audit", "--json").data[-1]["hash"]

    said = rollout("audit", "verify")

    assert (said.code, said.out) == (0, f"fib_rsi: 4 events verified, the newest is {head}\n")
    assert rollout("audit", "verify", "fib_rsi", "--head", head, "--json").data["holds"] is True


def test_each_break_is_a_line_and_an_exit_code(rollout: Rollout, told: Engine) -> None:
    tamper(told, "UPDATE audit_event SET actor = 'eve'")

    said = rollout("audit", "verify", "--head", "f" * 64)

    assert said.code == 1
    restore = "Restore a backup, or compare with an earlier export: rollout audit verify --export FILE"
    assert said.out.splitlines() == [
        *(f"fib_rsi: event {n} was changed: its hash is not that of its facts. {restore}" for n in range(1, 5)),
        f"{'f' * 64} was noted earlier and is in no chain now: the trail was rewritten. "
        "Compare it with a backup, and find out who wrote to the database",
    ]


def test_an_export_is_what_a_later_verification_rests_on(rollout: Rollout, told: Engine, tmp_path: Path) -> None:
    file = tmp_path / "trail.jsonl"
    said = rollout("audit", "export", "--output", str(file))
    noted = file.read_text()
    rollout("activate", "fib_rsi", "2", "--yes", "--override-reason", "again")

    assert said.out == f"exported to {file}\n"
    assert rollout("audit", "export").out.startswith(noted)
    assert rollout("audit", "verify", "--export", str(file)).code == 0
    assert [path.name for path in tmp_path.iterdir() if "trail" in path.name] == ["trail.jsonl"]
    file.write_text(noted.replace("better", "bitter"))
    forged = rollout("audit", "verify", "--export", str(file))
    assert (forged.code, "the export, row 3: was changed" in forged.err) == (2, True)
    assert rollout("audit", "verify", "--export", str(tmp_path / "none")).code == 1


def test_a_failed_export_leaves_what_was_exported_before(rollout: Rollout, told: Engine, tmp_path: Path) -> None:
    file = tmp_path / "trail.csv"
    rollout("audit", "export", "fib_rsi", "--format", "csv", "--output", str(file))
    before = file.read_text()

    refused = rollout("audit", "export", "nope", "--output", str(file))

    assert (refused.code, file.read_text()) == (4, before)
    assert before.splitlines()[0].startswith("id,at,actor,role,source,action")
    assert not (tmp_path / "trail.csv.part").exists()


def test_an_export_is_narrowed_like_the_log(rollout: Rollout, told: Engine) -> None:
    (line,) = rollout("audit", "export", "--by", "ben").out.splitlines()

    assert json.loads(line)["reason"] == "users complain"


def test_a_hash_that_is_none_is_a_slip_and_no_tampering(rollout: Rollout) -> None:
    said = rollout("audit", "verify", "--head", "zz")

    assert (said.code, said.err) == (2, "error: 'zz' is not a hash of an audit event; allowed: 64 hexadecimal digits\n")


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A signing key and its public key, made by the commands of the how-to page."""
    private, public = tmp_path / "audit.pem", tmp_path / "audit.pub"
    make_key(private, public)
    monkeypatch.setenv("ROLLOUT_AUDIT_KEY_FILE", str(private))
    return private, public


def make_key(private: Path, public: Path) -> None:
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)


def test_a_signed_export_is_verified_with_the_public_key(
    rollout: Rollout, told: Engine, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    file, public = tmp_path / "trail.jsonl", str(keys[1])
    assert rollout("audit", "export", "--signed", "--output", str(file)).code == 0
    rollout("activate", "fib_rsi", "2", "--yes", "--override-reason", "again")

    said = rollout("audit", "verify", "--export", str(file), "--public-key", public)

    assert (said.code, said.out.partition(",")[0]) == (0, "fib_rsi: 5 events verified")
    assert rollout("audit", "verify", "--export", str(file)).code == 0
    assert rollout("audit", "export", "--signed").out.count('"statement"') == 1
    assert sorted(json.loads(file.read_text().splitlines()[-1])) == ["signature", "statement"]


@pytest.mark.parametrize(
    ("forge", "told_problem"),
    [
        (lambda lines: [*lines[:-2], lines[-1]], "row 4: is the signature of other events: the export was changed"),
        (lambda lines: lines[1:], "row 4: is the signature of other events: the export was changed"),
        (lambda lines: lines[:-1], "row 4: is where the signature should be: it is not signed, or was cut short"),
        (lambda lines: [*lines, lines[0]], "row 6: goes on after its signature"),
        (lambda lines: [*lines[:-1], lines[-1].replace('"events":4', '"events":5')], "row 5: is not a signature"),
        (lambda lines: [*lines[:-1], '{"signature":7}\n'], "row 5: is not a signature by this key"),
        (lambda lines: [line.replace("\n", "\r\n") for line in lines], "the export was changed"),
        (lambda lines: [], "is where the signature should be"),
    ],
)
def test_a_forged_export_is_refused(
    rollout: Rollout, told: Engine, keys: tuple[Path, Path], tmp_path: Path, forge: Any, told_problem: str
) -> None:
    file = tmp_path / "trail.jsonl"
    rollout("audit", "export", "--signed", "--output", str(file))
    file.write_text("".join(forge(file.read_text().splitlines(keepends=True))), newline="")

    said = rollout("audit", "verify", "--export", str(file), "--public-key", str(keys[1]))

    assert (said.code, told_problem in said.err) == (2, True), said.err


def test_an_export_that_another_key_signed_is_refused(
    rollout: Rollout, told: Engine, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    file = tmp_path / "trail.jsonl"
    rollout("audit", "export", "--signed", "--output", str(file))
    make_key(tmp_path / "other.pem", tmp_path / "other.pub")

    said = rollout("audit", "verify", "--export", str(file), "--public-key", str(tmp_path / "other.pub"))

    assert (said.code, "is not a signature by this key" in said.err) == (2, True)


def test_a_key_that_others_can_read_is_refused(rollout: Rollout, keys: tuple[Path, Path], tmp_path: Path) -> None:
    keys[0].chmod(0o640)

    said = rollout("audit", "export", "--signed")

    assert (said.code, said.out) == (2, "")
    assert (
        "allowed: an Ed25519 private key as PEM without a password, in a file that only its owner can read" in said.err
    )


@pytest.mark.parametrize("kind", ["none", "no key", "public", "of another kind", "with a password"])
def test_what_is_no_signing_key_is_refused(
    rollout: Rollout, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    private, public = keys
    made = {
        "of another kind": ["-algorithm", "rsa"],
        "with a password": ["-algorithm", "ed25519", "-aes256", "-pass", "pass:x"],
    }
    if kind in made:
        subprocess.run(["openssl", "genpkey", *made[kind], "-out", private], check=True, capture_output=True)
    elif kind == "none":
        private.unlink()
    else:
        private.write_bytes(public.read_bytes() if kind == "public" else b"no key")

    assert "an Ed25519 private key" in rollout("audit", "export", "--signed").err
    private.write_bytes(b"no key")
    said = rollout("audit", "verify", "--export", str(public), "--public-key", str(private))
    assert (said.code, "allowed: an Ed25519 public key as PEM" in said.err) == (2, True)


def test_a_signature_needs_a_key_and_a_form_that_can_be_verified(
    rollout: Rollout, told: Engine, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rollout("audit", "export", "--signed", "--format", "csv").code == 2
    assert rollout("audit", "verify", "--public-key", str(keys[1])).code == 2
    monkeypatch.delenv("ROLLOUT_AUDIT_KEY_FILE")
    assert "ROLLOUT_AUDIT_KEY_FILE" in rollout("audit", "export", "--signed").err
