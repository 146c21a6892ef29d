"""What a deployment is told: the models file, and settings from the environment. Read once, handed down as values."""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from actors.policies.config import BreakerConfig, BulkheadConfig, PoliciesConfig, Seconds, unknown_key
from actors.router.balance import Strategy
from actors.tools.upstream import Upstream
from events import failpoints
from events.errors import PlatformError
from events.inbox import QUEUE_MAX
from events.keys import MasterKeyError, parse_master_keys
from events.money import Price, nano_usd
from events.slices import SLICE_COUNT

if TYPE_CHECKING:
    from actors.tools.config import ToolConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$")]
ENV_PREFIX = "TENANTRY_"
_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")


class SettingsError(PlatformError):
    """A setting or the models file can't be used; the message says which and why."""

    code = "bad_settings"


# A model's server is a dependency that all tenants share. Its calls are long: what failed half a minute ago still counts.
MODEL_BREAKER = BreakerConfig(window_s=30.0)


class ModelUpstream(Upstream, frozen=True):
    """A server of a model, and how much of it there is. ``name`` is what answers, events and breakers call it: the model's
    name there, unless it is given. ``weight``: its share among a model's upstreams; 0: a reserve.
    """

    name: Name | None = None
    weight: Annotated[int, Field(ge=0, le=1000)] = 1
    bulkhead: BulkheadConfig | None = None
    breaker: BreakerConfig = MODEL_BREAKER

    @model_validator(mode="before")
    @classmethod
    def _knows_all_keys(cls, given: Any) -> Any:
        return hinted(given, cls)

    @model_validator(mode="after")
    def _blocks_nothing(self) -> Self:
        if self.bulkhead is not None and self.bulkhead.strategy == "threads":
            raise ValueError("a model's bulkhead is of strategy 'semaphore' or 'queue': 'threads' is for what blocks")
        return self

    @property
    def policies(self) -> PoliciesConfig:
        return PoliciesConfig(bulkhead=self.bulkhead, breaker=self.breaker)


class Model(BaseModel, frozen=True, extra="forbid"):
    """What clients ask for by ``name``, and who answers: one of its upstreams, chosen by ``balance``. Where one fails
    before the first byte, the others are tried, then the models named in ``fallbacks``; ``attempts_max`` of each model.

    ``attempt_timeout_s``: who has not begun to answer by then is given up for the next.
    """

    name: Name
    upstreams: Annotated[tuple[ModelUpstream, ...], Field(min_length=1, max_length=100)]
    price: Price = Price()
    max_output_tokens: PositiveInt = 1024
    balance: Strategy = "weighted"
    fallbacks: Annotated[tuple[Name, ...], Field(max_length=10)] = ()
    attempts_max: Annotated[int, Field(ge=1, le=10)] = 3
    attempt_timeout_s: Seconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _knows_all_keys(cls, given: Any) -> Any:
        return hinted(given, cls)

    @model_validator(mode="after")
    def _has_someone_to_ask(self) -> Self:
        if all(upstream.weight == 0 for upstream in self.upstreams) and len(self.upstreams) > 1:
            raise ValueError("every upstream has weight 0: give at least one of them a weight")
        return self


class ModelsFile(BaseModel, frozen=True, extra="forbid"):
    """``tools`` are checked by ``tool_configs``: most processes have no use for them, and their kinds take long to import."""

    models: tuple[Model, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [model.name for model in self.models]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"each model's name may stand once; these stand more often: {', '.join(sorted(twice))}")
        for model in self.models:
            for number, name in enumerate(model.fallbacks):
                if name == model.name or name in model.fallbacks[:number]:
                    raise ValueError(
                        f"model {model.name!r}: {name!r} stands in its fallbacks twice, or is the model itself"
                    )
                if name not in names:
                    known = [other for other in names if other != model.name]
                    raise ValueError(f"model {model.name!r}: {unknown_name('fallback', name, known)}")
        self.upstream_names()
        return self

    def upstream_names(self) -> dict[ModelUpstream, str]:
        """What each upstream is called: one name for one server's model, however many models use it.

        Raises:
            ValueError: A name that was given stands for two.
        """
        names: dict[ModelUpstream, str] = {}
        by_server: dict[tuple[str, str], str] = {}
        taken: dict[str, tuple[str, str]] = {}
        every = [upstream for model in self.models for upstream in model.upstreams]
        for upstream in sorted(every, key=lambda one: one.name is None):  # those that were given come first
            server = (upstream.base_url, upstream.model)
            name = upstream.name or by_server.get(server) or _free_name(upstream.model, taken)
            if taken.setdefault(name, server) != server:
                raise ValueError(f"upstream name {name!r} stands for two servers: give one of them another name")
            by_server.setdefault(server, name)
            names[upstream] = name
        return names


def _free_name(model: str, taken: Mapping[str, object]) -> str:
    """The model's own name for the first server that has it, ``name-2`` for the second."""
    return next(name for n in count(1) if (name := model if n == 1 else f"{model}-{n}") not in taken)


def hinted(given: Any, kind: type[BaseModel]) -> Any:
    """What was given, unless a key is none of the model's: then ValueError with what was probably meant."""
    for key in given if isinstance(given, dict) else ():
        if key not in kind.model_fields:
            raise ValueError(unknown_key(str(key), list(kind.model_fields)))
    return given


def unknown_name(what: str, name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known) or 'no others'}"
    return f"{what} {name!r} is no model of this file: {guess}"


def _master_key(text: str) -> str:
    try:
        parse_master_keys(text)
    except MasterKeyError as error:
        raise ValueError(f"{error}; `tenantry up` makes one in secrets.json") from error
    return text


def _money(text: str) -> str:
    nano_usd(text)
    return text


class Settings(BaseModel, frozen=True, extra="forbid"):
    """From ``TENANTRY_*`` variables, which every process of a deployment inherits. ``models`` is the file's content."""

    nats_url: str
    valkey_url: str
    vault_url: str  # a Valkey apart from the log's, with backups of its own: tenants' keys and the heads of their logs
    admin_key: Annotated[str, Field(min_length=16)]
    metrics_key: Annotated[str, Field(pattern=r"^(|[!-~]{16,})$")] = (
        ""  # reads /metrics and nothing else; empty: only the admin key does
    )
    pepper: Annotated[str, Field(min_length=32)]  # keys the hashes of API keys; losing it invalidates all of them
    # 32 bytes in base64: wraps the tenants' keys; older ones, to unwrap with, may follow after commas
    master_key: Annotated[str, AfterValidator(_master_key)]
    models: ModelsFile = ModelsFile()
    reads_db: int = 1  # the Valkey database of the read models
    pool_shards: PositiveInt = 1
    relays: Annotated[int, Field(ge=1, le=SLICE_COUNT)] = 1  # actors that share the queues of all tenants
    sagas: str = ""  # modules that declare sagas and step functions, separated by commas
    runners: PositiveInt = 1  # actors that carry out steps of runs
    steps_at_once: PositiveInt = 64  # per runner
    runs_listed_days: PositiveFloat = 30.0  # after its end a run leaves the list; the log keeps it
    agent_turns_max: PositiveInt = 100  # ceilings of an agent run; of the next three, 0 is none
    agent_tokens_max: NonNegativeInt = 0
    agent_cost_usd_max: Annotated[str, AfterValidator(_money)] = "0"
    agent_seconds_max: Annotated[float, Field(ge=0)] = 86_400.0
    objects_url: str = ""  # an fsspec path for payloads of runs over 64 KiB; empty: those are refused
    tell_queue_max: PositiveInt = QUEUE_MAX  # commands that may wait in a tenant's queue
    idle_after_s: Annotated[float, Field(ge=0.1)] = 600.0  # a tenant not asked for so long leaves memory
    active_tenants_max: PositiveInt = 20_000  # per actor: beyond it, who was asked least recently leaves memory
    call_timeout_s: Annotated[float, Field(gt=0, le=12 * 3600)] = 600.0  # one model call, from connect to last byte
    model_calls_max: PositiveInt = (
        1_000  # at once, per gateway replica; one tenant holds three quarters of them at most
    )
    body_bytes_max: PositiveInt = 4 * 1024 * 1024
    cache_bytes_max: NonNegativeInt = 16 * 1024 * 1024  # per tenant: answers for whoever asks for the cache
    answers_bytes_max: NonNegativeInt = 64 * 1024 * 1024  # per tenant: answers under Idempotency-Keys of the last day
    archive_url: str = ""  # an fsspec path for old events; empty: they stay in Valkey
    archive_keep_events: NonNegativeInt = 100_000  # per tenant: the newest stay in Valkey
    archive_least_events: PositiveInt = 50_000  # fewer are not worth a file
    archive_period_s: PositiveFloat = 60.0  # between two looks at all logs
    gateway_host: str = "127.0.0.1"  # where each gateway replica opens a port of its own
    gateway_ports: str = ""  # such as 8100-8119; empty: any free port
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    traces_url: str = ""  # an OTLP/HTTP collector, such as http://127.0.0.1:4318/v1/traces; empty: no traces
    traces_sample: Annotated[float, Field(ge=0, le=1)] = 1.0  # the share of requests that are traced
    failpoints: str = ""  # for fault tests, see events/failpoints.py
    failpoints_seed: int = 0

    @field_validator("failpoints")
    @classmethod
    def _known_failpoints(cls, value: str) -> str:
        try:
            failpoints.parse(value)
        except failpoints.FailpointSpecError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("gateway_ports")
    @classmethod
    def _is_range(cls, value: str) -> str:
        if value and not (match := _PORTS.fullmatch(value)):
            raise ValueError(f"expected a range of ports such as 8100-8119, got {value!r}")
        if value and match and not 0 < int(match[1]) <= int(match[2]) < 65_536:
            raise ValueError(f"not a range of ports: {value}")
        return value

    @property
    def gateway_port_range(self) -> range:
        """Ports to try, in order; empty: any free one."""
        first, _, last = self.gateway_ports.partition("-")
        return range(int(first), int(last) + 1) if first else range(0)

    def secrets(self) -> list[str]:
        """Texts that no log may hold, those of model servers included."""
        keys = [
            os.environ.get(upstream.api_key_env or "", "")
            for model in self.models.models
            for upstream in model.upstreams
        ]
        passwords = [urlsplit(url).password or "" for url in (self.nats_url, self.valkey_url, self.vault_url)]
        ours = (self.admin_key, self.metrics_key, self.pepper, *self.master_key.split(","))
        return [text for text in (*ours, *passwords, *keys) if text]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Raises SettingsError, naming the variable."""
        source = os.environ if environment is None else environment
        given: dict[str, Any] = {
            field: source[ENV_PREFIX + field.upper()]
            for field in cls.model_fields
            if ENV_PREFIX + field.upper() in source
        }
        if "models" in given:
            given["models"] = parse_models(given["models"], "TENANTRY_MODELS")
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            problems = "; ".join(
                f"{ENV_PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()
            )
            raise SettingsError(problems) from error

    def to_environment(self) -> dict[str, str]:
        plain = {field: getattr(self, field) for field in type(self).model_fields if field != "models"}
        return {
            **{ENV_PREFIX + field.upper(): str(value) for field, value in plain.items()},
            ENV_PREFIX + "MODELS": self.models.model_dump_json(),
        }


def parse_models(text: str, where: str) -> ModelsFile:
    """The content of a models file (YAML, of which JSON is a part). Raises SettingsError with the place and the problem."""
    try:
        return ModelsFile.model_validate(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise SettingsError(f"{where} is not YAML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"{where}: {problems}") from error


def tool_configs(file: ModelsFile, where: str = "tools") -> "list[ToolConfig]":
    """What the file says about tools. Raises SettingsError with the place, all problems, and what was probably meant."""
    from actors.tools.catalog import parse_tool  # noqa: PLC0415 - see ModelsFile
    from actors.tools.config import ToolConfigError  # noqa: PLC0415

    try:
        configs = [parse_tool(given) for given in file.tools]
    except ToolConfigError as error:
        raise SettingsError(f"{where}: {error}") from error
    names = [config.name for config in configs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SettingsError(
            f"{where}: each tool's name may stand once; these stand more often: {', '.join(sorted(twice))}"
        )
    return configs


def load_models(path: Path) -> ModelsFile:
    try:
        return parse_models(path.read_text(), str(path))
    except OSError as error:
        raise SettingsError(f"models file {path}: {error.strerror}") from error
