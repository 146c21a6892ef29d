"""The request that is being served, as far as metrics and traces want to know of it."""

from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from events import tracing
from events.tracing import Tracer

if TYPE_CHECKING:
    from serve.asgi import Message, Scope, Send

OTHER = "(other)"
_METHODS = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"))

current: ContextVar["Watched | None"] = ContextVar("tenantry_request", default=None)


class Watched:
    """Stands in for ``send`` and remembers the status. ``code``: the error that the client was told, "" for none."""

    __slots__ = ("_send", "code", "route", "scope", "status")

    def __init__(self, scope: "Scope", send: "Send") -> None:
        self.scope, self._send = scope, send
        self.route = ""  # set by who serves without FastAPI
        self.status, self.code = 0, ""

    async def __call__(self, message: "Message") -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    @property
    def path_template(self) -> str:
        """The route's path with the names of its parameters, never their values; ``(other)`` where there is no route."""
        if self.route:
            return self.route
        route: Any = self.scope.get("route")  # where Starlette leaves what it has found
        return getattr(route, "path_format", OTHER)

    @property
    def method(self) -> str:
        method: str = self.scope["method"]
        return method if method in _METHODS else OTHER

    @property
    def status_class(self) -> str:
        """``2xx`` … ``5xx``; ``left`` where the client was gone before an answer began."""
        return f"{self.status // 100}xx" if self.status else "left"


async def traced(work: Awaitable[None], request: Watched, tracer: Tracer) -> None:
    """A span around a request. Whose trace it is part of is the client's to say, and nothing else is."""
    said = next((value for name, value in request.scope["headers"] if name == b"traceparent"), b"")
    attributes = {"http.request.method": request.method, "url.scheme": request.scope.get("scheme", "http")}
    with tracer.begin(request.method, "server", said.decode("latin-1"), attributes) as span:
        tracing.current.set(span.traceparent)
        try:
            await work
        finally:
            route = request.path_template
            span.rename(f"{request.method} {route}")
            span.set({"http.route": route, "http.response.status_code": request.status})
            if request.status >= 500 or not request.status:
                span.fail(request.code or request.status_class)


def note_error(code: str) -> None:
    """The current request is answered with this error."""
    watched = current.get()
    if watched is not None:
        watched.code = code
