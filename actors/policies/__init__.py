"""What stands between a call and a dependency that may be slow, broken or overrun.

Each policy is a state machine of pure functions; time and chance are arguments:
``rate_limiter``, ``bulkhead``, ``breaker`` (over a ``window`` of outcomes), ``retry``, ``health``.
``wrappers`` holds them at work, ``wrappers.pipeline`` all of them around one call.
``config`` is how they are configured, ``refusals`` how they say no.
"""
