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
