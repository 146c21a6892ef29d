"""``/admin/v1``: what an operator does to tenants. Admin key only. One module per noun; each hangs its routes on a router."""

from serve.admin import archive, keys, log, platform, tenants
from serve.admin.routes import commands, router

__all__ = ["archive", "commands", "keys", "log", "platform", "router", "tenants"]
