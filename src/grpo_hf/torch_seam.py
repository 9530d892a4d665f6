"""The seam to torch: its operators that have no public function, or none that tells all of it.

As in trl_seam.py, each stands in a small function that says what was read, in torch 2.13, and
tests/test_torch_seam.py compares each of them with what it should compute.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor


def cpu_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, *, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Return attention and the log of its normaliser, by torch's kernel for a CPU.

    `scaled_dot_product_attention` runs this kernel on a CPU, and drops the normaliser. It takes
    fewer key heads than query heads.

    Args:
        query (N, H, S, D); key, value (N, K, T, D).

    Returns:
        (N, H, S, D) and (N, H, S).
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, scale=scaling
    )


def cpu_attention_backward(
    gradient: Tensor,
    states: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, Tensor],
    scaling: float | None,
    *,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value.

    The kernel recomputes the weights as exp(scores - normaliser), so `results` may be those of
    attention to more keys than these.

    Args:
        gradient: of the output, (N, H, S, D).
        states: query, key, value.
        results: output and normaliser.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, *states, *results, 0.0, is_causal, scale=scaling
    )


@dataclass(frozen=True)
class VarlenCall:
    """Attention within sequences that lie one behind the other, each of them with its own keys.

    Args:
        ends_q, ends_k (n + 1,): where the n sequences of queries and of keys end, in int32, with
            a 0 in front; on the device.
        longest_q, longest_k: the lengths of the longest ones.
        is_causal: a query sees the keys up to its own. With more keys than queries, the last ones
            belong together.
        window: how many keys a query sees, its own included; causal.
    """

    ends_q: Tensor
    ends_k: Tensor
    longest_q: int
    longest_k: int
    is_causal: bool
    window: int | None = None


class FlashAttention:
    """FlashAttention 2 on CUDA, with the normalisers that its public function keeps from autograd.

    `torch.nn.attention.varlen` is built on these operators. They take half precision, heads of 8 to
    256 in steps of 8, and fewer key heads than query heads. A query without keys has the normaliser
    +∞, so sequences of keys may not be empty where results are joined.
    """

    def forward(
        self,
        states: tuple[Tensor, Tensor, Tensor],
        call: VarlenCall,
        scaling: float | None,
    ) -> tuple[Tensor, Tensor]:
        """Return attention and the logs of its normalisers.

        Args:
            states: query (T, H, D); key, value (U, K, D); the last dimension is contiguous.

        Returns:
            (T, H, D), and (H, T) in float32.
        """
        output, normaliser, *_ = torch.ops.aten._flash_attention_forward(
            *states, *_arguments(call), False, scale=scaling, **_sides(call)
        )
        return output, normaliser

    def backward(
        self,
        gradient: Tensor,
        states: tuple[Tensor, Tensor, Tensor],
        results: tuple[Tensor, Tensor],
        call: VarlenCall,
        scaling: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value.

        As in `cpu_attention_backward`, the results may be those of attention to more keys.

        Args:
            gradient: of the output, (T, H, D).
            states, call, scaling: as `forward` takes them.
            results: output and normaliser, contiguous.
        """
        # What dropout would have drawn.
        state = torch.zeros(2, dtype=torch.uint64, device=gradient.device)
        unused = gradient.new_empty(0)
        return torch.ops.aten._flash_attention_backward(
            gradient,
            *states,
            *results,
            *_arguments(call),
            state,
            unused,
            scale=scaling,
            **_sides(call),
        )


def _arguments(call: VarlenCall) -> tuple[Any, ...]:
    """Return ends, lengths, the dropout, and whether a call is causal, as the operators do."""
    # A longest query of 1 is taken for decoding, which arranges normalisers in another way.
    longest = (max(call.longest_q, 2), max(call.longest_k, 2))
    return call.ends_q, call.ends_k, *longest, 0.0, call.is_causal


def _sides(call: VarlenCall) -> dict[str, int]:
    """Return how many keys a query sees to its left and to its right; -1 for all of them."""
    left = -1 if call.window is None else call.window - 1
    right = 0 if call.is_causal or call.window is not None else -1
    return {"window_size_left": left, "window_size_right": right}


def has_onednn() -> bool:
    """Return whether torch has oneDNN's linear product, for weights that were arranged or not."""
    # A build without oneDNN lacks these names, or has them and cannot run them.
    names = ("_linear_pointwise", "_reorder_linear_weight")
    known = all(hasattr(torch.ops.mkldnn, name) for name in names)
    return known and torch.backends.mkldnn.is_available()


def arrange_weight(weight: Tensor, rows: int) -> Tensor:
    """Return a copy of a float32 weight, (O, I), as oneDNN wants it for about so many rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `x Wᵀ + bias` for a float32 weight, arranged or of any strides; without gradients."""
    return torch.ops.mkldnn._linear_pointwise(x.float(), weight, bias, "none", [], "")


@cache
def has_faster_products() -> bool:
    """Return whether oneDNN multiplies float32 matrices faster than `torch.mm`.

    By the processor and not by timing, so that every run on a machine computes the same: `torch.mm`
    calls MKL, which has AVX-512 for Intel's processors only.
    """
    # torch 2.13 documents it, older ones may lack it.
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    is_intel = "intel" in known.get("cpu_name", "intel").lower()
    has_avx512 = known.get("avx512_f", False)
    return has_avx512 and not is_intel and torch.backends.mkl.is_available() and has_onednn()
