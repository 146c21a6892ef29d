"""The deployment itself."""

from pydantic import BaseModel

from serve.admin.routes import Svc, router
from serve.doctor import examine


class Finding(BaseModel):
    name: str
    ok: bool
    detail: str


class Report(BaseModel):
    ok: bool
    findings: list[Finding]


@router.get("/doctor")
async def doctor(services: Svc) -> Report:
    """Examine the deployment: each finding is ok, or says what to do."""
    findings = [Finding(name=name, ok=ok, detail=detail) async for name, ok, detail in examine(services)]
    return Report(ok=all(finding.ok for finding in findings), findings=findings)


class DoorOut(BaseModel):
    replica: str
    url: str


class DoorList(BaseModel):
    data: list[DoorOut]


@router.get("/gateways")
async def gateways(services: Svc) -> DoorList:
    """Where each gateway replica listens on a port of its own, for a load balancer in front of them."""
    return DoorList(data=[DoorOut(replica=door.replica, url=door.url) for door in await services.doors.all()])
