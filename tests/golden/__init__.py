"""Logs as releases have written them, kept for ever: today's code must read each to the state it had then.

A file is one tenant's log of one release, in JSON lines: who wrote it, then an event a line with what it changed in the
folded state. Files are added, never edited. A new kind of event, or a new version of one, is added to ``scenarios`` and
recorded under the release that ships it:

    uv run python -m tests.golden.record 0.2.0

Where State itself was changed on purpose, ``--refold`` writes anew what the events change; the events stay as they are.
"""
