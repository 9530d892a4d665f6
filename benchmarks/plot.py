"""Draw `results/sweep.json`: the speed-up of an update over prompt length and over group size.

python -m benchmarks.plot [--results benchmarks/results] [--output docs/performance.png]
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import RESULTS, ROOT, Row

# For each panel the first letter of its rows' names, the entry of a row with x, and the label of x.
PANELS = (
    ("P", "prompt", "prompt length P (C ≤ 128, G = 8)"),
    ("G", "size", "group size G (P = 256, C ≤ 64)"),
)


def draw(record: Row, output: Path) -> None:
    """Draw two panels, with the range of the repeats as error bars, into a file."""
    import matplotlib

    # This backend writes files and needs no display.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, (letter, x_key, label) in zip(axes, PANELS, strict=True):
        rows = [row for row in record["rows"] if row["name"].startswith(letter)]
        rows.sort(key=lambda row: row[x_key])
        draw_panel(axis, rows, x_key)
        axis.set_xlabel(label)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("time, TRL / grpo-hf")
    settings = record["settings"]
    machine = record["machine"]
    device = machine["accelerator"] or f"{settings['threads']} thread(s) of {machine['cpu']}"
    figure.suptitle(
        f"One update: {settings['model']}, {device}, TRL {machine['versions']['trl']}", fontsize=10
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    pyplot.close(figure)


def draw_panel(axis: Any, rows: Sequence[Row], x_key: str) -> None:
    """Draw the values of rows over one of their entries."""
    from matplotlib.ticker import ScalarFormatter

    x = []
    y = []
    below = []
    above = []
    for row in rows:
        value = row["value"]
        lowest, highest = row["range"]
        x.append(row[x_key])
        y.append(value)
        # A ratio of medians can lie outside the range of the single ratios, and matplotlib refuses
        # negative error bars.
        below.append(max(value - lowest, 0))
        above.append(max(highest - value, 0))
    # At this line both sides take the same time.
    axis.axhline(1, color="gray", linewidth=0.8, linestyle="--")
    axis.errorbar(x, y, yerr=[below, above], marker="o", capsize=3, color="tab:blue")
    for point in zip(x, y, strict=True):
        axis.annotate(
            f"{point[1]:.1f}×", point, textcoords="offset points", xytext=(0, 8), ha="center"
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(x)
    # Plain numbers; by default a logarithmic axis has powers of two.
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.grid(alpha=0.3)
    # Room for the texts above the points.
    axis.margins(x=0.12, y=0.18)


def main(given: Sequence[str] | None = None) -> None:
    """Draw the file that the flags name.

    Raises:
        SystemExit: the file is missing.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "performance.png")
    arguments = parser.parse_args(given)
    source = arguments.results / "sweep.json"
    if not source.exists():
        raise SystemExit(f"error: {source} is missing. Run `python -m benchmarks.sweep` first.")
    draw(json.loads(source.read_text(encoding="utf-8")), arguments.output)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
