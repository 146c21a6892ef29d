"""OpenAPI as it is: the routes of models, which FastAPI does not see (their schemas come from the types that parse them), who
may call what, and the errors.
"""

from typing import Any

import msgspec
from fastapi import FastAPI

from serve.chat import CHAT_PATH, EMBEDDINGS_PATH
from serve.chat_request import FIELDS as CHAT_FIELDS
from serve.chat_request import ChatRequest
from serve.embedding_request import FIELDS as EMBEDDING_FIELDS
from serve.embedding_request import EmbeddingRequest

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERROR_CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_STATUSES = {
    "400": "The request is malformed",
    "401": "The key is not valid",
    "402": "The budget can't cover the call",
    "403": "The key may not call the model, or the tenant is suspended",
    "404": "There is no such model",
    "409": "The first request with this Idempotency-Key still runs; see Retry-After",
    "413": "The body is too large",
    "422": "The Idempotency-Key came with another body before, or the model server refuses the request",
    "429": "A limit of the tenant's own; see Retry-After",
    "503": "The model server or the platform can't serve now; see Retry-After",
    "504": "The outcome is not known",
}
_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}
_REQUEST_HEADERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "Idempotency-Key",
        "The same key with the same body gets the same answer for a day and is paid once; with another body it is refused",
        {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
    ),
    (
        "x-tenantry-cache",
        "on, refresh, or the age in seconds that an answer from the response cache may have",
        {"type": "string", "pattern": "^(on|off|refresh|[1-9][0-9]{0,4})$"},
    ),
)
_HEADERS = (
    ("x-tenantry-position", "Of the booking in the tenant's log; of a stream, of the reservation", _NUMBER),
    ("x-tenantry-call", "The call's id in the log", _TEXT),
    ("x-tenantry-upstream", "Who answered", _TEXT),
    ("x-tenantry-model", "The model that answered: the one asked for, or one of its fallbacks", _TEXT),
    ("x-tenantry-attempts", "How many upstreams were tried", _NUMBER),
    ("x-tenantry-cost-max-usd", "What was reserved for it", _TEXT),
    ("x-tenantry-cost-usd", "What it cost; of a stream, in the comment before [DONE]", _TEXT),
)


_SECURITY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("/admin/", ("admin_key",)),
    ("/v1/", ("tenant_key",)),
    ("/metrics", ("admin_key", "metrics_key")),
)
_SCHEMES = {
    "admin_key": "An operator's key",
    "tenant_key": "A key of a tenant; its scopes and models bound what it may do",
    "metrics_key": "Reads /metrics and nothing else",
}


def document_all(app: FastAPI) -> None:
    """Make ``app.openapi`` describe the routes of models, who may call what, and errors as they are."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        bodies, components = msgspec.json.schema_components(
            [ChatRequest, EmbeddingRequest], ref_template="#/components/schemas/{name}"
        )
        parts = schema.setdefault("components", {}).setdefault("schemas", {})
        parts.update(components)
        for name, fields in (("ChatRequest", CHAT_FIELDS), ("EmbeddingRequest", EMBEDDING_FIELDS)):
            parts[name]["properties"] = {**{field: {} for field in sorted(fields)}, **parts[name]["properties"]}
            parts[name]["additionalProperties"] = False
        parts["Error"] = _ERROR
        schema["paths"].setdefault(CHAT_PATH, {"post": _chat(bodies[0])})
        schema["paths"].setdefault(EMBEDDINGS_PATH, {"post": _embeddings(bodies[1])})
        schema["components"]["securitySchemes"] = {
            name: {"type": "http", "scheme": "bearer", "description": text} for name, text in _SCHEMES.items()
        }
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                _say_who_may(operation, path)
                _say_how_it_fails(operation)
        for unused in ("HTTPValidationError", "ValidationError"):
            parts.pop(unused, None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _say_who_may(operation: dict[str, Any], path: str) -> None:
    """A bearer token, where FastAPI saw a header."""
    others = [one for one in operation.get("parameters", ()) if (one["in"], one["name"]) != ("header", "authorization")]
    operation.pop("parameters", None)
    if others:
        operation["parameters"] = others
    names = next((names for prefix, names in _SECURITY if path.startswith(prefix)), ())
    operation["security"] = [{name: []} for name in names]


def _say_how_it_fails(operation: dict[str, Any]) -> None:
    """In OpenAI's shape, and never as FastAPI's own 422."""
    responses = operation["responses"]
    invalid = responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if invalid.get("$ref", "").endswith("/HTTPValidationError"):
        del responses["422"]
    for statuses, text in (
        ("4XX", "The request is at fault, or a limit"),
        ("5XX", "The platform is, or what is behind it"),
    ):
        responses[statuses] = {"description": text, "content": _ERROR_CONTENT}


def _chat(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": "Chat completion",
        "description": "As OpenAI's. With `stream: true` the answer is server-sent events that end with `[DONE]`.",
        "operationId": "chat_completions",
        **_operation(body, "The completion, or a stream of its chunks", {"text/event-stream": {}}),
    }


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": "Embeddings",
        "description": "As OpenAI's.",
        "operationId": "embeddings",
        **_operation(body, "One vector per input", {}),
    }


def _operation(body: dict[str, Any], answer: str, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "tags": ["openai"],
        "parameters": [
            {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
            for name, text, schema in _REQUEST_HEADERS
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {
                "description": answer,
                "headers": {name: {"description": text, "schema": schema} for name, text, schema in _HEADERS},
                "content": {"application/json": {"schema": {"type": "object"}}, **more},
            },
            **{status: {"description": text, "content": _ERROR_CONTENT} for status, text in _STATUSES.items()},
        },
    }
