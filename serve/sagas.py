"""Sagas of the deployment's own: modules that declare them, imported by every process that decides or carries out runs."""

import importlib

import actors.run.agent  # noqa: F401 - registers itself
from serve.settings import SettingsError


def load_sagas(modules: str) -> None:
    """Import modules, separated by commas. Safe to repeat.

    Raises:
        SettingsError: One can't be imported; the message says which and why.
    """
    for name in filter(None, map(str.strip, modules.split(","))):
        try:
            importlib.import_module(name)
        except Exception as error:
            raise SettingsError(
                f"TENANTRY_SAGAS: module {name!r} can't be imported ({type(error).__name__}: {error}); "
                "its directory has to be on the PYTHONPATH of every process"
            ) from error
