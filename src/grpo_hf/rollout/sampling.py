"""A model that continues tokens without a trainer, drawn and ended as in a trainer's rollout.

    with continuing(model, tokenizer, sampling_of(args)) as sample:
        completion_ids = sample(prompt_ids, 256)

TRL 1.16 writes these settings down where a trainer is made, so what is sampled without one has
to repeat them.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch

from ..config import GRPOConfig
from ..data.completions import Completion
from ..models.shards import is_sharded
from .generate import GroupedSampling

# From lists of tokens, and how many more there may be, to what was written after them.
Sample = Callable[[list[list[int]], int], list[list[int]]]
# Takes a model, its tokenizer and settings of `generate`.
Continues = Callable[[Any, Any, Mapping[str, Any]], AbstractContextManager[Sample]]


class Written(NamedTuple):
    """A completion, and whether it was cut off before its end."""

    completion: Completion
    is_cut: bool


GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
# A model's own generation settings may have others.
_UNCHANGED = {
    "do_sample": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "repetition_penalty": 1.0,
}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_of(args: GRPOConfig) -> dict[str, Any]:
    """Return the settings of `generate` that draw from π_θ as it is trained (TRL 1.16)."""
    return {name: getattr(args, name) for name in _SAMPLING} | (args.generation_kwargs or {})


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a completion: the model's and the tokenizer's, as in TRL 1.16."""
    declared = model.generation_config.eos_token_id
    # One number, a list of them, or None.
    own = declared if isinstance(declared, list) else [declared]
    return sorted({*own, tokenizer.eos_token_id} - {None})


def is_cut(
    tokens: Sequence[int], ends: Collection[int], limit: int, sampling: Mapping[str, Any]
) -> bool:
    """Return whether a completion was cut off: no token that ends one is its last.

    Args:
        ends: the tokens that end a completion.
        limit: tokens that it might have.
        sampling: settings of `generate`. With stop strings, which are no tokens, a completion is
            cut off where it has no room left.
    """
    ends = {*ends, *(sampling.get("stop_token_ids") or [])}
    if tokens and tokens[-1] in ends:
        return False
    has_strings = bool(sampling.get("stop_strings") or sampling.get("stop"))
    return len(tokens) >= limit if has_strings else True


def generation_settings(model: Any, tokenizer: Any, sampling: Mapping[str, Any]) -> Any:
    """Return the configuration of `generate` that draws and ends completions as a rollout does.

    Args:
        sampling: settings of `generate`; those left out are the model's distribution as it is.
    """
    config = copy.deepcopy(model.generation_config)
    ends = end_token_ids(model, tokenizer)
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": ends or None}
    config.update(**{**_UNCHANGED, **special, **sampling})
    return config


@contextmanager
def continuing(model: Any, tokenizer: Any, sampling: Mapping[str, Any]) -> Iterator[Sample]:
    """Yield a function that continues lists of tokens.

    It takes the lists and how many tokens it may add at most, and stops after the end of the turn.

    Equal lists next to each other are read once. Dropout is off meanwhile.

    Args:
        sampling: settings of `generate`; those left out are the model's distribution as it is.
    """
    config = generation_settings(model, tokenizer, sampling)
    ends = end_token_ids(model, tokenizer)
    # Processes call it a different number of times, so each decides for itself.
    grouped = GroupedSampling(tokenizer)
    # Each token takes a forward, and processes with shorter completions wait for the longest.
    in_step = {"synced_gpus": True} if is_sharded(model) else {}

    def sample(asked: list[list[int]], tokens: int) -> list[list[int]]:
        batch = tokenizer.pad({"input_ids": asked}, padding_side="left", return_tensors="pt")
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        config.max_new_tokens = tokens
        with torch.no_grad(), grouped.serving(None if in_step else model) as served:
            output = model.generate(**batch, generation_config=config, **in_step)
        rows = output[:, batch["input_ids"].size(1) :].tolist()
        return served.cut([_up_to_the_end(row, ends) for row in rows])[0]

    training = model.training
    model.eval()
    try:
        yield sample
    finally:
        model.train(training)


def _up_to_the_end(tokens: list[int], ends: list[int]) -> list[int]:
    """Cut what stands after the first token that ends a completion."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens
