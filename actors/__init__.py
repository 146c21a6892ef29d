"""The deciders: aggregates (pure), the shard that hosts them, and the Ray actors around it."""
