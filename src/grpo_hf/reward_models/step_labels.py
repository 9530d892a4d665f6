"""Labels for a process reward model without an annotator, from a model's own samples.

    labels = labelled_steps(model, tokenizer, rows, judge, max_new_tokens=256)
    reward_model.fit_steps(
        labels.prompt_ids, labels.completion_ids, labels.step_ends, labels.values
    )

Each step is labelled with its Monte-Carlo value, as in Math-Shepherd (arXiv 2312.08935);
algorithm/monte_carlo.py has the equation. Here a model samples without a trainer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..algorithm.monte_carlo import Beginning, Sampler, step_values
from ..data.completions import columns_of
from ..data.prompts import prompt_token_ids
from ..errors import ConfigError
from ..models.random_state import own_random_numbers
from ..rollout.sampling import continuing
from ..scoring.judging import judge_by
from ..scoring.scored_reward import ScoredReward
from ..scoring.steps import found_steps, without_end


@dataclass(frozen=True)
class StepLabels:
    """Completions with the value of each step, a row per completion.

    `step_ends` are the tokens of the completion at which its steps end, counted from 0.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    step_ends: list[list[int]]
    values: list[list[float]]


def labelled_steps(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    judge: ScoredReward,
    *,
    samples: int = 4,
    n: int = 4,
    steps: str = "lines",
    sampling: Mapping[str, Any] | None = None,
    max_new_tokens: int,
    batch_size: int = 64,
    seed: int = 0,
    template_options: dict[str, Any] | None = None,
) -> StepLabels:
    """Sample completions of a model, and label each of their steps.

    A step's label is the mean reward of n continuations from it; the last step's label is the
    reward of the completion itself. The tokens of a completion do not include the end of the turn.
    Steps that the reward cannot judge are left out, and so are completions without a judged step.
    Random numbers come from `seed`; torch's generators are afterwards what they were.

    Args:
        model: samples the completions and their continuations.
        tokenizer: the model's tokenizer.
        rows: rows of the data, with `prompt` and the columns that the reward reads.
        judge: a reward from 0 to 1.
        samples: completions of each row.
        n: continuations of each beginning.
        steps: how a completion is cut; see `split_steps`.
        sampling: settings of `generate`, such as the temperature; `sampling_of(args)` returns the
            settings of a run.
        max_new_tokens: tokens of a completion at most, with and without a continued beginning.
        batch_size: rows per call of `generate`.
        seed: of the samples.
        template_options: keyword arguments of the chat template.

    Raises:
        ConfigError: no row, no sample, or no continuation.
    """
    if not rows or samples < 1 or n < 1:
        raise ConfigError(
            f"{len(rows)} rows, samples {samples}, n {n}; expected at least 1 of each."
        )
    # One entry per completion, so that the judge finds the columns of each by its index.
    repeated: list[dict[str, Any]] = []
    groups: list[int] = []
    for group, row in enumerate(rows):
        repeated += [row] * samples
        groups += [group] * samples
    prompts = [row["prompt"] for row in repeated]
    judge_completions = judge_by(judge, tokenizer, prompts, columns_of(repeated))
    prompt_ids = prompt_token_ids(prompts, tokenizer, template_options)
    # `continuing` samples as a trainer's rollout does, so the labels fit the policy's completions.
    with own_random_numbers(seed), continuing(model, tokenizer, sampling or {}) as sample:
        sampler = Sampler(sample, max_new_tokens, batch_size)
        completions = _sampled(sampler, prompt_ids, samples)
        rewards = judge_completions(completions, range(len(completions)))
        # The reward saw the completions as the model wrote them. From here on the end of the turn
        # is left out, so the last step ends with the text.
        completions = _without_ends(tokenizer, completions)
        ends = _step_ends(tokenizer, completions, steps)
        values = step_values(
            prompt_ids,
            completions,
            ends,
            rewards,
            groups=groups,
            n=n,
            sampler=sampler,
            judge=judge_completions,
        )
    return _judged(StepLabels(prompt_ids, completions, ends, values.of_steps))


def _sampled(sampler: Sampler, prompt_ids: list[list[int]], samples: int) -> list[list[int]]:
    """Return completions of the prompts, of which `samples` equal ones stand side by side."""
    beginnings: list[Beginning] = []
    for ids in prompt_ids[::samples]:
        # A beginning without any step is a prompt.
        beginnings.append((tuple(ids), ()))
    return sampler.completions(beginnings, samples)


def _without_ends(tokenizer: Any, completions: list[list[int]]) -> list[list[int]]:
    return [without_end(tokenizer, ids) for ids in completions]


def _step_ends(tokenizer: Any, completions: list[list[int]], steps: str) -> list[list[int]]:
    """Return the tokens at which the steps of each completion end."""
    ends = []
    # Without special tokens, as rewards see completions.
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    for text, ids in zip(texts, completions, strict=True):
        _, token_ends = found_steps(tokenizer, text, ids, steps)
        ends.append(token_ends)
    return ends


def _judged(labels: StepLabels) -> StepLabels:
    """Leave out steps whose value is NaN, and completions without any other step."""
    judged = StepLabels([], [], [], [])
    for prompt, completion, ends, values in zip(
        labels.prompt_ids, labels.completion_ids, labels.step_ends, labels.values, strict=True
    ):
        judged_ends = []
        judged_values = []
        for end, value in zip(ends, values, strict=True):
            if not math.isnan(value):
                judged_ends.append(end)
                judged_values.append(value)
        # A completion whose steps were not found has none either.
        if judged_ends:
            judged.prompt_ids.append(prompt)
            judged.completion_ids.append(completion)
            judged.step_ends.append(judged_ends)
            judged.values.append(judged_values)
    return judged
