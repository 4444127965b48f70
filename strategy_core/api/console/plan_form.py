"""A rollout plan as the fields of a form: texts in percent, days and hours, and the plan that they describe."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from types import UnionType
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError

from strategy_core.domain.gates.base import Gate
from strategy_core.domain.gates.on_metrics import MetricThreshold
from strategy_core.domain.plan import AnyGate, Plan, Stage

ON, INFORMATIONAL, OFF = "on", "informational", "off"
MODE = "mode"
SPARE_STAGES, SPARE_METRICS, SPARE_WINDOWS = 2, 1, 1  # empty rows, to add to the plan
_LONGEST = 60  # characters of a number
_LARGEST = 18  # digits before the point of a whole number
_METRIC = "metric"
_STAGE = re.compile(r"stage-(\d{1,2})-percent")
_WINDOW = re.compile(r"window-(\d{1,2})-opens")
_MODE = re.compile(rf"gate-([a-z_]+|{_METRIC}-\d{{1,2}})-{MODE}")
_PER_CENT = Decimal(100)
_UNITS = {"days": 86_400_000_000, "hours": 3_600_000_000, "minutes": 60_000_000}  # microseconds

Loc = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of a plan as a field of the form.

    Attributes:
        unit: `%` shows a share times 100, and a unit of time shows a duration in it. Others are only shown.
        is_share: it is stored as a fraction.
        kind: of its value.
        optional: None is an empty field.
        limits: of the stored value.
    """

    label: str
    kind: type
    unit: str = ""
    is_share: bool = False
    optional: bool = False
    many: bool = False
    hint: str = ""
    limits: Sequence[object] = ()

    def show(self, value: Any) -> str:
        """Return a stored value as the text of the field."""
        if value is None:
            return ""
        if self.many:
            return ", ".join(self._one(each) for each in value)
        return self._one(value)

    def _one(self, value: Any) -> str:
        if isinstance(value, timedelta):
            return _shown_time(value, self.unit)
        if isinstance(value, bool):
            off = "off" if self.kind is str else ""  # a choice sends its value, a checkbox that is not set sends none
            return "on" if value else off
        if isinstance(value, str):
            return value
        return _shown(Decimal(repr(value)) * (_PER_CENT if self.is_share else 1))

    def read(self, text: str) -> Any:
        """Return the stored value of a text. Raise ValueError with what is wrong."""
        text = text.strip()
        if self.kind is bool:
            return bool(text)
        if self.kind is str:
            return text
        if not text:
            if self.optional:
                return None
            raise ValueError("a value is needed")
        if self.many:
            return [self._number(each) for each in text.split(",")]
        return self._number(text)

    def _number(self, text: str) -> Any:
        found = _decimal(text)
        if self.kind is timedelta:
            try:
                return timedelta(microseconds=int((found * _UNITS[self.unit]).to_integral_value()))
            except OverflowError:
                raise ValueError(f"too many {self.unit}") from None
        if self.kind is int:
            if found != found.to_integral_value() or found.adjusted() > _LARGEST:
                raise ValueError("a whole number is needed")
            return int(found)
        return float(found / _PER_CENT if self.is_share else found)

    def limit(self, *kinds: type) -> float | None:
        """Return the lowest or highest value of the field, as shown, if it is inclusive."""
        for one in self.limits:
            if isinstance(one, kinds):
                bound: Any = getattr(one, "ge", getattr(one, "le", None))
                return None if isinstance(bound, timedelta) else float(bound * (100 if self.is_share else 1))
        return None

    def problem(self, kind: str, context: Mapping[str, Any], text: str) -> str:
        """Return why pydantic refuses a value, in the unit of the field."""
        words = {"greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge")}
        words |= {"less_than": ("below", "lt"), "less_than_equal": ("at most", "le")}
        if kind not in words:
            return text.removeprefix("Value error, ")
        word, name = words[kind]
        bound = next((getattr(one, name) for one in self.limits if hasattr(one, name)), context[name])
        if isinstance(bound, timedelta):
            shown = _shown_time(bound, self.unit)
        else:
            shown = _shown(Decimal(repr(bound)) * (_PER_CENT if self.is_share else 1))
        return f"must be {word} {shown} {self.unit}".strip()


def _decimal(text: str) -> Decimal:
    try:
        found = Decimal(text.strip()) if len(text) <= _LONGEST else None
    except InvalidOperation:
        found = None
    if found is None or not found.is_finite() or abs(found.adjusted()) > 400:
        raise ValueError("a number is needed, such as 0.15")
    return found


def _shown(number: Decimal) -> str:
    number = number.normalize() + 0  # without a minus before 0
    return f"{number:f}" if -10 < number.adjusted() < 15 else str(number)


def _shown_time(span: timedelta, unit: str) -> str:
    whole, size = span // timedelta(microseconds=1), _UNITS[unit]
    exact = Decimal(whole) / size
    rounded = (round(exact, digits) for digits in range(20))
    return _shown(next((each for each in rounded if (each * size).to_integral_value() == whole), exact))


# What the form shows of each model

_WORDS: Mapping[str, tuple[str, str]] = {  # name of a setting -> label, unit
    "in_a_row": ("Errors in a row", ""),
    "share": ("Share of errors", "%"),
    "minimum_decisions": ("Decisions before the share counts", ""),
    "candles": ("Candles without a decision", ""),
    "slots": ("Slots in a row", ""),
    "drawdown": ("Drawdown", "%"),
    "excess": ("Deeper than the active version's by", "% of equity"),
    "relative": ("Deeper than the active version's by", "% of it"),
    "sigmas": ("Noise that is tolerated", "standard deviations"),
    "alpha": ("Chance of a false alarm", "%"),
    "freeze_at": ("E that holds the stage", ""),
    "confirmed_at": ("E on wins that confirms likely harm", ""),
    "minimum_slots": ("Slots, at least", ""),
    "minimum_days": ("Days with slots, at least", ""),
    "confidence": ("Confidence", "%"),
    "tuned_for": ("Slots at which the bound is tightest", ""),
    "patience": ("Patience with its own slots", "days"),
    "own_slots": ("Its own slots, at least", ""),
    "alike_candles": ("Candles alike that prove equal code", ""),
    "own_candles": ("Of these in the rollout", ""),
    "minimum_fidelity": ("Agreement of live and shadow, at least", ""),
    "fidelity_slots": ("Live slots before agreement is judged", ""),
    "tolerated": ("Tolerated", "times"),
    "required": ("Hold the rollout without live orders", ""),
    "against": ("Faults to detect", "times"),
    "minimum_fills": ("Fills of the active version, at least", ""),
    "concentration": ("Sharpness", "users"),
    "metric": ("Name", ""),
    "query": ("PromQL query", ""),
    "minimum": ("At least", ""),
    "maximum": ("At most", ""),
    "minimum_samples": ("Samples before it is judged", ""),
    "consecutive_limit": ("Samples in a row outside", ""),
    "stale_after": ("Newest sample at most", "minutes"),
}
_OF_LATENCY = {"tolerated": ("Tolerated share of slow fills", "%"), "against": ("Shares to detect", "%")}
_OF_DIVERGENCE = {"tolerated": ("Tolerated, against shadow", "times")}
_OWN_WORDS = {"latency": _OF_LATENCY, "divergence": _OF_DIVERGENCE}


def _setting(model: type[BaseModel], name: str, words: tuple[str, str]) -> Setting:
    found = model.model_fields[name]
    label, unit = words
    kind, optional = _kind(found.annotation)
    many = get_origin(kind) is tuple
    return Setting(
        label,
        get_args(kind)[0] if many else kind,
        unit,
        is_share=unit.startswith("%"),
        optional=optional,
        many=many,
        hint=(found.description or "").removeprefix("seconds; ").removeprefix("seconds"),
        limits=[each for each in found.metadata if isinstance(each, Ge | Gt | Le | Lt)],
    )


def _kind(annotation: Any) -> tuple[Any, bool]:
    """Return the type of a field, and whether it may be None."""
    if isinstance(annotation, UnionType):
        return next(each for each in get_args(annotation) if each is not type(None)), True
    return annotation, False


def _settings_of(gate: type[Gate]) -> dict[str, Setting]:
    kind = kind_of(gate)
    return {
        name: _setting(gate, name, _OWN_WORDS.get(kind, {}).get(name) or _WORDS.get(name, (name.replace("_", " "), "")))
        for name in gate.model_fields
        if name not in ("kind", "dry_run")
    }


def kind_of(gate: type[Gate]) -> str:
    """Return the word for a kind of gate, such as `harm`."""
    return str(gate.model_fields["kind"].default)


_POSITIVE = [Gt(timedelta(0))]
GATES: Mapping[str, type[Gate]] = {kind_of(each): each for each in get_args(get_args(AnyGate)[0])}
GATE_SETTINGS: Mapping[str, Mapping[str, Setting]] = {kind: _settings_of(gate) for kind, gate in GATES.items()}
STAGE_SETTINGS: Mapping[str, Setting] = {
    "percent": Setting("Users", float, "%", limits=[Le(100)]),
    "capital": Setting("Of all capital, at most", float, "%", optional=True, limits=[Le(100)]),
    "days": Setting("At least", timedelta, "days", limits=_POSITIVE),
    "r": Setting("Margin a slot", float, "R", limits=[Le(1)]),
    "r_year": Setting("Margin a year", float, "R", limits=[Ge(0), Le(1_000)]),
    "approve": Setting("Asks for approval", bool),
    "win": Setting("Margin of slots won", float, "%", is_share=True, optional=True, limits=[Le(0.5)]),
    "edge": Setting("Margin of the active's mean", float, "%", is_share=True, limits=[Ge(0)]),
}
PLAN_SETTINGS: Mapping[str, Setting] = {
    "maximum_stage_time": Setting("Longest time of a stage", timedelta, "days", limits=_POSITIVE),
    "on_inconclusive": Setting("If it ends without a clear answer", str),
    "bake": Setting("Bake after the promotion", timedelta, "days", limits=_POSITIVE),
    "watch": Setting("After the bake, if it is proven to earn less", str),
    "on_rollback": Setting("Its open positions, if it is rolled back", str),
    "blind_limit": Setting("Without evidence, roll back after", timedelta, "hours", limits=_POSITIVE),
    "late_candles": Setting("Candles that may be late", int, limits=[Ge(1), Le(1_000)]),
    "largest_account_percent": Setting(
        "Larger accounts wait for 100 %", float, "% of all capital", optional=True, limits=[Le(100)]
    ),
    "risk_scale": Setting("If it risks more than the active version", str),
    "open_risk_percent": Setting(
        "Hold the next stage if it has more", float, "% of the open risk", optional=True, limits=[Le(100)]
    ),
}
WINDOW_SETTINGS: Mapping[str, Setting] = {
    "days": Setting("Days", str),
    "opens": Setting("From", str),
    "closes": Setting("To", str),
    "time_zone": Setting("Time zone", str),
    "market_open": Setting("And the market is open", str),
}
_NO_CAP = 100.0  # as the form shows a stage without a cap on capital. An empty field is the percent of users
_MARGINS = {"pnl_r": "r", "pnl_r_per_year": "r_year", "win": "win", "pnl_of_edge": "edge"}


# Plan -> fields


def fields_of(plan: Plan) -> dict[str, str]:
    """Return the texts of a form that describe *plan*. Gates that it leaves out are `off`."""
    shown: dict[str, str] = {name: one.show(getattr(plan, name)) for name, one in PLAN_SETTINGS.items()}
    for row, stage in enumerate(plan.stages):
        shown |= {f"stage-{row}-{name}": text for name, text in _stage_fields(stage).items()}
        if stage.percent in plan.approve_before:
            shown[f"stage-{row}-approve"] = "on"
    for row, window in enumerate(plan.advance_windows):
        texts = {**window.model_dump(), "days": ", ".join(window.days), "market_open": window.market_open or ""}
        shown |= {f"window-{row}-{name}": texts[name] for name in WINDOW_SETTINGS}
    metrics = 0
    for gate in plan.gates:
        key: str = gate.kind
        if isinstance(gate, MetricThreshold):
            key, metrics = f"{_METRIC}-{metrics}", metrics + 1
        shown |= _gate_fields(key, gate, INFORMATIONAL if gate.dry_run else ON)
    for kind, model in GATES.items():
        if kind != _METRIC and f"gate-{kind}-{MODE}" not in shown:
            shown |= _gate_fields(kind, model(kind=kind), OFF)
    return shown


def _stage_fields(stage: Stage) -> dict[str, str]:
    margins = {short: getattr(stage.margins, name) for name, short in _MARGINS.items()}
    cap = stage.capital_percent or _NO_CAP
    shown = None if cap == stage.percent else cap
    values = {"percent": stage.percent, "capital": shown, "days": stage.minimum_time, **margins}
    return {name: STAGE_SETTINGS[name].show(value) for name, value in values.items()}


def _gate_fields(key: str, gate: Gate, mode: str) -> dict[str, str]:
    texts = {name: one.show(getattr(gate, name)) for name, one in GATE_SETTINGS[gate.kind].items()}
    return {f"gate-{key}-{MODE}": mode, **{f"gate-{key}-{name}": text for name, text in texts.items() if text}}


# Fields -> plan


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """The plan of a form, or None with the *problems* by field. The field `plan` is the plan as a whole."""

    plan: Plan | None
    problems: Mapping[str, str] = field(default_factory=dict)


def stage_rows(given: Mapping[str, str]) -> list[int]:
    """Return the numbers of the rows that describe a stage. A row without a percent is none."""
    rows = [int(found[1]) for name, text in given.items() if (found := _STAGE.fullmatch(name)) and text.strip()]
    return sorted(set(rows))


def window_rows(given: Mapping[str, str]) -> list[int]:
    """Return the numbers of the rows that describe a release window. A row without a start is none."""
    rows = [int(found[1]) for name, text in given.items() if (found := _WINDOW.fullmatch(name)) and text.strip()]
    return sorted(set(rows))


def gate_keys(given: Mapping[str, str]) -> list[str]:
    """Return the keys of the gates in a form, such as `harm` or `metric-0`, in its order."""
    return [found[1] for name in given if (found := _MODE.fullmatch(name)) and _kind_of_key(found[1]) in GATES]


def _kind_of_key(key: str) -> str:
    return _METRIC if key.startswith(f"{_METRIC}-") else key


def settings_of(key: str) -> Mapping[str, Setting]:
    """Return the settings of the gate with a key."""
    return GATE_SETTINGS[_kind_of_key(key)]


def whole_form(given: Mapping[str, str]) -> dict[str, str]:
    """Return a form with the standard plan's texts where *given* has none. Without a stage all are the standard's.

    A gate that a link leaves out is not off: it is as in the standard plan.
    """
    standard = fields_of(Plan())
    if not any(_STAGE.fullmatch(name) for name in given):
        return standard
    known = set(gate_keys(given))
    missing = [key for key in gate_keys(standard) if key not in known]
    parts = tuple(f"gate-{key}-" for key in missing)
    added = {name: text for name, text in standard.items() if name.startswith(parts) or name in PLAN_SETTINGS}
    return {**added, **given}


def read_fields(given: Mapping[str, str]) -> ReadPlan:
    """Return the plan that the texts of a form describe. Stages may come in any order."""
    problems: dict[str, str] = {}
    names: dict[Loc, str] = {}
    at: Loc
    data: dict[str, Any] = {}
    for name, one in PLAN_SETTINGS.items():
        _read(data, name, one, given, name, problems)
        names[(name,)] = name
    data["stages"], data["approve_before"] = [], []
    for number, (row, stage, needs_approval) in enumerate(sorted(_stages(given, problems), key=_percent_of)):
        data["stages"].append(stage)
        if needs_approval and "percent" in stage:
            data["approve_before"].append(stage["percent"])
        names |= {("stages", number, name): f"stage-{row}-{short}" for name, short in _STAGE_FIELDS.items()}
        names |= {("stages", number, "margins", name): f"stage-{row}-{short}" for name, short in _MARGINS.items()}
    data["advance_windows"] = []
    for number, row in enumerate(window_rows(given)):
        data["advance_windows"].append(_window(row, given))
        at = ("advance_windows", number)
        names |= {(*at, name): f"window-{row}-{name}" for name in WINDOW_SETTINGS} | {at: f"window-{row}-opens"}
    data["gates"] = []
    for key in gate_keys(given):
        gate = _gate(key, given, problems)
        if gate is None:
            continue
        at = ("gates", len(data["gates"]), gate["kind"])
        names |= {(*at, name): f"gate-{key}-{name}" for name in settings_of(key)} | {at: f"gate-{key}-{MODE}"}
        data["gates"].append(gate)
    if problems:
        return ReadPlan(None, problems)
    try:
        return ReadPlan(Plan.model_validate(data))
    except ValidationError as refused:
        for field_name, text in _problems(refused, names):
            problems.setdefault(field_name, text)  # later ones of a field follow from its first
        return ReadPlan(None, problems)


_STAGE_FIELDS = {"percent": "percent", "capital_percent": "capital", "minimum_time": "days"}


def _percent_of(read: tuple[int, Mapping[str, Any], bool]) -> float:
    return float(read[1].get("percent", 0.0))


def _stages(given: Mapping[str, str], problems: dict[str, str]) -> Iterator[tuple[int, dict[str, Any], bool]]:
    for row in stage_rows(given):
        stage: dict[str, Any] = {"margins": {}}
        for name, short in _STAGE_FIELDS.items():
            if short == "capital" and not given.get(f"stage-{row}-capital", "").strip():
                continue  # the percent of users
            _read(stage, name, STAGE_SETTINGS[short], given, f"stage-{row}-{short}", problems)
        for name, short in _MARGINS.items():
            if short in ("r", "r_year") or given.get(f"stage-{row}-{short}", "").strip():
                _read(stage["margins"], name, STAGE_SETTINGS[short], given, f"stage-{row}-{short}", problems)
        yield row, stage, bool(given.get(f"stage-{row}-approve"))


def _window(row: int, given: Mapping[str, str]) -> dict[str, Any]:
    texts = {name: given.get(f"window-{row}-{name}", "").strip() for name in WINDOW_SETTINGS}
    days = [each.strip().lower() for each in texts["days"].split(",") if each.strip()]
    return {**texts, "days": days, "market_open": texts["market_open"] or None}


def _gate(key: str, given: Mapping[str, str], problems: dict[str, str]) -> dict[str, Any] | None:
    """Return a gate as data, or None if it is off. A metric without a name and a query is none."""
    mode = given[f"gate-{key}-{MODE}"]
    texts = {name: given.get(f"gate-{key}-{name}", "") for name in settings_of(key)}
    unused = key != _kind_of_key(key) and not texts["metric"].strip() and not texts["query"].strip()
    if mode == OFF or unused:
        return None
    if mode not in (ON, INFORMATIONAL):
        problems[f"gate-{key}-{MODE}"] = f"one of {ON}, {INFORMATIONAL} and {OFF} is needed"
    gate: dict[str, Any] = {"kind": _kind_of_key(key), "dry_run": mode == INFORMATIONAL}
    for name, one in settings_of(key).items():
        _read(gate, name, one, given, f"gate-{key}-{name}", problems)
    return gate


def _read(
    data: dict[str, Any],
    name: str,
    setting: Setting,
    given: Mapping[str, str],
    field_name: str,
    problems: dict[str, str],
) -> None:
    try:
        data[name] = setting.read(given.get(field_name, ""))
    except ValueError as wrong:
        problems[field_name] = str(wrong)


def _problems(refused: ValidationError, names: Mapping[Loc, str]) -> Iterator[tuple[str, str]]:
    for each in refused.errors():
        location = each["loc"]
        known = next((location[:end] for end in range(len(location), 0, -1) if location[:end] in names), None)
        if known is None:
            yield "plan", each["msg"].removeprefix("Value error, ")
        else:
            setting = setting_of(names[known])
            nothing = each["type"] in ("too_short", "string_pattern_mismatch") and not each["input"]
            text = "a value is needed" if nothing else each["msg"].removeprefix("Value error, ")
            yield names[known], text if setting is None else setting.problem(each["type"], each.get("ctx", {}), text)


def setting_of(field_name: str) -> Setting | None:
    """Return the setting that a field shows, if it shows one."""
    if field_name in PLAN_SETTINGS:
        return PLAN_SETTINGS[field_name]
    place, _, name = field_name.rpartition("-")
    if place.startswith("stage-"):
        return STAGE_SETTINGS.get(name)
    if place.startswith("window-"):
        return WINDOW_SETTINGS.get(name)
    return settings_of(place.removeprefix("gate-")).get(name)
