"""The config of a strategy as the fields of a form, made from the JSON schema of its model.

A version's code writes the schema, in its sandbox. So it may have any form, and it is read as data from a stranger.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from strategy_core.api.console.page import FormField

PREFIX = "config."
WHOLE = "config"  # the field for a config, or the rest of one, as JSON
MOST = 200  # fields
_LONGEST_HINT = 300
_WHOLE_NUMBER = re.compile(r"-?\d{1,18}")
_BOUNDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)
_KINDS = ("integer", "number", "boolean", "string")


def config_fields(schema: Mapping[str, Any] | None, config: Mapping[str, Any]) -> list[FormField]:
    """Return the fields of a config.

    Args:
        schema: of the strategy's model. None: it cannot be read, and the config is one field with JSON.
        config: the values to show. Without a value a field shows its default.
    """
    fields = [_field(name, one, config, name in _required(schema)) for name, one in properties(schema).items()]
    if takes_any_key(schema):
        rest = {name: value for name, value in config.items() if name not in properties(schema)}
        hint = "More parameters as JSON, by name." if fields else "All parameters as JSON, by name."
        fields.append(FormField(WHOLE, "Parameters", kind="long", value=_json(rest) if rest else "{}", hint=hint))
    return fields


def read_config(schema: Mapping[str, Any] | None, form: Mapping[str, str]) -> dict[str, Any]:
    """Return the config in a form. What cannot be read is kept as text, which the strategy's model then refuses."""
    config: dict[str, Any] = {}
    if takes_any_key(schema):
        rest = _from_json(form.get(WHOLE, "").strip() or "{}")
        config = dict(rest) if isinstance(rest, dict) else {WHOLE: rest}
    for name, one in properties(schema).items():
        text = form.get(PREFIX + name, "")
        kind = _kind(one)
        if kind == "boolean":
            config[name] = bool(text)
        elif text.strip():
            config[name] = _read(kind, text)
    return config


def properties(schema: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """Return the schema of each parameter, with references resolved."""
    found = (schema or {}).get("properties")
    if schema is None or not isinstance(found, dict):
        return {}
    return {str(name): _resolved(one, schema) for name, one in list(found.items())[:MOST]}


def takes_any_key(schema: Mapping[str, Any] | None) -> bool:
    """Return whether the config has keys that the schema does not name."""
    return schema is None or schema.get("additionalProperties") is True


def _required(schema: Mapping[str, Any] | None) -> list[Any]:
    found = (schema or {}).get("required")
    return found if isinstance(found, list) else []


def _resolved(one: Any, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter, with its reference or its only other alternative beside null filled in."""
    found = dict(one) if isinstance(one, dict) else {}
    for _ in range(3):
        others = [each for each in _list(found, "anyOf") if isinstance(each, dict) and each.get("type") != "null"]
        inner = _list(found, "allOf") if len(_list(found, "allOf")) == 1 else others if len(others) == 1 else []
        if inner and isinstance(inner[0], dict):
            found = {**{name: value for name, value in found.items() if name not in ("anyOf", "allOf")}, **inner[0]}
        reference = found.pop("$ref", None)
        if not isinstance(reference, str):
            break
        target = (
            schema.get("$defs", {}).get(reference.rpartition("/")[2]) if isinstance(schema.get("$defs"), dict) else {}
        )
        found = {**(target if isinstance(target, dict) else {}), **found}
    return found


def _list(found: Mapping[str, Any], name: str) -> list[Any]:
    value = found.get(name)
    return value if isinstance(value, list) else []


def _kind(one: Mapping[str, Any]) -> str:
    """Return integer, number, boolean, string, choice, or json for all others."""
    if (options := _list(one, "enum")) and all(isinstance(each, str) for each in options):
        return "choice"
    kind = one.get("type")
    return kind if isinstance(kind, str) and kind in _KINDS else "json"


def _field(name: str, one: Mapping[str, Any], config: Mapping[str, Any], required: bool) -> FormField:
    kind = _kind(one)
    value = config.get(name, one.get("default"))
    made = FormField(PREFIX + name, name, value=_text(value), hint=_hint(one), required=required)
    match kind:
        case "boolean":
            return replace(made, kind="checkbox", value="on" if value is True else "", required=False)
        case "choice":
            options = [str(each) for each in _list(one, "enum")]
            shown = options if required or "default" in one else ["", *options]
            return replace(made, kind="choice", options=[(each, each) for each in shown])
        case "integer" | "number":
            lowest, highest = _number(one.get("minimum")), _number(one.get("maximum"))
            step = 1 if kind == "integer" and "multipleOf" not in one else None
            return replace(made, kind="number", minimum=lowest, maximum=highest, step=step)
        case "string":
            return made
    return replace(made, kind="long", value="" if value is None else _json(value))


def _hint(one: Mapping[str, Any]) -> str:
    """Return the description, the bounds and the default of a parameter."""
    described = one.get("description")
    bounds = [f"{word} {number:g}" for name, word in _BOUNDS if (number := _number(one.get(name))) is not None]
    parts = [" ".join(described.split())] if isinstance(described, str) else []
    parts += [", ".join(bounds)] if bounds else []
    if "default" in one:
        parts.append(f"default {_text(one['default']) if one['default'] is not None else 'none'}")
    if _kind(one) == "json":
        parts.append("as JSON")
    return "; ".join(parts)[:_LONGEST_HINT]


def _number(value: object) -> float | None:
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 else None
    )


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read(kind: str, text: str) -> Any:
    if kind in ("string", "choice"):
        return text
    if kind == "json":
        return _from_json(text)
    text = text.strip()
    if _WHOLE_NUMBER.fullmatch(text):
        return int(text)
    try:
        return float(text) if kind == "number" else text
    except ValueError:
        return text
