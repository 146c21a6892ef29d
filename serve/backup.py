"""Back up the whole store while it runs, and restore it into an empty data directory.

A backup is a directory: ``manifest.json``, ``log/`` (the append-only files of the event store's Valkey), ``archive/`` (the
segments of old events), ``objects/`` (what the log only refers to) and, apart, ``keys/`` (the vault and ``secrets.json``, with a manifest of their own, so that they
can be kept elsewhere). All of it is of one moment: writes wait for some milliseconds while the ends of all logs are read
and the sizes of the files are taken; an append-only file is then copied up to that size, however it grows meanwhile.

A restored store is another store than the one it was copied from: what was acknowledged after the backup is gone. So it
gets a new incarnation, epochs above all that were given out, empty read models, and a witness that is told to accept the
ends of logs in the manifest. That is done once, here, and before the directory gets its name.

Not in it: commands that wait in NATS, and dead letters.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import msgspec

from events.archive import Archive
from events.disk import sync_directory
from events.errors import PlatformError
from events.slices import SLICE_COUNT
from events.valkey_client import Client, connect
from events.valkey_store import ValkeyEventStore
from events.valkey_vault import ValkeyVault
from events.verify import verify
from events.witness import accept_loss
from serve.installation import SECRETS_FILE, DataDir, Running, Secrets, write_private
from serve.local_servers import LOOPBACK, LocalServer, valkey_spec
from serve.ports import free_port

MANIFEST = "manifest.json"
LOG, ARCHIVE, OBJECTS, KEYS, VAULT = "log", "archive", "objects", "keys", "vault"
_AOF, _AOF_MANIFEST = "appendonlydir", "appendonly.aof.manifest"
_REWRITE_SETTING, _REWRITE_PERCENT = "auto-aof-rewrite-percentage", 100  # Valkey's default, which `up` leaves as it is
_REWRITE_TIMEOUT_S, _POLL_S = 600.0, 0.05
_PAUSE_S = 5.0  # writes wait so long at most; it takes milliseconds
_LOAD_TIMEOUT_S = 3600.0
_HEADS_AT_ONCE = 1_000
_CHUNK_BYTES = 4 * 2**20

Say = Callable[[str], None]


class BackupError(PlatformError):
    """The backup or the restore can't be done; the message says why, and what to do."""

    code = "backup"


class End(msgspec.Struct, frozen=True):
    """Where a tenant's log ends; ``hash`` in hex."""

    position: int
    hash: str


class FileSum(msgspec.Struct, frozen=True):
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """``files`` by path below the manifest's directory. The keys' own has no ``heads`` and no ``incarnation``."""

    created: datetime
    release: str
    files: dict[str, FileSum]
    incarnation: str = ""
    heads: dict[str, End] = {}


class Restored(msgspec.Struct, frozen=True):
    """``broken``: tenants whose logs are not what the manifest says, with the reason. They are halted."""

    manifest: Manifest
    incarnation: str
    broken: dict[str, str]


async def back_up(data: DataDir, running: Running, target: Path, *, with_keys: bool, say: Say) -> Manifest:
    """Copy a running platform's store into ``target``, which appears when it is whole. Appends go on meanwhile.

    Raises:
        BackupError: ``target`` holds something; or a part of the store is not among the data directory's own files.
    """
    archive, objects = _local_directory(running.archive_url, ARCHIVE), _local_directory(running.objects_url, OBJECTS)
    with _appearing(target) as draft:
        say("the log")
        created = datetime.now(UTC)
        incarnation, heads, log_files = await _copy_log(running, data.path / "valkey" / _AOF, draft / LOG)
        say("the archive")
        # after the log: what had left the log by then is here
        archived = await _copy_archive(archive, heads, draft / ARCHIVE)
        say("the objects")
        copied = await asyncio.to_thread(_copy_tree, objects, draft / OBJECTS)
        files = {f"{LOG}/{name}": each for name, each in log_files.items()} | archived | copied
        manifest = Manifest(created, version("tenantry"), files, incarnation, heads)
        if with_keys:
            say("the keys")
            await _copy_keys(data, running, created, draft / KEYS)
        write_private(draft / MANIFEST, _encoded(manifest))
    return manifest


async def restore(source: Path, target: Path, keys: Path | None, say: Say) -> Restored:
    """Make ``target`` a data directory for ``tenantry up``. It appears when all is done and verified. ``keys``: where
    they lie, if not in the backup.

    Raises:
        BackupError: ``target`` holds something, a file is not what the manifest says, or the keys are not there.
    """
    if not (source / MANIFEST).is_file():
        raise BackupError(f"{source} is no backup, it has no {MANIFEST}: name a directory that `tenantry backup` wrote")
    keys = keys or source / KEYS
    if not (keys / MANIFEST).is_file():
        raise BackupError(f"{keys} holds no keys: name the directory {KEYS!r} of this or a later backup with --keys")
    say("verifying the files")
    manifest = await asyncio.to_thread(_checked, source, (LOG, ARCHIVE, OBJECTS))
    await asyncio.to_thread(_checked, keys, (VAULT, SECRETS_FILE))
    with _appearing(target) as draft:
        say("copying them")
        for name, origin in (
            (f"valkey/{_AOF}", source / LOG),
            (ARCHIVE, source / ARCHIVE),
            (OBJECTS, source / OBJECTS),
            (f"vault/{_AOF}", keys / VAULT),
        ):
            if origin.exists():
                await asyncio.to_thread(shutil.copytree, origin, draft / name)
        write_private(draft / SECRETS_FILE, (keys / SECRETS_FILE).read_bytes())
        incarnation, broken = await _begin_anew(draft, manifest, say)
    return Restored(manifest, incarnation, broken)


def _local_directory(url: str, part: str) -> Path:
    if "://" in url or not url:
        raise BackupError(
            f"the part {part!r} of the store is at {url or 'no known place'!r}, not in local files: back up what is there "
            "with its own tools, the Valkeys by Valkey's procedure (https://valkey.io/topics/persistence), or single "
            "tenants with `tenantry export`"
        )
    return Path(url)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A directory for the owner only, that gets its name when it is whole, or vanishes."""
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackupError(f"{target} is not empty: name a directory that is, or that does not exist yet")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield draft
        draft.replace(target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@asynccontextmanager
async def _without_rewrites(client: Client) -> AsyncIterator[None]:
    """Source: https://valkey.io/topics/persistence, "Backing up AOF data". Set back to the default, not to what was found:
    a backup that was killed would otherwise leave its setting for good.
    """
    await client.config_set(_REWRITE_SETTING, 0)
    try:
        async with asyncio.timeout(_REWRITE_TIMEOUT_S):
            while await _is_rewriting(client):  # noqa: ASYNC110 - Valkey tells nobody when it is done
                await asyncio.sleep(_POLL_S)
        yield
    finally:
        await client.config_set(_REWRITE_SETTING, _REWRITE_PERCENT)


async def _is_rewriting(client: Client) -> bool:
    info = await client.info("persistence")
    return bool(int(info["aof_rewrite_in_progress"]) or int(info["aof_rewrite_scheduled"]))


@asynccontextmanager
async def _paused(client: Client) -> AsyncIterator[None]:
    """Writes wait. What was acknowledged before is in the files, since each write is synced before its answer.

    Raises:
        BackupError: It took longer than they wait.
    """
    began = time.monotonic()
    await client.execute_command("CLIENT", "PAUSE", int(_PAUSE_S * 1000), "WRITE")
    try:
        yield
        if time.monotonic() - began > _PAUSE_S:
            raise BackupError(
                f"reading the ends of all logs took longer than {_PAUSE_S:g} s: try when there is less load"
            )
    finally:
        await client.execute_command("CLIENT", "UNPAUSE")


async def _copy_log(running: Running, directory: Path, target: Path) -> tuple[str, dict[str, End], dict[str, FileSum]]:
    client = connect(running.valkey_url)
    store = ValkeyEventStore(client)
    try:
        await _require_local(client, directory, "the event store's Valkey")
        await store.open()
        async with _without_rewrites(client):
            with ExitStack() as stack:
                async with _paused(client):
                    heads = await _heads(store)
                    files = _open_aof(stack, directory)
                sums = await asyncio.to_thread(_copy_aof, files, target)
        return await store.incarnation(), heads, sums
    finally:
        await store.close()


async def _copy_keys(data: DataDir, running: Running, created: datetime, target: Path) -> None:
    client, directory = connect(running.vault_url), data.path / "vault" / _AOF
    try:
        await _require_local(client, directory, "the vault")
        async with _without_rewrites(client):
            with ExitStack() as stack:
                async with _paused(client):
                    files = _open_aof(stack, directory)
                sums = await asyncio.to_thread(_copy_aof, files, target / VAULT)
    finally:
        await client.aclose()
    secrets = (data.path / SECRETS_FILE).read_bytes()
    write_private(target / SECRETS_FILE, secrets)
    files_of_keys = {f"{VAULT}/{name}": each for name, each in sums.items()}
    files_of_keys[SECRETS_FILE] = FileSum(len(secrets), hashlib.sha256(secrets).hexdigest())
    write_private(target / MANIFEST, _encoded(Manifest(created, version("tenantry"), files_of_keys)))


async def _require_local(client: Client, directory: Path, what: str) -> None:
    found = {_text(name): _text(value) for name, value in (await client.config_get("dir")).items()}["dir"]
    if Path(found).resolve() != directory.parent.resolve():
        raise BackupError(
            f"{what} keeps its files in {found}, not in {directory.parent}: it is not one that `tenantry up` started "
            "there. Back it up where it runs, by Valkey's procedure (https://valkey.io/topics/persistence), or single "
            "tenants with `tenantry export`"
        )


async def _heads(store: ValkeyEventStore) -> dict[str, End]:
    names = [name for number in range(SLICE_COUNT) for name in await store.tenants(number)]
    heads = {}
    for start in range(0, len(names), _HEADS_AT_ONCE):
        some = names[start : start + _HEADS_AT_ONCE]
        for name, head in zip(some, await asyncio.gather(*map(store.head, some)), strict=True):
            if head is not None and head.position:
                heads[name] = End(head.position, head.hash.hex())
    return heads


def _open_aof(stack: ExitStack, directory: Path) -> list[tuple[str, BinaryIO, int]]:
    """The files that Valkey would load, open, with their sizes now."""
    lines = (directory / _AOF_MANIFEST).read_text().splitlines()
    names = [words[1] for line in lines if (words := line.split()) and words[5] != "h"]  # h: replaced, to be deleted
    files = [(name, stack.enter_context((directory / name).open("rb"))) for name in [*names, _AOF_MANIFEST]]
    return [(name, file, os.fstat(file.fileno()).st_size) for name, file in files]


def _copy_aof(files: list[tuple[str, BinaryIO, int]], target: Path) -> dict[str, FileSum]:
    return {name: _copy(file, size, target / name) for name, file, size in files}


async def _copy_archive(base: Path, heads: dict[str, End], target: Path) -> dict[str, FileSum]:
    archive, sums = Archive(str(base)), {}
    for tenant in await archive.tenants():
        end = heads[tenant].position if tenant in heads else 0
        for segment in await archive.segments(tenant):
            if segment.last <= end:  # a later one was sealed after the log was copied, which still has its events
                name = f"{tenant}/{Path(segment.path).name}"
                sums[f"{ARCHIVE}/{name}"] = await asyncio.to_thread(_copy_whole, Path(segment.path), target / name)
    return sums


def _copy_tree(base: Path, target: Path) -> dict[str, FileSum]:
    """After the log, which refers to nothing that is not there yet. What vanishes meanwhile was a draft, or is erased."""
    sums = {}
    for path in [path for path in base.rglob("*") if path.is_file()]:
        name = path.relative_to(base).as_posix()
        with contextlib.suppress(FileNotFoundError):
            sums[f"{OBJECTS}/{name}"] = _copy_whole(path, target / name)
    return sums


def _copy_whole(source: Path, target: Path) -> FileSum:
    with source.open("rb") as file:
        return _copy(file, source.stat().st_size, target)


def _copy(source: BinaryIO, size: int, target: Path) -> FileSum:
    """Durable on return."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest, left = hashlib.sha256(), size
    with target.open("xb") as file:
        while left:
            chunk = source.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise BackupError(f"{target.name} became shorter while it was copied")
            digest.update(chunk)
            file.write(chunk)
            left -= len(chunk)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(target.parent)
    return FileSum(size, digest.hexdigest())


def _checked(directory: Path, parts: tuple[str, ...]) -> Manifest:
    """The manifest, if exactly its files are there, as they were. Raises BackupError that names the first that is not."""
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise BackupError(f"{directory} is no backup: {MANIFEST}: {error}") from error
    found = set()
    for part in parts:
        paths = [directory / part] if (directory / part).is_file() else (directory / part).rglob("*")
        found |= {path.relative_to(directory).as_posix() for path in paths if path.is_file()}
    if different := found ^ manifest.files.keys():
        name = min(different)
        raise BackupError(f"{directory / name} is {'not in the manifest' if name in found else 'missing'}")
    for name, expected in manifest.files.items():
        with (directory / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != expected.sha256:
            raise BackupError(f"{directory / name} is not what was written: its SHA-256 is {digest}")
    return manifest


async def _begin_anew(directory: Path, manifest: Manifest, say: Say) -> tuple[str, dict[str, str]]:
    """On servers of its own, which end with it. Returns the new incarnation, and who is broken."""
    secrets = msgspec.json.decode((directory / SECRETS_FILE).read_bytes(), type=Secrets)
    with (
        _serving(directory, secrets.valkey_password, "valkey") as valkey_url,
        _serving(directory, secrets.vault_password, "vault") as vault_url,
    ):
        vault_client, client = connect(vault_url), connect(valkey_url)
        await _loaded(vault_client)
        await _loaded(client)
        vault, store = ValkeyVault(vault_client), ValkeyEventStore(client, Archive(str(directory / ARCHIVE)))
        try:
            await vault.open()
            await store.open()
            say(f"verifying the logs of {len(manifest.heads)} tenants")
            broken = await _settle(store, vault, manifest)
            await _forget_read_models(client, valkey_url)
            return await store.renew_incarnation(), broken
        finally:
            await store.close()
            await vault.close()


@contextmanager
def _serving(directory: Path, password: str, name: str) -> Iterator[str]:
    server = LocalServer(valkey_spec(directory, free_port(), password, name=name))
    try:
        server.start()
        server.wait_ready()
        yield f"redis://:{password}@{LOOPBACK}:{server.spec.port}"
    finally:
        server.stop()


async def _loaded(client: Client) -> None:
    """It listens before it has read its files."""
    async with asyncio.timeout(_LOAD_TIMEOUT_S):
        while int((await client.info("persistence"))["loading"]):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(_POLL_S)


async def _settle(store: ValkeyEventStore, vault: ValkeyVault, manifest: Manifest) -> dict[str, str]:
    """Verify every log and let it go on from there. A broken one is halted, so that the others can be used."""
    broken = {}
    for tenant in sorted(manifest.heads.keys() | (await _heads(store)).keys()):
        reason = await _wrong(store, tenant, manifest.heads.get(tenant))
        if reason is None:
            await accept_loss(store, vault, tenant)
        else:
            broken[tenant] = reason
            await store.halt(tenant, (await store.claim(tenant)).epoch, reason)
    for tenant in (await vault.all_witnessed()).keys() - manifest.heads.keys():
        await vault.accept(tenant, None)  # made after the backup
    return broken


async def _wrong(store: ValkeyEventStore, tenant: str, expected: End | None) -> str | None:
    try:
        verified = await verify(store, tenant)
    except PlatformError as error:
        return str(error)
    if expected != End(verified.events, verified.head_hash):
        return f"the log ends at {verified.events}, {verified.head_hash}; the manifest says {expected}"
    return None


async def _forget_read_models(client: Client, valkey_url: str) -> None:
    """They are rebuilt from the first event. The log is database 0, all others are copies of something."""
    for name in await client.info("keyspace"):
        if number := int(name.removeprefix("db")):
            database = connect(valkey_url, db=number)
            await database.flushdb()
            await database.aclose()


def _encoded(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
