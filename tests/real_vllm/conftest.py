"""Real engines of vLLM, on a CPU: `make vllm-test` makes their environment."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMOLLM2 = ROOT / "models" / "smollm2-135m-instruct"
# Seconds until a server is up; this machine may be busy.
PATIENCE = 400

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# What vLLM compiles by itself gains nothing at these sizes.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@dataclass
class Server:
    """A process of `vllm serve`, the leader of its group."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except OSError:
            return False

    def wait(self) -> None:
        until = time.monotonic() + PATIENCE
        while not self.is_up():
            ended = self.process.poll() is not None
            if ended or time.monotonic() > until:
                pytest.fail(f"vllm serve does not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.5)

    def kill(self) -> None:
        """End it and its engine at once, as `kill -9`."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def serve(model: Path, log: Path) -> Server:
    """Start a stock server by the command that our messages name."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(model)]
    command += ["--port", str(port), "--host", "127.0.0.1", "--enable-lora"]
    command += ["--max-lora-rank", "8", "--logprobs-mode", "processed_logprobs"]
    # Of this machine, which has no GPU.
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "192"]
    environment = os.environ | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    return Server(process, port, log)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    if not (SMOLLM2 / "config.json").is_file():
        pytest.skip("there is no models/smollm2-135m-instruct: make smollm2")
    return SMOLLM2


@pytest.fixture(scope="session")
def servers(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """A server of the embedded model, and one of SmolLM2 where that is there."""
    logs = tmp_path_factory.mktemp("servers")
    models = {"tiny": tiny_checkpoint}
    if (SMOLLM2 / "config.json").is_file():
        models["smollm2"] = SMOLLM2
    with ExitStack() as stack:
        started = {}
        for name, model in models.items():
            started[name] = serve(model, logs / f"{name}.log")
            stack.callback(started[name].kill)
        for server in started.values():
            server.wait()
        yield started
