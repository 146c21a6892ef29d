"""``tenantry backup`` and ``tenantry restore``: the whole store as a directory, and back."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from serve.cli.output import print_json, say_aside
from serve.client import NotRunningError
from serve.installation import DataDir

_ABOUT_KEYS = (
    "keys/ opens all of it: keep it elsewhere, and for days, not years. Who restores both brings back the data of tenants "
    "that were erased since."
)


def backup(
    directory: Annotated[Path, typer.Argument(help="Where to write it: an empty directory, or a new one.")],
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Leave out the vault and secrets.json; back these up elsewhere.")
    ] = False,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Back up the whole store while the platform runs: the log, the archive and, in a directory of their own, the keys.

    All of one moment, with the end of each tenant's log and the SHA-256 of each file in `manifest.json`. What is written
    later is not in it; neither are commands that wait in NATS. The keys lie apart because they belong elsewhere: a backup
    of the log that also held them would bring erased data back to life.
    """
    from serve import backup as work  # noqa: PLC0415 - hundreds of milliseconds that other commands need not wait

    data = DataDir(data_dir)
    if (running := data.running()) is None:
        raise NotRunningError(
            f"no platform runs on {data_dir}: start it with `tenantry up`, or name it with --data-dir"
        )
    progress = lambda what: say_aside(f"backing up {what}")  # noqa: E731
    manifest = asyncio.run(work.back_up(data, running, directory, with_keys=not without_keys, say=progress))
    size = sum(file.bytes for file in manifest.files.values())
    if as_json:
        print_json({**msgspec.to_builtins(manifest), "directory": str(directory), "with_keys": not without_keys})
        return
    print(
        f"{len(manifest.heads)} tenants, {size:,} bytes in {directory}, as of {manifest.created:%Y-%m-%d %H:%M:%S} UTC"
    )
    if not without_keys:
        print(_ABOUT_KEYS)


def restore(
    directory: Annotated[Path, typer.Argument(help="What `tenantry backup` wrote.")],
    keys: Annotated[
        Path | None, typer.Option(help="The directory `keys` of this or a later backup. [default: DIRECTORY/keys]")
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup into an empty data directory; then `tenantry up` runs on it.

    Every file and every tenant's log is verified first. The restored store is a new one: epochs rise, read models are
    rebuilt, and each log goes on from where the backup ends, which you accept hereby. Fails where a log is broken; that
    tenant comes back halted, the others work.
    """
    from serve import backup as work  # noqa: PLC0415

    restored = asyncio.run(work.restore(directory, data_dir, keys, say_aside))
    if as_json:
        print_json(msgspec.to_builtins(restored))
    else:
        events = sum(end.position for end in restored.manifest.heads.values())
        print(
            f"{len(restored.manifest.heads)} tenants, {events:,} events in {data_dir}, "
            f"as of {restored.manifest.created:%Y-%m-%d %H:%M:%S} UTC: what was written later is gone"
        )
        for tenant, reason in restored.broken.items():
            print(f"FAIL  {tenant}: {reason}")
    if restored.broken:
        raise typer.Exit(1)
