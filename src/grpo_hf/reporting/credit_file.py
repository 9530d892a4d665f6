"""The credit of tokens on disk: one group per logging step, in `credit.jsonl`.

Shapes: B rows of a rollout on this process, C the width of its completions, W processes, F rewards.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import run_files
from ..algorithm.advantages import weighted_sum
from ..algorithm.token_advantages import Steps
from ..config import option
from ..run_context import RunContext
from ..trl_seam import Batch
from .metrics_file import finite
from .token_credit import CREDIT_FILE, Group, Score, credited_group

# They hear of each group that is kept.
LISTENERS: list[Callable[[Group], None]] = []


@dataclass(frozen=True)
class Scored:
    """The rewards of a rollout.

    Args:
        rewards (W·B, F): of all processes, NaN for None.
        weights (F,): of the rewards.
        names (F,): of the rewards.
        steps: by the column of each step reward, the steps of all W·B completions: the token that
            ends each, and its reward.
    """

    rewards: Tensor
    weights: Tensor
    names: Sequence[str]
    steps: Mapping[int, Sequence[Steps]] = field(default_factory=dict)


def record_credit(
    batch: Batch, scored: Scored, tokenizer: Any, run: RunContext, args: Any, state: Any
) -> None:
    """Append a group of a rollout to `credit.jsonl`, if a step that trains on it is logged.

    Args:
        batch: the rollout; its advantages are (B,), or (B, C) where each token has its own.
        scored: its rewards.
        args: of the run: `log_credit`, `output_dir` and when it logs.
        state: of the trainer.
    """
    step = logged_step(args, state)
    # One process writes, and the first group of its own rows is enough to look at.
    if step is None or not run.accelerator.is_main_process or not option(args, "log_credit"):
        return
    scores = _scores_of_rows(scored)
    group = credited_group(dict(batch), scores, step=step, size=run.group_size, tokenizer=tokenizer)
    for listener in LISTENERS:
        listener(group)
    line = json.dumps(asdict(group), ensure_ascii=False, separators=(",", ":"))
    # Appended: a resumed run goes on in the file of the run before it.
    run_files.append_lines(Path(args.output_dir) / CREDIT_FILE, [line + "\n"])


def _scores_of_rows(scored: Scored) -> list[Score]:
    """Return what each row earned; NaN is no JSON, and becomes None."""
    totals = weighted_sum(scored.rewards, scored.weights).tolist()
    scores = []
    for row, (total, values) in enumerate(zip(totals, scored.rewards.tolist(), strict=True)):
        by_name = {}
        # A subclass may add rewards that have no name.
        for name, value in zip(scored.names, values, strict=False):
            by_name[name] = finite(value)
        scores.append(
            Score(None if math.isnan(total) else total, by_name, _steps_of_row(scored, row))
        )
    return scores


def _steps_of_row(scored: Scored, row: int) -> dict[str, list[list[float]]]:
    steps = {}
    for column, of_rows in scored.steps.items():
        found: list[list[float]] = []
        for end, reward in zip(*of_rows[row], strict=True):
            found.append([end, float(f"{reward:.4g}")])
        steps[scored.names[column]] = found
    return steps


def logged_step(args: Any, state: Any) -> int | None:
    """Return the first logging step among the steps that train on the rollout that is made now.

    transformers 5.23: `DefaultFlowCallback` decides when a run logs, after each optimizer step.

    Returns:
        An optimizer step, or `None` where none of them is logged.
    """
    if args.logging_strategy != "steps":
        return None
    micro_steps = args.steps_per_generation * args.num_iterations
    first = state.global_step + 1
    # Rounded up: a rollout may end in the middle of an optimizer step.
    span = -(-micro_steps // args.gradient_accumulation_steps)
    for step in range(first, min(first + span, state.max_steps + 1)):
        if step % state.logging_steps == 0 or (step == 1 and args.logging_first_step):
            return step
    return None
