"""Tools: which there are, who may call them, and calling one."""

from typing import Annotated, Any

from fastapi import Response
from pydantic import BaseModel, Field

from actors.tools.config import ToolConfig, ToolName
from actors.tools.runner import CALL_TIMEOUT_S
from events.errors import NotFoundError
from events.money import money
from events.slices import TENANT_ID
from events.tools import AllowTools, DescribeTools
from serve.admin.routes import IdempotencyKey, Svc, ask, command_id_for, commands, router, stamp, stamp_position


class ToolRow(BaseModel):
    """What all tools have. Settings of single adapters are not shown: some hold secrets."""

    name: str
    adapter: str
    description: str
    scope: str
    timeout_s: float | None
    bulkhead: int | None
    payloads: str
    cost_usd: str
    destructive: bool
    overrides: Annotated[list[str], Field(description="Tenants for which settings differ")]


class ToolList(BaseModel):
    data: list[ToolRow]


class ToolsIn(BaseModel, extra="forbid"):
    allowed: Annotated[list[ToolName], Field(max_length=1000, description="All of them; none forbids all")]


class ToolsOut(BaseModel):
    allowed: list[str]
    calls_open: Annotated[list[str], Field(description="Calls that were begun and have no result yet")]
    position: int


class ToolCallIn(BaseModel, extra="forbid"):
    input: dict[str, Any] = Field(default_factory=dict)
    timeout_s: Annotated[float, Field(gt=0, le=600, description="For all attempts together")] = CALL_TIMEOUT_S


class ToolCallOut(BaseModel):
    """``repeated``: it had succeeded before, under this Idempotency-Key."""

    call_id: str
    output: Any
    cost_usd: str
    attempts: int
    latency_us: int
    repeated: bool
    position: int


def _row(config: ToolConfig) -> ToolRow:
    return ToolRow(
        bulkhead=config.bulkhead and config.bulkhead.permits,
        overrides=sorted(config.overrides),
        **config.model_dump(
            include={"name", "adapter", "description", "scope", "timeout_s", "payloads", "cost_usd", "destructive"},
        ),
    )


@router.get("/tools")
async def list_tools(services: Svc) -> ToolList:
    """The tools that the models file names."""
    return ToolList(data=[_row(config) for config in services.tools.registry.configs])


@router.get("/tenants/{tenant}/tools")
async def show_tools(services: Svc, tenant: str) -> ToolsOut:
    """Which tools the tenant may call, and its calls without a result."""
    ok = await ask(services, tenant, DescribeTools())
    return ToolsOut(**ok.result, position=ok.position)


@commands.put("/tenants/{tenant}/tools")
async def allow_tools(
    services: Svc, tenant: str, body: ToolsIn, response: Response, idempotency_key: IdempotencyKey = None
) -> ToolsOut:
    """Set which tools the tenant may call. Until then it may call none."""
    for name in body.allowed:
        services.tools.registry.config(name)  # a name that nothing has is a typing error
    command_id = command_id_for(services, tenant, idempotency_key)
    ok = await ask(services, tenant, AllowTools(tuple(body.allowed)), command_id)
    stamp(response, ok)
    return ToolsOut(**ok.result, position=ok.position)


@commands.post("/tenants/{tenant}/tools/{name}")
async def call_tool(
    services: Svc,
    tenant: str,
    name: str,
    body: ToolCallIn,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> ToolCallOut:
    """Call a tool for the tenant, as its runs do. The same Idempotency-Key is the same call: it takes effect once."""
    if not TENANT_ID.fullmatch(tenant) or not await services.tenants.exists(tenant):
        raise NotFoundError("tenant", tenant[:80])
    done = await services.tools.call(
        tenant,
        name,
        body.input,
        idempotency_key=idempotency_key or services.asker.new_id(),
        actor="admin",
        timeout_s=body.timeout_s,
    )
    stamp_position(response, done.position)
    return ToolCallOut(
        call_id=done.call_id,
        output=done.output,
        cost_usd=money(done.cost_nano_usd),
        attempts=done.attempts,
        latency_us=done.latency_us,
        repeated=done.repeated,
        position=done.position,
    )
