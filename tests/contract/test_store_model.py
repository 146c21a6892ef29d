"""Random operations against both adapters and a plain model of what a log is."""

import asyncio
import os
import tempfile
import uuid
from collections.abc import Awaitable
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from events.archive import Archive, archive_log
from events.codec import GENESIS, Entry, chain
from events.errors import PlatformError
from events.memory_store import MemoryEventStore
from events.slices import slice_of
from events.store import (
    SNAPSHOTS_KEPT,
    Append,
    Appended,
    CommandResult,
    EventStore,
    Known,
    Placement,
    Snapshot,
)
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from tests.kit.factories import NOW_US, record, reserved
from tests.kit.servers import Servers

EXAMPLES = int(os.environ.get("TENANTRY_MODEL_EXAMPLES", "20"))  # of 30 operations each; 500 take half an hour
STREAMS = ("tenant", "run/1", "run/2")


class Model:
    """A log as the contract describes it, in the plainest words."""

    def __init__(self) -> None:
        self.epoch = 0
        self.log: list[Entry] = []
        self.answered: dict[str, CommandResult] = {}
        self.status, self.placement = "active", "pool"
        self.timer_us = 0
        self.snapshots: dict[int, Snapshot] = {}
        self.appends: list[int] = []  # the last position of each

    def append(self, request: Append) -> str:
        for command in request.commands:
            if command.command_id in self.answered:
                same = self.answered[command.command_id].body_hash == command.body_hash
                if not same:
                    return "idempotency_mismatch"
        if any(command.command_id in self.answered for command in request.commands):
            return "known"
        if self.epoch == 0 or request.epoch != self.epoch:
            return "fenced"
        if self.status != "active":
            return "tenant_closed"
        head = self.log[-1].hash if self.log else GENESIS
        if request.expected_position != len(self.log) or request.previous_hash != head:
            return "wrong_expected_position"
        versions = {name: sum(entry.stream == name for entry in self.log) for name in STREAMS}
        for entry in request.entries:
            versions[entry.stream] += 1
            if entry.version != versions[entry.stream]:
                return "wrong_expected_position"
        self.log += request.entries
        self.answered |= {command.command_id: command for command in request.commands}
        self.placement = request.placement
        self.timer_us = self.timer_us if request.next_timer_us is None else request.next_timer_us
        self.appends.append(len(self.log))
        return "appended"


async def outcome_of(call: Awaitable[Any]) -> str:
    try:
        result = await call
    except PlatformError as error:
        return error.code
    return "known" if isinstance(result, Known) else "appended" if isinstance(result, Appended) else "?"


def machine(servers: Servers) -> type[RuleBasedStateMachine]:
    loop = asyncio.new_event_loop()

    class StoreMachine(RuleBasedStateMachine):
        """The valkey store, the memory store and the model do and say the same."""

        @initialize()
        def start(self) -> None:
            self.tenant, self.model = f"m{uuid.uuid4().hex[:16]}", Model()
            self.directory = tempfile.TemporaryDirectory()
            self.archives = [Archive(f"{self.directory.name}/{name}") for name in ("valkey", "memory")]
            self.valkey = ValkeyEventStore(connect(servers.valkey_url), self.archives[0])
            self.run(self.valkey.open())
            self.stores: list[EventStore] = [self.valkey, MemoryEventStore(archive=self.archives[1])]
            self.slice = slice_of(self.tenant)
            self.cursors = [self.run(store.newest_cursors([self.slice])) for store in self.stores]

        def run(self, work: Any) -> Any:
            return loop.run_until_complete(work)

        def teardown(self) -> None:
            if hasattr(self, "valkey"):
                self.run(self.valkey.close())
                self.directory.cleanup()

        @rule()
        def claim(self) -> None:
            self.model.epoch += 1
            for store in self.stores:
                assert self.run(store.claim(self.tenant)).epoch == self.model.epoch

        @rule(
            streams=st.lists(st.sampled_from(STREAMS), min_size=1, max_size=4),
            commands=st.lists(st.sampled_from("abcdefgh"), max_size=2, unique=True),
            body=st.sampled_from([b"1" * 32, b"1" * 32, b"2" * 32]),
            epochs_back=st.sampled_from([0, 0, 0, 1]),
            positions_off=st.sampled_from([0, 0, 0, -1, 1]),
            versions_off=st.sampled_from([0, 0, 0, 1]),
            is_fork=st.sampled_from([False, False, False, True]),
            timer_us=st.sampled_from([None, None, 0, NOW_US, NOW_US + 1]),
            placement=st.sampled_from(["pool", "silo"]),
        )
        def append(
            self,
            streams: list[str],
            commands: list[str],
            body: bytes,
            epochs_back: int,
            positions_off: int,
            versions_off: int,
            is_fork: bool,
            timer_us: int | None,
            placement: Placement,
        ) -> None:
            log = self.model.log
            previous = b"f" * 32 if is_fork else log[-1].hash if log else GENESIS
            versions = {name: sum(entry.stream == name for entry in log) + versions_off for name in STREAMS}
            records = []
            for stream in streams:
                versions[stream] += 1
                made = record(reserved(f"c{len(log)}"), versions[stream], epoch=self.model.epoch)
                records.append(msgspec.structs.replace(made, stream=stream))
            request = Append(
                self.tenant,
                self.model.epoch - epochs_back,
                max(0, len(log) + positions_off),
                previous,
                chain(previous, records),
                [CommandResult(name, body, b"reply to " + name.encode()) for name in commands],
                placement,
                next_timer_us=timer_us,
            )
            expected = self.model.append(request)
            assert [self.run(outcome_of(store.append(request))) for store in self.stores] == [expected, expected]

        @rule(after=st.integers(0, 30), limit=st.integers(1, 10), stream=st.sampled_from(STREAMS))
        def read(self, after: int, limit: int, stream: str) -> None:
            part = [entry.hash for entry in self.model.log[after : after + limit]]
            of_stream = [entry.hash for entry in self.model.log if entry.stream == stream][after : after + limit]
            for store in self.stores:
                assert [event.hash for event in self.run(store.read(self.tenant, after, limit))] == part
                found = self.run(store.read_stream(self.tenant, stream, after, limit))
                assert [event.hash for event in found] == of_stream

        @rule(keep=st.integers(0, 12))
        def archive(self, keep: int) -> None:
            """Old events go to files; nobody who reads sees a difference."""
            moved = [
                self.run(archive_log(store, archive, self.tenant, keep=keep, least=1))
                for store, archive in zip(self.stores, self.archives, strict=True)
            ]
            assert moved[0] == moved[1]

        @rule(beyond=st.integers(1, 3))
        def trim_beyond_the_end(self, beyond: int) -> None:
            for store in self.stores:
                assert self.run(outcome_of(store.trim(self.tenant, len(self.model.log) + beyond))) == (
                    "wrong_expected_position"
                )

        @rule(epochs_back=st.sampled_from([0, 0, 1]))
        def halt(self, epochs_back: int) -> None:
            for store in self.stores:
                self.run(store.halt(self.tenant, self.model.epoch - epochs_back, "a test"))
            if not epochs_back and self.model.epoch:
                self.model.status, self.model.timer_us = "halted", 0

        @precondition(lambda self: self.model.epoch > 0)
        @rule()
        def resume(self) -> None:
            for store in self.stores:
                self.run(store.resume(self.tenant))
            self.model.status, self.model.timer_us = "active", 1

        @rule(names=st.lists(st.sampled_from("abcdefghi"), min_size=1, max_size=4, unique=True))
        def ask_for_replies(self, names: list[str]) -> None:
            expected = {name: self.model.answered[name] for name in names if name in self.model.answered}
            for store in self.stores:
                assert self.run(store.replies(self.tenant, names)) == expected

        @rule(position=st.integers(1, 6), state=st.binary(max_size=4))
        def save_snapshot(self, position: int, state: bytes) -> None:
            snapshot = Snapshot(1, position, bytes(32), state)
            kept = {**self.model.snapshots, position: snapshot}
            self.model.snapshots = dict(sorted(kept.items())[-SNAPSHOTS_KEPT:])
            for store in self.stores:
                self.run(store.save_snapshot(self.tenant, snapshot))
                newest_first = [self.model.snapshots[at] for at in sorted(self.model.snapshots, reverse=True)]
                assert self.run(store.load_snapshots(self.tenant)) == newest_first

        @rule(timer_us=st.sampled_from([0, NOW_US, NOW_US + 1]), epochs_back=st.sampled_from([0, 0, 1]))
        def set_timer(self, timer_us: int, epochs_back: int) -> None:
            if not epochs_back:
                self.model.timer_us = timer_us
            for store in self.stores:
                self.run(store.set_timer(self.tenant, self.model.epoch - epochs_back, timer_us))

        @rule()
        def follow(self) -> None:
            """Each append is seen once, in order, by whoever follows from the start."""
            for store, cursors in zip(self.stores, self.cursors, strict=True):
                found = self.run(store.tail(cursors, 1)).get(self.slice, [])
                assert [at.last_position for at in found if at.tenant == self.tenant] == self.model.appends

        @invariant()
        def heads_and_timers_agree(self) -> None:
            for store in getattr(self, "stores", []):
                head = self.run(store.head(self.tenant))
                assert (head.position if head else 0) == len(self.model.log)
                if head is not None:
                    found = (head.epoch, head.hash, head.status, head.placement)
                    model = self.model
                    assert found == (model.epoch, model.log[-1].hash, model.status, model.placement)
                is_due = 0 < self.model.timer_us <= NOW_US
                assert (self.tenant in self.run(store.due(NOW_US))) is is_due
                assert (self.tenant in self.run(store.tenants(self.slice))) is bool(self.model.log)

    return StoreMachine


def test_both_adapters_do_what_the_model_does(servers: Servers) -> None:
    run_state_machine_as_test(
        machine(servers),
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
