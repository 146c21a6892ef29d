"""Routes of commands: declared and documented like any FastAPI route, found and served on plain ASGI.

A command with a body costs FastAPI more than its tenant, its store and its broker together; what such a route can
need is known beforehand: the services, path parameters, a body, an Idempotency-Key, and a place to put headers on.
"""

import inspect
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.routing import BaseRoute

from events.errors import KeyRefusedError, PlatformError
from serve.asgi import ClientLeftError, Receive, Responder, Scope, header, read_body
from serve.auth import bearer
from serve.http_errors import HttpError, as_http_error, invalid, unexpected_error
from serve.services import Services

_IDEMPOTENCY_KEY_MAX = 255


class Stamps:
    """What an endpoint's ``response`` is here: headers, and nothing else."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}


class CommandRoute(APIRoute):
    """For the admin key."""

    async def admit(self, services: Services, authorization: str | None) -> dict[str, Any]:
        """Arguments that say who asks. Raises KeyRefusedError or ForbiddenError for whoever must not."""
        if not services.authenticator.is_admin(bearer(authorization)):
            raise KeyRefusedError
        return {}


class TenantCommandRoute(CommandRoute):
    """For a tenant's own keys with the scope ``admin``; the endpoint gets the ``caller``."""

    async def admit(self, services: Services, authorization: str | None) -> dict[str, Any]:
        return {"caller": await services.authenticator.authenticate(authorization, "admin")}


class Command:
    """One route, ready to serve. ``segments`` are its path's; None where a parameter of that name stands."""

    def __init__(self, route: CommandRoute, services: Services) -> None:
        self.path, self.segments = route.path_format, route.path_format.split("/")
        self._route, self._services, self._status = route, services, route.status_code or 200
        self._endpoint: Callable[..., Awaitable[BaseModel]] = route.endpoint
        self._takes_key = "idempotency_key" in inspect.signature(route.endpoint).parameters
        self._body_type: type[BaseModel] | None = typing.get_type_hints(route.endpoint).get("body")
        self._bytes_max = services.settings.body_bytes_max

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """The path's parameters; None where it is another route's."""
        found: dict[str, str] = {}
        for wanted, given in zip(self.segments, segments, strict=True):
            if wanted == given:
                continue
            if not given or not wanted.startswith("{"):
                return None
            found[wanted[1:-1]] = given
        return found

    async def __call__(self, parameters: Mapping[str, str], scope: Scope, receive: Receive, send: Any) -> None:
        responder = Responder(send)
        try:
            admitted = await self._route.admit(self._services, header(scope, b"authorization"))
            response = Stamps()
            arguments: dict[str, Any] = {"services": self._services, "response": response, **parameters, **admitted}
            if self._takes_key:
                arguments["idempotency_key"] = _idempotency_key(scope)
            if self._body_type is not None:
                arguments["body"] = _parse(self._body_type, await read_body(scope, receive, self._bytes_max))
            result = await self._endpoint(**arguments)
            await responder.json(self._status, result.model_dump_json().encode(), response.headers)
        except ClientLeftError:
            return
        except HttpError as error:
            await responder.error(error)
        except PlatformError as error:
            await responder.error(as_http_error(error))
        except RequestValidationError as error:
            await responder.error(invalid(error))
        except Exception as error:  # noqa: BLE001 - a defect: the log gets it, the client a number to ask for
            await responder.error(unexpected_error(error))


class CommandTable:
    """Routes of commands, found by method and number of segments first; among these the first that fits, as declared."""

    def __init__(self, routes: Iterable[BaseRoute], services: Services) -> None:
        self._commands: dict[tuple[str, int], list[Command]] = {}
        for route in routes:
            assert isinstance(route, CommandRoute), route
            if ":" in route.path:  # a parameter of several segments: FastAPI serves it
                continue
            command = Command(route, services)
            for method in route.methods or ():
                self._commands.setdefault((method, len(command.segments)), []).append(command)

    def find(self, scope: Scope) -> tuple[Command, dict[str, str]] | None:
        segments = scope["path"].split("/")
        for command in self._commands.get((scope["method"], len(segments)), ()):
            parameters = command.match(segments)
            if parameters is not None:
                return command, parameters
        return None


def _idempotency_key(scope: Scope) -> str | None:
    key = header(scope, b"idempotency-key")
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
