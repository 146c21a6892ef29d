"""What an operator does at the command line when something has to go, or has gone: erase, accept a loss, change the master
key, verify a long log.
"""

import pytest

from events.bus import Bus
from events.codec import GENESIS, chain
from events.envelope import Ok
from events.inbox import Inbox, dead_subject, tell_subject
from events.keys import Keys, parse_master_keys
from events.outcomes import Outcomes
from events.store import Append
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from events.valkey_vault import ValkeyVault
from events.vault import Witnessed
from serve.admin import log as log_routes
from serve.client import AdminError
from tests.kit.cli import Cli
from tests.kit.factories import created, record
from tests.kit.gateway import World
from tests.kit.servers import MASTER_KEY, OLD_MASTER_KEY, Servers


async def test_erase_leaves_nothing_in_the_queue_the_dead_letters_and_the_outcomes(
    cli: Cli, world: World, bus: Bus, servers: Servers
) -> None:
    """Another tenant's stay."""
    inbox, outcomes = Inbox(bus), Outcomes(connect(servers.valkey_url))
    await inbox.prepare()
    other = f"{world.tenant}x"
    for tenant in (world.tenant, other):
        for subject in (tell_subject(tenant), dead_subject(tenant, "letter")):
            await inbox.put(subject, b"a queued canary", f"{subject}:1", {}, 10)
        await outcomes.record(tenant, {"c1": Ok({"name": "a queued canary"}, 1)})
        await outcomes.mark_attempt(tenant, "c2", 1)
    assert (await inbox.left(world.tenant), await outcomes.left(world.tenant)) == ((1, 1), 2)

    report = await cli("tenant", "erase", world.tenant, "--yes")
    assert report["ok"], report
    assert {"queue, dead letters", "outcomes", "log", "vault"} <= {place["name"] for place in report["places"]}
    assert (await inbox.left(world.tenant), await outcomes.left(world.tenant)) == ((0, 0), 0)
    assert (await inbox.left(other), await outcomes.left(other)) == ((1, 1), 2)
    await inbox.purge(other)
    await outcomes.erase(other)
    await outcomes.close()


async def test_a_tenant_whose_log_was_rewound_goes_on_only_by_accept_loss(
    cli: Cli, world: World, valkey_store: ValkeyEventStore, vault: ValkeyVault
) -> None:
    tenant = f"{world.tenant}-lost"
    epoch = (await valkey_store.claim(tenant)).epoch
    entries = chain(GENESIS, [record(created("Lost"), epoch=epoch)])
    await valkey_store.append(Append(tenant, epoch, 0, GENESIS, entries, []))
    await vault.witness({tenant: Witnessed(4, b"h" * 32, 9)})
    with pytest.raises(AdminError):
        await cli("tenant", "show", tenant)
    for command in (("tenant", "resume", tenant), ("verify", tenant)):
        with pytest.raises(AdminError, match="position 4 was acknowledged"):
            await cli(*command)
    assert (await cli("tenant", "resume", tenant, "--accept-loss"))["id"] == tenant
    assert (await cli("verify", tenant))["events"] == 1
    head = await valkey_store.head(tenant)
    assert head is not None
    assert head.epoch > 9


async def test_the_master_key_is_changed_at_the_command_line(cli: Cli, world: World, vault: ValkeyVault) -> None:
    """The platform runs with NEW,OLD; afterwards NEW alone opens what OLD had wrapped."""
    tenant, new = f"{world.tenant}-old", Keys(vault, parse_master_keys(MASTER_KEY))
    await Keys(vault, parse_master_keys(OLD_MASTER_KEY)).cipher(tenant, create=True)
    assert tenant in await new.unreadable()
    found = await cli("vault", "rewrap")
    assert found["changed"] == 1
    assert found["keys"] > 1
    assert tenant not in await new.unreadable()
    assert (await cli("vault", "rewrap"))["changed"] == 0


async def test_a_verification_that_takes_long_says_how_far_it_is(
    cli: Cli, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no time limit of a client ends it: between two words there is a second, whatever the log's length."""
    monkeypatch.setattr(log_routes, "_PROGRESS_PERIOD_S", 0)
    async with world.admin.stream("GET", f"/tenants/{world.tenant}/verify", params={"follow": True}) as stream:
        lines = [line async for line in stream.aiter_lines() if line]
    assert lines[0] == 'data: {"done": 0, "of": 0}'
    assert '"head_hash"' in lines[-1]
    assert (await cli("verify", world.tenant))["events"] == 2
    with pytest.raises(AdminError, match="does not exist"):
        await cli("verify", "nobody")
