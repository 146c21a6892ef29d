"""Who wants to know of each request to a model server: the gateway's metrics and traces. They see figures, not texts."""

from typing import Any, Protocol

from actors.tools.upstream import Upstream


class ObservedRequest(Protocol):
    """One request, from before it is sent to the end of its answer."""

    @property
    def traceparent(self) -> str:
        """W3C's header to send along; "" for none."""
        ...

    def answered(self, message: dict[str, Any]) -> None:
        """The whole answer, or one chunk of a streamed one."""
        ...

    def ended(self, error: BaseException | None) -> None:
        """Called once, last; ``error`` is what the caller gets instead of an answer."""
        ...


class RequestObserver(Protocol):
    def begin(self, upstream: Upstream, body: dict[str, Any]) -> ObservedRequest:
        """A request is about to be sent."""
        ...


class _Unobserved:
    traceparent = ""

    def begin(self, upstream: Upstream, body: dict[str, Any]) -> "ObservedRequest":
        return self

    def answered(self, message: dict[str, Any]) -> None:
        pass

    def ended(self, error: BaseException | None) -> None:
        pass


UNOBSERVED = _Unobserved()
