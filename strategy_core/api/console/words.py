"""Times, numbers and sentences as the console shows them."""

from datetime import datetime, timedelta

from strategy_core.domain.gates.base import format_duration


def ago(moment: datetime | None, now: datetime) -> str:
    """Return how long ago *moment* was, such as `12 s ago` or `3 days ago`. A moment to come is `in 2 h`."""
    if moment is None:
        return "not yet"
    span = now - moment
    return f"{format_duration(span)} ago" if span >= timedelta(0) else f"in {format_duration(-span)}"


def stamp(moment: datetime | None) -> str:
    """Return *moment* as `2026-03-02 10:00 UTC`, or a dash."""
    return "—" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def count(number: float | None) -> str:
    """Return a whole number with thousands separators, or a dash."""
    return "—" if number is None else f"{number:,.0f}"


def percent(value: float | None) -> str:
    """Return `5 %` for 5.0, or a dash."""
    return "—" if value is None else f"{value:.4g} %"


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """Return the number with its noun, such as `1 slot` or `1,200 slots`."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def sentence(text: str) -> str:
    """Return *text* with a capital letter at its start and a full stop at its end.

    A name at the start stays as it is: a first word with a digit, an underscore or a dot.
    """
    text = text.strip()
    if not text:
        return ""
    first = text.split(maxsplit=1)[0].rstrip(":,")
    if first.isalpha():
        text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?…" else f"{text}."
