"""The percent that stages ask for, and the capital below each bucket."""

import numpy as np
import sqlalchemy as sa
from alembic import op

from strategy_core.domain.routing import BUCKETS, buckets_of

revision = "v0016"
down_revision = "v0015"
branch_labels = None
depends_on = None

_DIRECTORY = sa.table(
    "directory_tally",
    sa.column("salt", sa.String()),
    sa.column("unknown_below", sa.LargeBinary()),
    sa.column("capital_below", sa.LargeBinary()),
)
_EMPTY = sa.text("''")


def upgrade() -> None:
    op.add_column("canary_config", sa.Column("asked_bp", sa.Integer(), nullable=False, server_default="0"))
    op.execute("UPDATE canary_config SET asked_bp = rollout_bp")
    op.create_index("ix_user_capital", "platform_user", ["capital"])
    for name in ("unknown_below", "capital_below"):
        op.add_column("directory_tally", sa.Column(name, sa.LargeBinary(), nullable=False, server_default=_EMPTY))
    sum_the_capital()


def sum_the_capital() -> None:
    run = op.get_bind().execute
    salts = run(sa.text("SELECT salt FROM directory_tally")).scalars().all()
    rows = run(sa.text("SELECT user_id, capital FROM platform_user")).all() if salts else []
    capital = np.array([capital for _, capital in rows], np.float64)  # None becomes NaN
    known = ~np.isnan(capital)
    for salt in salts:
        buckets = buckets_of([user_id for user_id, _ in rows], salt)
        unknown = np.bincount(buckets[~known], minlength=BUCKETS).cumsum()
        summed = np.bincount(buckets[known], capital[known], BUCKETS).cumsum()
        values = {
            "unknown_below": np.concatenate([[0], unknown]).astype(">u4").tobytes(),
            "capital_below": np.concatenate([[0.0], summed]).astype(">f8").tobytes(),
        }
        run(sa.update(_DIRECTORY).where(_DIRECTORY.c.salt == salt).values(values))
