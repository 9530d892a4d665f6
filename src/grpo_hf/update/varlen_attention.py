"""Attention over a packed row in three kernel calls, without padding, masks or copies of prompts.

    a) prompts to themselves        causal
    b) suffixes to their prompt     not causal; all suffixes of a prompt are one sequence
    c) suffixes to themselves       causal

A suffix is answered by b and c, whose outputs o and normalisers ℓ = log Σ exp(scores) join exactly:

    o = o_b exp(ℓ_b - ℓ) + o_c exp(ℓ_c - ℓ),   ℓ = log(exp ℓ_b + exp ℓ_c).

The backward of each call needs the joined o and ℓ and nothing else of the other call, since it
recomputes the weights as exp(scores - ℓ). A window does not fit b, where all suffixes are one
sequence: there the keys of a suffix are its prompt's last ones, gathered, and its own.

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
) -> "_ThreeCalls | _CallsInWindow":
    """Return how a row is attended to; its forward and backward are plain functions."""
    if window is None:
        return _ThreeCalls(operator, layout, scaling)
    return _CallsInWindow(operator, layout, scaling, window)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: Any, *states: Tensor) -> Tensor:
        output, normalisers = way.forward(states)
        ctx.save_for_backward(*states, output, *normalisers)
        ctx.way = way
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *normalisers = ctx.saved_tensors
        return None, *ctx.way.backward(gradient, (query, key, value), output, normalisers)


@dataclass(frozen=True)
class _Prompts:
    """Prompts to themselves, call a, of a row that is attended to in one way or the other."""

    operator: Operator
    layout: PackedGroups
    scaling: float | None

    def _prompts_forward(self, states: States, call: VarlenCall) -> Results:
        return self.operator.forward(self._of_prompts(states), call, self.scaling)

    def _prompts_backward(
        self, gradient: Tensor, states: States, results: Results, call: VarlenCall
    ) -> States:
        """Return the gradients of the states of prompts.

        Args:
            gradient, states: of the whole row.
            results: the output of the whole row, and the normalisers of prompts.
        """
        output, normalisers = results
        shared = self.layout.shared
        return self.operator.backward(
            gradient[:shared],
            self._of_prompts(states),
            (output[:shared], normalisers),
            call,
            self.scaling,
        )

    def _of_prompts(self, states: States) -> States:
        query, key, value = states
        shared = self.layout.shared
        return query[:shared], key[:shared], value[:shared]


@dataclass(frozen=True)
class _ThreeCalls(_Prompts):
    """Calls a, b and c; see the head of this file."""

    def forward(self, states: States) -> tuple[Tensor, list[Tensor]]:
        """Return the output, and the normalisers of suffixes and then of prompts, if any."""
        spans = self.layout.spans
        own, normaliser = self.operator.forward(
            self._of_suffixes(states), spans.suffixes, self.scaling
        )
        if spans.prompts is None or spans.together is None:
            return own, [normaliser]
        b, normaliser_b = self.operator.forward(
            self._to_prompt(states), spans.together, self.scaling
        )
        # Suffixes of prompts that share nothing come first, and are answered by c alone.
        alone = spans.alone
        joined, normaliser_of_both = join((b, normaliser_b.T), (own[alone:], normaliser.T[alone:]))
        own = torch.cat([own[:alone], joined.to(own.dtype)])
        normaliser = torch.cat([normaliser[:, :alone], normaliser_of_both.T], dim=1)
        prompts, of_prompts = self._prompts_forward(states, spans.prompts)
        return torch.cat([prompts, own]), [normaliser, of_prompts]

    def backward(
        self, gradient: Tensor, states: States, output: Tensor, normalisers: list[Tensor]
    ) -> States:
        """Return the gradients of the states, from what `forward` returned."""
        spans = self.layout.spans
        shared = self.layout.shared
        own = self.operator.backward(
            gradient[shared:],
            self._of_suffixes(states),
            (output[shared:], normalisers[0]),
            spans.suffixes,
            self.scaling,
        )
        if spans.prompts is None or spans.together is None:
            return own
        first = shared + spans.alone
        b = self.operator.backward(
            gradient[first:],
            self._to_prompt(states),
            (output[first:], normalisers[0][:, spans.alone :].contiguous()),
            spans.together,
            self.scaling,
        )
        results = (output, normalisers[1])
        prompts = self._prompts_backward(gradient, states, results, spans.prompts)
        own[0][spans.alone :] += b[0]
        # A prompt's keys are read by itself and by all of its suffixes.
        return (
            torch.cat([prompts[0], own[0]]),
            torch.cat([prompts[1] + b[1], own[1]]),
            torch.cat([prompts[2] + b[2], own[2]]),
        )

    def _to_prompt(self, states: States) -> States:
        query, key, value = states
        shared = self.layout.shared
        return query[shared + self.layout.spans.alone :], key[:shared], value[:shared]

    def _of_suffixes(self, states: States) -> States:
        query, key, value = states
        shared = self.layout.shared
        return query[shared:], key[shared:], value[shared:]


@dataclass(frozen=True)
class _CallsInWindow(_Prompts):
    """Prompts to themselves, and suffixes to the end of their prompt and to themselves."""

    window: int

    def forward(self, states: States) -> tuple[Tensor, list[Tensor]]:
        """Return the output, and the normalisers of suffixes and then of prompts, if any."""
        spans, _ = self.layout.in_window(self.window)
        own, normaliser = self.operator.forward(
            self._of_suffixes(states), spans.suffixes, self.scaling
        )
        if spans.prompts is None:
            return own, [normaliser]
        prompts, of_prompts = self._prompts_forward(states, spans.prompts)
        return torch.cat([prompts, own]), [normaliser, of_prompts]

    def backward(
        self, gradient: Tensor, states: States, output: Tensor, normalisers: list[Tensor]
    ) -> States:
        """Return the gradients of the states, from what `forward` returned."""
        spans, sources = self.layout.in_window(self.window)
        shared = self.layout.shared
        own = self.operator.backward(
            gradient[shared:],
            self._of_suffixes(states),
            (output[shared:], normalisers[0]),
            spans.suffixes,
            self.scaling,
        )
        # In float32 at least: all suffixes of a prompt add to the gradients of its keys.
        precise = torch.promote_types(states[1].dtype, torch.float32)
        of_keys = torch.zeros_like(states[1], dtype=precise)
        of_keys.index_add_(0, sources, own[1].to(precise))
        of_values = torch.zeros_like(states[2], dtype=precise)
        of_values.index_add_(0, sources, own[2].to(precise))
        of_queries = own[0]
        if spans.prompts is not None:
            results = (output, normalisers[1])
            prompts = self._prompts_backward(gradient, states, results, spans.prompts)
            of_queries = torch.cat([prompts[0], of_queries])
            of_keys[:shared] += prompts[1]
            of_values[:shared] += prompts[2]
        return of_queries, of_keys.to(states[1].dtype), of_values.to(states[2].dtype)

    def _of_suffixes(self, states: States) -> States:
        # Gathered anew in the backward: kept, they would be copies of prompts in every layer.
        query, key, value = states
        _, sources = self.layout.in_window(self.window)
        return query[self.layout.shared :], key[sources], value[sources]


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
