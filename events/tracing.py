"""Where spans begin and end, for who follows requests through processes. Off, as it is by default, each point costs one look
at ``tracer``. Nothing here knows OpenTelemetry: ``serve.observe.traces`` installs what does (extra ``otel``).

A trace travels as W3C's ``traceparent``: with an HTTP request, then in the envelope of what is asked. It is a client's to make
up, so nothing is ever decided by it, not even whether spans are kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Literal, Protocol, Self

Attributes = Mapping[str, str | int | float | bool | Sequence[str]]
Kind = Literal["server", "client", "internal"]


class Span(Protocol):
    """Ends with the block that it is entered for; what leaves the block as an exception is its ``error.type``."""

    @property
    def traceparent(self) -> str:
        """What makes another span a child of this one; "" where this one is not kept."""
        ...

    def set(self, attributes: Attributes) -> None: ...

    def rename(self, name: str) -> None: ...

    def fail(self, error_type: str) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Tracer(Protocol):
    def begin(self, name: str, kind: Kind, parent: str, attributes: Attributes) -> Span:
        """``parent`` is a traceparent, as a client or a span of ours said it; nonsense begins a trace of its own."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


tracer: Tracer | None = None
# of the span whose work this task is doing
current: ContextVar[str] = ContextVar("tenantry_traceparent", default="")


def child(name: str, kind: Kind, attributes: Attributes) -> Span | None:
    """A span below the current one; None where nothing is traced."""
    if tracer is None:
        return None
    parent = current.get()
    return tracer.begin(name, kind, parent, attributes) if parent else None


@contextmanager
def children(parents: list[str], name: str, kind: Kind, attributes: Attributes) -> Iterator[None]:
    """The same work seen from several traces: one span in each of them."""
    with ExitStack() as stack:
        for parent in parents:
            if tracer is not None and parent:
                stack.enter_context(tracer.begin(name, kind, parent, attributes))
        yield
