"""Makes a token for an installation that holds its own key; an identity provider makes the others."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from math import floor
from typing import Any
from uuid import uuid4

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from strategy_core.api.auth import LONGEST_NAME, LONGEST_TOKEN, READ, ROLES, check_name
from strategy_core.api.keys import read_public_key
from strategy_core.api.settings import ApiSettings
from strategy_core.domain.errors import InvalidName, InvalidSetting

MOST_HOURS = 30 * 24

SigningKey = RSAPrivateKey | EllipticCurvePrivateKey | bytes


def issue_token(
    settings: ApiSettings,
    *,
    name: str,
    role: str = ROLES[0],
    hours: float = 12,
    strategies: Sequence[str] = (),
    read_only: bool = False,
    private_key: str | None = None,
    now: datetime,
) -> tuple[str, dict[str, Any]]:
    """Return a token that a server with these settings accepts, and what it says.

    Args:
        strategies: the only ones that it reaches; all, unless given.
        private_key: PEM text; needed where the settings hold a public key, which must be its other half.
        now: the real time.

    Raises:
        InvalidName, InvalidSetting
    """
    if not check_name(name):
        raise InvalidName("name", name, f"1 to {LONGEST_NAME} visible characters")
    if role not in ROLES:
        raise InvalidName("role", role, " or ".join(ROLES))
    if not 0 < hours <= MOST_HOURS:
        raise InvalidSetting("hours", hours, f"above 0, at most {MOST_HOURS}")
    key = _signing_key(settings, private_key)
    claims: dict[str, Any] = {
        "sub": name,
        "role": role,
        "aud": settings.audience,
        "iat": floor(now.timestamp()),
        "exp": floor((now + timedelta(hours=hours)).timestamp()),
        "jti": uuid4().hex,
    }
    if settings.issuer is not None:
        claims["iss"] = settings.issuer
    if strategies:
        claims["strategies"] = sorted(set(strategies))
    if read_only:
        claims["scope"] = READ
    token = jwt.encode(claims, key, algorithm=settings.algorithms[0])
    if len(token) > LONGEST_TOKEN:
        raise InvalidSetting("strategies", len(claims["strategies"]), f"fewer: the token is above {LONGEST_TOKEN} long")
    return token, claims


def _signing_key(settings: ApiSettings, private_key: str | None) -> SigningKey:
    if settings.secret is not None:
        if private_key is not None:
            raise InvalidSetting("--private-key", "***", "only with ROLLOUT_API_PUBLIC_KEY; here a secret signs")
        return settings.secret.get_secret_value().encode()
    if settings.public_key is None:
        raise InvalidSetting("ROLLOUT_API_JWKS_URL", "***", "tokens of that identity provider; none is made here")
    if private_key is None:
        raise InvalidSetting("--private-key", None, "the file with the other half of ROLLOUT_API_PUBLIC_KEY")
    try:
        key = load_pem_private_key(private_key.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        raise InvalidSetting("--private-key", "***", "a private key as PEM, not encrypted") from None
    wanted = read_public_key(settings.public_key).public_numbers()
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey) or key.public_key().public_numbers() != wanted:
        raise InvalidSetting("--private-key", "***", "the other half of ROLLOUT_API_PUBLIC_KEY")
    return key
