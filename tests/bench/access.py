"""How long a revoked key or a suspended tenant is still let in: from the operator's answer to the first refusal at the door, for
reads, which a gateway answers from memory. (A call that costs asks its tenant, so it is refused with the next one.)
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx

from tests.bench.results import Pairs, Say

TENANT = "bench-access"
ROUNDS = 60
_TIMEOUT_S = 30.0

ROWS = ("revocation_p50", "revocation_p99", "suspension_p50", "suspension_p99")


async def measure(rows: Sequence[str], base_url: str, admin_key: str, say: Say) -> list[dict[str, Any]]:
    """``base_url`` of the door, without a path."""
    async with httpx.AsyncClient(base_url=base_url, timeout=_TIMEOUT_S) as http:
        access = _Access(http, admin_key)
        await access.prepare()
        found: dict[str, list[float]] = {}
        if any(row.startswith("revocation") for row in rows):
            found["revocation"] = [await access.revoke() for _ in range(ROUNDS)]
        if any(row.startswith("suspension") for row in rows):
            found["suspension"] = [took for _ in range(ROUNDS // 2) for took in await access.suspend_and_resume()]
    return [_verdict(row, found[row.partition("_")[0]], say) for row in rows]


def _verdict(row: str, took_s: list[float], say: Say) -> dict[str, Any]:
    ordered = sorted(took_s)
    at = len(ordered) // 2 if row.endswith("p50") else len(ordered) * 99 // 100
    pairs = Pairs(row, say)
    pairs.add(ordered[at] * 1e3)
    return pairs.verdict()


class _Access:
    def __init__(self, http: httpx.AsyncClient, admin_key: str) -> None:
        self._http, self._admin = http, {"authorization": f"Bearer {admin_key}"}

    async def prepare(self) -> None:
        await self._operate("POST", "/tenants", {"id": TENANT, "name": "Access"})

    async def revoke(self) -> float:
        issued = await self._operate("POST", f"/tenants/{TENANT}/keys", {"name": "x"})
        await self._until(issued["key"], 200)
        await self._operate("DELETE", f"/tenants/{TENANT}/keys/{issued['key_id']}")
        return await self._until(issued["key"], 401)

    async def suspend_and_resume(self) -> tuple[float, float]:
        issued = await self._operate("POST", f"/tenants/{TENANT}/keys", {"name": "x"})
        await self._until(issued["key"], 200)
        await self._operate("POST", f"/tenants/{TENANT}/suspend", {"reason": "bench"})
        suspended_s = await self._until(issued["key"], 403)
        await self._operate("POST", f"/tenants/{TENANT}/resume")
        return suspended_s, await self._until(issued["key"], 200)

    async def _operate(self, method: str, path: str, body: dict[str, str] | None = None) -> Any:
        answer = await self._http.request(method, f"/admin/v1{path}", json=body, headers=self._admin)
        answer.raise_for_status()
        return answer.json()

    async def _until(self, key: str, status: int) -> float:
        began_s = time.perf_counter()
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                answer = await self._http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
                if answer.status_code == status:
                    return time.perf_counter() - began_s
