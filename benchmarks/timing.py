"""Time two sides in turns, and make table rows of the times.

A row is a plain dictionary, so that it can be written to JSON as it is. The value of a row is a
ratio of medians, TRL's time over ours. The range of a row is the smallest and the largest ratio of
a single repeat.

On a CPU the ratio compares CPU time, which other programs on the machine hardly change. On CUDA it
compares the time between two events on the device's stream. Each row also has the ratio of wall
times, and the ratio of CPU times without the kernel's share. The kernel has to clear the memory
pages of a side that needs gigabytes. That is a real cost, but it depends on the allocator and on
the machine (a virtual machine pays more).
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from grpo_hf.torch_seam import has_faster_products, onednn_linear

from .common import OURS, TRL, Row

# The fields of `Time` that a JSON file keeps.
MEASURES = ("cpu", "system", "wall", "cost")

# Rows of the square matrices whose product is timed. They are large enough to keep the device busy.
MATMUL_SIZE_CPU = 2048
MATMUL_SIZE_CUDA = 8192
# An odd number, so that the median is a time that was measured.
MATMUL_REPEATS = 5


@dataclass(frozen=True)
class Time:
    """Time is what one run took, in seconds.

    Attributes:
        cpu: CPU time of all threads.
        system: the part of `cpu` that the kernel spent, on memory pages for example.
        wall: wall time.
        cost: the time that ratios are made of.
    """

    cpu: float
    system: float
    wall: float
    cost: float


def timed(action: Callable[[], Any]) -> Time:
    """Run and time an action; on CUDA until the device has finished."""
    cuda = torch.cuda.is_available()
    if cuda:
        # Earlier work must not count, and kernels run asynchronously.
        torch.cuda.synchronize()
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
    cpu_start = time.process_time()
    system_start = os.times().system
    wall_start = time.perf_counter()
    action()
    if cuda:
        end.record()
        torch.cuda.synchronize()
    cpu = time.process_time() - cpu_start
    wall = time.perf_counter() - wall_start
    system = os.times().system - system_start
    # `elapsed_time` is in milliseconds.
    cost = start.elapsed_time(end) / 1000 if cuda else cpu
    return Time(cpu, system, wall, cost)


def alternate(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Time]]:
    """Time each side once per repeat.

    Every second repeat goes through the sides backwards, so that no side always profits from a warm
    cache or suffers from a hot processor.
    """
    times: dict[str, list[Time]] = {name: [] for name in sides}
    for repeat in range(repeats):
        order = list(sides)
        if repeat % 2:
            order.reverse()
        for name in order:
            times[name].append(timed(sides[name]))
    return times


def matmul_rate(dtype: torch.dtype = torch.float32, size: int = 0) -> Row:
    """Return the FLOP/s of a square matrix product, by cost and by wall time (medians).

    Args:
        size: rows of the matrices; 0 for the default of the device.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if size == 0:
        size = MATMUL_SIZE_CUDA if device == "cuda" else MATMUL_SIZE_CPU
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    # The first product warms up, and its memory takes the others: allocation is not timed.
    product = torch.mm(a, b)
    multiply = partial(torch.mm, a, b, out=product)
    if device == "cpu" and dtype == torch.float32 and has_faster_products():
        # The limit is the machine's, whichever library reaches it.
        multiply = partial(onednn_linear, a, b, None)
    times = []
    for _ in range(MATMUL_REPEATS):
        times.append(timed(multiply))
    # One multiplication and one addition for each of size³ pairs.
    flops = 2 * size**3
    return {
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "flops_per_s": flops / _median(times, "cost"),
        "flops_per_wall_s": flops / _median(times, "wall"),
    }


def comparison(
    name: str, title: str, times: dict[str, list[Time]], bar: float | None = None, **others: Any
) -> Row:
    """Return the row of a benchmark that compares times: TRL's time over ours.

    Args:
        bar: the ratio that has to be reached, if there is one.
        others: more entries of the row.
    """
    ratios = []
    for trl, ours in zip(times[TRL], times[OURS], strict=True):
        ratios.append(trl.cost / ours.cost)
    value = _median(times[TRL], "cost") / _median(times[OURS], "cost")
    row = ratio_row(name, title, value, bar, ratios)
    ours_without_system = _median_without_system(times[OURS])
    # CPU times have a resolution; a very short run can have none outside the kernel.
    row["value_without_system"] = (
        _median_without_system(times[TRL]) / ours_without_system
        if ours_without_system > 0
        else None
    )
    row["value_by_wall"] = _median(times[TRL], "wall") / _median(times[OURS], "wall")
    row["sides"] = {side: _side(runs) for side, runs in times.items()}
    return row | others


def ratio_row(
    name: str, title: str, value: float, bar: float | None, each: Sequence[float], unit: str = "×"
) -> Row:
    """Return a row with a value and the range of its repeats.

    Args:
        bar: the value that has to be reached, if there is one.
        each: the values of the single repeats.
    """
    return {
        "name": name,
        "title": title,
        "value": value,
        "range": [min(each), max(each)],
        "unit": unit,
        "bar": bar,
        "met": None if bar is None else value >= bar,
    }


def _values(runs: list[Time], measure: str) -> list[float]:
    return [getattr(run, measure) for run in runs]


def _median(runs: list[Time], measure: str) -> float:
    return median(_values(runs, measure))


def _median_without_system(runs: list[Time]) -> float:
    return median([run.cpu - run.system for run in runs])


def _side(runs: list[Time]) -> Row:
    """Return all measures of one side's runs, with their median and spread."""
    measures = {}
    for measure in MEASURES:
        values = _values(runs, measure)
        measures[measure] = {
            "median": median(values),
            "spread": max(values) - min(values),
            "all": values,
        }
    return measures
