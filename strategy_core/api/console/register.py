"""Register a version by a form: the parameters of its strategy are fields."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query
from starlette.responses import Response

from strategy_core.api.console.page import FormField, OwnerAct, Visit, Visited, console_router, redirect
from strategy_core.api.console.params_form import config_fields, read_config
from strategy_core.api.console.session import SentForm
from strategy_core.api.console.start import Strategy, strategy_path
from strategy_core.api.dependencies import HEAVY
from strategy_core.api.schemas import NAME, PRINTED
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidEntryPoint, InvalidName, RolloutError, UnknownStrategy
from strategy_core.domain.lifecycle import Status
from strategy_core.isolation.client import IsolatedStrategy
from strategy_core.services.strategy_page import StrategyPage, read_strategy
from strategy_core.services.versions import register_version
from strategy_core.store.tables import StrategyVersion
from strategy_core.strategies.loading import known

_EntryPoint = Annotated[str, Query(max_length=200, pattern=rf"^$|{PRINTED}")]
_Name = Annotated[str, Query(max_length=64, pattern=rf"^$|{NAME}")]

router = console_router()


@router.get("/register")
def show_register(visit: Visited, strategy: _Name = "", entry_point: _EntryPoint = "") -> Response:
    """Ask for the name and the code of a new strategy, then lead to the form."""
    visit.principal.check_change(strategy or None)
    if strategy:
        query = urlencode({"entry_point": entry_point.strip()})
        return redirect(f"{strategy_path(strategy, below='/register')}?{query}")
    return visit.render("register.html", known=known())


@router.get("/strategies/{strategy_name}/register", dependencies=[HEAVY])
@router.post("/strategies/{strategy_name}/register", dependencies=[HEAVY])
def register(visit: Visited, strategy_name: Strategy, entry_point: _EntryPoint = "", like: _Name = "") -> Response:
    """Show the form for a new version, or validate and register it."""
    return _form(visit, strategy_name, entry_point, like)


def _form(visit: Visit, strategy_name: str, entry_point: str, like: str) -> Response:
    visit.principal.check_change(strategy_name)
    page = _page_of(visit, strategy_name)
    example = _example(page, like)
    code = entry_point.strip() or (strategy_name if example is None else example.entry_point)

    def describe() -> OwnerAct:
        visit.reads(strategy_name)
        return _describe(strategy_name, page, example, code)

    def perform(form: SentForm) -> str:
        version = form.get("version", "").strip()
        status = form.get("status", Status.SHADOW.value)
        if status not in (Status.SHADOW, Status.ACTIVE):
            raise InvalidName("status", status[:40], "shadow or active")
        actor = visit.changes(strategy_name)
        reason = visit.reason()
        source = visit.backend.candles(visit.now)
        symbols = [each.strip() for each in form.get("symbols", "").split(",") if each.strip()]
        found = register_version(
            visit.engine,
            Command(actor, visit.now, reason),
            source,
            strategy_name=strategy_name,
            version=version,
            config=read_config(_schema_of(code)[0], form),
            entry_point=code,
            symbols=symbols or source.symbols(),
            timeframe=form.get("timeframe", "").strip() or source.timeframe,
            status=Status(status),
            salt=form.get("salt", "").strip() or None if page is None else None,
            deadline_s=visit.backend.settings.decision_deadline_s,
        )
        return f"{strategy_name} {version} is registered as {found.status}, build {found.fingerprint[:12]}"

    return visit.act(describe, perform, back=strategy_path(strategy_name))


def _page_of(visit: Visit, strategy_name: str) -> StrategyPage | None:
    try:
        return read_strategy(visit.engine, strategy_name)
    except UnknownStrategy:
        return None


def _example(page: StrategyPage | None, like: str) -> StrategyVersion | None:
    """Return the version whose values the form shows: the named one, or the newest."""
    if page is None or not page.versions:
        return None
    return page.version(like) if like else page.versions[0]


def _schema_of(entry_point: str) -> tuple[dict[str, Any] | None, str]:
    """Return the schema of the parameters, read in the sandbox, or None and why it cannot be read."""
    try:
        with IsolatedStrategy(entry_point, {}) as strategy:
            return strategy.read_params_schema(), ""
    except InvalidEntryPoint:
        raise
    except RolloutError as failed:
        return None, f"its parameters cannot be read, so give them as JSON: {failed}"


def _describe(
    strategy_name: str, page: StrategyPage | None, example: StrategyVersion | None, entry_point: str
) -> OwnerAct:
    schema, problem = _schema_of(entry_point)
    same_code = example is not None and example.entry_point == entry_point
    config = example.config if example is not None and same_code else {}
    statuses = [("shadow", "shadow: it decides, and no user gets it")]
    if page is None or page.active is None:
        statuses.append(("active", "active: users get it at once"))
    fields = [
        FormField("version", "Name of the version", required=True, hint="A registered version cannot be changed."),
        *config_fields(schema, config),
        FormField(
            "symbols",
            "Symbols",
            value=", ".join(example.symbols) if example is not None else "",
            hint="With commas between them. Empty: all symbols of the feed.",
        ),
        FormField(
            "timeframe",
            "Timeframe of its candles",
            value="" if example is None else example.timeframe,
            hint="Empty: that of the feed.",
        ),
        FormField("status", "First status", kind="choice", value="shadow", options=statuses),
    ]
    if page is None:
        hint = "Decides which users see canaries. Fixed with the first version. Empty: the default."
        fields.append(FormField("salt", "Routing salt", hint=hint))
    effects = [
        "the version is validated on the newest candles first, which takes some seconds",
        "registered, it decides in shadow on every candle. No user gets it before a rollout starts",
    ]
    shown_from = f", with the values of {example.version}" if example is not None and same_code else ""
    return OwnerAct(
        f"Register a version of {strategy_name}" if page is not None else f"Register the new strategy {strategy_name}",
        effects,
        "Validate and register",
        fields=fields,
        notes=[problem] if problem else [],
        about=f"The code is {entry_point}{shown_from}",
    )
