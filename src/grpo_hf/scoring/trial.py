"""Rewards before they meet a model: do they run at all, and for which answers would they pay?

`dry_run` is cheap, and every run does it before it loads a model. `examine` is what
`grpo-hf rewards check` does: it tries a reward on real rows, with answers for which no model should
be rewarded.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from statistics import fmean
from typing import Any
from weakref import WeakSet

from transformers import ProcessorMixin, TrainerState

from ..config import option
from ..data.completions import message_text
from ..data.readers import PLACE
from ..errors import RewardOutputError
from .finding import (
    AT_ONCE,
    BOTH,
    GOLD,
    OTHER,
    ROUNDING,
    Finding,
    Unpaid,
    exploited,
    failed_kinds,
    failures_among,
)
from .gold import gold_texts
from .judging import score_completions
from .outcomes import Outcome
from .process_reward import with_process_reward
from .reward import Reward
from .run_rewards import RunRewards, callables_of, check_columns, isolate, scored_rewards
from .scored_reward import ScoredReward, values_of
from .scorer import weights_at

logger = logging.getLogger(__name__)

# An answer of words, which no reward should stumble over, and which is right nowhere.
_PLACEHOLDER = "I do not know. "
# What a model does that has found a reward for length.
_REPEATED_WORD = "the "
_REPETITIONS = 10_000
# How rewards that read a number in a text may want it, where they pay nothing for it alone.
_FORMS = ("#### {}", "\\boxed{{{}}}", "<answer>{}</answer>")
# For rewards that read the state of a trainer, which does not exist yet.
_STATE = TrainerState(max_steps=1, num_train_epochs=1, epoch=0.0, train_batch_size=1)

# Rewards that this process has tried: those of a recipe have been when they reach the trainer.
_tried: "WeakSet[Reward]" = WeakSet()

# `prompt`, and the columns of the dataset.
Row = dict[str, Any]


def prepare_rewards(constructor: dict[str, Any]) -> tuple[list[Any] | None, RunRewards]:
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
    given = constructor.get("reward_funcs")
    entries = with_process_reward(scored_rewards(given), option(args, "process_reward"))
    # TRL keeps what the user gave; a name is nothing that it could call.
    functions = None if entries is None else callables_of(given, entries)
    # Raises where weights contradict each other; which they are, each rollout asks anew.
    weights_at(entries or [], args.reward_weights, 0)
    process = isolate(
        entries, workers=option(args, "reward_workers"), timeout=option(args, "reward_timeout")
    )
    run_rewards = RunRewards(functions, entries, process)
    if constructor.get("rollout_func") is not None:
        return functions, run_rewards
    if constructor.get("environment_factory") is not None:
        return functions, run_rewards
    check_columns(entries, dataset)
    tokenizer = constructor.get("processing_class")
    if isinstance(tokenizer, ProcessorMixin):
        tokenizer = tokenizer.tokenizer
    tried = _without_state(functions or [], entries or [])
    dry_run(tried, first_rows(dataset), strict=False, tokenizer=tokenizer)
    return functions, run_rewards


def _without_state(functions: Sequence[Any], entries: Sequence[Any]) -> list[Any]:
    """Return the rewards that a trial cannot change: TRL would not call them before a rollout.

    Rewards that are named, as in a recipe, or say where they are called, are tried in any case.
    """
    tried = []
    for function, entry in zip(functions, entries, strict=True):
        if not isinstance(entry, ScoredReward):
            continue
        # Its author knows of trials, or the user has named it for this library.
        is_said = entry.reward.settings.in_process is not None or function is entry.reward
        if is_said or entry.is_isolated or not entry.references.changeable:
            tried.append(entry)
    return tried


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
            # Noted before it is called, so that nothing warns of the same failure twice.
            _tried.add(entry.reward)
            # Not twice the same: a reward that compares should have something to compare.
            texts = [_PLACEHOLDER * (1 + row) for row in range(len(rows))]
            outcomes = _score(entry, rows, texts, tokenizer, is_trial=True)
            failures = failures_among(outcomes)
            if not failures:
                _warn_of_unpaid(entry, rows, outcomes, strict=strict)
                continue
            message = (
                f"reward {entry.reward.spec} was tried on a few rows of the dataset, with texts as "
                f"{_PLACEHOLDER!r}, and failed ({failures[0].reason}): {failures[0].detail}"
            )
            # A wrong setting is wrong whatever comes later in a program.
            if strict or "settings" in [failure.reason for failure in failures]:
                raise RewardOutputError(message)
            logger.warning(message)


def _warn_of_unpaid(
    entry: ScoredReward, rows: Sequence[Row], wrong: Sequence[Outcome], *, strict: bool
) -> None:
    """Warn of a recipe's reward that pays nothing for the right answers of all rows."""
    # A function of a program may keep a state, which more calls would change.
    if not strict:
        return
    gold = _best_gold(entry, rows)
    if gold[0] not in entry.reward.columns:
        return
    right = _score(entry, rows, gold[1], is_trial=True)
    unpaid = _unpaid(entry, rows, gold, right, [_mean(wrong)])
    if unpaid is not None and unpaid.is_all:
        logger.warning(unpaid.note(entry.reward.name))


def untried(rewards: Sequence[Reward]) -> list[Reward]:
    """Return the rewards that this process has not tried yet; none on any process but the first."""
    # Launchers set RANK. One process is enough, and the others would print the same warnings.
    if os.environ.get("RANK", "0") != "0":
        return []
    return [reward for reward in rewards if reward not in _tried]


def first_rows(dataset: Any) -> list[Row]:
    """Return the first two rows of a dataset, or none where that would consume a stream."""
    columns = getattr(dataset, "column_names", None)
    if not isinstance(columns, list) or not hasattr(dataset, "__len__"):
        return []
    rows = []
    for index in range(min(2, len(dataset))):
        row = dataset[index]
        # Data without prompts is refused later, by TRL.
        if "prompt" in row:
            rows.append(row)
    return rows


def examine(
    rewards: Sequence[Reward], rows: Sequence[Row], *, timeout: float | None
) -> list[Finding]:
    """Try rewards on real rows, in processes of their own."""
    alone: list[ScoredReward] = []
    together: list[ScoredReward] = []
    for reward in rewards:
        # The same function twice: called for each completion, and with all of them at once.
        warned: set[str] = set()
        for entries, batched in ((alone, False), (together, True)):
            settings = replace(reward.settings, batched=batched)
            entries.append(ScoredReward(replace(reward, settings=settings), warned))
    process = isolate([*alone, *together], workers=None, timeout=timeout)
    try:
        findings = []
        for entry, batched_entry in zip(alone, together, strict=True):
            findings.append(_examine(entry, batched_entry, rows))
        return findings
    finally:
        # Its workers would outlive a program that goes on.
        if process is not None:
            process.close()


def _examine(entry: ScoredReward, together: ScoredReward, rows: Sequence[Row]) -> Finding:
    gold_column, gold = _best_gold(entry, rows)
    copied = [_text(row["prompt"]) for row in rows]
    kinds = {
        GOLD: gold,
        "empty": [""] * len(rows),
        "repeated": [_REPEATED_WORD * _REPETITIONS] * len(rows),
        "prompt copied": copied,
        OTHER: gold[1:] + gold[:1],
    }
    outcomes = {}
    for kind, texts in kinds.items():
        outcomes[kind] = _score(entry, rows, texts)
    # All kinds once more: a reward that samples, or asks a model, may answer otherwise.
    deterministic = True
    for kind, texts in kinds.items():
        deterministic &= values_of(_score(entry, rows, texts)) == values_of(outcomes[kind])
    at_once = _score(together, rows, gold)
    # Where a call failed, the other is no comparison with it.
    failed = failures_among([*at_once, *outcomes[GOLD]])
    alone = bool(failed) or values_of(at_once) == values_of(outcomes[GOLD])
    pays = {kind: _mean(of_kind) for kind, of_kind in outcomes.items()}
    pays[GOLD] = pays[GOLD] if gold_column else None
    differ = [own != other for own, other in zip(gold, kinds[OTHER], strict=True)]
    # Another row's answer may happen to be right.
    both = _paid_for_both(entry, rows, gold, kinds[OTHER])
    for kind, of_kind in ((OTHER, outcomes[OTHER]), (BOTH, both)):
        pays[kind] = _mean(list(compress(of_kind, differ)))
    wrong = [mean for kind, mean in pays.items() if kind != GOLD]
    values = []
    seconds = []
    for of_kind in outcomes.values():
        values += _numbers(of_kind)
        seconds += [outcome.seconds for outcome in of_kind]
    seconds.sort()
    return Finding(
        entry.reward,
        pays,
        gold_column,
        lowest=min(values, default=None),
        highest=max(values, default=None),
        milliseconds=1000 * seconds[len(seconds) // 2],
        deterministic=deterministic,
        stays=_stays(entry),
        alone=alone,
        exploited=exploited(pays),
        failures=failed_kinds(entry.reward, {**outcomes, BOTH: both, AT_ONCE: at_once}),
        unpaid=_unpaid(entry, rows, (gold_column, gold), outcomes[GOLD], wrong),
    )


def _stays(entry: ScoredReward) -> str:
    is_said = entry.reward.settings.in_process is not None
    # A name that is mistyped does not make it stay.
    if entry.references.undefined:
        return ""
    return "" if is_said else entry.references.changeable


def _paid_for_both(
    entry: ScoredReward, rows: Sequence[Row], own: Sequence[str], others: Sequence[str]
) -> list[Outcome]:
    """Return the lower outcome of naming two answers, the right one first or last.

    A reward may read the first answer or the last one. What pays in both orders pays for naming
    several.
    """
    orders = []
    for pairs in (zip(own, others, strict=True), zip(others, own, strict=True)):
        orders.append(_score(entry, rows, [f"{first} or {second}" for first, second in pairs]))
    pairs_of_outcomes = zip(*orders, strict=True)
    return [min(both, key=lambda outcome: outcome.value or 0.0) for both in pairs_of_outcomes]


def _unpaid(
    entry: ScoredReward,
    rows: Sequence[Row],
    gold: tuple[str, list[str]],
    outcomes: Sequence[Outcome],
    wrong: Sequence[float | None],
) -> Unpaid | None:
    """Return the right answers that earn nothing, if the reward reads what is right.

    Args:
        gold: the column of right answers, and their texts.
        outcomes: those of the texts.
        wrong: mean rewards of wrong answers, which a penalty puts below 0.
    """
    column, texts = gold
    if column not in entry.reward.columns:
        return None
    values = values_of(outcomes)
    judged = []
    places = []
    for place, (value, text) in enumerate(zip(values, texts, strict=True)):
        if text and value is not None:
            judged.append(value)
            if value <= ROUNDING:
                places.append(place)
    highest = max([value for value in wrong if value is not None], default=0.0)
    # A penalty pays nothing, and takes from what is wrong.
    if not places or (max(judged) <= ROUNDING and fmean(judged) > highest + ROUNDING):
        return None
    row = rows[places[0]]
    return Unpaid(
        row.get(PLACE, f"row {places[0]}"),
        column,
        row.get(column),
        texts[places[0]],
        len(places),
        len(judged),
    )


def _score(
    entry: ScoredReward,
    rows: Sequence[Row],
    texts: Sequence[str],
    tokenizer: Any = None,
    *,
    is_trial: bool = False,
) -> list[Outcome]:
    columns = {}
    # TRL passes these two itself, under the names of their plurals.
    for name in rows[0]:
        if name not in ("prompt", "completion", PLACE):
            columns[name] = [row.get(name) for row in rows]
    return score_completions(
        entry,
        [row["prompt"] for row in rows],
        texts,
        columns=columns,
        completion_ids=[_token_ids(text, tokenizer) for text in texts],
        trainer_state=_STATE,
        is_trial=is_trial,
    )


def _token_ids(text: str, tokenizer: Any) -> list[int]:
    if tokenizer is None:
        # A reward for length counts them, and words are about as many.
        return list(range(len(text.split())))
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _best_gold(entry: ScoredReward, rows: Sequence[Row]) -> tuple[str, list[str]]:
    """Return the column that holds what is right and its texts: of several, the best paid one."""
    candidates = gold_texts(rows, entry.reward.columns)
    means = {}
    for name, texts in candidates.items():
        mean = _mean(_score(entry, rows, texts, is_trial=True)) if len(candidates) > 1 else None
        means[name] = float("-inf") if mean is None else mean
    # Of equals the first, which is called as gold answers are.
    name, texts = max(candidates.items(), key=lambda candidate: means[candidate[0]])
    return name, _in_paid_form(entry, rows, texts) if name in entry.reward.columns else texts


def _in_paid_form(entry: ScoredReward, rows: Sequence[Row], texts: list[str]) -> list[str]:
    """Return right answers as they are, or in the first usual form that is paid where they are not.

    A reward that fails is not called with more.
    """
    for form in ("{}", *_FORMS):
        formed = [form.format(text) if text else text for text in texts]
        outcomes = _score(entry, rows, formed, is_trial=True)
        if failures_among(outcomes):
            break
        if max(_numbers(outcomes), default=0.0) > ROUNDING:
            return formed
    return texts


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(map(message_text, prompt))


def _mean(outcomes: Sequence[Outcome]) -> float | None:
    return fmean(values) if (values := _numbers(outcomes)) else None


def _numbers(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the values of the outcomes that have one."""
    return [value for value in values_of(outcomes) if value is not None]
