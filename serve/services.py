"""What the gateway's handlers work with."""

import msgspec

from actors.tools.model import ModelClient
from events.ask import Asker
from events.bus import Bus
from events.valkey_store import ValkeyEventStore
from projections.runner import ReadModels
from serve.auth import Authenticator, KnownTenants
from serve.doors import Doors
from serve.settings import Settings


class Services(msgspec.Struct, frozen=True):
    settings: Settings
    store: ValkeyEventStore
    models: ReadModels
    bus: Bus
    asker: Asker
    tenants: KnownTenants
    authenticator: Authenticator
    model_client: ModelClient
    doors: Doors
