"""Peak memory of the update, P=512, C≤128, G=8: grpo-hf against TRL, and the policy's run against algorithm 1.

    python -m benchmarks.memory [--repeats 3] [--threads 1] [--model PATH]

Each runs in processes of its own. On a CPU the peak is `ru_maxrss` of a fresh process that loads the model, makes a
trainer and computes one update: Python, its libraries and the weights included. The bars are on that. Beside it stands
what the update alone takes, the peak minus the resident memory just before. On CUDA both are
`torch.cuda.max_memory_allocated`. Algorithm 1 has a reference that is a copy of the policy's adapter and a reward model
on the same base; beside the update it scores the completions and fits the reward model to them.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import psutil
import torch

from grpo_hf.models import adapters as roles
from grpo_hf.reward_models.model import RewardModel
from grpo_hf.runs.program import quiet

from .common import OURS, ROOT, TRL, Row, options, prepare, ratio_row, report

BAR = 2.0
ALGORITHM = "algorithm 1"
BAR_OF_ALGORITHM = 1 / 1.15  # the policy's run takes at least this share of the whole


def one_side(side: str, model: str) -> Row:
    """Peak of this process after one update, and resident memory before it, in bytes."""
    from .batches import to_batch
    from .sides import make_trainer
    from .update import CASES, update

    trainer = make_trainer(OURS if side == ALGORITHM else side, model)
    reward_model = with_roles(trainer) if side == ALGORITHM else None
    case = next(case for case in CASES if case.name == "p512")
    groups = case.make(trainer.model.config.get_text_config().vocab_size)
    batch = to_batch(groups, trainer._tokenizer.pad_token_id, trainer.accelerator.device)
    for weight in trainer.model.parameters():
        weight.sum()  # a checkpoint's file is mapped, and counts only once it has been read
    before, loaded = _resident(), _peak()
    update(trainer, batch)
    if reward_model is not None:
        rows = [
            (prompt, completion) for prompt, completions in groups for completion in completions
        ]
        prompts, completions = map(list, zip(*rows, strict=True))
        reward_model.token_scores([prompt + completion for prompt, completion in rows])
        ends = [[len(completion) - 1] for completion in completions]
        reward_model.fit_steps(prompts, completions, ends, [[row % 2] for row in range(len(rows))])
    return {"peak": _peak(), "before": before, "peak_before": loaded, "update": _peak() - before}


def with_roles(trainer: Any) -> RewardModel:
    """A frozen copy of the policy as reference, and a reward model, both on the trainer's base."""
    roles.reset_reference(trainer.model)
    return RewardModel.on(trainer.model, trainer.processing_class)


def _resident() -> int:
    return (
        torch.cuda.memory_allocated()
        if torch.cuda.is_available()
        else psutil.Process().memory_info().rss
    )


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_side(side: str, arguments: argparse.Namespace) -> Row:
    """`one_side` in a new process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        "--side",
        side,
        "--model",
        arguments.model,
    ]
    command += ["--threads", str(arguments.threads)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(
            f"error: the process of {side} ended with code {done.returncode}; its output is above."
        )
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(runs: dict[str, list[Row]]) -> list[Row]:
    """Three rows: the peak of the process, with the bar; what the update takes; and the policy's run in algorithm 1."""
    rows = []
    for name, what, title, bar, sides in (
        ("peak", "peak", "process at its peak, P=512, C≤128, G=8", BAR, (TRL, OURS)),
        ("above", "update", "of that, above what was there before the update", None, (TRL, OURS)),
        (
            "algorithm",
            "peak",
            "the policy's run ÷ all of algorithm 1",
            BAR_OF_ALGORITHM,
            (OURS, ALGORITHM),
        ),
    ):
        values = {side: [run[what] for run in runs[side]] for side in sides}
        above, below = values.values()
        each = [first / second for first, second in zip(above, below, strict=True)]
        row = ratio_row(name, title, median(above) / median(below), bar, each)
        row["sides"] = {
            side: {"peak": {"median": median(v), "spread": max(v) - min(v), "all": v}}
            for side, v in values.items()
        }
        rows.append(row)
    return rows


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark that the flags describe."""
    parser = options(__doc__, repeats=3)
    parser.add_argument("--side", choices=[TRL, OURS, ALGORITHM], help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    quiet()
    prepare(arguments)
    if arguments.side:
        print(json.dumps(one_side(arguments.side, arguments.model)))
        return
    runs: dict[str, list[Row]] = {TRL: [], OURS: [], ALGORITHM: []}
    for repeat in range(arguments.repeats):
        for side in runs if repeat % 2 == 0 else reversed(runs):
            runs[side].append(run_side(side, arguments))
    del arguments.side
    report("memory", summary(runs), arguments, runs=runs)


if __name__ == "__main__":
    main()
