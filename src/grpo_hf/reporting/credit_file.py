"""The credit of tokens on disk: one group per logging step, in `credit.jsonl`.

Shapes: B rows of a rollout on this process, C the width of its completions, W processes, F rewards.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import run_files
from ..algorithm.advantages import weighted_sum
from ..config import option
from ..run_context import RunContext
from ..trl_seam import Batch
from .token_credit import CREDIT_FILE, credited_group


def record_credit(
    batch: Batch,
    rewards: Tensor,
    weights: Tensor,
    tokenizer: Any,
    run: RunContext,
    args: Any,
    state: Any,
) -> None:
    """Append a group of a rollout to `credit.jsonl`, if a step that trains on it is logged.

    Args:
        batch: the rollout; its advantages are (B,), or (B, C) where each token has its own.
        rewards (W·B, F): of all processes, NaN for None.
        weights (F,): of the rewards.
        args: of the run: `log_credit`, `output_dir` and when it logs.
        state: of the trainer.
    """
    step = logged_step(args, state)
    # One process writes, and the first group of its own rows is enough to look at.
    if step is None or not run.accelerator.is_main_process or not option(args, "log_credit"):
        return
    totals = weighted_sum(rewards, weights).tolist()
    # NaN is no JSON: a completion that nobody could judge has no reward.
    scores = []
    for total in totals:
        scores.append(None if math.isnan(total) else total)
    group = credited_group(dict(batch), scores, step=step, size=run.group_size, tokenizer=tokenizer)
    line = json.dumps(asdict(group), ensure_ascii=False, separators=(",", ":"))
    # Appended: a resumed run goes on in the file of the run before it.
    run_files.append_lines(Path(args.output_dir) / CREDIT_FILE, [line + "\n"])


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
