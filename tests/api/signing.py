"""Real keys, and tokens as an honest issuer makes them; what a test wants otherwise it says."""

import base64
import json
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.builders import HOUR, MONDAY

NOW = MONDAY + timedelta(hours=9, minutes=30)
SECRET = "a secret of this test, and of no installation"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def rsa_key(name: str = "first", bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(name: str = "first") -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public_pem(key: PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_pem(key: PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def claims(now: datetime = NOW, **changes: Any) -> dict[str, Any]:
    """Return an owner's claims, valid for an hour; a change to None takes a claim away."""
    whole = {
        "sub": "ana",
        "role": "owner",
        "aud": "strategy-rollout",
        "iat": int(now.timestamp()),
        "exp": int((now + HOUR).timestamp()),
    }
    return {name: value for name, value in {**whole, **changes}.items() if value is not None}


def token(key: PrivateKey | str = SECRET, *, headers: dict[str, Any] | None = None, **changes: Any) -> str:
    kinds = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}
    algorithm = next((name for kind, name in kinds.items() if isinstance(key, kind)), "HS256")
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)


def raw(header: bytes, payload: bytes, secret: str = SECRET) -> str:
    """Return a token of these bytes, signed as by HS256, whatever they say."""
    signed = b".".join(map(encoded, (header, payload)))
    mac = jwt.get_algorithm_by_name("HS256").sign(signed, secret.encode())
    return b".".join((signed, encoded(mac))).decode()


def encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def jwk(key: PrivateKey, kid: str | None, **more: Any) -> dict[str, Any]:
    """Return what an identity provider publishes of *key*."""
    public = key.public_key()
    algorithm: Any = jwt.get_algorithm_by_name("RS256" if isinstance(public, rsa.RSAPublicKey) else "ES256")
    return {**json.loads(algorithm.to_jwk(public)), **({} if kid is None else {"kid": kid}), **more}
