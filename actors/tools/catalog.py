"""Which kinds of adapter there are. Their modules are imported on first use: most processes only read the settings."""

import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from actors.policies.config import problems
from actors.tools.config import EmailConfig, HttpConfig, ModelConfig, PaymentConfig, ToolConfig, ToolConfigError

# Kind -> its configuration, and where its adapter is. Others are named ``module:Class`` themselves.
KINDS: Mapping[str, tuple[type[ToolConfig], str]] = {
    "email": (EmailConfig, "actors.tools.email:EmailTool"),
    "http": (HttpConfig, "actors.tools.http:HttpTool"),
    "model": (ModelConfig, "actors.tools.model:ModelTool"),
    "payment": (PaymentConfig, "actors.tools.payment:PaymentTool"),
}


def adapter_class(kind: str) -> Any:
    """The subclass of ToolAdapter. Raises ToolConfigError."""
    from actors.tools.adapter import ToolAdapter  # noqa: PLC0415 - see above

    place = KINDS[kind][1] if kind in KINDS else kind
    module_name, _, class_name = place.partition(":")
    if not class_name:
        raise ToolConfigError(f"adapter {kind!r}: there are {', '.join(KINDS)}, and module:Class for one of your own")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ToolConfigError(f"adapter {kind!r}: {error}; is its folder on PYTHONPATH?") from error
    if not (isinstance(found, type) and issubclass(found, ToolAdapter)):
        raise ToolConfigError(f"adapter {kind!r} is not a subclass of actors.tools.adapter.ToolAdapter")
    return found


def parse_tool(given: object) -> ToolConfig:
    """One entry of ``tools``. Raises ToolConfigError with all that is wrong and the setting that was probably meant."""
    if not isinstance(given, Mapping):
        raise ToolConfigError(f"a tool is a mapping with name and adapter, got {str(given)[:40]!r}")
    name, kind = str(given.get("name", "?")), given.get("adapter")
    if not isinstance(kind, str):
        raise ToolConfigError(
            f"tool {name!r}: adapter: there are {', '.join(KINDS)}, and module:Class for one of your own"
        )
    config_type = KINDS[kind][0] if kind in KINDS else adapter_class(kind).config_type
    try:
        config: ToolConfig = config_type.model_validate(given)
    except ValidationError as error:
        raise ToolConfigError(f"tool {name!r}: {problems(error)}") from error
    return config
