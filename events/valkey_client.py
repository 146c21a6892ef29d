"""Clients of Valkey that neither repeat, swallow nor guess: how one connects, calls, loads functions and reads errors.

Whoever keeps something there uses these: the event store, the vault, read models, outcomes, kept answers.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, cast
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from events.errors import (
    CommandIdReusedError,
    FencedError,
    IntegrityError,
    StoreMismatchError,
    StoreUnavailableError,
    TenantClosedError,
    TenantErasedError,
    WrongExpectedPositionError,
)
from events.valkey_link import Address, Link

# Valkey's own states in which it answers but can't serve; the same command may work later.
FUNCTION_MISSING = "Function not found"  # in what the server says of a library that it does not have
_TRANSIENT_CODES = ("OOM", "MISCONF", "LOADING", "BUSY", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")


CLUSTER_SCHEME = "valkey-cluster"
Client = Redis | RedisCluster


def connect(url: str, *, db: int | None = None, timeout_s: float = 5.0, connections_max: int = 64) -> Client:
    """A client that neither re-sends commands by itself nor trusts a connection that has stray data on it.

    redis-py 8.1 repeats a failed command ten times by default, which turns an append that happened into a false
    conflict; and it skips its stray-data check while maintenance notifications are on. ``valkey-cluster://host:port``
    names any node of a cluster, which has no ``db`` but the first.
    """
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "max_connections": connections_max,
        "retry": Retry(NoBackoff(), 0),
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    parts = urlsplit(url)
    client: Client
    if parts.scheme == CLUSTER_SCHEME:
        client = RedisCluster.from_url(parts._replace(scheme="redis").geturl(), **options)
    else:
        if db is not None:
            url = parts._replace(path=f"/{db}").geturl()
        # waits for a connection where the usual pool would raise: more callers than connections are no error
        client = Redis.from_pool(BlockingConnectionPool.from_url(url, timeout=timeout_s, **options))
    for name in ("XRANGE", "XREAD"):  # their own make a dictionary of each entry
        client.set_response_callback(name, _as_it_came)
    return client


def _as_it_came(response: Any, **_options: Any) -> Any:
    return response


def open_link(client: Client) -> Link | None:
    """A bare connection to where the client connects to; None where that takes more than TCP to one server."""
    if isinstance(client, RedisCluster) or client.connection_pool.connection_class is not Connection:
        return None
    options = client.connection_pool.connection_kwargs
    address = Address(
        options["host"], options["port"], options.get("db", 0), options.get("username"), options.get("password")
    )
    return Link(address, options.get("socket_timeout", 5.0))


async def execute(client: Client, *args: Any, **options: Any) -> Any:
    """One command. (redis-py leaves its own method untyped.)"""
    return await not_swallowing(cast("Any", client).execute_command(*args, **options))


async def not_swallowing(call: Awaitable[Any]) -> Any:
    """The call's result, or CancelledError where this task was cancelled meanwhile: redis-py awaits with
    ``asyncio.wait_for``, and that of Python 3.11 forgets a cancellation that arrives together with the result.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        return await call
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


async def load_library(client: Client, name: str, source: str) -> None:
    """Load a function library once on every primary; refuse to run against another text under the same name."""
    if not isinstance(client, RedisCluster):
        await _load_library(client, name, source)
        return
    await client.initialize()
    for node in client.get_primaries():
        await _load_library(client, name, source, target_nodes=node)


async def _load_library(client: Client, name: str, source: str, **options: Any) -> None:
    listed = await execute(client, "FUNCTION", "LIST", "LIBRARYNAME", name, "WITHCODE", **options)
    if isinstance(listed, dict):  # a cluster answers by node
        (listed,) = listed.values()
    if not listed:
        try:
            await execute(client, "FUNCTION", "LOAD", source, **options)
        except ResponseError as error:
            if "already exists" not in str(error):
                raise
            await _load_library(client, name, source, **options)  # another was faster: compare with what it loaded
        return
    row = listed[0]  # a map where the client speaks RESP3
    fields = row if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True))
    if fields[b"library_code"].decode() != source:
        raise StoreMismatchError(
            f"the store runs another version of the function library {name!r}: upgrade one of them"
        )


def translate(error: Exception, tenant: str, epoch: int) -> Exception:
    """The platform's error for what redis-py or the append function said."""
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return StoreUnavailableError(f"{type(error).__name__}: {error}")
    code, _, detail = str(error).partition(" ")
    code = getattr(error, "status_code", None) or code  # redis-py takes the codes it knows off the message
    match code:
        case "FENCED":
            return FencedError(tenant, epoch, detail)
        case "POSITION":
            return WrongExpectedPositionError(tenant, detail)
        case "REUSED":
            return CommandIdReusedError(detail)
        case "CLOSED" if detail == "erased":
            return TenantErasedError(f"tenant {tenant!r} is erased")
        case "CLOSED":
            return TenantClosedError(f"tenant {tenant!r} is {detail}")
        case "WRONGKEY" | "CORRUPT" | "BADARGS" | "WRONGTYPE":
            return IntegrityError(f"tenant {tenant!r}: {error}")
    if "ID specified in XADD" in str(error):  # the stream's own guard, and the append's first write
        return IntegrityError(f"the log of tenant {tenant!r} is ahead of what the store knows of it: {error}")
    if code in _TRANSIENT_CODES or FUNCTION_MISSING in str(error):
        return StoreUnavailableError(f"{code}: {error}")
    return error
