"""Rewards before they meet a model: do they run at all, and what would they pay for?

`dry_run` is the cheap part, which every run does before it loads a model. `examine` is
`grpo-hf rewards check`: it tries a reward on real rows with answers that no model should be paid
for.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any
from weakref import WeakSet

from transformers import ProcessorMixin, TrainerState

from ..config import option
from ..errors import RewardOutputError
from .judging import score_texts
from .outcomes import Outcome
from .process_reward import with_process_reward
from .reward import Reward
from .scored_reward import ScoredReward
from .scorer import check_columns, isolate, scored_rewards, weights_at
from .worker_client import RewardProcess

logger = logging.getLogger(__name__)

_PLACEHOLDER = "I do not know."
# Where datasets keep what is right; the fullest form of it first.
_GOLD_COLUMNS = ("solution", "answer", "code", "target")
_REPEATED_WORD = "the "
_REPETITIONS = 10_000
# What rounding may leave of a reward of 0, or put between two equal ones.
_ROUNDING = 1e-9
_STATE = TrainerState(max_steps=1, num_train_epochs=1, epoch=0.0, train_batch_size=1)

# Rewards that this process has tried: those of a recipe have been when they reach the trainer.
_tried: "WeakSet[Reward]" = WeakSet()

Row = dict[str, Any]  # `prompt`, and the columns of the dataset


@dataclass(frozen=True)
class Finding:
    """What `examine` saw of one reward.

    Args:
        pays: mean reward by kind of answer, `None` where it could not be judged: of the gold
            answer, of an empty text, of a word 10,000 times, of the prompt copied, and of another
            row's gold answer.
        lowest, highest: of all rewards given.
        milliseconds: for a completion, the median.
        deterministic: whether the same answers had the same rewards twice.
        alone: whether a completion has the same reward alone as among others.
        exploited: the kinds for which it pays although nobody should: more than 0, or more than for
            the gold answer. Of another row's answer, more than half of the gold one's: some answers
            happen to be right.
        failures: the kinds on which it failed, with the reason.
    """

    reward: Reward
    pays: dict[str, float | None]
    lowest: float | None
    highest: float | None
    milliseconds: float
    deterministic: bool
    alone: bool
    exploited: tuple[str, ...]
    failures: tuple[str, ...]

    def notes(self) -> list[str]:
        """Return what the user of the reward should look at."""
        name = self.reward.name
        notes = []
        if self.failures:
            notes.append(f"{name} fails on {'; '.join(self.failures)}")
        if self.exploited:
            notes.append(
                f"{name} pays for: {', '.join(self.exploited)}. Unless that is what it is for, a "
                "model will find out."
            )
        if not self.deterministic:
            notes.append(f"{name} gave the same answers different rewards the second time.")
        if not self.alone:
            notes.append(
                f"{name} gives a completion another reward alone than among others: it compares "
                "them, and needs @reward_settings(batched=True)."
            )
        if self.lowest is None:
            notes.append(f"{name} could not judge any of these rows.")
        return notes


def prepare_rewards(
    constructor: dict[str, Any],
) -> tuple[list[Any] | None, RewardProcess | None]:
    """Load the rewards of a trainer's constructor, start their process, and try them on its data.

    A rollout function and environments add columns later, so with them neither columns nor rewards
    are tried.

    Args:
        constructor: the arguments of the trainer, by name.

    Raises:
        RewardError: a reward cannot be found, or does not fit.
        ConfigError: weights both in the configuration and at a reward.
        DataError: the dataset lacks a column.
    """
    args = constructor["args"]
    dataset = constructor.get("train_dataset")
    rewards = scored_rewards(constructor.get("reward_funcs"))
    rewards = with_process_reward(rewards, option(args, "process_reward"))
    weights_at(rewards or [], args.reward_weights, 0)
    process = isolate(
        rewards, workers=option(args, "reward_workers"), timeout=option(args, "reward_timeout")
    )
    adds_columns = ("rollout_func", "environment_factory")
    if all(constructor.get(name) is None for name in adds_columns):
        check_columns(rewards, dataset)
        tokenizer = constructor.get("processing_class")
        if isinstance(tokenizer, ProcessorMixin):
            tokenizer = tokenizer.tokenizer
        dry_run(rewards or [], first_rows(dataset), strict=False, tokenizer=tokenizer)
    return rewards, process


def dry_run(
    rewards: Sequence[Any], rows: Sequence[Row], *, strict: bool, tokenizer: Any = None
) -> None:
    """Call each reward on a few rows, as a rollout will, before a model is loaded.

    Args:
        rewards: as `scored_rewards` made them; reward models pass.
        rows: with `prompt` and the columns that rewards read.
        strict: whether any failure is an error, or a wrong setting only. A function that a program
            hands to the trainer may need what comes later in the program; it gets a warning.
        tokenizer: the model's, where it is at hand; else there are as many token ids as words.

    Raises:
        RewardOutputError: names the reward, the reason and what is known of it.
    """
    for entry in rewards:
        if isinstance(entry, ScoredReward) and rows and untried([entry.reward]):
            _tried.add(entry.reward)
            outcomes = _score(entry, rows, [_PLACEHOLDER] * len(rows), tokenizer)
            failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
            if not failures:
                continue
            message = (
                f"reward {entry.reward.spec} was tried on a few rows of the dataset, and failed "
                f"({failures[0].reason}): {failures[0].detail}"
            )
            if strict or any(failure.reason == "settings" for failure in failures):
                raise RewardOutputError(message)
            logger.warning(message)


def untried(rewards: Sequence[Reward]) -> list[Reward]:
    """Return the rewards that this process has not tried yet; none on any process but the first."""
    if os.environ.get("RANK", "0") != "0":
        return []
    return [reward for reward in rewards if reward not in _tried]


def first_rows(dataset: Any) -> list[Row]:
    """Return the first two rows of a dataset that can be read anywhere; a stream is left alone."""
    columns = getattr(dataset, "column_names", None)
    if not isinstance(columns, list) or not hasattr(dataset, "__len__"):
        return []
    rows = [dataset[index] for index in range(min(2, len(dataset)))]
    return [row for row in rows if "prompt" in row]


def examine(rewards: Sequence[Reward], rows: Sequence[Row], *, timeout: float) -> list[Finding]:
    """Try rewards on real rows, in processes of their own."""
    alone = [ScoredReward(reward) for reward in rewards]
    together = []
    for reward in rewards:
        batched = replace(reward.settings, batched=True)
        together.append(ScoredReward(replace(reward, settings=batched)))
    process = isolate([*alone, *together], workers=None, timeout=timeout)
    try:
        findings = []
        for entry, batched_entry in zip(alone, together, strict=True):
            findings.append(_examine(entry, batched_entry, rows))
        return findings
    finally:
        if process is not None:
            process.close()


def _examine(entry: ScoredReward, together: ScoredReward, rows: Sequence[Row]) -> Finding:
    gold = [_gold(row) for row in rows]
    kinds = {
        "gold answer": gold,
        "empty": [""] * len(rows),
        "repeated": [_REPEATED_WORD * _REPETITIONS] * len(rows),
        "prompt copied": [_text(row["prompt"]) for row in rows],
        "another's answer": gold[1:] + gold[:1],
    }
    outcomes = {}
    for kind, texts in kinds.items():
        outcomes[kind] = _score(entry, rows, texts)
    deterministic = True
    for kind, texts in kinds.items():
        deterministic &= _values(_score(entry, rows, texts)) == _values(outcomes[kind])
    alone = _values(_score(together, rows, gold)) == _values(outcomes["gold answer"])
    pays = {kind: _mean(of_kind) for kind, of_kind in outcomes.items()}
    pays["another's answer"] = _mean(_of_other_answers(outcomes, gold))
    every = [outcome for of_kind in outcomes.values() for outcome in of_kind]
    values = [outcome.value for outcome in every if outcome.value is not None]
    seconds = sorted(outcome.seconds for outcome in every)
    return Finding(
        entry.reward,
        pays,
        lowest=min(values, default=None),
        highest=max(values, default=None),
        milliseconds=1000 * seconds[len(seconds) // 2],
        deterministic=deterministic,
        alone=alone,
        exploited=_exploited(pays),
        failures=_failures(outcomes),
    )


def _of_other_answers(outcomes: dict[str, list[Outcome]], gold: list[str]) -> list[Outcome]:
    """Return the outcomes of other rows' answers, without those that happen to be right."""
    of_others = outcomes["another's answer"]
    others = gold[1:] + gold[:1]
    different = []
    for outcome, own, other in zip(of_others, gold, others, strict=True):
        if own != other:
            different.append(outcome)
    return different


def _exploited(pays: dict[str, float | None]) -> tuple[str, ...]:
    right = pays["gold answer"]
    kinds = []
    for kind, mean in pays.items():
        if kind == "gold answer" or mean is None:
            continue
        is_paid = mean > _ROUNDING or (right is not None and mean > right + _ROUNDING)
        # Some answers happen to be right, so another row's may be paid for now and then.
        if kind == "another's answer" and right is not None:
            is_paid = is_paid and mean > right / 2
        if is_paid:
            kinds.append(kind)
    return tuple(kinds)


def _failures(outcomes: dict[str, list[Outcome]]) -> tuple[str, ...]:
    """Return the kinds of answers on which a reward failed, each with its first failure."""
    failures = []
    for kind, of_kind in outcomes.items():
        for outcome in of_kind:
            if outcome.failure is not None:
                failures.append(f"{kind} ({outcome.failure.reason}): {outcome.failure.detail}")
                break
    return tuple(failures)


def _score(
    entry: ScoredReward, rows: Sequence[Row], texts: Sequence[str], tokenizer: Any = None
) -> list[Outcome]:
    columns = {}
    for name in rows[0]:
        if name not in ("prompt", "completion"):
            columns[name] = [row.get(name) for row in rows]
    return score_texts(
        entry,
        [row["prompt"] for row in rows],
        texts,
        columns=columns,
        completion_ids=[_token_ids(text, tokenizer) for text in texts],
        trainer_state=_STATE,
    )


def _token_ids(text: str, tokenizer: Any) -> list[int]:
    if tokenizer is None:
        return list(range(len(text.split())))
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _gold(row: Row) -> str:
    """Return the answer that a row calls right, as text; empty where no column holds it."""
    for name in _GOLD_COLUMNS:
        if row.get(name) is not None:
            return str(row[name])
    return ""


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message.get("content") or "") for message in prompt)


def _values(outcomes: Sequence[Outcome]) -> list[float | None]:
    return [outcome.value for outcome in outcomes]


def _mean(outcomes: Sequence[Outcome]) -> float | None:
    values = [outcome.value for outcome in outcomes if outcome.value is not None]
    return fmean(values) if values else None
