"""What an operator says about a tool: how it is reached, how much of it there is, who gets what.

A frozen pydantic model per kind of adapter, read once from the ``tools`` section of the models file, or built in Python:

    payments = ToolConfigBuilder(PaymentConfig, "payments").set(api_key_env="PAYMENTS_KEY", timeout_s=8).build()
"""

from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from actors.policies.config import BreakerConfig, BulkheadConfig, PoliciesConfig, RetryConfig, Seconds, problems
from actors.tools.upstream import Upstream, http_url
from events.errors import PlatformError
from events.money import Price, nano_usd

ToolName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
PayloadPolicy = Literal["none", "hash", "encrypted"]
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
Currency = Annotated[str, Field(pattern=r"^[a-z]{3}$")]
# Of RFC 5322 what mail servers agree on: no quotes, comments, lists or anything that could end a header or a command.
Address = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?$"),
]
Line = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f\u0085\u2028\u2029]*$")]
# What decides where a request goes, how long it is and who sends it is never the caller's to set.
_NEVER_SET = frozenset(
    [
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "expect",
        "via",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "proxy-authorization",
        "proxy-connection",
    ]
)
_SAME_FOR_ALL = ("name", "adapter", "overrides")


class ToolConfigError(PlatformError):
    """A tool can't be set up as it is described; the message says which setting and why."""

    code = "bad_settings"


class ToolConfig(PoliciesConfig, frozen=True):
    """What all tools have: the policies around their calls, and this. An unknown setting is refused with a hint.

    ``adapter`` is a kind that comes with the platform, or ``module:Class`` of your own. ``payloads`` says what the log
    keeps of inputs and outputs: nothing, their SHA-256, or all of it, encrypted under the tenant's key. ``cost_usd`` is
    what a call costs that succeeded. ``destructive``: an agent's model may call it only where a person allows each call.
    ``overrides`` maps a tenant's id to the settings that differ for it.
    """

    name: ToolName
    adapter: str
    description: str = ""
    payloads: PayloadPolicy = "hash"
    cost_usd: str = "0"
    destructive: bool = False
    timeout_s: Seconds | None = 10.0
    bulkhead: BulkheadConfig | None = BulkheadConfig(permits=10)
    breaker: BreakerConfig | None = BreakerConfig()
    retry: RetryConfig | None = RetryConfig()
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @field_validator("cost_usd")
    @classmethod
    def _is_money(cls, value: str) -> str:
        nano_usd(value)
        return value

    @model_validator(mode="after")
    def _overrides_fit(self) -> Self:
        for tenant in self.overrides:
            self.for_tenant(tenant)
        return self

    @property
    def cost_nano_usd(self) -> int:
        return nano_usd(self.cost_usd)

    def for_tenant(self, tenant: str) -> Self:
        """The settings that apply to a tenant's calls. Raises ValueError where its overrides don't fit."""
        changes = self.overrides.get(tenant)
        if not changes:
            return self
        if fixed := [name for name in _SAME_FOR_ALL if name in changes]:
            raise ValueError(f"overrides of {tenant!r}: {fixed[0]!r} is the same for all tenants")
        try:
            return type(self).model_validate({**self.model_dump(exclude={"overrides"}), **changes})
        except ValidationError as error:
            raise ValueError(f"overrides of {tenant!r}: {problems(error)}") from error


class HttpConfig(ToolConfig, frozen=True):
    """``base_url``: then calls name a path below it, and nothing else. ``headers_env`` names the variables that hold
    secret headers' values. ``allow_private`` opens ``host:port`` although it is not public.
    """

    adapter: str = "http"
    base_url: str | None = None
    allow_hosts: tuple[str, ...] = ()
    allow_private: tuple[str, ...] = ()
    allow_ports: tuple[int, ...] = (80, 443)
    allow_methods: tuple[Method, ...] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
    allow_headers: tuple[str, ...] = ("accept", "accept-language", "content-type", "if-match", "if-none-match")
    headers: dict[str, str] = Field(default_factory=dict)
    headers_env: dict[str, str] = Field(default_factory=dict)
    redirects_max: Annotated[int, Field(ge=0, le=10)] = 3
    request_bytes_max: PositiveInt = 256 * 1024
    response_bytes_max: Annotated[int, Field(gt=0, le=1024 * 1024)] = 512 * 1024

    @field_validator("allow_headers")
    @classmethod
    def _headers_of_the_caller(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if bad := [name for name in names if name.lower() in _NEVER_SET]:
            raise ValueError(f"{bad[0]!r} can't be left to callers")
        return tuple(name.lower() for name in names)

    @field_validator("base_url")
    @classmethod
    def _base(cls, value: str | None) -> str | None:
        return value and http_url(value)

    @model_validator(mode="after")
    def _secrets_have_a_destination(self) -> Self:
        if (self.headers or self.headers_env) and not (self.base_url or self.allow_hosts):
            raise ValueError("headers would go to any host: set base_url or allow_hosts, too")
        return self


class PaymentConfig(ToolConfig, frozen=True):
    """``amount_max`` bounds one payment, in the smallest unit of its currency. Amounts are refused before they are sent."""

    adapter: str = "payment"
    base_url: str = "https://api.stripe.com"
    api_key_env: str
    api_version: str | None = None
    currencies: tuple[Currency, ...] = ("eur", "usd")
    amount_max: PositiveInt = 1_000_000

    @field_validator("base_url")
    @classmethod
    def _no_slash(cls, value: str) -> str:
        return http_url(value)


class EmailConfig(ToolConfig, frozen=True):
    """``allow_recipients``: addresses, or ``*@example.com``; empty: anybody. ``ca_file`` names a certificate authority of
    your own. Without ``starttls`` or ``tls`` everything, the password included, could be read on the way.
    """

    adapter: str = "email"
    host: str
    port: Annotated[int, Field(gt=0, lt=65536)] = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    ca_file: str | None = None
    username: str | None = None
    password_env: str | None = None
    sender: Address
    sender_name: Line = ""
    allow_recipients: tuple[str, ...] = ()
    recipients_max: PositiveInt = 20
    body_bytes_max: PositiveInt = 256 * 1024

    @model_validator(mode="after")
    def _credentials(self) -> "EmailConfig":
        if (self.username is None) != (self.password_env is None):
            raise ValueError("username and password_env go together")
        if self.username is not None and self.security == "none":
            raise ValueError("a password is sent over tls or starttls only: set security")
        return self


class ModelConfig(ToolConfig, frozen=True):
    """``max_output_tokens`` bounds what one answer can cost."""

    adapter: str = "model"
    base_url: str
    model: str
    api_key_env: str | None = None
    price: Price = Price()
    max_output_tokens: PositiveInt = 1024
    timeout_s: Seconds | None = 120.0

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        assert self.upstream
        return self

    @property
    def upstream(self) -> Upstream:
        return Upstream(base_url=self.base_url, model=self.model, api_key_env=self.api_key_env)


Config = TypeVar("Config", bound=ToolConfig)


class ToolConfigBuilder(Generic[Config]):
    """Collects settings; what is not set has its default. Each step is a builder of its own, so that builders branch."""

    def __init__(self, kind: type[Config], name: str, **settings: Any) -> None:
        self._kind, self._settings = kind, {"name": name, **settings}

    def set(self, **settings: Any) -> "ToolConfigBuilder[Config]":
        return ToolConfigBuilder(self._kind, **{**self._settings, **settings})

    def override(self, tenant: str, **settings: Any) -> "ToolConfigBuilder[Config]":
        overrides = self._settings.get("overrides", {})
        return self.set(overrides={**overrides, tenant: {**overrides.get(tenant, {}), **settings}})

    def build(self) -> Config:
        """Raises ToolConfigError with all that is wrong."""
        try:
            return self._kind.model_validate(self._settings)
        except ValidationError as error:
            raise ToolConfigError(f"tool {self._settings['name']!r}: {problems(error)}") from error
