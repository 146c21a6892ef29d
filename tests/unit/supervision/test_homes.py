"""Which actor a tenant belongs to, by name."""

from collections import Counter

import pytest

from actors.supervision.homes import ActorName, Homes, home_of, is_tenant_actor, shard_of

TENANTS = [f"tenant-{number}" for number in range(4_000)]


@pytest.mark.parametrize("text", ["silo-acme", "silo-a-1.3", "pool-0", "pool-12.1"])
def test_a_name_reads_as_it_was_written(text: str) -> None:
    assert str(ActorName.parse(text)) == text
    assert is_tenant_actor(text)


def test_a_name_tells_whom_it_serves() -> None:
    assert (ActorName.parse("silo-pool-7.2").tenant, ActorName.parse("silo-pool-7.2").serves) == ("pool-7", "silo")
    assert (ActorName.parse("pool-7.2").shard, ActorName.parse("pool-7.2").tenant) == (7, "")
    assert not is_tenant_actor("relay-0")


def test_a_tenant_with_a_plan_of_its_own_has_an_actor_of_its_own() -> None:
    assert home_of("acme", "silo", 5) == "silo-acme"
    assert home_of("acme", "pool", 1) == "pool-0"


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 32])
def test_shards_have_about_equally_many_tenants(shards: int) -> None:
    counts = Counter(shard_of(tenant, shards) for tenant in TENANTS)
    assert set(counts) == set(range(shards))
    assert max(counts.values()) < 1.5 * len(TENANTS) / shards


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_a_pool_that_grows_by_one_moves_one_tenant_in_n_and_only_to_the_new_shard(shards: int) -> None:
    moved = [tenant for tenant in TENANTS if shard_of(tenant, shards) != shard_of(tenant, shards + 1)]
    assert {shard_of(tenant, shards + 1) for tenant in moved} == {shards}
    assert len(moved) == pytest.approx(len(TENANTS) / (shards + 1), rel=0.25)


def test_a_shard_stays_the_same_across_releases() -> None:
    assert [shard_of(tenant, 8) for tenant in ("acme", "demo", "system", "zebra")] == [4, 7, 5, 5]


def test_the_latest_generation_serves_a_home() -> None:
    homes = Homes(2)
    homes.succeeded(map(ActorName.parse, ["pool-0", "silo-acme.2", "silo-acme.10", "silo-acme"]))
    assert str(homes.actor_for("acme", "silo")) == "silo-acme.10"
    assert str(homes.successor("silo-acme")) == "silo-acme.11"
    assert str(homes.actor("pool-1")) == "pool-1"


@pytest.mark.parametrize(
    ("name", "placement", "is_wanted"),
    [
        ("silo-acme.2", "silo", True),
        ("silo-acme.3", "silo", True),  # is being started
        ("silo-acme.1", "silo", False),
        ("silo-acme.2", "pool", False),
        ("silo-acme.2", None, False),
        ("pool-1", None, True),
        ("pool-2", None, False),
    ],
)
def test_what_has_no_purpose_is_not_wanted(name: str, placement: str | None, is_wanted: bool) -> None:
    homes = Homes(2)
    homes.succeeded([ActorName("silo-acme", 2)])
    assert homes.is_wanted(ActorName.parse(name), placement) is is_wanted  # type: ignore[arg-type]
