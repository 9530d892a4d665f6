"""Count the floating-point operations that an update with a frozen base and a LoRA adapter needs.

T distinct tokens are read, and S of them predict a token that is scored. A multiplication and an
addition are two operations.

    body        2 · N · T       3 times: reference forward, policy forward, backward to the inputs
    head        2 · V · D · S   3 times: two forwards, and one product for the gradient
    adapter     2 · A · T       3 times: policy forward, and a backward to inputs and to weights
    attention   4 · H · d · K   4 times: two forwards, and a backward of 4 products instead of 2

N is the number of weights in the linear layers of the body, A the number of weights in the adapter,
V × D the size of the head, H the number of attention heads, d the size of a head, and K the number
of pairs of a query and a key that it sees.

The weights of the base get no gradient. Small terms are left out: norms, activations, softmax, the
optimizer. Two terms are counted although an update could do without them: the first layer's
gradient to its inputs, and the last layer on tokens that predict nothing. Recomputation and padding
are overhead, not work, and are not counted.

Without a reference pass (β = 0) the factors are 2, 2, 3 and 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer

# A multiplication and an addition.
OPERATIONS_PER_WEIGHT = 2

# Two products of the forward (queries with keys, probabilities with values), 2 operations each.
OPERATIONS_PER_PAIR = 4


@dataclass(frozen=True)
class Shape:
    """Shape is the sizes of a model that the operations depend on.

    Attributes:
        body: weights of the linear layers, N.
        adapter: weights of the adapter, A.
        head: weights of the head, V × D.
        attention: width of the attention of one layer, H × d.
        layers: number of layers.
    """

    body: int
    adapter: int
    head: int
    attention: int
    layers: int

    @classmethod
    def of(cls, model: Any) -> "Shape":
        """Return the shape of a `PeftModel` whose adapter is on all linear layers of the body."""
        body = 0
        for module in model.modules():
            if isinstance(module, LoraLayer):
                body += module.get_base_layer().weight.numel()
        adapter = 0
        for name, weight in model.named_parameters():
            if "lora_" in name:
                adapter += weight.numel()
        config = model.config.get_text_config()
        # Not every configuration names the size of a head.
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            body=body,
            adapter=adapter,
            head=model.get_base_model().get_output_embeddings().weight.numel(),
            attention=config.num_attention_heads * size,
            layers=config.num_hidden_layers,
        )


def seen_pairs(prompt: int, completions: Sequence[int]) -> int:
    """Return the number of pairs of a query and a key that it sees, in one group.

    The prompt is read once for the whole group. Its last token predicts the first token of each
    completion, so it belongs to the completions, and each completion reads its own copy. The last
    token of a completion predicts nothing and is not read.

    Args:
        prompt: the length of the prompt.
        completions: the lengths of the completions.
    """
    shared = prompt - 1
    # Attention is causal: token i of a sequence sees i tokens, itself included.
    pairs = shared * (shared + 1) // 2
    for length in completions:
        pairs += length * shared + length * (length + 1) // 2
    return pairs


def useful_flops(
    shape: Shape, groups: Sequence[tuple[int, Sequence[int]]], *, reference: bool = True
) -> int:
    """Return the number of operations of an update, by the formulas of the text above.

    Args:
        groups: the length of each prompt, and the lengths of its completions.
        reference (`bool`): whether there is a reference pass.
    """
    scored = 0
    tokens = 0
    pairs = 0
    for prompt, completions in groups:
        scored += sum(completions)
        # As in `seen_pairs`, the shared part is the prompt without its last token.
        tokens += prompt - 1 + sum(completions)
        pairs += seen_pairs(prompt, completions)
    forwards = 2 if reference else 1
    body = OPERATIONS_PER_WEIGHT * shape.body * tokens
    head = OPERATIONS_PER_WEIGHT * shape.head * scored
    adapter = OPERATIONS_PER_WEIGHT * shape.adapter * tokens
    attention = OPERATIONS_PER_PAIR * shape.attention * shape.layers * pairs
    # The backward costs one forward for body and head, and two for adapter and attention. The
    # reference has no adapter.
    return (forwards + 1) * (body + head) + 3 * adapter + (forwards + 2) * attention
