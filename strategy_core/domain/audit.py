"""Who acts, and the words they leave; never what they may do."""

import re
from dataclasses import dataclass

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # what no database can hold as text


@dataclass(frozen=True, slots=True)
class Actor:
    """The person or process behind a change, and the request that carried it.

    Attributes:
        name: a user's id, or the name of the flow.
        role: owner, admin or system.
        source: where the wish came in: sdk, cli, api or flow.
        request_id: of the call or flow run, as logs name it too.
        idempotency_key: the client's own name for the wish; under one key an actor's change is made once.
    """

    name: str
    role: str = "owner"
    source: str = "sdk"
    request_id: str = ""
    idempotency_key: str | None = None


RAMP = Actor("ramp", role="system", source="flow")


def storable(text: str) -> str:
    """Return *text* with U+FFFD for what no database can hold: NUL, and half of a pair. No reason stops a rollback."""
    return UNSTORABLE.sub("\ufffd", text)
