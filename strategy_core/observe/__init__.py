"""Monitoring: structured logs, metrics, the Prometheus client and alert channels."""

import logging
import sys

import structlog


def configure_logs(*, as_json: bool | None = None, level: int = logging.INFO, without: str = "") -> None:
    """Send events of *level* and above to standard error: for people on a terminal, as JSON lines elsewhere.

    Args:
        without: an event that is left out.
    """

    def left_out(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if event["event"] == without:
            raise structlog.DropEvent
        return event

    as_json = not sys.stderr.isatty() if as_json is None else as_json
    structlog.configure(
        processors=[
            left_out,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(
                [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
                if as_json
                # the renderer's own traces show local variables: seconds of work, and secrets
                else [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # as it is then: one may take its place
    )
