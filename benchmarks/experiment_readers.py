"""Tables of an experiment, from what its commands have written into their folders.

A reader takes the folder in which the commands ran, and returns columns and rows. A cell is

    None                                       nothing is known
    a text, or a whole number
    a number with a point                      a share, a mean or a difference
    [a, b, ...]                                one value for each seed, or for each point
    {"value", "low", "high"}                   an estimate with its 95% interval;
                                               with "right" and "total" where it was counted
    {"value", "half"}                          a mean over seeds; its 95% interval is value ± half

Columns in `signed` hold differences. `experiment_paradigm.py` has the readers of
recipes/paradigm.py.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from grpo_hf import load_reward
from grpo_hf.evaluation.intervals import difference_estimates, share_estimates
from grpo_hf.run_files import EVALUATION_FILE, METRICS_FILE, read_lines

from . import experiment_paradigm
from .common import Row

# What recipes write beside their tables on the screen.
RESULTS_FILE = "results.json"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], signed: Sequence[str] = ()) -> Row:
    """Return a table without the columns of which nothing is known."""
    known = [place for place in range(len(columns)) if any(row[place] is not None for row in rows)]
    kept = [columns[place] for place in known]
    return {
        "columns": kept,
        "signed": [column for column in signed if column in kept],
        "rows": [[row[place] for place in known] for row in rows],
    }


def counted(share: Mapping[str, Any]) -> Row:
    """Return a share that was counted, such as a recipe writes it, as a cell."""
    value = share["right"] / share["total"]
    return {"value": value, **{key: share[key] for key in ("low", "high", "right", "total")}}


def read_json(file: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(file.read_text(encoding="utf-8"))


def comparison(
    folder: Path, runs: Mapping[str, str], full_marks: Mapping[str, str] | None = None
) -> Row:
    """Read base and adapter of each run on its held-out problems, answered greedily.

    Args:
        runs: the folder of each run, by its name in the table.
        full_marks: more rewards that judge the answers, each with its name in the table. If there
            are some, the mean length of the answers is a row, too.
    """
    rows = []
    for name, run in runs.items():
        lines = list(read_lines(folder / run / EVALUATION_FILE))
        steps = steps_of(folder / run)
        right = [[float(line[side]["right"]) for side in ("base", "adapter")] for line in lines]
        rows.append([name, steps, *compared(right)])
        texts = [[line[side]["answer"] for line in lines] for side in ("base", "adapter")]
        for reward, label in (full_marks or {}).items():
            judge = load_reward(reward)
            marks = [[float(mark == 1) for mark in judge(completions=side)] for side in texts]
            rows.append([label, steps, *compared(list(zip(*marks, strict=True)))])
        if full_marks:
            lengths = [round(fmean(map(len, side))) for side in texts]
            rows.append(["mean length, characters", steps, *lengths, None])
    columns = ["", "steps", "base", "adapter", "difference (paired)"]
    return table(columns, rows, signed=["difference (paired)"])


def compared(marks: Sequence[Sequence[float]]) -> list[Row]:
    """Return the cells of base, adapter and their difference, for pairs of marks 0 or 1."""
    values = np.array(marks)
    cells = []
    for side, share in enumerate(share_estimates(values)):
        right = int(values[:, side].sum())
        cells.append({**share.as_dict(), "right": right, "total": len(values)})
    (difference,) = difference_estimates(values[:, 1:] - values[:, :1])
    return [*cells, difference.as_dict()]


def steps_of(run: Path) -> int | None:
    """Return the last step that a run has logged."""
    steps = [line["step"] for line in read_lines(run / METRICS_FILE) if "step" in line]
    return max(steps, default=None)


def blocks(folder: Path, run: str, metrics: Mapping[str, str], size: int = 20) -> Row:
    """Read means of logged numbers over blocks of steps.

    Args:
        metrics: names of columns in metrics.jsonl, by their names in the table.
        size: steps of a block.
    """
    logged = [line for line in read_lines(folder / run / METRICS_FILE) if "reward" in line]
    last = max(line["step"] for line in logged)
    rows = []
    for before in range(0, last, size):
        # A line may be the mean of several steps, and has the number of the last one.
        block = [line for line in logged if before < line["step"] <= before + size]
        means = [fmean(line[metric] for line in block) for metric in metrics.values()]
        rows.append([f"{before + 1}–{min(before + size, last)}", *means])
    return table(["steps", *metrics], rows)


def stages(folder: Path, run: str, names: Mapping[str, str]) -> Row:
    """Read the accuracy after each stage of recipes/r1.py.

    Args:
        names: what the table calls each stage.
    """
    found = read_json(folder / run / RESULTS_FILE)
    rewards = list(next(iter(found["stages"].values())))
    rows = []
    for stage, shares in found["stages"].items():
        samples = found["samples"] if stage == "sft" else None
        rows.append([names[stage], *(counted(shares[name]) for name in rewards), samples])
    return table(["stage", *rewards, "samples learned"], rows)


def iterations(folder: Path, run: str) -> Row:
    """Read the accuracy of the policy and of r_φ after each iteration of recipes/iterative.py."""
    rows = []
    for number, found in enumerate(read_json(folder / run / RESULTS_FILE)):
        name = f"after iteration {number}" if number else "the policy as it came"
        ranked = found["ranked"]
        # Without an interval: pairs share completions, and are no independent draws.
        share = ranked["right"] / ranked["total"] if ranked else None
        rows.append([name, counted(found["policy"]), share, found["pairs"], found["replayed"]])
    columns = ["", "right", "r_φ tells fresh pairs apart", "pairs", "replayed"]
    return table(columns, rows)


def step_values(folder: Path, run: str) -> Row:
    """Read how well each score of recipes/math_shepherd.py predicts the values of steps."""
    rows = []
    for score, by_steps in read_json(folder / run / RESULTS_FILE)["results"].items():
        for which, found in by_steps.items():
            rows.append([score, which, found["steps"], found["correlation"], found["auc"]])
    return table(["score", "of", "steps", "correlation", "AUC"], rows)


def first_mistakes(folder: Path, run: str) -> Row:
    """Read how often recipes/process_reward_model.py and its rivals find the first mistake."""
    rows = []
    for task, found in read_json(folder / run / RESULTS_FILE)["tasks"].items():
        rivals = [found[rival] for rival in ("chance", "last_step", "frequent_place")]
        rows.append([task, found["total"], counted(found), *rivals, found["same_place"]])
    columns = ["task", "traces", "found", "chance", "always the last step", "most frequent place"]
    return table([*columns, "same place"], rows)


def samples(
    folder: Path, runs: Mapping[str, str], passes: Sequence[int], votes: Sequence[int]
) -> Row:
    """Read pass@k and maj@k of base and adapter from the evaluation of each run.

    Args:
        runs: the folder of each run, by its seed.
        passes, votes: the k of pass@k and of maj@k.
    """
    found = {}
    for seed, run in runs.items():
        found[seed] = read_json(folder / run / "evaluations" / "held_out.json")
    rows = []
    for name, key, ks in (("pass", "pass_at", passes), ("maj", "maj_at", votes)):
        for k in ks:
            for seed, summary in found.items():
                sides = [summary[side][key][str(k)] for side in ("base", "adapter", "difference")]
                rows.append([f"{name}@{k}", int(seed), *sides])
    columns = ["", "seed", "base", "adapter", "difference (paired)"]
    return table(columns, rows, signed=["difference (paired)"])


def evaluations(folder: Path, runs: Mapping[str, str]) -> Row:
    """Read the greedy answers of an evaluation of each run, and how many were cut off.

    Args:
        runs: the folder of each run, by its name in the table.
    """
    rows = []
    for name, run in runs.items():
        summary = read_json(folder / run / "evaluations" / "held_out.json")
        cells = [summary[side]["accuracy"] for side in ("base", "adapter", "difference")]
        rows.append([name, *cells, *(summary["cut"][side] for side in ("base", "adapter"))])
    columns = ["", "base", "adapter", "difference (paired)", "cut off: base", "cut off: adapter"]
    return table(columns, rows, signed=["difference (paired)"])


def of_paradigm(read: Callable[..., tuple[Any, ...]]) -> Callable[..., Row]:
    """Return a reader that makes a table of the columns and rows of another."""

    def reader(folder: Path, run: str, **options: Any) -> Row:
        return table(*read(folder / run, **options))

    return reader


# The readers by the names that benchmarks/data/experiments.yaml has for them.
READERS: dict[str, Callable[..., Row]] = {
    "blocks": blocks,
    "comparison": comparison,
    "evaluations": evaluations,
    "first_mistakes": first_mistakes,
    "iterations": iterations,
    "paradigm_accuracies": of_paradigm(experiment_paradigm.accuracies),
    "paradigm_curves": of_paradigm(experiment_paradigm.curves),
    "paradigm_differences": of_paradigm(experiment_paradigm.differences),
    "paradigm_samples": of_paradigm(experiment_paradigm.sampled),
    "samples": samples,
    "stages": stages,
    "step_values": step_values,
}
