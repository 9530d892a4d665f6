"""What every benchmark needs: a clock, turns, rows for a table, and a file for the record.

A row is a plain dictionary, because it goes to JSON as it is. Its value is a ratio of medians, and its range the
smallest and the largest ratio of a single repeat. On a CPU the ratio is one of CPU time, which other programs on the
machine hardly touch; on CUDA it is one of time between events on the device's stream. Beside it stand the ratio by wall
time, and the one of CPU time without the kernel's share: a side that needs gigabytes makes the kernel clear pages for
it, which is real cost but depends on the allocator and the machine (a virtual one pays more).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MODEL = ROOT / "models" / "smollm2-135m-instruct"
TRL, OURS, PEER = "trl", "grpo-hf", "prefix-grouper"

Row = dict[str, Any]


@dataclass(frozen=True)
class Time:
    """What one run took, in seconds: CPU time over all threads and the part of it that the kernel spent on memory pages
    and the like, wall time, and the time that the ratio is made of."""

    cpu: float
    system: float
    wall: float
    cost: float


def options(
    description: str, rows: Sequence[str] = (), repeats: int = 5
) -> argparse.ArgumentParser:
    """The flags that the benchmarks share."""
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


def prepare(arguments: argparse.Namespace) -> None:
    """Settle what can be wrong with the settings, and the number of threads, before a model is loaded."""
    model = Path(arguments.model)
    if not model.exists() and (
        model == MODEL or model.is_absolute() or arguments.model.startswith(".")
    ):
        raise SystemExit(
            f"error: there is no model in {arguments.model}. Run `make smollm2`, or name one: --model PATH."
        )
    if arguments.repeats < 1 or arguments.threads < 1:
        raise SystemExit("error: --repeats and --threads have to be 1 or more.")
    torch.set_num_threads(arguments.threads)


def timed(action: Callable[[], Any]) -> Time:
    """Run and time an action; on CUDA until the device has done its part."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
    cpu, system, wall = time.process_time(), os.times().system, time.perf_counter()
    action()
    if cuda:
        end.record()
        torch.cuda.synchronize()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Time(
        cpu, os.times().system - system, wall, start.elapsed_time(end) / 1000 if cuda else cpu
    )


def alternate(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Time]]:
    """Time each side once per repeat; every other repeat goes through the sides backwards."""
    times: dict[str, list[Time]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides)[:: -1 if repeat % 2 else 1]:
            times[name].append(timed(sides[name]))
    return times


def matmul_rate(dtype: torch.dtype = torch.float32, size: int = 0) -> Row:
    """FLOP/s of a square matrix product, by the cost that ratios are made of and by wall time; median of 5."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = size or (8192 if device == "cuda" else 2048)
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    product = torch.mm(a, b)
    times = [timed(lambda: torch.mm(a, b, out=product)) for _ in range(5)]
    flops = 2 * size**3
    return {
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "flops_per_s": flops / median(time.cost for time in times),
        "flops_per_wall_s": flops / median(time.wall for time in times),
    }


def comparison(
    name: str, title: str, times: dict[str, list[Time]], bar: float | None = None, **others: Any
) -> Row:
    """The row of a benchmark that compares times: TRL's over ours."""
    pairs = list(zip(times[TRL], times[OURS], strict=True))
    ratios = [trl.cost / ours.cost for trl, ours in pairs]
    row = ratio_row(
        name, title, _median(times[TRL], "cost") / _median(times[OURS], "cost"), bar, ratios
    )
    without = {side: median(run.cpu - run.system for run in times[side]) for side in (TRL, OURS)}
    row["value_without_system"] = without[TRL] / without[OURS] if without[OURS] > 0 else None
    row["value_by_wall"] = _median(times[TRL], "wall") / _median(times[OURS], "wall")
    row["sides"] = {side: _side(runs) for side, runs in times.items()}
    return row | others


def ratio_row(
    name: str, title: str, value: float, bar: float | None, each: Sequence[float], unit: str = "×"
) -> Row:
    """A row with a value, the range of its repeats, and a bar that it has to reach if it has one."""
    met = None if bar is None else value >= bar
    return {
        "name": name,
        "title": title,
        "value": value,
        "range": [min(each), max(each)],
        "unit": unit,
    } | {
        "bar": bar,
        "met": met,
    }


def _median(runs: list[Time], what: str) -> float:
    return median(getattr(run, what) for run in runs)


def _side(runs: list[Time]) -> Row:
    return {
        what: {
            "median": _median(runs, what),
            "spread": max(getattr(run, what) for run in runs)
            - min(getattr(run, what) for run in runs),
            "all": [getattr(run, what) for run in runs],
        }
        for what in ("cpu", "system", "wall", "cost")
    }


def machine() -> Row:
    """What ran: processor, versions and commit."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": len(names) if info.exists() and names else None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("torch", "transformers", "trl", "peft", "grpo-hf")
        },
        "commit": _git("describe", "--always", "--dirty", "--exclude", "*"),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # a copy without its history
    return done.stdout.strip()


def write_json(
    benchmark: str, rows: Sequence[Row], arguments: argparse.Namespace, **others: Any
) -> Path:
    """Write rows, settings and the machine to `results/BENCHMARK.json`."""
    settings = {key: value for key, value in vars(arguments).items() if key != "results"}
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
    """The rows as a person reads them: medians with their range, and whether the bar is met."""
    shown = Table(title=title)
    for heading in (
        "benchmark",
        "TRL",
        "grpo-hf",
        PEER,
        "value (range)",
        "by wall",
        "without kernel",
        "bar",
        "",
    ):
        shown.add_column(heading, justify="left" if heading == "benchmark" else "right")
    for row in rows:
        sides = {
            side: row["sides"][side] for side in (TRL, OURS, PEER) if side in row.get("sides", {})
        }
        cells = [_cell(sides[side]) if side in sides else "" for side in (TRL, OURS, PEER)]
        low, high = row["range"]
        wall, user = (
            f"{row[key]:.2f}" if row.get(key) else ""
            for key in ("value_by_wall", "value_without_system")
        )
        bar = "" if row["bar"] is None else f"{row['bar']:g}"
        verdict = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[row["met"]]
        value = f"{row['value']:.2f}{row['unit']} ({low:.2f} to {high:.2f})"
        shown.add_row(f"{row['name']}: {row['title']}", *cells, value, wall, user, bar, verdict)
    return shown


def _cell(side: Row) -> str:
    if "cost" in side:
        return f"{side['cost']['median']:.2f} s"
    return f"{side['peak']['median'] / 2**20:,.0f} MiB"


def show(rows: Sequence[Row], title: str = "") -> None:
    """Print the table; wide enough to stay one line per row where the output is a file."""
    Console(width=None if sys.stdout.isatty() else 170).print(table(rows, title))


def report(
    benchmark: str, rows: Sequence[Row], arguments: argparse.Namespace, **others: Any
) -> None:
    """Write, print, and refuse to let a speed of wrong numbers pass.

    Raises:
        SystemExit: with code 1, a row's sides did not compute the same.
    """
    path = write_json(benchmark, rows, arguments, **others)
    show(rows, f"{benchmark}, {arguments.repeats} repeats, {arguments.threads} threads")
    print(f"written to {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    if wrong := [row["name"] for row in rows if not all(row.get("equal", {}).values())]:
        raise SystemExit(
            f"error: the sides do not compute the same in {', '.join(wrong)}; these times mean nothing."
        )
