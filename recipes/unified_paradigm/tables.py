"""What is printed of the results."""

from statistics import mean
from typing import Any

from .intervals import interval
from .learning_curve import gain_at_equal_time
from .methods import ONLINE
from .results import Results

# Pairs of methods that differ in one respect: the source of the samples, the baseline, and the
# supervision of steps.
DIFFERENCES = (
    ("online_rft", "rft"),
    ("grpo", "online_rft"),
    ("grpo_process", "grpo"),
    ("grpo_gain", "grpo"),
)


def show_tables(results: Results) -> None:
    """Print the final accuracies, the differences between methods, and the cost of catching up."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(accuracy_table(results))
    for first, second in DIFFERENCES:
        for line in differences(results, first, second):
            console.print(line)
    for name in ("grpo_process", "grpo_gain"):
        for seed in results.get(name, {}):
            if seed in results.get("grpo", {}):
                console.print(catch_up(results, name, seed))


def accuracy_table(results: Results) -> Any:
    """Return a table of each method's final accuracy by seed, with its mean updates and tokens."""
    from rich.table import Table

    seeds: list[int] = sorted(set().union(*results.values()))
    table = Table(title="accuracy")
    table.add_column("method")
    for seed in seeds:
        table.add_column(f"seed {seed}")
    for heading in ("mean ± 95%", "updates", "tokens"):
        table.add_column(heading)
    for name, of_seeds in results.items():
        final = {seed: result["accuracy"] for seed, result in of_seeds.items()}
        cells = []
        for seed in seeds:
            cells.append(f"{final[seed]:.3f}" if seed in final else "")
        cost = mean_cost(of_seeds) if name != "base" else ("", "")
        table.add_row(name, *cells, interval(list(final.values())), *cost)
    return table


def differences(results: Results, first: str, second: str) -> list[str]:
    """Describe how far the first method is ahead of the second, on the seeds that both have.

    Methods that sample as they train are also compared at equal processor time.
    """
    of_first = results.get(first, {})
    of_second = results.get(second, {})
    both = sorted(of_first.keys() & of_second.keys())
    if not both:
        return []
    # Paired: methods of one seed share a base, and bases differ more than methods do.
    pair = f"{first} − {second}, paired by seed"
    gains = []
    timed_gains = []
    for seed in both:
        gains.append(of_first[seed]["accuracy"] - of_second[seed]["accuracy"])
        curves = [of_first[seed]["curve"], of_second[seed]["curve"]]
        # The other methods also take time before the training, and older results have none.
        if {first, second} <= ONLINE.keys() and all("seconds" in curve[-1] for curve in curves):
            timed_gains.append(gain_at_equal_time(*curves))
    lines = [f"{pair}: {interval(gains)}  ({len(both)} seeds)"]
    if timed_gains:
        lines.append(f"{pair}, at equal processor time: {interval(timed_gains)}")
    return lines


def mean_cost(of_seeds: dict[int, dict[str, Any]]) -> tuple[str, str]:
    """Return the mean updates and the mean tokens of a method over its seeds, as text."""
    updates = []
    tokens = []
    for result in of_seeds.values():
        updates.append(result["curve"][-1]["updates"])
        tokens.append(result["curve"][-1]["tokens"])
    return f"{mean(updates):,.0f}", f"{mean(tokens):,.0f}"


def catch_up(results: Results, name: str, seed: int) -> str:
    """Describe when a method first reached the final accuracy of grpo on the same seed."""
    of_grpo = results["grpo"][seed]
    reached = "not reached"
    for point in results[name][seed]["curve"]:
        if point["accuracy"] >= of_grpo["accuracy"]:
            reached = cost_text(point)
            break
    target = f"grpo's final accuracy ({cost_text(of_grpo['curve'][-1])})"
    return f"seed {seed}: {target} with {name}: {reached}"


def cost_text(point: dict[str, Any]) -> str:
    """Return the updates and tokens of a curve's point as text, and the seconds where known."""
    seconds = f", {point['seconds']:.0f} s" if "seconds" in point else ""
    return f"{point['updates']} updates, {point['tokens']:,} tokens{seconds}"
