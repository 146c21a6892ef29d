"""``/v1/keys``, ``/v1/users`` …: what a tenant does to itself, with its own keys. One module per noun."""

from serve.own import keys, reports, runs, users
from serve.own.routes import own_commands, own_reads
from serve.own.runs import own_runs

__all__ = ["keys", "own_commands", "own_reads", "own_runs", "reports", "runs", "users"]
