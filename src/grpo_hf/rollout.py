"""Sampling whole groups: each prompt read once, the adapter folded into the weights, finished rows left behind.

TRL samples with `model.generate`, one row per completion, so a prompt is read G times. `faster_generate` puts another
decoding loop into that call for as long as it lasts; preparing inputs, processing logits and stopping stay
transformers' own, and TRL cuts the completions as before.

Shapes: B rows, N distinct prompts, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerationMode
from transformers.integrations import is_deepspeed_zero3_enabled

from .config import option
from .fork import Fork
from .merging import merged

KEEP = 0.75  # rows are dropped when less than this share is unfinished: dropping copies what is left of the cache


def by_groups(trainer: Any) -> AbstractContextManager[None]:
    """`faster_generate` for a trainer's model, if its settings want it and its weights are whole in this process."""
    sharded = trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()
    if sharded or not option(trainer.args, "grouped_rollout"):
        return nullcontext()
    return faster_generate(trainer.accelerator.unwrap_model(trainer.model_wrapped))


@contextmanager
def faster_generate(model: Any) -> Iterator[None]:
    """For the length of a `with` block, `model.generate` samples by groups and from merged weights.

    Calls that this module does not serve (beams, assisted decoding, guidance, ranks that have to generate in step)
    run as they would without it.
    """
    generate = model.generate

    def generate_groups(*positional: Any, **named: Any) -> Any:
        served = _is_served(named)
        with merged(model) if served else nullcontext():
            return generate(*positional, **named, **({"custom_generate": sample_groups} if served else {}))

    model.generate = generate_groups
    try:
        yield
    finally:
        del model.generate


def _is_served(named: dict[str, Any]) -> bool:
    """Whether a call of `generate` is text in, sampled or greedy text out."""
    config: GenerationConfig = named["generation_config"]
    plain = config.get_generation_mode() in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
    return (
        plain
        and named.keys() == {"input_ids", "attention_mask", "generation_config"}
        and config.use_cache is not False
        and config.cache_implementation in (None, "dynamic")
        and config.guidance_scale in (None, 1)
        and config.num_return_sequences in (None, 1)
        and not config.return_dict_in_generate
    )


def sample_groups(
    model: Any,
    input_ids: Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **inputs: Any,  # by name they would be taken out of the call of `generate`, which reads this signature
) -> Tensor:
    """A decoding loop for `generate(custom_generate=...)` (transformers 5.23) that reads each distinct prompt once.

    Args:
        input_ids (`Tensor` of shape (B, P)): prompts, padded on the left.
        logits_processor, stopping_criteria, generation_config: as `generate` made them.
        inputs: among them `past_key_values`, an empty cache, and `attention_mask`, (B, P) or `None`.

    Returns:
        `Tensor` of shape (B, P + longest completion): prompts and completions, the rest padding.
    """
    past_key_values, attention_mask = inputs["past_key_values"], inputs.get("attention_mask")
    rows, length = input_ids.shape
    known = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    prompts, prompt_of = torch.unique(input_ids.masked_fill(known == 0, -1), dim=0, return_inverse=True)  # (N, P), (B,)
    prompt_of, row = torch.sort(prompt_of, stable=True)  # the row of `sequences` that each row of the cache writes
    limit = generation_config.max_length
    padding = generation_config.pad_token_id if generation_config.pad_token_id is not None else 0
    sequences = torch.cat([input_ids, input_ids.new_full((rows, limit - length), padding)], dim=1)
    seen = (prompts >= 0).long()
    call = partial(model, past_key_values=past_key_values, use_cache=True, logits_to_keep=1)
    fork = Fork.for_model(model)
    logits = call(
        input_ids=prompts.clamp(min=0),
        attention_mask=None if attention_mask is None else seen,
        position_ids=(seen.cumsum(1) - 1).clamp(min=0),
        **({} if fork is None else {"fork": fork}),
    ).logits[prompt_of, -1]  # (B, V)
    if fork is not None and fork.take(past_key_values, prompt_of, (1 - seen).sum(1), limit - length):
        call = partial(call, fork=fork, attention_mask=seen.new_ones(1, 1, 1, 1))  # 4D: no mask is built
        mask = None
    else:
        past_key_values.batch_select_indices(prompt_of)
        mask = None if attention_mask is None else torch.cat([known, known.new_ones(rows, limit - length)], dim=1)
        fork = None
    position = seen.sum(1)[prompt_of]
    unfinished = torch.ones_like(row, dtype=torch.bool)
    while True:
        scores = logits_processor(sequences[row, :length], logits.float())
        token = _draw(scores) if generation_config.do_sample else scores.argmax(-1)
        sequences[row, length] = token = token.where(unfinished, padding)
        length += 1
        unfinished &= ~stopping_criteria(sequences[row, :length], None)
        if not (left := int(unfinished.sum())) or length == limit:
            return sequences[:, :length]
        if left <= KEEP * len(row):
            kept = unfinished.nonzero()[:, 0]
            past_key_values.batch_select_indices(kept)
            if fork is not None:
                fork.keep(kept)
            row, token, position, unfinished = row[kept], token[kept], position[kept], unfinished[kept]
        visible = {"attention_mask": None if mask is None else mask[row, :length]} if fork is None else {}
        logits = call(input_ids=token[:, None], position_ids=position[:, None], **visible).logits[:, -1]
        position = position + 1


def _draw(scores: Tensor) -> Tensor:
    """Sample from softmax(scores), (B, V) -> (B,): one uniform number per row, looked up in the cumulated shares."""
    distribution = scores.double().softmax(-1).cumsum(-1)
    threshold = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device) * distribution[:, -1:]
    return torch.searchsorted(distribution, threshold, right=True)[:, 0].clamp(max=scores.shape[1] - 1)
