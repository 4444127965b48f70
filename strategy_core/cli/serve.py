"""Commands that run servers and the demo, deploy the flows and issue tokens."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from strategy_core.cli.context import Context, Reason, Symbol, as_called, command, require_reason
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidSetting, MissingExtra, reason_of

commands = typer.Typer()

Candles = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File of candles, with a feed's options. Default: a synthetic market."),
]


@command(commands)
def api(
    shell: Context,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Listen address. Default: ROLLOUT_API_HOST, or 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", min=0, max=65_535, help="Default: ROLLOUT_API_PORT, or 8321. 0 picks a free port."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Number of server processes.")] = 1,
) -> None:
    """Serve the HTTP API, by default on http://127.0.0.1:8321.

    Tokens are checked with ROLLOUT_API_SECRET, ROLLOUT_API_PUBLIC_KEY or ROLLOUT_API_JWKS_URL.
    """
    given = {"ROLLOUT_API_HOST": host, "ROLLOUT_API_PORT": port, "ROLLOUT_DATABASE_URL": shell.database_url}
    os.environ.update(
        {name: str(value) for name, value in given.items() if value is not None}
    )  # for the server processes
    try:
        from strategy_core.api.app import serve
        from strategy_core.api.settings import read_api_settings
    except ModuleNotFoundError:
        raise MissingExtra("rollout api", "api") from None

    serve(read_api_settings(), workers=workers)


@command(commands)
def exporter(
    shell: Context,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Listen address. Clients need no token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65_535, help="0 picks a free port.")] = 9464,
) -> None:
    """Serve /metrics for Prometheus.

    Each scrape reads the database. The documentation lists all metrics.
    """
    from sqlalchemy.exc import DBAPIError

    from strategy_core.isolation.sandbox import available
    from strategy_core.observe import configure_logs
    from strategy_core.observe.exporter import serve
    from strategy_core.services.database import check_schema
    from strategy_core.settings import DatabaseClock

    database = shell.database
    configure_logs()
    with suppress(DBAPIError):  # no database yet: scrapes fail until it is there
        check_schema(database)
    serve(
        database, DatabaseClock(database, shell.settings).fresh_now, host=host, port=port, isolation=available().level
    )


@command(commands)
def deploy(
    shell: Context,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own prefect.yaml. Default: the packaged one.")
    ] = None,
) -> None:
    """Deploy the flows to the Prefect server at PREFECT_API_URL.

    Creates or updates the work pool, deployments and automations. Others on that server are not changed.
    """
    from deployments import prefect_yaml
    from deployments.deploy import deploy as bring

    done = bring(file or prefect_yaml())
    shell.answer({"done": done}, *(done or ["no changes: the server is up to date"]))


@command(commands)
def clock(
    shell: Context,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own prefect.yaml. Default: the packaged one.")
    ] = None,
    alive: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Touch this file every few seconds, for a health check.")
    ] = None,
) -> None:
    """Run the deployed flows that are due, until Ctrl-C.

    `rollout deploy` creates the deployments. Several hosts may each run a clock. Without the Prefect server the clock
    goes on with the flows of every minute and with owners' requests that are written down.
    """
    from deployments import prefect_yaml
    from deployments.serve import run_deployed
    from strategy_core.observe import configure_logs

    os.environ["ROLLOUT_DATABASE_URL"] = shell.settings.database_url  # for the flows
    configure_logs()
    run_deployed(file or prefect_yaml(), alive=alive)


@command(commands)
def token(
    shell: Context,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name in the audit trail. Default: your login name.")
    ] = None,
    role: Annotated[Literal["owner", "admin"], typer.Option(help="Role of the holder.")] = "owner",
    hours: Annotated[
        float | None, typer.Option(metavar="HOURS", help="Lifetime in hours, at most 720. Default: 12.")
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this strategy. Can be repeated. Default: all strategies."),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Allow no changes: for routers and scrapers.")] = False,
    private_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM key that belongs to ROLLOUT_API_PUBLIC_KEY.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it to this file, for its owner only. Default: print it.")
    ] = None,
    service: Annotated[
        bool, typer.Option("--service", help="A long-lived token for a program. It is listed and can be revoked.")
    ] = False,
    days: Annotated[
        float | None,
        typer.Option(metavar="DAYS", help="Lifetime of a service token in days, at most 730. Default: 365."),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Print a link that logs in to the console, in place of the token.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the service tokens.")] = False,
    revoke: Annotated[str | None, typer.Option(metavar="ID", help="Revoke this service token. Needs --reason.")] = None,
    reason: Reason = "",
) -> None:
    """Issue a token for the HTTP API and the console.

    It is signed with ROLLOUT_API_SECRET, with --private-key, or with the secret of ROLLOUT_API_DEVELOPMENT=1.

    --link prints the address of the console in ROLLOUT_CONSOLE_URL, or of this machine, with the token behind `#`.

    With --service it is valid for up to two years, and its issue and revocation are in the audit trail.
    """
    if list_:
        _list_tokens(shell)
        return
    if revoke is not None:
        _revoke_token(shell, revoke, reason)
        return
    try:
        from strategy_core.api.auth import issue_token, login_link
        from strategy_core.api.settings import read_api_settings
    except ModuleNotFoundError:
        raise MissingExtra("rollout token", "api") from None

    if service and hours is not None:
        raise InvalidSetting("--hours", hours, "--days with --service")
    if days is not None and not service:
        raise InvalidSetting("--days", days, "only with --service; otherwise --hours")
    api = read_api_settings()
    made, claims = issue_token(
        api,
        name=shell.actor.name if name is None else name,
        role=role,
        hours=12 if hours is None else hours,
        days=(365 if days is None else days) if service else None,
        strategies=strategy or (),
        read_only=read_only,
        private_key=None if private_key is None else _read(private_key),
        now=datetime.now(UTC),  # real time, also in a replay: the API server checks expiry by it
    )
    console = login_link(str(shell.settings.console_url or api.console_url), made)
    if output is None:
        if service:
            _record_token(shell, claims, reason)
        if shell.as_json:
            shell.answer({"token": made, "claims": claims} | ({"link": console} if link else {}))
        else:
            typer.echo(console if link else made)  # alone, for $(rollout token)
        return
    listed = False
    try:
        with _new_file(output, f"{console if link else made}\n"):
            if service:
                _record_token(shell, claims, reason)
                listed = True
    except BaseException:
        if service:
            _withdraw_token(shell, claims["jti"], listed=listed)
        raise
    until = f"{datetime.fromtimestamp(claims['exp'], UTC):%Y-%m-%d %H:%M} UTC"
    shell.answer(
        {"file": str(output), "claims": claims}, f"{output}: token {claims['jti']} of {claims['sub']}, until {until}"
    )


def _record_token(shell: Context, claims: dict[str, Any], reason: str) -> None:
    from strategy_core.services.tokens import record_token

    record_token(
        shell.engine,
        Command(shell.actor, shell.now, reason),
        token_id=claims["jti"],
        name=claims["sub"],
        role=claims["role"],
        strategies=claims.get("strategies", ()),
        read_only="scope" in claims,
        issued_at=datetime.fromtimestamp(claims["iat"], UTC),
        expires_at=datetime.fromtimestamp(claims["exp"], UTC),
    )


def _withdraw_token(shell: Context, token_id: str, *, listed: bool) -> None:
    """Revoke a token whose file could not be written. It may be listed also if its issue was recorded in part."""
    from strategy_core.services.tokens import revoke_token

    command = Command(shell.actor, shell.now, "its file was not written")
    try:
        revoke_token(shell.engine, command, token_id, at=datetime.now(UTC))
    except Exception as error:  # noqa: BLE001  the error of the file is the one to show
        if listed:
            line = f"token {token_id} is not revoked ({reason_of(error)}): rollout token --revoke"
            typer.echo(as_called(line), err=True)


def _list_tokens(shell: Context) -> None:
    from strategy_core.cli.context import table
    from strategy_core.services.tokens import list_tokens

    found = list_tokens(shell.engine)
    columns = ["id", "name", "role", "strategies", "read only", "issued", "by", "expires", "revoked", "by", "reason"]
    rows = [
        (
            *(each.id, each.name, each.role, each.strategies or "all", each.read_only, each.issued_at, each.issued_by),
            *(each.expires_at, each.revoked_at, each.revoked_by, each.revoked_because),
        )
        for each in found
    ]
    shell.answer([each.model_dump(mode="json") for each in found], table(columns, rows))


def _revoke_token(shell: Context, token_id: str, reason: str) -> None:
    from strategy_core.services.tokens import revoke_token

    found = revoke_token(
        shell.engine, Command(shell.actor, shell.now, require_reason(reason)), token_id, at=datetime.now(UTC)
    )
    shell.answer(
        found.model_dump(mode="json"),
        f"token {found.id} of {found.name} was revoked at {found.revoked_at:%Y-%m-%d %H:%M} UTC by {found.revoked_by}: "
        f"{found.revoked_because}",
    )


@contextmanager
def _new_file(output: Path, text: str) -> Iterator[None]:
    """Write a file that only its owner can read. It becomes *output* if the block succeeds, and is removed if not.

    An *output* that exists keeps its owner, whose program reads it.
    """
    allowed = "a file in a folder that you can write to"
    target = Path(os.path.realpath(output))
    if target.exists() and not target.is_file():  # a device such as /dev/null would be replaced
        raise InvalidSetting("--output", str(output), allowed)
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # its mode is 0600
    except OSError as error:
        raise InvalidSetting("--output", str(output), f"{allowed} ({error.strerror})") from None
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            if target.exists():
                os.fchown(descriptor, target.stat().st_uid, target.stat().st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)  # a full disk is noticed before the block
        yield
        part.replace(target)
    except OSError as error:
        raise InvalidSetting("--output", str(output), f"{allowed} ({error.strerror})") from None
    finally:
        part.unlink(missing_ok=True)


@command(commands)
def demo(
    shell: Context,
    candles: Candles = None,
    symbol: Symbol = None,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the SQLite database in this new file, models and picture beside it."),
    ] = None,
) -> None:
    """Run rollouts of two strategies on a simulated clock, in three acts.

    On the synthetic market, a better version becomes active, one with a mistake is rolled back, and a trained model
    replaces another one. On a file, the gates decide. The last line is the path of a page with charts.
    """
    from rich.console import Console

    from strategy_core.demo.run import run_demo
    from strategy_core.observe import configure_logs

    configure_logs(level=logging.WARNING)
    run_demo(
        candles=candles, symbol=symbol, as_json=shell.as_json, database=keep, console=Console(stderr=shell.as_json)
    )


@command(commands)
def up(
    shell: Context,
    context: typer.Context,
    candles: Candles = None,
    symbol: Symbol = None,
    speed: Annotated[
        float, typer.Option(metavar="FACTOR", help="Simulated seconds per second. 5760 is four days per minute.")
    ] = 5760.0,
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=1, max=65_535, help="Port of the Prefect UI. Default: a free port."),
    ] = None,
    state: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for databases and logs.")] = Path(".rollout"),
) -> None:
    """Run Prefect, the flows, the API and a replayed market.

    Ctrl-C stops all of them. The next start continues where this one stopped.
    """
    from deployments.up import up as bring_up

    def print_line(line: str) -> None:
        sys.stdout.write(as_called(line) + "\n")
        sys.stdout.flush()

    # From the command line alone: a replayed market must not write to the database that the environment names.
    source = context.get_parameter_source("database_url")
    code = bring_up(
        database_url=shell.database_url if source is not None and source.name == "COMMANDLINE" else None,
        feed=None if candles is None else str(candles),
        symbol=symbol,
        speed=speed,
        port=port,
        state=state,
        echo=print_line,
    )
    raise typer.Exit(code)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise InvalidSetting("--private-key", str(file), f"a readable file ({error.strerror})") from None
