"""``tenantry usage``."""

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, table
from serve.client import AdminClient


def usage(tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Show what a tenant has used: requests, tokens and cost, by model and day."""
    used = AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/usage")
    if as_json:
        print_json(used)
        return
    columns = ["requests", "failed", "unknown", "input_tokens", "output_tokens", "cost_usd"]
    rows = [[row["day"], row["model"], *(str(row[c]) for c in columns)] for row in used["by_day"]]
    rows.append(["total", "", *(str(used[column]) for column in columns)])
    table(["day (UTC)", "model", *(column.replace("_", " ") for column in columns)], rows)
