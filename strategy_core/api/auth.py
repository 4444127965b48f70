"""Bearer tokens: verify them into a Principal, and issue them.

This module does not use the web framework: an Authorization header goes in, a Principal or a typed error comes out.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address
from math import ceil, floor
from threading import Lock
from typing import Any, NoReturn
from uuid import uuid4

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from strategy_core.api.jwks import Keys, read_public_key
from strategy_core.api.settings import ApiSettings
from strategy_core.domain.errors import Forbidden, InvalidName, InvalidSetting, InvalidToken, TooManyFailures
from strategy_core.domain.parsing import LONGEST_OWNER_NAME as LONGEST_NAME
from strategy_core.domain.parsing import check_owner_name

ROLES = ("owner", "admin")
READ, WRITE = "read", "write"  # words of the claim `scope`

LONGEST_TOKEN = 8_192  # characters
MOST_HOURS = 30 * 24  # lifetime of an issued token
MOST_DAYS = 730  # lifetime of a service token
SERVICE = "rollout_service"  # claim of a service token, true. Its `jti` is looked up among the revoked ones

SigningKey = RSAPrivateKey | EllipticCurvePrivateKey | bytes

log = structlog.get_logger(__name__)

_BEARER = re.compile(r"bearer ([\w-]+\.[\w-]+\.[\w-]+)", re.ASCII | re.IGNORECASE)
_LAST_MOMENT = 253_402_300_799  # seconds: the end of the year 9999
_IPV6_HOST = 64  # bits: a client with one IPv6 address usually controls its whole /64 network
_REASONS: Mapping[type[jwt.PyJWTError], str] = {
    jwt.InvalidSignatureError: "its signature is not valid",
    jwt.InvalidAudienceError: "it is meant for another audience (aud)",
    jwt.InvalidIssuerError: "it comes from another issuer (iss)",
}


@dataclass(frozen=True, slots=True)
class Principal:
    """The user or program that a valid token identifies.

    Attributes:
        name: the actor in the audit trail (`sub`).
        role: owner or admin.
        strategies: the strategies that the token may use; all if it is not limited.
        read_only: the token may not change anything, for example a Router's or a scraper's token.
        token_id: the token's id (`jti`), or empty.
        revocation_unknown: it is a service token, and could not be looked up among the revoked ones.
    """

    name: str
    role: str
    strategies: frozenset[str] | None = None
    read_only: bool = False
    token_id: str = ""
    revocation_unknown: bool = False

    def check(self, strategy_name: str | None) -> None:
        """Raise Forbidden unless the token may use this strategy, or all strategies if no name is given."""
        if self.strategies is None or strategy_name in self.strategies:
            return
        asked = "all strategies" if strategy_name is None else f"strategy {strategy_name!r}"
        allowed = ", ".join(sorted(self.strategies)) or "none"
        raise Forbidden(self.name, f"the token does not cover {asked}; allowed: {allowed}")

    def check_change(self, strategy_name: str | None) -> None:
        """Raise Forbidden unless the token may change this strategy, or all strategies if no name is given."""
        self.check_changes()
        self.check(strategy_name)

    def check_changes(self) -> None:
        """Raise Forbidden unless the token may change anything."""
        if self.read_only:
            raise Forbidden(self.name, "the token is read-only (scope)")


class Failures:
    """Rate limit for rejected tokens, per client and in bounded memory.

    Args:
        limit: number of failures per *window*. Further failures raise TooManyFailures.
        clients: number of clients to remember. Beyond it, the client whose last failure is oldest is dropped.
    """

    def __init__(self, *, limit: int = 20, window: timedelta = timedelta(seconds=60), clients: int = 10_000) -> None:
        self._limit = limit
        self._window = window
        self._clients = clients
        self._seen: OrderedDict[str, deque[datetime]] = OrderedDict()
        self._lock = Lock()

    def count(self, client: str, now: datetime) -> None:
        """Count a failure of the address *client*, or raise TooManyFailures."""
        name = _network(client)
        with self._lock:
            failed = self._seen.setdefault(name, deque())
            while failed and not timedelta(0) <= now - failed[0] < self._window:
                failed.popleft()  # also failures in the future, after the clock was set back
            if len(failed) >= self._limit:
                raise TooManyFailures(max(1, ceil((failed[0] + self._window - now).total_seconds())))
            failed.append(now)
            self._seen.move_to_end(name)
            if len(self._seen) > self._clients:
                self._seen.popitem(last=False)


class Revocations:
    """Looks up whether a service token is revoked, within a fixed time.

    Args:
        is_revoked: asks the database by the token's id. It may hang or raise.
        within_s: how long one look-up may take. A rollback waits no longer for it.
        at_once: look-ups at the same time. A database that hangs holds no more threads and connections than these.
    """

    def __init__(self, is_revoked: Callable[[str], bool], *, within_s: float = 2.0, at_once: int = 4) -> None:
        self._is_revoked = is_revoked
        self._within_s = within_s
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="revocations")

    def look_up(self, token_id: str) -> bool | None:
        """Return whether the token is revoked, or None if that cannot be found out in time."""
        asked = self._threads.submit(self._is_revoked, token_id)
        try:
            return asked.result(self._within_s)
        except Exception as error:  # noqa: BLE001  no fault of the look-up may refuse a rollback
            asked.cancel()
            log.warning("api.revocation_unknown", token_id=token_id, error=type(error).__name__)
            return None


class Authenticator:
    """Turns an Authorization header into a Principal.

    Args:
        revocations: where service tokens are looked up. None accepts all of them.
        clock: returns the real time, also when a feed is replayed, because the issuer uses real time.
    """

    def __init__(
        self,
        settings: ApiSettings,
        keys: Keys,
        failures: Failures,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        revocations: Revocations | None = None,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._failures = failures
        self._clock = clock
        self._revocations = revocations

    def authenticate(self, authorization_header: str | None, client: str) -> Principal:
        """Return the principal of a request from the address *client*.

        Raises:
            InvalidToken: the token is missing, not valid, or revoked.
            TooManyFailures: this client sent too many tokens that are not valid.
            Forbidden: the token is valid, but has no role that may use this API.
            KeysUnavailable: the keys to verify it with could not be fetched.
        """
        now = self._clock()
        # Check the token first and apply the limit only to failures: an owner behind the same proxy as an attacker
        # must still be able to roll back.
        try:
            return self._principal(authorization_header, now)
        except InvalidToken:
            self._failures.count(client, now)
            raise

    def seconds_left(self, token: str) -> int:
        """Return the rest of the lifetime of a token that `authenticate` has accepted."""
        expires = jwt.decode(token, options={"verify_signature": False})["exp"]
        return max(0, floor(float(expires) - self._clock().timestamp()))

    def _principal(self, header: str | None, now: datetime) -> Principal:
        claims = self._claims(_bearer(header), now)
        self._check_times(claims, now)
        name, role = _owner(claims), claims.get("role")
        if role not in ROLES:
            asked = "the token has no role" if role is None else f"the token's role is {role!r:.40}"
            raise Forbidden(name, f"{asked}; allowed: {' or '.join(ROLES)}")
        token_id = _text_claim(claims, "jti") if "jti" in claims else ""
        return Principal(
            name=name,
            role=role,
            strategies=_strategies(claims),
            read_only=_read_only(claims),
            token_id=token_id,
            revocation_unknown=self._revocation_unknown(token_id) if _is_service(claims) else False,
        )

    def _revocation_unknown(self, token_id: str) -> bool:
        """Refuse a service token that is revoked. Return whether that could not be found out."""
        if not token_id:
            _refuse("it is a service token without an id (jti)")
        revoked = False if self._revocations is None else self._revocations.look_up(token_id)
        if revoked:
            _refuse("it was revoked")
        return revoked is None

    def _claims(self, token: str, now: datetime) -> dict[str, Any]:
        """Return the claims of a token that is signed for this audience. Its times are not checked yet."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            _refuse("it is not a JWT")
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._keys.algorithms:
            _refuse(f"it is not signed with {' or '.join(self._keys.algorithms)} (alg)")
        if "crit" in header:
            _refuse("it requires an extension that is not supported (crit)")
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
                    "verify_exp": False,  # `_check_times` uses the given clock
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_sub": False,  # `_text_claim` checks type and characters
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
                _refuse(f"it is not valid before {datetime.fromtimestamp(begins, UTC):%Y-%m-%d %H:%M:%S} UTC ({name})")


def check_name(name: object) -> bool:
    """Return whether *name* is one line of 1 to 128 printable characters, without white space around it."""
    return isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip()


def _bearer(header: str | None) -> str:
    if header is None:
        _refuse("it is missing; send: Authorization: Bearer TOKEN")
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        _refuse("it must be sent as: Authorization: Bearer TOKEN")
    if len(token) > LONGEST_TOKEN:
        _refuse(f"it is longer than {LONGEST_TOKEN} characters")
    found = _BEARER.fullmatch(header)
    if found is None:
        _refuse("it is not a JWT" if token else "it is empty")
    return found[1]


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LAST_MOMENT:
        _refuse(f"its {name} is not a time")  # NaN fails the comparison too
    return float(value)


def _owner(claims: Mapping[str, Any]) -> str:
    name = _text_claim(claims, "sub")
    try:
        return check_owner_name(name)
    except InvalidName as error:
        _refuse(f"its sub is not {error.allowed}")


def _text_claim(claims: Mapping[str, Any], name: str) -> str:
    value = claims[name]
    if not check_name(value):
        _refuse(f"its {name} is not 1 to {LONGEST_NAME} printable characters")
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
        _refuse("its scope is not a string")
    words = scope.split()
    return READ in words and WRITE not in words


def _is_service(claims: Mapping[str, Any]) -> bool:
    marked = claims.get(SERVICE, False)
    if not isinstance(marked, bool):
        _refuse(f"its {SERVICE} is not true or false")
    return marked


def _network(client: str) -> str:
    """Return the name under which failures are counted: the IPv4 address, or the IPv6 network."""
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


def issue_token(
    settings: ApiSettings,
    *,
    name: str,
    role: str = ROLES[0],
    hours: float = 12,
    days: float | None = None,
    strategies: Sequence[str] = (),
    read_only: bool = False,
    private_key: str | None = None,
    now: datetime,
) -> tuple[str, dict[str, Any]]:
    """Return a token that a server with these settings accepts, and its claims.

    Args:
        hours: lifetime, above 0 and at most MOST_HOURS.
        days: make a service token with this lifetime in place of *hours*, above 0 and at most MOST_DAYS. The caller
            lists it before it hands it out.
        strategies: limit the token to these. Default: all strategies.
        private_key: PEM text. Required if the settings hold a public key, and must belong to it.
        now: the real time.

    Raises:
        InvalidName, InvalidSetting
        InvalidToken: a server with these settings would refuse it.
    """
    if not check_name(name):
        raise InvalidName("name", name, f"1 to {LONGEST_NAME} printable characters")
    check_owner_name(name, "name")
    if role not in ROLES:
        raise InvalidName("role", role, " or ".join(ROLES))
    lifetime = _lifetime(hours, days)
    key = _signing_key(settings, private_key)
    claims: dict[str, Any] = {
        "sub": name,
        "role": role,
        "aud": settings.audience,
        "iat": floor(now.timestamp()),
        "exp": floor((now + lifetime).timestamp()),
        "jti": uuid4().hex,
    }
    if settings.issuer is not None:
        claims["iss"] = settings.issuer
    if strategies:
        claims["strategies"] = sorted(set(strategies))
    if read_only:
        claims["scope"] = READ
    if days is not None:
        claims[SERVICE] = True
    token = jwt.encode(claims, key, algorithm=settings.algorithms[0])
    if len(token) > LONGEST_TOKEN:
        allowed = f"fewer: the token has more than {LONGEST_TOKEN} characters"
        raise InvalidSetting("strategies", len(claims["strategies"]), allowed)
    Authenticator(settings, settings.open_keys(), Failures(), lambda: now).authenticate(f"Bearer {token}", "")
    return token, claims


def login_link(console_url: str, token: str) -> str:
    """Return the address that logs in to the console. What follows `#` is in no request, so in no log of a server."""
    return f"{console_url.rstrip('/')}/login#{token}"


def _lifetime(hours: float, days: float | None) -> timedelta:
    if days is not None:
        if not 0 < days <= MOST_DAYS:
            raise InvalidSetting("days", days, f"above 0, at most {MOST_DAYS}")
        return timedelta(days=days)
    if not 0 < hours <= MOST_HOURS:
        longer = "; for a program: --service --days 365" if hours > MOST_HOURS else ""
        raise InvalidSetting("hours", hours, f"above 0, at most {MOST_HOURS}{longer}")
    return timedelta(hours=hours)


def _signing_key(settings: ApiSettings, private_key: str | None) -> SigningKey:
    if settings.secret is not None:
        if private_key is not None:
            allowed = "only with ROLLOUT_API_PUBLIC_KEY; this installation signs with a secret"
            raise InvalidSetting("--private-key", "***", allowed)
        return settings.secret.get_secret_value().encode()
    if settings.public_key is None:
        raise InvalidSetting("ROLLOUT_API_JWKS_URL", "***", "tokens from that identity provider only")
    if private_key is None:
        raise InvalidSetting("--private-key", None, "the file with the private key of ROLLOUT_API_PUBLIC_KEY")
    try:
        key = load_pem_private_key(private_key.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        raise InvalidSetting("--private-key", "***", "a private key as unencrypted PEM") from None
    wanted = read_public_key(settings.public_key).public_numbers()
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey) or key.public_key().public_numbers() != wanted:
        raise InvalidSetting("--private-key", "***", "the private key that belongs to ROLLOUT_API_PUBLIC_KEY")
    return key
