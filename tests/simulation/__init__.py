"""A tenant's runs in one process and in virtual time, against a seeded dice that lets messages and answers get lost, come
twice, late and in another order, appends be refused, dependencies be busy, slow or silent, and processes die before and after
whatever they do. What came of it is read from the log and from the ledger that the dependencies keep.

``pure`` is the pure machine with as little as possible around it: ten thousand schedules in half a minute. ``whole`` is the
platform's own activation, dispatcher, runner, asker and timer scan, some tens of schedules a second.

    uv run python -m tests.simulation --schedules 10000
    uv run python -m tests.simulation --whole --schedules 1000
"""
