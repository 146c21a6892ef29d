"""What the gateway's handlers work with."""

import msgspec

from events.ask import Asker
from events.bus import Bus
from events.valkey_store import ValkeyEventStore
from projections.runner import ReadModels
from serve.auth import Authenticator, KnownTenants
from serve.settings import Settings
from serve.upstream import Upstreams


class Services(msgspec.Struct, frozen=True):
    settings: Settings
    store: ValkeyEventStore
    models: ReadModels
    bus: Bus
    asker: Asker
    tenants: KnownTenants
    authenticator: Authenticator
    upstreams: Upstreams
