"""Whether a database is whole: its schema, what guards its rows, and its audit chains; it changes and mends nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from strategy_core.services.audit import Verification, verify_trail
from strategy_core.store.engine import check_schema
from strategy_core.store.guards import missing_guards


@dataclass(frozen=True, slots=True)
class Wholeness:
    """What `check_database` found.

    Attributes:
        revision: of the schema, which is this release's.
        missing: in words, what guards the rows and is not there.
        trail: what the audit chains are.
    """

    revision: str
    missing: Sequence[str]
    trail: Verification

    @property
    def holds(self) -> bool:
        return not self.missing and self.trail.holds


def check_database(engine: Engine) -> Wholeness:
    """Look at all of it: after a restore, after an upgrade, and whenever somebody has been in the database by hand.

    Raises:
        SchemaOutdated: it is empty, or of another release.
    """
    return Wholeness(check_schema(engine), missing_guards(engine), verify_trail(engine))
