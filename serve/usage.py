"""What a tenant has used, from the usage read model."""

import asyncio
import contextlib
from typing import Annotated

from pydantic import BaseModel, Field

from events.bus import live_subject, unsubscribe
from events.errors import TransientError
from events.money import money
from projections.model import Projection
from projections.usage import Usage, UsageProjection, read_usage
from serve.services import Services

PROJECTION_WAIT_S = 5.0
_RECHECK_S = 0.5

Money = Annotated[str, Field(examples=["0.0000034"], description="USD, exact decimal")]


class NotProjectedError(TransientError):
    """The read model did not get there in time: an error, never old data."""

    code = "not_projected"

    def __init__(self, wanted: int, reached: int) -> None:
        super().__init__(wanted, reached)
        self.wanted, self.reached = wanted, reached

    def __str__(self) -> str:
        return f"the read model is at position {self.reached}, not yet at {self.wanted}: try again in a moment"


class UsageRow(BaseModel):
    model: str
    requests: int
    failed: int
    unknown: int
    input_tokens: int
    output_tokens: int
    cost_usd: Money


class DailyUsageRow(UsageRow):
    day: str


class TenantUsage(BaseModel):
    """``position`` is the log position up to which everything is in these figures. ``failed`` calls are no requests;
    ``unknown`` ones are booked at their maximum, because nobody can know what they used.
    """

    requests: int
    failed: int
    unknown: int
    input_tokens: int
    output_tokens: int
    cost_usd: Money
    position: int
    by_model: list[UsageRow]
    by_day: list[DailyUsageRow]


async def wait_for_projection(services: Services, projection: Projection, tenant: str, position: int) -> int:
    """The projection's checkpoint, once it has reached ``position``. Raises NotProjectedError after five seconds."""
    reached = await services.models.checkpoint(projection, tenant)
    if reached >= position:
        return reached
    news = asyncio.Event()
    subscription = await services.bus.subscribe(live_subject(tenant, projection.name), lambda _data, _reply: news.set())
    try:
        async with asyncio.timeout(PROJECTION_WAIT_S):
            while (reached := await services.models.checkpoint(projection, tenant)) < position:
                with contextlib.suppress(TimeoutError):  # a hint can get lost
                    await asyncio.wait_for(news.wait(), _RECHECK_S)
                news.clear()
    except TimeoutError as error:
        raise NotProjectedError(position, reached) from error
    finally:
        await unsubscribe(subscription)
    return reached


async def usage_of(services: Services, tenant: str, min_position: int) -> TenantUsage:
    """Figures up to ``min_position`` at least (0: whatever was acknowledged before this call).

    Raises:
        NotProjectedError: The read model is not there within five seconds.
    """
    projection = UsageProjection()
    if min_position == 0:
        head = await services.store.head(tenant)
        min_position = head.position if head else 0
    position = await wait_for_projection(services, projection, tenant, min_position)
    by_day = read_usage(await services.models.fields(projection, tenant))
    total, by_model = Usage(), dict[str, Usage]()
    for (_, model), usage in by_day.items():
        total.add(usage)
        by_model.setdefault(model, Usage()).add(usage)
    return TenantUsage(
        **_plain(total),
        position=position,
        by_model=[UsageRow(model=model, **_plain(usage)) for model, usage in sorted(by_model.items())],
        by_day=[DailyUsageRow(day=day, model=model, **_plain(usage)) for (day, model), usage in sorted(by_day.items())],
    )


def _plain(usage: Usage) -> dict[str, int | str]:
    return {
        "requests": usage.requests,
        "failed": usage.failed,
        "unknown": usage.unknown,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": money(usage.cost_nano_usd),
    }
