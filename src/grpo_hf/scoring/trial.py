"""What a reward does before it meets a model: does it run at all, and what would it pay for?

`dry_run` is the cheap part, which every run does before it loads a model. `examine` is `grpo-hf rewards check`: it
tries a reward on real rows with answers that no model should be paid for.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import Any
from weakref import WeakSet

from transformers import ProcessorMixin, TrainerState

from ..algorithm.monte_carlo import with_process_reward
from ..config import option
from ..data.completions import as_completions
from ..errors import RewardOutputError
from .outcomes import Outcome
from .reward import Reward
from .scorer import ScoredReward, check_columns, isolate, scored_rewards, weights_at
from .worker_client import RewardProcess

logger = logging.getLogger(__name__)

_PLACEHOLDER = "I do not know."
_GOLD_COLUMNS = (
    "solution",
    "answer",
    "code",
    "target",
)  # where datasets keep what is right, the fullest first
_REPEATED = 10_000
_STATE = TrainerState(max_steps=1, num_train_epochs=1, epoch=0.0, train_batch_size=1)

_tried: "WeakSet[Reward]" = (
    WeakSet()
)  # a recipe's rewards have been tried when they reach the trainer

Row = dict[str, Any]  # `prompt`, and the columns of the dataset


@dataclass(frozen=True)
class Finding:
    """What `examine` saw of one reward.

    Args:
        pays: mean reward by kind of answer, `None` where it could not be judged: of the gold answer, of an empty text,
            of a word 10,000 times, of the prompt copied, and of another row's gold answer.
        lowest, highest: of all rewards given.
        milliseconds: for a completion, the median.
        deterministic: whether the same answers had the same rewards twice.
        alone: whether a completion has the same reward alone as among others.
        exploited: the kinds for which it pays although nobody should: more than 0, or more than for the gold answer. Of
            another's answer, more than half of the gold one's: some answers happen to be right.
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
        """What its user should look at."""
        name, notes = self.reward.name, []
        if self.failures:
            notes.append(f"{name} fails on {'; '.join(self.failures)}")
        if self.exploited:
            notes.append(
                f"{name} pays for: {', '.join(self.exploited)}. Unless that is what it is for, a model will find out."
            )
        if not self.deterministic:
            notes.append(f"{name} gave the same answers different rewards the second time.")
        if not self.alone:
            notes.append(
                f"{name} gives a completion another reward alone than among others: it compares them, and needs "
                "@reward_settings(batched=True)."
            )
        if self.lowest is None:
            notes.append(f"{name} could not judge any of these rows.")
        return notes


def ready(constructor: dict[str, Any], args: Any) -> tuple[list[Any] | None, RewardProcess | None]:
    """The rewards of a trainer's constructor: loaded, in their process, and tried on its data.

    A rollout function and environments add columns later, so with them neither columns nor rewards are tried.

    Raises:
        RewardError: one cannot be found, or does not fit.
        ConfigError: weights both in the configuration and at a reward.
        DataError: the dataset lacks a column.
    """
    rewards, dataset = (
        scored_rewards(constructor.get("reward_funcs")),
        constructor.get("train_dataset"),
    )
    rewards = with_process_reward(rewards, args)
    weights_at(rewards or [], args.reward_weights, 0)
    process = isolate(
        rewards, workers=option(args, "reward_workers"), timeout=option(args, "reward_timeout")
    )
    if constructor.get("rollout_func") is None and constructor.get("environment_factory") is None:
        check_columns(rewards, dataset)
        dry_run(
            rewards or [], first_rows(dataset), strict=False, tokenizer=_tokenizer_of(constructor)
        )
    return rewards, process


def dry_run(
    rewards: Sequence[Any], rows: Sequence[Row], *, strict: bool, tokenizer: Any = None
) -> None:
    """Call each reward on a few rows, as a rollout will, so that what cannot work fails before a model is loaded.

    Args:
        rewards: as `scored_rewards` made them; reward models pass.
        rows: with `prompt` and the columns that rewards read.
        strict: whether any failure is an error, or a wrong setting only: a function that a program hands to the
            trainer may need what comes later in the program, and is given the benefit of a warning.
        tokenizer: the model's, where it is at hand; else token ids are only as many as words.

    Raises:
        RewardOutputError: names the reward, the reason and what is known of it.
    """
    for entry in rewards:
        if isinstance(entry, ScoredReward) and rows and untried([entry.reward]):
            _tried.add(entry.reward)
            outcomes = _score(entry, rows, [_PLACEHOLDER] * len(rows), tokenizer)
            settings = any(
                outcome.failure and outcome.failure.reason == "settings" for outcome in outcomes
            )
            try:
                _refuse_failures(entry.reward, outcomes)
            except RewardOutputError as error:
                if strict or settings:
                    raise
                logger.warning(str(error))


def untried(rewards: Sequence[Reward]) -> list[Reward]:
    """Those that this process has not tried yet; none on a process that is not the first."""
    return (
        [reward for reward in rewards if reward not in _tried]
        if os.environ.get("RANK", "0") == "0"
        else []
    )


def first_rows(dataset: Any) -> list[Row]:
    """The first two rows of a dataset that can be read at any place; a stream is left alone."""
    if not isinstance(getattr(dataset, "column_names", None), list) or not hasattr(
        dataset, "__len__"
    ):
        return []
    rows = [dataset[index] for index in range(min(2, len(dataset)))]
    return [row for row in rows if "prompt" in row]


def examine(rewards: Sequence[Reward], rows: Sequence[Row], *, timeout: float) -> list[Finding]:
    """Try rewards on real rows, in processes of their own."""
    together = [
        replace(reward, settings=replace(reward.settings, batched=True)) for reward in rewards
    ]
    entries = [ScoredReward(reward) for reward in chain(rewards, together)]
    process = isolate(entries, workers=None, timeout=timeout)
    try:
        half = len(rewards)
        return [_examine(*pair, rows) for pair in zip(entries[:half], entries[half:], strict=True)]
    finally:
        if isinstance(process, RewardProcess):
            process.close()


def _examine(entry: ScoredReward, together: ScoredReward, rows: Sequence[Row]) -> Finding:
    gold = [_gold(row) for row in rows]
    kinds = {
        "gold answer": gold,
        "empty": [""] * len(rows),
        "repeated": ["the " * _REPEATED] * len(rows),
        "prompt copied": [_text(row["prompt"]) for row in rows],
        "another's answer": gold[1:] + gold[:1],
    }
    outcomes = {kind: _score(entry, rows, texts) for kind, texts in kinds.items()}
    failed = [
        (kind, next((o.failure for o in found if o.failure), None))
        for kind, found in outcomes.items()
    ]
    again = {kind: _values(_score(entry, rows, texts)) for kind, texts in kinds.items()}
    beside = _values(_score(together, rows, gold))
    pays = {kind: _mean(found) for kind, found in outcomes.items()}
    same_answers = [a == b for a, b in zip(gold, kinds["another's answer"], strict=True)]
    if any(same_answers):  # what happens to be right may be paid for
        others = [
            o
            for o, same in zip(outcomes["another's answer"], same_answers, strict=True)
            if not same
        ]
        pays["another's answer"] = _mean(others)
    values = [value for found in outcomes.values() for value in _values(found) if value is not None]
    seconds = sorted(outcome.seconds for found in outcomes.values() for outcome in found)
    right = pays["gold answer"]
    exploited = [
        kind
        for kind, mean in pays.items()
        if kind != "gold answer"
        and mean is not None
        and (mean > 1e-9 or (right is not None and mean > right + 1e-9))
        if kind != "another's answer" or right is None or mean > right / 2
    ]
    return Finding(
        entry.reward,
        pays,
        min(values, default=None),
        max(values, default=None),
        1000 * seconds[len(seconds) // 2],
        all(_values(found) == again[kind] for kind, found in outcomes.items()),
        _values(outcomes["gold answer"]) == beside,
        tuple(exploited),
        tuple(
            f"{kind} ({failure.reason}): {failure.detail}"
            for kind, failure in failed
            if failure is not None
        ),
    )


def _tokenizer_of(constructor: dict[str, Any]) -> Any:
    """The one that a program hands to a trainer, if it does, perhaps inside a processor."""
    given = constructor.get("processing_class")
    return given.tokenizer if isinstance(given, ProcessorMixin) else given


def _score(
    entry: ScoredReward, rows: Sequence[Row], texts: Sequence[str], tokenizer: Any = None
) -> list[Outcome]:
    prompts = [row["prompt"] for row in rows]
    columns = {
        name: [row.get(name) for row in rows]
        for name in rows[0]
        if name not in ("prompt", "completion")
    }
    columns |= {
        "prompts": prompts,
        "completion_ids": [_token_ids(text, tokenizer) for text in texts],
    }
    entry(completions=as_completions(texts, prompts), trainer_state=_STATE, **columns)
    return entry.outcomes


def _token_ids(text: str, tokenizer: Any) -> list[int]:
    if tokenizer is None:
        return list(range(len(text.split())))
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _refuse_failures(reward: Reward, outcomes: Sequence[Outcome]) -> None:
    failure = next((outcome.failure for outcome in outcomes if outcome.failure is not None), None)
    if failure is not None:
        raise RewardOutputError(
            f"reward {reward.spec} was tried on a few rows of the dataset, and failed ({failure.reason}): "
            f"{failure.detail}"
        )


def _gold(row: Row) -> str:
    """The answer that a row calls right, as text; empty where no column is known to hold it."""
    return next((str(row[name]) for name in _GOLD_COLUMNS if row.get(name) is not None), "")


def _text(prompt: Any) -> str:
    return (
        prompt
        if isinstance(prompt, str)
        else "\n".join(str(message.get("content") or "") for message in prompt)
    )


def _values(outcomes: Sequence[Outcome]) -> list[float | None]:
    return [outcome.value for outcome in outcomes]


def _mean(outcomes: Sequence[Outcome]) -> float | None:
    values = [outcome.value for outcome in outcomes if outcome.value is not None]
    return fmean(values) if values else None
