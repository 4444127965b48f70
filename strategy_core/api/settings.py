"""API settings from the environment: where the server listens and which tokens it accepts."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

import jwt
from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from strategy_core.api.jwks import ASYMMETRIC, SYMMETRIC, FixedKey, Keys, RemoteKeys, algorithm_of, read_public_key
from strategy_core.domain.errors import InvalidSetting
from strategy_core.settings import Networks

DEVELOPMENT_SECRET = "development-only-secret-that-everybody-knows"  # noqa: S105  accepted on this machine only
AUDIENCE = "strategy-rollout"

_PREFIX = "ROLLOUT_API_"
_SECRET_BYTES = 32  # RFC 7518, section 3.2: as long as the digest
_HIDDEN = ("secret", "public_key", "jwks_url")  # an invalid value may contain a secret
_NEEDED = (
    f"a secret of at least {_SECRET_BYTES} bytes here, or a key in {_PREFIX}PUBLIC_KEY or {_PREFIX}JWKS_URL; "
    f"to try the API on this machine only: {_PREFIX}DEVELOPMENT=1"
)


class ApiSettings(BaseSettings):
    """Settings from the environment: `ROLLOUT_API_SECRET`, `ROLLOUT_API_PORT`, …

    Set exactly one of *secret*, *public_key* and *jwks_url*, or *development* instead.

    Attributes:
        host, port: where the server listens. Port 0 picks a free port.
        secret: shared with the token issuer, for HS256. At least 32 bytes.
        public_key: of the token issuer, for RS256 or ES256: PEM text, or `@FILE` that contains it.
        jwks_url: where an identity provider publishes its keys.
        algorithms: accepted signature algorithms, such as `RS256,ES256`. Default: those of the key.
        issuer: required `iss` of a token. Default: any.
        audience: required `aud` of a token.
        leeway_s: accepted clock difference between issuer and server, in seconds. With 0, a server clock that is
            one second late refuses every new token, also for a rollback.
        trusted_proxies: addresses or networks of reverse proxies, separated by commas, such as `10.0.0.5,10.1.0.0/16`.
            The client's address is taken from `X-Forwarded-For` only in their requests. Default: from no one.
        body_timeout_s: how long the body of a request may take to arrive, in seconds.
        development: accept tokens signed with a publicly known secret, on this machine only.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="ignore", hide_input_in_errors=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8321, ge=0, le=65_535)
    secret: SecretStr | None = None
    public_key: str | None = None
    jwks_url: AnyHttpUrl | None = None
    algorithms: Annotated[tuple[Literal["HS256", "RS256", "ES256"], ...], NoDecode] = ()
    issuer: str | None = Field(default=None, min_length=1)
    audience: str = Field(default=AUDIENCE, min_length=1)
    leeway_s: int = Field(default=10, ge=0, le=60)
    trusted_proxies: Networks = ()
    body_timeout_s: float = Field(default=10.0, gt=0, le=300)
    development: bool = False

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None:
            return None
        key = secret.get_secret_value().encode()
        if len(key) < _SECRET_BYTES:
            raise ValueError(f"at least {_SECRET_BYTES} bytes, for example from: openssl rand -base64 {_SECRET_BYTES}")
        try:
            jwt.get_algorithm_by_name(SYMMETRIC).prepare_key(key)
        except jwt.InvalidKeyError:  # PyJWT refuses a secret that looks like a PEM or SSH key
            raise ValueError(f"a shared secret; set a public key in {_PREFIX}PUBLIC_KEY") from None
        return secret

    @field_validator("public_key")
    @classmethod
    def _load_public_key(cls, key: str | None) -> str | None:
        if key is None:
            return None
        if key.startswith("@"):
            try:
                key = Path(key[1:]).read_text(encoding="ascii", errors="replace")
            except OSError as error:
                raise ValueError(f"a readable @FILE ({error.strerror})") from None
        read_public_key(key)
        return key

    @field_validator("jwks_url")
    @classmethod
    def _check_url(cls, url: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if url is None:
            return None
        if url.username or url.password or url.fragment:
            raise ValueError("an address without a password or fragment")
        if url.scheme != "https" and not is_loopback(url.host or ""):
            raise ValueError("an https address; http is allowed only to this machine, or keys could be forged")
        return url

    @field_validator("algorithms", mode="before")
    @classmethod
    def _split_algorithms(cls, given: Any) -> Any:
        return tuple(dict.fromkeys(each.strip() for each in given.split(","))) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_key(self) -> "ApiSettings":
        """Raise InvalidSetting unless exactly one key is set and all algorithms fit it."""
        named = {name: value for name in _HIDDEN if (value := getattr(self, name)) is not None}
        if self.development:
            self._check_development(list(named))
            self.secret = SecretStr(DEVELOPMENT_SECRET)
        elif not named:
            raise InvalidSetting(f"{_PREFIX}SECRET", None, _NEEDED)
        elif len(named) > 1:
            *others, last = [f"{_PREFIX}{name.upper()}" for name in named]
            raise InvalidSetting(last, "***", f"only without {' and '.join(others)}: set exactly one key")
        elif self.secret is not None and self.secret.get_secret_value() == DEVELOPMENT_SECRET:
            raise InvalidSetting(f"{_PREFIX}SECRET", "***", "your own secret, not the development secret")
        possible = self._possible()
        if not self.algorithms:
            self.algorithms = possible  # type: ignore[assignment]
        elif set(self.algorithms) - set(possible):
            raise InvalidSetting(f"{_PREFIX}ALGORITHMS", ",".join(self.algorithms), ",".join(possible))
        return self

    @property
    def console_url(self) -> str:
        """Address of the console for a browser on this machine."""
        host = "127.0.0.1" if self.host in ("", "0.0.0.0", "::") else self.host  # noqa: S104  not to listen on
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/console"

    def open_keys(self) -> Keys:
        """Return the keys that verify tokens. A JWK set is fetched later."""
        if self.jwks_url is not None:
            return RemoteKeys(str(self.jwks_url), self.algorithms)
        if self.public_key is not None:
            return FixedKey(read_public_key(self.public_key), self.algorithms)
        assert self.secret is not None
        return FixedKey(self.secret.get_secret_value().encode(), self.algorithms)

    def _possible(self) -> tuple[str, ...]:
        """Return the algorithms of the key. HS256 is not mixed with others, or a public key could sign tokens."""
        if self.secret is not None:
            return (SYMMETRIC,)
        return ASYMMETRIC if self.public_key is None else (algorithm_of(read_public_key(self.public_key)),)

    def _check_development(self, named: list[str]) -> None:
        if named:
            others = " and ".join(f"{_PREFIX}{name.upper()}" for name in named)
            raise InvalidSetting(f"{_PREFIX}DEVELOPMENT", True, f"only without {others}: it has a built-in secret")
        if not is_loopback(self.host):
            allowed = f"127.0.0.1, ::1 or localhost with {_PREFIX}DEVELOPMENT, because its secret is public"
            raise InvalidSetting(f"{_PREFIX}HOST", self.host, allowed)


def is_loopback(host: str) -> bool:
    """Return whether *host* is a loopback address, or `localhost`."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_api_settings() -> ApiSettings:
    """Return the API's settings from the environment. A bad value raises InvalidSetting with the variable's name."""
    try:
        return ApiSettings()
    except ValidationError as error:
        first = error.errors()[0]
        setting = str(first["loc"][0])
        shown = "***" if setting in _HIDDEN else first["input"]
        raise InvalidSetting(f"{_PREFIX}{setting.upper()}", shown, first["msg"].removeprefix("Value error, ")) from None
