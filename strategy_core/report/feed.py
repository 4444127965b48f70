"""The Atom feed of the reports that are written for owners (RFC 4287)."""

from collections.abc import Sequence
from datetime import datetime
from xml.etree import ElementTree as ET

from strategy_core.domain.alerts import REPORT_TITLES, clipped
from strategy_core.store.tables import OwnerReport

MEDIA_TYPE = "application/atom+xml"
_NAMESPACE = "http://www.w3.org/2005/Atom"


def atom_feed(reports: Sequence[OwnerReport], *, page_url: str, self_url: str, updated: datetime) -> str:
    """Return the feed of *reports*, newest first.

    Args:
        page_url: address of a report's page, with `{id}` in place of its id. It may be relative to the feed.
        updated: the time of the feed without any report.
    """
    feed = ET.Element("feed", {"xmlns": _NAMESPACE})
    newest = max((each.created_at for each in reports), default=updated)
    _add(feed, "id", "urn:rollout:reports")
    _add(feed, "title", "Rollout reports")
    _add(feed, "updated", newest.isoformat())
    ET.SubElement(feed, "link", {"rel": "self", "href": self_url})
    _add(ET.SubElement(feed, "author"), "name", "rollout")
    for each in reports:
        entry = ET.SubElement(feed, "entry")
        _add(entry, "id", f"urn:uuid:{each.id}")
        _add(entry, "title", f"{each.strategy_name}: {REPORT_TITLES[each.kind]}")
        _add(entry, "updated", each.created_at.isoformat())
        _add(entry, "summary", each.sentence)
        ET.SubElement(entry, "category", {"term": each.kind})
        ET.SubElement(entry, "link", {"rel": "alternate", "type": "text/html", "href": page_url.format(id=each.id)})
    return ET.tostring(feed, encoding="unicode", xml_declaration=True)


def _add(parent: ET.Element, name: str, text: str) -> None:
    ET.SubElement(parent, name).text = clipped(text)  # XML has no control characters
