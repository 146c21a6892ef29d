"""All that can be asked of a tenant's actor, and all that can be in its log: one module per family, listed here."""

import msgspec

from events.errors import InvalidCommandError
from events.run import CapsCommand, RunCommand, RunEvents, RunsCapped
from events.system import SystemCommand, SystemEvent
from events.tenant import TenantCommand, TenantEvent
from events.timers import FireTimers
from events.tools import ToolCommand, ToolsEvent

# Families are joined with ``|``; a tag belongs to one family only.
DomainCommand = TenantCommand | RunCommand | CapsCommand | SystemCommand | ToolCommand | FireTimers
DomainEvent = TenantEvent | RunEvents | RunsCapped | SystemEvent | ToolsEvent

_command_decoder: msgspec.msgpack.Decoder[DomainCommand] = msgspec.msgpack.Decoder(DomainCommand)


def decode_command(body: bytes | msgspec.Raw) -> DomainCommand:
    """Raises InvalidCommandError with what was wrong."""
    try:
        return _command_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidCommandError(f"not a command of a tenant: {error}") from error
