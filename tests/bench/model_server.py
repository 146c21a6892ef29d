"""A model server that answers at once: the same completion to everybody, whole or as a stream of ``TOKENS`` chunks. Only
what is asked of the model ``thinking`` takes a while, when it is not a stream.

Bare sockets, one chunk of each stream per round of the loop, so that it is never what is measured. Run as a program with the
file to write its port to.
"""

import asyncio
import random
import sys
from pathlib import Path
from typing import cast

import msgspec

TOKENS = 200
_CHUNK = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1, "model": "instant"}
_USAGE = {"prompt_tokens": 12, "completion_tokens": TOKENS, "total_tokens": 12 + TOKENS}


def _event(data: bytes) -> bytes:
    body = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(body), body)


def _delta(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return _event(msgspec.json.encode({**_CHUNK, "choices": [choice]}))


_WHOLE = msgspec.json.encode(
    {
        **_CHUNK,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": " word" * 20}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 20, "total_tokens": 32},
    }
)
_WHOLE_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_WHOLE),
    _WHOLE,
)
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_TOKEN = _delta(" word")
_STREAM_END = _event(msgspec.json.encode({**_CHUNK, "choices": [], "usage": _USAGE})) + _event(b"[DONE]") + b"0\r\n\r\n"


def _thinking_s() -> float:
    """As long as a model takes: a median of 0.2 s and a tail, 0.5 s at the 99th percentile."""
    return random.lognormvariate(-1.6, 0.4)


class Server(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if not separator or len(body) < length:
            return
        self._received = b""
        assert self._transport is not None
        if b'"stream":true' in body:
            self._transport.write(_STREAM_HEAD)
            asyncio.get_running_loop().call_soon(self._next_token, TOKENS)
        else:
            wait_s = _thinking_s() if b'"model":"thinking"' in body else 0.0
            asyncio.get_running_loop().call_later(wait_s, self._answer) if wait_s else self._answer()

    def _answer(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_WHOLE_ANSWER)

    def _next_token(self, left: int) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        if left:
            self._transport.write(_TOKEN)
            asyncio.get_running_loop().call_soon(self._next_token, left - 1)
        else:
            self._transport.write(_STREAM_END)


async def _serve(port_file: Path) -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    temporary = port_file.with_suffix(".tmp")
    temporary.write_text(str(server.sockets[0].getsockname()[1]))
    temporary.replace(port_file)
    await server.serve_forever()


def main() -> None:
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(Path(sys.argv[1])))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
