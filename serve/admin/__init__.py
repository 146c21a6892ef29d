"""``/admin/v1``: what an operator does to tenants. Admin key only. One module per noun; each hangs its routes on a router."""

from serve.admin import (
    archive,
    budgets,
    calls,
    inbox,
    keys,
    limits,
    log,
    platform,
    prices,
    recovery,
    resilience,
    runs,
    spend,
    tenants,
    tools,
    users,
    vault,
)
from serve.admin.routes import commands, router

__all__ = [
    "archive",
    "budgets",
    "calls",
    "commands",
    "inbox",
    "keys",
    "limits",
    "log",
    "platform",
    "prices",
    "recovery",
    "resilience",
    "router",
    "runs",
    "spend",
    "tenants",
    "tools",
    "users",
    "vault",
]
