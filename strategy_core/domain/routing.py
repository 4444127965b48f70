"""Percentage routing: which users see the canary."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from hashlib import sha256

import numpy as np

from strategy_core.domain.arrays import IntArray
from strategy_core.domain.errors import InvalidName, InvalidPercent

BUCKETS = 10_000  # one bucket = one basis point of users

_from_bytes = int.from_bytes


def bucket_of(user_id: str, salt: str = "") -> int:
    """Return the user's bucket, 0..9999.

    The first two digits are sha256(salt + user_id) % 100. Without a salt and with a whole percent, the rule is thus
    `sha256(user_id) % 100 < percent`. The next two digits come from the same hash and give steps of 0.01 %.
    """
    # Do not change this formula, not even its digits' order: it assigns every user to a version. Another formula would
    # move users between canary and active in the middle of a rollout, mix the two groups that the gates compare, and
    # disagree with recorded live trades and with other processes that route. Golden tests hold its values.
    # `buckets_of` computes the same for many users.
    h = _from_bytes(sha256((salt + user_id).encode()).digest(), "big") % BUCKETS  # one operation on a large number
    return h % 100 * 100 + h // 100


def buckets_of(user_ids: Sequence[str], salt: str = "") -> IntArray:
    """Return `bucket_of` for each user, shape (users,). A million users take about a second."""
    digests = b"".join(sha256((salt + user_id).encode()).digest() for user_id in user_ids)
    words = np.frombuffer(digests, ">u8").reshape(-1, 4) % BUCKETS
    places = np.array([pow(2, 64 * place, BUCKETS) for place in (3, 2, 1, 0)], np.uint64)
    h = ((words * places).sum(axis=1) % BUCKETS).astype(np.int64)  # the hash modulo BUCKETS, as in `bucket_of`
    return np.asarray(h % 100 * 100 + h // 100, np.int64)


@dataclass(frozen=True, slots=True)
class Routing:
    """The routing rule of one strategy at one moment, with the generation of the strategy.

    Attributes:
        excluded: symbols on which every user gets the active version.
    """

    active: str
    canary: str | None
    percent_bp: int
    salt: str
    generation: int
    excluded: frozenset[str] = frozenset()

    def version_of(self, bucket: int, symbol: str | None = None) -> str:
        """Return the version of a user's bucket on *symbol*, or on the symbols that are not excluded."""
        if self.canary is None or bucket >= self.percent_bp or symbol in self.excluded:
            return self.active
        return self.canary


def refused_user(user_id: object) -> InvalidName | None:
    """Return the error for an invalid user id, or None. A valid id is text that can be encoded as UTF-8, not empty."""
    try:
        if isinstance(user_id, str) and user_id.encode():
            return None
    except UnicodeEncodeError:  # a shell passes bytes that are not UTF-8 as lone surrogates
        pass
    return InvalidName("user id", user_id, "text in UTF-8, one character or more")


def in_canary(user_id: str, percent_bp: int, salt: str = "") -> bool:
    return bucket_of(user_id, salt) < percent_bp


def basis_points(percent: float | int | str | Decimal) -> int:
    """Return *percent* (0.00 to 100.00, at most two decimals) as whole basis points, or raise InvalidPercent."""
    if isinstance(percent, bool):
        raise InvalidPercent(percent)
    try:
        exact = Decimal(str(percent)) * 100  # from the shortest text: 33.33 gives 3333, not 3332.9999
    except InvalidOperation:
        raise InvalidPercent(percent) from None
    if not exact.is_finite() or exact != exact.to_integral_value() or not 0 <= exact <= BUCKETS:
        raise InvalidPercent(percent)
    return int(exact)


def as_percent(percent_bp: int) -> float:
    return percent_bp / 100
