"""Which kernel a device has for sequences of any length: measured before it is trusted.

Shapes: as in varlen_attention.py.
"""

import logging
from functools import lru_cache

import torch
from torch import Tensor

from ..torch_seam import FlashAttention
from .packing import PackedGroups
from .varlen_attention import Operator, States, way_of

# Each process speaks for the device that it has.
logger = logging.getLogger(__name__)

FLASH = FlashAttention()

# How far a kernel may be from float32, as a share of the largest number: bf16 keeps 8 bits.
_ROUNDING = 0.03

# A window of one key has no gradients of query and key: a share of 0 would say nothing.
_SMALLEST_SCALE = 0.1

# What is measured: a prompt of one token, which has no shared part, and two others.
_PROMPTS = ([0, 0, 0, 0, 1], [0, 0, 2, 3, 4], [5, 6, 7, 8, 9], [5, 6, 7, 8, 9])
_COMPLETIONS = ([1, 2, 0, 0], [3, 0, 0, 0], [4, 5, 6, 0], [7, 8, 9, 1])


def operator_for(query: Tensor, key: Tensor, value: Tensor) -> Operator | None:
    """Return the kernel that serves such states, (1, heads, T, D), or None.

    There is one in half precision on CUDA, for heads of 8 to 256 in steps of 8. It is taken where
    it has shown on this device that it computes what it should.
    """
    size = query.shape[-1]
    fits = size == value.shape[-1] and size % 8 == 0 and size <= 256
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.device.type != "cuda" or not half or not fits:
        return None
    shape = (query.shape[1], key.shape[1], size)
    return FLASH if kernel_works(FLASH, query.device, query.dtype, shape) else None


@lru_cache
def kernel_works(
    operator: Operator, device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]
) -> bool:
    """Return whether a kernel computes attention and its gradients; measured once, said if not.

    A device may be too old for it, or a build of torch without it.

    Args:
        shape: H, K and D.
    """
    try:
        for window in (None, 3):
            distance = distance_from_softmax(operator, device, dtype, shape, window)
            # Written so that NaN is refused as well.
            if not distance <= _ROUNDING:
                raise ValueError(f"its results are {distance:.1e} from those of softmax")
    # What a kernel raises where it does not serve a device is not documented.
    except Exception as error:
        logger.warning(
            "Packed updates pad sequences for attention, which costs time and memory: torch's "
            f"kernel for sequences of any length does not serve this device ({error}).",
        )
        return False
    return True


@torch.no_grad()
def distance_from_softmax(
    operator: Operator,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    window: int | None,
) -> float:
    """Return how far outputs and gradients are from softmax written out, on a small packed row.

    Args:
        shape: H, K and D.

    Returns:
        The largest difference as a share of the largest number, over the output and the gradients;
        all states are standard normal.
    """
    heads, key_heads, size = shape
    ids = torch.tensor(_PROMPTS, device=device)
    answers = torch.tensor(_COMPLETIONS, device=device)
    block = torch.cat([ids, answers], dim=1)
    layout = PackedGroups.pack(block, (block > 0).long(), answers.shape[1])
    # A generator of its own: the run's random numbers stay what they are.
    generator = torch.Generator(device).manual_seed(0)
    tokens = layout.input_ids.shape[1]
    drawn = []
    for count in (heads, key_heads, key_heads, heads):
        drawn.append(torch.randn(tokens, count, size, generator=generator, device=device))
    query, key, value, gradient = (each.to(dtype) for each in drawn)
    way = way_of(operator, layout, window, None)
    results = way.forward((query, key, value))
    found = (results[0], *way.backward(gradient, (query, key, value), results))
    precise = torch.promote_types(dtype, torch.float32)
    states = (query.to(precise), key.to(precise), value.to(precise))
    expected = softmax_attention(states, gradient.to(precise), seen_in(layout, window))
    distances = []
    for got, wanted in zip(found, expected, strict=True):
        scale = wanted.abs().max().clamp(min=_SMALLEST_SCALE)
        distances.append((got - wanted).abs().max() / scale)
    return torch.stack(distances).max().item()


def seen_in(layout: PackedGroups, window: int | None) -> Tensor:
    """Return which tokens of a packed row each of them sees, (T, T)."""
    device = layout.input_ids.device
    prompts = torch.arange(len(layout.prompt_lengths), device=device)
    suffixes = torch.arange(len(layout.suffix_lengths), device=device)
    # Suffixes are numbered behind prompts.
    sequence = torch.cat(
        [
            prompts.repeat_interleave(layout.prompt_lengths),
            len(prompts) + suffixes.repeat_interleave(layout.suffix_lengths),
        ]
    )
    prompt_of = torch.cat([prompts, layout.prompt_of])[sequence]
    in_prompt = torch.arange(len(sequence), device=device) < layout.shared
    same = sequence[:, None] == sequence
    of_prompt = in_prompt & ~in_prompt[:, None] & (prompt_of[:, None] == prompt_of)
    behind = layout.position_ids[0][:, None] - layout.position_ids[0]
    reach = len(sequence) if window is None else window
    return (same | of_prompt) & (behind >= 0) & (behind < reach)


def softmax_attention(
    states: States, gradient: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return attention, written out, and its gradients to query, key and value.

    Args:
        gradient (T, H, D): of the output.
        seen (T, T): which keys each query sees.
    """
    query, key, value = states
    copies = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(copies, dim=1)
    value = value.repeat_interleave(copies, dim=1)
    scaling = query.shape[-1] ** -0.5
    scores = torch.einsum("qhd,khd->hqk", query, key) * scaling
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    output = torch.einsum("hqk,khd->qhd", weights, value)
    of_weights = torch.einsum("qhd,khd->hqk", gradient, value)
    centred = of_weights - (gradient * output).sum(-1).T[..., None]
    of_scores = weights * centred * scaling
    of_query = torch.einsum("hqk,khd->qhd", of_scores, key)
    of_key = torch.einsum("hqk,qhd->khd", of_scores, query)
    of_value = torch.einsum("hqk,qhd->khd", weights, gradient)
    # Heads of queries that share a key head lie side by side.
    by_key_head = [each.unflatten(1, (-1, copies)).sum(2) for each in (of_key, of_value)]
    return output, of_query, *by_key_head
