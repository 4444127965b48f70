"""How a large log is made by the database itself: the statements' words that the two databases spell differently."""

from sqlalchemy import Engine

from tests.builders import MONDAY


class Names:
    """What the two databases spell differently."""

    def __init__(self, engine: Engine) -> None:
        self.on_postgresql = engine.dialect.name == "postgresql"
        self.uuid = "gen_random_uuid()" if self.on_postgresql else "lower(hex(randomblob(16)))"

    def series(self, name: str, first: int, last: int) -> str:
        """Return what yields the numbers from *first* to *last* as `name.n`."""
        if self.on_postgresql:
            return f"generate_series({first}, {last}) AS {name}(n)"
        counted = f"SELECT {first} UNION ALL SELECT n + 1 FROM r WHERE n < {last}"
        return f"(WITH RECURSIVE r(n) AS ({counted}) SELECT n FROM r) AS {name}"

    def at(self, seconds: str) -> str:
        since = int(MONDAY.timestamp())
        if self.on_postgresql:
            return f"to_timestamp({since} + {seconds})"
        return f"strftime('%Y-%m-%d %H:%M:%S.000000', {since} + {seconds}, 'unixepoch')"

    def uuid_of(self, number: str) -> str:
        hexed = f"lpad(to_hex({number}), 32, '0')" if self.on_postgresql else f"printf('%032x', {number})"
        return f"CAST({hexed} AS uuid)" if self.on_postgresql else hexed
