"""Sample whole groups, so that each prompt is read once.

The adapter is folded into the weights meanwhile, and finished rows are left behind.

TRL samples with `model.generate`, one row per completion, so a prompt is read G times.
`faster_generate` puts another decoding loop into that call for as long as it lasts; settings,
logits processors and stopping criteria stay those of transformers, and TRL cuts the completions as
before.

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
from ..trl_seam import cache_argument, sample_as_transformers, whole_generation_config
from ..update.packing import distinct_prompts
from .merged_weights import merged
from .shared_prefix_cache import SharedPrefixCache

# Rows are dropped when less than this share is unfinished: dropping copies the rest of the cache.
KEEP = 0.75


@contextmanager
def faster_generate(model: Any) -> Iterator[None]:
    """Let `model.generate` sample by groups, from merged weights, for the length of a `with` block.

    Calls that this module does not serve (beams, assisted decoding, guidance, soft prompts) run
    as they would without.
    """
    generate = model.generate
    # Usually the class's; a method that was put on the object has to come back afterwards.
    of_its_own = vars(model).get("generate")

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
    """Return whether a call of `generate` is text in, sampled or greedy text out, row by row."""
    if named.keys() != {"input_ids", "attention_mask", "generation_config"}:
        return False
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        # PEFT puts soft prompts in while it prepares the inputs of each step.
        return False
    config = whole_generation_config(causal_model(model), named["generation_config"])
    return (
        config.get_generation_mode() in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
        and config.use_cache is not False
        and config.cache_implementation in (None, "dynamic")
        and config.guidance_scale in (None, 1)
        and config.encoder_repetition_penalty in (None, 1)
        # transformers 5.23 tells this processor the padding of every row that it began with.
        and config.repetition_penalty in (None, 1)
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
    # By name they would be taken out of the call of `generate`, which reads this signature.
    **inputs: Any,
) -> Tensor:
    """Decode in `generate(custom_generate=...)`, reading each distinct prompt once.

    The signature is that of transformers 5.23 and 5.24.

    Args:
        input_ids (B, P): prompts, padded on the left.
        logits_processor, stopping_criteria, generation_config: as `generate` made them.
        inputs: read are the empty cache (see `cache_argument`) and `attention_mask`, (B, P) or
            `None`.

    Returns:
        (B, P + longest completion): prompts and completions, the rest padding.
    """
    cache_name = cache_argument(inputs)
    cache = inputs.get(cache_name)
    attention_mask = inputs.get("attention_mask")
    # A state-space model's, for one: its states cannot be picked by row.
    if not isinstance(cache, DynamicCache) or not _can_select_rows(cache):
        return sample_as_transformers(
            model,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            **inputs,
        )
    length = input_ids.shape[1]
    limit = generation_config.max_length
    padding = generation_config.pad_token_id
    if padding is None:
        padding = 0
    room = input_ids.new_full((len(input_ids), limit - length), padding)
    sequences = torch.cat([input_ids, room], dim=1)
    call = partial(model, **{cache_name: cache}, use_cache=True, logits_to_keep=1)
    rows = _Rows.prefilled(model, call, cache, input_ids, attention_mask, limit)
    while True:
        scores = logits_processor(sequences[rows.of, :length], rows.logits.float())
        token = _draw(scores) if generation_config.do_sample else scores.argmax(-1)
        # Rows that are finished go on in the cache until it is worth its copy to drop them.
        token = token.where(rows.unfinished, padding)
        sequences[rows.of, length] = token
        length += 1
        rows.unfinished &= ~stopping_criteria(sequences[rows.of, :length], None)
        if not rows.unfinished.any() or length == limit:
            return sequences[:, :length]
        rows.read(token, length)


def _can_select_rows(cache: DynamicCache) -> bool:
    return all(hasattr(layer, "batch_select_indices") for layer in cache.layers)


class _Rows:
    """The rows that are being written, in the order of the cache.

    Those of one prompt lie side by side.

    `of` holds the row of the rollout that each of them is, (R,), and `unfinished` whether it goes
    on; `logits` holds what comes next, (R, V).
    """

    def __init__(
        self,
        call: Any,
        cache: Cache,
        prefix_cache: SharedPrefixCache | None,
        mask: Tensor | None,
        *,
        of: Tensor,
        position: Tensor,
        logits: Tensor,
    ) -> None:
        self._call = call
        self._cache = cache
        self._prefix_cache = prefix_cache
        self._mask = mask
        self._position = position
        self.of = of
        self.logits = logits
        self.unfinished = torch.ones_like(of, dtype=torch.bool)

    @classmethod
    def prefilled(
        cls,
        model: Any,
        call: Any,
        cache: Cache,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        limit: int,
    ) -> "_Rows":
        """Read each distinct prompt once.

        Args:
            call: the model with its cache bound.
        """
        known = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts, prompt_of = distinct_prompts(input_ids, known)  # (N, P), (B,)
        prompt_of, of = torch.sort(prompt_of, stable=True)
        room = limit - input_ids.shape[1]
        seen = (prompts >= 0).long()
        prefix_cache = SharedPrefixCache.for_model(model)
        # During the prefill it only watches which attention the model asks for.
        watched = {} if prefix_cache is None else {"prefix_cache": prefix_cache}
        output = call(
            input_ids=prompts.clamp(min=0),
            attention_mask=None if attention_mask is None else seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
            **watched,
        )
        mask = None
        padding = (1 - seen).sum(1)  # (N,)
        if prefix_cache is not None and prefix_cache.take(cache, prompt_of, padding, room):
            # A 4D mask counts as prepared already, so that transformers builds none.
            no_mask = seen.new_ones(1, 1, 1, 1)
            call = partial(call, prefix_cache=prefix_cache, attention_mask=no_mask)
        else:
            prefix_cache = None
            cache.batch_select_indices(prompt_of)
            if attention_mask is not None:
                mask = torch.cat([known, known.new_ones(len(known), room)], dim=1)
        return cls(
            call,
            cache,
            prefix_cache,
            mask,
            of=of,
            position=seen.sum(1)[prompt_of],
            logits=output.logits[prompt_of, -1],
        )

    def read(self, token: Tensor, length: int) -> None:
        """Forward the tokens just written, after dropping finished rows if they are many."""
        if self.unfinished.sum() <= KEEP * len(self.of):
            kept = self.unfinished.nonzero()[:, 0]
            self._cache.batch_select_indices(kept)
            if self._prefix_cache is not None:
                self._prefix_cache.keep(kept)
            token = token[kept]
            self._position = self._position[kept]
            self.of = self.of[kept]
            self.unfinished = self.unfinished[kept]
        visible = {} if self._mask is None else {"attention_mask": self._mask[self.of, :length]}
        output = self._call(
            input_ids=token[:, None], position_ids=self._position[:, None], **visible
        )
        self.logits = output.logits[:, -1]
        self._position = self._position + 1


def _draw(scores: Tensor) -> Tensor:
    """Sample from softmax(scores), (B, V) -> (B,).

    One uniform number per row is looked up in the cumulated probabilities.

    Raises:
        GrpoError: the logits are not finite.
    """
    # Sums of 50,000 shares in float32 would be off by more than the rarest tokens' shares; MPS has
    # no float64.
    precision = torch.float32 if scores.device.type == "mps" else torch.float64
    distribution = scores.to(precision).softmax(-1).cumsum(-1)
    if not distribution[:, -1].isfinite().all():
        raise GrpoError(
            "the policy's logits are not finite, so nothing can be sampled: lower the learning "
            "rate."
        )
    uniform = torch.rand(len(scores), 1, dtype=precision, device=scores.device)
    threshold = uniform * distribution[:, -1:]
    token = torch.searchsorted(distribution, threshold, right=True)[:, 0]
    return token.clamp(max=scores.shape[1] - 1)
