"""Attention over a packed row: a prompt sees itself, a suffix sees its prompt and itself.

Everything else in a decoder works token by token and needs no change. `read_layouts` puts one
question in front of the attention function that a model uses: is there a layout in the call? With
one, `attend` below answers; without one, the function that was there, so that generation and every
other model are as they were. The question stays registered, because gradient checkpointing asks it
again in the backward.

Shapes: as in update/packing.py, and H query heads, K key and value heads, D values per head.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from ..errors import NotPackableError
from ..torch_seam import cpu_attention, cpu_attention_backward
from .kernel_check import operator_for
from .packing import PackedGroups
from .varlen_attention import attend_by_calls, join

# What transformers' models pass to an attention function without changing what it computes.
KNOWN_OPTIONS = {
    "is_causal",
    "position_ids",
    "use_cache",
    "cache_position",
    "output_attentions",
    "output_router_logits",
}


def read_layouts(implementation: str) -> None:
    """Let the attention function of that name read layouts; once, however often it is called.

    transformers 5.23: every layer looks its function up in `AttentionInterface` by
    `config._attn_implementation` and passes on the keyword arguments of the model's call; a 4D mask
    goes through untouched.

    Raises:
        NotPackableError: the model uses code of its own instead ("eager").
    """
    functions = AttentionInterface()
    if implementation not in functions:
        raise NotPackableError(
            f"its attention is {implementation!r}, which is code of the model's own"
        )
    original = functions[implementation]
    if not hasattr(original, "reads_layouts"):
        AttentionInterface.register(implementation, _reading(original))


def _reading(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        **options: Any,
    ) -> Any:
        layout = options.pop("layout", None)
        prefix_cache = options.pop("prefix_cache", None)
        # Rows that continue shared prompts while a completion is decoded.
        if prefix_cache is not None:
            states = (query, key, value)
            return prefix_cache.attend(original, module, *states, attention_mask, **options)
        if layout is None:
            return original(module, query, key, value, attention_mask, **options)
        # The packed row came with a mask of one cell: more is of the model's own making.
        if attention_mask is not None and attention_mask.numel() > 1:
            raise NotPackableError("it weighs what tokens see by masks of its own")
        return attend(layout, module, query, key, value, **options), None

    attention.reads_layouts = True  # type: ignore[attr-defined]
    return attention


def unknown_options(options: dict[str, Any]) -> list[str]:
    """Name the options of an attention call that may change its result in a way not known here."""
    unknown = []
    for name, given in options.items():
        if given is not None and name not in KNOWN_OPTIONS:
            unknown.append(name)
    return unknown


def attend(
    layout: PackedGroups,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> Tensor:
    """Softmax attention within each prompt, and of each suffix to its prompt and itself.

    Args:
        query (1, H, T, D); key, value ((1, K, T, D)).
        sliding_window: how many positions a token sees, its own included.

    Returns:
        (1, T, H, D).

    Raises:
        NotPackableError: an option that changes attention and is not known here (a soft cap, sinks,
            a bias).
    """
    unknown = unknown_options(options)
    if unknown:
        raise NotPackableError(f"its attention uses {', '.join(unknown)}")
    # `check_packing` reads this: a layer that never came here has attention of another kind.
    layout.readers.append((module, sliding_window))
    longest = layout.prompts.longest + layout.suffixes.longest
    window = sliding_window
    if window is not None and window >= longest:
        # It hides nothing here, and without a window the fast kernel can serve the layer.
        window = None
    query, key, value = as_autocast(query, key, value)
    states = (query, key, value)
    if dropout == 0:
        if _goes_by_parts(query, value, window):
            return _ByParts.apply(*states, scaling, layout.groups).transpose(1, 2)
        operator = operator_for(*states)
        if operator is not None:
            return attend_by_calls(operator, layout, states, window, scaling)
    return _padded(layout, query, key, value, window, scale=scaling, dropout_p=dropout)


def as_autocast(*states: Tensor) -> list[Tensor]:
    """Cast states as autocast does for `scaled_dot_product_attention`.

    Kernels that are called by name get no cast.
    """
    device = states[0].device.type
    known = torch.amp.is_autocast_available(device)
    if not known or not torch.is_autocast_enabled(device):
        return list(states)
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) for x in states]


def _goes_by_parts(query: Tensor, value: Tensor, window: int | None) -> bool:
    """Return whether the kernel that `_ByParts` builds on serves these inputs."""
    return window is None and query.device.type == "cpu" and query.shape[-1] == value.shape[-1]


def _padded(
    layout: PackedGroups,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    **options: Any,
) -> Tensor:
    """Attend in all sequences at once, as rows of a padded block.

    Any device can do that: it takes masks, and copies of a prompt's keys for its suffixes.
    """
    # Other devices' fast kernels take a mask or fewer key heads than query heads, but not both.
    heads_per_key = query.shape[1] // key.shape[1]
    if heads_per_key > 1:
        if query.device.type == "cpu":
            options["enable_gqa"] = True
        else:
            key = key.repeat_interleave(heads_per_key, dim=1)
            value = value.repeat_interleave(heads_per_key, dim=1)
    prompts = layout.prompts
    suffixes = layout.suffixes
    prompt_q, suffix_q = _padded_parts(layout, query)
    prompt_k, suffix_k = _padded_parts(layout, key)
    prompt_v, suffix_v = _padded_parts(layout, value)
    # Each suffix sees its prompt in front of itself: (M, K, longest prompt + longest suffix, D).
    suffix_k = torch.cat([prompt_k[layout.prompt_of], suffix_k], dim=2)
    suffix_v = torch.cat([prompt_v[layout.prompt_of], suffix_v], dim=2)
    prompt_mask, suffix_mask = layout.masks(window)
    # Not every kernel takes a length of 0. Values may have another size than queries.
    of_prompts = prompt_q.new_zeros(*prompt_q.shape[:-1], value.shape[-1])
    if prompts.longest:
        of_prompts = scaled_dot_product_attention(
            prompt_q,
            prompt_k,
            prompt_v,
            attn_mask=prompt_mask,
            is_causal=prompt_mask is None,
            **options,
        )
    of_suffixes = scaled_dot_product_attention(
        suffix_q, suffix_k, suffix_v, attn_mask=suffix_mask, **options
    )
    return torch.cat([prompts.unpad(of_prompts), suffixes.unpad(of_suffixes)])[None]


def _padded_parts(layout: PackedGroups, states: Tensor) -> tuple[Tensor, Tensor]:
    """Pad the prompts' and the suffixes' states, (1, heads, T, D), to a block each."""
    in_prompts = states[0, :, : layout.shared]
    in_suffixes = states[0, :, layout.shared :]
    return layout.prompts.pad(in_prompts), layout.suffixes.pad(in_suffixes)


class _ByParts(torch.autograd.Function):
    """Sequence by sequence, without padding or masks: kernels of a CPU lose nothing by being small.

    A suffix attends to its prompt and to itself in two calls, a and b, whose results o and
    normalisers ℓ = log Σ exp(scores) combine exactly:

        o = o_a exp(ℓ_a - ℓ) + o_b exp(ℓ_b - ℓ),   ℓ = log(exp ℓ_a + exp ℓ_b).

    All suffixes of a prompt share the call to it. The kernel's backward needs the combined o and ℓ
    and nothing else of the other part, since it recomputes the weights as exp(scores - ℓ).

    torch 2.13: `_scaled_dot_product_flash_attention_for_cpu` is what
    `scaled_dot_product_attention` runs on a CPU; it returns ℓ as well, and takes fewer key heads
    than query heads.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        groups: list[Any],
    ) -> Tensor:
        """(1, H, T, D), twice (1, K, T, D) -> (1, H, T, D)."""

        def part(queries: slice, keys: slice, is_causal: bool) -> tuple[Tensor, Tensor]:
            states = query[:, :, queries], key[:, :, keys], value[:, :, keys]
            return cpu_attention(*states, scaling, is_causal=is_causal)

        outputs = []
        for prompt, _, _ in groups:
            # A prompt of one token has no shared part, and the kernel divides by the length.
            if prompt.stop > prompt.start:
                outputs.append(part(prompt, prompt, True))
        for prompt, together, suffixes in groups:
            own = _side_by_side([part(suffix, suffix, True) for suffix in suffixes])
            if prompt.start == prompt.stop:
                outputs.append(own)
                continue
            joined, normaliser = join(part(together, prompt, False), own)
            outputs.append((joined.to(query.dtype), normaliser))
        # The order of the packed row: all prompts, then the suffixes prompt by prompt.
        output, normaliser = _side_by_side(outputs)
        ctx.save_for_backward(query, key, value, output, normaliser)
        ctx.scaling = scaling
        ctx.groups = groups
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, normaliser = ctx.saved_tensors
        grad_query = torch.zeros_like(query)
        grad_key = torch.zeros_like(key)
        grad_value = torch.zeros_like(value)

        def add(queries: slice, keys: slice, is_causal: bool) -> None:
            if queries.stop == queries.start or keys.stop == keys.start:
                return
            # The output and normaliser of both parts: see the equation above.
            of_query, of_key, of_value = cpu_attention_backward(
                grad_output[:, :, queries],
                (query[:, :, queries], key[:, :, keys], value[:, :, keys]),
                (output[:, :, queries], normaliser[:, :, queries]),
                ctx.scaling,
                is_causal=is_causal,
            )
            grad_query[:, :, queries] += of_query
            # A prompt's keys are read by itself and by all of its suffixes.
            grad_key[:, :, keys] += of_key
            grad_value[:, :, keys] += of_value

        for prompt, together, suffixes in ctx.groups:
            add(prompt, prompt, True)
            add(together, prompt, False)
            for suffix in suffixes:
                add(suffix, suffix, True)
        return grad_query, grad_key, grad_value, None, None


def _side_by_side(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join outputs (1, H, t, D) and normalisers (1, H, t) of consecutive pieces of a row."""
    outputs, normalisers = zip(*parts, strict=True)
    return torch.cat(outputs, dim=2), torch.cat(normalisers, dim=2)
