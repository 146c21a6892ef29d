"""``tenantry``: run the platform, look after its tenants."""

import sys
from typing import NoReturn

import typer

from events.errors import PlatformError
from serve.cli import bench, inbox, log, platform, transfer, usage
from serve.cli.archive import archive
from serve.cli.backup import backup, restore
from serve.cli.budgets import budgets
from serve.cli.calls import calls
from serve.cli.deployment import deploy, undeploy
from serve.cli.keys import keys
from serve.cli.limits import limits
from serve.cli.nodes import move_tenant, nodes, pool
from serve.cli.prices import prices
from serve.cli.resilience import breaker, breakers, bulkheads
from serve.cli.runs import runs
from serve.cli.tenants import show_tenant, tenants
from serve.cli.tools import tools
from serve.cli.users import users
from serve.cli.vault import vault
from serve.client import NotRunningError

app = typer.Typer(
    help="Tenantry: a multi-tenant AI platform on Ray. Start with `tenantry up`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(platform.up)
app.command()(deploy)
app.command()(undeploy)
app.add_typer(tenants, name="tenant")
app.add_typer(keys, name="key")
app.add_typer(users, name="user")
app.add_typer(budgets, name="budget")
app.add_typer(limits, name="limit")
app.add_typer(prices, name="price")
app.add_typer(calls, name="call")
app.add_typer(tools, name="tool")
app.add_typer(runs, name="runs")
app.add_typer(archive, name="archive")
app.add_typer(vault, name="vault")
tenants.command("move")(move_tenant)
app.add_typer(nodes, name="node")
app.add_typer(pool, name="pool")
app.command("show", hidden=True)(show_tenant)
app.command()(log.events)
app.command()(usage.usage)
app.command()(usage.spend)
app.command()(log.verify)
app.command("export")(transfer.export_tenant)
app.command("import")(transfer.import_tenant)
app.command()(backup)
app.command()(restore)
app.command()(inbox.tell)
app.command()(inbox.outcome)
app.add_typer(inbox.dead_letters, name="dlq")
app.command()(platform.doctor)
app.command()(platform.gateways)
app.command()(breakers)
app.command()(bulkheads)
app.add_typer(breaker, name="breaker")
app.command()(bench.bench)


def _fail(error: PlatformError) -> NoReturn:
    print(f"tenantry: {error}", file=sys.stderr)
    raise SystemExit(2 if isinstance(error, NotRunningError) else 1)


def main() -> None:
    try:
        app()
    except PlatformError as error:
        _fail(error)
