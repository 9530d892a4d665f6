"""Lessons for a process reward model without an annotator: a model's own samples, each step with its Monte-Carlo value.

    labels = labelled_steps(model, tokenizer, rows, judge, max_new_tokens=256)
    reward_model.fit_steps(labels.prompt_ids, labels.completion_ids, labels.step_ends, labels.values)

This is Math-Shepherd (arXiv 2312.08935): monte_carlo.py has the equation, and here a model samples without a trainer.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from . import rollout
from .data import prompt_token_ids
from .errors import ConfigError
from .fitting import own_random_numbers
from .monte_carlo import Sampler, judge_by, step_values
from .scoring import ScoredReward
from .steps import split_steps, step_end_tokens, without_end


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
    temperature: float = 1.0,
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
        max_new_tokens: at most per completion, continued ones included.
        batch_size: rows per call of `generate`.
        template_options: keyword arguments of the chat template.

    Raises:
        ConfigError: no row, no sample, or no continuation.
    """
    if not rows or samples < 1 or n < 1:
        raise ConfigError(f"{len(rows)} rows, samples {samples}, n {n}; expected at least 1 of each.")
    repeated = [row for row in rows for _ in range(samples)]
    prompts = [row["prompt"] for row in repeated]
    columns = {name: [row[name] for row in repeated] for name in rows[0] if name not in ("prompt", "completion")}
    judging = judge_by(judge, tokenizer, prompts, columns)
    prompt_ids = prompt_token_ids(prompts, tokenizer, template_options)
    with own_random_numbers(seed), _sampling(model, tokenizer, temperature) as sample:
        sampler = Sampler(sample, max_new_tokens, batch_size)
        written = sampler.completions([(tuple(ids), ()) for ids in prompt_ids[::samples]], samples)
        earned = judging(written, range(len(written)))
        written = [without_end(tokenizer, ids) for ids in written]
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        cut = [split_steps(text, steps) for text in texts]
        ends = [step_end_tokens(tokenizer, *row) for row in zip(texts, written, cut, strict=True)]
        found = step_values(prompt_ids, written, ends, earned, n=n, sampler=sampler, judge=judging)
    return _judged(StepLabels(prompt_ids, written, ends, found.of_steps))


def _judged(labels: StepLabels) -> StepLabels:
    """Without steps whose value is NaN, and without completions that have no other."""
    kept = StepLabels([], [], [], [])
    for prompt, completion, ends, values in zip(*vars(labels).values(), strict=True):
        judged = [(end, value) for end, value in zip(ends, values, strict=True) if not math.isnan(value)]
        if judged:
            kept.prompt_ids.append(prompt)
            kept.completion_ids.append(completion)
            kept.step_ends.append([end for end, _ in judged])
            kept.values.append([value for _, value in judged])
    return kept


@contextmanager
def _sampling(
    model: Any, tokenizer: Any, temperature: float
) -> Iterator[Callable[[list[list[int]], int], list[list[int]]]]:
    """The model as one that continues tokens, up to and including the end of the turn; without dropout meanwhile."""
    config = copy.deepcopy(model.generation_config)
    own = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stops = {*own, tokenizer.eos_token_id} - {None}
    config.update(
        do_sample=True,
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,  # a model's own generation settings may have another
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(stops),
    )

    def sample(asked: list[list[int]], tokens: int) -> list[list[int]]:
        batch = tokenizer.pad({"input_ids": asked}, padding_side="left", return_tensors="pt")
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        config.max_new_tokens = tokens
        with torch.no_grad(), rollout.faster_generate(model):
            output = model.generate(**batch, generation_config=config)
        rows = output[:, batch["input_ids"].size(1) :].tolist()
        return [row[: next((i for i, token in enumerate(row) if token in stops), len(row)) + 1] for row in rows]

    training = model.training
    model.eval()
    try:
        yield sample
    finally:
        model.train(training)
