"""Clients of HTTP/1.0 can't read chunks (RFC 9112, 7.1), which ASGI servers send all the same: they get a stream in one piece."""

from typing import Any

from serve.asgi import App, Message, Receive, Scope, Send


class WholeForOldClients:
    """ASGI middleware."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_old = scope.get("http_version") == "1.0"
        await self._app(scope, receive, WholeAnswer(send) if is_old else send)


class WholeAnswer:
    """Stands in for ``send``, and sends once it has all."""

    def __init__(self, send: Send) -> None:
        self._send, self._start, self._parts = send, dict[str, Any](), list[bytes]()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = dict(message)
            return
        self._parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = b"".join(self._parts)
        headers = [header for header in self._start["headers"] if header[0].lower() != b"content-length"]
        await self._send({**self._start, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
        await self._send({"type": "http.response.body", "body": body})
