"""Programs of the tests on several processes, as `accelerate launch` starts them."""

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.distributed import TCPStore

SCRIPTS = Path(__file__).parents[1] / "scripts"
SCRIPT = SCRIPTS / "replay_training.py"
SECONDS = 300

ENVIRONMENT = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "no",
    "OMP_NUM_THREADS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}

# Importing the libraries takes longer than the training of a test: they are imported once, by the
# process that all others are forked from.
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["trl.trainer.grpo_trainer", "grpo_hf", "support.processes"])


def launch_with_accelerate(processes: int, *arguments: object, script: Path = SCRIPT) -> str:
    """Run a script with the launcher itself, and return what was written to its output."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    command += ["--num_processes", str(processes), *(["--multi_gpu"] if processes > 1 else [])]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*command, str(script), *map(str, arguments)],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def launch(
    processes: int,
    *arguments: object,
    script: Path = SCRIPT,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Run a script as the launcher does, in forks of a process that has imported the libraries.

    Args:
        variables: of the environment, beside those of all tests.

    Returns:
        What all processes wrote to their output.
    """
    with TemporaryDirectory() as folder:
        running = started(processes, Path(folder), *arguments, script=script, variables=variables)
        _join(running)
        written = written_in(Path(folder))
    assert not any(process.exitcode for process in running), written[-3000:]
    return written


def started(
    processes: int,
    folder: Path,
    *arguments: object,
    script: Path = SCRIPT,
    variables: Mapping[str, str] | None = None,
) -> list[ForkServerProcess]:
    """Start a script as `launch`; each process writes its output into a file of a folder."""
    # The store of the process group is held here, where its port is known to be free.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    running = []
    for rank in range(processes):
        environment = ENVIRONMENT | dict(variables or {})
        if processes > 1:
            environment |= _place(rank, processes, store.port)
        given = (environment, [str(script), *map(str, arguments)], folder / str(rank))
        running.append(FORKS.Process(target=run_script, args=given))
        running[-1].start()
    # It lives as long as they do.
    running[0].store = store
    return running


def written_in(folder: Path) -> str:
    """Return what the processes that were started with a folder wrote to their output."""
    return "".join(output.read_text() for output in sorted(folder.iterdir()))


def _place(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return what tells a process of its place among others."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    place |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    return place | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))


def _join(running: Sequence[ForkServerProcess]) -> None:
    """Wait for processes; as with the launcher, one that fails ends the others."""
    left = {process.sentinel: process for process in running}
    while left:
        ended = wait(left, timeout=SECONDS)
        done = [left.pop(sentinel) for sentinel in ended]
        if not done or any(process.exitcode for process in done):
            for process in left.values():
                process.kill()
    for process in running:
        process.join()


def run_script(environment: dict[str, str], arguments: list[str], output: Path) -> None:
    """Be a process of the launcher: run a script as a program, its output in a file."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    with output.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
