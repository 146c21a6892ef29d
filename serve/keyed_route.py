"""Routes of writes that are no commands of a tenant, so that no log remembers their answers: archiving, say, or a replay."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from events.slices import SYSTEM_TENANT, TENANT_ID
from serve.asgi import Taken
from serve.idempotency import as_asked
from serve.services import Services

_CALLER = "admin"


class KeyedRoute(APIRoute):
    """For the admin key. What the endpoint answers is kept under the request's Idempotency-Key, where it has one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            key, tenant = request.headers.get("idempotency-key"), request.path_params.get("tenant", SYSTEM_TENANT)
            if key is None or not TENANT_ID.fullmatch(tenant):
                return await answer(request)
            services: Services = request.app.state.services
            url, body = request.url, await request.body()
            told = b"\x00".join((request.method.encode(), url.path.encode(), url.query.encode(), as_asked(body)))

            async def work() -> Taken:
                response = await answer(request)
                return Taken(response.status_code, dict(response.headers), bytes(response.body))

            taken = await services.once.whole(tenant, _CALLER, key, told, work)
            return Response(taken.body, taken.status, taken.headers)

        return handle
