"""A door to the API that opens to tokens alone, for tests of who is let in."""

import json
from datetime import datetime, timedelta
from typing import Any

from pydantic import SecretStr

from strategy_core.api.auth import Authenticator, Failures, Principal, Revocations
from strategy_core.api.settings import ApiSettings
from tests.api.signing import NOW, SECRET, claims

HOME = "192.0.2.7"
HEADER = b'{"alg":"HS256","typ":"JWT"}'
WEEK = int(timedelta(days=7).total_seconds())
MIDNIGHT = int(NOW.replace(hour=0, minute=0).timestamp())


class Clock:
    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def door(
    clock: Clock | None = None, *, limit: int = 20, revocations: Revocations | None = None, **changes: Any
) -> Authenticator:
    """Return what lets in by the secret; another key, or issuer, by *changes*."""
    key = {"secret": SecretStr(SECRET)} if not {"public_key", "jwks_url"} & changes.keys() else {}
    set_up = ApiSettings(**{**key, **changes})
    failures = Failures(limit=limit)
    return Authenticator(set_up, set_up.open_keys(), failures, clock or Clock(), revocations=revocations)


def enter(held: str, **changes: Any) -> Principal:
    return door(**changes).authenticate(f"Bearer {held}", HOME)


def payload(**changes: Any) -> bytes:
    return json.dumps({**claims(), **changes}).encode()
