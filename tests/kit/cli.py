"""The command line against a gateway that runs in the test's own process."""

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from serve.cli.main import app
from serve.client import AdminClient
from tests.kit.gateway import ADMIN_KEY


class Cli:
    """``tenantry`` against the running gateway. A real command's process ends with its connection; here it is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, base_url: str) -> None:
        self._base_url = base_url
        monkeypatch.setattr(AdminClient, "find", lambda _data_dir: self._client)

    async def __call__(self, *arguments: str) -> Any:
        return json.loads(await self.text(*arguments, "--json"))

    async def text(self, *arguments: str) -> str:
        """What a person would read."""
        self._client = AdminClient(self._base_url, ADMIN_KEY)
        result = await asyncio.to_thread(CliRunner().invoke, app, [*arguments])
        self._client.close()
        if result.exception is not None:
            raise result.exception
        return result.stdout
