"""Whatever the OpenAPI file allows is answered, never with an error of ours."""

import asyncio
import os
import re
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.kit.gateway import ADMIN_KEY, World

EXAMPLES = int(os.environ.get("TENANTRY_SCHEMA_EXAMPLES", "4"))  # per route; 200 for a long run
# Routes that end what the others need get a tenant that is not there.
_ENDS_THE_TENANT = re.compile(r"/(erase|suspend|halt|rewind|log|resume|restore)$")
_TIMEOUT_S = 20


# Hypothesis sees the gateway's own thread use ``random`` meanwhile
@pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")
async def test_no_request_that_the_schema_allows_is_a_server_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.usage.PROJECTION_WAIT_S", 0.05)
    plain = (await world.admin.get(f"{world.base_url}/openapi.json")).json()
    issued = await world.admin.post(f"/tenants/{world.tenant}/keys", json={"scopes": ["admin", "read", "inference"]})
    problems: list[str] = []
    found: Any = schemathesis.openapi.from_dict(plain).get_all_operations()
    operations = [result.ok() for result in found]
    for operation in operations:
        key = ADMIN_KEY if operation.path.startswith("/admin/") else issued.json()["key"]
        await asyncio.to_thread(_try, operation, world, key, problems)
    assert len(operations) >= 40
    assert problems == []


def _try(operation: Any, world: World, key: str, problems: list[str]) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def send(case: Any) -> None:
        if "tenant" in case.path_parameters and not _ENDS_THE_TENANT.search(operation.path):
            case.path_parameters["tenant"] = world.tenant
        if isinstance(case.query, dict):
            case.query.pop("follow", None)  # a stream without end
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "m-ok"
        headers = {"authorization": f"Bearer {key}"}
        try:
            answer = case.call(base_url=world.base_url, headers=headers, timeout=_TIMEOUT_S)
        except requests.RequestException as error:
            problems.append(f"{operation.method} {operation.path}: {error}")
            return
        is_ours = answer.status_code >= 500 and not (answer.status_code == 503 and "not_projected" in answer.text)
        if is_ours:
            problems.append(f"{operation.method} {operation.path}: {answer.status_code} {answer.text[:200]}")

    send()
