"""Where a tenant's keys live: tenants hash to slices, and a slice is one cluster slot."""

import hashlib
import re

SLICE_COUNT = 128  # fixed when a store is created; the store refuses to open with another number
TENANT_ID = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
SYSTEM_TENANT = "system"


def is_tenant_id(text: str) -> bool:
    """Tenant ids go into keys and subjects, so nothing else is ever put there."""
    return TENANT_ID.fullmatch(text) is not None


def slice_of(tenant: str) -> int:
    """The tenant's slice, 0..127: stable across processes, releases and machines."""
    digest = hashlib.blake2b(tenant.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % SLICE_COUNT


def slice_tag(number: int) -> str:
    """The hash tag that all keys of a slice share: the braces make a cluster put them in one slot."""
    return f"{{s{number:03d}}}"
