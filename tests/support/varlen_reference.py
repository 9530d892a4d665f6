"""Attention within sequences of a row, with the signature of the kernel on CUDA, in plain torch.

It refuses what the kernel does not serve, so that what runs on it would run there: ends that are
not int32, rows whose last dimension is not contiguous, lengths that are too small, a normaliser
that is a view, and sequences without keys, whose normaliser the kernel sets to +∞.
"""

import torch
from torch import Tensor

from grpo_hf.torch_seam import VarlenCall


class ReferenceOperator:
    """Sequence by sequence; `calls` keeps what was asked for."""

    def __init__(self) -> None:
        self.calls: list[VarlenCall] = []

    def forward(self, states, call, scaling):
        query, key, value = states
        self.calls.append(call)
        check(states, call)
        output = torch.empty_like(query)
        normaliser = query.new_empty(query.shape[1], len(query))
        for q, k in sequences(call):
            scores = self._scores(query[q], key[k], call, scaling)
            normaliser[:, q] = scores.logsumexp(-1)
            weights = (scores - normaliser[:, q, None]).exp()
            output[q] = torch.einsum("hqk,khd->qhd", weights, widened(value[k], query))
        return output, normaliser

    def backward(self, gradient, states, results, call, scaling):
        """The weights are exp(scores - normaliser), whoever else the normaliser counts."""
        query, key, value = states
        output, normaliser = results
        check(states, call)
        assert normaliser.is_contiguous() and normaliser.shape == (query.shape[1], len(query))
        assert len(gradient) == len(output) == len(query)
        copies = query.shape[1] // key.shape[1]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for q, k in sequences(call):
            weights = (self._scores(query[q], key[k], call, scaling) - normaliser[:, q, None]).exp()
            of_weights = torch.einsum("qhd,khd->hqk", gradient[q], widened(value[k], query))
            mean = (gradient[q] * output[q]).sum(-1).T[..., None]
            of_scores = weights * (of_weights - mean) * scale
            grads[0][q] = torch.einsum("hqk,khd->qhd", of_scores, widened(key[k], query))
            of_key = torch.einsum("hqk,qhd->khd", of_scores, query[q])
            of_value = torch.einsum("hqk,qhd->khd", weights, gradient[q])
            grads[1][k] = of_key.unflatten(1, (-1, copies)).sum(2)
            grads[2][k] = of_value.unflatten(1, (-1, copies)).sum(2)
        return grads

    @staticmethod
    def _scores(query: Tensor, key: Tensor, call: VarlenCall, scaling: float | None) -> Tensor:
        """(H, q, k), -∞ for what is not seen; the last query belongs to the last key."""
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = torch.einsum("qhd,khd->hqk", query, widened(key, query)) * scale
        place = torch.arange(len(query))[:, None] + len(key) - len(query)
        behind = place - torch.arange(len(key))
        hidden = torch.zeros_like(behind, dtype=torch.bool)
        if call.is_causal or call.window is not None:
            hidden = behind < 0
        if call.window is not None:
            hidden = hidden | (behind >= call.window)
        return scores.masked_fill(hidden, -torch.inf)


def widened(states: Tensor, query: Tensor) -> Tensor:
    return states.repeat_interleave(query.shape[1] // states.shape[1], dim=1)


def sequences(call: VarlenCall) -> list[tuple[slice, slice]]:
    """Where each sequence of queries and its keys lie."""
    q, k = call.ends_q.tolist(), call.ends_k.tolist()
    assert len(q) == len(k)
    return [(slice(q[i], q[i + 1]), slice(k[i], k[i + 1])) for i in range(len(q) - 1)]


def check(states: tuple[Tensor, Tensor, Tensor], call: VarlenCall) -> None:
    query, key, value = states
    assert len(key) == len(value)
    assert all(each.stride(-1) == 1 and each.ndim == 3 for each in states)
    assert all(
        ends.dtype == torch.int32 and ends.is_contiguous() for ends in (call.ends_q, call.ends_k)
    )
    assert (call.ends_q[0], call.ends_k[0]) == (0, 0)
    assert (call.ends_q[-1], call.ends_k[-1]) == (len(query), len(key))
    lengths_q, lengths_k = call.ends_q.diff(), call.ends_k.diff()
    assert lengths_q.min() > 0, "a sequence without queries"
    assert lengths_k.min() > 0, "a sequence without keys"
    assert call.longest_q == lengths_q.max()
    assert call.longest_k == lengths_k.max()
    assert call.window is None or not call.is_causal
