"""The floating-point operations that an update with a frozen base and a LoRA adapter cannot do without.

For T distinct tokens of which S predict one that is scored (a multiplication and an addition are two operations):

    body        2 · N · T       forward of the reference, forward of the policy, backward to the inputs: 3 times
    head        2 · V · D · S   two forwards, and one product for the gradient: 3 times
    adapter     2 · A · T       forward of the policy, and twice in the backward (inputs, weights): 3 times
    attention   4 · H · d · K   two forwards, and twice that in the backward (4 products instead of 2): 4 times

with N weights in the linear layers of the body, A in the adapter, V × D in the head, H heads of size d, and K the pairs
of a query and a key that it sees. Weights of the base get no gradient. Left out, because small: norms, activations,
softmax, the optimizer. Counted though an update could do without: the first layer's gradient to its inputs, the last
layer on tokens that predict nothing. Recomputation and padding are overhead, not work, and not counted.

Without a reference pass (β = 0) the numbers are 2, 2, 3 and 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: weights of the body and the adapter, V × D of the head, H × d of one layer, layers."""

    body: int
    adapter: int
    head: int
    attention: int
    layers: int

    @classmethod
    def of(cls, model: Any) -> "Shape":
        """Read off a `PeftModel` whose adapter is on all linear layers of the body."""
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        config = model.config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            body=sum(layer.get_base_layer().weight.numel() for layer in layers),
            adapter=sum(part.numel() for name, part in model.named_parameters() if "lora_" in name),
            head=model.get_base_model().get_output_embeddings().weight.numel(),
            attention=config.num_attention_heads * size,
            layers=config.num_hidden_layers,
        )


def seen_pairs(prompt: int, completions: Sequence[int]) -> int:
    """Pairs of a query and a key that it sees, in a group whose prompt is read once.

    The shared part is the prompt without its last token; each completion's own part is that token and all of the
    completion but its last.
    """
    shared = prompt - 1
    own = sum(length * shared + length * (length + 1) // 2 for length in completions)
    return shared * (shared + 1) // 2 + own


def useful_flops(
    shape: Shape, groups: Sequence[tuple[int, Sequence[int]]], *, reference: bool = True
) -> int:
    """Operations of an update over distinct tokens, as the docstring above counts them.

    Args:
        groups: length of the prompt, and of each of its completions.
        reference (`bool`): whether there is a reference pass.
    """
    scored = sum(sum(completions) for _, completions in groups)
    tokens = scored + sum(prompt - 1 for prompt, _ in groups)
    pairs = sum(seen_pairs(prompt, completions) for prompt, completions in groups)
    return (
        (2 + reference) * (2 * shape.body * tokens + 2 * shape.head * scored)
        + 3 * 2 * shape.adapter * tokens
        + (3 + reference) * 4 * shape.attention * shape.layers * pairs
    )
