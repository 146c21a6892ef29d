"""Which tools there are: configurations become adapters, and one pipeline of policies per scope."""

from collections.abc import Callable, Iterable
from typing import Any

from actors.policies.wrappers.build import build_pipeline
from actors.policies.wrappers.pipeline import Pipeline, counts_as_failure
from actors.supervision.clients import Resilience
from actors.tools.adapter import ToolAdapter
from actors.tools.catalog import adapter_class
from actors.tools.config import ToolConfig
from actors.tools.errors import ToolRefusedError
from events.errors import NotFoundError

# What stands around the calls of a tool: (dependency, tenant or "" for all of them, configuration).
BuildPipeline = Callable[[str, str, ToolConfig], Pipeline]


def tool_failed(error: BaseException) -> bool | None:
    """For the breaker: a tool that refuses a request works."""
    return False if isinstance(error, ToolRefusedError) else counts_as_failure(error)


def own_pipeline(dependency: str, _tenant: str, config: ToolConfig) -> Pipeline:
    """For this process alone."""
    return build_pipeline(dependency, config, counts=tool_failed)


def shared_pipelines(resilience: Resilience) -> BuildPipeline:
    """Breakers and bulkheads of the whole cluster. A tenant with settings of its own has its own of both."""

    def build(dependency: str, tenant: str, config: ToolConfig) -> Pipeline:
        scoped = config.model_copy(update={"scope": "tenant"}) if tenant else config
        return resilience.pipeline(dependency, scoped, tenant=tenant, counts=tool_failed)

    return build


class Registry:
    """Adapters are built when first called, one per tool and set of overrides. ``close`` when done."""

    def __init__(
        self,
        configs: Iterable[ToolConfig] = (),
        *,
        build: BuildPipeline = own_pipeline,
        adapters: Iterable[ToolAdapter[Any]] = (),
    ) -> None:
        """``adapters``: built already, as in tests and programs."""
        built = list(adapters)
        self._configs: dict[str, ToolConfig] = {
            config.name: config for config in [*configs, *(adapter.config for adapter in built)]
        }
        self._build = build
        self._applied: dict[tuple[str, str], ToolConfig] = {}
        self._adapters: dict[tuple[str, str], ToolAdapter[Any]] = {(a.config.name, ""): a for a in built}
        self._pipelines: dict[tuple[str, str], Pipeline] = {}

    @property
    def configs(self) -> list[ToolConfig]:
        return [self._configs[name] for name in sorted(self._configs)]

    def config(self, tool: str, tenant: str = "") -> ToolConfig:
        """The tool's settings as they apply to the tenant. Raises NotFoundError."""
        if tool not in self._configs:
            raise NotFoundError("tool", tool[:80])
        key = (tool, self._own(tool, tenant))
        if key not in self._applied:
            self._applied[key] = self._configs[tool].for_tenant(tenant)
        return self._applied[key]

    def adapter(self, tool: str, tenant: str) -> ToolAdapter[Any]:
        config, key = self.config(tool, tenant), (tool, self._own(tool, tenant))
        if key not in self._adapters:
            base = self._adapters.get((tool, ""))
            kind = type(base) if base is not None else adapter_class(config.adapter)
            self._adapters[key] = kind(config)
        return self._adapters[key]

    def pipeline(self, tool: str, tenant: str) -> Pipeline:
        """One for all tenants, unless the tool's scope, or settings of its own, give the tenant one."""
        config = self.config(tool, tenant)
        key = (tool, tenant if config.scope == "tenant" else self._own(tool, tenant))
        if key not in self._pipelines:
            if self.adapter(tool, tenant).is_blocking and config.bulkhead is not None:
                threads = config.bulkhead.model_copy(update={"strategy": "threads"})
                config = config.model_copy(update={"bulkhead": threads})
            self._pipelines[key] = self._build(tool, key[1], config)
        return self._pipelines[key]

    def _own(self, tool: str, tenant: str) -> str:
        return tenant if tenant in self._configs[tool].overrides else ""

    async def close(self) -> None:
        for adapter in self._adapters.values():
            await adapter.close()
        self._adapters.clear()
        self._pipelines.clear()
