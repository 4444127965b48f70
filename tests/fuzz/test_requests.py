"""Whatever bytes a client sends: an answer that the description knows, and nothing changed where it is a refusal."""

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.alertmanager import alarm, notified
from tests.api.asking import SAMPLES, Api, Sample, placed
from tests.fuzz.conftest import Kept
from tests.fuzz.damage import TOKENS, damaged, rules

FIRING = Sample("POST", "/alertmanager", notified(alarm("fib_rsi"), alarm("ppo_gold", "1")))
SENT = {name: each for name, each in {**SAMPLES, "roll_back_on_alerts": FIRING}.items() if each.json is not None}
SENT.pop("register")  # each that is granted starts a process
ASKED = [name for name, each in SAMPLES.items() if each.method == "GET"]
TYPES = ["application/json"] * 8 + [
    "",
    "text/plain",
    "application/json; charset=utf-16",
    "multipart/form-data",
    "a" * 999,
]
NAMES = [
    "If-Match",
    "If-None-Match",
    "Idempotency-Key",
    "X-Request-Id",
    "Content-Encoding",
    "Accept",
    "Range",
    "Expect",
]
LINE = [bytes(byte for byte in token[:4_000] if 32 <= byte < 127) for token in TOKENS]
HEADERS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(LINE), max_size=2)


@pytest.fixture(scope="module")
def api(kept: Kept) -> Iterator[Api]:
    with Api(kept.engine).client:
        yield Api(kept.engine)


def ask(kept: Kept, api: Api, method: str, path: str, headers: Mapping[str, Any], **sent: Any) -> None:
    answer = api(method, path, headers=headers, **sent)
    assert answer.status_code < 500, f"{method} {path[:200]}: {answer.status_code} {answer.text[:500]}"
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert kept.unchanged
    elif not kept.unchanged:
        kept.put_back()


@pytest.mark.drawn
@pytest.mark.parametrize("name", SENT)
def test_any_body_is_answered(kept: Kept, api: Api, name: str) -> None:
    sample = SENT[name]

    @rules(12)
    @given(body=damaged(json.dumps(sample.json).encode()), kind=st.sampled_from(TYPES), headers=HEADERS)
    def send(body: bytes, kind: str, headers: dict[str, Any]) -> None:
        path = placed(sample.path, kept.world)
        ask(kept, api, sample.method, path, {**headers, "Content-Type": kind}, content=body)

    send()


@rules(150)
@given(
    name=st.sampled_from(ASKED),
    after=st.sampled_from(["", "", "", "/", "//", "/..", "%2e%2e", "%00", "/%ff", ";a=b", "x" * 9_000]),
    asked=st.dictionaries(
        st.sampled_from(["strategy_name", "version", "limit", "cursor", "at", "start", "since", "user_id", "a b", ""]),
        st.sampled_from([token[:2_000] for token in TOKENS]),
        max_size=3,
    ),
    headers=HEADERS,
)
def test_any_path_and_query_is_answered(
    kept: Kept, api: Api, name: str, after: str, asked: dict[str, bytes], headers: dict[str, Any]
) -> None:
    sample = SAMPLES[name]
    usual = {key: str(value).encode() for key, value in sample.params.items()}
    parts = {**usual, **asked}.items()
    query = "&".join(f"{quote_from_bytes(key.encode())}={quote_from_bytes(text)}" for key, text in parts)

    ask(kept, api, "GET", f"{placed(sample.path, kept.world)}{after}?{query}", headers)
