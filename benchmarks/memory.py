"""Compare the peak memory of an update, P=512, C≤128, G=8.

    python -m benchmarks.memory [--repeats 3] [--threads 1] [--model PATH]

There are two comparisons: grpo-hf with TRL, and grpo-hf with all of algorithm 1. Every run is a new
process that loads the model, makes a trainer and computes one update. The bars are on the peak of
the whole process. On a CPU this is `ru_maxrss`, which includes Python, its libraries and the
weights. Another row has the memory of the update alone: the peak minus the memory just before the
update. On CUDA the peak is `torch.cuda.max_memory_allocated`.

Algorithm 1 (iterative GRPO) also has a reference, which is a copy of the policy's adapter, and a
reward model on the same base. After the update it scores the completions and trains the reward
model on them.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil
import torch

from grpo_hf.models.reference import reset_reference
from grpo_hf.reward_models.model import RewardModel
from grpo_hf.runs.program import quiet

from .batches import Group
from .common import OURS, ROOT, TRL, Row, options, prepare, report
from .timing import ratio_row

ALGORITHM = "algorithm 1"

# TRL's peak has to be at least this many times ours.
BAR = 2.0

# Algorithm 1 may take at most 15% more memory than an update of the policy alone.
BAR_OF_ALGORITHM = 1 / 1.15

# The case of update.py whose memory is measured.
CASE_NAME = "p512"

# `ru_maxrss` is in bytes on macOS and in kibibytes on Linux.
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Summary:
    """Summary describes a row: the ratio of two sides' memory.

    Attributes:
        measure: the entry of `one_side` that is compared.
        sides: the sides above and below the line of the ratio.
    """

    name: str
    measure: str
    title: str
    bar: float | None
    sides: tuple[str, str]


SUMMARIES = (
    Summary("peak", "peak", "process at its peak, P=512, C≤128, G=8", BAR, (TRL, OURS)),
    Summary(
        "above", "update", "of that, above what was there before the update", None, (TRL, OURS)
    ),
    Summary(
        "algorithm",
        "peak",
        "the policy's run ÷ all of algorithm 1",
        BAR_OF_ALGORITHM,
        (OURS, ALGORITHM),
    ),
)


def one_side(side: str, model: str) -> Row:
    """Compute one update; return this process's peak memory, and its memory before, in bytes."""
    # Imported here, because only the processes of the sides need them.
    from .batches import to_batch
    from .sides import make_trainer
    from .update import CASES, update

    trainer = make_trainer(OURS if side == ALGORITHM else side, model)
    reward_model = with_roles(trainer) if side == ALGORITHM else None
    cases = {case.name: case for case in CASES}
    groups = cases[CASE_NAME].make(trainer.model.config.get_text_config().vocab_size)
    batch = to_batch(groups, trainer._tokenizer.pad_token_id, trainer.accelerator.device)
    for weight in trainer.model.parameters():
        # The file of a checkpoint is mapped into memory, and counts only after it has been read.
        weight.sum()
    before = _resident()
    peak_before = _peak()
    update(trainer, batch)
    if reward_model is not None:
        use_reward_model(reward_model, groups)
    peak = _peak()
    return {"peak": peak, "before": before, "peak_before": peak_before, "update": peak - before}


def use_reward_model(reward_model: RewardModel, groups: Sequence[Group]) -> None:
    """Score all completions, and train the reward model on them."""
    texts = []
    prompts = []
    completions = []
    ends = []
    values = []
    for prompt, group in groups:
        for completion in group:
            texts.append(prompt + completion)
            prompts.append(prompt)
            completions.append(completion)
            # One step, which ends with the completion.
            ends.append([len(completion) - 1])
            # The values do not matter to the memory; 0 and 1 alternate.
            values.append([len(values) % 2])
    reward_model.token_scores(texts)
    reward_model.fit_steps(prompts, completions, ends, values)


def with_roles(trainer: Any) -> RewardModel:
    """Put a frozen copy of the policy and a reward model on the trainer's base.

    Returns:
        The reward model.
    """
    reset_reference(trainer.model)
    return RewardModel.on(trainer.model, trainer.processing_class)


def _resident() -> int:
    """Return the memory that is in use now, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return psutil.Process().memory_info().rss


def _peak() -> int:
    """Return the most memory that was in use so far, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def run_side(side: str, arguments: argparse.Namespace) -> Row:
    """Run `one_side` in a new process; a process's peak never falls again.

    Raises:
        SystemExit: the process failed.
    """
    command = [sys.executable, "-m", "benchmarks.memory", "--side", side]
    command += ["--model", arguments.model, "--threads", str(arguments.threads)]
    # stderr is not captured, so that errors are shown at once.
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(
            f"error: the process of {side} ended with code {done.returncode}; its output is above."
        )
    # Libraries may print before; the last line is ours.
    measures: Row = json.loads(done.stdout.splitlines()[-1])
    return measures


def summary(runs: dict[str, list[Row]]) -> list[Row]:
    """Return the three rows that `SUMMARIES` describes.

    Args:
        runs: what `one_side` returned, for all runs of each side.
    """
    rows = []
    for spec in SUMMARIES:
        rows.append(summary_row(spec, runs))
    return rows


def summary_row(spec: Summary, runs: dict[str, list[Row]]) -> Row:
    """Return the row of one ratio."""
    above_side, below_side = spec.sides
    above = _values(runs[above_side], spec.measure)
    below = _values(runs[below_side], spec.measure)
    each = []
    for first, second in zip(above, below, strict=True):
        each.append(first / second)
    row = ratio_row(spec.name, spec.title, median(above) / median(below), spec.bar, each)
    # Every measure is called "peak" here, because the table shows an entry of that name.
    row["sides"] = {above_side: {"peak": _spread(above)}, below_side: {"peak": _spread(below)}}
    return row


def _values(runs: list[Row], measure: str) -> list[int]:
    return [run[measure] for run in runs]


def _spread(values: list[int]) -> Row:
    return {"median": median(values), "spread": max(values) - min(values), "all": values}


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark that the flags describe."""
    parser = options(__doc__, repeats=3)
    parser.add_argument("--side", choices=[TRL, OURS, ALGORITHM], help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    quiet()
    prepare(arguments)
    # This is a process that `run_side` started.
    if arguments.side:
        print(json.dumps(one_side(arguments.side, arguments.model)))
        return
    runs: dict[str, list[Row]] = {TRL: [], OURS: [], ALGORITHM: []}
    for repeat in range(arguments.repeats):
        # Every second repeat goes backwards, as in `alternate`.
        for side in runs if repeat % 2 == 0 else reversed(runs):
            runs[side].append(run_side(side, arguments))
    # Not a setting that the file should have.
    del arguments.side
    report("memory", summary(runs), arguments, runs=runs)


if __name__ == "__main__":
    main()
