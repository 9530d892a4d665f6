"""The stages of recipes/r1.py side by side, on the same held-out prompts."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# The samples that rejection sampling has kept, in the folder of its stage.
SAMPLES_FILE = "samples.jsonl"

# The accuracy of every stage, in the output folder.
RESULTS = "results.json"

# The evaluation of a GRPO run has the greedy completions of its base and of its adapter. So the
# answers of the cold start are those of the base in the evaluation of stage rl.
# Stage in the table -> (folder of the evaluation, column in it).
EVALUATIONS = {
    "cold_start": ("rl", "base"),
    "rl": ("rl", "adapter"),
    "sft": ("sft", "adapter"),
    "rl_again": ("rl_again", "adapter"),
}


def show(out: Path, rewards: Sequence[Any], rows: list[dict[str, Any]], training: Any) -> None:
    """Print the accuracy of each stage on the held-out prompts.

    The first reward defines the accuracy. For the other rewards the table has the share of full
    marks.
    """
    from rich.console import Console
    from rich.table import Table

    from grpo_hf.evaluation.answers import judging
    from grpo_hf.run_files import EVALUATION_FILE, read_lines

    table = Table(title=f"{len(rows)} held-out prompts, greedy")
    for heading in ("stage", "right", "accuracy", "95% interval"):
        table.add_column(heading)
    for reward in rewards[1:]:
        table.add_column(reward.name)
    results = {}
    with judging(rewards, training) as judges:
        for stage, (folder, column) in EVALUATIONS.items():
            texts = []
            for evaluation in read_lines(out / folder / EVALUATION_FILE):
                texts.append(evaluation[column]["answer"])
            results[stage] = judged(judges, rows, texts)
            table.add_row(stage, *stage_cells(list(results[stage].values())))
    write_results(out, results)
    Console(highlight=False).print(table)


def judged(judges: Sequence[Any], rows: list[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
    """Return the share of full marks of each reward in one stage's greedy completions."""
    from grpo_hf.evaluation.answers import right_answers
    from grpo_hf.evaluation.statistics import accuracy

    shares = {}
    for judge in judges:
        right = list(map(bool, right_answers(judge, rows, texts)))
        shares[judge.reward.name] = accuracy(right)
    return shares


def write_results(out: Path, results: dict[str, dict[str, Any]]) -> None:
    """Write the shares of every stage, and how many samples were kept, to a file."""
    samples = (out / "samples" / SAMPLES_FILE).read_text(encoding="utf-8").splitlines()
    stages = {}
    for stage, shares in results.items():
        stages[stage] = {name: asdict(share) for name, share in shares.items()}
    report = json.dumps({"samples": len(samples), "stages": stages}, indent=1)
    (out / RESULTS).write_text(report + "\n", encoding="utf-8")


def stage_cells(shares: Sequence[Any]) -> list[str]:
    """Return the cells of the table for one stage."""
    first = shares[0]
    cells = [
        f"{first.right}/{first.total}",
        f"{first.value:.3f}",
        f"{first.low:.3f} to {first.high:.3f}",
    ]
    for other in shares[1:]:
        cells.append(f"{other.value:.3f}")
    return cells
