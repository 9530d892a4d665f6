"""Check grpo-hf on a GPU: is it right, how fast is it, does it fit?

    make gpu-check
    python -m benchmarks.gpu_check [--json FILE] [--minutes 8] [--parts kernel update]
    python -m benchmarks.gpu_check --device cpu --size tiny     # tries the command without a GPU

Nothing is downloaded: models have random weights in published shapes (gpu_models.py). Every part is
a process of its own with a time limit, and the others go on after it fails. At the end, and after
Ctrl-C, there is a table and a JSON file with what is done so far. The exit code is 1 if a part
failed or missed its bar.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from .common import FILE_WIDTH, RESULTS, ROOT, Row
from .gpu_rows import BAD, one_gpu

# Seconds of each part, 8 minutes in all on an H100. What a part leaves is the next one's. The first
# one reads the libraries from a cold disk.
BUDGETS = {
    "environment": 40,
    "kernel": 20,
    "correctness": 95,
    "4-bit": 30,
    "compile": 40,
    "update": 35,
    "rollout": 30,
    "step": 30,
    "memory": 40,
    "plan": 25,
    "vllm": 55,
    "unsloth": 20,
    "two GPUs": 20,
}
MINUTES = sum(BUDGETS.values()) / 60

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
    rows: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    finished: bool = False

    def run(self) -> None:
        """Run the parts one after the other."""
        start = time.monotonic()
        until = start
        for part in self.arguments.parts:
            until += BUDGETS[part] * self.arguments.minutes / MINUTES
            began = time.monotonic()
            try:
                self.run_part(part, until - began)
            finally:
                self.seconds[part] = round(time.monotonic() - began, 1)
                self.rows += self.rows_of(part)
                self.write()
            print(f"{part}: {self.seconds[part]:.0f} s", flush=True)
        self.finished = True

    def run_part(self, part: str, limit: float) -> None:
        """Run one part in a process of its own; note its end where that is a failure."""
        log = self.folder / f"{part}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(part),
                cwd=ROOT,
                env=os.environ | self.environment(part),
                stdout=output,
                stderr=output,
                # Ctrl-C is for the command, which then ends the part and all that it started.
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=limit)
                reason = f"it ended with code {code}" if code else None
            except subprocess.TimeoutExpired:
                reason = f"it ran past its {limit:.0f} s"
            finally:
                _end(process)
        rows = self.rows_of(part)
        if reason is None and not rows:
            reason = "it reported nothing"
        if reason is not None:
            self.note(part, {"name": "the part", "status": "failed", "note": reason})
        if reason is not None or any(row["status"] == "failed" for row in rows):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            self.logs[part] = "\n".join(lines[-LOG_LINES:])

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

    def note(self, part: str, row: Row) -> None:
        """Add a row behind those of a part."""
        append(rows_file(self.folder, part), part, row)

    def write(self) -> None:
        """Write what is done so far to the JSON file."""
        machine = None
        for row in self.rows:
            machine = row.get("machine", machine)
        record = {
            "benchmark": "gpu-check",
            "machine": machine,
            "device": self.arguments.device,
            "size": self.arguments.size,
            "finished": self.finished,
            "seconds": self.seconds,
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
        print(f"written to {self.arguments.json}, after {sum(self.seconds.values()):.0f} s")
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


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--json", type=Path, default=RESULTS / "gpu-check.json", help="the file")
    flags.add_argument(
        "--minutes", type=float, default=MINUTES, help="all parts together; each has its share"
    )
    flags.add_argument("--parts", nargs="+", choices=list(BUDGETS), default=list(BUDGETS))
    flags.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    flags.add_argument("--size", choices=["full", "tiny"], default="full", help="of the models")
    flags.add_argument("--part", choices=list(BUDGETS), help=argparse.SUPPRESS)
    flags.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return flags


def main(given: Sequence[str] | None = None) -> None:
    """Run the check that the flags describe.

    Raises:
        SystemExit: with code 1, if a part failed or missed its bar, or there is no GPU.
    """
    arguments = parser().parse_args(given)
    arguments.json = arguments.json.absolute()
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
