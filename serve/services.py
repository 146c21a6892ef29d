"""What the gateway's handlers work with."""

import msgspec

from actors.tools.model import ModelClient
from actors.tools.runner import Tools
from events.ask import Asker
from events.bus import Bus
from events.dead_letters import DeadLetters
from events.inbox import Inbox
from events.keys import Keys
from events.outcomes import Outcomes
from events.tell import Teller
from events.valkey_store import ValkeyEventStore
from events.valkey_vault import ValkeyVault
from projections.runner import ReadModels
from serve.auth import Authenticator, KnownTenants
from serve.doors import Doors
from serve.idempotency import Once
from serve.kept import CachedAnswers, KeyedAnswers
from serve.observe.metrics import Metrics
from serve.run_history import RunHistory
from serve.settings import Settings


class Services(msgspec.Struct, frozen=True):
    settings: Settings
    store: ValkeyEventStore
    vault: ValkeyVault
    keys: Keys
    models: ReadModels
    bus: Bus
    asker: Asker
    tenants: KnownTenants
    authenticator: Authenticator
    model_client: ModelClient
    doors: Doors
    tools: Tools
    inbox: Inbox
    teller: Teller
    outcomes: Outcomes
    dead_letters: DeadLetters
    metrics: Metrics
    runs: RunHistory
    keyed_answers: KeyedAnswers
    once: Once
    cached_answers: CachedAnswers
