"""Attention over a packed row in two kernel calls, without padding, masks or copies of prompts.

    a) prompts and suffixes to themselves   causal
    b) suffixes to their prompt             not causal; all suffixes of a prompt are one sequence

A suffix is answered by both, whose outputs o and normalisers ℓ = log Σ exp(scores) join exactly:

    o = o_a exp(ℓ_a - ℓ) + o_b exp(ℓ_b - ℓ),   ℓ = log(exp ℓ_a + exp ℓ_b).

The backward of each call needs the joined o and ℓ and nothing else of the other call, since it
recomputes the weights as exp(scores - ℓ). A window does not fit b, where all suffixes are one
sequence: there one call has the keys of a suffix, its prompt's last ones and its own, gathered.

Shapes: as in packing.py, and H query heads, K key and value heads, D values per head; states are
(T, heads, D) and normalisers (H, T).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..torch_seam import VarlenCall
from .packing import PackedGroups

States = tuple[Tensor, Tensor, Tensor]
Results = tuple[Tensor, Tensor]


class Operator(Protocol):
    """Attention within sequences of a row; `FlashAttention` says what comes in and goes out."""

    def forward(self, states: States, call: VarlenCall, scaling: float | None) -> Results:
        """Return the output and its normalisers."""

    def backward(
        self,
        gradient: Tensor,
        states: States,
        results: Results,
        call: VarlenCall,
        scaling: float | None,
    ) -> States:
        """Return the gradients of query, key and value."""


def attend_by_calls(
    operator: Operator,
    layout: PackedGroups,
    states: States,
    window: int | None,
    scaling: float | None,
) -> Tensor:
    """Attend within prompts, and from suffixes to their prompt and themselves.

    Args:
        states: query (1, H, T, D); key, value (1, K, T, D).
        window: how many positions a token sees, its own included.

    Returns:
        (1, T, H, D).
    """
    query, key, value = (each[0].transpose(0, 1) for each in states)
    way = way_of(operator, layout, window, scaling)
    return _Attention.apply(way, query, key, value)[None]


def way_of(
    operator: Operator, layout: PackedGroups, window: int | None, scaling: float | None
) -> "_TwoCalls | _CallInWindow":
    """Return how a row is attended to; its forward and backward are plain functions."""
    if window is None:
        return _TwoCalls(operator, layout, scaling)
    return _CallInWindow(operator, layout, scaling, window)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: Any, *states: Tensor) -> Tensor:
        output, normaliser = way.forward(states)
        ctx.save_for_backward(*states, output, normaliser)
        ctx.way = way
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *results = ctx.saved_tensors
        return None, *ctx.way.backward(gradient, (query, key, value), tuple(results))


@dataclass(frozen=True)
class _TwoCalls:
    """Calls a and b; see the head of this file."""

    operator: Operator
    layout: PackedGroups
    scaling: float | None

    def forward(self, states: States) -> Results:
        """Return the output and its normalisers."""
        spans = self.layout.spans
        output, normaliser = self.operator.forward(states, spans.itself, self.scaling)
        if spans.together is not None:
            b = self.operator.forward(self._to_prompt(states), spans.together, self.scaling)
            first = spans.first
            a = output[first:], normaliser.T[first:]
            output[first:], joined = join(a, (b[0], b[1].T))
            normaliser[:, first:] = joined.T
        return output, normaliser

    def backward(self, gradient: Tensor, states: States, results: Results) -> States:
        """Return the gradients of the states, from what `forward` returned."""
        spans = self.layout.spans
        grads = self.operator.backward(gradient, states, results, spans.itself, self.scaling)
        if spans.together is not None:
            first = spans.first
            output, normaliser = results
            b = self.operator.backward(
                gradient[first:],
                self._to_prompt(states),
                (output[first:], normaliser[:, first:].contiguous()),
                spans.together,
                self.scaling,
            )
            # A prompt's keys are read by itself and by all of its suffixes.
            shared = self.layout.shared
            # Not +=, which copies what it has added to.
            grads[0][first:].add_(b[0])
            grads[1][:shared].add_(b[1])
            grads[2][:shared].add_(b[2])
        return grads

    def _to_prompt(self, states: States) -> States:
        query, key, value = states
        shared = self.layout.shared
        return query[self.layout.spans.first :], key[:shared], value[:shared]


@dataclass(frozen=True)
class _CallInWindow:
    """One call, in which a suffix has the keys of its prompt's end in front of its own."""

    operator: Operator
    layout: PackedGroups
    scaling: float | None
    window: int

    def forward(self, states: States) -> Results:
        """Return the output and its normalisers."""
        call, sources = self.layout.in_window(self.window)
        return self.operator.forward(_gathered(states, sources), call, self.scaling)

    def backward(self, gradient: Tensor, states: States, results: Results) -> States:
        """Return the gradients of the states, from what `forward` returned."""
        call, sources = self.layout.in_window(self.window)
        # Gathered anew: kept, they would be copies of prompts in every layer.
        of_query, of_keys, of_values = self.operator.backward(
            gradient, _gathered(states, sources), results, call, self.scaling
        )
        return (
            of_query,
            _scattered(of_keys, sources, states[1]),
            _scattered(of_values, sources, states[2]),
        )


def _gathered(states: States, sources: Tensor) -> States:
    query, key, value = states
    return query, key[sources], value[sources]


def _scattered(gathered: Tensor, sources: Tensor, states: Tensor) -> Tensor:
    """Return the sum of each token's gradients, in the dtype of the states."""
    # In float32 at least: all suffixes of a prompt add to the gradients of its keys.
    precise = torch.promote_types(states.dtype, torch.float32)
    total = torch.zeros_like(states, dtype=precise)
    return total.index_add_(0, sources, gathered.to(precise)).to(states.dtype)


def join(a: Results, b: Results) -> Results:
    """Join attention to two sets of keys into attention to both.

    Args:
        a, b: outputs (..., D) with their normalisers (...), in float32.

    Returns:
        The joined output, in float32, and its normaliser.
    """
    output_a, normaliser_a = a
    output_b, normaliser_b = b
    normaliser = torch.logaddexp(normaliser_a, normaliser_b)
    share_a = (normaliser_a - normaliser).exp()[..., None]
    share_b = (normaliser_b - normaliser).exp()[..., None]
    return (output_a * share_a).addcmul_(output_b, share_b), normaliser
