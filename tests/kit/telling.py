"""Commands whose order shows in the log, told to tenants, and what became of them."""

from events.codec import decode_event, decode_record
from events.messages import Event
from events.sealing import WITHOUT_KEY
from events.tell import Accepted
from events.tenant import BudgetSet, CreateTenant, SetBudget
from tests.kit.inbox import InboxWorld


async def create(world: InboxWorld, *tenants: str) -> None:
    for tenant in tenants:
        await world.asker.ask(tenant, CreateTenant(tenant), actor="test")


async def tell_budget(world: InboxWorld, tenant: str, number: int, command_id: str | None = None) -> Accepted:
    """Set a budget of that many nano-USD."""
    command_id = command_id or f"{tenant}-{number}"
    return await world.teller.tell(tenant, SetBudget(number, "total"), actor="test", command_id=command_id)


async def tell_budgets(world: InboxWorld, tenant: str, count: int, first: int = 1) -> list[Accepted]:
    """Budgets of first, first + 1 … nano-USD."""
    return [await tell_budget(world, tenant, number) for number in range(first, first + count)]


async def budgets_of(world: InboxWorld, tenant: str) -> list[int]:
    """In the order of the log."""
    return [event.limit_nano_usd or 0 for event in await log_of(world, tenant) if isinstance(event, BudgetSet)]


async def log_of(world: InboxWorld, tenant: str) -> list[Event]:
    events: list[Event] = []
    after = 0
    while page := await world.store.read(tenant, after):
        events += [decode_event(decode_record(stored.record).data, WITHOUT_KEY) for stored in page]
        after = page[-1].position
    return events
