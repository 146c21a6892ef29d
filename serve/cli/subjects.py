"""Whom a budget or a limit is for: the tenant, or with an option one of its keys or users."""

from typing import Annotated

import typer

KeyOption = Annotated[str, typer.Option("--key", help="For one key, by its id.")]
UserOption = Annotated[str, typer.Option("--user", help="For one user, by its id.")]


def path_of(tenant: str, key: str, user: str) -> str:
    """Where the subject's settings are in the admin API. Raises typer.BadParameter."""
    if key and user:
        raise typer.BadParameter("--key and --user can't be given together")
    if key:
        return f"/tenants/{tenant}/keys/{key}"
    return f"/tenants/{tenant}/users/{user}" if user else f"/tenants/{tenant}"
