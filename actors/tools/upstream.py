"""Where a model is served. Apart from the other configurations, because every process reads it and few need those."""

from urllib.parse import urlsplit

from pydantic import BaseModel, field_validator

CHAT, EMBEDDINGS = "chat/completions", "embeddings"  # what is asked of it, as a path below its base URL


def http_url(text: str) -> str:
    """A base URL without its closing slash. Raises ValueError."""
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ValueError("name the variable that holds the upstream's key in api_key_env, not the key in the URL")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"expected http(s)://host[:port]/path, got {text!r}")
    return text.rstrip("/")


class Upstream(BaseModel, frozen=True, extra="forbid"):
    """An OpenAI-compatible server. ``api_key_env`` names the variable that holds its key."""

    base_url: str
    model: str
    api_key_env: str | None = None
    propagate_trace: bool = False  # send W3C's traceparent along, where requests are traced

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str) -> str:
        return http_url(value)
