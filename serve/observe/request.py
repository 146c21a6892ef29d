"""The request that is being served, as far as metrics and traces want to know of it."""

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

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


def note_error(code: str) -> None:
    """The current request is answered with this error."""
    watched = current.get()
    if watched is not None:
        watched.code = code
