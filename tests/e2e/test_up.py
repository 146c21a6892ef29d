"""The main job as a user does it: `tenantry up` as a process, a real model, the official client, real kills."""

import asyncio
import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai import OpenAI

from serve.platform import LOCAL_MODEL
from tests.kit.platform import UpProcess
from tests.kit.threads import repeating
from tests.kit.two_tenants import check_tenants_apart
from tests.kit.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

PROMPTS = Path(__file__).parents[3] / "shared" / "data" / "routellm" / "gsm8k_all.csv"


def prompts(count: int) -> list[str]:
    with PROMPTS.open(newline="") as file:
        return [row["prompt"] for row in islice(csv.DictReader(file), count)]


def ask(text: str) -> Any:
    return [{"role": "user", "content": text}]


def new_tenant(admin: httpx.Client, name: str, plan: str = "free") -> str:
    """A tenant with a key; returns the key."""
    created = admin.post("/tenants", json={"id": name, "name": name, "plan": plan})
    assert created.status_code == 201, created.text
    key: str = admin.post(f"/tenants/{name}/keys", json={"name": "e2e"}).json()["key"]
    return key


def test_the_curl_line_it_prints_works_when_pasted(platform: UpProcess) -> None:
    at = next(number for number, line in enumerate(platform.output) if line.startswith("curl "))
    command = "\n".join(platform.output[at : at + 2])
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"].strip()


def test_real_prompts_get_real_answers_and_usage_is_what_the_answers_said(
    platform: UpProcess, admin: httpx.Client
) -> None:
    """Streamed and not, every response has text and usage, and what is booked is their sum, to the token."""
    client = platform.client(new_tenant(admin, "reader"))
    seen = []
    for number, prompt in enumerate(prompts(8)):
        if number % 2:
            answer = client.chat.completions.create(model=LOCAL_MODEL, messages=ask(prompt), max_tokens=24)
            text, used = answer.choices[0].message.content, answer.usage
        else:
            stream = client.chat.completions.create(
                model=LOCAL_MODEL,
                messages=ask(prompt),
                max_tokens=24,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(stream)
            text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
            used = chunks[-1].usage
            assert len(chunks) > 3
        assert text
        assert text.strip()
        assert used is not None
        seen.append(used)
    booked = platform.usage("reader")
    assert booked["requests"] == 8
    assert booked["input_tokens"] == sum(used.prompt_tokens for used in seen)
    assert booked["output_tokens"] == sum(used.completion_tokens for used in seen)
    price = Decimal("0.10") * booked["input_tokens"] + Decimal("0.40") * booked["output_tokens"]
    assert Decimal(booked["cost_usd"]) == price / 1_000_000
    assert admin.get("/tenants/reader/verify").json()["events"] == 2 + 2 * 8


def test_the_first_token_of_a_stream_comes_long_before_the_last(platform: UpProcess) -> None:
    """On the first prompt that the model has more to say to than twenty tokens."""
    for prompt in prompts(30):
        began = time.monotonic()
        stream = platform.client().chat.completions.create(
            model=LOCAL_MODEL, messages=ask(prompt), max_tokens=100, stream=True
        )
        arrivals = [time.monotonic() - began for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
        if len(arrivals) > 20:
            assert arrivals[0] < arrivals[-1] / 2
            return
    raise AssertionError("none of thirty prompts got a long answer")


def test_an_operator_can_do_all_from_the_command_line(platform: UpProcess) -> None:
    before = set(platform.pids_of("ray::TenantActor"))
    assert "doe" in platform.tenantry("tenant", "create", "doe", "--plan", "pro")
    key = json.loads(platform.tenantry("key", "issue", "doe", "--json"))
    platform.client(key["key"]).chat.completions.create(model=LOCAL_MODEL, messages=ask("Hi"), max_tokens=4)
    assert "doe" in platform.tenantry("tenant", "list")
    assert "silo" in platform.tenantry("tenant", "show", "doe")
    assert "0.5" in platform.tenantry("tenant", "budget", "doe", "0.50", "--window", "day")
    assert LOCAL_MODEL in platform.tenantry("usage", "doe")
    assert "unbroken" in platform.tenantry("verify", "doe")
    assert "call.settled.v1" in platform.tenantry("events", "doe", "--after", "2")
    assert "active" in platform.tenantry("key", "list", "doe")
    platform.tenantry("key", "revoke", "doe", key["key_id"])
    with pytest.raises(openai.AuthenticationError):
        platform.client(key["key"]).chat.completions.create(model=LOCAL_MODEL, messages=ask("Hi"))
    assert "does not exist" in platform.tenantry("tenant", "show", "nobody", expect=1)
    told = json.loads(platform.tenantry("tell", "doe", "budget.set", "limit_nano_usd=7", "window=day", "--json"))
    until(
        lambda: (
            '"done"'
            in platform.tenantry("outcome", "doe", told["command_id"], "--queued", str(told["queued"]), "--json")
        ),
        "it is done",
    )
    assert platform.tenantry("dlq", "list").split() == ["tenant", "id", "cause", "attempts", "died", "message"]
    assert "does not exist" in platform.tenantry("dlq", "discard", "doe", "no-letter", "--yes", expect=1)
    doctor = platform.tenantry("doctor")
    assert doctor.count("ok  ") >= 6
    assert "FAIL" not in doctor
    assert len(set(platform.pids_of("ray::TenantActor")) - before) == 1, "an actor of its own"


def test_events_can_be_followed_from_the_command_line(platform: UpProcess, admin: httpx.Client) -> None:
    client = platform.client(new_tenant(admin, "followed"))
    command = [sys.executable, "-m", "serve.cli", "events", "followed", "--follow", "--json"]
    with (
        subprocess.Popen(
            [*command, "--data-dir", str(platform.data_dir)], stdout=subprocess.PIPE, text=True
        ) as following,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(following.kill)  # whatever happens: leaving the block waits for its end
        assert following.stdout is not None
        first = json.loads(following.stdout.readline())
        assert first["type"] == "tenant.created.v1"
        client.chat.completions.create(model=LOCAL_MODEL, messages=ask("Hi"), max_tokens=2, user="follow")
        types = [json.loads(following.stdout.readline())["type"] for _ in range(3)]
        assert "call.reserved.v1" in types
        following.send_signal(signal.SIGINT)
        assert following.wait(60) == 0


KILLED = {
    "TenantActor": "ray::TenantActor",
    "valkey-server": "valkey/valkey.conf",
    "the vault": "vault/vault.conf",
    "nats-server": "nats-server",
    "RootSupervisor": "ray::RootSupervisor",
    "ProjectionActor": "ray::ProjectionActor",
    "gateway": "ray::ServeReplica",
    "model server": "serve.local_model",
}


@pytest.mark.parametrize("victim", KILLED)
def test_after_kill_9_the_next_request_works_and_nothing_acknowledged_is_gone(
    platform: UpProcess, admin: httpx.Client, victim: str
) -> None:
    """Whoever is killed in the middle of traffic: what was answered with success is in the log, once, and booked."""
    tenant = f"k{victim.lower().replace(' ', '').replace('-', '')}"
    client = platform.client(new_tenant(admin, tenant), max_retries=0)
    answered: list[Any] = []

    def call() -> None:
        with contextlib.suppress(openai.APIError):
            answer = client.chat.completions.create(model=LOCAL_MODEL, messages=ask("Hi"), max_tokens=2, timeout=20)
            answered.append(answer.usage)

    with repeating(call):
        until(lambda: len(answered) >= 3, "three answers before the kill")
        before = len(answered)
        pids = platform.pids_of(KILLED[victim])
        assert pids, victim
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it ended with its parent
                os.kill(pid, signal.SIGKILL)
        until(lambda: len(answered) >= before + 3, f"three answers after {victim} was killed")
    booked = platform.usage(tenant)
    assert booked["requests"] >= len(answered)
    assert booked["output_tokens"] >= sum(used.completion_tokens for used in answered)
    # each answered call has its reservation and its settlement, so only calls that failed can add to the log
    assert admin.get(f"/tenants/{tenant}/verify").status_code == 200
    if victim not in ("gateway", "model server"):  # those take calls down with them, whose usage nobody can know
        assert booked["unknown"] == 0


def test_queued_commands_survive_the_death_of_whoever_relays_or_keeps_them(
    platform: UpProcess, admin: httpx.Client
) -> None:
    """The relay and the broker are killed while commands are told; each happens once, in the order of their numbers."""
    new_tenant(admin, "told")
    queued: dict[int, int] = {}
    for number in range(1, 61):
        if number in (20, 40):
            os.kill(platform.pid_of("ray::RelayActor" if number == 20 else "nats-server"), signal.SIGKILL)
        command = {"type": "budget.set", "limit_nano_usd": number, "window": "total"}
        key = {"idempotency-key": f"told-{number}"}
        until(lambda: _accepted(admin, command, key, queued, number), f"command {number} is accepted")  # noqa: B023
    in_order = [number for _, number in sorted(queued.items())]
    until(lambda: _budgets(admin, "told") == in_order, "all have happened")


def _accepted(
    admin: httpx.Client, command: dict[str, Any], key: dict[str, str], queued: dict[int, int], number: int
) -> bool:
    told = admin.post("/tenants/told/commands", json=command, headers=key)
    if told.status_code != 202:
        assert told.status_code in (503, 504), told.text
        return False
    queued[told.json()["queued"]] = number
    return True


def _budgets(admin: httpx.Client, tenant: str) -> list[int]:
    events = admin.get(f"/tenants/{tenant}/events", params={"limit": 1000}).json()["data"]
    return [event["data"]["limit_nano_usd"] for event in events if event["type"] == "budget.set.v1"]


def test_serves_own_headers_have_no_effect(platform: UpProcess) -> None:
    """A client can neither shorten nor lift a time-out, nor keep a call running after it left."""
    headers = {"x-request-timeout-seconds": "0.05", "x-request-disconnect-disabled": "?1"}
    answer = platform.client(max_retries=0).chat.completions.create(
        model=LOCAL_MODEL, messages=ask("Hi"), max_tokens=40, extra_headers=headers
    )
    assert answer.choices[0].message.content


def test_a_client_that_hangs_up_on_the_proxy_ends_its_call(platform: UpProcess, admin: httpx.Client) -> None:
    """HAProxy and Serve pass it on: the call is settled as cancelled, whatever the model had left to say."""
    client = platform.client(new_tenant(admin, "hanging-up"), max_retries=0)
    with client.chat.completions.create(
        model=LOCAL_MODEL, messages=ask("Tell me all about the sea"), max_tokens=256, stream=True
    ) as stream:
        next(iter(stream))
    ends_s, outcomes = time.monotonic() + 60, list[str]()
    while not outcomes and time.monotonic() < ends_s:
        events = admin.get("/tenants/hanging-up/events", params={"limit": 1000}).json()["data"]
        outcomes = [event["data"]["outcome"] for event in events if event["type"] == "call.settled.v1"]
    assert outcomes == ["cancelled"]


def test_what_is_no_request_is_told_so_in_json_and_http_1_0_gets_no_chunks(platform: UpProcess) -> None:
    """At the proxy, as at the own door."""
    for request in ("GET / HTTP/1.1", "FOO / HTTP/1.1\r\nHost: x"):
        head, body = _said(platform, f"{request}\r\nConnection: close\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["code"] == "invalid_request"
    prompt = json.dumps({"model": LOCAL_MODEL, "messages": ask("Hi"), "max_tokens": 4, "stream": True})
    key = f"Authorization: Bearer {platform.running.demo_key}\r\nContent-Length: {len(prompt)}"
    head, body = _said(platform, f"POST /v1/chat/completions HTTP/1.0\r\n{key}\r\n\r\n{prompt}")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body.startswith(b"data: {")


def _said(platform: UpProcess, request: str) -> tuple[bytes, bytes]:
    """Head and body of what comes back until the other side closes."""
    url = httpx.URL(platform.running.base_url)
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        connection.sendall(request.encode())
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    return head, body


def test_a_replica_has_a_door_of_its_own(platform: UpProcess, admin: httpx.Client) -> None:
    """The same application on the same terms, without HAProxy and Serve between."""
    (row,) = json.loads(platform.tenantry("gateways", "--json"))
    assert row["url"] in platform.tenantry("gateways")
    key = platform.running.demo_key
    with OpenAI(base_url=f"{row['url']}/v1", api_key=key) as client:
        answer = client.chat.completions.create(model=LOCAL_MODEL, messages=ask("Hello"), max_tokens=8)
    assert answer.usage is not None
    headers = {"authorization": f"Bearer {key}", "x-request-timeout-seconds": "0.000001"}
    assert httpx.get(f"{row['url']}/v1/usage", headers=headers, timeout=60).status_code == 200
    assert httpx.get(f"{row['url']}/admin/v1/tenants", headers=headers, timeout=60).status_code == 401


def test_tenants_are_apart_at_both_doors(platform: UpProcess, admin: httpx.Client) -> None:
    """The two-tenant matrix through HAProxy and Serve, and at the replica's own port."""
    own = admin.get("/gateways").json()["data"][0]["url"]
    for url in (platform.running.base_url.removesuffix("/v1"), own):
        assert asyncio.run(check_tenants_apart(url, platform.running.admin_key, LOCAL_MODEL)) >= 60


def test_nothing_listens_beyond_loopback(platform: UpProcess) -> None:
    pids = {platform.process.pid, *(process.pid for process in platform.descendants())}
    listening = [
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("inet")
        if connection.laddr and connection.status == psutil.CONN_LISTEN and connection.pid in pids
    ]
    assert len(listening) > 5
    assert [address for address in listening if address[0] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == []


def test_a_second_platform_on_the_same_data_or_port_is_told_why_not(platform: UpProcess, tmp_path: Path) -> None:
    assert "is in use by `tenantry up` with pid" in platform.tenantry("up", expect=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "serve.cli", "up", "--data-dir", str(tmp_path / "d"), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"port {port} (for HTTP) is in use" in done.stderr


def test_a_bad_models_file_is_explained_before_anything_starts(tmp_path: Path) -> None:
    models = tmp_path / "models.yaml"
    models.write_text("models:\n  - name: small\n    upstream: http://x\n")
    command = [sys.executable, "-m", "serve.cli", "up", "--data-dir", str(tmp_path / "d"), "--models", str(models)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "unknown setting 'upstream', did you mean 'upstreams'?" in done.stderr
    assert not (tmp_path / "d").exists()
