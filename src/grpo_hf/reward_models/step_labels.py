"""Lessons for a process reward model without an annotator: a model's own samples, each step with its Monte-Carlo value.

    labels = labelled_steps(model, tokenizer, rows, judge, max_new_tokens=256)
    reward_model.fit_steps(labels.prompt_ids, labels.completion_ids, labels.step_ends, labels.values)

This is Math-Shepherd (arXiv 2312.08935): algorithm/monte_carlo.py has the equation, and here a model samples without a trainer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..algorithm.monte_carlo import Sampler, step_values
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
    """Completions, the tokens at which their steps end, and what each step is worth: a row per completion."""

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
    """Sample completions of a model, and label each step with the mean reward of n continuations from it.

    The last step is labelled with the reward of the completion. Completions end before the end of the turn. Steps that
    the reward cannot judge are left out, and so are completions without any other. Random numbers are those of `seed`;
    torch's generators are afterwards what they were.

    Args:
        rows: of the data, with `prompt` and the columns that the reward reads.
        judge: a reward from 0 to 1.
        samples: completions of each row.
        n: continuations for each beginning.
        steps: how a completion is cut; see `split_steps`.
        sampling: settings of `generate`, such as the temperature; `sampling_of(args)` has those of a run.
        max_new_tokens: at most per completion, continued ones included.
        batch_size: rows per call of `generate`.
        template_options: keyword arguments of the chat template.

    Raises:
        ConfigError: no row, no sample, or no continuation.
    """
    if not rows or samples < 1 or n < 1:
        raise ConfigError(
            f"{len(rows)} rows, samples {samples}, n {n}; expected at least 1 of each."
        )
    repeated = [row for row in rows for _ in range(samples)]
    prompts = [row["prompt"] for row in repeated]
    judging = judge_by(judge, tokenizer, prompts, columns_of(repeated))
    prompt_ids = prompt_token_ids(prompts, tokenizer, template_options)
    with own_random_numbers(seed), continuing(model, tokenizer, sampling or {}) as sample:
        sampler = Sampler(sample, max_new_tokens, batch_size)
        written = sampler.completions([(tuple(ids), ()) for ids in prompt_ids[::samples]], samples)
        earned = judging(written, range(len(written)))
        written = [without_end(tokenizer, ids) for ids in written]
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        ends = [found_steps(tokenizer, *row, steps)[1] for row in zip(texts, written, strict=True)]
        groups = [row // samples for row in range(len(written))]
        found = step_values(
            prompt_ids, written, ends, earned, groups=groups, n=n, sampler=sampler, judge=judging
        )
    return _judged(StepLabels(prompt_ids, written, ends, found.of_steps))


def _judged(labels: StepLabels) -> StepLabels:
    """Without steps whose value is NaN, and without completions that have no other."""
    kept = StepLabels([], [], [], [])
    for prompt, completion, ends, values in zip(*vars(labels).values(), strict=True):
        judged = [
            (end, value) for end, value in zip(ends, values, strict=True) if not math.isnan(value)
        ]
        if judged:
            kept.prompt_ids.append(prompt)
            kept.completion_ids.append(completion)
            kept.step_ends.append([end for end, _ in judged])
            kept.values.append([value for _, value in judged])
    return kept
