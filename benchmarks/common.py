"""What the benchmarks share: their sides, their flags, the machine, the table and file of results.

A row is a plain dictionary, so that it can be written to JSON as it is; `timing.py` makes those of
times.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MODEL = ROOT / "models" / "smollm2-135m-instruct"

# The sides that are compared.
TRL = "trl"
OURS = "grpo-hf"
PEER = "prefix-grouper"

# Characters of a table that is written to a file: enough for one line per row.
FILE_WIDTH = 170

MEBIBYTE = 2**20

# `_cells` makes the cells in this order. The last column says whether the bar is met.
HEADINGS = (
    "benchmark",
    "TRL",
    "grpo-hf",
    PEER,
    "value (range)",
    "by wall",
    "without kernel",
    "bar",
    "",
)

# The data type that the command line asks for, if it does.
_asked_for: list[torch.dtype] = []

# `ratio_row` makes the entries that every row has.
Row = dict[str, Any]


def options(
    description: str, rows: Sequence[str] = (), repeats: int = 5
) -> argparse.ArgumentParser:
    """Return a parser with the flags that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description.split("\n\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", default=str(MODEL), help="a checkpoint folder, or a model on the Hub"
    )
    parser.add_argument(
        "--repeats", type=int, default=repeats, help="timed runs of each side, in turns"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    if rows:
        parser.add_argument(
            "--rows",
            nargs="+",
            choices=rows,
            default=list(rows),
            metavar="NAME",
            help=", ".join(rows),
        )
    return parser


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add the flag of benchmarks that run in half precision on a CPU as well."""
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="of the weights; else that of the device"
    )


def dtype() -> torch.dtype:
    """Return the data type of the weights: as asked for, or float32 on a CPU and bf16 on CUDA."""
    if _asked_for:
        return _asked_for[0]
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def prepare(arguments: argparse.Namespace) -> None:
    """Check the settings, and set the number of threads and the data type.

    Raises:
        SystemExit: the model's folder is missing, or a number is too small.
    """
    model = Path(arguments.model)
    # Other names, such as "owner/model", may be a model on the Hub.
    is_local = model == MODEL or model.is_absolute() or arguments.model.startswith(".")
    if is_local and not model.exists():
        raise SystemExit(
            f"error: there is no model in {arguments.model}. "
            "Run `make smollm2`, or name one: --model PATH."
        )
    if arguments.repeats < 1 or arguments.threads < 1:
        raise SystemExit("error: --repeats and --threads have to be 1 or more.")
    # Results of different machines can only be compared with a fixed number.
    torch.set_num_threads(arguments.threads)
    asked = getattr(arguments, "dtype", None)
    _asked_for[:] = [] if asked is None else [getattr(torch, asked)]


def machine() -> Row:
    """Return what the benchmark ran on: processor, versions and commit."""
    names = _cpu_names()
    versions = {}
    for package in ("torch", "transformers", "trl", "peft", "grpo-hf"):
        versions[package] = version(package)
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(names) or None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
    }


def _cpu_names() -> list[str]:
    """Return the name of every core; an empty list where Linux's /proc/cpuinfo does not say."""
    file = Path("/proc/cpuinfo")
    names = []
    # Python's `platform.processor()` does not have the model's name on Linux.
    if file.exists():
        for line in file.read_text().splitlines():
            if "model name" in line:
                names.append(line.partition(":")[2].strip())
    return names


def train_alone(recipe: Path, run: Path, settings: Sequence[str], threads: int = 1) -> Row:
    """Train a recipe by `grpo-hf train` in a process of its own, as a user does.

    Args:
        run: the output folder.
        settings: further flags.
        threads: of torch.

    Returns:
        Seconds of it, `wall` and `cpu`, its start and its comparison included.

    Raises:
        SystemExit: the run failed.
    """
    command = [sys.executable, "-m", "grpo_hf.cli", "train", str(recipe)]
    return run_alone([*command, "--output_dir", str(run), *settings], ROOT, threads)


def run_alone(command: Sequence[str], folder: Path, threads: int = 1) -> Row:
    """Run a command in a folder, in a process of its own.

    Returns:
        Seconds of it, `wall` and `cpu`.

    Raises:
        SystemExit: the command failed.
    """
    before, start = os.times(), time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=folder, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"error: `{' '.join(command)}` ended with {done.returncode}.")
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"wall": round(time.perf_counter() - start, 1), "cpu": round(cpu, 1)}


def _commit() -> str | None:
    """Return the commit of the code, with `-dirty` where the code is another one."""
    commit = _git("rev-parse", "--short=7", "HEAD")
    # What benchmarks write themselves changes no number of the next one.
    written = [":(exclude)benchmarks/results", ":(exclude)docs"]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *written)
    return f"{commit}-dirty" if commit and changed else commit


def _git(*arguments: str) -> str | None:
    """Return the output of a git command, or None in a copy without history."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    # OSError: git is not installed. CalledProcessError: this is no repository.
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_json(
    benchmark: str, rows: Sequence[Row], arguments: argparse.Namespace, **others: Any
) -> Path:
    """Write rows, settings and the machine to `results/BENCHMARK.json`; return the path."""
    settings = vars(arguments).copy()
    # Paths of one machine say nothing to readers of the file.
    del settings["results"]
    settings["model"] = Path(arguments.model).name
    record = {
        "benchmark": benchmark,
        "machine": machine(),
        "settings": settings,
        **others,
        "rows": list(rows),
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    path: Path = arguments.results / f"{benchmark}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def table(rows: Sequence[Row], title: str = "") -> Table:
    """Return the rows as a table of medians and ranges that says whether each bar is met."""
    shown = Table(title=title)
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading == "benchmark" else "right")
    for row in rows:
        shown.add_row(*_cells(row))
    return shown


def _cells(row: Row) -> list[str]:
    """Return the cells of a row, in the order of `HEADINGS`."""
    cells = [f"{row['name']}: {row['title']}"]
    for side in (TRL, OURS, PEER):
        # Some rows compare one side only, or have no sides at all.
        measures = row.get("sides", {}).get(side)
        cells.append("" if measures is None else _cost_text(measures))
    low, high = row["range"]
    cells.append(f"{row['value']:.2f}{row['unit']} ({low:.2f} to {high:.2f})")
    for key in ("value_by_wall", "value_without_system"):
        cells.append(f"{row[key]:.2f}" if row.get(key) else "")
    cells.append("" if row["bar"] is None else f"{row['bar']:g}")
    verdicts = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}
    cells.append(verdicts[row["met"]])
    return cells


def _cost_text(measures: Row) -> str:
    """Return the median time of a side, or its median memory in a benchmark of memory."""
    if "cost" in measures:
        return f"{measures['cost']['median']:.2f} s"
    return f"{measures['peak']['median'] / MEBIBYTE:,.0f} MiB"


def show(rows: Sequence[Row], title: str = "") -> None:
    """Print the table."""
    # rich assumes 80 columns where the output is a file, and would break every row.
    width = None if sys.stdout.isatty() else FILE_WIDTH
    Console(width=width).print(table(rows, title))


def report(
    benchmark: str, rows: Sequence[Row], arguments: argparse.Namespace, **others: Any
) -> None:
    """Write the rows to a file and print them.

    Raises:
        SystemExit: with code 1, if the sides of a row computed different numbers. The speed of
            wrong numbers means nothing.
    """
    # Written before the check below, so that the numbers of a failed run can be looked at.
    path = write_json(benchmark, rows, arguments, **others)
    show(rows, f"{benchmark}, {arguments.repeats} repeats, {arguments.threads} threads")
    print(f"written to {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    wrong = []
    for row in rows:
        if not all(row.get("equal", {}).values()):
            wrong.append(row["name"])
    if wrong:
        raise SystemExit(
            f"error: the sides do not compute the same in {', '.join(wrong)}; "
            "these times mean nothing."
        )
