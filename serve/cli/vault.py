"""``tenantry vault``: the tenants' keys."""

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from serve.cli.output import print_json
from serve.client import AdminClient

vault = typer.Typer(no_args_is_help=True, help="Look after the tenants' keys.")


@vault.callback()
def _group() -> None:
    """Keeps `rewrap` a command of its own while it is the only one."""


@vault.command("rewrap")
def rewrap(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Change the master key: wrap every tenant's key under the newest one. No data is touched.

    First start the platform with TENANTRY_MASTER_KEY=NEW,OLD; rewrap; then start it with NEW alone. Backups of the vault
    from before still need OLD.
    """
    found = AdminClient.find(data_dir).call_long("/vault/rewrap")
    if as_json:
        print_json(found)
    else:
        print(f"ok: {found['changed']} of {found['keys']} keys were under an older master key; now none is")
