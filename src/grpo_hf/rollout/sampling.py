"""A model that continues tokens without a trainer, drawn and ended as in a trainer's rollout.

    with continuing(model, tokenizer, sampling_of(args)) as sample:
        completion_ids = sample(prompt_ids, 256)

TRL 1.16 writes these settings down where a trainer is made, so what is sampled without one has to repeat them.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..config import GRPOConfig
from . import generate

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
    """The settings of `generate` that make a run's completions samples of π_θ as it is trained (TRL 1.16)."""
    return {name: getattr(args, name) for name in _SAMPLING} | (args.generation_kwargs or {})


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """What ends a completion: every end that the model declares, and the tokenizer's, as in TRL 1.16."""
    declared = model.generation_config.eos_token_id
    own = declared if isinstance(declared, list) else [declared]
    return sorted({*own, tokenizer.eos_token_id} - {None})


@contextmanager
def continuing(
    model: Any, tokenizer: Any, sampling: Mapping[str, Any]
) -> Iterator[Callable[[list[list[int]], int], list[list[int]]]]:
    """A function that continues lists of tokens with at most so many, up to and including the end of the turn.

    Equal lists next to each other are read once. Dropout is off meanwhile.

    Args:
        sampling: settings of `generate`; those left out are the model's distribution as it is.
    """
    config, ends = copy.deepcopy(model.generation_config), end_token_ids(model, tokenizer)
    config.update(
        **_UNCHANGED
        | {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": ends or None}
        | {**sampling}
    )

    def sample(asked: list[list[int]], tokens: int) -> list[list[int]]:
        batch = tokenizer.pad({"input_ids": asked}, padding_side="left", return_tensors="pt")
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        config.max_new_tokens = tokens
        with torch.no_grad(), generate.faster_generate(model):
            output = model.generate(**batch, generation_config=config)
        rows = output[:, batch["input_ids"].size(1) :].tolist()
        return [
            row[: next((i for i, token in enumerate(row) if token in ends), len(row)) + 1]
            for row in rows
        ]

    training = model.training
    model.eval()
    try:
        yield sample
    finally:
        model.train(training)
