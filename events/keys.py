"""Envelope encryption: a data key per tenant, wrapped by the deployment's master key, unwrapped in memory only."""

import base64
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from events.clock import Clock, SystemClock
from events.errors import KeyUnreadableError, PlatformError
from events.sealing import KEY_BYTES, WITHOUT_KEY, Cipher, MissingCipher, TenantCipher, fingerprint
from events.vault import DestroyedKey, KeyRecord, Vault, WrappedKey

CACHE_TTL_S = 30.0  # for how long a process may go on opening data of a tenant that was erased elsewhere
CACHE_MAX = 4_096
_NONCE_BYTES = 12


class MasterKeyError(PlatformError):
    """The text is not what a master key looks like."""

    code = "master_key"


def new_master_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(KEY_BYTES)).decode()


def parse_master_keys(text: str) -> list[bytes]:
    """One or more keys of 32 bytes, base64, separated by commas: the first wraps, all unwrap. Raises MasterKeyError."""
    keys = []
    for part in text.split(","):
        try:
            key = base64.b64decode(part.strip(), altchars=b"-_", validate=True)
        except ValueError as error:
            raise MasterKeyError(f"a master key is {KEY_BYTES} bytes in base64: {error}") from error
        if len(key) != KEY_BYTES:
            raise MasterKeyError(f"a master key has {KEY_BYTES} bytes, got {len(key)}")
        keys.append(key)
    return keys


class Keys:
    """The tenants' ciphers. Keeps those it was asked for last, for ``CACHE_TTL_S`` each."""

    def __init__(
        self,
        vault: Vault,
        master_keys: Sequence[bytes],
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.vault, self._clock, self._monotonic = vault, clock or SystemClock(), monotonic
        self._masters = {fingerprint(key): AESGCM(key) for key in master_keys}
        self._newest = fingerprint(master_keys[0])
        self._cached: OrderedDict[str, tuple[float, Cipher]] = OrderedDict()

    async def cipher(self, tenant: str, *, create: bool = False) -> Cipher:
        """An erased tenant's opens nothing (``WITHOUT_KEY``). Where there is no key yet, it is made if ``create``;
        otherwise the cipher fails at the first thing that is sealed.

        Raises:
            StoreUnavailableError: The vault can't be reached.
            KeyUnreadableError: No master key at hand unwraps it.
        """
        known = self._cached.get(tenant)
        if known is not None and known[0] > self._monotonic():
            return known[1]
        record = await self.vault.key(tenant)
        if record is None and create:
            key = AESGCM.generate_key(8 * KEY_BYTES)
            record = await self.vault.add_key(tenant, self._wrap(tenant, key, self._clock.now_us()))
        return self._remember(tenant, self._open(tenant, record)) if record else MissingCipher(tenant)

    async def destroy(self, tenant: str) -> DestroyedKey:
        """Make all that was sealed under the tenant's key unreadable, for ever."""
        destroyed = await self.vault.destroy_key(tenant, self._clock.now_us())
        self._cached.pop(tenant, None)
        return destroyed

    async def rewrap(self) -> tuple[int, int]:
        """Wrap every key under the newest master key; returns how many were and how many of them were changed. The
        data keys stay, so nothing has to be sealed anew.

        Raises:
            KeyUnreadableError: A key is wrapped under a master key that is not at hand; those before it are done.
        """
        records = await self.vault.keys()
        changed = 0
        for tenant, record in records.items():
            if isinstance(record, WrappedKey) and record.master_id != self._newest:
                new = self._wrap(tenant, self._unwrap(tenant, record), record.created_us)
                changed += await self.vault.replace_key(tenant, record, new)
        return sum(isinstance(record, WrappedKey) for record in records.values()), changed

    async def unreadable(self) -> list[str]:
        """Tenants whose keys no master key at hand unwraps."""
        found = []
        for tenant, record in (await self.vault.keys()).items():
            try:
                self._open(tenant, record)
            except KeyUnreadableError:
                found.append(tenant)
        return sorted(found)

    def _open(self, tenant: str, record: KeyRecord) -> Cipher:
        if isinstance(record, DestroyedKey):
            return WITHOUT_KEY
        return TenantCipher(tenant, self._unwrap(tenant, record))

    def _wrap(self, tenant: str, key: bytes, created_us: int) -> WrappedKey:
        nonce = os.urandom(_NONCE_BYTES)
        wrapped = nonce + self._masters[self._newest].encrypt(nonce, key, tenant.encode())
        return WrappedKey(self._newest, wrapped, created_us)

    def _unwrap(self, tenant: str, record: WrappedKey) -> bytes:
        master = self._masters.get(record.master_id)
        if master is None:
            raise KeyUnreadableError(
                tenant, f"its key is wrapped under master key {record.master_id.hex()}, which is not at hand"
            )
        try:
            return master.decrypt(record.wrapped[:_NONCE_BYTES], record.wrapped[_NONCE_BYTES:], tenant.encode())
        except InvalidTag as error:
            raise KeyUnreadableError(tenant, "its wrapped key is damaged, or another tenant's") from error

    def _remember(self, tenant: str, cipher: Cipher) -> Cipher:
        self._cached[tenant] = (self._monotonic() + CACHE_TTL_S, cipher)
        self._cached.move_to_end(tenant)
        while len(self._cached) > CACHE_MAX:
            self._cached.popitem(last=False)
        return cipher
