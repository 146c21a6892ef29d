"""The tenant aggregate, one module per noun: what it remembers (``state``), and what it decides about lifecycle, keys,
users, budgets, limits, prices and calls; ``books`` are what calls do to it.
"""

from actors.tenant.books import fold as fold_calls
from actors.tenant.budgets import window_start_us
from actors.tenant.deciding import answer, decide, describe, evolve, fire_timers
from actors.tenant.state import Tenant

__all__ = ["Tenant", "answer", "decide", "describe", "evolve", "fire_timers", "fold_calls", "window_start_us"]
