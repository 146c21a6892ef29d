"""The bounded areas in Valkey: keys that are claimed once, answers of which the latest used stay."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from events.valkey_client import connect
from serve.kept import CachedAnswers, KeyedAnswers, NoRoomError
from tests.kit.servers import Servers

HOUR_MS = 3_600_000


@pytest.fixture
async def keyed(servers: Servers) -> AsyncIterator[KeyedAnswers]:
    kept = KeyedAnswers(connect(servers.valkey_url), bytes_max=2_000, keep_ms=HOUR_MS)
    yield kept
    await kept.close()


@pytest.fixture
async def cached(servers: Servers) -> AsyncIterator[CachedAnswers]:
    kept = CachedAnswers(connect(servers.valkey_url), bytes_max=2_000, keep_ms=HOUR_MS)
    yield kept
    await kept.close()


async def eventually(keyed: KeyedAnswers, tenant: str, field: str, claim: bytes) -> None:
    """Returns when what is held there is over by the server's clock, and the key is claimed."""
    async with asyncio.timeout(10):
        while await keyed.claim(tenant, field, claim, HOUR_MS) is not None:  # noqa: ASYNC110 - the server's to know
            await asyncio.sleep(0.005)


async def test_a_key_is_claimed_once_and_its_answer_replaces_the_claim_of_its_owner_only(keyed: KeyedAnswers) -> None:
    assert await keyed.claim("acme", "k", b"mine", HOUR_MS) is None
    assert await keyed.claim("acme", "k", b"yours", HOUR_MS) == b"mine"
    assert await keyed.claim("other", "k", b"yours", HOUR_MS) is None, "another tenant's is another key"
    assert not await keyed.replace("acme", "k", b"yours", b"a lie", HOUR_MS)
    assert await keyed.replace("acme", "k", b"mine", b"the answer", 200)
    assert await keyed.claim("acme", "k", b"yours", HOUR_MS) == b"the answer"
    await eventually(keyed, "acme", "k", b"yours")
    assert not await keyed.replace("acme", "k", b"mine", b"late", HOUR_MS), "who lost the claim changes nothing"
    assert await keyed.replace("acme", "k", b"yours", b"", 0)
    assert (await keyed.count("acme"), await keyed.size_bytes("acme")) == (0, 0)


async def test_a_claim_that_is_renewed_outlives_its_first_end(keyed: KeyedAnswers) -> None:
    await keyed.claim("renews", "k", b"mine", 50)
    assert await keyed.replace("renews", "k", b"mine", b"mine", HOUR_MS)
    await keyed.claim("renews", "later", b"x", 50)
    await eventually(keyed, "renews", "later", b"y")
    assert await keyed.claim("renews", "k", b"yours", HOUR_MS) == b"mine"


async def test_a_flood_of_keys_is_the_tenants_own_limit_until_old_ones_are_over(keyed: KeyedAnswers) -> None:
    async def flood() -> None:
        for number in range(100):
            await keyed.claim("flood", f"k{number}", b"x" * 100, 500)

    with pytest.raises(NoRoomError) as refusal:
        await flood()
    assert refusal.value.code == "rate_limited"
    assert await keyed.size_bytes("flood") <= 2_000
    assert await keyed.claim("calm", "k", b"x", HOUR_MS) is None, "nobody else's"
    await eventually(keyed, "flood", "k0", b"x")
    await eventually(keyed, "flood", "late", b"x")
    assert await keyed.count("flood") <= 5
    await keyed.erase("flood")
    assert await keyed.size_bytes("flood") == 0


async def test_what_was_not_used_for_longest_makes_room(cached: CachedAnswers) -> None:
    for number in range(3):
        assert await cached.put("acme", f"f{number}", b"x" * 300, number)
    assert await cached.get("acme", "f0", 10) == b"x" * 300
    assert await cached.put("acme", "f3", b"y" * 300, 11)
    assert await cached.get("acme", "f1", 12) is None
    assert await cached.get("acme", "f0", 13) is not None
    assert await cached.size_bytes("acme") <= 2_000
    assert await cached.get("other", "f0", 14) is None
    assert not await cached.put("acme", "f0", b"z" * 3_000, 15), "larger than all the room there is"
    assert await cached.get("acme", "f0", 16) is None, "and what it was to replace is old"
    await cached.erase("acme")
    assert (await cached.count("acme"), await cached.size_bytes("acme")) == (0, 0)


async def test_the_same_answer_again_takes_no_more_room(cached: CachedAnswers) -> None:
    for number in range(50):
        await cached.put("same", "f", b"x" * (100 + number), number)
    assert await cached.count("same") == 1
    assert await cached.size_bytes("same") == 149 + 256
