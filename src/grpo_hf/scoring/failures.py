"""Rewards under watch: what they weigh at a step, and what their outcomes mean for the run: numbers to log, rows to
leave out, or its end.

B completions on each of W processes, F rewards.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..errors import RewardFailuresError
from .outcomes import REASONS, Outcome
from .reward import Schedule
from .scorer import ScoredReward, weights_at

logger = logging.getLogger(__name__)  # of every process: each sees failures of its own

FAILURES_FILE = "failures.jsonl"
_WRITTEN = 16  # failures of a reward in a step that are written down


def set_weights(trainer: Any) -> None:
    """Give rewards the weights that they have at this step. TRL 1.16 reads `reward_weights`, (F,), after scoring."""
    weights = weights_at(
        trainer.reward_funcs, trainer.args.reward_weights, trainer.state.global_step
    )
    if weights is None:
        return
    trainer.reward_weights = torch.tensor(weights, dtype=torch.float32)
    for entry, weight in zip(trainer.reward_funcs, weights, strict=True):
        if isinstance(entry, ScoredReward) and isinstance(entry.reward.settings.weight, Schedule):
            trainer._metrics["train"][f"rewards/{entry.__name__}/weight"].append(weight)


def settle(trainer: Any, rewards: Tensor) -> Tensor:
    """Log every reward's failures and times, stop at too many, and leave rows with a failure out.

    A completion is left out of its group's baseline, and has advantage 0, if any of its rewards failed: without that
    reward its sum would be that of a worse completion. None, the reward's own "cannot judge", stays what it is in TRL.
    A group in which failures leave fewer than two completions has advantage 0 as a whole.

    Too many are too many of the planned rollout: fresh prompts in the place of a few groups do not stop a run.

    Logged, with R for the reward's name: `rewards/R/judged`, the share with a number; `rewards/R/failed`, and
    `rewards/R/failed/REASON` for each of `REASONS` that came up, shares; `rewards/R/latency_p50` and `latency_p99`,
    seconds.

    Args:
        rewards (`Tensor` of shape (W·B, F)): of all processes, NaN for None.

    Returns:
        `Tensor` of shape (W·B, F): the same with NaN in the rows that are left out.

    Raises:
        RewardFailuresError: on all processes; more than `max_reward_failures` of a reward's completions failed, or one
            of its settings is wrong.
    """
    scored = [
        (column, entry)
        for column, entry in enumerate(trainer.reward_funcs)
        if isinstance(entry, ScoredReward)
    ]
    if not scored:
        return rewards
    device, metrics = (
        rewards.device,
        trainer._metrics["train" if trainer.model.training else "eval"],
    )
    codes = torch.tensor(
        [[_code(o) for o in entry.outcomes] for _, entry in scored], device=device
    )  # (F', B)
    seconds = torch.tensor(
        [[o.seconds for o in entry.outcomes] for _, entry in scored], device=device
    )
    codes, seconds = (
        trainer.accelerator.gather(values.T.contiguous()) for values in (codes, seconds)
    )  # (W·B, F')
    for index, (column, entry) in enumerate(scored):
        code, times, name = codes[:, index], seconds[:, index].float(), f"rewards/{entry.__name__}"
        values = {
            "judged": (~rewards[:, column].isnan()).float().mean(),
            "failed": (code > 0).float().mean(),
        }
        counts = torch.bincount(code, minlength=len(REASONS) + 1)[1:].tolist()
        shares = zip(REASONS, counts, strict=True)
        values |= {f"failed/{reason.replace(' ', '_')}": n / len(code) for reason, n in shares if n}
        values |= {
            f"latency_{label}": times.quantile(q) for label, q in (("p50", 0.5), ("p99", 0.99))
        }
        for metric, value in values.items():
            metrics[f"{name}/{metric}"].append(float(value))
        _write_down(trainer, entry)
        _stop(trainer, entry, sum(counts), counts[REASONS.index("settings")], len(code))
    rewards = rewards.masked_fill((codes > 0).any(1)[:, None], torch.nan)
    size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    left, failed = (
        (~rewards.isnan().all(1)).view(-1, size).sum(1),
        (codes > 0).any(1).view(-1, size).any(1),
    )
    return rewards.masked_fill((failed & (left < 2)).repeat_interleave(size)[:, None], torch.nan)


@contextmanager
def checkpointed(trainer: Any) -> Iterator[None]:
    """Keep what was learned before a reward failed too often: a checkpoint, unless this step has one."""
    try:
        yield
    except RewardFailuresError:
        folder = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        there = torch.tensor([folder.exists()], device=trainer.accelerator.device)
        if (
            trainer.state.global_step and not trainer.accelerator.gather(there).any()
        ):  # the same on all processes
            trainer._save_checkpoint(trainer.model, trial=None)
        raise


def _code(outcome: Outcome) -> int:
    return 0 if outcome.failure is None else 1 + REASONS.index(outcome.failure.reason)


def _write_down(trainer: Any, entry: ScoredReward) -> None:
    """Keep this process's failures in the output folder, and say the first of each reason."""
    failures = [
        (o.failure, text)
        for o, text in zip(entry.outcomes, entry.completions, strict=True)
        if o.failure
    ]
    if not failures:
        return
    with (Path(trainer.args.output_dir) / FAILURES_FILE).open("a", encoding="utf-8") as file:
        for failure, completion in failures[:_WRITTEN]:
            row = {
                "step": trainer.state.global_step,
                "reward": entry.__name__,
                "reason": failure.reason,
            }
            row |= {"detail": failure.detail, "completion": completion}
            file.write(json.dumps(row, default=str) + "\n")
    for failure, _ in failures:
        if failure.reason not in entry.said:
            entry.said.add(failure.reason)
            logger.warning(
                f"The reward {entry.__name__!r} failed ({failure.reason}): {failure.summary}. See {FAILURES_FILE}."
            )


def _stop(trainer: Any, entry: ScoredReward, failures: int, settings: int, count: int) -> None:
    """End the run, on every process, if this reward must not train a model."""
    most = option(trainer.args, "max_reward_failures")
    planned = not trainer.model.training or count >= trainer.args.generation_batch_size
    if not settings and (failures <= most * count or not planned):
        return
    first = next(
        (outcome.failure for outcome in entry.outcomes if outcome.failure is not None), None
    )
    told = (
        first.detail
        if first is not None
        else "(the failures are on another process, which says more)"
    )
    if settings:
        raise RewardFailuresError(
            f"the reward {entry.reward.spec} cannot be used as it is set up: {told}"
        )
    raise RewardFailuresError(
        f"the reward {entry.reward.spec} failed on {failures} of {count} completions at step "
        f"{trainer.state.global_step}, more than max_reward_failures {most:g}: such a reward must not train a model. "
        "Mend it (`grpo-hf rewards check RECIPE` tries it on real rows)"
        f"{' and continue with --resume_from_checkpoint true' if trainer.state.global_step else ''}. The first "
        f"failure:\n{told}"
    )
