"""State along a packed row: a suffix goes on from where its prompt ended.

Convolutions and linear attention read a row from left to right and carry a state. In a packed row
that state has to begin anew at every prompt, and at every suffix with the state that its prompt
ended in. `read_layouts_of_states` puts the question of update/packed_attention.py in front of the
functions that carry state: is there a layout in the call? With one, the prompts go first, and each
suffix gets its prompt's state as its own initial state; gradients flow back through it. Without
one, the function that was there answers.

Shapes: as in update/packing.py, and D channels of a convolution, H heads, K columns of a kernel.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..trl_seam import STATE_FUNCTIONS, StateKind, files_of_layers
from .packing import PackedGroups


def read_layouts_of_states(model: nn.Module) -> None:
    """Let the functions with which a model carries state along a row read layouts.

    transformers 5.23 gives them the keyword arguments of the model's call, so they get the layout
    as attention functions do. They are functions of the file that the model's layers stand in; a
    second model of that file finds them as the first one left them.

    Args:
        model: its layers are looked at, not changed.
    """
    for file in files_of_layers(model):
        for name, kind in STATE_FUNCTIONS.items():
            original = getattr(file, name, None)
            if original is not None and not hasattr(original, "reads_layouts"):
                setattr(file, name, _reading(original, _BY_KIND[kind]))


def _reading(original: Callable[..., Any], with_layout: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def function(*positional: Any, layout: PackedGroups | None = None, **named: Any) -> Any:
        if layout is None:
            return original(*positional, **named)
        return with_layout(original, layout, *positional, **named)

    function.reads_layouts = True  # type: ignore[attr-defined]
    return function


def _convolve(
    original: Callable[..., Tensor],
    layout: PackedGroups,
    states: Tensor,
    weight: Tensor,
    *positional: Any,
    **named: Any,
) -> Tensor:
    """Convolve each sequence with what came before it in its own text.

    One call serves the row: in front of each sequence stand the K - 1 inputs that its first output
    reads, zeros before a prompt and the prompt's last inputs before a suffix.

    Args:
        states (1, D, T), weight (D, K).

    Returns:
        (1, D, T).
    """
    layout.convolutions.append(tuple(weight.shape))
    sources, outputs = layout.with_context(weight.shape[-1] - 1)
    blank = states.new_zeros(*states.shape[:2], 1)
    states = torch.cat([states, blank], dim=-1)[:, :, sources]
    return original(states, weight, *positional, **named)[:, :, outputs]


def _apply_delta_rule(
    original: Callable[..., tuple[Tensor, Tensor | None]],
    layout: PackedGroups,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    **named: Any,
) -> tuple[Tensor, None]:
    """Apply the gated delta rule (arXiv 2412.06464) within each text.

    Padding has no value, no step size β and no decay g, so the state passes through it.

    Args:
        query, key, value ((1, T, H, .)); g, beta ((1, T, H)).

    Returns:
        (1, T, H, .), and no final state, which only a cache would keep.
    """
    for name in ("initial_state", "output_final_state", "cu_seqlens"):
        named.pop(name, None)
    prompts, suffixes = _split(layout, query, key, value, g, beta)
    output = prompts[2]
    initial = None
    # Not every kernel takes a length of 0.
    if layout.prompts.longest:
        output, final = original(*prompts, output_final_state=True, **named)
        assert final is not None, "the final state was asked for"
        initial = final[layout.prompt_of]
    continued, _ = original(*suffixes, initial_state=initial, output_final_state=False, **named)
    return _joined(layout, output, continued), None


def _scan(
    original: Callable[..., Any],
    layout: PackedGroups,
    states: Tensor,
    step_size: Tensor,
    decay: Tensor,
    *written_and_read: Tensor,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    **named: Any,
) -> Tensor:
    """Run Mamba 2's scan (arXiv 2405.21060) within each text.

    Args:
        states (1, T, H, .), step_size (1, T, H), decay (H,).
        written_and_read: how a state is written and read, ((1, T, groups, .)) each.
        dt_bias, dt_softplus, dt_limit: what the function does to step sizes before it uses them.

    Returns:
        (1, T, H, .).
    """
    for name in ("initial_states", "return_final_states", "seq_idx", "cu_seqlens"):
        named.pop(name, None)
    # Done here, because a step size of 0 is what makes padding keep a state, and a bias or a lower
    # limit would change it.
    if dt_bias is not None:
        step_size = step_size + dt_bias.to(step_size.dtype)
    if dt_softplus:
        step_size = softplus(step_size)
    step_size = step_size.clamp(*dt_limit)
    prompts, suffixes = _split(layout, states, step_size, *written_and_read)
    # The function takes it behind the step sizes; it is the same for all tokens.
    prompts.insert(2, decay)
    suffixes.insert(2, decay)
    output = prompts[0]
    initial = None
    if layout.prompts.longest:
        output, final = original(*prompts, return_final_states=True, initial_states=None, **named)
        initial = final[layout.prompt_of]
    continued = original(*suffixes, return_final_states=False, initial_states=initial, **named)
    return _joined(layout, output, continued)


def _do_not_fuse(original: Callable[..., Any], layout: PackedGroups, *_: Any, **__: Any) -> None:
    """Decline, as the function without its kernel does: the parts are called one by one then."""


_BY_KIND: dict[StateKind, Callable[..., Any]] = {
    "convolution": _convolve,
    "delta rule": _apply_delta_rule,
    "scan": _scan,
    "fused scan": _do_not_fuse,
}


def _split(layout: PackedGroups, *inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Cut each (1, T, ...) into (N, longest prompt, ...) and (M, longest suffix, ...), zero-padded.

    Returns:
        The parts of prompts, and those of suffixes.
    """
    prompts = []
    suffixes = []
    for each in inputs:
        prompts.append(layout.prompts.rows_of(each[0, : layout.shared]))
        suffixes.append(layout.suffixes.rows_of(each[0, layout.shared :]))
    return prompts, suffixes


def _joined(layout: PackedGroups, in_prompts: Tensor, in_suffixes: Tensor) -> Tensor:
    """Undo `_split`."""
    of_prompts = layout.prompts.tokens_of(in_prompts)
    return torch.cat([of_prompts, layout.suffixes.tokens_of(in_suffixes)])[None]
