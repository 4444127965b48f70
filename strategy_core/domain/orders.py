"""Users' live orders as evidence: what the gates on execution see of them; never how they are fetched."""

from dataclasses import dataclass, replace

import numpy as np

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Orders:
    """The live orders of a rollout's two versions since it began, oldest candle first, then in order of arrival.

    All arrays have shape (orders,). An order that was reported twice, when it opened and when it closed, may stand
    there twice: whoever counts, counts users.

    Attributes:
        candle: open time of the candle in which it was sent, in seconds since 1970.
        user: a number for each user, 0 to users - 1.
        canary: whether the rollout's version sent it, not the one it is measured against.
        failed: whether it came back with an error.
        latency_ms: from the signal to the fill; NaN where nobody said.
        share: of users that routing sent to the canary then, 0..1.
        first_day: UTC day of the rollout's first order, as days since 1970.
        cut: whether these are the newest days' alone, since all would be too many to look at every minute.
        misrouted: trades of the strategy since then whose version was not what routing gave the user.
        misrouted_example: one of them, for people.
    """

    candle: IntArray
    user: IntArray
    canary: BoolArray
    failed: BoolArray
    latency_ms: FloatArray
    share: FloatArray
    first_day: int = 0
    cut: bool = False
    misrouted: int = 0
    misrouted_example: str = ""

    def __len__(self) -> int:
        return len(self.candle)

    def where(self, chosen: BoolArray) -> "Orders":
        return replace(
            self,
            candle=self.candle[chosen],
            user=self.user[chosen],
            canary=self.canary[chosen],
            failed=self.failed[chosen],
            latency_ms=self.latency_ms[chosen],
            share=self.share[chosen],
        )


NO_ORDERS = Orders(
    np.array([], np.int64),
    np.array([], np.int64),
    np.array([], np.bool_),
    np.array([], np.bool_),
    np.array([], np.float64),
    np.array([], np.float64),
)
