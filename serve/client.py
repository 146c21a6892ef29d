"""The admin API from the command line's side: finds the running platform, asks it, explains what went wrong."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from events.errors import PlatformError
from serve.installation import DataDir

_TIMEOUT_S = 60.0
_RETRY_S = 1.0


class NotRunningError(PlatformError):
    code = "not_running"


class AdminError(PlatformError):
    """The platform answered with an error; the message is its own."""

    code = "admin_error"


class AdminClient:
    def __init__(self, base_url: str, admin_key: str) -> None:
        self._last_id = ""  # of the stream that is being read
        self._http = httpx.Client(
            base_url=f"{base_url.rstrip('/').removesuffix('/v1')}/admin/v1",
            headers={"authorization": f"Bearer {admin_key}"},
            timeout=_TIMEOUT_S,
        )

    @classmethod
    def find(cls, data_dir: Path) -> "AdminClient":
        """By TENANTRY_URL and TENANTRY_ADMIN_KEY, else by what runs on the data directory."""
        url, key = os.environ.get("TENANTRY_URL"), os.environ.get("TENANTRY_ADMIN_KEY")
        if url and key:
            return cls(url, key)
        if url:
            raise NotRunningError("TENANTRY_URL is set: set TENANTRY_ADMIN_KEY, too")
        running = DataDir(data_dir).running()
        if running is None:
            raise NotRunningError(
                f"no platform runs on {data_dir}: start one with `tenantry up`, "
                "or name another with --data-dir or TENANTRY_URL and TENANTRY_ADMIN_KEY"
            )
        return cls(running.base_url, running.admin_key)

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: object = None, **query: Any) -> Any:
        return _plain(self._request(method, path, json=body, params=query))

    def call_long(self, path: str, body: object = None, *, method: str = "POST") -> Any:
        """A write that may take as long as a tenant's log is."""
        return _plain(self._request(method, path, json=body, timeout=None))

    def call_once(self, path: str, body: object, idempotency_key: str) -> Any:
        """A POST whose repeats under the same key take effect once."""
        return _plain(self._request("POST", path, json=body, headers={"idempotency-key": idempotency_key}))

    def fetch(self, path: str, **query: Any) -> tuple[bytes, int]:
        """An answer that is no JSON, and the position that came with it."""
        response = self._request("GET", path, params=query)
        if response.is_error:
            _plain(response)
        return response.content, int(response.headers["x-tenantry-position"])

    def send(self, path: str, content: bytes) -> Any:
        """A body that is no JSON."""
        return _plain(self._request("POST", path, content=content, headers={"content-type": "application/msgpack"}))

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise NotRunningError(
                f"{self._http.base_url} does not answer ({error}): is the platform running?"
            ) from error

    def follow(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Server-sent events, each event's data as an object, until the platform ends the stream."""
        for _, data in self._events(path, {}, query):
            yield data

    def follow_on(self, path: str, patience_s: float = 60.0) -> Iterator[tuple[str, dict[str, Any]]]:
        """Server-sent events, kind and data of each, until the platform ends the stream. Where it breaks off, it is taken up
        again after the last event that came, for as long as the platform stays away for less than ``patience_s``.
        """
        self._last_id, gives_up_at = "", 0.0
        while True:
            try:
                for found in self._events(path, {"last-event-id": self._last_id} if self._last_id else {}, {}):
                    gives_up_at = 0.0
                    yield found
                return
            except NotRunningError:
                gives_up_at = gives_up_at or time.monotonic() + patience_s
                if time.monotonic() > gives_up_at:
                    raise
                time.sleep(
                    _RETRY_S
                )  # back-off between attempts to connect: a server that is away can tell nobody that it is back

    def _events(
        self, path: str, headers: dict[str, str], query: dict[str, Any]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            timeout = httpx.Timeout(_TIMEOUT_S)
            with self._http.stream("GET", path, params=query, headers=headers, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    _plain(response)
                kind = ""
                for line in response.iter_lines():
                    name, _, value = line.partition(": ")
                    if name == "id":
                        self._last_id = value
                    elif name == "event":
                        kind = value
                    elif name == "data":
                        yield kind, json.loads(value)
        except httpx.HTTPError as error:
            raise NotRunningError(f"the stream of {self._http.base_url} broke off: {error}") from error


def _plain(response: httpx.Response) -> Any:
    if response.is_success:
        return response.json()
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:500]
    raise AdminError(f"HTTP {response.status_code}: {message}")
