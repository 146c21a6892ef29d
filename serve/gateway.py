"""The HTTP surface: FastAPI for everything, and the chat route straight on ASGI, because it is the hot path."""

import asyncio
import contextlib
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from actors.tools.model import ModelClient
from actors.tools.registry import Registry, shared_pipelines
from actors.tools.runner import Tools
from events import tracing
from events.clock import SystemClock
from events.dead_letters import DeadLetters
from events.errors import KeyRefusedError, PlatformError
from events.inbox import Inbox
from events.tell import Teller
from serve import openapi
from serve.admin import commands, keyed_writes, router
from serve.admin.routes import POSITION_MAX, Svc
from serve.answer_cache import AnswerCache
from serve.asgi import Receive, Scope, Send, check_head, header
from serve.auth import Authenticator, KnownTenants, bearer
from serve.bootstrap.connections import (
    keys_of,
    open_bus,
    open_outcomes,
    open_read_models,
    open_resilience,
    open_store,
    open_vault,
)
from serve.bootstrap.gateway import open_cached_answers, open_doors, open_keyed_answers
from serve.chat import ModelEndpoint
from serve.command_route import CommandTable
from serve.doors import OwnDoor
from serve.http_errors import (
    HttpError,
    as_http_error,
    error_body,
    error_headers,
    invalid,
    not_allowed,
    unexpected_error,
)
from serve.idempotency import Once
from serve.methods import methods_of, tell_methods, with_implied
from serve.observe.asker import MeasuredAsker
from serve.observe.metrics import Metrics, shard_loads
from serve.observe.request import Watched, current, note_error, traced
from serve.observe.upstreams import UpstreamObserver
from serve.own import own_commands, own_reads, own_runs
from serve.own.routes import Reader
from serve.run_history import RunHistory
from serve.services import Services
from serve.settings import Settings, tool_configs
from serve.usage import TenantUsage, usage_of

ADMIN_PREFIX = "/admin/"
_OF_MODELS = with_implied(("POST",))


def _error_response(error: HttpError) -> Response:
    note_error(error.code)
    return Response(
        error_body(error), status_code=error.status, headers=error_headers(error), media_type="application/json"
    )


async def _on_http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return _error_response(error)


async def _on_platform_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PlatformError)
    return _error_response(as_http_error(error))


async def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _error_response(invalid(error))


async def _on_unexpected(_request: Request, error: Exception) -> Response:
    return _error_response(unexpected_error(error))


async def _on_starlette_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allow = methods_of(request.app.router.routes, request.scope)
        return _error_response(not_allowed(request.method, request.url.path, allow))
    message = f"{request.method} {request.url.path}: {error.detail}; GET /openapi.json lists what there is"
    code = "not_found" if error.status_code == 404 else "invalid_request"
    return _error_response(HttpError(error.status_code, code, message))


def build_app(body_bytes_max: int) -> FastAPI:
    """The surface but for the chat route. ``app.state.services`` must be set before the first request."""
    app = FastAPI(
        title="Tenantry",
        version=version("tenantry"),
        docs_url=None,
        redoc_url=None,
        max_body_size=body_bytes_max,
        separate_input_output_schemas=False,
    )
    app.include_router(commands)
    app.include_router(keyed_writes)
    app.include_router(router)
    app.include_router(own_commands)
    app.include_router(own_reads)
    app.include_router(own_runs)
    app.add_exception_handler(HttpError, _on_http_error)
    app.add_exception_handler(PlatformError, _on_platform_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_starlette_error)
    app.add_exception_handler(Exception, _on_unexpected)

    @app.get("/v1/models", tags=["openai"])
    async def list_models(services: Svc, caller: Reader) -> dict[str, Any]:
        """The models that a request with this key can name."""
        names = [model.name for model in services.settings.models.models if caller.may_use(model.name)]
        return {"object": "list", "data": [_model_out(name) for name in names]}

    @app.get("/v1/models/{model:path}", tags=["openai"])
    async def show_model(services: Svc, caller: Reader, model: str) -> dict[str, Any]:
        if model not in {known.name for known in services.settings.models.models} or not caller.may_use(model):
            raise HttpError(404, "model_not_found", f"the model {model!r} does not exist", param="model")
        return _model_out(model)

    @app.get("/v1/usage", tags=["tenant"])
    async def usage(
        services: Svc, caller: Reader, min_position: Annotated[int, Query(ge=0, le=POSITION_MAX)] = 0
    ) -> TenantUsage:
        """What the calling tenant has used: everything acknowledged before this request, or up to `min_position`."""
        return await usage_of(services, caller.tenant, min_position)

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics(
        services: Svc,
        authorization: Annotated[str | None, Header()] = None,
        accept: Annotated[str, Header()] = "",
    ) -> Response:
        """Prometheus metrics of this replica, for the admin key or the metrics key. With several replicas, scrape each at
        its own door: through Serve each answer is some replica's.
        """
        if not services.authenticator.may_read_metrics(bearer(authorization)):
            raise KeyRefusedError
        page, media_type = services.metrics.page(accept, await shard_loads(services.bus))
        return Response(page, media_type=media_type)

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """This process runs."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    async def readyz(services: Svc) -> JSONResponse:
        """This process can serve: store and bus answer."""
        await services.store.head("ready")
        ready = services.bus.is_connected
        return JSONResponse({"status": "ready" if ready else "bus away"}, status_code=200 if ready else 503)

    openapi.document_all(app)
    return app


def _model_out(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tenantry"}


class Gateway:
    """The ASGI application of one replica. Opens its connections on the first request or health check."""

    def __init__(self) -> None:
        self._opening: asyncio.Task[tuple[FastAPI, ModelEndpoint]] | None = None
        self._commands: CommandTable | None = None
        self._metrics = Metrics()
        self._door: OwnDoor | None = None

    async def ready(self) -> tuple[FastAPI, ModelEndpoint]:
        """Raises what opening raised; the next call tries again."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> tuple[FastAPI, ModelEndpoint]:
        settings = Settings.from_environment()
        store = await open_store(settings)
        bus = await open_bus(settings, "gateway")
        asker = MeasuredAsker(bus, self._metrics)
        tenants = KnownTenants(store)
        authenticator = Authenticator(
            asker, tenants, settings.pepper, settings.admin_key, metrics_key=settings.metrics_key
        )
        await authenticator.follow_revocations(bus)
        model_client = ModelClient(settings.call_timeout_s, UpstreamObserver(self._metrics))
        vault = await open_vault(settings)
        keys = keys_of(settings, vault)
        models = await open_read_models(settings, keys)
        doors = open_doors(settings)
        resilience = await open_resilience(bus, "gateway")
        tools = Tools(asker, Registry(tool_configs(settings.models), build=shared_pipelines(resilience)))
        app = build_app(settings.body_bytes_max)
        inbox, outcomes = Inbox(bus, settings.tell_queue_max), open_outcomes(settings)
        keyed_answers, cached_answers = open_keyed_answers(settings), open_cached_answers(settings)
        once = Once(keyed_answers, keys, settings.pepper)
        app.state.resilience = resilience
        self._metrics.watch(resilience)
        app.state.services = Services(
            settings,
            store,
            vault,
            keys,
            models,
            bus,
            asker,
            tenants,
            authenticator,
            model_client,
            doors,
            tools,
            inbox,
            Teller(inbox),
            outcomes,
            DeadLetters(inbox, outcomes, SystemClock()),
            self._metrics,
            RunHistory(store, keys),
            keyed_answers,
            once,
            cached_answers,
        )
        self._commands = CommandTable((*commands.routes, *own_commands.routes), app.state.services)
        chat = ModelEndpoint(
            settings.models,
            authenticator,
            asker,
            model_client,
            resilience,
            once,
            AnswerCache(cached_answers, keys, settings.pepper, settings.models.models),
            call_timeout_s=settings.call_timeout_s,
            body_bytes_max=settings.body_bytes_max,
            calls_max=settings.model_calls_max,
            on_booked=self._metrics.booked,
        )
        return app, chat

    async def open_door(self, requests_max: int) -> None:
        """Also listen on a port of this replica's own, for ``requests_max`` requests at once. Safe to repeat.

        Raises:
            OSError: No port that it may have is free.
        """
        app, _ = await self.ready()
        if self._door is None:
            services: Services = app.state.services
            door = OwnDoor(self, services.doors, services.settings, requests_max, self._metrics.turned_away)
            self._door = door  # before the first await: a health check must not open a second one
            try:
                await door.open()
            except OSError:
                self._door = None
                raise

    async def close(self) -> None:
        """Finish what runs and the bookings under way, then let go of everything."""
        if self._opening is None or not self._opening.done() or self._opening.exception() is not None:
            return
        if self._door is not None:
            await self._door.close()
        app, chat = self._opening.result()
        await chat.drain()
        services: Services = app.state.services
        await services.tools.close()
        await services.model_client.close()
        await app.state.resilience.close()
        await services.bus.close()
        await services.models.close()
        await services.outcomes.close()
        await services.keyed_answers.close()
        await services.cached_answers.close()
        await services.doors.close()
        await services.vault.close()
        await services.store.close()
        if tracing.tracer is not None:
            await asyncio.to_thread(tracing.tracer.close)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        watched, began_s = Watched(scope, send), self._metrics.began()
        current.set(watched)
        try:
            answering = self._answer(scope, receive, watched)
            await (answering if tracing.tracer is None else traced(answering, watched, tracing.tracer))
        finally:
            self._metrics.ended(watched, began_s)

    async def _answer(self, scope: Scope, receive: Receive, send: Watched) -> None:
        try:
            app, chat = await self.ready()
        except PlatformError as error:
            await _error_response(as_http_error(error))(scope, receive, send)
            return
        if scope["path"] in ModelEndpoint.paths:
            send.route = scope["path"]
            await self._answer_model(chat, scope, receive, send)
            return
        assert self._commands is not None
        if found := self._commands.find(scope):
            command, parameters = found
            send.route = command.path
            await command(parameters, scope, receive, send)
            return
        if scope["path"].startswith(ADMIN_PREFIX) and (refusal := self._refuse_stranger(app, scope)):
            await refusal(scope, receive, send)
            return
        try:
            check_head(scope, app.state.services.settings.body_bytes_max)
        except HttpError as error:
            await _error_response(error)(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and (methods := methods_of(app.router.routes, scope)):
            await tell_methods(methods, send)
            return
        if scope["method"] == "HEAD":  # as GET; the server sends no body where HEAD was asked
            scope = {**scope, "method": "GET"}
        with contextlib.suppress(Exception):  # Starlette answers and logs what is unexpected, then raises it again
            await app(scope, receive, send)

    @staticmethod
    async def _answer_model(chat: ModelEndpoint, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["method"]:
            case "POST":
                await chat(scope, receive, send)
            case "OPTIONS":
                await tell_methods(_OF_MODELS, send)
            case method:
                refusal = _error_response(not_allowed(method, scope["path"], _OF_MODELS))
                await refusal(scope, receive, send)

    @staticmethod
    def _refuse_stranger(app: FastAPI, scope: Scope) -> Response | None:
        """Before a byte of the body is read: FastAPI reads it all before it asks who sends it."""
        try:
            if app.state.services.authenticator.is_admin(bearer(header(scope, b"authorization"))):
                return None
        except KeyRefusedError:
            pass
        return _error_response(as_http_error(KeyRefusedError()))


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
