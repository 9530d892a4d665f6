"""Put PyPI's `prefix-grouper` (arXiv 2506.05433) under TRL's loss, as a third side of the update.

The package also reads a shared prompt once. It keeps one row per prompt, padded to the longest row,
and has no trainer. So this file does what the package's README tells its users to do: it builds the
sequences with `concat_input`, restarts the positions for each completion, computes attention with
`forward`, and separates the results with `split_output`. Everything else is TRL's, with the fused
head on the tokens of the completions only. This is the best case for the package: the example in
its README computes all logits.

The package's `register_attention` passes a mask of shape (rows, length) to the attention. Only
flash attention 2 takes such a mask, and it needs an accelerator. With SDPA, a token would see the
tokens after it. So `attention` below makes a causal mask.
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
    """PrefixGrouperTrainer is TRL's trainer with log-probabilities by prefix-grouper."""

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
        """Return log-probabilities and entropies of the completions, (B, C); TRL 1.16's signature.

        Args:
            input_ids (B, P + C): prompts and completions.
            attention_mask (B, P + C): 0 on padding.
            logits_to_keep: C.
        """
        completions = input_ids[:, -logits_to_keep:]
        scored = attention_mask[:, -logits_to_keep:]
        # The rows of a group follow each other and have the same prompt.
        prompts, sizes = torch.unique_consecutive(
            input_ids[:, :-logits_to_keep], dim=0, return_counts=True
        )
        # The first row of each group.
        mask = attention_mask[sizes.cumsum(0) - sizes, :-logits_to_keep]
        grouper = PrefixGrouper.from_ungrouped_masks(
            mask, scored, sizes.tolist(), device=input_ids.device
        )
        starts = mask.sum(1).repeat_interleave(sizes)[:, None]  # (B, 1)
        # Padding gets some position too, which no token sees.
        positions = (mask.cumsum(1) - 1, mask, starts + scored.cumsum(1) - 1, scored)
        output = model(
            input_ids=grouper.concat_input(prompts, mask, completions, scored),
            position_ids=grouper.concat_input(*positions),
            # transformers takes a mask of four dimensions as it is, and builds none of its own.
            attention_mask=input_ids.new_ones(1, 1, 1, 1),
            shift_labels=completions[scored.bool()][None],
            fused_lm_head=True,
            prefix_grouper=grouper,
        )

        def block(values: Tensor) -> Tensor:
            """Put the values of the scored tokens into a padded block, (B, C)."""
            return values.new_zeros(scored.shape).masked_scatter(scored.bool(), values[0])

        entropy = block(output.entropy) if compute_entropy else None
        # The third value is TRL's auxiliary loss of a mixture of experts.
        return block(output.log_probs), entropy, None


def _completions_only(
    module: nn.Module, positional: Any, named: dict[str, Any], output: Any
) -> Any:
    """Keep the hidden states that predict a token of a completion; a hook of the body."""
    grouper = named["prefix_grouper"]
    _, _, hidden, mask = grouper.split_output(output.last_hidden_state, include_prefix_last=1)
    # The model reads fields of the output, and this one can be changed.
    output = SimpleNamespace(**output)
    # With its prompt's last token in front, position t of a completion predicts token t + 1.
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
    """Compute attention with SDPA, in the two calls that prefix-grouper makes.

    In the first call prompts see themselves; in the second one completions see their prompt and
    themselves.
    """

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
    """Return the mask of a call, or None if SDPA's own causal mask is enough.

    Args:
        filled (rows, keys): 0 on padding.
        queries: the number of queries of a row.

    Returns:
        A mask (rows, 1, queries, keys), True where a query sees a key.
    """
    # All layers need the same masks, so the first one keeps them in the grouper.
    cache: dict[tuple[int, int], Tensor | None] = grouper.__dict__.setdefault("causal_masks", {})
    keys = filled.shape[1]
    if (queries, keys) not in cache:
        past = torch.ones(queries, keys, dtype=torch.bool, device=filled.device).tril(
            keys - queries
        )
        # Padding sees itself: a softmax over nothing would be NaN.
        own = torch.eye(keys, dtype=torch.bool, device=filled.device)[keys - queries :]
        is_plain = queries == keys and bool(filled.all())
        cache[queries, keys] = None if is_plain else (past & filled[:, None] | own)[:, None]
    return cache[queries, keys]
