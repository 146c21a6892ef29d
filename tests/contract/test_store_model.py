"""Random operations against both adapters and a plain model of what a log is."""

import asyncio
import uuid
from collections.abc import Awaitable
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from events.codec import GENESIS, Entry, chain
from events.errors import PlatformError
from events.memory_store import MemoryEventStore
from events.store import Append, Appended, CommandResult, EventStore, Known
from events.valkey_store import ValkeyEventStore, connect
from tests.kit.factories import record, reserved
from tests.kit.servers import Servers

STREAMS = ("tenant", "run/1", "run/2")


class Model:
    """A log as the contract describes it, in the plainest words."""

    def __init__(self) -> None:
        self.epoch = 0
        self.log: list[Entry] = []
        self.answered: dict[str, CommandResult] = {}

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
        head = self.log[-1].hash if self.log else GENESIS
        if request.expected_position != len(self.log) or (self.log and request.previous_hash != head):
            return "wrong_expected_position"
        versions = {name: sum(entry.stream == name for entry in self.log) for name in STREAMS}
        for entry in request.entries:
            versions[entry.stream] += 1
            if entry.version != versions[entry.stream]:
                return "wrong_expected_position"
        self.log += request.entries
        self.answered |= {command.command_id: command for command in request.commands}
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
            self.valkey = ValkeyEventStore(connect(servers.valkey_url))
            self.run(self.valkey.open())
            self.stores: list[EventStore] = [self.valkey, MemoryEventStore()]

        def run(self, work: Any) -> Any:
            return loop.run_until_complete(work)

        def teardown(self) -> None:
            if hasattr(self, "valkey"):
                self.run(self.valkey.close())

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
                [CommandResult(name, body, b"reply") for name in commands],
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

        @invariant()
        def heads_agree(self) -> None:
            for store in getattr(self, "stores", []):
                head = self.run(store.head(self.tenant))
                assert (head.position if head else 0) == len(self.model.log)
                assert head is None or head.hash == self.model.log[-1].hash

    return StoreMachine


def test_both_adapters_do_what_the_model_does(servers: Servers) -> None:
    run_state_machine_as_test(
        machine(servers),
        settings=settings(
            max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
