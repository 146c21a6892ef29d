"""API keys: ``sk-<tenant>-<key id>-<secret>-<checksum>``.

The tenant's id leads to the one actor that can say whether the key is good, so no index of keys has to be kept
anywhere. The checksum lets secret scanners and the gateway recognise a mistyped key without asking anybody. What is
stored is a keyed hash: the secret has 256 bits, so a fast hash is enough, and without the pepper it is worth nothing.
"""

import hashlib
import hmac
import secrets
import zlib

import msgspec

from events.errors import KeyRefusedError
from events.slices import is_tenant_id

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_CHARS, _SECRET_CHARS, _CHECK_CHARS = 12, 43, 6
_KEY_CHARS_MAX = 160


class ParsedKey(msgspec.Struct, frozen=True):
    """Never logged whole: ``repr`` shows tenant and key id only."""

    tenant: str
    key_id: str
    text: str

    def __repr__(self) -> str:
        return f"ParsedKey<{self.tenant}/{self.key_id}>"


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _subkey(pepper: str, purpose: str) -> bytes:
    """A key of its own for each purpose, so that a value made for one is useless for another."""
    return hmac.digest(pepper.encode(), b"tenantry:" + purpose.encode(), hashlib.sha256)


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode()), _CHECK_CHARS)


def make_key(pepper: str, tenant: str, idempotency_key: str | None) -> ParsedKey:
    """A new key; for the same Idempotency-Key the same one again, so that a lost answer loses no key.

    What it is made from is kept nowhere: who has the log and the pepper can't make it again.
    """
    seed = idempotency_key or secrets.token_urlsafe(32)
    material = hmac.digest(_subkey(pepper, "issue"), f"{tenant}\x00{seed}".encode(), hashlib.sha512)
    key_id = _base62(int.from_bytes(material[:16], "big"), _ID_CHARS)
    return _key(tenant, key_id, material[16:48])


def make_next_key(pepper: str, tenant: str, key_id: str, idempotency_key: str | None) -> ParsedKey:
    """Another secret for the key; for the same Idempotency-Key the same one again."""
    seed = idempotency_key or secrets.token_urlsafe(32)
    material = hmac.digest(_subkey(pepper, "rotate"), f"{tenant}\x00{key_id}\x00{seed}".encode(), hashlib.sha512)
    return _key(tenant, key_id, material[:32])


def _key(tenant: str, key_id: str, secret: bytes) -> ParsedKey:
    text = f"sk-{tenant}-{key_id}-{_base62(int.from_bytes(secret, 'big'), _SECRET_CHARS)}"
    return ParsedKey(tenant, key_id, f"{text}-{_checksum(text)}")


def parse_key(text: str) -> ParsedKey:
    """Raises KeyRefusedError unless the text has the form and the checksum of a key."""
    head, _, check = text.rpartition("-")
    if len(text) > _KEY_CHARS_MAX or not text.isascii() or _checksum(head) != check:
        raise KeyRefusedError
    match head.split("-"):
        case ["sk", *tenant, key_id, secret] if len(key_id) == _ID_CHARS and len(secret) == _SECRET_CHARS:
            if is_tenant_id("-".join(tenant)):
                return ParsedKey("-".join(tenant), key_id, text)
    raise KeyRefusedError


def digest_of(pepper: str, key: ParsedKey) -> bytes:
    return hmac.digest(_subkey(pepper, "digest"), key.text.encode(), hashlib.sha256)
