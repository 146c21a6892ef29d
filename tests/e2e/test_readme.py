"""What the README says, done."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from events.run import unpack
from tests.e2e.readme import README, block, blocks
from tests.kit.platform import UpProcess
from tests.kit.runs import Lab


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_ten_lines_with_the_openai_client_print_an_answer(platform: UpProcess) -> None:
    program = block("Run it", "python")
    program = program.replace("http://127.0.0.1:PORT/v1", platform.running.base_url)
    program = re.sub(r'api_key="[^"]+"', f'api_key="{platform.running.demo_key}"', program)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CompletionUsage" in done.stdout


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_operators_commands_work_in_the_order_they_stand(platform: UpProcess) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("uv run tenantry ")]
    commands = [line for line in commands if " up" not in line and " bench" not in line]
    assert len(commands) == 22
    for line in commands:
        words = shlex.split(line, comments=True)[3:]
        platform.tenantry(*(word for word in words if word != "--follow"))  # without it, the same command ends


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_tool_of_ones_own_is_twenty_lines_and_does_what_they_say(platform: UpProcess) -> None:
    lines = [line for line in block("Add a tool", "python").splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 20
    with platform.admin() as admin:
        assert sorted(tool["name"] for tool in admin.get("/tools").raise_for_status().json()["data"]) == [
            "mock",
            "weather",
        ]
        admin.put("/tenants/demo/tools", json={"allowed": ["weather"]}).raise_for_status()
        called = admin.post("/tenants/demo/tools/weather", json={"input": {"city": "Oslo"}}).raise_for_status().json()
        assert (called["output"], called["cost_usd"]) == ({"city": "Oslo", "degrees": -3}, "0.000001")
        refused = admin.post("/tenants/demo/tools/weather", json={"input": {"city": "Atlantis"}})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "unknown_city")


def test_the_two_commands_are_there_to_the_letter() -> None:
    first = blocks("sh")[0]
    assert "pip install uv && uv run tenantry up" in first
    assert "pip install uv && uv run pytest" in first


def test_every_package_and_setting_that_it_names_is_there() -> None:
    root = Path(__file__).parents[2]
    for package in re.findall(r"^\| `(\w+)/` \|", README, flags=re.MULTILINE):
        assert (root / package / "__init__.py").exists()
    code = "".join(path.read_text() for room in ("serve", "tests") for path in (root / room).rglob("*.py"))
    for name in set(re.findall(r"TENANTRY_[A-Z_]+", README)):
        field = name.removeprefix("TENANTRY_").lower()
        assert name in code or field in code, name


def test_the_saga_it_declares_runs_to_its_end_or_is_undone() -> None:
    exec(compile(block("Durable runs", "python"), "my_sagas.py", "exec"), {"__name__": "my_sagas"})
    for is_cancelled in (False, True):
        lab = Lab()
        lab.start("trip", {"hotel": "Ritz"})
        assert sorted(lab.names()) == ["flight", "hotel"]
        lab.work_through(lambda item: unpack(item.args))
        if is_cancelled:
            lab.cancel()
            lab.work_through(lambda item: unpack(item.args))
            assert lab.run().steps["undo:flight"].status == "succeeded"
        else:
            lab.signal("approve", "yes")
            assert (lab.run().status, lab.output()) == ("completed", "yes")
