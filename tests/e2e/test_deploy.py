"""The platform on a Ray cluster of somebody's own, put there, upgraded and taken away by jobs."""

from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from serve.ports import free_port
from tests.kit.ray_head import RayHead, ray_head
from tests.kit.servers import running_servers
from tests.kit.threads import repeating

ADMIN_KEY = "sk-admin-0123456789abcdef"
MODELS = """
models:
  - name: {name}
    upstreams: [{{base_url: "http://127.0.0.1:9/v1", model: away}}]
    price: {{input_usd_per_mtok: "0.10", output_usd_per_mtok: "0.40"}}
"""


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_job_deploys_the_platform_another_upgrades_it_under_load_and_it_is_taken_away_again(tmp_path: Path) -> None:
    with (
        running_servers(tmp_path / "servers") as servers,
        ray_head(servers.settings(ADMIN_KEY).to_environment()) as ray,
        client(port := free_port()) as admin,
    ):
        use(ray, admin, port, tmp_path)


def client(port: int) -> httpx.Client:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.Client(base_url=f"http://127.0.0.1:{port}/admin/v1", headers=headers, timeout=60)


def deploy(ray: RayHead, port: int, models: Path, name: str) -> None:
    models.write_text(MODELS.format(name=name))
    printed = ray.submit("tenantry", "deploy", "--port", str(port), "--replicas", "2", "--models", str(models))
    assert f"Deployed: http://127.0.0.1:{port}/v1" in printed


def use(ray: RayHead, admin: httpx.Client, port: int, tmp_path: Path) -> None:
    deploy(ray, port, tmp_path / "models.yaml", "first")
    admin.post("/tenants", json={"id": "acme", "plan": "pro"}).raise_for_status()
    key = admin.post("/tenants/acme/keys", json={}).raise_for_status().json()["key"]
    openai = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key)
    assert [model.id for model in openai.models.list()] == ["first"]
    assert admin.get("/doctor").json()["ok"], admin.get("/doctor").text

    written: list[int] = []

    def write() -> None:
        answer = admin.put("/tenants/acme/budget", json={"limit_usd": f"{len(written) + 1}.00", "window": "month"})
        assert answer.is_success, answer.text
        written.append(int(answer.headers["x-tenantry-position"]))

    with repeating(write):
        deploy(ray, port, tmp_path / "models.yaml", "second")
    assert written == sorted(set(written)), "each is done once, in its order"
    assert [model.id for model in openai.models.list()] == ["second"]
    assert admin.get("/tenants/acme").json()["position"] == written[-1]
    assert admin.get("/tenants/acme/verify").status_code == 200

    assert "the actors" in ray.run("tenantry", "undeploy")
    assert "tenantry" not in ray.run("ray", "list", "actors", "--filter", "state=ALIVE")
