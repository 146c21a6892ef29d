"""``tenantry bench``."""

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from serve.cli.options import JsonOption
from serve.cli.output import print_json, say_aside, table


def bench(
    rows: Annotated[list[str] | None, typer.Argument(help="Rows to measure. [default: all]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the platform, each figure beside a ceiling measured in the same run. Needs a clone; takes minutes."""
    from tests.bench import runner  # noqa: PLC0415 - only this command needs it

    with redirect_stdout(sys.stderr):  # Ray prints there whatever it has to say of processes that a row has killed
        measured = runner.run(rows or [], say=say_aside)
    if as_json:
        print_json(measured)
    else:
        columns = ["row", "value", "unit", "ceiling", "ratio", "reach", "ok"]
        table(columns, [[str(row[column]) for column in columns] for row in measured])
