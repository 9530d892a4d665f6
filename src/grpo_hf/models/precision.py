"""The precision in which a model computes, and the memory that another one would take."""

from typing import Any

import psutil
import torch


def computes_in_half(model: Any, *, autocast: bool) -> bool:
    """Return whether products of a model are rounded to fewer bits than float32 has.

    Args:
        model: a language model of transformers.
        autocast: whether the run computes in bf16 or fp16, whatever the weights are.
    """
    if autocast or model.dtype in (torch.bfloat16, torch.float16):
        return True
    # TF32 rounds the inputs of each product to 10 bits, which is what fp16 has. torch's older flag,
    # `allow_tf32`, does not know what `tf32=True` and `torch_compile=True` of a run have set.
    precision = torch.backends.cuda.matmul.fp32_precision
    uses_tf32 = model.device.type == "cuda" and precision == "tf32"
    # Quantized layers may multiply in half precision, whatever the model says its dtype is.
    return uses_tf32 or getattr(model, "is_quantized", False)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free where weights on a device lie."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
