"""What the benchmark says about figures. The figures themselves are taken by `tenantry bench`."""

import asyncio
import contextlib
import json

import pytest

from events.errors import PlatformError
from serve.cli.bench import bench
from tests.bench import live, load, policies, runner, runs, starts, store
from tests.bench.results import ROWS, BenchError, Pairs, Say, verdict


def test_a_verdict_is_plain_data_with_the_medians_of_the_repeats() -> None:
    found = verdict(ROWS["ask_throughput"], [9_000.0, 1.0, 10_000.0], [11_000.0, 12_000.4, 13_000.0])
    assert found == {
        "row": "ask_throughput",
        "value": 9_000,
        "unit": "commands/s",
        "ceiling": 12_000,
        "ratio": 0.75,
        "reach": 0.80,
        "ok": False,
    }
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("row", "ours", "ceiling", "ok"),
    [
        ("ask_throughput", 80.0, 100.0, True),
        ("http_command", 79.9, 100.0, False),
        ("ask_latency", 130.0, 100.0, True),
        ("startup", 15.1, 10.0, False),
        ("memory_idle", 1_400.0, 1_000.0, True),
    ],
)
def test_more_has_to_reach_and_less_must_not_exceed(row: str, ours: float, ceiling: float, ok: bool) -> None:
    assert verdict(ROWS[row], [ours], [ceiling])["ok"] is ok


def test_a_ratio_that_only_rounding_makes_good_is_not_good() -> None:
    found = verdict(ROWS["ask_throughput"], [0.79996], [1.0])
    assert (found["ratio"], found["ok"]) == (0.8, False)


def test_each_pair_is_said_as_it_comes() -> None:
    said: list[str] = []
    pairs = Pairs("startup", said.append)
    pairs.add(7.5, 10.0)
    assert said == ["startup 1: 7.5 s, ceiling 10.0"]
    assert pairs.verdict()["ratio"] == 0.75


def test_an_unknown_row_is_refused_before_anything_starts_and_the_known_ones_are_named() -> None:
    with pytest.raises(PlatformError) as refusal:
        runner.run(["startup", "ask_throughputt"], say=pytest.fail)
    assert "did you mean 'ask_throughput'?" in str(refusal.value)
    assert all(name in str(refusal.value) for name in ROWS)


def test_rows_are_measured_once_each_and_all_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (live, policies, runs, starts, store):
        monkeypatch.setattr(room, "measure", lambda rows, _instance, _say: [{"row": row} for row in rows])
    assert [row["row"] for row in runner.run([], say=print)] == list(ROWS)
    assert [row["row"] for row in runner.run(["memory_idle", "ask_latency", "memory_idle"], say=print)] == [
        "ask_latency",
        "memory_idle",
    ]


def test_what_ray_prints_meanwhile_is_no_part_of_the_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row that kills an actor has Ray print a line on standard output."""

    def run(_rows: list[str], say: Say) -> list[dict[str, object]]:
        print("(raylet) A worker died")
        return [{"row": "restart"}]

    monkeypatch.setattr(runner, "run", run)
    bench(["restart"], as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == [{"row": "restart"}]
    assert "(raylet) A worker died" in printed.err


async def generate(head: bytes, body: bytes) -> tuple[load.Outcome, set[bytes]]:
    """What the load generator counts, and the bodies it sent, where every request gets this answer, in two pieces."""
    seen: set[bytes] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request_head := await reader.readuntil(b"\r\n\r\n"):
            length = int(request_head.split(b"content-length: ")[1])
            seen.add(await reader.readexactly(length))
            writer.write(head)
            await writer.drain()
            writer.write(body)

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        plan = load.Plan("127.0.0.1", port, "PUT", "/x", {}, '{"n":%d}', 10, 2, 0.05, 0.1)
        try:
            return await load.run(plan), seen
        finally:
            await asyncio.wait(serving, timeout=5)


async def test_the_load_generator_counts_whole_answers_and_never_sends_a_body_twice() -> None:
    outcome, seen = await generate(b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\n", b"fives")
    assert outcome.requests > 0
    assert outcome.seconds >= 0.1
    assert len(seen) >= outcome.requests
    assert b'{"n":11}' in seen


async def test_the_load_generator_counts_no_refusals() -> None:
    with pytest.raises(BenchError, match=r"unexpected answer: b'HTTP/1\.1 500"):
        await generate(b"HTTP/1.1 500 Oh\r\nContent-Length: 5\r\n\r\n", b"fives")
