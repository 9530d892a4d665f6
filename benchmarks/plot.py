"""Draw `results/sweep.json`: how much less an update costs, against prompt length and group size.

python -m benchmarks.plot [--results benchmarks/results] [--output docs/performance.png]
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from .common import RESULTS, ROOT, Row


def draw(record: Row, output: Path) -> None:
    """Two panels, with the range of the repeats as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    panels = [
        ("P", "prompt", "prompt length P (C ≤ 128, G = 8)"),
        ("G", "size", "group size G (P = 256, C ≤ 64)"),
    ]
    for axis, (letter, what, label) in zip(axes, panels, strict=True):
        rows = sorted(
            (row for row in record["rows"] if row["name"].startswith(letter)),
            key=lambda row: row[what],
        )
        x, y = [row[what] for row in rows], [row["value"] for row in rows]
        below = [max(row["value"] - row["range"][0], 0) for row in rows]
        above = [max(row["range"][1] - row["value"], 0) for row in rows]
        axis.axhline(1, color="gray", linewidth=0.8, linestyle="--")
        axis.errorbar(x, y, yerr=[below, above], marker="o", capsize=3, color="tab:blue")
        for point in zip(x, y, strict=True):
            axis.annotate(
                f"{point[1]:.1f}×", point, textcoords="offset points", xytext=(0, 8), ha="center"
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(x)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.margins(x=0.12, y=0.18)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("time, TRL / grpo-hf")
    settings, machine = record["settings"], record["machine"]
    device = machine["accelerator"] or f"{settings['threads']} thread(s) of {machine['cpu']}"
    figure.suptitle(
        f"One update: {settings['model']}, {device}, TRL {machine['versions']['trl']}", fontsize=10
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    pyplot.close(figure)


def main(given: Sequence[str] | None = None) -> None:
    """Draw what the flags name."""
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
