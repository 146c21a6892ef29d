"""What a deployment is told: the models file, and settings from the environment. Read once, handed down as values."""

import os
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, Field, PositiveInt, ValidationError, field_validator, model_validator

from events import failpoints
from events.errors import PlatformError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$")]
ENV_PREFIX = "TENANTRY_"
_AMOUNT = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?")


class SettingsError(PlatformError):
    """A setting or the models file can't be used; the message says which and why."""

    code = "bad_settings"


class Price(BaseModel, frozen=True, extra="forbid"):
    """USD per million tokens, as decimal strings with up to three decimals: then a token costs whole nano-USD."""

    input_usd_per_mtok: Decimal = Decimal(0)
    output_usd_per_mtok: Decimal = Decimal(0)

    @field_validator("*", mode="before")
    @classmethod
    def _not_a_float(cls, value: object) -> object:
        if isinstance(value, float):
            raise ValueError(f"write the price as a string, '{value}': a YAML number is a float and not exact")
        return value

    @field_validator("*")
    @classmethod
    def _whole_nano_usd(cls, value: Decimal) -> Decimal:
        if not value.is_finite() or value < 0 or value * 1000 != int(value * 1000):
            raise ValueError(f"a price is 0 or more with at most three decimals, got {value}")
        return value

    def cost_nano_usd(self, input_tokens: int, output_tokens: int) -> int:
        return int(self.input_usd_per_mtok * 1000) * input_tokens + int(self.output_usd_per_mtok * 1000) * output_tokens


class Upstream(BaseModel, frozen=True, extra="forbid"):
    """An OpenAI-compatible server. ``api_key_env`` names the variable that holds its key."""

    base_url: str
    model: str
    api_key_env: str | None = None

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"expected http(s)://host[:port]/v1, got {value!r}")
        if "@" in parts.netloc:
            raise ValueError("name the variable that holds the upstream's key in api_key_env, not the key in the URL")
        return value.rstrip("/")


class Model(BaseModel, frozen=True, extra="forbid"):
    """What clients ask for by ``name``, and who answers."""

    name: Name
    upstreams: Annotated[tuple[Upstream, ...], Field(min_length=1)]
    price: Price = Price()
    max_output_tokens: PositiveInt = 1024


class ModelsFile(BaseModel, frozen=True, extra="forbid"):
    models: tuple[Model, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [model.name for model in self.models]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"each model's name may stand once; these stand more often: {', '.join(sorted(twice))}")
        return self


class Settings(BaseModel, frozen=True, extra="forbid"):
    """From ``TENANTRY_*`` variables, which every process of a deployment inherits. ``models`` is the file's content."""

    nats_url: str
    valkey_url: str
    admin_key: Annotated[str, Field(min_length=16)]
    pepper: Annotated[str, Field(min_length=32)]  # keys the hashes of API keys; losing it invalidates all of them
    models: ModelsFile = ModelsFile()
    reads_db: int = 1  # the Valkey database of the read models
    pool_shards: PositiveInt = 1
    call_timeout_s: Annotated[float, Field(gt=0, le=12 * 3600)] = 600.0  # one model call, from connect to last byte
    body_bytes_max: PositiveInt = 4 * 1024 * 1024
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


def load_models(path: Path) -> ModelsFile:
    try:
        return parse_models(path.read_text(), str(path))
    except OSError as error:
        raise SettingsError(f"models file {path}: {error.strerror}") from error


def money(nano_usd: int) -> str:
    """Nano-USD as a decimal string of USD, exact: '0.0000034'."""
    return f"{Decimal(nano_usd).scaleb(-9).normalize():f}"


def nano_usd(text: str) -> int:
    """A decimal string of USD as nano-USD. Raises ValueError where it isn't one or is finer than a nano-USD."""
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"expected an amount of USD such as '12.50', with at most nine decimals, got {text[:40]!r}")
    whole, decimals = match.groups()
    return int(whole + (decimals or "").ljust(9, "0"))
