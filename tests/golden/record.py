"""Record today's log format as the golden histories of a release.

    uv run python -m tests.golden.record RELEASE
    uv run python -m tests.golden.record --refold

The first writes ``tests/golden/RELEASE/<family>.jsonl`` for each family in ``scenarios`` that has an event in a form which no
earlier file holds; it never touches a file that is there. The second is for a deliberate change of State: it keeps all events and
writes anew which places of the summary they set and drop. Look at the diff before you commit it.
"""

import argparse
import base64
import itertools
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from events.catalog import DomainEvent
from events.codec import CURRENT_TAGS, GENESIS, Entry, Record, chain, encode_data, event_type
from events.ids import uuid7
from events.sealing import KEY_BYTES, Cipher, TenantCipher
from tests.golden.history import DIRECTORY, Header, History, Line, changes, events_of, folded, read, write
from tests.golden.scenarios import SCENARIOS, START_US
from tests.golden.shapes import shapes

Turns = Sequence[tuple[int, Sequence[DomainEvent]]]  # when (us), and what was written then by one command


def turns_of(events: Sequence[DomainEvent]) -> Turns:
    """Each event a turn of its own, a microsecond after the one before."""
    return [(START_US + number, [event]) for number, event in enumerate(events, 1)]


def recorded(release: str, family: str, turns: Turns) -> History:
    """Nothing in it is rolled: key, nonces, ids and times are counted."""
    tenant, key = f"golden-{family}", family.encode().ljust(KEY_BYTES, b".")
    nonces = itertools.count(1)
    cipher = TenantCipher(tenant, key, lambda size: next(nonces).to_bytes(size, "big"))
    entries = chain(GENESIS, _records(turns, cipher))
    return History(Header(release, tenant, key.hex()), lines_of(entries, cipher))


def _records(turns: Turns, cipher: Cipher) -> list[Record]:
    versions: dict[str, int] = defaultdict(int)
    records = []
    for number, (at_us, events) in enumerate(turns, 1):
        command_id = uuid7(START_US + number, number.to_bytes(8, "big"))
        for event in events:
            versions[event.stream] += 1
            data = encode_data(event, cipher)
            version = versions[event.stream]
            records.append(Record(event.stream, version, at_us, command_id, "key:k1", command_id, "", 1, data))
    return records


def lines_of(entries: Sequence[Entry], cipher: Cipher) -> list[Line]:
    lines, before = [], dict[str, object]()
    events = events_of(entries, cipher)
    for position, (entry, after) in enumerate(zip(entries, folded(events), strict=True), 1):
        sets, drops = changes(before, after)
        tag = _stored_type(entry)
        lines.append(Line(position, tag, base64.b64encode(entry.record).decode(), entry.hash.hex(), sets, drops))
        before = after
    return lines


def _stored_type(entry: Entry) -> str:
    """The tag as it was written, which an upcaster may lift."""
    plain = msgspec.msgpack.decode(msgspec.msgpack.decode(entry.record, type=Record).data)
    return str(plain["type"])


def refold(path: Path) -> None:
    history = read(path)
    lines = lines_of([line.entry for line in history.lines], history.cipher)
    write(path, History(history.header, lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", nargs="?", help="the version that ships these events, such as 0.2.0")
    parser.add_argument("--refold", action="store_true", help="keep the events, write anew what they change")
    asked = parser.parse_args()
    if asked.refold == bool(asked.release):
        parser.error("give a release to record, or --refold")
    known = {path: read(path) for path in sorted(DIRECTORY.glob("*/*.jsonl"))}
    if asked.refold:
        for path in known:
            refold(path)
        return 0
    missing = CURRENT_TAGS - {event_type(event) for events in SCENARIOS.values() for event in events}
    if missing:
        print(f"tests/golden/scenarios.py has no event of {', '.join(sorted(missing))}: add one", file=sys.stderr)
        return 1
    there = [plain for history in known.values() for plain in history.plain()]
    families = {**{family: turns_of(events) for family, events in SCENARIOS.items()}, **shapes()}
    for family, turns in families.items():
        history, path = recorded(asked.release, family, turns), DIRECTORY / asked.release / f"{family}.jsonl"
        if path.exists():
            print(f"{path} is there already: what was shipped stays as it is", file=sys.stderr)
        elif any(plain not in there for plain in history.plain()):
            write(path, history)
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
