"""What failures of rewards mean for a run: numbers to log, rows to leave out, or the run's end.

Shapes: B completions on each of W processes, G per group, N groups on all processes, F reward
functions, S of them scored by this library.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..config import option
from ..errors import RewardFailuresError
from ..run_context import RunContext
from ..run_files import FAILURES_FILE
from .outcomes import REASONS, Outcome
from .scored_reward import ScoredReward
from .scorer import Scores

# A logger of every process: each of them sees failures of its own.
logger = logging.getLogger(__name__)

# Failures of a reward that are written down in a step; a broken reward fails on all completions.
_WRITTEN = 16
# Characters of a prompt and of a column's value that are written.
_LONGEST = 2_000


@dataclass(frozen=True)
class FailureCounts:
    """The failures of one reward on the completions of all processes.

    Args:
        entry: the reward.
        column: its place among all F.
        by_reason: how many for each of `REASONS`.
        rows: W·B, how many completions there were.
    """

    entry: ScoredReward
    column: int
    by_reason: dict[str, int]
    rows: int

    @property
    def total(self) -> int:
        """All failures of the reward."""
        return sum(self.by_reason.values())


@dataclass(frozen=True)
class FailureReport:
    """The failures of all rewards, as `count_failures` returns them.

    Args:
        counts: per reward.
        failed (W·B,): whether any reward failed on a completion.
        metrics: what to log.
    """

    counts: list[FailureCounts]
    failed: Tensor
    metrics: dict[str, float]


@dataclass(frozen=True)
class Settled:
    """Rewards without the rows that failures leave out, (W·B, F), and what to log about them."""

    rewards: Tensor
    metrics: dict[str, float]


def settle_failures(scores: Scores, rewards: Tensor, run: RunContext, args: Any) -> Settled:
    """Count failures, write them down, stop at too many, and leave out the rows of the others.

    Args:
        scores: of this process.
        rewards (W·B, F): of all processes, NaN for None.
        args: of the run: `output_dir`, `max_reward_failures` and `generation_batch_size`.

    Raises:
        RewardFailuresError: on all processes; see `stop_at_too_many`.
    """
    # Reward models alone do not fail, and a subclass may have scored without this library.
    if not scores.entries:
        return Settled(rewards, {})
    report = count_failures(scores, rewards, run)
    # Written before the run may end: the file is where the user looks for the reason.
    write_failures(scores, Path(args.output_dir), run.logged_step)
    stop_at_too_many(
        report,
        scores,
        run,
        most=option(args, "max_reward_failures"),
        planned_rows=args.generation_batch_size,
    )
    return Settled(leave_out_failures(rewards, report.failed, run), report.metrics)


def count_failures(scores: Scores, rewards: Tensor, run: RunContext) -> FailureReport:
    """Count every reward's failures, and how long it took, over all processes.

    To log, with R for the reward's name: `rewards/R/judged`, the share of completions with a
    number; `rewards/R/failed`, and `rewards/R/failed/REASON` for each reason that came up, shares;
    `rewards/R/latency_p50` and `latency_p99`, seconds for a completion; `rewards/R/waited`, seconds
    for which the slowest process waited.

    Args:
        scores: of this process, with at least one reward.
        rewards (W·B, F): of all processes, NaN for None.
    """
    codes, seconds = _gathered(scores, rewards.device, run)  # (W·B, S) each
    waited = _longest_waits(scores, rewards.device, run)  # (S,)
    counts = []
    metrics = {}
    for index, (column, entry) in enumerate(scores.entries.items()):
        by_reason = _by_reason(codes[:, index])
        counts.append(FailureCounts(entry, column, by_reason, len(codes)))
        prefix = f"rewards/{entry.__name__}"
        judged = ~rewards[:, column].isnan()
        # `quantile` takes no half precision.
        times = seconds[:, index].float()
        metrics[f"{prefix}/judged"] = judged.float().mean().item()
        metrics[f"{prefix}/failed"] = (codes[:, index] > 0).float().mean().item()
        for reason, count in by_reason.items():
            # A log of eight zeros for each reward would say nothing.
            if count:
                metrics[f"{prefix}/failed/{reason.replace(' ', '_')}"] = count / len(codes)
        metrics[f"{prefix}/latency_p50"] = times.quantile(0.5).item()
        metrics[f"{prefix}/latency_p99"] = times.quantile(0.99).item()
        metrics[f"{prefix}/waited"] = waited[index].item()
    return FailureReport(counts, (codes > 0).any(1), metrics)


def leave_out_failures(rewards: Tensor, failed: Tensor, run: RunContext) -> Tensor:
    """Return the rewards with NaN in the rows that are left out.

    A completion is left out of its group's baseline, and has advantage 0, if any of its rewards
    failed: without that reward its sum would be the sum of a worse completion. None, the reward's
    own "cannot judge", stays what it is in TRL. A group in which failures leave fewer than two
    completions has advantage 0 as a whole.

    Args:
        rewards (W·B, F): of all processes, NaN for None.
        failed (W·B,): whether any reward failed on a completion.

    Returns:
        (W·B, F).
    """
    rewards = rewards.masked_fill(failed[:, None], torch.nan)
    judged = (~rewards.isnan().all(1)).view(-1, run.group_size).sum(1)  # (N,)
    # One completion that is left has nothing to be compared with. Where None alone leaves so few,
    # TRL decides.
    torn = failed.view(-1, run.group_size).any(1) & (judged < 2)
    return rewards.masked_fill(torn.repeat_interleave(run.group_size)[:, None], torch.nan)


def write_failures(scores: Scores, folder: Path, step: int) -> None:
    """Keep this process's failures in the output folder, and say the first of each reason."""
    for column, entry in scores.entries.items():
        failures = []
        for place, outcome in enumerate(scores.outcomes[column]):
            if outcome.failure is not None:
                failures.append((outcome.failure, place))
        if not failures:
            continue
        with (folder / FAILURES_FILE).open("a", encoding="utf-8") as file:
            for failure, place in failures[:_WRITTEN]:
                row = {
                    "step": step,
                    "reward": entry.__name__,
                    "reason": failure.reason,
                    "detail": failure.detail,
                    **_row_of(scores, entry, place),
                    "completion": scores.completions[place],
                }
                # Messages may hold what is no JSON, such as images.
                file.write(_json(row) + "\n")
        for failure, _ in failures:
            entry.warn_once(
                logger,
                failure.reason,
                f"The reward {entry.__name__!r} failed ({failure.reason}): {failure.summary}. "
                f"See {folder / FAILURES_FILE}.",
            )


def _row_of(scores: Scores, entry: ScoredReward, place: int) -> dict[str, Any]:
    """Return the prompt of a completion, and the columns of its row that a reward reads."""
    row: dict[str, Any] = {}
    if "prompts" in scores.columns:
        # Its end: many prompts of a dataset begin with the same instruction.
        prompt = _value_at(scores, scores.columns["prompts"], place)
        row["prompt"] = _shortened(prompt, slice(-_LONGEST, None))
    columns = {}
    for name, values in entry.reward.read_of(scores.columns).items():
        columns[name] = _shortened(_value_at(scores, values, place), slice(_LONGEST))
    return {**row, "columns": columns}


def _value_at(scores: Scores, values: Any, place: int) -> Any:
    """Return a column's value for a completion, or the whole of what is no column.

    A subclass of the trainer may pass plain values to its rewards beside the columns.
    """
    is_column = isinstance(values, list) and len(values) == len(scores.completions)
    return values[place] if is_column else values


def _shortened(value: Any, part: slice) -> Any:
    """Return a value, or the part of its text that is kept where that is long."""
    text = value if isinstance(value, str) else _json(value)
    if len(text) <= _LONGEST:
        return value
    return f"{text[part]}..." if part.start is None else f"...{text[part]}"


def _json(value: Any) -> str:
    return json.dumps(value, default=_text_of, skipkeys=True)


def _text_of(value: Any) -> str:
    # The value is the user's, and so is what its `__str__` raises.
    try:
        return str(value)
    except Exception:
        return type(value).__name__


def stop_at_too_many(
    report: FailureReport, scores: Scores, run: RunContext, *, most: float, planned_rows: int
) -> None:
    """End the run, on every process, if a reward must not train a model.

    Too many are too many of the planned rollout: fresh prompts in the place of a few groups do not
    stop a run.

    Args:
        most: the share of a reward's completions that may fail.
        planned_rows: the completions of a planned rollout on all processes.

    Raises:
        RewardFailuresError: more than that share failed, or a setting of a reward is wrong.
    """
    # The report is the same on all processes, so they all raise, and none waits for the others.
    for counts in report.counts:
        is_planned = not run.training or counts.rows >= planned_rows
        too_many = counts.total > most * counts.rows and is_planned
        # One is enough: the same setting would fail at every step.
        wrong_settings = counts.by_reason["settings"] > 0
        if not too_many and not wrong_settings:
            continue
        detail = _first_detail(scores.outcomes[counts.column])
        spec = counts.entry.reward.spec
        if wrong_settings:
            raise RewardFailuresError(f"the reward {spec} cannot be used as it is set up: {detail}")
        # There is a checkpoint only where a step was made; see `lacks_checkpoint`.
        go_on = "continue" if run.step else "begin anew in the same folder"
        raise RewardFailuresError(
            f"the reward {spec} failed on {counts.total} of {counts.rows} completions at step "
            f"{run.logged_step}, more than max_reward_failures {most:g}: such a reward must not "
            "train a model. Mend it (`grpo-hf rewards check RECIPE` tries it on real rows)"
            f" and {go_on} with --resume_from_checkpoint auto. The first failure:\n{detail}"
        )


def lacks_checkpoint(folder: Path, step: int, accelerator: Accelerator) -> bool:
    """Return whether a run that is past its first step has no checkpoint of this step yet.

    Args:
        folder: the output folder of the run.
        step: optimizer steps that are done.
    """
    exists = (folder / f"checkpoint-{step}").exists()
    # One decision on all processes, whose file systems may differ.
    exists_somewhere = accelerator.gather(torch.tensor([exists], device=accelerator.device)).any()
    return step > 0 and not exists_somewhere


def _gathered(scores: Scores, device: torch.device, run: RunContext) -> tuple[Tensor, Tensor]:
    """Return failure codes and seconds of all processes, (W·B, S) each; a code of 0 is none."""
    codes = []
    seconds = []
    for column in scores.entries:
        outcomes = scores.outcomes[column]
        codes.append([_code(outcome) for outcome in outcomes])
        seconds.append([outcome.seconds for outcome in outcomes])
    # `gather` takes contiguous tensors only, and joins along the first dimension, the rows.
    all_codes = run.gather(torch.tensor(codes, device=device).T.contiguous())
    all_seconds = run.gather(torch.tensor(seconds, device=device).T.contiguous())
    return all_codes, all_seconds


def _longest_waits(scores: Scores, device: torch.device, run: RunContext) -> Tensor:
    """Return the seconds for which the slowest process waited for each reward, (S,)."""
    waits = [scores.waited.get(column, 0.0) for column in scores.entries]
    return run.gather(torch.tensor([waits], device=device)).amax(0)


def _code(outcome: Outcome) -> int:
    # A number, because processes exchange tensors and not texts; 0 is left for no failure.
    return 0 if outcome.failure is None else 1 + REASONS.index(outcome.failure.reason)


def _by_reason(codes: Tensor) -> dict[str, int]:
    counts = torch.bincount(codes, minlength=len(REASONS) + 1)[1:].tolist()
    return dict(zip(REASONS, counts, strict=True))


def _first_detail(outcomes: list[Outcome]) -> str:
    for outcome in outcomes:
        if outcome.failure is not None:
            return outcome.failure.detail
    return "(the failures are on another process, which says more)"
