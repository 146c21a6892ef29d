"""Durable runs: how sagas are declared (``definition``, ``function``, ``agent``), found (``registry``), remembered
(``state``), driven (``machine``, and what follows from that: ``consequences``) and begun again (``again``).
"""

from actors.run.definition import Child, Parallel, Retry, Saga, Sequential, Signal, Step, Timer, Undo, View
from actors.run.registry import register

__all__ = ["Child", "Parallel", "Retry", "Saga", "Sequential", "Signal", "Step", "Timer", "Undo", "View", "register"]
