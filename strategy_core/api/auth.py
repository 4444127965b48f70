"""Who asks, by a signed token, and what they may do; what they then do is the services' business.

A web framework has no place here: an Authorization header goes in, and a Principal or a typed error comes out.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address
from math import ceil, floor
from threading import Lock
from typing import Any, NoReturn
from uuid import uuid4

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from strategy_core.api.jwks import Keys, read_public_key
from strategy_core.api.settings import ApiSettings
from strategy_core.domain.errors import Forbidden, InvalidName, InvalidSetting, InvalidToken, TooManyFailures

ROLES = ("owner", "admin")
READ, WRITE = "read", "write"  # words of the claim `scope`

LONGEST_TOKEN = 8_192  # characters
LONGEST_NAME = 128  # characters: it stands in the audit trail

_BEARER = re.compile(r"bearer ([\w-]+\.[\w-]+\.[\w-]+)", re.ASCII | re.IGNORECASE)
_LAST_MOMENT = 253_402_300_799  # seconds: the end of the year 9999
_IPV6_HOST = 64  # bits: whoever has one such address has all of its network's
_REASONS: Mapping[type[jwt.PyJWTError], str] = {
    jwt.InvalidSignatureError: "its signature does not fit",
    jwt.InvalidAudienceError: "it is meant for another audience (aud)",
    jwt.InvalidIssuerError: "it comes from another issuer (iss)",
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, as a valid token says.

    Attributes:
        name: what the audit trail will say.
        role: owner or admin.
        strategies: those that the token is limited to; None: all.
        read_only: the token changes nothing, as a Router's or a scraper's.
        token_id: the token's own (`jti`); empty when it has none.
    """

    name: str
    role: str
    strategies: frozenset[str] | None = None
    read_only: bool = False
    token_id: str = ""

    def check(self, strategy_name: str | None) -> None:
        """Raise Forbidden unless the token reaches this strategy; None: what concerns all of them."""
        if self.strategies is None or strategy_name in self.strategies:
            return
        asked = "all strategies" if strategy_name is None else f"strategy {strategy_name!r}"
        allowed = ", ".join(sorted(self.strategies)) or "none"
        raise Forbidden(self.name, f"the token does not reach {asked}; allowed: {allowed}")

    def check_change(self, strategy_name: str | None) -> None:
        """Raise Forbidden unless the token may change this strategy; None: what concerns all of them."""
        self.check_changes()
        self.check(strategy_name)

    def check_changes(self) -> None:
        """Raise Forbidden unless the token may change anything."""
        if self.read_only:
            raise Forbidden(self.name, "the token may read only (scope)")


class Failures:
    """How often each client's token was not accepted lately; what is kept is bounded, whoever asks how often.

    Args:
        limit: so many within *window* are answered, further ones refused.
        clients: so many are kept in mind; of more, those that failed longest ago are forgotten.
    """

    def __init__(self, *, limit: int = 20, window: timedelta = timedelta(seconds=60), clients: int = 10_000) -> None:
        self._limit = limit
        self._window = window
        self._clients = clients
        self._seen: OrderedDict[str, deque[datetime]] = OrderedDict()
        self._lock = Lock()

    def count(self, client: str, now: datetime) -> None:
        """Count a failure of *client*, an address; else raise TooManyFailures."""
        name = _network(client)
        with self._lock:
            failed = self._seen.setdefault(name, deque())
            while failed and not timedelta(0) <= now - failed[0] < self._window:
                failed.popleft()  # also those of a clock that was put back
            if len(failed) >= self._limit:
                raise TooManyFailures(max(1, ceil((failed[0] + self._window - now).total_seconds())))
            failed.append(now)
            self._seen.move_to_end(name)
            if len(self._seen) > self._clients:
                self._seen.popitem(last=False)


class Authenticator:
    """Makes a Principal of an Authorization header.

    Args:
        clock: tells the real time, also where a feed is replayed: tokens expire in the world of who issues them.
    """

    def __init__(
        self,
        settings: ApiSettings,
        keys: Keys,
        failures: Failures,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._failures = failures
        self._clock = clock

    def authenticate(self, authorization_header: str | None, client: str) -> Principal:
        """Return who asks from the address *client*.

        Raises:
            InvalidToken, TooManyFailures: the token is none that is accepted here; a client's many, one after another.
            Forbidden: it is, but its role may do nothing here.
            KeysUnavailable: nobody can say.
        """
        now = self._clock()
        # The token comes first and the limit after it, for what has failed: behind one proxy with an attacker an owner
        # must be able to roll back, however many tokens failed there.
        try:
            return self._principal(authorization_header, now)
        except InvalidToken:
            self._failures.count(client, now)
            raise

    def _principal(self, header: str | None, now: datetime) -> Principal:
        claims = self._claims(_bearer(header), now)
        self._check_times(claims, now)
        name, role = _line(claims, "sub"), claims.get("role")
        if role not in ROLES:
            asked = "the token has no role" if role is None else f"the token's role is {role!r:.40}"
            raise Forbidden(name, f"{asked}; allowed: {' or '.join(ROLES)}")
        return Principal(
            name=name,
            role=role,
            strategies=_strategies(claims),
            read_only=_read_only(claims),
            token_id=_line(claims, "jti") if "jti" in claims else "",
        )

    def _claims(self, token: str, now: datetime) -> dict[str, Any]:
        """Return what the token says, which whoever holds the key has signed for this audience."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            _refuse("it is not a JWT")
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._keys.algorithms:
            _refuse(f"it is not signed by {' or '.join(self._keys.algorithms)} (alg)")
        if "crit" in header:
            _refuse("it demands what is not known here (crit)")
        key = self._keys.find(algorithm, key_id, now)
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                options={
                    "require": ["exp", "sub", "aud", *(["iss"] if self._settings.issuer else [])],
                    "verify_exp": False,  # below, by the clock that was given
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_sub": False,  # below, together with what a name may be
                    "verify_jti": False,
                },
            )
        except jwt.MissingRequiredClaimError as error:
            _refuse(f"it has no {error.claim}")
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            _refuse(next((why for kind, why in _REASONS.items() if isinstance(error, kind)), "it is not a JWT"))

    def _check_times(self, claims: Mapping[str, Any], now: datetime) -> None:
        leeway, present = self._settings.leeway_s, now.timestamp()
        expires = _seconds(claims, "exp")
        if expires <= present - leeway:
            _refuse(f"it expired at {datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M:%S} UTC (exp)")
        for name in ("nbf", "iat"):
            if name in claims and (begins := _seconds(claims, name)) > present + leeway:
                _refuse(f"it is valid from {datetime.fromtimestamp(begins, UTC):%Y-%m-%d %H:%M:%S} UTC on ({name})")


def check_name(name: object) -> bool:
    """Return whether *name* can stand in an audit trail: a line of visible characters, not too long."""
    return isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip()


def _bearer(header: str | None) -> str:
    if header is None:
        _refuse("there is none; send: Authorization: Bearer TOKEN")
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        _refuse("it is not sent as: Authorization: Bearer TOKEN")
    if len(token) > LONGEST_TOKEN:
        _refuse(f"it is longer than {LONGEST_TOKEN} characters")
    found = _BEARER.fullmatch(header)
    if found is None:
        _refuse("it is not a JWT" if token else "it is empty")
    return found[1]


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LAST_MOMENT:
        _refuse(f"its {name} is not a time")  # NaN compares to nothing
    return float(value)


def _line(claims: Mapping[str, Any], name: str) -> str:
    value = claims[name]
    if not check_name(value):
        _refuse(f"its {name} is not a line of 1 to {LONGEST_NAME} visible characters")
    return str(value)


def _strategies(claims: Mapping[str, Any]) -> frozenset[str] | None:
    if "strategies" not in claims:
        return None
    names = claims["strategies"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        _refuse("its strategies are not a list of names")
    return frozenset(names)


def _read_only(claims: Mapping[str, Any]) -> bool:
    scope = claims.get("scope", "")
    if not isinstance(scope, str):
        _refuse("its scope is not a text")
    words = scope.split()
    return READ in words and WRITE not in words


def _network(client: str) -> str:
    """Return what stands for a client: its address, or of IPv6 its network, all of which is one client's."""
    try:
        address = ip_address(client)
    except ValueError:
        return client[:LONGEST_NAME]
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{int(address) >> _IPV6_HOST:x}/{_IPV6_HOST}"


def _refuse(why: str) -> NoReturn:
    raise InvalidToken(why) from None


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
