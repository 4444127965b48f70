"""All that a database holds, row by row: what was refused has changed nothing when two pictures are equal."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, text
from sqlmodel import SQLModel

Picture = Mapping[str, Sequence[Any]]


def picture(engine: Engine) -> Picture:
    """Return every row of every table, in one order."""
    with engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(text(f'SELECT * FROM "{table.name}"'))))
            for table in SQLModel.metadata.sorted_tables
        }
