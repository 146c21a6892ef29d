"""What a gateway works with, beside what all processes have."""

from events.valkey_client import connect
from serve.answer_cache import TTL_MAX_S
from serve.bootstrap.connections import SOCKET_TIMEOUT_S
from serve.doors import Doors
from serve.idempotency import CLAIM_S, KEEP_S
from serve.kept import CachedAnswers, KeyedAnswers
from serve.settings import Settings


def open_doors(settings: Settings) -> Doors:
    return Doors(connect(settings.valkey_url, db=settings.reads_db))


def open_keyed_answers(settings: Settings) -> KeyedAnswers:
    client = connect(settings.valkey_url, timeout_s=SOCKET_TIMEOUT_S)
    return KeyedAnswers(client, bytes_max=settings.answers_bytes_max, keep_ms=int(1000 * (KEEP_S + CLAIM_S)))


def open_cached_answers(settings: Settings) -> CachedAnswers:
    client = connect(settings.valkey_url, db=settings.reads_db, timeout_s=SOCKET_TIMEOUT_S)
    return CachedAnswers(client, bytes_max=settings.cache_bytes_max, keep_ms=1000 * TTL_MAX_S)
