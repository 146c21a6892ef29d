"""What the README tells who writes another back end, done: from a directory of its own, with an installed Tenantry."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_readmes_test(directory: Path, program: str) -> subprocess.CompletedProcess[str]:
    readme = (ROOT / "README.md").read_text()
    (command,) = re.findall(r"`pytest (-o asyncio_mode=auto test_my_store\.py)`", readme)
    (directory / "test_my_store.py").write_text(program)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *command.split()],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # as an installed wheel puts the packages there
        capture_output=True,
        text=True,
        check=False,
    )


def the_readmes_program() -> str:
    program: str
    (program,) = re.findall(r"^```py\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    return program


def test_another_back_end_is_held_to_all_promises_as_the_readme_says(tmp_path: Path) -> None:
    done = run_readmes_test(tmp_path, the_readmes_program())
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 25


def test_a_back_end_that_breaks_a_promise_is_told_which(tmp_path: Path) -> None:
    forgetful = """
class Forgetful(MemoryEventStore):
    async def replies(self, tenant, command_ids):
        return {}
"""
    program = the_readmes_program().replace("class TestMyStore", forgetful + "\n\nclass TestMyStore")
    done = run_readmes_test(tmp_path, program.replace("return MemoryEventStore()", "return Forgetful()"))
    assert done.returncode == 1
    assert "test_a_repeated_command_gets_its_first_reply_and_writes_nothing" in done.stdout


def test_the_wheel_carries_the_tests() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "tests" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
