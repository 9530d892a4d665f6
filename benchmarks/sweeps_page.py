"""Write docs/guidance.md and its pictures from the records of `benchmarks.sweeps`."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from .common import Row
from .learning_page import rendered

DATA = Path(__file__).parent / "data"
TEMPLATE = DATA / "guidance.md.jinja"
# What each sweep says in a sentence; a person reads the figures and writes it.
SENTENCES = DATA / "guidance.yaml"
# Steps whose mean is the KL at the end.
ENDS = 5
# In a picture with a logarithmic scale, where the estimate of a small KL may be 0.
_LEAST_KL = 1e-5


def means(runs: Sequence[Row]) -> list[str]:
    """Return base, adapter, difference, KL at the end and CPU time: means over the seeds.

    The last one is empty where a run was made before it was measured.
    """
    cells = []
    for side, sign in (("base", ""), ("adapter", ""), ("difference", "+")):
        cells.append(f"{fmean(run[side]['value'] for run in runs):{sign}.3f}")
    ends = [kl for run in runs if (kl := kl_at_end(run)) is not None]
    cells.append(f"{fmean(ends):.3f}" if ends else "not logged")
    cells.append(f"{fmean(run['cpu'] for run in runs):.0f}" if timed(runs) else "")
    return cells


def timed(runs: Sequence[Row]) -> bool:
    """Return whether the CPU time of every run is known."""
    return all("cpu" in run for run in runs)


def kl_at_end(run: Row) -> float | None:
    """Return the mean KL of the last steps; None without a KL term, whose run logs none."""
    kl = run["curves"]["kl"][-ENDS:]
    return fmean(kl) if kl else None


def spread(runs: Sequence[Row]) -> str:
    """Return the differences of all seeds."""
    return ", ".join(f"{run['difference']['value']:+.3f}" for run in runs)


def write_page(records: Path, docs: Path) -> Path:
    """Write the page and a picture for each record, and return the page.

    Raises:
        SystemExit: there is no record, or a record without a sentence.
    """
    sentences = yaml.safe_load(SENTENCES.read_text(encoding="utf-8"))
    found = []
    for file in sorted(records.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if file.stem not in sentences:
            raise SystemExit(f"error: {SENTENCES.name} has no sentence for {file.stem}.")
        record["name"] = file.stem
        record["sentence"] = sentences[file.stem]
        record["timed"] = all(timed(value["runs"]) for value in record["values"])
        draw(record, docs / f"sweep_{file.stem}.png")
        found.append(record)
    if not found:
        raise SystemExit(f"error: {records} holds no record. `--setting NAME` makes one.")
    page = docs / "guidance.md"
    page.write_text(rendered(TEMPLATE, found, means=means, spread=spread), encoding="utf-8")
    return page


def draw(record: Row, output: Path) -> None:
    """Draw what every run gained and its KL over the values, and the mean gain of each value."""
    import matplotlib

    # This backend writes files and needs no display.
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    values = record["values"]
    places = list(range(len(values)))
    draw_gains(axes[0], values)
    for place, found in zip(places, values, strict=True):
        for run in found["runs"]:
            end = kl_at_end(run)
            if end is not None:
                axes[1].plot(place, max(end, _LEAST_KL), "o", color="#D55E00", markersize=4)
    axes[1].set_title("KL to the base at the end", fontsize=9)
    axes[1].set_yscale("log")
    low, high = axes[1].get_ylim()
    axes[1].yaxis.set_major_formatter("{x:g}")
    # Within a power of ten the values between are all that there is to read.
    axes[1].yaxis.set_minor_formatter("{x:.2g}" if high < 10 * low else NullFormatter())
    for axis in axes:
        axis.set_xticks(places, [str(found["value"]) for found in values], fontsize=8)
        axis.set_xlabel(record["setting"], fontsize=8)
        axis.set_xlim(-0.5, len(values) - 0.5)
        axis.grid(alpha=0.3)
    figure.suptitle(f"{record['task']}: {record['setting']}", fontsize=10)
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


def draw_gains(axis: Any, values: Sequence[Row]) -> None:
    """Draw what each seed gained, adapter minus base, and a thick line through the means."""
    places = range(len(values))
    gains = [[run["difference"]["value"] for run in found["runs"]] for found in values]
    for of_seed in zip(*gains, strict=True):
        axis.plot(places, of_seed, "o-", color="#0072B2", linewidth=0.7, markersize=4, alpha=0.4)
    axis.plot(places, list(map(fmean, gains)), "-", color="#0072B2", linewidth=2)
    axis.axhline(0, color="#000000", linewidth=1)
    axis.set_title("held-out problems right: adapter minus base", fontsize=9)
