"""Keys that verify tokens: a configured key, or the JWK set that an identity provider publishes."""

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
from jwt import PyJWK, PyJWTError

from strategy_core.domain.errors import InvalidToken, KeysUnavailable

SYMMETRIC = "HS256"
ASYMMETRIC = ("RS256", "ES256")

PublicKey = RSAPublicKey | EllipticCurvePublicKey
VerifyKey = PublicKey | bytes

REFRESH = timedelta(minutes=5)  # maximum age of the published keys
AGAIN = timedelta(minutes=1)  # between two fetches for an unknown key, or after a failure
FIRST = timedelta(seconds=5)  # between two fetches while no key is known

_RSA_BITS = 2048
_LARGEST = 1_000_000  # bytes of the JWK set
_WAITING = 4  # tokens with unknown keys that wait for a fetch: forged tokens must not block every thread

log = structlog.get_logger(__name__)


class _NoKeys(Exception):
    """The key server published no usable keys. The message completes "the key server ..."."""


class Keys(Protocol):
    """Verification keys.

    Attributes:
        algorithms: the only ones that are accepted. A token's own header cannot add one.
    """

    algorithms: tuple[str, ...]

    def find(self, algorithm: str, key_id: str | None, now: datetime) -> VerifyKey:
        """Return the key for a token with this `alg` and `kid`.

        Raises:
            InvalidToken: there is no such key.
            KeysUnavailable: the keys could not be fetched.
        """

    def refresh(self, now: datetime) -> None:
        """Fetch the keys and wait for them, so that the first token does not have to wait."""


class FixedKey:
    """One configured key. The token's key id is ignored."""

    def __init__(self, key: VerifyKey, algorithms: tuple[str, ...]) -> None:
        self.algorithms = algorithms
        self._key = key

    def find(self, algorithm: str, key_id: str | None, now: datetime) -> VerifyKey:
        return self._key

    def refresh(self, now: datetime) -> None:
        """Do nothing: the key is fixed."""


class RemoteKeys:
    """The keys that an identity provider publishes as a JWK set.

    A background thread fetches them. While the key server is down, the last known keys stay in use: a rollback must
    not depend on an identity provider.

    Args:
        url: address of the JWK set. Redirects are not followed.
        timeout: seconds for a whole answer.
        patience: seconds that a token with a known key waits for fresh keys. Keep it short: a rollback may be waiting.
    """

    def __init__(self, url: str, algorithms: tuple[str, ...], *, timeout: float = 5.0, patience: float = 1.0) -> None:
        self.url = url
        self.algorithms = algorithms
        self.timeout = timeout
        self.patience = patience
        self._lock = Lock()
        self._known: Mapping[tuple[str, str | None], PublicKey] = {}
        self._asked_at: datetime | None = None
        self._problem = ""  # of the latest fetch
        self._fetched = Event()  # set when the latest fetch is over
        self._places = BoundedSemaphore(_WAITING)

    def find(self, algorithm: str, key_id: str | None, now: datetime) -> VerifyKey:
        key = self._pick(algorithm, key_id)
        started = self._fetch_if_due(now, missing=key is None)
        if key is None:
            self._wait_for_fetch()
        elif started:  # later requests with a known key do not wait
            self._fetched.wait(self.patience)
        key = self._pick(algorithm, key_id)
        if key is not None:
            return key
        if not self._fetched.is_set() or self._problem:
            raise KeysUnavailable(f"the key server {self._problem or 'has not answered yet'}")
        raise InvalidToken("its key is not among the published keys" if key_id else "it does not name its key (kid)")

    def refresh(self, now: datetime) -> None:
        """Fetch the keys and wait until the fetch ends, successful or not."""
        with self._lock:
            self._fetch(now)
        self._fetched.wait(self.timeout + self.patience)

    def _wait_for_fetch(self) -> None:
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
        candidates = [key for (own, _), key in known.items() if own == algorithm]
        return candidates[0] if len(candidates) == 1 else None

    def _fetch_if_due(self, now: datetime, *, missing: bool) -> bool:
        with self._lock:
            wait = FIRST if not self._known else AGAIN if missing or self._problem else REFRESH
            if self._asked_at is not None and timedelta(0) <= now - self._asked_at < wait:
                return False  # if the clock was set back, fetch now rather than miss a new key until it catches up
            self._fetch(now)
            return True

    def _fetch(self, now: datetime) -> None:
        self._asked_at = now
        self._fetched = done = Event()
        Thread(target=self._update, args=(done,), name="keys", daemon=True).start()

    def _update(self, done: Event) -> None:
        known: Mapping[tuple[str, str | None], PublicKey] = {}
        try:
            known = _parse_key_set(self._download(), self.algorithms)
            problem = "" if known else f"publishes no key for {' or '.join(self.algorithms)}"
        except httpx.TimeoutException:
            problem = f"gave no answer within {self.timeout:g} s"
        except httpx.ConnectError:
            problem = "cannot be reached"
        except httpx.HTTPError as error:
            problem = f"gave no answer: {type(error).__name__}"
        except _NoKeys as error:
            problem = str(error)
        except (ValueError, RecursionError):
            problem = "did not answer with JSON"
        except Exception as error:  # noqa: BLE001  end of the thread: waiting requests need the cause
            problem = f"gave no answer: {type(error).__name__}"
        with self._lock:
            if self._fetched is done:  # else a newer fetch has started
                self._known = known or self._known
                self._problem = problem
        if problem:
            log.warning("keys.not_fetched", problem=problem, known=len(self._known))
        done.set()

    def _download(self) -> bytes:
        """Return the answer's body. httpx limits only single reads, so a slow trickle needs its own deadline."""
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
    """Return the RSA or EC key of a PEM text.

    Raises:
        ValueError: with what is allowed. It does not quote the text.
    """
    if "PRIVATE KEY" in pem:
        raise ValueError("the public half of the key pair, not a private key")
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("a public key as PEM text, or @FILE that contains it") from None
    if not isinstance(key, RSAPublicKey | EllipticCurvePublicKey) or not _strong(key):
        raise ValueError(f"an RSA key of at least {_RSA_BITS} bits, or an EC key on P-256")
    return key


def algorithm_of(key: PublicKey) -> str:
    return "RS256" if isinstance(key, RSAPublicKey) else "ES256"


def _strong(key: PublicKey) -> bool:
    return key.key_size >= _RSA_BITS if isinstance(key, RSAPublicKey) else isinstance(key.curve, SECP256R1)


def _parse_key_set(body: bytes, algorithms: tuple[str, ...]) -> dict[tuple[str, str | None], PublicKey]:
    """Return the keys of a JWK set by algorithm and key id, without those that cannot verify tokens here."""
    answer = json.loads(body)
    if not isinstance(answer, dict) or not isinstance(answer.get("keys"), list):
        raise _NoKeys("did not answer with a JWK set")
    found: dict[tuple[str, str | None], PublicKey] = {}
    for jwk in answer["keys"]:
        key = _parse_jwk(jwk) if isinstance(jwk, dict) and _may_verify(jwk) else None
        if key is not None and key.algorithm_name in algorithms:
            found.setdefault((key.algorithm_name, key.key_id), key.key)
    return found


def _parse_jwk(jwk: dict[str, Any]) -> PyJWK | None:
    """Return a strong public RSA or EC key. Secrets and private keys must not be published, so they are ignored."""
    try:
        parsed = PyJWK(jwk)
    except (PyJWTError, UnsupportedAlgorithm, TypeError, ValueError, OverflowError):
        return None
    key = parsed.key
    return parsed if isinstance(key, RSAPublicKey | EllipticCurvePublicKey) and _strong(key) else None


def _may_verify(jwk: dict[str, Any]) -> bool:
    """Return whether `use` and `key_ops` allow the key to verify signatures, and `kid` can be looked up."""
    operations = jwk.get("key_ops", ["verify"])
    return (
        jwk.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and isinstance(jwk.get("kid"), str | None)
    )
