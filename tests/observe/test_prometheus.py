"""Prometheus answers are untrusted input: a query gives one finite number, or a problem in one line."""

import socket
from typing import Any

import pytest
from pydantic import SecretStr

from strategy_core.observe.prometheus import Prometheus, QueryResult
from tests.endpoint import Endpoint, serving, success, vector

TOKEN = "s3cr3t-t0ken"
HEADER = SecretStr(f"Authorization: Bearer {TOKEN}")


def query(endpoint: Endpoint, *, timeout: float = 10.0) -> QueryResult:
    return Prometheus(endpoint.url, header=HEADER, timeout=timeout).query(["up"])["up"]


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (vector("0.25"), 0.25),
        (vector("-1e-3"), -0.001),
        (success({"resultType": "scalar", "result": [1772000000.0, "7"]}), 7.0),
        (success({"resultType": "vector", "result": [{"metric": {}, "value": [0, "0"]}]}, infos=["a hint"]), 0.0),
    ],
)
def test_one_finite_number_is_a_value(endpoint: Endpoint, body: bytes, value: float) -> None:
    endpoint.body = body

    assert query(endpoint) == QueryResult(value)


BAD: dict[str, tuple[int, bytes, str]] = {
    "nan": (200, vector("NaN"), "the value is nan"),
    "infinite": (200, vector("+Inf"), "the value is inf"),
    "minus infinite": (200, vector("-Inf"), "the value is -inf"),
    "empty": (200, vector(), "no series matches the query"),
    "several series": (200, vector("1", "2"), "2 series match the query: aggregate them into one"),
    "a matrix": (
        200,
        success({"resultType": "matrix", "result": []}),
        "the result is a matrix, but one number is needed",
    ),
    "a text": (200, success({"resultType": "string", "result": [0, "1"]}), "the result is a string, but"),
    "a warning": (200, success({"resultType": "scalar", "result": [0, "1"]}, warnings=["a store is down"]), "warning"),
    "a text value": (200, vector("many"), "not a Prometheus response"),
    "a bare number": (
        200,
        success({"resultType": "vector", "result": [{"value": [0, 1.5]}]}),
        "the result is a vector",
    ),
    "no data": (200, success(None), "not a Prometheus response"),
    "not a success": (200, b'{"status": "error", "error": "x"}', "not a Prometheus response"),
    "a list": (200, b"[1]", "not a Prometheus response"),
    "not JSON": (200, b"<html>welcome</html>", "not a Prometheus response"),
    "nested without end": (200, b"[" * 100_000, "not a Prometheus response"),
    "not text": (200, b"\xff\xfe\x00", "not a Prometheus response"),
    "an empty body": (200, b"", "not a Prometheus response"),
    "too much": (200, b" " * 1_000_001, "the answer is larger than 1000000 bytes"),
    "a server error": (500, b"oops", "HTTP 500"),
    "not authorized": (401, b"", "HTTP 401"),
    "a wrong query": (
        400,
        b'{"status": "error", "error": "parse error\\u0000 at char 3"}',
        "HTTP 400: parse error  at",
    ),
    "a value with a wrong status": (206, vector("1"), "HTTP 206"),
}


@pytest.mark.parametrize(("status", "body", "problem"), BAD.values(), ids=BAD)
def test_an_answer_without_a_number_is_a_problem_in_one_line(
    endpoint: Endpoint, status: int, body: bytes, problem: str
) -> None:
    endpoint.status, endpoint.body = status, body

    answer = query(endpoint)

    assert answer.value is None
    assert problem in answer.problem
    assert answer.problem.isprintable()


@pytest.mark.parametrize("slowness", [{"delay_s": 1.0}, {"trickle_s": 0.05}])
def test_a_slow_answer_times_out(endpoint: Endpoint, slowness: dict[str, float]) -> None:
    """The timeout is for the whole answer, so it also ends a server that sends one byte after another."""
    for name, value in slowness.items():
        setattr(endpoint, name, value)

    assert query(endpoint, timeout=0.2) == QueryResult(None, "no answer within 0.2 s")


def test_a_server_that_is_down_is_a_problem() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"

        answer = Prometheus(url).query(["up"])["up"]

    assert answer.value is None
    assert "cannot be reached: " in answer.problem


def test_a_broken_connection_is_a_problem(endpoint: Endpoint) -> None:
    endpoint.headers = {"Content-Length": "1000"}

    assert query(endpoint).problem == "no answer: RemoteProtocolError"


def test_without_a_url_every_query_has_a_problem() -> None:
    assert Prometheus(None).query(["up"]) == {"up": QueryResult(None, "ROLLOUT_PROMETHEUS_URL is not set")}


def test_each_distinct_query_is_sent_once_unchanged(endpoint: Endpoint) -> None:
    odd = 'sum(rate(errors{version="a b&c=ü"}[5m])) + 1'

    answers = Prometheus(f"{endpoint.url}/tenant").query([odd, "up", odd])

    assert answers == {odd: QueryResult(1.5), "up": QueryResult(1.5)}
    assert sorted(endpoint.queries) == sorted([odd, "up"])
    assert {path for path, *_ in endpoint.asked} == {"/tenant/api/v1/query"}


def test_without_queries_no_request_is_sent() -> None:
    assert Prometheus("http://127.0.0.1:9").query([]) == {}


def test_many_queries_run_concurrently(endpoint: Endpoint) -> None:
    endpoint.delay_s = 0.05
    queries = [f"up{i}" for i in range(40)]

    assert Prometheus(endpoint.url).query(queries) == dict.fromkeys(queries, QueryResult(1.5))


def test_the_header_is_sent_and_shown_nowhere(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    prometheus = Prometheus(endpoint.url, header=HEADER)

    assert prometheus.query(["up"])["up"].value == 1.5
    assert endpoint.asked[0][2]["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in caplog.text
    assert TOKEN not in f"{prometheus!r} {vars(prometheus)}"


def test_a_server_that_echoes_the_header_is_redacted(endpoint: Endpoint) -> None:
    endpoint.status = 403
    endpoint.body = b'{"error": "no right: Authorization: Bearer %s"}' % TOKEN.encode()

    assert query(endpoint).problem == "HTTP 403: no right: Authorization: *** ***"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(endpoint: Endpoint, status: int) -> None:
    """The header is only for the server that the owner configured."""
    with serving() as elsewhere:
        endpoint.status, endpoint.headers = status, {"Location": f"{elsewhere.url}/api/v1/query?query=up"}

        answer = query(endpoint)

    assert (answer.value, answer.problem) == (None, f"HTTP {status}")
    assert elsewhere.asked == []


def test_results_are_not_cached(endpoint: Endpoint) -> None:
    prometheus: Any = Prometheus(endpoint.url)
    assert prometheus.query(["up"])["up"].value == 1.5
    endpoint.body = vector("2")

    assert prometheus.query(["up"])["up"].value == 2.0
