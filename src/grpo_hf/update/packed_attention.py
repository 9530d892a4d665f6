"""Attention over a packed row: a prompt sees itself, a suffix sees its prompt and itself.

Everything else in a decoder works token by token and needs no change. `read_layouts` puts one question in front of the
attention function that a model uses: is there a layout in the call? With one, `attend` below answers; without one, the
function that was there, so that generation and every other model are as they were. The question stays registered,
because gradient checkpointing asks it again in the backward.

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
from ..trl_seam import cpu_attention, cpu_attention_backward
from .packing import PackedGroups

KNOWN_OPTIONS = {"is_causal", "position_ids", "use_cache", "cache_position", "output_attentions"}


def read_layouts(implementation: str) -> None:
    """Let the attention function of that name read layouts; once, however often it is called.

    transformers 5.23: every layer looks its function up in `AttentionInterface` by `config._attn_implementation` and
    passes on the keyword arguments of the model's call; a 4D mask goes through untouched.

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
        layout, fork = options.pop("layout", None), options.pop("fork", None)
        if fork is not None:  # rows that continue shared prompts: rollout/shared_prefix_cache.py
            return fork.attend(original, module, query, key, value, attention_mask, **options)
        if layout is None:
            return original(module, query, key, value, attention_mask, **options)
        return attend(layout, module, query, key, value, **options), None

    attention.reads_layouts = True  # type: ignore[attr-defined]
    return attention


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
        query (`Tensor` of shape (1, H, T, D)); key, value (`Tensor` of shape (1, K, T, D)).
        sliding_window (`int`, *optional*): how many positions a token sees, its own included.

    Returns:
        `Tensor` of shape (1, T, H, D).

    Raises:
        NotPackableError: an option that changes attention and is not known here (a soft cap, sinks, a bias).
    """
    if unknown := [
        name for name, given in options.items() if name not in KNOWN_OPTIONS and given is not None
    ]:
        raise NotPackableError(f"its attention uses {', '.join(unknown)}")
    layout.readers.append((module, sliding_window))
    longest = layout.prompts.longest + layout.suffixes.longest
    window = sliding_window if sliding_window is not None and sliding_window < longest else None
    query, key, value = as_autocast(query, key, value)
    if _goes_by_parts(query, value, window, dropout):
        return _ByParts.apply(query, key, value, scaling, layout.groups).transpose(1, 2)
    return _padded(layout, query, key, value, window, scale=scaling, dropout_p=dropout)


def as_autocast(*states: Tensor) -> list[Tensor]:
    """States in the precision that autocast gives `scaled_dot_product_attention`; kernels called by name get none."""
    device = states[0].device.type
    return [
        x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
        for x in states
    ]


def _goes_by_parts(query: Tensor, value: Tensor, window: int | None, dropout: float) -> bool:
    """Whether the kernel that `_ByParts` builds on serves these inputs."""
    return (
        window is None
        and dropout == 0
        and query.device.type == "cpu"
        and query.shape[-1] == value.shape[-1]
    )


def _padded(
    layout: PackedGroups,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    **options: Any,
) -> Tensor:
    """All sequences at once, as rows of a padded block: few and large kernels, for any device."""
    prompts, suffixes = layout.prompts, layout.suffixes
    prompt_q, prompt_k, prompt_v = (
        prompts.pad(states[0, :, : layout.shared]) for states in (query, key, value)
    )
    suffix_q, suffix_k, suffix_v = (
        suffixes.pad(states[0, :, layout.shared :]) for states in (query, key, value)
    )
    suffix_k = torch.cat(
        [prompt_k[layout.prompt_of], suffix_k], dim=2
    )  # (M, K, longest prompt + suffix, D)
    suffix_v = torch.cat([prompt_v[layout.prompt_of], suffix_v], dim=2)
    prompt_mask, suffix_mask = layout.masks(window)
    if (
        shared := query.shape[1] // key.shape[1]
    ) > 1:  # other devices' fast kernels take a mask or fewer key heads
        if query.device.type == "cpu":
            options["enable_gqa"] = True
        else:
            prompt_k, prompt_v, suffix_k, suffix_v = (
                states.repeat_interleave(shared, dim=1)
                for states in (prompt_k, prompt_v, suffix_k, suffix_v)
            )
    of_prompts = prompt_q
    if prompts.longest:  # not every kernel takes a length of 0
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


class _ByParts(torch.autograd.Function):
    """Sequence by sequence, without padding or masks: kernels of a CPU lose nothing by being small.

    A suffix attends to its prompt and to itself in two calls, a and b, whose results o and normalisers
    ℓ = log Σ exp(scores) combine exactly:

        o = o_a exp(ℓ_a - ℓ) + o_b exp(ℓ_b - ℓ),   ℓ = log(exp ℓ_a + exp ℓ_b).

    All suffixes of a prompt share the call to it. The kernel's backward needs the combined o and ℓ and nothing else of
    the other part, since it recomputes the weights as exp(scores - ℓ).

    torch 2.13: `_scaled_dot_product_flash_attention_for_cpu` is what `scaled_dot_product_attention` runs on a CPU; it
    returns ℓ as well, and takes fewer key heads than query heads.
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
            if prompt.stop > prompt.start:  # the kernel divides by the length
                outputs.append(part(prompt, prompt, True))
        for prompt, together, suffixes in groups:
            parts = [part(suffix, suffix, True) for suffix in suffixes]
            own, own_normaliser = (torch.cat(states, dim=2) for states in zip(*parts, strict=True))
            if prompt.start == prompt.stop:
                outputs.append((own, own_normaliser))
                continue
            of_prompt, normaliser = part(together, prompt, False)
            joined, total = join((of_prompt, normaliser), (own, own_normaliser))
            outputs.append((joined.to(query.dtype), total))
        output, normaliser = (torch.cat(states, dim=2) for states in zip(*outputs, strict=True))
        ctx.save_for_backward(query, key, value, output, normaliser)
        ctx.scaling, ctx.groups = scaling, groups
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, normaliser = ctx.saved_tensors
        gradients = [torch.zeros_like(states) for states in (query, key, value)]

        def add(queries: slice, keys: slice, is_causal: bool) -> None:
            if queries.stop == queries.start or keys.stop == keys.start:
                return
            parts = cpu_attention_backward(
                grad_output[:, :, queries],
                (query[:, :, queries], key[:, :, keys], value[:, :, keys]),
                (output[:, :, queries], normaliser[:, :, queries]),
                ctx.scaling,
                is_causal=is_causal,
            )
            for gradient, part, where in zip(gradients, parts, (queries, keys, keys), strict=True):
                gradient[:, :, where] += part

        for prompt, together, suffixes in ctx.groups:
            add(prompt, prompt, True)
            add(together, prompt, False)
            for suffix in suffixes:
                add(suffix, suffix, True)
        return *gradients, None, None


def join(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention to two sets of keys, from attention to each: outputs (..., D) with their normalisers (...)."""
    total = torch.logaddexp(a[1], b[1])
    weight_a, weight_b = (
        (part[1] - total).exp()[..., None] for part in (a, b)
    )  # float32, as normalisers are
    return (a[0] * weight_a).addcmul_(b[0], weight_b), total
