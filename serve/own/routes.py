"""Who may call what: writes and lists of keys and users need the scope ``admin``, reports and what runs do ``read``, starting
and steering runs ``runs``.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request

from events.tenant import Scope
from serve.auth import Principal
from serve.command_route import TenantCommandRoute
from serve.services import Services


class Needs:
    """A dependency: the caller, whose key has to have the scope."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def __call__(self, request: Request, authorization: Annotated[str | None, Header()] = None) -> Principal:
        services: Services = request.app.state.services
        return await services.authenticator.authenticate(authorization, self._scope)


Reader = Annotated[Principal, Depends(Needs("read"))]
Admin = Annotated[Principal, Depends(Needs("admin"))]
Starter = Annotated[Principal, Depends(Needs("runs"))]
own_commands = APIRouter(prefix="/v1", tags=["tenant"], route_class=TenantCommandRoute)
own_reads = APIRouter(prefix="/v1", tags=["tenant"])
