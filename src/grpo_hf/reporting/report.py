"""The end of a run: base against adapter in one table, the answers behind it on disk, and the curve of its rewards."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..errors import DataError
from ..evaluation.comparison import EVALUATION_FILE
from ..evaluation.statistics import Comparison
from .metrics_file import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from ..scoring.registry import Reward
    from ..trainer import GRPOTrainer

logger = logging.getLogger(__name__)


def show(
    comparison: Comparison | None,
    trainer: "GRPOTrainer",
    reward: "Reward",
    console: Console | None = None,
) -> None:
    """Print the comparison and where everything lies."""
    console = console or Console(highlight=False)
    folder = trainer.args.output_dir
    if comparison is not None:
        title = f"accuracy on {comparison.base.total} held-out prompts, greedy; right: full mark of {reward.name}"
        table = Table(title=title)
        for column in ("model", "right", "accuracy", "95% interval"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for name, share in (
            ("base (adapter disabled)", comparison.base),
            ("adapter", comparison.adapter),
        ):
            interval = f"{share.low:.3f} to {share.high:.3f}"
            table.add_row(name, f"{share.right}/{share.total}", f"{share.value:.3f}", interval)
        interval = f"{comparison.low:+.3f} to {comparison.high:+.3f}"
        table.add_row(
            "difference (paired)", "", f"{comparison.difference:+.3f}", interval, style="bold"
        )
        console.print(table)
        if {comparison.base.right, comparison.adapter.right} in ({0}, {comparison.base.total}):
            console.print(
                f"note: {reward.name} gives its full mark, 1.0, to all answers or to none, so this says nothing. Name "
                "another reward: --eval_reward NAME."
            )
    console.print(f"model:   {folder}", soft_wrap=True, markup=False)
    console.print(f"log:     {folder}/{METRICS_FILE}", soft_wrap=True, markup=False)
    if comparison is not None:
        console.print(f"answers: {folder}/{EVALUATION_FILE}", soft_wrap=True, markup=False)


def plot_rewards(run: Path, picture: Path) -> None:
    """Draw every reward's mean over the steps of a run, with KL below, as a PNG or SVG.

    Raises:
        ImportError: matplotlib is missing (`pip install 'grpo-hf[plot]'`).
        DataError: the run has not logged a step yet.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_metrics(run)
    if not rows:
        raise DataError(
            f"{run}: {METRICS_FILE} has no training step yet. Draw it once the run has logged one."
        )
    steps = [row["step"] for row in rows]
    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 5), height_ratios=(3, 1)
    )
    for key in [key for key in rows[0] if key.startswith("rewards/") and key.endswith("/mean")]:
        above.plot(steps, [row.get(key) for row in rows], marker=".", label=key.split("/")[1])
    above.set_ylabel("mean reward")
    above.legend()
    below.plot(steps, [row.get("kl") for row in rows], color="grey")
    below.set_ylabel("KL")
    below.set_xlabel("step")
    below.xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
