"""``tenantry export`` and ``tenantry import``: a tenant's whole log as one file, verified at both ends."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from events.codec import GENESIS, StoredEvent
from events.errors import ChainBrokenError
from events.importing import import_batches
from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import Progress, print_json
from serve.client import AdminClient

_decode_rows = msgspec.msgpack.Decoder(list[StoredEvent]).decode
_encode = msgspec.msgpack.Encoder().encode


def export_tenant(
    tenant: TenantArgument,
    file: Annotated[Path, typer.Argument(help="Where to write it (Parquet). Replaced when the new one is whole.")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Write a tenant's whole log, archived events included, into one verified file.

    The file holds every event as it was written, and proves itself: `tenantry import` refuses one that was changed.
    """
    from events.segments import SegmentWriter  # noqa: PLC0415 - pyarrow: half a second that no other command is to wait

    client, progress = AdminClient.find(data_dir), Progress(f"exporting {tenant}")
    at = 0
    content, end = client.fetch(f"/tenants/{tenant}/log", after=0)  # as it is now; what is appended later is not in it
    with SegmentWriter(str(file.absolute()), tenant, GENESIS) as writer:
        while True:
            page = [event for event in _decode_rows(content) if event.position <= end]
            if not page:
                raise ChainBrokenError(tenant, at + 1, f"missing; the log should reach {end}")
            writer.write(page)
            at = page[-1].position
            progress(at, end)
            if at == end:
                break
            content, _ = client.fetch(f"/tenants/{tenant}/log", after=at)
        events = writer.close()
    _report(
        {"tenant": tenant, "events": events, "file": str(file)}, f"{events} events of {tenant!r} in {file}", as_json
    )


def import_tenant(
    file: Annotated[Path, typer.Argument(help="As `tenantry export` wrote it.")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Bring an exported tenant into a platform that has none of its name. Broken off, it goes on where it stopped.

    The file is verified to the last event before anything is sent. Read models follow by themselves.
    """
    from events.segments import open_export  # noqa: PLC0415 - as above

    client, reader = AdminClient.find(data_dir), open_export(str(file.absolute()))
    progress = Progress(f"importing {reader.tenant}")
    for events in reader:
        for batch in import_batches(events):
            client.send(f"/tenants/{reader.tenant}/log", _encode(batch))
            progress(batch[-1].position, reader.events)
    row = {"tenant": reader.tenant, "events": reader.events, "file": str(file)}
    _report(row, f"{reader.events} events of {reader.tenant!r} imported from {file}", as_json)


def _report(row: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        print_json(row)
    else:
        print(line)
