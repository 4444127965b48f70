"""A database of PostgreSQL that tests are lent one after another, empty and as migrated; never one that a test altered.

To copy and drop one for every test takes many times as long as to empty the few tables that a test has filled.
"""

from time import monotonic
from uuid import uuid4

from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

_OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
_LEAVING_S = 0.5  # after a client has hung up its backend is seen for a moment
_SIZE = "SELECT sum(pg_table_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
_LARGE = 4_000_000  # bytes; what DELETE leaves behind would slow down whoever reads the tables next
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
_RESTART = "SELECT setval(seqrelid, seqstart, false) FROM pg_sequence"
_PAST_TRIGGERS = {"options": "-c session_replication_role=replica"}  # some keep evidence from being deleted
_SCHEMA = """
    SELECT md5(string_agg(line, chr(10) ORDER BY line)) FROM (
        SELECT concat_ws(' ', relname, relkind, relpersistence, relacl, reloptions, pg_get_indexdef(pg_class.oid),
            attnum, attname, atttypid, atttypmod, attnotnull, attacl, pg_get_expr(adbin, adrelid)) AS line
        FROM pg_class LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', tgrelid::regclass, tgname, tgenabled, pg_get_triggerdef(oid)) FROM pg_trigger
        UNION ALL SELECT concat_ws(' ', proname, proacl, prosrc) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', setrole, setconfig) FROM pg_db_role_setting
        UNION ALL SELECT version_num FROM alembic_version
    ) AS lines
"""


class Databases:
    """Lends one database at a time; there is another one only when a test has spoiled the last."""

    def __init__(self, admin: Engine) -> None:
        self._admin = admin
        self._lent: Engine | None = None
        self._schema = ""

    def lend(self) -> str:
        """Return the address of an empty, migrated database."""
        if self._lent is None:
            name = f"test_{uuid4().hex}"
            self._order(f"CREATE DATABASE {name} TEMPLATE template")
            self._lent = create_engine(
                self._admin.url.set(database=name), pool_pre_ping=True, connect_args=_PAST_TRIGGERS
            )
            with self._lent.begin() as connection:
                self._schema = _schema(connection)
        return address(self._lent.url)

    def take_back(self) -> None:
        """Empty the database; drop it if it has grown, has another schema, or is still worked on by somebody."""
        assert self._lent is not None
        with self._lent.begin() as connection:
            if kept := _is_as_migrated(connection, self._schema):
                _empty(connection)
        if not kept:
            self.drop()

    def drop(self) -> None:
        if self._lent is not None:
            self._lent.dispose()
            self._order(f"DROP DATABASE {self._lent.url.database} WITH (FORCE)")
        self._lent = None

    def _order(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(statement))


def address(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _schema(connection: Connection) -> str:
    """Return what the database is like without its rows; nothing if that cannot be told any more."""
    try:
        with connection.begin_nested():
            return str(connection.execute(text(_SCHEMA)).scalar_one())
    except DBAPIError:
        return ""


def _is_alone(connection: Connection) -> bool:
    deadline = monotonic() + _LEAVING_S
    while others := connection.execute(text(_OTHERS)).scalar_one():
        if monotonic() > deadline:
            break
        connection.execute(text("SELECT pg_stat_clear_snapshot(), pg_sleep(0.002)"))
    return not others


def _is_as_migrated(connection: Connection, schema: str) -> bool:
    return (
        _is_alone(connection)
        and connection.execute(text(_SIZE)).scalar_one() < _LARGE
        and _schema(connection) == schema
    )


def _empty(connection: Connection) -> None:
    tables = connection.execute(text(_TABLES)).scalars().all()
    any_row = " UNION ALL ".join(f"SELECT '{table}' WHERE EXISTS (SELECT FROM {table})" for table in tables)
    for filled in connection.execute(text(any_row)).scalars():
        connection.execute(text(f"DELETE FROM {filled}"))  # TRUNCATE takes a hundred times as long
    connection.execute(text(_RESTART))
