"""Aggregate two versions' decisions and outcomes inside the database, without transferring their rows.

Most candles are "hold" for both versions. They are not grouped: their number is what remains of a version's rows.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from math import ceil
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Double,
    Integer,
    Select,
    SmallInteger,
    Text,
    TextClause,
    and_,
    case,
    cast,
    extract,
    false,
    func,
    inspect,
    literal,
    literal_column,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import aliased
from sqlalchemy.sql.expression import Grouping, Join
from sqlalchemy.types import NullType
from sqlmodel import Session, col

from strategy_core.domain.comparison import Cell
from strategy_core.domain.indicators import Runs
from strategy_core.domain.performance import ClosedTrades
from strategy_core.domain.strategy import INSUFFICIENT_HISTORY, Action
from strategy_core.store.tables import LIVE, REPLAYED, SIGNALS, EvidenceTables

_DAY_S = 86_400
_APART = 10**11  # offset between symbols, in seconds, when their times share one axis
_AS_STORED = "%Y-%m-%d %H:%M:%S.000000"  # how SQLite stores a datetime


class MarkedSpan(NamedTuple):
    """Symbols whose marks count on the candles that opened in [start, end]."""

    symbols: tuple[str, ...]
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """Two versions of a strategy on some symbols, over the candles that opened in [start, end).

    Attributes:
        regimes: by symbol, from *start* on. None to compare without regimes.
        tables: the log of live decisions, or replays.
    """

    strategy_name: str
    shadow: str
    active: str
    symbols: Sequence[str]
    start: datetime
    end: datetime
    regimes: Mapping[str, Runs] | None = None
    tables: EvidenceTables = LIVE


@dataclass(frozen=True, slots=True)
class _Aliases:
    """The decisions and trades of the two versions, and the marks of either."""

    ours: Any
    theirs: Any
    rows: Any
    our_trade: Any
    their_trade: Any
    mark: Any


@cache
def _aliases(tables: EvidenceTables) -> _Aliases:
    ours, theirs = aliased(tables.log), aliased(tables.log)
    rows = inspect(ours).selectable
    return _Aliases(ours, theirs, rows, aliased(tables.outcome), aliased(tables.outcome), tables.mark)


def read_cells(session: Session, pair: ComparedPair) -> Iterator[Cell]:
    """Yield cells of joint decisions. Each candle on which a version has a row is in exactly one cell."""
    replayed = pair.tables is REPLAYED
    for part in _parts(session, pair):
        ours, theirs = (_rows_of(session, part, version) for version in (part.shadow, part.active))
        held, alone = ours.copy(), Counter[tuple[str, str]]()
        for paired, cell in not_held(session, part):
            yield cell
            held[cell.symbol, cell.regime] -= cell.candles
            if not paired:
                alone[cell.symbol, cell.regime] += cell.candles
        for (symbol, regime), candles in held.items():
            if candles:
                yield Cell(symbol, regime, 0, Action.HOLD, Action.HOLD, candles, replayed=replayed)
        for (symbol, regime), candles in (theirs - (ours - alone)).items():
            yield Cell(symbol, regime, 0, None, None, candles)


def marked_spans(session: Session, pair: ComparedPair, horizon: int) -> list[MarkedSpan]:
    """Return the candles on which the marks of both versions are of trades that both could open.

    These are the candles from the first to the last one that both have decided. Where one version began earlier, it
    may still hold trades of its own for *horizon* candles, so these are left out. Marks are not stored by trade. Where
    both decided last on the same candle, the marks of its trades count.
    """
    spans: dict[tuple[datetime, datetime], list[str]] = {}
    for symbol in pair.symbols:
        if (span := _marked_span(session, pair, symbol, horizon)) is not None:
            spans.setdefault(span, []).append(symbol)
    return [MarkedSpan(tuple(symbols), *span) for span, symbols in spans.items()]


def _marked_span(session: Session, pair: ComparedPair, symbol: str, horizon: int) -> tuple[datetime, datetime] | None:
    log = _aliases(pair.tables).ours
    moment = col(log.timestamp)

    def nth(version: str, *conditions: Any, order: Any = moment, n: int = 0) -> datetime | None:
        rows = select(moment).where(*_named(log, pair, version), col(log.symbol) == symbol, *conditions)
        found: datetime | None = session.execute(rows.order_by(order).offset(n).limit(1)).scalar()
        return found

    decided = _decision(log).in_(list(Action))
    first, other = (nth(version, decided) for version in (pair.shadow, pair.active))
    last, other_last = (nth(version, decided, order=moment.desc()) for version in (pair.shadow, pair.active))
    if first is None or other is None or last is None or other_last is None:
        return None
    start: datetime | None = first
    if first != other:
        later = pair.shadow if first > other else pair.active
        start = nth(later, moment >= max(first, other), n=horizon)
    if start is None:
        return None
    start, end = max(start, pair.start), pair.end if last == other_last else min(last, other_last, pair.end)
    return (start, end) if start <= end and start < pair.end else None


def max_drawdown(
    session: Session, marked: Sequence[tuple[ComparedPair, Sequence[MarkedSpan]]], version: str, risk_fraction: float
) -> float:
    """Return `performance.max_drawdown` of the version's marks, or 0 without any.

    Computed in the database: transferring a number per candle takes as long as the rest of a comparison.

    Args:
        marked: a pair with its `marked_spans`, or a replayed one and the live one after it, whose marks then make one
            curve.
    """
    each = [_marks(pair, spans, version) for pair, spans in marked]
    marks = (each[0] if len(each) == 1 else union_all(*each)).subquery()  # their periods do not overlap
    so_far: dict[str, Any] = {"order_by": marks.c.at, "rows": (None, 0)}
    curve = select(marks.c.at, (1.0 + risk_fraction * func.sum(marks.c.r).over(**so_far)).label("equity")).subquery()
    so_far["order_by"] = curve.c.at
    peaks = select(curve.c.equity, func.max(curve.c.equity).over(**so_far).label("peak")).subquery()
    peak = case((peaks.c.peak < 1.0, 1.0), else_=peaks.c.peak)  # the curve starts at 1
    return session.execute(select(func.max((peak - peaks.c.equity) / peak))).scalar_one() or 0.0


def _marks(pair: ComparedPair, spans: Sequence[MarkedSpan], version: str) -> Select[Any]:
    mark = pair.tables.mark
    moment = col(mark.timestamp)
    within = (and_(col(mark.symbol).in_(each.symbols), moment >= each.start, moment <= each.end) for each in spans)
    return (
        select(moment.label("at"), func.sum(mark.r).label("r"))
        .where(*_arm(mark, pair, version), or_(false(), *within))
        .group_by(moment)
    )


def _parts(session: Session, pair: ComparedPair) -> list[ComparedPair]:
    """Return the pair split into queries: with regimes SQLite is queried by symbol, PostgreSQL once for all."""
    if pair.regimes is None or _on_postgresql(session):
        return [pair]
    return [replace(pair, symbols=[symbol]) for symbol in pair.symbols]


def _rows_of(session: Session, pair: ComparedPair, version: str) -> Counter[tuple[str, str]]:
    """Return the number of candles with a row of the version, by symbol and regime."""
    log, ours = _by_regime(session, pair), _aliases(pair.tables).ours
    query = (
        select(col(ours.symbol), log.code, func.count())
        .select_from(log.rows)
        .where(*_named(ours, pair, version), *log.within, col(ours.symbol).in_(pair.symbols))
        .group_by(*_columns(2, pair))
    )
    counts = Counter[tuple[str, str]]()
    for symbol, code, candles in session.execute(query):
        counts[symbol, log.names[code]] += candles
    return counts


def not_held(session: Session, pair: ComparedPair) -> Iterator[tuple[bool, Cell]]:
    """Yield (active has a row, cell) for candles with a row of the shadow on which not both held."""
    log, of, replayed = _by_regime(session, pair), _aliases(pair.tables), pair.tables is REPLAYED
    keys = (
        col(of.ours.symbol),
        log.code,
        cast(extract("epoch", col(of.ours.timestamp)), BigInteger) // _DAY_S,
        _decision(of.ours),
        _decision(of.theirs),
    )
    closed = and_(_closed(of.ours, of.our_trade), _closed(of.theirs, of.their_trade))
    query = (
        select(*keys, func.count(), func.count().filter(closed))
        .add_columns(*_trades(of.our_trade, closed), *_trades(of.their_trade, closed))
        .select_from(
            log.rows.outerjoin(of.theirs, and_(*_same_candle(of.theirs, of.ours), *_arm(of.theirs, pair, pair.active)))
            .outerjoin(of.our_trade, _trade_of(of.ours, of.our_trade, pair, pair.shadow))
            .outerjoin(of.their_trade, _trade_of(of.theirs, of.their_trade, pair, pair.active))
        )
        .where(
            *_named(of.ours, pair, pair.shadow),
            *log.within,
            col(of.ours.symbol).in_(pair.symbols),
            or_(_not_hold(of.ours), _not_hold(of.theirs), col(of.theirs.decision).is_(None)),
        )
        .group_by(*_columns(len(keys), pair))
    )
    for symbol, code, day, shadow, active, candles, booked, *sums in session.execute(query):
        regime, half = log.names[code], len(sums) // 2
        actions = (_action(shadow), _action(active))
        trades = (_added(sums[:half]), _added(sums[half:]))
        yield active is not None, Cell(symbol, regime, day, *actions, candles, booked, *trades, replayed=replayed)


@dataclass(frozen=True, slots=True)
class _Log:
    """The shadow version's rows. *code* is the index of their regime in *names*, *within* limits them to the period."""

    rows: Any
    code: ColumnElement[int]
    names: Sequence[str]
    within: tuple[ColumnElement[bool], ...]


def _by_regime(session: Session, pair: ComparedPair) -> _Log:
    """Return the log joined with regimes."""
    of = _aliases(pair.tables)
    within = _within(of.ours, pair)
    if pair.regimes is None:
        return _Log(of.rows, literal_column("0", SmallInteger), [""], within)
    names = sorted({label for symbol in pair.symbols for label in set(pair.regimes[symbol].labels)})
    codes = {name: code for code, name in enumerate(names)}
    regimes = {symbol: pair.regimes[symbol] for symbol in pair.symbols}
    if _on_postgresql(session):
        return _Log(*_by_bisection(of, regimes, codes), names, within)
    (runs,) = regimes.values()
    return _Log(
        *_by_range(of, runs, codes, pair.end), names, ()
    )  # with two lower bounds SQLite might use the wider one


def _by_bisection(
    of: _Aliases, regimes: Mapping[str, Runs], codes: Mapping[str, int]
) -> tuple[Any, ColumnElement[int]]:
    """Return the log and its codes on PostgreSQL: each row is bisected among the starts of all symbols' runs."""
    line = _array(Double, ((place * _APART + runs.since).tolist() for place, runs in enumerate(regimes.values(), 1)))
    each = ([codes[label] for label in runs.labels] for runs in regimes.values())
    symbols = func.unnest(literal(list(regimes), ARRAY(Text))).table_valued("name", with_ordinality="place")
    symbols = symbols.render_derived()
    moment = symbols.c.place * _APART + func.date_part("epoch", col(of.ours.timestamp))
    stretch = func.width_bucket(moment, line, type_=Integer)  # starts at 1
    return symbols.join(of.rows, col(of.ours.symbol) == symbols.c.name), Grouping(_array(SmallInteger, each))[stretch]


def _array(of: type[Any], parts: Iterable[Sequence[int]]) -> ColumnElement[Any]:
    """Return a long array, sent as one string: a million Python numbers would take a hundred megabytes.

    The string is an untyped literal, so that the server parses it once. It would cast a typed one for every row.
    """
    return cast(literal("{" + ",".join(",".join(map(str, part)) for part in parts) + "}", NullType()), ARRAY(of))


def _by_range(of: _Aliases, runs: Runs, codes: Mapping[str, int], end: datetime) -> tuple[Any, ColumnElement[int]]:
    """Return one symbol's log and its codes on SQLite: the rows of each run are a range of the key."""
    since = runs.since.tolist()
    until = [*since[1:], ceil(end.timestamp())]
    stretches = zip(since, until, (codes[label] for label in runs.labels), strict=True)
    each = func.json_each(json.dumps(list(stretches))).table_valued("value")
    first, last, code = (func.json_extract(each.c.value, f"$[{place}]") for place in range(3))
    within = and_(
        col(of.ours.timestamp) >= func.strftime(_AS_STORED, first, "unixepoch"),
        col(of.ours.timestamp) < func.strftime(_AS_STORED, last, "unixepoch"),
    )
    return _InOrder(each, of.rows, within), code


class _InOrder(Join):
    """A join that SQLite runs from left to right. Otherwise it would scan all runs for each row."""

    inherit_cache = True


@compiles(_InOrder)
def _in_order(join: Join, compiler: Any, **options: Any) -> str:
    given = options | {"asfrom": True}
    left, right = (compiler.process(side, **given) for side in (join.left, join.right))
    return f"{left} CROSS JOIN {right} ON {compiler.process(join.onclause, **options)}"


def _arm(table: Any, pair: ComparedPair, version: str) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on a version's rows in the period, which each table needs to be read by range."""
    return (*_named(table, pair, version), *_within(table, pair))


def _named(table: Any, pair: ComparedPair, version: str) -> tuple[ColumnElement[bool], ...]:
    return col(table.strategy_name) == pair.strategy_name, col(table.version) == version


def _within(table: Any, pair: ComparedPair) -> tuple[ColumnElement[bool], ...]:
    return col(table.timestamp) >= pair.start, col(table.timestamp) < pair.end


def _same_candle(table: Any, other: Any) -> tuple[ColumnElement[bool], ...]:
    return col(table.symbol) == col(other.symbol), col(table.timestamp) == col(other.timestamp)


def _trade_of(log: Any, trade: Any, pair: ComparedPair, version: str) -> ColumnElement[bool]:
    return and_(col(log.decision).in_(SIGNALS), *_same_candle(trade, log), *_arm(trade, pair, version))


def _decision(log: Any) -> ColumnElement[str]:
    return case((col(log.reason) == INSUFFICIENT_HISTORY, ""), else_=col(log.decision))


def _not_hold(log: Any) -> ColumnElement[bool]:
    return or_(col(log.decision) != Action.HOLD.value, col(log.reason) == INSUFFICIENT_HISTORY)


def _closed(log: Any, trade: Any) -> ColumnElement[bool]:
    return or_(col(log.decision).not_in(SIGNALS), col(trade.r_multiple).is_not(None))


def _trades(trade: Any, closed: ColumnElement[bool]) -> tuple[ColumnElement[Any], ...]:
    """Return the fields of `ClosedTrades` over the closed trades (NULL without any)."""
    r = col(trade.r_multiple)
    return (
        func.count(r).filter(closed),
        func.count(r).filter(and_(closed, r > 0)),
        func.sum(r).filter(closed),
        func.sum(col(trade.pnl)).filter(closed),
        func.sum(r).filter(and_(closed, r > 0)),
        func.sum(-r).filter(and_(closed, r < 0)),
    )


def _added(sums: Sequence[Any]) -> ClosedTrades:
    return ClosedTrades(*(each or 0 for each in sums[:2]), *(each or 0.0 for each in sums[2:]))


def _action(decision: str | None) -> Action | None:
    return Action(decision) if decision in set(Action) else None


def _columns(count: int, pair: ComparedPair) -> list[TextClause]:
    """Return the first columns of a query by position: repeated expressions would get separate parameters."""
    # without regimes the second column is a constant, and grouping by it takes SQLite three times as long
    return [text(str(place)) for place in range(1, count + 1) if place != 2 or pair.regimes is not None]


def _on_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"
