"""Monte-Carlo step values (Math-Shepherd, arXiv 2312.08935): a step is worth what continuations from it earn.

    r_ij = 1/n Σ reward(continuation of the steps 1..j of output i)        n continuations, sampled from the policy

For a reward of 0 and 1 that is the share of continuations that end correctly (soft estimation, eq. 3 there). The last
step of an output is worth what the output itself earned. No second model is needed; the price is the continuations. All
that begin alike share the states of their beginning (rollout.py), and outputs of a group that begin alike share values.
"""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from .config import option
from .errors import ConfigError, RewardSpecError, did_you_mean
from .plugins import split_spec
from .reward import Reward, RewardSettings, checked_reward
from .scoring import ScoredReward
from .steps import StepRewards, assistant_text, split_steps, step_end_tokens

Beginning = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a prompt, and of the first steps after it

_CREDITS = ("value", "gain")


class MonteCarlo:
    """The step reward behind `process_reward="monte_carlo(...)"`, which samples from a trainer's policy."""

    reward_settings = RewardSettings(batched=True, in_process=True, early=False)

    def __init__(self) -> None:
        self._trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Sample from this trainer's policy, and judge by its first reward.

        Raises:
            ConfigError: the first reward is no function, or every process has to sample as much as the others.
        """
        first = trainer.reward_funcs[0]
        if not isinstance(first, ScoredReward) or first.reward.function is self:
            raise ConfigError("process_reward judges continuations by the first reward, which has to be a function.")
        if trainer.use_vllm or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ConfigError(
                "process_reward 'monte_carlo' samples another number of continuations on every process, which vLLM and "
                "sharded weights (FSDP, DeepSpeed) do not allow. Leave one of the two out."
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
                completions of its prompt.
        """
        if self._trainer is None or not self._trainer.model.training:
            return [None] * len(completions)
        start, tokenizer = time.perf_counter(), self._trainer._tokenizer
        ends = [split_steps(assistant_text(completion), steps) for completion in completions]
        tokens = [step_end_tokens(tokenizer, *row) for row in zip(completions, completion_ids, ends, strict=True)]
        prompt_ids = [tuple(ids) for ids in self._trainer._tokenize_prompts(prompts)[0]]
        beginnings: list[list[Beginning]] = [
            [(prompt, tuple(ids[: token + 1])) for token in of_row[:-1]]
            for prompt, ids, of_row in zip(prompt_ids, completion_ids, tokens, strict=True)
        ]
        rows = {beginning: row for row, of_row in enumerate(beginnings) for beginning in of_row}
        rows = {beginning: row for beginning, row in rows.items() if len(beginning[1]) < len(completion_ids[row])}
        written = self._continue(list(rows), n, at_once=max(1, len(prompts) // n))
        earned = self._judge(written, [row for row in rows.values() for _ in range(n)], prompts, completions, columns)
        values = {beginning: _mean(earned[k * n : k * n + n]) for k, beginning in enumerate(rows)}
        final = [_number(outcome.value) for outcome in self._trainer.reward_funcs[0].outcomes]
        found = [[*(values.get(b, last) for b in of_row), last] for of_row, last in zip(beginnings, final, strict=True)]
        if credit == "gain":
            of_prompt = {p: _mean([x for q, x in zip(prompt_ids, final, strict=True) if q == p]) for p in prompt_ids}
            found = [_gains([of_prompt[p], *of_row]) for p, of_row in zip(prompt_ids, found, strict=True)]
        cost = {"beginnings": len(rows), "tokens": sum(map(len, written)) - n * sum(len(text) for _, text in rows)}
        for name, value in {**cost, "time": time.perf_counter() - start}.items():
            self._trainer._metrics["train"][f"monte_carlo/{name}"].append(float(value))
        return [StepRewards(of_row, r) if of_row else None for of_row, r in zip(ends, found, strict=True)]

    def _continue(self, beginnings: Sequence[Beginning], n: int, at_once: int) -> list[list[int]]:
        """The tokens of n completions with each of these beginnings, side by side."""
        trainer, limit = self._trainer, self._trainer.max_completion_length
        order = sorted(range(len(beginnings)), key=lambda index: sum(map(len, beginnings[index])), reverse=True)
        written: list[list[int]] = [[] for _ in range(n * len(beginnings))]
        for start in range(0, len(order), at_once):
            chunk = [index for index in order[start : start + at_once] for _ in range(n)]
            with _at_most(trainer, max(limit - len(beginnings[index][1]) for index in chunk)):
                asked = [[*prompt, *text] for prompt, text in (beginnings[index] for index in chunk)]
                continued, _ = trainer._generate_single_turn(asked, None, {}, n)
            for place, (index, ids) in enumerate(zip(chunk, continued, strict=True)):
                written[index * n + place % n] = [*beginnings[index][1], *ids][:limit]
        return written

    def _judge(
        self,
        written: list[list[int]],
        rows: list[int],
        prompts: list[Any],
        completions: list[Any],
        columns: dict[str, Any],
    ) -> list[float]:
        """What the first reward says of completions to the prompts of these rows; NaN for None."""
        if not written:
            return []
        texts: list[Any] = self._trainer._tokenizer.batch_decode(written, skip_special_tokens=True)
        if not isinstance(completions[0], str):
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        judge = copy.copy(self._trainer.reward_funcs[0])  # it keeps what it said of the rollout itself
        own = {name: values for name, values in columns.items() if isinstance(values, list)}
        values = judge(
            prompts=[prompts[row] for row in rows],
            completions=texts,
            completion_ids=written,
            trainer_state=self._trainer.state,
            **{name: [values[row] for row in rows] for name, values in own.items()},
        )
        return [_number(value) for value in values]


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
    n, steps, credit = (reward.options.get(*default) for default in (("n", 4), ("steps", "lines"), ("credit", "value")))
    if type(n) is not int or n < 1 or not isinstance(steps, str) or not steps or credit not in _CREDITS:
        raise RewardSpecError(
            f"process_reward is {spec!r}; expected n of at least 1, steps lines, blank_lines, sentences or the text "
            f"that marks the end of a step, and credit one of {', '.join(_CREDITS)}."
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


@contextmanager
def _at_most(trainer: Any, tokens: int) -> Iterator[None]:
    """Sample no longer than that. TRL 1.16 reads `generation_config` in `_generate_single_turn`."""
    config = trainer.generation_config
    trainer.generation_config = copy.deepcopy(config)
    trainer.generation_config.max_new_tokens = tokens
    try:
        yield
    finally:
        trainer.generation_config = config


def _gains(values: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(values)]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _mean(values: Sequence[float]) -> float:
    judged = [value for value in values if not math.isnan(value)]
    return sum(judged) / len(judged) if judged else math.nan
