"""A process of its own that delivers what is due, and may stop at its worst moment: `DATABASE CHANNEL NOW [MOMENT]`."""

import sys
import time
from datetime import datetime

from pydantic import SecretStr

from strategy_core.domain.alerts import Message, Severity
from strategy_core.observe.channels import AppriseChannel
from strategy_core.services.alerts import deliver
from strategy_core.store.engine import open_database


class Stopping(AppriseChannel):
    """The real channel, in a process that goes no further before its first send, or after it."""

    moment = ""

    def send(self, message: Message, severity: Severity) -> str:
        if self.moment == "claimed":
            stop()
        problem = super().send(message, severity)
        if self.moment == "sent":
            stop()
        return problem


def stop() -> None:
    sys.stdout.write("stopped\n")
    sys.stdout.flush()
    time.sleep(3600)


def main(database: str, url: str, now: str, moment: str = "") -> None:
    engine = open_database(database)
    channel = Stopping(SecretStr(url), scheme="json")
    channel.moment = moment
    deliver(engine, [channel], now=datetime.fromisoformat(now))
    engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
