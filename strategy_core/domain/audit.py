"""Who acts; never what they may do."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Actor:
    """The person or process behind a change.

    Attributes:
        name: a user's id, or the name of the flow.
        role: owner, admin or system.
        source: where the wish came in: sdk, cli, api or flow.
    """

    name: str
    role: str = "owner"
    source: str = "sdk"


RAMP = Actor("ramp", role="system", source="flow")
