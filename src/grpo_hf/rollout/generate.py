"""Sampling whole groups: each prompt read once, the adapter folded into the weights, finished rows left behind.

TRL samples with `model.generate`, one row per completion, so a prompt is read G times. `faster_generate` puts another
decoding loop into that call for as long as it lasts; settings, logits processors and stopping criteria stay those of
transformers, and TRL cuts the completions as before.

Shapes: B rows, N distinct prompts, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation import GenerationMode

from ..errors import GrpoError
from ..models.adapters import causal_model
from ..trl_seam import sample_as_transformers, whole_generation_config
from ..update.packing import distinct_prompts
from .merged_weights import merged
from .shared_prefix_cache import Fork

KEEP = 0.75  # rows are dropped when less than this share is unfinished: dropping copies what is left of the cache


@contextmanager
def faster_generate(model: Any) -> Iterator[None]:
    """For the length of a `with` block, `model.generate` samples by groups and from merged weights.

    Calls that this module does not serve (beams, assisted decoding, guidance, soft prompts) run as they would without.
    """
    generate, of_its_own = model.generate, vars(model).get("generate")

    def generate_groups(*positional: Any, **named: Any) -> Any:
        if positional or not _is_served(model, named):
            return generate(*positional, **named)
        with merged(model):
            return generate(**named, custom_generate=sample_groups)

    model.generate = generate_groups
    try:
        yield
    finally:
        del model.generate
        if of_its_own is not None:
            model.generate = of_its_own


def _is_served(model: Any, named: dict[str, Any]) -> bool:
    """Whether a call of `generate` is text in, sampled or greedy text out, row by row."""
    if named.keys() != {"input_ids", "attention_mask", "generation_config"}:
        return False
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return False  # PEFT puts soft prompts in while it prepares the inputs of each step
    config = whole_generation_config(causal_model(model), named["generation_config"])
    return (
        config.get_generation_mode() in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
        and config.use_cache is not False
        and config.cache_implementation in (None, "dynamic")
        and config.guidance_scale in (None, 1)
        and config.encoder_repetition_penalty in (None, 1)
        and not config.encoder_no_repeat_ngram_size
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
        inputs: `past_key_values`, an empty cache, and `attention_mask`, (B, P) or `None`, are what is read of them.

    Returns:
        `Tensor` of shape (B, P + longest completion): prompts and completions, the rest padding.
    """
    cache, attention_mask = inputs.get("past_key_values"), inputs.get("attention_mask")
    if not isinstance(cache, DynamicCache):  # a state-space model's, for one
        return sample_as_transformers(
            model,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            **inputs,
        )
    length, limit = input_ids.shape[1], generation_config.max_length
    padding = generation_config.pad_token_id if generation_config.pad_token_id is not None else 0
    sequences = torch.cat(
        [input_ids, input_ids.new_full((len(input_ids), limit - length), padding)], dim=1
    )
    rows = _Rows.prefilled(model, cache, input_ids, attention_mask, limit)
    while True:
        scores = logits_processor(sequences[rows.of, :length], rows.logits.float())
        token = _draw(scores) if generation_config.do_sample else scores.argmax(-1)
        sequences[rows.of, length] = token = token.where(rows.unfinished, padding)
        length += 1
        rows.unfinished &= ~stopping_criteria(sequences[rows.of, :length], None)
        if not rows.unfinished.any() or length == limit:
            return sequences[:, :length]
        rows.read(token, length)


class _Rows:
    """The rows that are being written, in the order of the cache; those of one prompt lie side by side.

    `of` holds the row of the rollout that each of them is, (R,); `logits` what comes next, (R, V).
    """

    def __init__(self, call: Any, cache: Cache, fork: Fork | None, mask: Tensor | None) -> None:
        self._call, self._cache, self._fork, self._mask = call, cache, fork, mask
        self.of = self.unfinished = self._position = self.logits = torch.empty(0)

    @classmethod
    def prefilled(
        cls, model: Any, cache: Cache, input_ids: Tensor, attention_mask: Tensor | None, limit: int
    ) -> "_Rows":
        """Read each distinct prompt once."""
        known = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts, prompt_of = distinct_prompts(input_ids, known)  # (N, P), (B,)
        prompt_of, of = torch.sort(prompt_of, stable=True)
        room = limit - input_ids.shape[1]
        seen = (prompts >= 0).long()
        call = partial(model, past_key_values=cache, use_cache=True, logits_to_keep=1)
        fork = Fork.for_model(model)
        output = call(
            input_ids=prompts.clamp(min=0),
            attention_mask=None if attention_mask is None else seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
            **({} if fork is None else {"fork": fork}),
        )
        if fork is not None and fork.take(cache, prompt_of, (1 - seen).sum(1), room):
            call = partial(
                call, fork=fork, attention_mask=seen.new_ones(1, 1, 1, 1)
            )  # 4D: no mask is built
            rows = cls(call, cache, fork, None)
        else:
            cache.batch_select_indices(prompt_of)
            mask = (
                None
                if attention_mask is None
                else torch.cat([known, known.new_ones(len(known), room)], dim=1)
            )
            rows = cls(call, cache, None, mask)
        rows.of, rows.logits, rows._position = (
            of,
            output.logits[prompt_of, -1],
            seen.sum(1)[prompt_of],
        )
        rows.unfinished = torch.ones_like(of, dtype=torch.bool)
        return rows

    def read(self, token: Tensor, length: int) -> None:
        """Forward the tokens just written, after dropping finished rows if they are many."""
        if self.unfinished.sum() <= KEEP * len(self.of):
            kept = self.unfinished.nonzero()[:, 0]
            self._cache.batch_select_indices(kept)
            if self._fork is not None:
                self._fork.keep(kept)
            token, self._position = token[kept], self._position[kept]
            self.of, self.unfinished = self.of[kept], self.unfinished[kept]
        visible = {} if self._mask is None else {"attention_mask": self._mask[self.of, :length]}
        output = self._call(
            input_ids=token[:, None], position_ids=self._position[:, None], **visible
        )
        self.logits, self._position = output.logits[:, -1], self._position + 1


def _draw(scores: Tensor) -> Tensor:
    """Sample from softmax(scores), (B, V) -> (B,): one uniform number per row, looked up in the cumulated shares."""
    precision = torch.float32 if scores.device.type == "mps" else torch.float64  # it has no other
    distribution = scores.to(precision).softmax(-1).cumsum(-1)
    if not distribution[:, -1].isfinite().all():
        raise GrpoError(
            "the policy's logits are not finite, so nothing can be sampled: lower the learning rate."
        )
    threshold = (
        torch.rand(len(scores), 1, dtype=precision, device=scores.device) * distribution[:, -1:]
    )
    return torch.searchsorted(distribution, threshold, right=True)[:, 0].clamp(
        max=scores.shape[1] - 1
    )
