"""The shape of the code, checked: who may import whom, and that importing opens nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "events": {"events"},
    "actors": {"events", "actors"},
    "projections": {"events", "projections"},
    "serve": {"events", "actors", "projections", "serve"},
}
TENANT_NOUNS = ["books", "budgets", "calls", "deciding", "keys", "lifecycle", "limits", "prices", "state", "users"]
PURE = [
    "actors/aggregate.py",
    "actors/lanes.py",
    "actors/mailbox.py",
    "actors/memory.py",
    "actors/policies/breaker.py",
    "actors/policies/bulkhead.py",
    "actors/policies/config.py",
    "actors/policies/health.py",
    "actors/policies/rate_limiter.py",
    "actors/policies/retry.py",
    "actors/policies/window.py",
    "actors/supervision/circuit.py",
    "actors/supervision/homes.py",
    "actors/supervision/messages.py",
    "actors/supervision/permits.py",
    "actors/system.py",
    "actors/persistent.py",
    *(f"actors/tenant/{noun}.py" for noun in TENANT_NOUNS),
    "actors/tool_calls.py",
    "actors/turn.py",
    "events/catalog.py",
    "events/codec.py",
    "events/messages.py",
    "events/system.py",
    *(f"events/tenant/{noun}.py" for noun in TENANT_NOUNS if noun not in ("books", "deciding", "state")),
    "events/vault.py",
    "events/run.py",
    "events/tools.py",
    *(
        f"actors/run/{noun}.py"
        for noun in ("agent", "definition", "fair_queue", "function", "machine", "registry", "state")
    ),
    "events/timers.py",
    "projections/key_use.py",
    "projections/runs.py",
    "projections/spend.py",
    "projections/usage.py",
    "actors/router/balance.py",
    "serve/cached_answer.py",
    "serve/chat_request.py",
    "serve/embedding_request.py",
]
CLOCKS_AND_DICE = {"time", "random", "secrets", "os", "asyncio", "socket"}


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        ours = imported(path) & (MAY_IMPORT.keys() | {"tests"})
        if path.match("serve/cli/bench.py"):
            ours -= {"tests"}  # `tenantry bench` runs from a clone
        assert ours <= MAY_IMPORT[package], path


@pytest.mark.parametrize("path", PURE)
def test_the_core_neither_waits_nor_rolls_dice_nor_looks_at_a_clock(path: str) -> None:
    assert not imported(ROOT / path) & CLOCKS_AND_DICE


def test_importing_everything_opens_no_connection_and_starts_no_thread() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    ]
    program = f"""
import importlib, socket, threading
def refuse(*_): raise AssertionError("a connection was opened at import")
socket.socket.connect = refuse
for name in {modules!r}:
    importlib.import_module(name)
assert threading.active_count() == 1, threading.enumerate()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_line_loads_nothing_that_takes_long() -> None:
    heavy = {"ray", "pyarrow", "numpy", "fastapi", "nats"}
    program = f"import sys, serve.cli.main; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("module", "never"),
    [
        (
            "actors",
            {"fastapi", "pyarrow", "numpy"},
        ),  # its driver starts a dozen processes, and must not be their bottleneck
        ("connections", {"fastapi", "pyarrow", "numpy", "uvicorn"}),
        ("runner", {"fastapi", "pyarrow", "numpy", "uvicorn"}),
        ("gateway", {"pyarrow", "numpy"}),
    ],
)
def test_a_process_loads_only_what_it_works_with(module: str, never: set[str]) -> None:
    """A dozen of them start side by side with the platform, and compete for the same cores."""
    program = f"import sys, serve.bootstrap.{module}; print(*sorted({never!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
