"""A gateway as a process of its own, for tests that kill it."""

import asyncio
import contextlib
import multiprocessing
import os
import sys
from pathlib import Path

import uvicorn

from serve.gateway import Gateway
from serve.ports import free_port


class GatewayProcess:
    """A gateway on a port of its own, started again whenever it ends."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.port = free_port()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._environment = environment
        self._start()

    def _start(self) -> None:
        self._process = self._context.Process(target=_run_gateway, args=(self._environment, self.port), daemon=True)
        self._process.start()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._start()

    def stop(self) -> None:
        self._process.kill()
        self._process.join()

    async def until_listening(self) -> None:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.02)  # another process: trying is all there is


def _run_gateway(environment: dict[str, str], port: int) -> None:
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    os.environ.update(environment)
    gateway = Gateway()
    uvicorn.run(gateway, host="127.0.0.1", port=port, log_config=None, lifespan="off")
