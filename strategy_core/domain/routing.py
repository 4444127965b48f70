"""Who sees the canary: a pure function of (salt, user) and a percent, never of time or storage.

`bucket_of` is persisted in every user's experience: changing it re-buckets everybody, so golden values pin it.
"""

from decimal import Decimal, InvalidOperation
from hashlib import sha256

from strategy_core.domain.errors import InvalidPercent

BUCKETS = 10_000  # one bucket = one basis point of users


def bucket_of(user_id: str, salt: str = "") -> int:
    """Return the user's bucket, 0..9999.

    The first two digits are sha256(salt + user_id) % 100, so that with no salt and a whole percent the rule is
    `sha256(user_id) % 100 < percent`; the next two come from the same hash and give steps of 0.01 %.
    """
    h = int.from_bytes(sha256((salt + user_id).encode()).digest(), "big")
    return h % 100 * 100 + h // 100 % 100


def in_canary(user_id: str, percent_bp: int, salt: str = "") -> bool:
    return bucket_of(user_id, salt) < percent_bp


def basis_points(percent: float | int | str | Decimal) -> int:
    """Return *percent* (0.00 to 100.00, two decimals at most) as whole basis points; else raise InvalidPercent."""
    if isinstance(percent, bool):
        raise InvalidPercent(percent)
    try:
        exact = Decimal(str(percent)) * 100  # by its shortest text: 33.33 is 3333, not 3332.9999
    except InvalidOperation:
        raise InvalidPercent(percent) from None
    if not exact.is_finite() or exact != exact.to_integral_value() or not 0 <= exact <= BUCKETS:
        raise InvalidPercent(percent)
    return int(exact)


def as_percent(percent_bp: int) -> float:
    return percent_bp / 100
