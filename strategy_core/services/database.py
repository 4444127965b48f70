"""Open, upgrade, check, dump and restore the database."""

from strategy_core.store.backup import dump, restore
from strategy_core.store.engine import address, as_locked, check_schema, failure, open_database, upgrade

__all__ = ["address", "as_locked", "check_schema", "dump", "failure", "open_database", "restore", "upgrade"]
