"""Feeds a confined program, reads what it prints, and ends it at its limits."""

import os
import selectors
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READ_SIZE = 65_536
_WRITE_SIZE = 4_096  # a pipe that is ready takes this much without blocking (PIPE_BUF)
_SECONDS_TO_END = 5.0  # for a launcher to end what a run left, before it is killed itself


@dataclass(frozen=True)
class Limits:
    """What one run may use.

    Memory is counted per process, so `processes` times `memory` bounds the whole.

    Args:
        seconds: wall time; also the processor time of each process.
        memory: bytes of address space of each process.
        processes: processes and threads.
        disk: bytes of all files together.
        output: bytes of standard output and standard error together; one more ends the run.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    processes: int = 16
    disk: int = 64 << 20
    output: int = 1 << 20


def talk_to(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    stdin: str,
    limits: Limits,
    descriptors: tuple[int, ...],
) -> tuple[int, tuple[str, str], str]:
    """Run a confined command to its end, and return its code, what it printed, and why it ended.

    Args:
        command: what confines the program, with the program.
        folder: where it starts.
        environment: all its variables.
        stdin: what it reads.
        limits: when it is ended.
        descriptors: open files that it inherits.
    """
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        start_new_session=True,
        pass_fds=descriptors,
        **pipes,
    )
    output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    deadline = time.monotonic() + limits.seconds
    try:
        reason = _talk(
            process, memoryview(stdin.encode(errors="replace")), output, deadline, limits.output
        )
        if reason == "exited":
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        reason = "timed out"
    finally:
        _end(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    printed, complained = (bytes(text).decode(errors="replace") for text in output.values())
    return process.returncode, (printed, complained), reason


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a run: the launcher ends what it started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)
    process.kill()
    process.wait()


def _talk(
    process: subprocess.Popen[bytes],
    pending: memoryview,
    output: dict[str, bytearray],
    deadline: float,
    most: int,
) -> str:
    """Feed stdin and collect what is printed until the process ends or a limit is broken."""
    with selectors.DefaultSelector() as selector:
        for name in output:
            selector.register(getattr(process, name), selectors.EVENT_READ, name)
        selector.register(process.stdin, selectors.EVENT_WRITE, "stdin")  # type: ignore[arg-type]
        while len(selector.get_map()) > (
            "stdin" in {key.data for key in selector.get_map().values()}
        ):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return "timed out"
            ready = selector.select(min(remaining, 0.05))
            if not ready and process.poll() is not None:
                break  # something that it left behind holds the streams open
            for key, _ in ready:
                if key.data == "stdin":
                    with suppress(BrokenPipeError):
                        pending = pending[os.write(key.fd, pending[:_WRITE_SIZE]) :]
                        if pending:
                            continue
                else:
                    text = os.read(key.fd, READ_SIZE)
                    output[key.data] += text
                    if text:
                        continue
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
            if sum(map(len, output.values())) > most:
                return "too much output"
    return "exited"
