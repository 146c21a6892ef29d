"""Personal data at rest: AES-256-GCM under a key of the tenant's own, so that destroying one key erases all of it.

A sealed value is a MessagePack extension: kind of the value, fingerprint of the key, nonce, ciphertext with its tag.
Tenant and place (event tag and field, say) are authenticated, so that a value can't be moved to where it does not belong.
Nonces are random: NIST SP 800-38D allows 2**32 sealed values per key, which a tenant with ten a second reaches after
thirteen years.
"""

import hashlib
import os
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from events.errors import KeyUnreadableError

ERASED = "[erased]"
KEY_BYTES = 32
_EXTENSION = 1
_FINGERPRINT_BYTES, _NONCE_BYTES = 8, 12
_HEADER_BYTES = 1 + _FINGERPRINT_BYTES
# What stands in for a value whose key is gone: of the same kind, so that old events still have their shape.
_PLACEHOLDERS: dict[int, Callable[[], Any]] = {
    0: lambda: None,
    1: lambda: ERASED,
    2: lambda: b"",
    3: lambda: 0,
    4: dict,
    5: list,
    6: lambda: False,
}

_encode = msgspec.msgpack.Encoder().encode


class Cipher(Protocol):
    def seal(self, context: bytes, plain: bytes) -> bytes:
        """Fingerprint, nonce and ciphertext. ``context`` has to be the same when it is opened."""
        ...

    def open(self, context: bytes, sealed: bytes) -> bytes | None:
        """None: unreadable on purpose (erased, or opened by someone who works without keys).

        Raises:
            KeyUnreadableError: The key at hand is not the one, or the bytes are not what was sealed.
        """
        ...


def fingerprint(key: bytes) -> bytes:
    """Tells keys apart without telling anything of them."""
    return hashlib.sha256(b"tenantry key fingerprint" + key).digest()[:_FINGERPRINT_BYTES]


class TenantCipher:
    """Under the tenant's key, which the process holds in memory as long as this object lives."""

    def __init__(self, tenant: str, key: bytes, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._tenant, self._entropy = tenant, entropy
        self._aead, self._fingerprint = AESGCM(key), fingerprint(key)
        self._context = tenant.encode() + b"\x00"

    def seal(self, context: bytes, plain: bytes) -> bytes:
        nonce = self._entropy(_NONCE_BYTES)
        return self._fingerprint + nonce + self._aead.encrypt(nonce, plain, self._context + context)

    def open(self, context: bytes, sealed: bytes) -> bytes | None:
        begin = _FINGERPRINT_BYTES + _NONCE_BYTES
        found, nonce = sealed[:_FINGERPRINT_BYTES], sealed[_FINGERPRINT_BYTES:begin]
        if found != self._fingerprint:
            detail = f"it is sealed with key {found.hex()}, the vault holds {self._fingerprint.hex()}"
            raise KeyUnreadableError(self._tenant, detail)
        try:
            return self._aead.decrypt(nonce, sealed[begin:], self._context + context)
        except InvalidTag as error:
            raise KeyUnreadableError(self._tenant, "it is not what was sealed here: damaged, or moved") from error


class KeylessCipher:
    """For whoever works on purpose without keys: verification, and the histories of erased tenants."""

    def seal(self, context: bytes, plain: bytes) -> bytes:
        raise AssertionError("nothing can be sealed without a key")

    def open(self, context: bytes, sealed: bytes) -> bytes | None:
        return None


class MissingCipher:
    """No key is known: fine as long as nothing is sealed."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant

    def seal(self, context: bytes, plain: bytes) -> bytes:
        raise KeyUnreadableError(self._tenant, "the vault holds no key of it")

    def open(self, context: bytes, sealed: bytes) -> bytes | None:
        raise KeyUnreadableError(self._tenant, "the vault holds no key of it")


WITHOUT_KEY = KeylessCipher()


def is_sealed(value: object) -> bool:
    return isinstance(value, msgspec.msgpack.Ext) and value.code == _EXTENSION


def seal_value(cipher: Cipher, context: str, value: Any) -> msgspec.msgpack.Ext:
    """Plain data (what MessagePack can hold) as a sealed extension."""
    kind = bytes([_kind(value)])
    return msgspec.msgpack.Ext(_EXTENSION, kind + cipher.seal(kind + context.encode(), _encode(value)))


def open_value(cipher: Cipher, context: str, sealed: msgspec.msgpack.Ext) -> Any:
    """The value, or a placeholder of its kind where the cipher opens nothing."""
    whole = bytes(sealed.data)
    kind, data = whole[:1], whole[1:]
    plain = cipher.open(kind + context.encode(), data)
    return _PLACEHOLDERS[kind[0]]() if plain is None else msgspec.msgpack.decode(plain)


def seal_bytes(cipher: Cipher, context: str, plain: bytes) -> bytes:
    """Bytes as they lie in a store: a snapshot, a reply, a read model's field."""
    return _encode(seal_value(cipher, context, plain))


def looks_sealed(stored: bytes) -> bool:
    """False is certain; True has to be looked at."""
    return stored[:1] in _EXTENSION_BYTES


def open_bytes(cipher: Cipher, context: str, stored: bytes) -> bytes | None:
    """What was sealed; bytes that were stored in clear as they are; None where the cipher opens nothing."""
    if not looks_sealed(stored):
        return stored
    try:
        sealed = msgspec.msgpack.decode(stored)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return stored  # text can begin with such a byte, too
    if not is_sealed(sealed):
        return stored
    opened = open_value(cipher, context, sealed)
    return bytes(opened) or None


_EXTENSION_BYTES = {bytes([code]) for code in (0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8)}


def _kind(value: object) -> int:
    match value:
        case None:
            return 0
        case str():
            return 1
        case bytes():
            return 2
        case bool():
            return 6
        case int() | float():
            return 3
        case list() | tuple():
            return 5
        case _:
            return 4
