"""``/admin/v1``: what an operator does to tenants. Admin key only. One module per noun; each hangs its routes on a router."""

from serve.admin import keys, log, platform, tenants
from serve.admin.routes import commands, router

__all__ = ["commands", "keys", "log", "platform", "router", "tenants"]
