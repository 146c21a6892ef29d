"""Options and arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

DataDirOption = Annotated[
    Path, typer.Option("--data-dir", envvar="TENANTRY_DATA_DIR", help="Where the platform keeps everything.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
TenantArgument = Annotated[str, typer.Argument(help="The tenant's id.", show_default=False)]
DEFAULT_DATA_DIR = Path(".tenantry")
