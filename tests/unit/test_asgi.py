"""Work for a client ends with the client."""

import asyncio
from collections.abc import Callable

import pytest

from serve.asgi import ClientLeftError, Message, run_unless_client_leaves


class Client:
    """Says nothing until it ``leaves``."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.problem: Exception | None = None

    async def receive(self) -> Message:
        await self.leaves.wait()
        if self.problem is not None:
            raise self.problem
        return {"type": "http.disconnect"}


class Work:
    """Goes on until it is told to ``finish``, and takes a moment to clean up where it is cut off."""

    def __init__(self) -> None:
        self.begun, self.finish = asyncio.Event(), asyncio.Event()
        self.cleaned_up = self.finished = False

    async def run(self) -> None:
        self.begun.set()
        try:
            await self.finish.wait()
            self.finished = True
        finally:
            await asyncio.sleep(0)
            self.cleaned_up = True


async def test_work_is_done_and_its_error_is_the_callers() -> None:
    work, client = Work(), Client()
    work.finish.set()
    await run_unless_client_leaves(work.run(), client.receive)
    assert work.finished

    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run_unless_client_leaves(fail(), client.receive)


@pytest.mark.parametrize("problem", [None, ConnectionResetError()])
async def test_it_ends_with_the_client_after_it_has_cleaned_up(problem: Exception | None) -> None:
    work, client = Work(), Client()
    client.problem = problem
    running = asyncio.create_task(run_unless_client_leaves(work.run(), client.receive))
    await work.begun.wait()
    client.leaves.set()
    with pytest.raises(ClientLeftError):
        await running
    assert work.cleaned_up
    assert not work.finished


@pytest.mark.parametrize("first", ["client", "server"])
async def test_whoever_is_cancelled_from_outside_is_cancelled(first: str) -> None:
    """By a server that stops, say, even where the client leaves at the same moment."""
    work, client = Work(), Client()
    running = asyncio.create_task(run_unless_client_leaves(work.run(), client.receive))
    await work.begun.wait()
    steps: list[Callable[[], object]] = [client.leaves.set, running.cancel]
    for step in steps if first == "client" else reversed(steps):
        step()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not work.finished


async def test_a_later_wait_of_the_same_task_is_not_cut_off() -> None:
    async def serve() -> str:
        work, client = Work(), Client()
        client.leaves.set()
        with pytest.raises(ClientLeftError):
            await run_unless_client_leaves(work.run(), client.receive)
        await asyncio.sleep(0)
        return "and on"

    assert await asyncio.create_task(serve()) == "and on"
