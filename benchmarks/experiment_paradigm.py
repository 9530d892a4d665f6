"""Columns and rows of what recipes/paradigm.py has written: methods, differences and samples."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from recipes.unified_paradigm.figures import pass_and_maj
from recipes.unified_paradigm.intervals import half_width
from recipes.unified_paradigm.learning_curve import accuracy_at, gain_at_equal_time
from recipes.unified_paradigm.methods import ONLINE
from recipes.unified_paradigm.results import read_results
from recipes.unified_paradigm.tables import DIFFERENCES

from .common import Row

# Columns, rows, and the columns that hold differences.
Columns = tuple[list[str], list[list[Any]], list[str]]


def accuracies(run: Path) -> Columns:
    """Return the accuracy of each method at its end, and what it took."""
    results = read_results(run)
    seeds = sorted(set().union(*results.values()))
    rows = []
    for name, of_seeds in results.items():
        final = [of_seeds[seed]["accuracy"] for seed in of_seeds]
        rows.append([name, final, over_seeds(final) if len(final) > 1 else None, *costs(of_seeds)])
    named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return ["method", named, "mean, 95%", "updates", "tokens", "CPU seconds"], rows, []


def curves(run: Path) -> Columns:
    """Return the accuracy of each method and seed over its training, and what it took."""
    rows = []
    for name, of_seeds in read_results(run).items():
        for seed, result in of_seeds.items():
            if "curve" in result:
                points = [point["accuracy"] for point in result["curve"]]
                rows.append([name, seed, points, *costs({seed: result})])
    columns = ["method", "seed", "accuracy at equal parts of the budget, from 0 to all of it"]
    return [*columns, "updates", "tokens", "CPU seconds"], rows, []


def costs(of_seeds: dict[int, Row]) -> list[Any]:
    """Return mean updates, mean tokens and the CPU seconds of each seed; None where not known."""
    ends = [result["curve"][-1] for result in of_seeds.values() if "curve" in result]
    # The base is not trained.
    if not ends:
        return [None, None, None]
    seconds = [round(end["seconds"]) for end in ends if "seconds" in end]
    updates, tokens = (round(fmean(end[key] for end in ends)) for key in ("updates", "tokens"))
    return [updates, tokens, seconds or None]


def differences(run: Path, paper: Sequence[str] = ()) -> Columns:
    """Return how far a method is ahead of another on the seeds that both have.

    Methods that sample as they train are compared at equal processor time and after as many
    updates, too: those of the one that has fewer, read off the curve of the other.

    Args:
        paper: what the paper has for each difference.
    """
    results = read_results(run)
    rows: list[list[Any]] = []
    for first, second in DIFFERENCES:
        both = sorted(results.get(first, {}).keys() & results.get(second, {}).keys())
        if not both:
            continue
        pairs = [(results[first][seed], results[second][seed]) for seed in both]
        at_end = over_seeds([one["accuracy"] - other["accuracy"] for one, other in pairs])
        row: list[Any] = [f"{first} − {second}", at_end, None, None]
        # The other methods also take time before the training.
        if {first, second} <= ONLINE.keys():
            both_curves = [(one["curve"], other["curve"]) for one, other in pairs]
            # Results of early commits have no seconds.
            if all("seconds" in end for pair in both_curves for end in (pair[0][-1], pair[1][-1])):
                row[2] = over_seeds([gain_at_equal_time(*pair) for pair in both_curves])
            row[3] = over_seeds([gain_at_equal_updates(*pair) for pair in both_curves])
        rows.append([*row, paper[len(rows)] if paper else None])
    signed = ["at the end", "at equal processor time", "after as many updates"]
    return ["paired by seed", *signed, "the paper's figure 5"], rows, signed


def gain_at_equal_updates(first: Sequence[Row], second: Sequence[Row]) -> float:
    """Return how far the first curve is ahead when the one with fewer updates ends."""
    updates = min(first[-1]["updates"], second[-1]["updates"])
    return accuracy_at(first, updates, "updates") - accuracy_at(second, updates, "updates")


def sampled(run: Path, passes: Sequence[int], votes: Sequence[int]) -> Columns:
    """Return pass@k and maj@k of the base and of the policy after GRPO: means over seeds.

    Args:
        passes, votes: the k of pass@k and of maj@k.
    """
    results = read_results(run)
    names = [name for name in ("base", "grpo") if name in results]
    rows: list[list[Any]] = []
    for kind, (name, ks) in enumerate((("pass", passes), ("maj", votes))):
        for place, k in enumerate(ks):
            row: list[Any] = [f"{name}@{k}"]
            for method in names:
                of_seeds = [
                    pass_and_maj(result["sampled"], ks)[kind][place]
                    for result in results[method].values()
                ]
                row.append(over_seeds(of_seeds))
            rows.append(row)
    return ["mean over seeds", *names], rows, []


def over_seeds(values: Sequence[float]) -> Row:
    """Return a mean over seeds, with half of its 95% interval where there are several."""
    half = {"half": half_width(values)} if len(values) > 1 else {}
    return {"value": fmean(values), **half}
