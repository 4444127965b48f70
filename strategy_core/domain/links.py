"""Addresses of the console's pages and of Prefect's forms, with every part encoded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Links:
    """Where owners look and act. An address that is not known is an empty text.

    What it returns has only letters, digits and `-._~%/:?=[]`: it is inert in Markdown, HTML and a shell.

    Attributes:
        console: address of the console, without a slash at its end.
        forms: address of the form of each Prefect deployment, by the deployment's name.
    """

    console: str = ""
    forms: Mapping[str, str] = field(default_factory=dict)

    def page(self, strategy_name: str = "", rollout_id: UUID | None = None) -> str:
        """Return the console's page of a rollout, else of a strategy, else of all alerts."""
        parts = ["alerts"]
        if strategy_name:
            parts = ["strategies", strategy_name]
            if rollout_id is not None:
                parts += ["rollouts", str(rollout_id)]
        return "/".join([self.console, *(quote(part, safe="") for part in parts)]) if self.console else ""

    def form(self, deployment: str, **given: str) -> str:
        """Return the form of *deployment*, filled in with what is *given*.

        One of Prefect's two user interfaces decodes the address twice. A percent sign is therefore written as JSON's
        `\\u0025`, which both read.
        """
        path = self.forms.get(deployment, "")
        text = json.dumps(given).replace("%", "\\u0025")
        return f"{path}?parameters={quote(text, safe='')}" if path else ""
