"""One platform for all tests of the package that leave it in working order, because starting one takes its time. Tests keep
apart by the names of their tenants. Who needs a platform to be configured otherwise, or to end, is in ``test_lives.py``.
"""

import signal
from collections.abc import Iterator

import httpx
import pytest

from examples.order import LEDGER_VARIABLE
from tests.e2e.readme import block
from tests.kit.platform import UpProcess, running_platform

SAGAS = """
from actors.run import Saga, Signal, Step, register
from actors.run.functions import step_function

register(Saga("approval", steps=(Signal("approve"), Step("say", function="say", args=lambda run: run["approve"])),
              output=lambda run: run["say"]))
register(Saga("with-tool", steps=(Step("call", tool="mock", args=lambda run: run.input),), output=lambda run: run["call"]))

@step_function("say")
def say(given):
    return given
"""
MOCK_TOOL = '  - {name: mock, adapter: "tests.kit.fakes:MockTool"}\n'


@pytest.fixture(scope="package", autouse=True)
def _ctrl_c_is_heard() -> None:
    """A shell has its background jobs ignore it, and programs inherit that: those that tests send it to would not end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="package")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """With the local model, the tool of the README's "Add a tool", to the letter, a mock tool, and sagas."""
    directory = tmp_path_factory.mktemp("platform")
    (directory / "my_tools.py").write_text(block("Add a tool", "python"))
    (directory / "sagas_of_tests.py").write_text(SAGAS)
    (directory / "models.yaml").write_text(block("Add a tool", "yaml") + MOCK_TOOL)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(directory))
        environment.setenv("TENANTRY_SAGAS", "examples.order, examples.research, sagas_of_tests")
        environment.setenv(LEDGER_VARIABLE, str(directory / "ledger.sqlite"))
        with running_platform(directory / "data", "--models", str(directory / "models.yaml")) as running:
            yield running


@pytest.fixture(scope="module")
def admin(platform: UpProcess) -> Iterator[httpx.Client]:
    with platform.admin() as client:
        yield client
