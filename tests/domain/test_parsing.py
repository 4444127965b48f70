"""A name that occurs twice in a JSON document is refused, because it has two values."""

import json

import pytest

from strategy_core.domain.parsing import each_name_once


def test_an_object_is_what_it_says() -> None:
    said = '{"a": 1, "b": {"a": [{"a": 2}]}}'

    assert json.loads(said, object_pairs_hook=each_name_once) == json.loads(said)


@pytest.mark.parametrize("said", ['{"percent": 5, "percent": 50}', '{"plan": {"percent": 5, "percent": 5}}'])
def test_a_name_that_stands_twice_is_refused_at_any_depth(said: str) -> None:
    with pytest.raises(ValueError, match="'percent' occurs twice"):
        json.loads(said, object_pairs_hook=each_name_once)
