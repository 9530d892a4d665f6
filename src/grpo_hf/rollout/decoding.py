"""The decoding loop of grouped sampling: each distinct prompt is read once.

Finished rows are left behind. Settings, logits processors and stopping criteria stay those of
transformers, which lets a caller replace the loop of `generate` (`custom_generate`).

Shapes: B rows, N distinct prompts, V vocabulary.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    cache_utils,
)

from ..errors import NotFiniteError, NotGroupableError
from ..trl_seam import cache_argument
from ..update.packing import distinct_prompts
from .shared_prefix_cache import SharedPrefixCache

# Rows are dropped when less than this share is unfinished: dropping copies the rest of the cache.
KEEP = 0.75

# Tokens of the vocabulary whose shares are summed before they are cumulated.
BLOCK = 512

# What a cache may be made of: keys and values of all tokens or of a window, states along the row
# that are a row's own, or both; nothing else is known to mean something else by a row.
_LAYERS_BY_ROW = (
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    # Beside keys and values, what picks the tokens that are attended to.
    "DynamicIndexedLayer",
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    # Where a layer shares the states of another one, or has none.
    "DummyLayer",
)


def sample_groups(
    model: Any,
    input_ids: Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    shares_prefixes: bool = True,
    # By name they would be taken out of the call of `generate`, which reads this signature.
    **inputs: Any,
) -> Tensor:
    """Decode in `generate(custom_generate=...)`, reading each distinct prompt once.

    The signature is that of transformers 5.23 and 5.24.

    Args:
        input_ids (B, P): prompts, padded on the left.
        logits_processor, stopping_criteria, generation_config: as `generate` made them.
        shares_prefixes: whether rows read the states of their prompt in one place, where a
            `SharedPrefixCache` can serve the model.
        inputs: read are the empty cache (see `cache_argument`) and `attention_mask`, (B, P) or
            `None`.

    Returns:
        (B, P + longest completion): prompts and completions, the rest padding.

    Raises:
        NotGroupableError: the cache holds something whose rows are not known.
        NotFiniteError: the logits that a token is drawn from are not finite.
    """
    cache_name = cache_argument(inputs)
    cache = inputs.get(cache_name)
    attention_mask = inputs.get("attention_mask")
    _check_layers(cache)
    length = input_ids.shape[1]
    limit = generation_config.max_length
    padding = generation_config.pad_token_id
    if padding is None:
        padding = 0
    room = input_ids.new_full((len(input_ids), limit - length), padding)
    sequences = torch.cat([input_ids, room], dim=1)
    call = partial(model, **{cache_name: cache}, use_cache=True, logits_to_keep=1)
    prefix_cache = SharedPrefixCache.for_model(model) if shares_prefixes else None
    rows = _Rows.prefilled(call, cache, prefix_cache, input_ids, attention_mask, limit)
    begins = _begins(logits_processor)
    while True:
        for processor, begin in begins:
            processor.prompt_ignore_length = begin[rows.of]
        scores = logits_processor(sequences[rows.of, :length], rows.logits.float())
        finite = scores.new_ones((), dtype=torch.bool)
        if generation_config.do_sample:
            token, finite = _draw(scores)
        else:
            token = scores.argmax(-1)
        # Rows that are finished go on in the cache until it is worth its copy to drop them.
        token = token.where(rows.unfinished, padding)
        sequences[rows.of, length] = token
        length += 1
        rows.unfinished &= ~stopping_criteria(sequences[rows.of, :length], None)
        # The one number of a token that the host waits for, as in `generate`.
        left = int(torch.where(finite, rows.unfinished.sum(), -1))
        if left < 0:
            raise NotFiniteError(
                "the policy's logits are not finite, so nothing can be sampled: lower the learning "
                "rate."
            )
        if left == 0 or length == limit:
            return sequences[:, :length]
        rows.read(token, length, left)


def _check_layers(cache: Any) -> None:
    """Refuse a cache that is not made of layers whose rows are known.

    Raises:
        NotGroupableError: names what it is made of.
    """
    if cache is None:
        raise NotGroupableError("`generate` gives it no cache")
    if not isinstance(cache, DynamicCache):
        raise NotGroupableError(f"its cache is a {type(cache).__name__}")
    for layer in cache.layers:
        # By type and not by isinstance: a subclass may keep more than its base.
        if type(layer) is not getattr(cache_utils, type(layer).__name__, None):
            raise NotGroupableError(f"its cache has layers of its own ({type(layer).__name__})")
        if type(layer).__name__ not in _LAYERS_BY_ROW:
            raise NotGroupableError(f"its cache is made of {type(layer).__name__}")


def _begins(processors: LogitsProcessorList) -> list[tuple[Any, Tensor]]:
    """List the processors that hold where each row begins, (B,), with what they hold.

    transformers 5.23: a repetition penalty does not count the padding on the left.
    """
    begins = []
    for processor in processors:
        begin = getattr(processor, "prompt_ignore_length", None)
        if isinstance(processor, RepetitionPenaltyLogitsProcessor) and isinstance(begin, Tensor):
            begins.append((processor, begin))
    return begins


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
        call: Any,
        cache: Cache,
        prefix_cache: SharedPrefixCache | None,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        limit: int,
    ) -> "_Rows":
        """Read each distinct prompt once.

        Args:
            call: the model with its cache bound.
            prefix_cache: what may keep the states of the prompts.
        """
        known = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts, prompt_of = distinct_prompts(input_ids, known)  # (N, P), (B,)
        prompt_of, of = torch.sort(prompt_of, stable=True)
        room = limit - input_ids.shape[1]
        seen = (prompts >= 0).long()
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
            # The search by beams picks rows so, whatever a layer keeps for them.
            cache.reorder_cache(prompt_of)
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

    def read(self, token: Tensor, length: int, left: int) -> None:
        """Forward the tokens just written, after dropping finished rows if they are many.

        Args:
            left: how many rows are unfinished.
        """
        if left <= KEEP * len(self.of):
            # Those rows first, in their order; to look for them would be to wait for the device.
            kept = torch.argsort(self.unfinished, descending=True, stable=True)[:left]
            self._cache.reorder_cache(kept)
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


def _draw(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Sample from softmax(scores), (B, V) -> (B,).

    One uniform number per row is looked up in the cumulated probabilities: first among the sums of
    blocks of the vocabulary, then within a block. So only these two are cumulated in float64; in
    float32 sums of 50,000 shares would be off by more than the rarest tokens' shares.

    Returns:
        The tokens, and whether all rows were finite, ().
    """
    # MPS has no float64.
    precision = torch.float32 if scores.device.type == "mps" else torch.float64
    shares = (scores - scores.amax(-1, keepdim=True)).exp_()
    blocks = pad(shares, (0, -shares.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    sums = blocks.sum(-1).to(precision)
    ends = sums.cumsum(-1)
    uniform = torch.rand(len(scores), 1, dtype=precision, device=scores.device)
    # Below the end, however it rounds: behind it lie tokens whose share is 0.
    below = 1 - 4 * torch.finfo(precision).eps
    threshold = uniform.clamp(max=below) * ends[:, -1:]
    block = torch.searchsorted(ends, threshold, right=True).clamp(max=ends.shape[1] - 1)
    of_block = sums.gather(1, block)
    inside = blocks[torch.arange(len(scores), device=scores.device), block[:, 0]]
    inside = inside.to(precision).cumsum(-1)
    # The sum of a block, in float32, and the end of its shares differ by a rounding.
    part = (threshold - (ends.gather(1, block) - of_block)) / of_block
    place = torch.searchsorted(inside, part.clamp(0, below) * inside[:, -1:], right=True)
    token = (block * BLOCK + place)[:, 0].clamp(max=scores.shape[1] - 1)
    return token, ends[:, -1].isfinite().all()
