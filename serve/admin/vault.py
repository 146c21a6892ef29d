"""The vault: the tenants' keys, and the master key they are wrapped under."""

from pydantic import BaseModel

from serve.admin.routes import Svc, keyed_writes


class RewrappedOut(BaseModel):
    """``keys``: how many there are; ``changed``: how many of them were under an older master key until now."""

    keys: int
    changed: int


@keyed_writes.post("/vault/rewrap")
async def rewrap(services: Svc) -> RewrappedOut:
    """Wrap every tenant's key under the first of `TENANTRY_MASTER_KEY`'s keys; then the older ones are needed no more,
    except for older backups of the vault. No data is touched. Safe to repeat.
    """
    keys, changed = await services.keys.rewrap()
    return RewrappedOut(keys=keys, changed=changed)
