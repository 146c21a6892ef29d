"""The facts: commands and events, their codec and hash chain, the event store, the bus, errors, ids, clock."""
