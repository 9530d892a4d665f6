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

import psutil
import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer
from transformers.generation import GenerationMode
from transformers.integrations import is_deepspeed_zero3_enabled

from .config import option
from .roles import as_base

KEEP = 0.75  # rows are dropped when less than this share is unfinished: dropping copies what is left of the cache
MEMORY = 0.5  # a merged copy may take this share of the memory that is free


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
    limit = generation_config.max_length
    padding = generation_config.pad_token_id if generation_config.pad_token_id is not None else 0
    sequences = input_ids.new_full((rows, limit), padding)
    sequences[:, :length] = input_ids
    mask = None if attention_mask is None else attention_mask.new_ones(rows, limit)
    if mask is not None:
        mask[:, :length] = attention_mask
    seen = (prompts >= 0).long()
    call = partial(model, past_key_values=past_key_values, use_cache=True, logits_to_keep=1)
    logits = call(
        input_ids=prompts.clamp(min=0),
        attention_mask=None if mask is None else seen,
        position_ids=(seen.cumsum(1) - 1).clamp(min=0),
    ).logits[prompt_of, -1]  # (B, V)
    _reserve(past_key_values, prompt_of, limit)
    row = torch.arange(rows, device=input_ids.device)  # the rows in the cache
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
            row, token, position, unfinished = row[kept], token[kept], position[kept], unfinished[kept]
        logits = call(
            input_ids=token[:, None],
            attention_mask=None if mask is None else mask[row, :length],
            position_ids=position[:, None],
        ).logits[:, -1]
        position = position + 1


def _draw(scores: Tensor) -> Tensor:
    """Sample from softmax(scores), (B, V) -> (B,): one uniform number per row, looked up in the cumulated shares."""
    distribution = scores.double().softmax(-1).cumsum(-1)
    threshold = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device) * distribution[:, -1:]
    return torch.searchsorted(distribution, threshold, right=True)[:, 0].clamp(max=scores.shape[1] - 1)


def _reserve(cache: Cache, prompt_of: Tensor, limit: int) -> None:
    """Give every row its prompt's states and room for `limit` tokens; a new token then copies no old one."""
    cache.batch_select_indices(prompt_of)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = _Reserved(layer, limit)


class _Reserved(DynamicLayer):
    """A `DynamicLayer` that writes into room set aside at the start (transformers 5.23 copies all at each token)."""

    def __init__(self, layer: DynamicLayer, limit: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self.limit = limit
        self.key_room, self.value_room = self._room(layer.keys), self._room(layer.values)
        self._show(layer.keys.shape[-2])

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        self.key_room[:, :, start:end], self.value_room[:, :, start:end] = key_states, value_states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.key_room, self.value_room = self._room(self.keys[indices]), self._room(self.values[indices])
        self._show(self.keys.shape[-2])

    def _room(self, states: Tensor) -> Tensor:
        room = states.new_empty(*states.shape[:2], self.limit, states.shape[3])
        room[:, :, : states.shape[2]] = states
        return room

    def _show(self, length: int) -> None:
        self.keys, self.values = self.key_room[:, :, :length], self.value_room[:, :, :length]


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """For the length of a `with` block, the active LoRA adapter sits in the weights instead of beside them.

    Each adapted layer gets a merged weight of its own and, at the end, its old weight back: the same tensor, so not one
    bit moves (merging and unmerging in place drifts, by 1e-2 per cycle in bfloat16). Where that cannot be done the
    block runs on the adapter as it is: quantised weights, DoRA and other variants, adapters that are not LoRA, and less
    free memory than twice the copy.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if not isinstance(model, PeftModel) or not layers or not _can_merge(layers):
        yield
        return
    bases = [layer.get_base_layer() for layer in layers]
    weights = [base.weight for base in bases]
    try:
        for layer, base in zip(layers, bases, strict=True):
            total = base.weight.detach().float()
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A:
                    total = total + layer.get_delta_weight(adapter).detach().float()
            base.weight = nn.Parameter(total.to(base.weight.dtype), requires_grad=False)
        with as_base(model):
            yield
    finally:
        for base, weight in zip(bases, weights, strict=True):
            base.weight = weight


def _can_merge(layers: list[Any]) -> bool:
    """Whether the active adapter is two matrices on plain linear layers, and memory has room for a copy."""
    if not all(type(layer) is LoraLinear and not layer.merged and not layer.disable_adapters for layer in layers):
        return False
    if any(layer.lora_variant or any(layer.lora_bias.values()) for layer in layers):
        return False
    weights = [layer.get_base_layer().weight for layer in layers]
    if any(type(weight) is not nn.Parameter or not weight.is_floating_point() for weight in weights):
        return False
    device = weights[0].device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return sum(weight.numel() * weight.element_size() for weight in weights) <= MEMORY * free
