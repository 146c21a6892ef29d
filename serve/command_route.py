"""Routes of commands: declared and documented like any FastAPI route, handled without its dependency solving.

A command with a body costs FastAPI more than its tenant, its store and its broker together; what such a route can
need is known beforehand: the services, path parameters, a body, an Idempotency-Key, and a response to put headers on.
"""

import inspect
import typing
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from events.errors import KeyRefusedError
from serve.auth import bearer
from serve.http_errors import HttpError
from serve.services import Services

_IDEMPOTENCY_KEY_MAX = 255


class CommandRoute(APIRoute):
    """For the admin key."""

    async def admit(self, services: Services, authorization: str | None) -> dict[str, Any]:
        """Arguments that say who asks. Raises KeyRefusedError or ForbiddenError for whoever must not."""
        if not services.authenticator.is_admin(bearer(authorization)):
            raise KeyRefusedError
        return {}

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint, status = self.endpoint, self.status_code or 200
        wanted = set(inspect.signature(endpoint).parameters)
        body_type: type[BaseModel] | None = typing.get_type_hints(endpoint).get("body")

        async def handle(request: Request) -> Response:
            services = request.app.state.services
            admitted = await self.admit(services, request.headers.get("authorization"))
            response = Response(status_code=status, media_type="application/json")
            arguments: dict[str, Any] = {"services": services, "response": response, **request.path_params, **admitted}
            if "idempotency_key" in wanted:
                arguments["idempotency_key"] = _idempotency_key(request)
            if body_type is not None:
                arguments["body"] = _parse(body_type, await request.body())
            result: BaseModel = await endpoint(**arguments)
            response.body = result.model_dump_json().encode()
            response.headers["content-length"] = str(len(response.body))
            return response

        return handle


class TenantCommandRoute(CommandRoute):
    """For a tenant's own keys with the scope ``admin``; the endpoint gets the ``caller``."""

    async def admit(self, services: Services, authorization: str | None) -> dict[str, Any]:
        return {"caller": await services.authenticator.authenticate(authorization, "admin")}


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= _IDEMPOTENCY_KEY_MAX:
        message = f"an Idempotency-Key has 1 to {_IDEMPOTENCY_KEY_MAX} characters, got {len(key)}"
        raise HttpError(400, "invalid_request", message, param="idempotency-key")
    return key


def _parse(body_type: type[BaseModel], body: bytes) -> BaseModel:
    try:
        return body_type.model_validate_json(body)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise RequestValidationError(problems) from error
