"""Log-probabilities of completions from a packed row, and whether a model can compute them.

`check_packing` measures whether it can: a few tokens go through the packed row and through TRL's
rows, and the numbers are compared. So a model whose layers carry state along the row, or read
positions in a way of their own, is found whatever its name is. Only what a few tokens cannot show,
such as a window that is kept in the masks, is looked up in the configuration.

Shapes: as in packing.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from types import MethodType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import NotPackableError, SeamMovedError
from ..models.adapters import causal_model
from ..models.precision import computes_in_half
from ..run_context import HeadSettings
from ..trl_seam import (
    add_forward_hook_once,
    attention_implementation,
    check_fused_head,
    fused_log_probs,
)
from .cpu_lm_head import selected_log_probs
from .cpu_lora import join_products
from .packed_attention import read_layouts
from .packing import IGNORED, PackedGroups

logger = get_logger(__name__)

# TRL's way: (model, input_ids, attention_mask, logits_to_keep) -> (log-probabilities, ...).
Scorer = Callable[..., tuple[Tensor, Tensor | None, Any]]

# What rounding may do to a log-probability, on average: half precision keeps 8 bits of a logit of
# about 10.
_TOLERANCE = 1e-4
_TOLERANCE_HALF = 5e-2

# What a configuration may do to logits between the head and the softmax; TRL's head knows them all.
_SCALES = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def prepare_models(models: Sequence[Any], settings: HeadSettings) -> None:
    """Let the models of a run take packed rows, and the policy's LoRA layers save passes.

    TRL 1.16 has given each of them its fused head by now.

    Args:
        models: the policy first, then a reference model if there is one, unwrapped.
    """
    for model in models:
        take_layouts(
            causal_model(model),
            settings.temperature,
            entropy_gradient=settings.entropy_gradient,
        )
    # The policy alone: a reference model has no LoRA layers that train.
    join_products(models[0])


def take_layouts(
    model: PreTrainedModel, temperature: float, *, entropy_gradient: bool = False
) -> None:
    """Let a model that has TRL's fused head take packed rows: `model(..., layout=layout)`.

    Calls without a layout stay as they are. The shared parts of the prompts, which predict nothing,
    leave the row before the head. In float32 on a CPU, cpu_lm_head.py replaces TRL's head.

    Args:
        model: a causal language model after TRL's `add_fused_lm_head`, without its PEFT wrapper.
        temperature: what the logits are divided by.
        entropy_gradient: whether the entropy is part of a loss.
    """
    # A second trainer on one model starts anew.
    trl_forward = getattr(model.forward, "without_layouts", model.forward)

    # `generate` reads the signature of the model's own forward.
    @wraps(type(model).forward)
    def forward(
        self: PreTrainedModel,
        *positional: Any,
        layout: PackedGroups | None = None,
        entropy: bool = False,
        **named: Any,
    ) -> Any:
        if layout is None:
            return trl_forward(*positional, **named)
        # The head for CPUs computes entropies without a gradient, and knows no other weights.
        if entropy_gradient or not _has_plain_head(self):
            return fused_log_probs(trl_forward, layout.labels, *positional, layout=layout, **named)
        # A row is forwarded as a whole, so a cache would be filled and thrown away.
        states = self.base_model(*positional, **named, use_cache=False, layout=layout)
        return _scored(self, states.last_hidden_state[0], layout.labels[0], temperature, entropy)

    forward.without_layouts = trl_forward  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)
    add_forward_hook_once(model.base_model, _suffixes_only)


def _scored(
    model: PreTrainedModel, hidden: Tensor, labels: Tensor, temperature: float, entropy: bool
) -> ModelOutput:
    """Score suffix states, (S, D), against their labels, (S,), as TRL's fused head would."""
    log_probs, entropies = selected_log_probs(
        hidden,
        model.get_output_embeddings().weight,
        # The label of a position that predicts nothing is -100, and no index.
        labels.clamp(min=0),
        temperature=temperature,
        entropy=entropy,
    )
    log_probs = log_probs.masked_fill(labels == IGNORED, 0)
    return ModelOutput(
        log_probs=log_probs[None], entropy=None if entropies is None else entropies[None]
    )


def _has_plain_head(model: PreTrainedModel) -> bool:
    """Return whether the logits are a frozen float32 matrix times the hidden state, on a CPU."""
    head = model.get_output_embeddings()
    # Of a model for images and text, the part for text.
    config = model.config.get_text_config()
    return (
        # Not isinstance: a 4-bit layer is a Linear as well, and multiplies in another way.
        type(head) is nn.Linear
        and head.bias is None
        and not head.weight.requires_grad
        and head.weight.dtype == torch.float32
        and head.weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and all(getattr(config, name, None) is None for name in _SCALES)
    )


def _suffixes_only(module: nn.Module, positional: Any, named: dict[str, Any], output: Any) -> Any:
    """Drop the shared parts of the prompts from the states that the head will see."""
    layout = named.get("layout")
    if layout is not None:
        output.last_hidden_state = output.last_hidden_state[:, layout.shared :]
    return output


def packed_log_probs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    logits_to_keep: int,
    *,
    compute_entropy: bool = False,
    rows: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Score each completion token by a forward over the distinct tokens of a block.

    Args:
        model: as TRL has it, wrapped or not, after `take_layouts`.
        input_ids, attention_mask (B, P + C): prompts padded left, completions right.
        logits_to_keep: C.
        compute_entropy: whether entropies are wanted.
        rows: how many rows go into one forward; all of them if not given.

    Returns:
        Log-probabilities, and entropies or `None`, (B, C) each; 0 where there is no token.
    """
    rows = rows or len(input_ids)
    log_probs = []
    entropies = []
    for ids, mask in zip(input_ids.split(rows), attention_mask.split(rows), strict=True):
        layout = PackedGroups.pack(ids, mask, logits_to_keep)
        scored, entropy = _forward(model, layout, compute_entropy)
        log_probs.append(scored)
        if entropy is not None:
            entropies.append(entropy)
    return torch.cat(log_probs), torch.cat(entropies) if entropies else None


def _forward(model: nn.Module, layout: PackedGroups, entropy: bool) -> tuple[Tensor, Tensor | None]:
    output = model(
        input_ids=layout.input_ids,
        position_ids=layout.position_ids,
        # A 4D mask counts as prepared already, so that transformers builds none.
        attention_mask=layout.input_ids.new_ones(1, 1, 1, 1),
        layout=layout,
        entropy=entropy,
    )
    return layout.unpack(output.log_probs), layout.unpack(output.entropy) if entropy else None


@torch.no_grad()
def check_packing(
    model: nn.Module, base: PreTrainedModel, trl_scorer: Scorer, *, half: bool
) -> None:
    """Compare the packed way with TRL's on two prompts of two completions each.

    Args:
        model: as TRL has it.
        base: the causal language model inside it.
        trl_scorer: TRL's way.
        half: whether the model computes in half precision.

    Raises:
        NotPackableError: the model cannot take a packed row, or its numbers differ.
        SeamMovedError: another library has changed a name that the packed way relies on.
    """
    config = base.config.get_text_config()
    read_layouts(attention_implementation(config))
    check_fused_head(base.forward.without_layouts)
    # No row is padded: TRL's numbers are exact then, for learned positions as well.
    tokens = torch.arange(3, 19, device=base.device) * 7 % config.vocab_size
    prompts = tokens[:8].view(2, 4).repeat_interleave(2, 0)
    completions = tokens.view(4, 4)[:, 1:]
    input_ids = torch.cat([prompts, completions], dim=1)  # (4, 7)
    block = (input_ids, torch.ones_like(input_ids), completions.shape[1])
    layout = PackedGroups.pack(*block)
    with _without_dropout(model):
        try:
            packed, _ = _forward(model, layout, entropy=False)
            expected = trl_scorer(model, *block)[0]
        # What layers raise that meet an argument or a shape they were not written for.
        except (TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
            # These say already what is wrong.
            if isinstance(error, NotPackableError | SeamMovedError):
                raise
            reason = f"it does not take a packed row ({type(error).__name__}: {error})"
            raise NotPackableError(reason) from error
    # A layer without attention, or with attention of its own, never asked for the layout.
    layers = len({module for module, _ in layout.readers})
    if layers != config.num_hidden_layers:
        raise NotPackableError(
            f"{layers} of its {config.num_hidden_layers} layers attend through AttentionInterface"
        )
    _refuse_hidden_windows(config, [window for _, window in layout.readers])
    difference = (packed - expected).abs().mean().item()
    # Written so that a difference of NaN is refused as well.
    if not difference <= (_TOLERANCE_HALF if half else _TOLERANCE):
        raise NotPackableError(
            f"its log-probabilities in a packed row are {difference:.1e} from those in separate "
            "rows"
        )


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluate for a block; afterwards each module is in the mode that it was in."""
    # By module: a frozen part may be in evaluation mode while the rest trains.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _refuse_hidden_windows(config: Any, windows: list[int | None]) -> None:
    """Refuse a model that keeps a window or chunks in its masks, where a few tokens hide them."""
    # transformers 5.23: `layer_types` says which layers are windowed; without it all of them are.
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    windowed = getattr(config, "sliding_window", None) and getattr(
        config, "use_sliding_window", True
    )
    hidden = windowed and "sliding_attention" in kinds and not any(windows)
    if hidden or getattr(config, "attention_chunk_size", None):
        raise NotPackableError("it limits what a token sees by masks of its own")


def decide_packing(
    models: Sequence[nn.Module],
    trl_scorer: Scorer,
    accelerator: Accelerator,
    *,
    reads_images: bool,
    has_auxiliary_loss: bool,
    autocast: bool,
) -> bool:
    """Return whether a run can update on packed rows; if not, say why, once.

    Args:
        models: the policy, and a reference model if there is one, as training will use them.
        trl_scorer: TRL's way, for the comparison.
        reads_images: whether the model takes images beside text.
        has_auxiliary_loss: whether the loss balances the experts of a mixture.
        autocast: whether the run computes in bf16 or fp16.
    """
    reason = None
    try:
        if reads_images:
            raise NotPackableError("it reads images as well as text")
        if has_auxiliary_loss:
            raise NotPackableError(
                "its auxiliary loss counts how often each row's tokens chose an expert"
            )
        # As training will compute, so that the tolerance is that of the run.
        with accelerator.autocast():
            for model in models:
                base = causal_model(accelerator.unwrap_model(model))
                half = computes_in_half(base, autocast=autocast)
                check_packing(model, base, trl_scorer, half=half)
    except NotPackableError as error:
        reason = f"About this model: {error}"
    except SeamMovedError as error:
        reason = f"This is no matter of the model: {error}"
    unable = torch.tensor([reason is not None], device=accelerator.device)
    # One process that cannot is enough: all of them have to take the same path.
    packs = not accelerator.gather(unable).any()
    if not packs:
        reason = reason or "About this model: another process cannot"
        logger.warning(
            f"Packed updates are off, and updates cost what they cost with TRL. {reason}."
        )
    return packs
