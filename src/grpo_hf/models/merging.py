"""An adapter folded into a copy of its base, measured to compute what both computed."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from ..errors import ModelError
from .adapters import as_base

# In float32 the rounding of a merge is far below this share of what the adapter does.
_MOST_ERROR = 0.05
# Logits of a model in float32 differ so much for the order of sums alone.
_NOISE = 1e-3


@dataclass(frozen=True)
class Merged:
    """A model with an adapter in its weights.

    Args:
        model: without any adapter.
        error: how far its logits are from those of base and adapter, as a share of what the adapter
            changes; 0 where that is nothing.
        lost: the share of the weights that the adapter changes by less than they can show in their
            precision, so that they stay what they were.
    """

    model: Any
    error: float
    lost: float


def merge(model: PeftModel, token_ids: list[int]) -> Merged:
    """Fold the adapter of a model into its weights; the model is used up.

    Args:
        token_ids: of a text on which base, adapter and the merged weights are compared.

    Raises:
        ModelError: the adapter cannot be in the weights, or they would compute something else.
    """
    kind = str(getattr(model.active_peft_config.peft_type, "value", model.active_peft_config))
    if not hasattr(model, "merge_and_unload"):
        raise _not_mergeable(kind, "it is no change of weights")
    read = torch.tensor([token_ids], device=model.device)
    before = _logits(model, read)
    with as_base(model):
        change = (before - _logits(model, read)).abs().max().item()
    lost = _lost_in_rounding(model)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, ValueError, TypeError) as reason:
        raise _not_mergeable(kind, str(reason).partition("\n")[0]) from reason
    _untie_where_they_differ(merged)
    difference = (before - _logits(merged, read)).abs().max().item()
    error = difference / change if change else 0.0
    exact = all(weight.dtype == torch.float32 for weight in merged.parameters())
    if not difference < float("inf") or (
        exact and error > _MOST_ERROR and difference > _NOISE * before.abs().max().item()
    ):
        raise _not_mergeable(kind, f"logits would differ by {difference:.2g}")
    return Merged(merged, error, lost)


def _logits(model: Any, read: Tensor) -> Tensor:
    with torch.no_grad():
        return model(read).logits.float()


@torch.no_grad()
def _lost_in_rounding(model: PeftModel) -> float:
    """Return which share of the weights that an adapter changes stays what it was, by rounding.

    In float32 that is next to none. In bfloat16 a weight has 8 bits, and the changes of a short run
    are often below half of its last one.
    """
    changed = lost = 0
    for layer in model.modules():
        if not (isinstance(layer, BaseTunerLayer) and hasattr(layer, "get_delta_weight")):
            continue
        weight = layer.get_base_layer().weight
        for name in layer.active_adapters:
            # An adapter of several need not be on each of their layers.
            if name not in getattr(layer, "lora_A", ()) or weight.dtype == torch.float32:
                continue
            delta = layer.get_delta_weight(name)
            stays = (weight.float() + delta.float()).to(weight.dtype) == weight
            changed += int((delta != 0).sum())
            lost += int(((delta != 0) & stays).sum())
    return lost / changed if changed else 0.0


def _not_mergeable(kind: str, reason: str) -> ModelError:
    return ModelError(
        f"this adapter ({kind}) cannot be folded into the weights of its base ({reason}). Serve it "
        "as it is, as an adapter beside the base."
    )


def _untie_where_they_differ(model: Any) -> None:
    """Let the configuration say that input and output embeddings are two weights, if they are.

    An adapter on one of them ends that they are one.
    """
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if first is None or last is None or first.weight is last.weight:
        return
    config = model.config.get_text_config()
    if config.tie_word_embeddings and not torch.equal(first.weight, last.weight):
        config.tie_word_embeddings = False
        model.config.tie_word_embeddings = False
