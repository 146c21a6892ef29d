"""Who may use how many permits of a bulkhead that the whole cluster shares. Pure; time is an argument.

The limit holds because a permit is on nobody's account before it is off everybody else's:
- a holder that wants more gets it out of what is on no account, at once;
- a holder that should have less is told so, and is credited only when it *says* that it uses no more;
- a holder that is silent keeps its permits on its account until its lease has surely ended on its side, and calls it had
  under way have had ``drain_s`` to end. Its lease begins when it asks and our time begins when we hear it, so ours ends later.

After a start nobody knows what is out there. Holders report what they have; nothing else is lent before every lease that
this supervisor doesn't know of must have ended (``blind_until_s``). The same after a pause: time went by unseen.
"""

from collections.abc import Mapping

import msgspec

TTL_S = 3.0  # a lease, from the holder's request on
TURN_S = 2.0  # how long who is lucky with what can't be divided stays so
MARGIN_S = 0.5  # for clocks that don't tick alike, and callbacks that come late


class Holder(msgspec.Struct, frozen=True):
    """``held``: what it may be using at most. ``wanted``: what it would use. ``ends_s``: when the account is closed."""

    held: int
    wanted: int
    ends_s: float


class Pool(msgspec.Struct, frozen=True):
    """A bulkhead's permits. ``drain_s`` is the longest that a call of a holder may go on after its lease has ended."""

    limit: int
    drain_s: float = 0.0
    blind_until_s: float = 0.0
    holders: Mapping[str, Holder] = {}

    @property
    def leased(self) -> int:
        return sum(holder.held for holder in self.holders.values())

    @property
    def wanted(self) -> int:
        return sum(holder.wanted for holder in self.holders.values())


def ask(pool: Pool, caller: str, held: int, wanted: int, now_s: float) -> tuple[Pool, int]:
    """``caller`` surely uses no more than ``held`` from now on, and would use ``wanted``. How many it may use until
    its lease ends: below ``held`` it has to come down to that first, and say so in its next request.
    """
    others = {name: holder for name, holder in pool.holders.items() if name != caller and holder.ends_s > now_s}
    demand = {name: holder.wanted for name, holder in others.items()}
    share = fair_shares(pool.limit, {**demand, caller: wanted}, int(now_s / TURN_S))[caller]
    free = pool.limit - sum(holder.held for holder in others.values()) - held
    if share <= held:
        granted = share
    elif now_s < pool.blind_until_s:
        granted = held
    else:
        granted = held + max(0, min(share - held, free))
    if granted == 0 and held == 0 and wanted == 0:
        return _with(pool, others), 0
    holder = Holder(max(granted, held), wanted, now_s + TTL_S + pool.drain_s + MARGIN_S)
    return _with(pool, {**others, caller: holder}), granted


def expire(pool: Pool, now_s: float) -> Pool:
    """Without the accounts that are over."""
    return _with(pool, {name: holder for name, holder in pool.holders.items() if holder.ends_s > now_s})


def lost_time(pool: Pool, now_s: float) -> Pool:
    """After a start or a pause: all that is known may still be in use, and so may what is not known."""
    ends_s = now_s + TTL_S + pool.drain_s + MARGIN_S
    holders = {
        name: msgspec.structs.replace(holder, ends_s=max(ends_s, holder.ends_s))
        for name, holder in pool.holders.items()
    }
    return Pool(pool.limit, pool.drain_s, ends_s, holders)


def fair_shares(limit: int, wanted: Mapping[str, int], turn: int = 0) -> dict[str, int]:
    """Max-min fair: nobody gets more than it wants, and what one leaves is shared by those who want more. Who gets what
    can't be divided goes round with ``turn``, so that nobody is left out for ever.
    """
    shares, left, names = {}, limit, sorted(wanted)
    place = {name: (number + turn) % len(names) for number, name in enumerate(names)}
    by_want = sorted(names, key=lambda name: (wanted[name], place[name]))
    for number, name in enumerate(by_want):
        shares[name] = min(wanted[name], left // (len(by_want) - number))
        left -= shares[name]
    return shares


def _with(pool: Pool, holders: Mapping[str, Holder]) -> Pool:
    return Pool(pool.limit, pool.drain_s, pool.blind_until_s, holders)
