"""Where the keys come from that tokens are verified with: one that is set, or an address that publishes them."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from threading import BoundedSemaphore, Event, Lock, Thread
from time import monotonic
from typing import Any, Protocol

import httpx
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

from strategy_core.domain.errors import InvalidToken, KeysUnavailable

SYMMETRIC = "HS256"
ASYMMETRIC = ("RS256", "ES256")

PublicKey = RSAPublicKey | EllipticCurvePublicKey
VerifyKey = PublicKey | bytes

REFRESH = timedelta(minutes=5)  # how old the published keys may be before they are fetched again
AGAIN = timedelta(minutes=1)  # between two fetches for a key that is not among the known, or after a failure
FIRST = timedelta(seconds=5)  # between two fetches as long as no key is known at all

_RSA_BITS = 2048
_LARGEST = 1_000_000  # bytes of published keys
_WAITING = 4  # tokens of unknown keys that wait for a fetch at once: made-up ones must not hold every thread

log = structlog.get_logger(__name__)


class _NoKeys(Exception):
    """Nothing was published; the text says why, after "the server of keys"."""


class Keys(Protocol):
    """Verification keys; `algorithms` are those that a token may be signed by, whatever it says itself."""

    algorithms: tuple[str, ...]

    def find(self, algorithm: str, key_id: str | None, now: datetime) -> VerifyKey:
        """Return the key of a token with these words in its header.

        Raises:
            InvalidToken: there is no such key.
            KeysUnavailable: nobody can say now.
        """

    def refresh(self, now: datetime) -> None:
        """Get to know the keys, and wait for them; a server that starts so need not wait at its first token."""


class FixedKey:
    """One key, which is set; what a token says of its key's id is nothing to it."""

    def __init__(self, key: VerifyKey, algorithms: tuple[str, ...]) -> None:
        self.algorithms = algorithms
        self._key = key

    def find(self, algorithm: str, key_id: str | None, now: datetime) -> VerifyKey:
        return self._key

    def refresh(self, now: datetime) -> None:
        """Know the key as before."""


class RemoteKeys:
    """The keys that an identity provider publishes as a JWK set.

    They are fetched beside the requests, and while their server is down the last known ones stay in use: to roll back
    must not need an identity provider.

    Args:
        url: of the JWK set; redirects are not followed.
        timeout: in seconds, for a whole answer.
        patience: in seconds, how long a token whose key is known waits for fresh keys; a rollback must not wait long.
    """

    def __init__(self, url: str, algorithms: tuple[str, ...], *, timeout: float = 5.0, patience: float = 1.0) -> None:
        self.url = url
        self.algorithms = algorithms
        self.timeout = timeout
        self.patience = patience
        self._lock = Lock()
        self._known: Mapping[tuple[str, str | None], PublicKey] = {}
        self._asked_at: datetime | None = None
        self._problem = ""  # of the newest fetch
        self._fetched = Event()  # the newest fetch is over
        self._places = BoundedSemaphore(_WAITING)

    def find(self, algorithm: str, key_id: str | None, now: datetime) -> VerifyKey:
        key = self._pick(algorithm, key_id)
        started = self._fetch_if_due(now, missing=key is None)
        if key is None:
            self._wait_in_turn()
        elif started:  # who comes meanwhile, with a known key, does not wait at all
            self._fetched.wait(self.patience)
        key = self._pick(algorithm, key_id)
        if key is not None:
            return key
        if not self._fetched.is_set() or self._problem:
            raise KeysUnavailable(f"the server of keys {self._problem or 'has not answered yet'}")
        raise InvalidToken("its key is not among the published ones" if key_id else "it does not name its key (kid)")

    def refresh(self, now: datetime) -> None:
        """Fetch the keys and wait until that is over; it may have failed."""
        with self._lock:
            self._fetch(now)
        self._fetched.wait(self.timeout + self.patience)

    def _wait_in_turn(self) -> None:
        if self._fetched.is_set() or not self._places.acquire(blocking=False):
            return
        try:
            self._fetched.wait(self.timeout + self.patience)
        finally:
            self._places.release()

    def _pick(self, algorithm: str, key_id: str | None) -> PublicKey | None:
        known = self._known
        if key_id is not None:
            return known.get((algorithm, key_id))
        fitting = [key for (own, _), key in known.items() if own == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    def _fetch_if_due(self, now: datetime, *, missing: bool) -> bool:
        with self._lock:
            wait = FIRST if not self._known else AGAIN if missing or self._problem else REFRESH
            if self._asked_at is not None and timedelta(0) <= now - self._asked_at < wait:
                return False  # a clock that was put back makes a fetch due: a key must not be missing for that long
            self._fetch(now)
            return True

    def _fetch(self, now: datetime) -> None:
        self._asked_at = now
        self._fetched = over = Event()
        Thread(target=self._take, args=(over,), name="keys", daemon=True).start()

    def _take(self, over: Event) -> None:
        known: Mapping[tuple[str, str | None], PublicKey] = {}
        try:
            known = _read_set(self._ask(), self.algorithms)
            problem = "" if known else f"publishes none for {' or '.join(self.algorithms)}"
        except httpx.TimeoutException:
            problem = f"gave no answer within {self.timeout:g} s"
        except httpx.ConnectError:
            problem = "cannot be reached"
        except httpx.HTTPError as error:
            problem = f"gave no answer: {type(error).__name__}"
        except _NoKeys as none:
            problem = str(none)
        except (ValueError, RecursionError):
            problem = "answered with what is no JSON"
        except Exception as error:  # noqa: BLE001  the thread's end: whoever waits must hear of it
            problem = f"gave no answer: {type(error).__name__}"
        with self._lock:
            if self._fetched is over:  # a newer fetch knows better
                self._known = known or self._known
                self._problem = problem
        if problem:
            log.warning("keys.not_fetched", problem=problem, known=len(self._known))
        over.set()

    def _ask(self) -> bytes:
        """Return the answer's body; httpx itself limits each read alone, so that a trickle would never end."""
        deadline = monotonic() + self.timeout
        body = b""
        with httpx.Client(timeout=self.timeout) as client, client.stream("GET", self.url) as response:
            if response.status_code != httpx.codes.OK:
                raise _NoKeys(f"answered with HTTP {response.status_code}")
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _LARGEST:
                    raise _NoKeys(f"answered with more than {_LARGEST} bytes")
                if monotonic() > deadline:
                    raise _NoKeys(f"gave no answer within {self.timeout:g} s")
        return body


def read_public_key(pem: str) -> PublicKey:
    """Return the key of a PEM text, of a kind that signs tokens; else raise ValueError, which does not quote it."""
    if "PRIVATE KEY" in pem:
        raise ValueError("the public half of the key pair; a private key must not be here")
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("a public key as PEM text, or @FILE with it") from None
    if not isinstance(key, RSAPublicKey | EllipticCurvePublicKey) or not _strong(key):
        raise ValueError(f"an RSA key of at least {_RSA_BITS} bits, or an EC key on P-256")
    return key


def algorithm_of(key: PublicKey) -> str:
    return "RS256" if isinstance(key, RSAPublicKey) else "ES256"


def _strong(key: PublicKey) -> bool:
    return key.key_size >= _RSA_BITS if isinstance(key, RSAPublicKey) else isinstance(key.curve, SECP256R1)


def _read_set(body: bytes, algorithms: tuple[str, ...]) -> dict[tuple[str, str | None], PublicKey]:
    """Return the keys of a JWK set that can verify tokens here, by algorithm and id; others are passed over."""
    answer = json.loads(body)
    if not isinstance(answer, dict) or not isinstance(answer.get("keys"), list):
        raise _NoKeys("answered with what is no JWK set")
    found: dict[tuple[str, str | None], PublicKey] = {}
    for jwk in answer["keys"]:
        key = _read_jwk(jwk) if isinstance(jwk, dict) else None
        if key is None or algorithm_of(key) not in algorithms or not _meant_for(jwk, algorithm_of(key)):
            continue
        found.setdefault((algorithm_of(key), jwk.get("kid")), key)
    return found


def _read_jwk(jwk: dict[str, Any]) -> PublicKey | None:
    """Return an RSA or EC key; a shared secret, or a private key, has no place in what is published."""
    kind = jwk.get("kty")
    if kind not in ("RSA", "EC") or "d" in jwk:
        return None
    try:
        key = RSAAlgorithm.from_jwk(jwk) if kind == "RSA" else ECAlgorithm.from_jwk(jwk)
    except (PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, OverflowError):
        return None
    return key if isinstance(key, RSAPublicKey | EllipticCurvePublicKey) and _strong(key) else None


def _meant_for(jwk: dict[str, Any], algorithm: str) -> bool:
    """Return whether a key's own words allow that it verifies signatures by *algorithm*."""
    operations = jwk.get("key_ops", ["verify"])
    return (
        jwk.get("alg", algorithm) == algorithm
        and jwk.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and isinstance(jwk.get("kid"), str | None)
    )
