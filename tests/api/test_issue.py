"""What a caller other than the command line may get wrong when it makes a token."""

from typing import Any

import pytest
from pydantic import SecretStr

from strategy_core.api.auth import issue_token
from strategy_core.api.settings import ApiSettings
from strategy_core.domain.errors import InvalidName, InvalidSetting
from tests.api.signing import NOW, SECRET


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"name": "ana", "role": "user"}, "'user' is not a role; allowed: owner or admin"),
        ({"name": " ana"}, "' ana' is not a name; allowed: 1 to 128 printable characters"),
        ({"name": "ana", "hours": -1}, "hours = -1 is not valid; allowed: above 0, at most 720"),
    ],
)
def test_a_token_that_no_server_would_accept_is_not_made(wish: dict[str, Any], said: str) -> None:
    with pytest.raises((InvalidName, InvalidSetting)) as refused:
        issue_token(ApiSettings(secret=SecretStr(SECRET)), now=NOW, **wish)

    assert str(refused.value) == said
