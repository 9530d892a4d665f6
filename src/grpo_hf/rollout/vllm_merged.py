"""The weights of a policy with its adapter merged in, for an engine that holds no adapters.

TRL 1.16 merges in place, sends every weight, and unmerges in place. That rounds, so the base is not
the base any more (in bfloat16 by 9.8e-4 after six times). Here copies are merged, one layer at a
time, and not a bit of the base is written.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


@contextmanager
def merged_copies(model: Any) -> Iterator[None]:
    """Let a PEFT model show merged copies for a block, where it lists its parameters.

    Inside, `merge_adapter` and `unmerge_adapter` do nothing.

    Args:
        model: a PEFT model whose weights are whole.
    """
    listed = model.named_parameters

    def named(*positional: Any, **keywords: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return _named_weights(model, listed(*positional, **keywords))

    with (
        patch.object(model, "merge_adapter", _nothing),
        patch.object(model, "unmerge_adapter", _nothing),
        patch.object(model, "named_parameters", named),
    ):
        yield


def _named_weights(
    model: Any, weights: Iterator[tuple[str, nn.Parameter]]
) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield names and weights, those of adapted layers from merged copies."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            layers[name] = module
    merged: Any = None
    merged_name = ""
    for name, weight in list(weights):
        layer, is_base, part = name.partition(".base_layer.")
        if not is_base or layer not in layers:
            yield name, weight
            continue
        # The parts of a layer are neighbours, so one copy is in memory at a time.
        if layer != merged_name:
            merged, merged_name = _merged(layers[layer]), layer
        yield name, merged.get_base_layer().get_parameter(part)


@torch.no_grad()
def _merged(layer: Any) -> Any:
    """Return a copy of a layer with its active adapters in its weights."""
    copied = copy.deepcopy(layer)
    copied.merge()
    return copied


def _nothing(*_: Any, **__: Any) -> None:
    """Stand for merging in place."""
