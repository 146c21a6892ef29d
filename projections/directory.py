"""The directory: which tenants there are, for lists. One field per tenant in its own hash."""

import msgspec

from events.catalog import DomainEvent
from events.codec import Record
from events.tenant import Plan, TenantCreated
from projections.model import Put, Write

PROFILE_FIELD = "profile"


class Profile(msgspec.Struct, frozen=True):
    id: str
    name: str
    plan: Plan
    created_us: int


class DirectoryProjection:
    name = "directory"
    generation = 1

    def apply(self, tenant: str, record: Record, event: DomainEvent) -> list[Write]:
        if isinstance(event, TenantCreated):
            profile = Profile(tenant, event.name, event.plan, event.created_us)
            return [Put(PROFILE_FIELD, msgspec.json.encode(profile))]
        return []
