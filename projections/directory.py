"""The directory: which tenants there are, for lists. A hash per tenant: what it was created with, and
fields for what has changed since.
"""

from collections.abc import Mapping

import msgspec

from events.catalog import DomainEvent
from events.codec import Record
from events.tenant import Plan, PlanChanged, TenantCreated
from projections.model import Put, Write

PROFILE_FIELD, PLAN_FIELD = "profile", "plan"


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
            return [Put(PROFILE_FIELD, msgspec.json.encode(profile), is_personal=True)]
        if isinstance(event, PlanChanged):
            return [Put(PLAN_FIELD, event.plan.encode())]
        return []


def read_profile(fields: Mapping[bytes, bytes]) -> Profile | None:
    """The read model's hash as a profile; None where it holds none yet."""
    created = fields.get(PROFILE_FIELD.encode())
    if created is None:
        return None
    profile = msgspec.json.decode(created, type=Profile)
    plan = fields.get(PLAN_FIELD.encode())
    if plan is None:
        return profile
    return msgspec.structs.replace(profile, plan=msgspec.convert(plan.decode(), Plan))
