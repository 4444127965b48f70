"""What happens in the database, told to whoever watches `rollout up`: changes and alerts, a line each, each once."""

from collections.abc import Callable

from sqlalchemy import Engine

from strategy_core.store import audit
from strategy_core.store.engine import reading


class News:
    """What has happened since it was made, or since it was told last."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        with reading(engine) as session:
            self._event = max((event.id or 0 for event in audit.events(session, limit=1)), default=0)
            self._alert = max((alert.id or 0 for alert in audit.alerts(session, limit=1)), default=0)

    def tell(self, say: Callable[[str], None]) -> None:
        """Say what is new, oldest first; an alert follows the change that raised it."""
        with reading(self._engine) as session:
            events = audit.events(session, after_id=self._event)
            alerts = audit.alerts(session, after_id=self._alert)
        changes = [
            (event.at, 0, f"{event.strategy_name} {event.version}  {event.action.replace('_', ' ')}: {event.reason}")
            for event in events
        ]
        told = [(alert.at, 1, f"alert {alert.id}, {alert.severity}: {alert.text}") for alert in alerts]
        for at, _, line in sorted([*changes, *told], key=lambda each: each[:2]):
            say(f"{at:%Y-%m-%d %H:%M}  {line.removesuffix(': ')}")
        self._event = max([self._event, *(event.id or 0 for event in events)])
        self._alert = max([self._alert, *(alert.id or 0 for alert in alerts)])
