"""What may be done with a path, beside what its routes say: HEAD wherever there is GET, OPTIONS everywhere, and ``Allow``
where a method is refused (RFC 9110, 9.1 and 15.5.6). There is no CORS: a key has no place in a browser.
"""

from collections.abc import Iterable

from starlette.routing import BaseRoute, Match

from serve.asgi import Scope, Send

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def methods_of(routes: Iterable[BaseRoute], scope: Scope) -> tuple[str, ...]:
    """The methods that the scope's path takes; none: there is no such path."""
    known = tuple(routes)
    found = [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in known)
    ]
    return with_implied(found) if found else ()


def with_implied(methods: Iterable[str]) -> tuple[str, ...]:
    found = tuple(methods)
    return (*found, *(("HEAD",) if "GET" in found else ()), "OPTIONS")


async def tell_methods(methods: Iterable[str], send: Send) -> None:
    """The answer to OPTIONS."""
    allow = (b"allow", ", ".join(methods).encode())
    await send({"type": "http.response.start", "status": 204, "headers": [allow]})
    await send({"type": "http.response.body", "body": b""})
