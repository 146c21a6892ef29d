"""A data directory: its lock, its secrets, and the note that tells other commands where the platform runs."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TextIO

import msgspec

from events.errors import PlatformError
from events.keys import new_master_key

SECRETS_FILE = "secrets.json"
_LOCK, _RUNNING = "lock", "platform.json"


class DataDirInUseError(PlatformError):
    code = "data_dir_in_use"


class DataDirUnusableError(PlatformError):
    code = "data_dir_unusable"


class Secrets(msgspec.Struct, frozen=True):
    """Made once per data directory. Losing ``pepper`` invalidates every API key; losing ``master_key`` makes all
    personal data unreadable.
    """

    admin_key: str
    pepper: str
    nats_password: str
    valkey_password: str
    # directories of releases before encryption have none of these two
    vault_password: str = ""
    master_key: str = ""

    @classmethod
    def new(cls) -> Self:
        admin_key = f"sk-admin-{secrets.token_urlsafe(32)}"
        return cls(
            admin_key, secrets.token_urlsafe(48), secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        ).completed()

    def completed(self) -> Self:
        return msgspec.structs.replace(
            self,
            vault_password=self.vault_password or secrets.token_urlsafe(24),
            master_key=self.master_key or new_master_key(),
        )


class Running(msgspec.Struct, frozen=True):
    """What ``--ready-file`` holds. ``base_url`` is as an OpenAI client takes it, ending in ``/v1``."""

    base_url: str
    admin_key: str
    demo_key: str
    nats_url: str
    valkey_url: str
    ray_address: str
    vault_url: str = ""
    archive_url: str = ""
    objects_url: str = ""


def write_private(path: Path, content: bytes) -> None:
    """Atomically, readable by the owner only: whoever sees the file sees all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class DataDir:
    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held while a platform runs on this directory.

        Raises:
            DataDirInUseError: Another one runs on it.
            DataDirUnusableError: Nothing can be written there.
        """
        with self._lock_file() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                raise DataDirInUseError(
                    f"{self.path} is in use by `tenantry up` with pid {lock.read().strip() or '?'}: "
                    "stop that one (Ctrl-C), or name another directory with --data-dir"
                ) from error
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def _lock_file(self) -> TextIO:
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            return (self.path / _LOCK).open("a+")
        except OSError as error:
            raise DataDirUnusableError(
                f"{self.path} can't be written to ({error.strerror}): name a directory of yours with --data-dir"
            ) from error

    def secrets(self) -> Secrets:
        path = self.path / SECRETS_FILE
        if not path.exists():
            write_private(path, msgspec.json.encode(Secrets.new()))
        found = msgspec.json.decode(path.read_bytes(), type=Secrets)
        if found != found.completed():
            found = found.completed()
            write_private(path, msgspec.json.encode(found))
        return found

    def announce(self, running: Running) -> None:
        write_private(self.path / _RUNNING, as_json(running))

    def retract(self) -> None:
        (self.path / _RUNNING).unlink(missing_ok=True)

    def running(self) -> Running | None:
        """Where the platform of this directory runs, if one does."""
        try:
            return msgspec.json.decode((self.path / _RUNNING).read_bytes(), type=Running)
        except FileNotFoundError:
            return None


def as_json(running: Running) -> bytes:
    return json.dumps(msgspec.to_builtins(running), indent=2).encode() + b"\n"
