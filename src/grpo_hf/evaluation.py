"""Did the model get better: greedy answers of base and adapter to the same held-out prompts, with 95% intervals."""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from . import rollout
from .data import prompt_token_ids
from .scoring import ScoredReward

Z_95 = 1.959964  # two-sided 95% quantile of the normal distribution
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95% Wilson interval."""

    right: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.right / self.total

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison:
    """Base against adapter on the same prompts; `difference` is adapter − base, with its paired 95% interval."""

    base: Accuracy
    adapter: Accuracy
    difference: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def accuracy(right: Sequence[bool]) -> Accuracy:
    """The share of right answers with its Wilson score interval (Wilson 1927), which is sound at 0 and 1 too.

    >>> str(accuracy([True] * 8 + [False] * 2))
    '0.800 [0.490, 0.943]'
    """
    n, share = len(right), sum(right) / len(right)
    centre = share + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    return Accuracy(sum(right), n, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def compare(base: Sequence[bool], adapter: Sequence[bool]) -> Comparison:
    """Compare right answers to the same prompts, in the same order.

    The interval of the difference is the percentile bootstrap over prompts (Efron 1979), so that a prompt both get
    right, or both wrong, adds no spread.
    """
    if len(base) != len(adapter) or not len(base):
        raise ValueError(f"{len(base)} base and {len(adapter)} adapter answers; expected as many of each, at least one")
    change = np.asarray(adapter, dtype=float) - np.asarray(base, dtype=float)
    shares = [(change == outcome).mean() for outcome in (-1, 0, 1)]  # worse, the same, better
    worse, _, better = np.random.default_rng(0).multinomial(len(change), shares, size=_RESAMPLES).T
    low, high = np.percentile((better - worse) / len(change), [2.5, 97.5])
    return Comparison(accuracy(base), accuracy(adapter), float(change.mean()), float(low), float(high))


def greedy_completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    *,
    max_new_tokens: int,
    batch_size: int,
    eos_token_ids: list[int] | None = None,
    template_options: dict[str, Any] | None = None,
) -> list[str]:
    """The model's most likely completion of each prompt, in order; processes share the prompts among them.

    Args:
        prompts: lists of messages, or plain texts.
        max_new_tokens: tokens at most per completion.
        batch_size: prompts per process and call.
        eos_token_ids: tokens that end a completion; by default the model's own.
        template_options: keyword arguments of the chat template.
    """
    state = PartialState()
    mine = list(range(len(prompts)))[state.process_index :: state.num_processes]
    token_ids = prompt_token_ids([prompts[index] for index in mine], tokenizer, template_options)
    by_length = sorted(range(len(mine)), key=lambda i: len(token_ids[i]))
    texts: list[tuple[int, str]] = []
    ends = {} if eos_token_ids is None else {"eos_token_id": eos_token_ids}
    generation_config = copy.deepcopy(model.generation_config)
    generation_config.update(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,  # a model's own generation settings may have another
        pad_token_id=tokenizer.pad_token_id,
        **ends,
    )
    was_training = model.training
    model.eval()
    for start in range(0, len(mine), batch_size):
        rows = by_length[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [token_ids[i] for i in rows]}, padding_side="left", return_tensors="pt")
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.no_grad(), rollout.faster_generate(model):
            output = model.generate(**batch, generation_config=generation_config)
        answers = tokenizer.batch_decode(output[:, batch["input_ids"].size(1) :], skip_special_tokens=True)
        texts += [(mine[i], text) for i, text in zip(rows, answers, strict=True)]
    model.train(was_training)
    return [text for _, text in sorted(gather_object(texts))]


def right_answers(
    reward: ScoredReward,
    rows: Sequence[dict[str, Any]],
    completions: Sequence[str],
    *,
    completion_ids: Sequence[list[int]] | None = None,
    trainer_state: Any = None,
) -> list[bool | None]:
    """Whether each completion gets the reward's full mark, 1.0; what it cannot judge counts as wrong.

    None where the reward failed: that says nothing about the completion.
    """
    chat = isinstance(rows[0]["prompt"], list)
    shaped: list[Any] = [[{"role": "assistant", "content": text}] if chat else text for text in completions]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "completion")}
    values = reward(
        prompts=[row["prompt"] for row in rows],
        completions=shaped,
        completion_ids=completion_ids or [[]] * len(rows),
        trainer_state=trainer_state,
        **columns,
    )
    found = zip(reward.outcomes, values, strict=True)
    return [None if outcome.failure else value is not None and value >= 1.0 for outcome, value in found]
