"""The counterparts of the paper's figures 5 and 7."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from .intervals import half_width
from .learning_curve import gain_on_grid
from .methods import RATES
from .results import Results

# Figure 5 interpolates the curves at this many equal intervals of the budget.
GRID_INTERVALS = 16

# Figure 7 shows k = 1, 2, 4, ..., as far as there are samples, up to this k.
LARGEST_K = 32


def draw_figures(results: Results, out: Path) -> None:
    """Draw the counterparts of the paper's figures 5 and 7 into a folder."""
    import matplotlib

    # This backend writes files and needs no display.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, panel in (("accuracy", draw_curves), ("maj_and_pass_at_k", draw_samples)):
        figure, axes = pyplot.subplots(figsize=(8, 5))
        panel(axes, results)
        axes.legend()
        figure.tight_layout()
        figure.savefig(out / f"{name}.png", dpi=120)
        pyplot.close(figure)
        print(f"figure: {out / name}.png", flush=True)


def draw_curves(axes: Any, results: Results) -> None:
    """Draw what each method adds to the accuracy of its base during training (figure 5).

    The figure shows gains, not accuracies, because bases differ more than methods do.
    """
    grid = [index / GRID_INTERVALS for index in range(GRID_INTERVALS + 1)]
    for name in RATES:
        if name not in results:
            continue
        gains = []
        for result in results[name].values():
            gains.append(gain_on_grid(result["curve"], grid))
        seeds = "1 seed" if len(gains) == 1 else f"{len(gains)} seeds"
        band(axes, grid, gains, label=f"{name}, {seeds}")
    axes.set(
        xlabel="share of the budget (sft, rft, dpo: of the updates)",
        ylabel="accuracy above the base's, greedy",
    )


def draw_samples(axes: Any, results: Results) -> None:
    """Draw maj@k and pass@k of the base and of the policy after GRPO (figure 7)."""
    for name, color in (("base", "C0"), ("grpo", "C1")):
        if name not in results:
            continue
        of_seeds = list(results[name].values())
        ks = sample_counts(of_seeds[0]["sampled"])
        passed = []
        voted = []
        for result in of_seeds:
            pass_values, maj_values = pass_and_maj(result["sampled"], ks)
            passed.append(pass_values)
            voted.append(maj_values)
        band(axes, ks, passed, label=f"pass@k, {name}", color=color, linestyle="--")
        band(axes, ks, voted, label=f"maj@k, {name}", color=color)
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="k samples at the temperature of training", ylabel="accuracy, held-out problems"
    )


def sample_counts(groups: Sequence[Sequence[Any]]) -> list[int]:
    """Return 1, 2, 4, ... up to the smallest group's number of samples, at most `LARGEST_K`."""
    limit = min(min(map(len, groups)), LARGEST_K)
    counts = []
    k = 1
    while k <= limit:
        counts.append(k)
        k *= 2
    return counts


def pass_and_maj(
    groups: Sequence[Sequence[tuple[str, bool]]], ks: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Return pass@k and maj@k of one seed's samples for every k."""
    from grpo_hf.evaluation.statistics import maj_at_k, pass_at_k

    answers = []
    correct = []
    for group in groups:
        texts, marks = zip(*group, strict=True)
        answers.append(texts)
        correct.append(marks)
    pass_values = []
    maj_values = []
    for k in ks:
        pass_values.append(pass_at_k(correct, k))
        maj_values.append(maj_at_k(answers, correct, k))
    return pass_values, maj_values


def band(axes: Any, xs: Sequence[float], of_seeds: Sequence[Sequence[float]], **style: Any) -> None:
    """Draw a line through the means over seeds, inside a band for their 95% interval."""
    means = []
    low = []
    high = []
    for values in zip(*of_seeds, strict=True):
        center = mean(values)
        margin = half_width(values)
        means.append(center)
        low.append(center - margin)
        high.append(center + margin)
    (line,) = axes.plot(xs, means, **style)
    axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
