"""Percentage routing: which users see the canary."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
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


class SaltedBuckets:
    """`bucket_of` with one salt for many users, in three quarters of the time: the salt is hashed once."""

    __slots__ = ("_begun",)

    def __init__(self, salt: str) -> None:
        self._begun = sha256(salt.encode())

    def bucket_of(self, user_id: bytes) -> int:
        """Return the bucket of a user id in UTF-8."""
        salted = self._begun.copy()
        salted.update(user_id)
        h = _from_bytes(salted.digest(), "big") % BUCKETS  # as in the function `bucket_of`
        return h % 100 * 100 + h // 100


def buckets_of(user_ids: Sequence[str], salt: str = "") -> IntArray:
    """Return `bucket_of` for each user, shape (users,). A million users take about a second."""
    digests = b"".join(sha256((salt + user_id).encode()).digest() for user_id in user_ids)
    words = np.frombuffer(digests, ">u8").reshape(-1, 4) % BUCKETS
    places = np.array([pow(2, 64 * place, BUCKETS) for place in (3, 2, 1, 0)], np.uint64)
    h = ((words * places).sum(axis=1) % BUCKETS).astype(np.int64)  # the hash modulo BUCKETS, as in `bucket_of`
    return np.asarray(h % 100 * 100 + h // 100, np.int64)


class Standing(StrEnum):
    """What decides the version of a user while a canary serves."""

    BUCKET = "bucket"
    KEPT = "kept"  # with the active version
    ALWAYS = "always"  # on the canary


@dataclass(frozen=True, slots=True)
class Routing:
    """The routing rule of one strategy at one moment, with the generation of the strategy.

    Attributes:
        excluded: symbols on which every user gets the active version.
        kept: users that get the active version in any bucket. Empty without a canary that serves users.
        always: users that get the canary in any bucket, unless they are kept. Empty as *kept*.
        exit_only: users that may open no new position of the strategy, also without a canary.
    """

    active: str
    canary: str | None
    percent_bp: int
    salt: str
    generation: int
    excluded: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    always: frozenset[str] = frozenset()
    exit_only: frozenset[str] = frozenset()

    @property
    def serves_canary(self) -> bool:
        """Whether a canary serves users. At 0 % it serves none, not even those that always get it."""
        return self.canary is not None and self.percent_bp > 0

    def standing_of(self, user_id: str) -> Standing:
        """Return what decides the user's version. Without a canary that serves users it is the bucket."""
        if user_id in self.kept:
            return Standing.KEPT
        return Standing.ALWAYS if user_id in self.always else Standing.BUCKET

    def version_of(self, bucket: int, symbol: str | None = None, user_id: str | None = None) -> str:
        """Return the version of a user on *symbol*, or on the symbols that are not excluded.

        Args:
            bucket: of the user.
            user_id: without it, the answer is that of a user without an exclusion.
        """
        if self.canary is None or self.percent_bp == 0 or symbol in self.excluded or user_id in self.kept:
            return self.active
        return self.canary if bucket < self.percent_bp or user_id in self.always else self.active


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
