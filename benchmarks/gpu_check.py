"""Check grpo-hf on a GPU: is it right, how fast is it, does it fit?

    make gpu-check
    python -m benchmarks.gpu_check [--json FILE] [--minutes 8] [--parts kernel update]
    python -m benchmarks.gpu_check --device cpu --size tiny     # tries the command without a GPU

Nothing is downloaded: models have random weights in published shapes (gpu_models.py). Every part is
a process of its own with a time limit, and the others go on after it fails. All of them start at
once, because reading the libraries takes longer than most parts; then they wait for their turn.
Parts that measure no time run beside each other, as many as the GPU has memory for; those that do
run alone. At the end, and after Ctrl-C, there is a table and a JSON file with what is done so far.
A file that is there keeps the parts that are not run now. The exit code is 1 if a part failed or
missed its bar.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import torch
from rich.console import Console
from rich.table import Table

from .common import FILE_WIDTH, RESULTS, ROOT, Row, machine
from .gpu_rows import BAD, FAILED, failed, one_gpu

# Parts that measure no time, and their seconds together. The first part reads the libraries from a
# cold disk.
TOGETHER = (
    "environment",
    "kernel",
    "correctness: Gemma-3-1B",
    "correctness: Llama-3.2-1B",
    "correctness: Qwen2.5-0.5B",
    "correctness: Qwen2.5-1.5B",
    "correctness: Qwen3-0.6B",
    "4-bit",
    "compile",
    "memory",
    "plan",
)
SECONDS_TOGETHER = 190
# The seconds of those that run alone. What a part leaves is the next one's.
ALONE = {
    "update": 50,
    "rollout": 50,
    "step": 50,
    "vllm": 70,
    "unsloth": 30,
    "two GPUs": 30,
}
PARTS = (*TOGETHER, *ALONE)
# 8 in all on an H100.
MINUTES = (SECONDS_TOGETHER + sum(ALONE.values())) / 60

# So much memory of the GPU lets one more part run beside the others.
GIBIBYTES_EACH = 13

# The others see one GPU: transformers would spread a process's batches over all that it sees.
SEE_ALL = ("environment", "two GPUs")

# Lines of a part's output that are shown and kept where it failed.
LOG_LINES = 30

COLOURS = {"met": "green", "missed": "red", "failed": "red", "left out": "dim"}


@dataclass
class Check:
    """Check is a run of the command, and what it found so far."""

    arguments: argparse.Namespace
    folder: Path
    found: dict[str, list[Row]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    commits: dict[str, str | None] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    commit: str | None = field(default_factory=lambda: machine()["commit"])
    finished: bool = False
    interrupted: bool = False

    @property
    def rows(self) -> list[Row]:
        """Return the rows of all parts."""
        return [row for part in PARTS for row in self.found.get(part, [])]

    def keep(self) -> None:
        """Keep what the file has of parts that are not run now."""
        if not self.arguments.json.exists():
            return
        record = json.loads(self.arguments.json.read_text(encoding="utf-8"))
        if (record["device"], record["size"]) != (self.arguments.device, self.arguments.size):
            return
        for row in record["rows"]:
            if row["part"] not in self.arguments.parts:
                self.found.setdefault(row["part"], []).append(row)
        for part in self.found:
            self.seconds[part] = record["seconds"][part]
            self.commits[part] = record["commits"][part]

    def run(self) -> None:
        """Run all parts: first those that may run beside each other, then the others."""
        self.keep()
        scale = self.arguments.minutes / MINUTES
        until = time.monotonic() + SECONDS_TOGETHER * scale
        parts = self.arguments.parts
        processes = {part: self.start(part) for part in parts}
        pool = ThreadPoolExecutor(self.beside())
        try:
            together = []
            for part in parts:
                if part in TOGETHER:
                    together.append(pool.submit(self.run_part, part, processes[part], until))
            for future in together:
                future.result()
            for part in parts:
                if part in ALONE:
                    until += ALONE[part] * scale
                    self.run_part(part, processes[part], until)
            self.finished = True
        finally:
            self.interrupted = not self.finished
            for process in processes.values():
                _end(process)
            pool.shutdown(cancel_futures=True)
            for part in parts:
                # What it had done when it was interrupted.
                if part not in self.found and self.rows_of(part):
                    self.take(part)

    def beside(self) -> int:
        """Return how many parts run beside each other."""
        if self.arguments.device == "cpu":
            return 1
        size = torch.cuda.get_device_properties(0).total_memory / 2**30
        return max(1, int(size // GIBIBYTES_EACH))

    def start(self, part: str) -> subprocess.Popen[bytes]:
        """Start the process of a part, which reads the libraries and waits for its turn."""
        with self.log(part).open("wb") as output:
            return subprocess.Popen(
                self.command(part),
                cwd=ROOT,
                env=os.environ | self.environment(part),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                # Ctrl-C is for the command, which then ends the part and all that it started.
                start_new_session=True,
            )

    def run_part(self, part: str, process: subprocess.Popen[bytes], until: float) -> None:
        """Let a part's process begin, and wait for it; note its end where that is a failure."""
        began = time.monotonic()
        # One that ended while it waited says so by its code.
        with contextlib.suppress(BrokenPipeError), cast("IO[bytes]", process.stdin) as turn:
            turn.write(b"\n")
        try:
            code = process.wait(timeout=max(0.0, until - began))
            reason = f"it ended with code {code}" if code else None
        except subprocess.TimeoutExpired:
            reason = f"it ran past its {until - began:.0f} s"
        finally:
            _end(process)
        if not self.interrupted:
            self.finish(part, reason, time.monotonic() - began)

    def finish(self, part: str, reason: str | None, seconds: float) -> None:
        """Take the rows of a part that ended, and write the file.

        Args:
            reason: why it failed.
        """
        rows = self.rows_of(part)
        if reason is None and not rows:
            reason = "it reported nothing"
        if reason is not None:
            append(rows_file(self.folder, part), part, failed("the part", reason))
        with self.lock:
            self.take(part)
            self.seconds[part] = round(seconds, 1)
            self.commits[part] = self.commit
            if any(row["status"] == FAILED for row in self.found[part]):
                text = self.log(part).read_text(encoding="utf-8", errors="replace")
                self.logs[part] = "\n".join(text.splitlines()[-LOG_LINES:])
            self.write()
            print(f"{part}: {self.seconds[part]:.0f} s", flush=True)

    def log(self, part: str) -> Path:
        """Return the file of a part's output."""
        return self.folder / f"{part}.log"

    def command(self, part: str) -> list[str]:
        """Return the command of a part's process."""
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", part]
        command += ["--device", self.arguments.device, "--size", self.arguments.size]
        return [*command, "--folder", str(self.folder)]

    def environment(self, part: str) -> dict[str, str]:
        """Return the environment variables of a part's process."""
        # Everything that trainers write lies in the folder of this run, which is removed.
        variables = {
            "TMPDIR": str(self.folder),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
        if self.arguments.device == "cpu":
            variables["CUDA_VISIBLE_DEVICES"] = ""
        elif part not in SEE_ALL:
            variables |= one_gpu()
        return variables

    def rows_of(self, part: str) -> list[Row]:
        """Return the rows that a part has written so far."""
        file = rows_file(self.folder, part)
        rows: list[Row] = []
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                # A process that is ended may leave half of a line.
                with contextlib.suppress(json.JSONDecodeError):
                    rows.append(json.loads(line))
        return rows

    def take(self, part: str) -> None:
        """Take the rows that a part has written so far."""
        self.found[part] = self.rows_of(part)

    def write(self) -> None:
        """Write what is done so far to the JSON file."""
        machines = [row["machine"] for row in self.found.get("environment", [])]
        record = {
            "benchmark": "gpu-check",
            "machine": machines[0] if machines else None,
            "device": self.arguments.device,
            "size": self.arguments.size,
            "finished": self.finished,
            "seconds": self.seconds,
            "commits": self.commits,
            "rows": self.rows,
            "logs": self.logs,
        }
        path: Path = self.arguments.json
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, path)

    def report(self) -> bool:
        """Write and print everything; return whether all of it is well."""
        self.write()
        for part, log in self.logs.items():
            print(f"== the end of {part}'s output\n{log}\n")
        width = None if sys.stdout.isatty() else FILE_WIDTH
        title = "gpu-check" if self.finished else "gpu-check, interrupted"
        Console(width=width).print(table(self.rows, title))
        bad = [f"{row['part']}: {row['name']}" for row in self.rows if row["status"] in BAD]
        # Those of parts that were kept are not this run's.
        took = sum(self.seconds.get(part, 0.0) for part in self.arguments.parts)
        print(f"written to {self.arguments.json}, after {took:.0f} s")
        if bad:
            print(f"error: missed or failed: {'; '.join(bad)}", file=sys.stderr)
        return self.finished and not bad


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started."""
    # Also after it ended by itself: an engine that it started would keep the GPU's memory.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def rows_file(folder: Path, part: str) -> Path:
    """Return the file of a part's rows, one JSON object in each line."""
    return folder / f"{part}.rows"


def append(file: Path, part: str, row: Row) -> None:
    """Write a row at the end of a file, at once: the process may be ended after it."""
    with file.open("a", encoding="utf-8") as rows:
        rows.write(json.dumps({"part": part, **row}) + "\n")


def run_here(part: str, folder: Path, device: str, size: str) -> None:
    """Run a part in this process, and write its rows."""
    # Imported here, because only the processes of the parts need TRL and a GPU.
    from . import gpu_correctness, gpu_parts
    from .gpu_rows import Work

    if not sys.stdin.readline():
        raise SystemExit("error: gpu_check ended before this part's turn came")
    action = (gpu_parts.PARTS | gpu_correctness.PARTS)[part]
    for row in action(Work(folder, device, size)):
        append(rows_file(folder, part), part, row)
        print(f"{part}: {row['name']}: {row['status']}", flush=True)


def table(rows: Sequence[Row], title: str) -> Table:
    """Return all rows as a table."""
    shown = Table(title=title)
    for heading, justify in (
        ("part", "left"),
        ("what", "left"),
        ("value", "right"),
        ("bar", "right"),
        ("", "left"),
        ("note", "left"),
    ):
        shown.add_column(heading, justify=justify)  # type: ignore[arg-type]
    last = ""
    for row in rows:
        part = row["part"] if row["part"] != last else ""
        last = row["part"]
        colour = COLOURS.get(row["status"], "default")
        shown.add_row(
            part,
            row["name"],
            _number(row.get("value")) + row.get("unit", ""),
            _number(row.get("bar")),
            f"[{colour}]{row['status']}[/]",
            row["note"],
        )
    return shown


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:,.2f}"


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM interrupt as Ctrl-C does: a job that is cancelled shows what it has."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)


def parts_of(name: str) -> tuple[str, ...]:
    """Return the parts of that name, or with that word in front.

    Raises:
        ArgumentTypeError: there is none.
    """
    found = tuple(part for part in PARTS if name in (part, part.partition(":")[0]))
    if not found:
        raise argparse.ArgumentTypeError(
            f"no part is called {name!r}; there are {', '.join(PARTS)}"
        )
    return found


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--json", type=Path, default=RESULTS / "gpu-check.json", help="the file")
    flags.add_argument(
        "--minutes", type=float, default=MINUTES, help="all parts together; each has its share"
    )
    flags.add_argument(
        "--parts", nargs="+", type=parts_of, default=[PARTS], metavar="PART", help=", ".join(PARTS)
    )
    flags.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    flags.add_argument("--size", choices=["full", "tiny"], default="full", help="of the models")
    flags.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    flags.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return flags


def main(given: Sequence[str] | None = None) -> None:
    """Run the check that the flags describe.

    Raises:
        SystemExit: with code 1, if a part failed or missed its bar, or there is no GPU.
    """
    arguments = parser().parse_args(given)
    arguments.json = arguments.json.absolute()
    chosen = {part for parts in arguments.parts for part in parts}
    arguments.parts = [part for part in PARTS if part in chosen]
    if arguments.part:
        run_here(arguments.part, arguments.folder, arguments.device, arguments.size)
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "error: torch sees no GPU here (torch.cuda.is_available()). "
            "To try the command without one: --device cpu --size tiny."
        )
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder:
        check = Check(arguments, Path(folder))
        with _ended_by_signals():
            check.run()
        is_well = check.report()
    if not is_well:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
