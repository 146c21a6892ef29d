"""The policies at work: each holds its state machine's state, asks a clock, and waits where there is something to wait for.

Each lives in one event loop. ``pipeline`` puts them around a call in their order.
"""
