"""What two versions' logs and outcomes add up to, added up by the database; it hands over no row of a log.

Candles that both held, which most are, are neither sorted nor sent: they are what is left of the rows of a version.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import ceil
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Double,
    Integer,
    SmallInteger,
    Text,
    TextClause,
    and_,
    case,
    cast,
    extract,
    func,
    inspect,
    literal,
    literal_column,
    or_,
    select,
    text,
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
from strategy_core.store.tables import SIGNALS, EquityMark, Outcome, ShadowDecisionLog

_DAY_S = 86_400
_APART = 10**11  # seconds from one symbol to the next, where all their times stand on one line
_AS_STORED = "%Y-%m-%d %H:%M:%S.000000"  # a moment as SQLite has it
_OURS, _THEIRS = aliased(ShadowDecisionLog), aliased(ShadowDecisionLog)
_ROWS: Any = inspect(_OURS).selectable  # type: ignore[union-attr]
_OUR_TRADE, _THEIR_TRADE = aliased(Outcome), aliased(Outcome)


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """Two versions of a strategy on some symbols, over the candles that opened in [start, end).

    Attributes:
        regimes: each symbol's, from *start* on; None where nobody asks for them.
    """

    strategy_name: str
    shadow: str
    active: str
    symbols: Sequence[str]
    start: datetime
    end: datetime
    regimes: Mapping[str, Runs] | None = None


def read_cells(session: Session, pair: ComparedPair) -> Iterator[Cell]:
    """Yield what the two said together: each candle that at least one has a row on is in one cell."""
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
                yield Cell(symbol, regime, 0, Action.HOLD, Action.HOLD, candles)
        for (symbol, regime), candles in (theirs - (ours - alone)).items():
            yield Cell(symbol, regime, 0, None, None, candles)


def max_drawdown(session: Session, pair: ComparedPair, version: str, risk_fraction: float) -> float:
    """Return `performance.max_drawdown` of the version's marks on candles that it has a row on; 0 without any.

    By the database: a number for each candle would have to be handed over, which takes as long as the rest.
    """
    marks = (
        select(col(EquityMark.timestamp).label("at"), func.sum(EquityMark.r).label("r"))
        .select_from(EquityMark)
        .join(_OURS, and_(*_same_candle(_OURS, EquityMark), *_arm(_OURS, pair, version)))
        .where(*_arm(EquityMark, pair, version), col(EquityMark.symbol).in_(pair.symbols))
        .group_by(col(EquityMark.timestamp))
        .subquery()
    )
    so_far: dict[str, Any] = {"order_by": marks.c.at, "rows": (None, 0)}
    curve = select(marks.c.at, (1.0 + risk_fraction * func.sum(marks.c.r).over(**so_far)).label("equity")).subquery()
    so_far["order_by"] = curve.c.at
    peaks = select(curve.c.equity, func.max(curve.c.equity).over(**so_far).label("peak")).subquery()
    peak = case((peaks.c.peak < 1.0, 1.0), else_=peaks.c.peak)  # the start is one
    return session.execute(select(func.max((peak - peaks.c.equity) / peak))).scalar_one() or 0.0


def _parts(session: Session, pair: ComparedPair) -> list[ComparedPair]:
    """Return the pair as it is asked about: on SQLite symbol by symbol, if a statement takes all the stretches of one.

    PostgreSQL reads the log's pages once for all symbols.
    """
    if pair.regimes is None or _on_postgresql(session):
        return [pair]
    return [replace(pair, symbols=[symbol]) for symbol in pair.symbols]


def _rows_of(session: Session, pair: ComparedPair, version: str) -> Counter[tuple[str, str]]:
    """Return how many candles a version has a row on, by symbol and regime."""
    log = _by_regime(session, pair)
    query = (
        select(col(_OURS.symbol), log.code, func.count())
        .select_from(log.rows)
        .where(*_named(_OURS, pair, version), *log.within, col(_OURS.symbol).in_(pair.symbols))
        .group_by(*_columns(2, pair))
    )
    counts = Counter[tuple[str, str]]()
    for symbol, code, candles in session.execute(query):
        counts[symbol, log.names[code]] += candles
    return counts


def not_held(session: Session, pair: ComparedPair) -> Iterator[tuple[bool, Cell]]:
    """Yield what the two said where the shadow has a row and not both held; and whether the active has one."""
    log = _by_regime(session, pair)
    keys = (
        col(_OURS.symbol),
        log.code,
        cast(extract("epoch", col(_OURS.timestamp)), BigInteger) // _DAY_S,
        _said(_OURS),
        _said(_THEIRS),
    )
    closed = and_(_closed(_OURS, _OUR_TRADE), _closed(_THEIRS, _THEIR_TRADE))
    query = (
        select(*keys, func.count(), func.count().filter(closed))
        .add_columns(*_trades(_OUR_TRADE, closed), *_trades(_THEIR_TRADE, closed))
        .select_from(
            log.rows.outerjoin(_THEIRS, and_(*_same_candle(_THEIRS, _OURS), *_arm(_THEIRS, pair, pair.active)))
            .outerjoin(_OUR_TRADE, _trade_of(_OURS, _OUR_TRADE, pair, pair.shadow))
            .outerjoin(_THEIR_TRADE, _trade_of(_THEIRS, _THEIR_TRADE, pair, pair.active))
        )
        .where(
            *_named(_OURS, pair, pair.shadow),
            *log.within,
            col(_OURS.symbol).in_(pair.symbols),
            or_(_not_hold(_OURS), _not_hold(_THEIRS), col(_THEIRS.decision).is_(None)),
        )
        .group_by(*_columns(len(keys), pair))
    )
    for symbol, code, day, shadow, active, candles, booked, *sums in session.execute(query):
        regime, half = log.names[code], len(sums) // 2
        said = (_action(shadow), _action(active))
        trades = (_added(sums[:half]), _added(sums[half:]))
        yield active is not None, Cell(symbol, regime, day, *said, candles, booked, *trades)


@dataclass(frozen=True, slots=True)
class _Log:
    """The rows of `_OURS`; *code* is their regime's place in *names*, *within* what holds for those in the period."""

    rows: Any
    code: ColumnElement[int]
    names: Sequence[str]
    within: tuple[ColumnElement[bool], ...]


def _by_regime(session: Session, pair: ComparedPair) -> _Log:
    """Return the log with regimes looked up."""
    within = _within(_OURS, pair)
    if pair.regimes is None:
        return _Log(_ROWS, literal_column("0", SmallInteger), [""], within)
    names = sorted({label for symbol in pair.symbols for label in set(pair.regimes[symbol].labels)})
    codes = {name: code for code, name in enumerate(names)}
    told = {symbol: pair.regimes[symbol] for symbol in pair.symbols}
    if _on_postgresql(session):
        return _Log(*_by_halving(told, codes), names, within)
    (of_one,) = told.values()
    return _Log(*_by_range(of_one, codes, pair.end), names, ())  # of two lower bounds it might take the wide one


def _by_halving(told: Mapping[str, Runs], codes: Mapping[str, int]) -> tuple[Any, ColumnElement[int]]:
    """Return the log and its codes on PostgreSQL: each row is looked up among the first moments of all symbols."""
    line = _array(Double, ((place * _APART + runs.since).tolist() for place, runs in enumerate(told.values(), 1)))
    each = ([codes[label] for label in runs.labels] for runs in told.values())
    symbols = func.unnest(literal(list(told), ARRAY(Text))).table_valued("name", with_ordinality="place")
    symbols = symbols.render_derived()
    moment = symbols.c.place * _APART + func.date_part("epoch", col(_OURS.timestamp))
    stretch = func.width_bucket(moment, line, type_=Integer)  # from 1 on
    return symbols.join(_ROWS, col(_OURS.symbol) == symbols.c.name), Grouping(_array(SmallInteger, each))[stretch]


def _array(of: type[Any], parts: Iterable[Sequence[int]]) -> ColumnElement[Any]:
    """Return a long array, handed over as one text: a million numbers of Python's take a hundred megabytes.

    The text has no type of its own, so that the server reads it once; a cast of a text it would do for every row.
    """
    return cast(literal("{" + ",".join(",".join(map(str, part)) for part in parts) + "}", NullType()), ARRAY(of))


def _by_range(runs: Runs, codes: Mapping[str, int], end: datetime) -> tuple[Any, ColumnElement[int]]:
    """Return one symbol's log and its codes on SQLite: the rows of each stretch are a range of the key."""
    since = runs.since.tolist()
    until = [*since[1:], ceil(end.timestamp())]
    stretches = zip(since, until, (codes[label] for label in runs.labels), strict=True)
    each = func.json_each(json.dumps(list(stretches))).table_valued("value")
    first, last, code = (func.json_extract(each.c.value, f"$[{place}]") for place in range(3))
    within = and_(
        col(_OURS.timestamp) >= func.strftime(_AS_STORED, first, "unixepoch"),
        col(_OURS.timestamp) < func.strftime(_AS_STORED, last, "unixepoch"),
    )
    return _InOrder(each, _ROWS, within), code


class _InOrder(Join):
    """A join that SQLite takes from left to right; left to itself it looks through all stretches for each row."""

    inherit_cache = True


@compiles(_InOrder)
def _in_order(join: Join, compiler: Any, **options: Any) -> str:
    given = options | {"asfrom": True}
    left, right = (compiler.process(side, **given) for side in (join.left, join.right))
    return f"{left} CROSS JOIN {right} ON {compiler.process(join.onclause, **options)}"


def _arm(table: Any, pair: ComparedPair, version: str) -> tuple[ColumnElement[bool], ...]:
    """Return what holds for a version's rows in the period: said of each table, so that each is read no further."""
    return (*_named(table, pair, version), *_within(table, pair))


def _named(table: Any, pair: ComparedPair, version: str) -> tuple[ColumnElement[bool], ...]:
    return col(table.strategy_name) == pair.strategy_name, col(table.version) == version


def _within(table: Any, pair: ComparedPair) -> tuple[ColumnElement[bool], ...]:
    return col(table.timestamp) >= pair.start, col(table.timestamp) < pair.end


def _same_candle(table: Any, other: Any) -> tuple[ColumnElement[bool], ...]:
    return col(table.symbol) == col(other.symbol), col(table.timestamp) == col(other.timestamp)


def _trade_of(log: Any, trade: Any, pair: ComparedPair, version: str) -> ColumnElement[bool]:
    return and_(col(log.decision).in_(SIGNALS), *_same_candle(trade, log), *_arm(trade, pair, version))


def _said(log: Any) -> ColumnElement[str]:
    return case((col(log.reason) == INSUFFICIENT_HISTORY, ""), else_=col(log.decision))


def _not_hold(log: Any) -> ColumnElement[bool]:
    return or_(col(log.decision) != Action.HOLD.value, col(log.reason) == INSUFFICIENT_HISTORY)


def _closed(log: Any, trade: Any) -> ColumnElement[bool]:
    return or_(col(log.decision).not_in(SIGNALS), col(trade.r_multiple).is_not(None))


def _trades(trade: Any, closed: ColumnElement[bool]) -> tuple[ColumnElement[Any], ...]:
    """Return what `Trades` has, of the closed ones; NULL where there are none."""
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


def _action(said: str | None) -> Action | None:
    return Action(said) if said in set(Action) else None


def _columns(count: int, pair: ComparedPair) -> list[TextClause]:
    """Return the first columns of a query by their places: repeated expressions would have parameters of their own."""
    # the second, the regime's, is a constant where nobody asks: SQLite takes three times as long to group by it
    return [text(str(place)) for place in range(1, count + 1) if place != 2 or pair.regimes is not None]


def _on_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"
