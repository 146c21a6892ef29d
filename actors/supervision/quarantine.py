"""Tenants whose activation crashes again and again. Pure: time is an argument.

After each crash the next activation waits longer; after ``CRASHES_MAX`` within ``WINDOW_S`` there is none for
``QUARANTINE_S``, or until an operator releases the tenant. One tenant's defect then costs its shard nothing but that.
"""

from collections.abc import Mapping

import msgspec

CRASHES_MAX = 5
WINDOW_S = 60.0
QUARANTINE_S = 600.0
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.2, 10.0


class Record(msgspec.Struct, frozen=True):
    """``crashed_s``: when, of late. ``barred_until_s``: no activation before; ``reason``: why, once it is a quarantine."""

    crashed_s: tuple[float, ...] = ()
    barred_until_s: float = 0.0
    reason: str = ""


class Ward(msgspec.Struct, frozen=True):
    """By tenant; those that behave are not in it."""

    records: Mapping[str, Record] = {}

    def wait_s(self, tenant: str, now_s: float) -> float:
        """How long the next activation has to wait; 0: it may start."""
        record = self.records.get(tenant)
        return max(0.0, record.barred_until_s - now_s) if record else 0.0

    def reason(self, tenant: str, now_s: float) -> str:
        """Why it is in quarantine; "" where it is not."""
        record = self.records.get(tenant)
        return record.reason if record and now_s < record.barred_until_s else ""

    def is_suspect(self, tenant: str, now_s: float) -> bool:
        """It has crashed of late, or something that it was activated with: its next activation shows which."""
        record = self.records.get(tenant)
        return record is not None and any(now_s - at < WINDOW_S for at in record.crashed_s)


def crashed(ward: Ward, tenant: str, why: str, now_s: float) -> Ward:
    """The ward after one more crash."""
    before = ward.records.get(tenant, Record())
    crashes = (*(at for at in before.crashed_s if now_s - at < WINDOW_S), now_s)
    if len(crashes) >= CRASHES_MAX:
        reason = f"its activation crashed {len(crashes)} times within {WINDOW_S:g} s, at last: {why}"
        record = Record(crashes, now_s + QUARANTINE_S, reason)
    else:
        record = Record(crashes, now_s + min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2.0 ** (len(crashes) - 1)))
    kept = {name: known for name, known in ward.records.items() if known.barred_until_s > now_s - WINDOW_S}
    return Ward({**kept, tenant: record})


def quarantined(ward: Ward, tenant: str, reason: str, until_s: float) -> Ward:
    """As the log remembers it."""
    return Ward({**ward.records, tenant: Record((), until_s, reason)})


def released(ward: Ward, tenant: str) -> Ward:
    return Ward({name: record for name, record in ward.records.items() if name != tenant})
