"""What of a tenant lies in a JetStream stream: counted, and dropped when the tenant is erased."""

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from events.errors import BusUnavailableError


async def count_messages(jetstream: JetStreamContext, stream: str, subjects: str) -> int:
    """How many messages lie under the subjects (with wildcards); 0 where there is no stream. Raises BusUnavailableError."""
    try:
        info = await jetstream.stream_info(stream, subjects_filter=subjects)
    except NotFoundError:
        return 0
    except (NatsError, OSError, TimeoutError) as error:
        raise BusUnavailableError(f"{type(error).__name__}: {error}") from error
    return sum((info.state.subjects or {}).values())


async def purge_messages(jetstream: JetStreamContext, stream: str, subjects: str) -> None:
    """Drop all messages under the subjects, where there is such a stream. Raises BusUnavailableError."""
    try:
        await jetstream.purge_stream(stream, subject=subjects)
    except NotFoundError:
        return
    except (NatsError, OSError, TimeoutError) as error:
        raise BusUnavailableError(f"{type(error).__name__}: {error}") from error
