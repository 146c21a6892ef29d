"""OpenAPI for the chat route, which FastAPI does not see: its schema comes from the types that parse it."""

from typing import Any

import msgspec
from fastapi import FastAPI

from serve.chat_request import ChatRequest

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
_STATUSES = {
    "400": "The request is malformed",
    "401": "The key is not valid",
    "402": "The budget can't cover the call",
    "404": "There is no such model",
    "413": "The body is too large",
    "429": "The tenant has too many commands waiting; see Retry-After",
    "503": "The model server or the platform can't serve now; see Retry-After",
    "504": "The outcome is not known",
}


def document_chat(app: FastAPI, path: str) -> None:
    """Make ``app.openapi`` describe the chat route, errors included."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        (body,), components = msgspec.json.schema_components([ChatRequest], ref_template="#/components/schemas/{name}")
        parts = schema.setdefault("components", {}).setdefault("schemas", {})
        parts.update(components)
        parts["Error"] = _ERROR
        schema["paths"].setdefault(path, {"post": _operation(body)})
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operation(body: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "tags": ["openai"],
        "summary": "Chat completion",
        "description": "As OpenAI's. With `stream: true` the answer is server-sent events that end with `[DONE]`.",
        "operationId": "chat_completions",
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {
                "description": "The completion, or a stream of its chunks",
                "headers": {"x-tenantry-position": {"schema": {"type": "integer"}}},
                "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
            },
            **{status: {"description": text, "content": error} for status, text in _STATUSES.items()},
        },
    }
