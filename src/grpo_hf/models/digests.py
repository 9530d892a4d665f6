"""Digests of weights: BLAKE2b on the host; on an accelerator, sums of their bytes."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

# So many bytes are summed up at a time on an accelerator.
PART = 1 << 26
# Odd numbers without a pattern, as SplitMix64 has them (Steele et al., 2014), of 63 bits.
_FACTORS = (0x3F58476D1CE4E5B9, 0x14D049BB133111EB)


def digest_of(tensors: Sequence[Tensor]) -> str:
    """Return a digest of the bytes of tensors; those on an accelerator are not copied to the host.

    There each of them is summed up by `byte_sums`, and the sums leave the device together.
    """
    here = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    elsewhere = [byte_sums(tensor) for tensor in tensors if tensor.device.type != "cpu"]
    # Hashing releases the interpreter's lock, so threads do use several cores.
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(_tensor_digest, here))
    by_device: dict[torch.device, list[Tensor]] = {}
    for sums in elsewhere:
        by_device.setdefault(sums.device, []).append(sums)
    digests += [_tensor_digest(torch.stack(sums)) for sums in by_device.values()]
    return hashlib.blake2b(b"".join(digests)).hexdigest()


def byte_sums(tensor: Tensor) -> Tensor:
    """Return two sums over the bytes of a tensor, computed where it lies, (2,).

    Each group of 4 bytes is weighted by an odd number of its place, modulo 2^64, so that no change
    of a single group goes unseen, and others with a chance of about 2^-64. It stands in for a hash
    against accidents, not against an attacker.
    """
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    # In parts, because the numbers take more memory than the bytes.
    for start in range(0, flat.numel(), PART):
        part = flat[start : start + PART]
        words = pad(part, (0, -part.numel() % 4)).view(torch.int32).long()
        place = torch.arange(start // 4, start // 4 + words.numel(), device=tensor.device)
        for index, factor in enumerate(_FACTORS):
            # Mixed, because the places themselves would let two equal differences cancel out.
            mixed = (place + 1) * factor
            mixed = (mixed ^ (mixed >> 29)) * factor
            sums[index] += (words * ((mixed ^ (mixed >> 32)) | 1)).sum()
    return sums


def _tensor_digest(tensor: Tensor) -> bytes:
    # As bytes, because numpy has no bfloat16; flat, because a scalar has no last dimension to view.
    raw: Any = tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return hashlib.blake2b(raw, digest_size=16).digest()
