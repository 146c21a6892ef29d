"""The two-tenant matrix at a gateway's own door. tests/e2e/test_up.py holds both doors of a whole platform to it."""

import examples.order  # noqa: F401 - the saga whose runs the matrix starts
from events.bus import Bus
from events.inbox import Inbox
from tests.kit.gateway import ADMIN_KEY, World
from tests.kit.two_tenants import check_tenants_apart


async def test_whatever_is_another_tenants_is_answered_as_if_it_were_not_there(world: World, bus: Bus) -> None:
    await Inbox(bus).prepare()
    assert await check_tenants_apart(world.base_url, ADMIN_KEY, "m-ok") >= 60
