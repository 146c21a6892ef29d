"""The one command that all aggregates of a tenant share: something of the tenant's is due."""

from events.messages import Command


class FireTimers(Command, frozen=True, tag="timers.fire"):
    """Sent by the root supervisor when the tenant's next timer is due. Which aggregate's timer that is, the state says;
    where nothing is due after all, nothing happens.
    """
