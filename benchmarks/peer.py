"""PyPI's `prefix-grouper` (arXiv 2506.05433) as a side of the update: its layout and attention under TRL's loss.

The package shares prompts as we do but keeps one row per prompt, padded to the longest of them, and brings neither a
trainer nor an attention function for a CPU. So this file does what its README asks of a user: sequences put together
by `concat_input`, positions that restart for each completion, attention through `forward` and results taken apart by
`split_output`. Everything else is TRL's, its fused head included, on the completions' tokens alone; that is the best
that the package can do, since its README materialises all logits.

Its `register_attention` hands a mask of shape (rows, length) to the attention, which only flash attention 2 takes
(without an accelerator there is none); with SDPA a token would see what comes after it. `attention` below therefore
adds causality.
"""

from types import SimpleNamespace
from typing import Any

import torch
import trl
from prefix_grouper import PrefixGrouper
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface


class PrefixGrouperTrainer(trl.GRPOTrainer):
    """TRL's trainer with log-probabilities by prefix-grouper."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        AttentionInterface.register("prefix_grouper_sdpa", attention)
        base = self.model.get_base_model()
        base.set_attn_implementation("prefix_grouper_sdpa")
        base.base_model.register_forward_hook(_completions_only, with_kwargs=True)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """TRL 1.16's signature; (B, P + C) to log-probabilities and entropies, (B, C)."""
        prompts, mask = input_ids[:, :-logits_to_keep], attention_mask[:, :-logits_to_keep]
        completions, scored = input_ids[:, -logits_to_keep:], attention_mask[:, -logits_to_keep:]
        prompts, sizes = torch.unique_consecutive(prompts, dim=0, return_counts=True)
        mask = mask[sizes.cumsum(0) - sizes]
        grouper = PrefixGrouper.from_ungrouped_masks(
            mask, scored, sizes.tolist(), device=input_ids.device
        )
        starts = mask.sum(1).repeat_interleave(sizes)[:, None]  # (B, 1)
        positions = (mask.cumsum(1) - 1, mask, starts + scored.cumsum(1) - 1, scored)
        output = model(
            input_ids=grouper.concat_input(prompts, mask, completions, scored),
            position_ids=grouper.concat_input(*positions),
            attention_mask=input_ids.new_ones(
                1, 1, 1, 1
            ),  # 4D says "prepared already": no mask is built
            shift_labels=completions[scored.bool()][None],
            fused_lm_head=True,
            prefix_grouper=grouper,
        )

        def block(values: Tensor) -> Tensor:
            return values.new_zeros(scored.shape).masked_scatter(scored.bool(), values[0])

        return block(output.log_probs), block(output.entropy) if compute_entropy else None, None


def _completions_only(
    module: nn.Module, positional: Any, named: dict[str, Any], output: Any
) -> Any:
    grouper = named["prefix_grouper"]
    _, _, hidden, mask = grouper.split_output(output.last_hidden_state, include_prefix_last=1)
    output = SimpleNamespace(**output)
    output.last_hidden_state = hidden[:, :-1][mask[:, 1:]][None]  # (1, scored tokens, D)
    return output


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    *,
    prefix_grouper: Any,
    **options: Any,
) -> tuple[Tensor, None]:
    """prefix-grouper's two calls, prompts to themselves and completions to prompts and themselves, with SDPA."""

    def attend(q: Tensor, k: Tensor, v: Tensor, filled: Tensor) -> Tensor:
        seen = _causal(prefix_grouper, filled, q.shape[2])
        output = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=seen,
            is_causal=seen is None,
            scale=options.get("scaling"),
            enable_gqa=True,
        )
        return output.transpose(1, 2)

    return prefix_grouper.forward(attend, query, key, value), None


def _causal(grouper: Any, filled: Tensor, queries: int) -> Tensor | None:
    """(rows, keys) to (rows, 1, queries, keys), built by the first layer for all; `None` for plainly causal."""
    cache: dict[tuple[int, int], Tensor | None] = grouper.__dict__.setdefault("causal_masks", {})
    keys = filled.shape[1]
    if (queries, keys) not in cache:
        past = torch.ones(queries, keys, dtype=torch.bool, device=filled.device).tril(
            keys - queries
        )
        own = torch.eye(keys, dtype=torch.bool, device=filled.device)[
            keys - queries :
        ]  # padding sees itself: no NaN
        plain = queries == keys and bool(filled.all())
        cache[queries, keys] = None if plain else (past & filled[:, None] | own)[:, None]
    return cache[queries, keys]
