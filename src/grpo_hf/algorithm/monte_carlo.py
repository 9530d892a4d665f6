"""Monte-Carlo step values (Math-Shepherd, arXiv 2312.08935): a step is worth what continuations from it earn.

    r_ij = 1/n Σ reward(continuation of the steps 1..j of output i)        n continuations, sampled from the policy

For a reward of 0 and 1 that is the share of continuations that end correctly (soft estimation, eq. 3 there). The last
step of an output is worth what the output itself earned. No second model is needed; the price is the continuations. All
that begin alike share the states of their beginning (rollout/generate.py), and outputs of a group that begin alike share values,
as far as they are on one process.

`step_values` is that equation, for whoever can sample and judge; `MonteCarlo` is a trainer that does.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from accelerate.utils import gather_object

from ..config import option
from ..data.completions import as_completions
from ..errors import ConfigError, RewardSpecError, did_you_mean
from ..scoring.registry import split_spec
from ..scoring.reward import Reward, RewardSettings, checked_reward
from ..scoring.scorer import ScoredReward
from ..scoring.steps import SEPARATORS, StepRewards, found_steps

Tokens = Sequence[int]
Beginning = tuple[
    tuple[int, ...], tuple[int, ...]
]  # tokens of a prompt, and of the first steps after it
Judge = Callable[
    [list[list[int]], Sequence[int]], list[float]
]  # completions, the rows they answer: rewards or NaN

_CREDITS = ("value", "gain")


@dataclass(frozen=True)
class Sampler:
    """What completes beginnings.

    Args:
        sample: continues lists of tokens, with at most so many tokens each.
        limit: tokens of a completion at most, those of its beginning included.
        at_once: continuations that are sampled in one call; those of one beginning are in any case.
    """

    sample: Callable[[list[list[int]], int], list[list[int]]]
    limit: int
    at_once: int

    def completions(self, beginnings: Sequence[Beginning], n: int) -> list[list[int]]:
        """The tokens of n completions with each of these beginnings, side by side."""
        order = sorted(
            range(len(beginnings)), key=lambda index: sum(map(len, beginnings[index])), reverse=True
        )
        written: list[list[int]] = [[] for _ in range(n * len(beginnings))]
        together = max(1, self.at_once // n)
        for start in range(0, len(order), together):
            chunk = [index for index in order[start : start + together] for _ in range(n)]
            asked = [[*prompt, *text] for prompt, text in (beginnings[index] for index in chunk)]
            more = self.sample(
                asked, max(self.limit - len(beginnings[index][1]) for index in chunk)
            )
            for place, (index, ids) in enumerate(zip(chunk, more, strict=True)):
                written[index * n + place % n] = [*beginnings[index][1], *ids][: self.limit]
        return written


@dataclass(frozen=True)
class StepValues:
    """What the steps of each completion are worth; how many beginnings were continued, and with how many tokens."""

    of_steps: list[list[float]]
    beginnings: int
    tokens: int


def step_values(
    prompt_ids: Sequence[Tokens],
    completion_ids: Sequence[Tokens],
    step_ends: Sequence[Sequence[int]],
    earned: Sequence[float],
    *,
    groups: Sequence[int],
    n: int,
    sampler: Sampler,
    judge: Judge,
) -> StepValues:
    """The values of the steps of each completion, in the order of `step_ends`.

    Args:
        prompt_ids, completion_ids: token ids, a list per row.
        step_ends: the tokens at which the steps of each completion end, counted from 0.
        earned: what each completion itself earned; NaN for what cannot be judged.
        groups: the number of each row's group, whose rows are judged alike. Equal prompts may be of several.
        n: continuations for each beginning.

    Source: arXiv 2312.08935, equation 3.
    """
    beginnings: list[list[tuple[int, Beginning]]] = [
        [(group, (tuple(prompt), tuple(ids[: end + 1]))) for end in ends[:-1] if end + 1 < len(ids)]
        for group, prompt, ids, ends in zip(
            groups, prompt_ids, completion_ids, step_ends, strict=True
        )
    ]
    rows = {beginning: row for row, of_row in enumerate(beginnings) for beginning in of_row}
    begun = [beginning for _, beginning in rows]
    written = sampler.completions(begun, n)
    judged = judge(written, [row for row in rows.values() for _ in range(n)]) if rows else []
    values = {beginning: _mean(judged[k * n : k * n + n]) for k, beginning in enumerate(rows)}
    found = [
        [values[beginning] for beginning in of_row] + [last] * (len(ends) - len(of_row))
        for of_row, last, ends in zip(beginnings, earned, step_ends, strict=True)
    ]
    return StepValues(
        found, len(begun), sum(map(len, written)) - n * sum(len(text) for _, text in begun)
    )


def judge_by(
    reward: ScoredReward,
    tokenizer: Any,
    prompts: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
    state: Any = None,
) -> Judge:
    """A reward as the judge of completions to these prompts, which are given as tokens."""

    def judge(written: list[list[int]], rows: Sequence[int]) -> list[float]:
        asked = [prompts[row] for row in rows]
        values = reward(
            prompts=asked,
            completions=as_completions(
                tokenizer.batch_decode(written, skip_special_tokens=True), asked
            ),
            completion_ids=written,
            trainer_state=state,
            **{name: [values[row] for row in rows] for name, values in columns.items()},
        )
        return [_number(value) for value in values]

    return judge


class MonteCarlo:
    """The step reward behind `process_reward="monte_carlo(...)"`, which samples from a trainer's policy."""

    reward_settings = RewardSettings(batched=True, in_process=True, early=False)

    def __init__(self) -> None:
        self._trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Sample from this trainer's policy, and judge by its first reward.

        Raises:
            ConfigError: the first reward is no function, every process has to sample as much as the others, or a
                completion is more than what the model continues a text with.
        """
        first = trainer.reward_funcs[0]
        if not isinstance(first, ScoredReward) or first.reward.function is self:
            raise ConfigError(
                "process_reward judges continuations by the first reward, which has to be a function."
            )
        if trainer.use_vllm or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ConfigError(
                "process_reward 'monte_carlo' samples another number of continuations on every process, which vLLM and "
                "sharded weights (FSDP, DeepSpeed) do not allow. Leave one of the two out."
            )
        if (
            trainer.tools
            or trainer.environment_factories
            or trainer.rollout_func is not None
            or trainer._is_vlm
        ):
            raise ConfigError(
                "process_reward 'monte_carlo' continues texts, and knows no tools, environments, rollout functions or "
                "images. Leave one of the two out."
            )
        self._trainer = trainer

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        *,
        n: int = 4,
        steps: str = "lines",
        credit: str = "value",
        **columns: Any,
    ) -> list[StepRewards | None]:
        """The values of the steps of each completion; None where it has none, and while there is no policy.

        Args:
            n: continuations for each beginning.
            steps: how a completion is cut; see `split_steps`.
            credit: `"value"`, or `"gain"`: what a step adds to the value before it, at first the mean reward of the
                completions of its group.
        """
        if self._trainer is None or not self._trainer.model.training:
            return [None] * len(completions)
        start, trainer = time.perf_counter(), self._trainer
        earned = [_number(outcome.value) for outcome in trainer.reward_funcs[0].outcomes]
        groups, means = _groups(trainer, earned)
        cuts = [
            found_steps(trainer._tokenizer, *row, steps)
            for row in zip(completions, completion_ids, strict=True)
        ]
        judge = copy.copy(
            trainer.reward_funcs[0]
        )  # the first itself keeps what it said of the rollout
        lists = {name: values for name, values in columns.items() if isinstance(values, list)}
        values = step_values(
            trainer._tokenize_prompts(prompts)[0],
            completion_ids,
            [tokens for _, tokens in cuts],
            earned,
            groups=groups,
            n=n,
            sampler=Sampler(partial(self._sample, n), trainer.max_completion_length, len(prompts)),
            judge=judge_by(judge, trainer._tokenizer, prompts, lists, trainer.state),
        )
        found = values.of_steps
        if credit == "gain":
            found = [_gains([mean, *of_row]) for mean, of_row in zip(means, found, strict=True)]
        cost = {
            "beginnings": values.beginnings,
            "tokens": values.tokens,
            "time": time.perf_counter() - start,
        }
        for name, value in cost.items():
            trainer._metrics["train"][f"monte_carlo/{name}"].append(float(value))
        return [
            StepRewards(ends, r) if ends else None for (ends, _), r in zip(cuts, found, strict=True)
        ]

    def _sample(self, n: int, asked: list[list[int]], tokens: int) -> list[list[int]]:
        """The policy's continuations. TRL 1.16 reads `generation_config` in `_generate_single_turn`."""
        trainer, config = self._trainer, self._trainer.generation_config
        trainer.generation_config = copy.deepcopy(config)
        trainer.generation_config.max_new_tokens = tokens
        try:
            return trainer._generate_single_turn(asked, None, {}, n)[0]
        finally:
            trainer.generation_config = config


def process_reward(spec: str) -> Reward:
    """The step reward that `process_reward` names: `monte_carlo`, with options or without.

    Raises:
        RewardSpecError: it is something else, or an option is not possible.
    """
    name, options = split_spec(spec.strip())
    if name != "monte_carlo":
        raise RewardSpecError(
            f"process_reward is {spec!r}; expected monte_carlo, or monte_carlo(n=4, steps='lines')."
            f"{did_you_mean(name, ['monte_carlo'])} A step reward of your own is named among the rewards."
        )
    reward = checked_reward(MonteCarlo(), name, name, options, "grpo-hf")
    n, steps, credit = (
        reward.options.get(*default)
        for default in (("n", 4), ("steps", "lines"), ("credit", "value"))
    )
    if (
        type(n) is not int
        or n < 1
        or not isinstance(steps, str)
        or not steps
        or credit not in _CREDITS
    ):
        raise RewardSpecError(
            f"process_reward is {spec!r}; expected n of at least 1, steps lines, blank_lines, sentences or the text "
            f"that marks the end of a step, and credit one of {', '.join(_CREDITS)}."
            f"{did_you_mean(str(credit), _CREDITS) if credit not in _CREDITS else ''}"
        )
    if steps not in SEPARATORS and (hint := did_you_mean(steps, SEPARATORS)):
        raise RewardSpecError(
            f"process_reward is {spec!r}: steps {steps!r} would end at that text.{hint}"
        )
    return reward


def with_process_reward(rewards: list[Any] | None, args: Any) -> list[Any] | None:
    """A trainer's rewards, with the one that `process_reward` names as the last."""
    spec = option(args, "process_reward")
    return rewards if spec is None else [*(rewards or []), ScoredReward(process_reward(spec))]


def attach(trainer: Any) -> None:
    """Let the trainer's Monte-Carlo reward, if it has one, sample from its policy."""
    for entry in trainer.reward_funcs:
        if isinstance(entry, ScoredReward) and isinstance(entry.reward.function, MonteCarlo):
            entry.reward.function.attach(trainer)


def _groups(trainer: Any, earned: list[float]) -> tuple[list[int], list[float]]:
    """The number of each completion's group, and the mean of what that group earned, on whatever processes it is."""
    everywhere, size = gather_object(earned), trainer.num_generations
    first = trainer.accelerator.process_index * len(earned)
    groups = [row // size for row in range(first, first + len(earned))]
    return groups, [_mean(everywhere[group * size : (group + 1) * size]) for group in groups]


def _gains(values: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(values)]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _mean(values: Sequence[float]) -> float:
    judged = [value for value in values if not math.isnan(value)]
    return sum(judged) / len(judged) if judged else math.nan
