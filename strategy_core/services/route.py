"""Which version a user gets, from the database of this moment; never cached, never a default."""

from dataclasses import dataclass

from sqlalchemy import Engine

from strategy_core.domain.routing import as_percent, basis_points, bucket_of, refused_user
from strategy_core.store import versions
from strategy_core.store.engine import reading


@dataclass(frozen=True, slots=True)
class Route:
    """Which version, and why: the user's bucket, the canary's share, and the generation of the strategy.

    Attributes:
        stale: told by a router that has not heard of the database for too long: its canary admits nobody new.
    """

    user_id: str
    strategy_name: str
    version: str
    bucket: int
    percent: float
    in_canary: bool
    generation: int
    stale: bool = False

    @property
    def why(self) -> str:
        sign = "<" if self.bucket < basis_points(self.percent) else ">="
        why = f"bucket {self.bucket / 100:.2f} {sign} canary percent {self.percent:.2f}"
        return (
            f"{why}; {'admitted before' if self.in_canary else 'nobody new'} while routing is stale"
            if self.stale
            else why
        )


def route_user(engine: Engine, *, user_id: str, strategy_name: str) -> Route:
    """Return the version *user_id* is routed to now, with the reason.

    Raises:
        InvalidName: *user_id* is empty, or is not text that can be encoded.
        UnknownStrategy: no such strategy. NoActiveVersion: nobody can be routed.
    """
    if refused := refused_user(user_id):
        raise refused
    with reading(engine) as session:
        routing = versions.routing(session, strategy_name)
    bucket = bucket_of(user_id, routing.salt)
    version = routing.version_of(bucket)
    return Route(
        user_id=user_id,
        strategy_name=strategy_name,
        version=version,
        bucket=bucket,
        percent=as_percent(routing.percent_bp),
        in_canary=version == routing.canary,
        generation=routing.generation,
    )
