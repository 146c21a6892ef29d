"""The object area: payloads too large for the log, one sealed file each, on any fsspec path.

A file is named by the hash of its bytes as they lie there, and the log holds that name: what comes back is what was
written, or an error. Bytes are sealed under the tenant's key before they are hashed, so erasing the key erases them, too.
"""

import asyncio
import hashlib
import posixpath
import uuid
from typing import Protocol

import fsspec

from events.errors import IntegrityError, NotFoundError, TooLargeError
from events.run import Reference
from events.sealing import Cipher, open_bytes, seal_bytes

OBJECT_BYTES_MAX = 256 * 2**20
INLINE_BYTES_MAX = 64 * 1024  # larger payloads go to the object area
_SEALED_AS = "object"


class Ciphers(Protocol):
    async def cipher(self, tenant: str, *, create: bool = False) -> Cipher: ...


class Objects:
    """``<base>/<tenant>/<two digits>/<hash>``. Nothing is ever changed there. Without a base nothing can be put."""

    def __init__(self, base: str, ciphers: Ciphers) -> None:
        self._base, self._ciphers = base.rstrip("/"), ciphers

    async def put(self, tenant: str, payload: bytes) -> Reference:
        """Returns when the object is complete.

        Raises:
            TooLargeError: Over ``OBJECT_BYTES_MAX``, or there is no object area.
        """
        if not self._base:
            raise TooLargeError("a payload in bytes without TENANTRY_OBJECTS_URL", len(payload), INLINE_BYTES_MAX)
        if len(payload) > OBJECT_BYTES_MAX:
            raise TooLargeError("an object in bytes", len(payload), OBJECT_BYTES_MAX)
        sealed = seal_bytes(await self._ciphers.cipher(tenant, create=True), _SEALED_AS, payload)
        digest = hashlib.sha256(sealed).hexdigest()
        key = f"{tenant}/{digest[:2]}/{digest}"
        await asyncio.to_thread(self._write, key, sealed)
        return Reference(key, digest, len(payload))

    def _write(self, key: str, sealed: bytes) -> None:
        """Whole or not at all."""
        filesystem, target = fsspec.core.url_to_fs(f"{self._base}/{key}")
        filesystem.makedirs(posixpath.dirname(target), exist_ok=True)
        draft = f"{target}.{uuid.uuid4().hex}"
        with filesystem.open(draft, "wb") as file:
            file.write(sealed)
        filesystem.mv(draft, target)

    async def get(self, tenant: str, reference: Reference) -> bytes:
        """The payload.

        Raises:
            NotFoundError: Not there, not this tenant's, or erased.
            IntegrityError: Not what was written.
        """
        if not reference.key.startswith(f"{tenant}/") or ".." in reference.key:
            raise NotFoundError("object", reference.key[:80])
        sealed = await asyncio.to_thread(self._read, reference.key)
        if hashlib.sha256(sealed).hexdigest() != reference.sha256:
            raise IntegrityError(f"object {reference.key} is not what was written")
        payload = open_bytes(await self._ciphers.cipher(tenant), _SEALED_AS, sealed)
        if payload is None:
            raise NotFoundError("object", f"{reference.key} (its tenant was erased)")
        return payload

    def _read(self, key: str) -> bytes:
        filesystem, target = fsspec.core.url_to_fs(f"{self._base}/{key}")
        try:
            with filesystem.open(target, "rb") as file:
                data: bytes = file.read()
                return data
        except FileNotFoundError as error:
            raise NotFoundError("object", key) from error

    async def erase(self, tenant: str) -> None:
        """Remove all of a tenant's objects. Harmless to repeat."""
        await asyncio.to_thread(self._erase, tenant)

    def _erase(self, tenant: str) -> None:
        filesystem, directory = fsspec.core.url_to_fs(f"{self._base}/{tenant}")
        if filesystem.exists(directory):
            filesystem.rm(directory, recursive=True)

    async def count(self, tenant: str) -> int:
        """How many objects are left of a tenant."""
        return await asyncio.to_thread(self._count, tenant)

    def _count(self, tenant: str) -> int:
        filesystem, directory = fsspec.core.url_to_fs(f"{self._base}/{tenant}")
        return len(filesystem.find(directory)) if filesystem.exists(directory) else 0
