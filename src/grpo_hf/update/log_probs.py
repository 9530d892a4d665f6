"""Log-probabilities of completions from a packed row: whether a model can do that, and doing it.

Whether it can is measured: `check` sends a few tokens through both ways and compares. So a model whose layers carry
state along the row, or read positions in a way of their own, is found whatever its name is. Only what a few tokens
cannot show, such as a window that is kept in the masks, is looked up in the configuration.

Shapes: as in update/packing.py.
"""

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..config import option
from ..errors import NotPackableError
from ..models.adapters import causal_model
from .cpu_lm_head import selected_log_probs
from .cpu_lora import join_products
from .packed_attention import read_layouts
from .packing import IGNORED, PackedGroups

logger = get_logger(__name__)

Scorer = Callable[
    ..., tuple[Tensor, Tensor | None, Any]
]  # TRL's `_get_per_token_logps_and_entropies`

# What rounding may do to a log-probability, on average: half precision keeps 8 bits of a logit of about 10.
_FULL, _HALF = 1e-4, 5e-2

# What a configuration may do to logits between the head and the softmax; TRL's head knows them all.
_SCALES = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def prepare(trainer: Any) -> None:
    """Let the policy, and a reference model if there is one, take packed rows: `model(..., layout=layout)`.

    Calls without a layout are as they were, but for LoRA layers on a CPU, which skip passes over memory (update/cpu_lora.py). TRL
    1.16 has given both models its fused head by now.
    """
    if option(trainer.args, "packed_update"):
        for model in filter(None, (trainer.model, trainer.ref_model)):
            take_layouts(
                causal_model(trainer.accelerator.unwrap_model(model)),
                trainer.temperature,
                entropy_gradient=trainer._entropy_bonus_enabled,
            )
        join_products(trainer.model)


def take_layouts(
    model: PreTrainedModel, temperature: float, *, entropy_gradient: bool = False
) -> None:
    """Let a model that has TRL's fused head take packed rows.

    The shared parts of the prompts, which predict nothing, leave the row before the head. In float32 on a CPU,
    `update/cpu_lm_head.py` takes the place of TRL's head.

    Args:
        model: a causal language model after TRL's `add_fused_lm_head`, without its PEFT wrapper.
        temperature (`float`): what the logits are divided by.
        entropy_gradient (`bool`): whether the entropy is part of a loss.
    """
    trl_forward = getattr(
        model.forward, "without_layouts", model.forward
    )  # a second trainer on one model starts anew

    @wraps(type(model).forward)  # `generate` reads this signature
    def forward(
        self: PreTrainedModel,
        *positional: Any,
        layout: PackedGroups | None = None,
        entropy: bool = False,
        **named: Any,
    ) -> Any:
        if layout is None:
            return trl_forward(*positional, **named)
        if entropy_gradient or not _is_plain(self):
            return trl_forward(
                *positional, **named, shift_labels=layout.labels, fused_lm_head=True, layout=layout
            )
        hidden = self.base_model(
            *positional, **named, use_cache=False, layout=layout
        ).last_hidden_state[0]  # (S, D)
        weight, labels = self.get_output_embeddings().weight, layout.labels[0]
        log_probs, entropies = selected_log_probs(
            hidden, weight, labels.clamp(min=0), temperature=temperature, entropy=entropy
        )
        log_probs = log_probs.masked_fill(labels == IGNORED, 0)
        return ModelOutput(
            log_probs=log_probs[None], entropy=None if entropies is None else entropies[None]
        )

    forward.without_layouts = trl_forward  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)
    if _suffixes_only not in model.base_model._forward_hooks.values():
        model.base_model.register_forward_hook(_suffixes_only, with_kwargs=True)


def _is_plain(model: PreTrainedModel) -> bool:
    """Whether the logits are a frozen float32 matrix times the hidden state, on a CPU."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    return (
        type(head) is nn.Linear
        and head.bias is None
        and not head.weight.requires_grad
        and head.weight.dtype == torch.float32
        and head.weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and all(getattr(config, name, None) is None for name in _SCALES)
    )


def _suffixes_only(module: nn.Module, positional: Any, named: dict[str, Any], output: Any) -> Any:
    if (layout := named.get("layout")) is not None:
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
    """Log-probability and entropy of each completion token, from a forward over the distinct tokens of a block.

    Args:
        model: as TRL has it, wrapped or not, after `prepare`.
        input_ids, attention_mask (`Tensor` of shape (B, P + C)): prompts padded left, completions right.
        logits_to_keep (`int`): C.
        compute_entropy (`bool`): whether entropies are wanted.
        rows (`int`, *optional*): how many rows go into one forward; all of them if not given.

    Returns:
        `tuple` of two `Tensor` of shape (B, C): log-probabilities, and entropies or `None`; 0 where there is no token.
    """
    rows = rows or len(input_ids)
    blocks = zip(input_ids.split(rows), attention_mask.split(rows), strict=True)
    layouts = (PackedGroups.pack(ids, mask, logits_to_keep) for ids, mask in blocks)
    parts = [_forward(model, layout, compute_entropy) for layout in layouts]
    entropies = [entropy for _, entropy in parts if entropy is not None]
    return torch.cat([log_probs for log_probs, _ in parts]), torch.cat(
        entropies
    ) if entropies else None


def _forward(model: nn.Module, layout: PackedGroups, entropy: bool) -> tuple[Tensor, Tensor | None]:
    output = model(
        input_ids=layout.input_ids,
        position_ids=layout.position_ids,
        attention_mask=layout.input_ids.new_ones(
            1, 1, 1, 1
        ),  # 4D says "prepared already": no mask is built
        layout=layout,
        entropy=entropy,
    )
    return layout.unpack(output.log_probs), layout.unpack(output.entropy) if entropy else None


@torch.no_grad()
def check(model: nn.Module, base: PreTrainedModel, trl_scorer: Scorer, *, half: bool) -> None:
    """Compare the packed way with TRL's on two prompts of two completions each.

    Args:
        model: as TRL has it.
        base: the causal language model inside it.
        trl_scorer: TRL's way, `(model, input_ids, attention_mask, logits_to_keep) -> (log_probs, ...)`.
        half (`bool`): whether the model computes in half precision.

    Raises:
        NotPackableError: the model cannot take a packed row, or its numbers differ.
    """
    config, device = base.config.get_text_config(), base.device
    read_layouts(config._attn_implementation)
    tokens = (
        torch.arange(3, 19, device=device) * 7 % config.vocab_size
    )  # no padding: TRL's numbers are then exact
    prompts, completions = tokens[:8].view(2, 4).repeat_interleave(2, 0), tokens.view(4, 4)[:, 1:]
    input_ids = torch.cat([prompts, completions], dim=1)  # (4, 7)
    block = (input_ids, torch.ones_like(input_ids), completions.shape[1])
    layout = PackedGroups.pack(*block)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        packed, _ = _forward(model, layout, entropy=False)
        expected = trl_scorer(model, *block)[0]
    except NotPackableError:
        raise
    except (TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
        raise NotPackableError(
            f"it does not take a packed row ({type(error).__name__}: {error})"
        ) from error
    finally:
        for module in training:
            module.training = True
    if (layers := len({module for module, _ in layout.readers})) != config.num_hidden_layers:
        raise NotPackableError(
            f"{layers} of its {config.num_hidden_layers} layers attend through AttentionInterface"
        )
    _refuse_hidden_windows(config, [window for _, window in layout.readers])
    apart = (packed - expected).abs().mean().item()
    if not apart <= (_HALF if half else _FULL):
        raise NotPackableError(
            f"its log-probabilities in a packed row are {apart:.1e} from those in separate rows"
        )


def _refuse_hidden_windows(config: Any, windows: list[int | None]) -> None:
    """Refuse a model that keeps a window or chunks in its masks, where a few tokens do not show them."""
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    windowed = getattr(config, "sliding_window", None) and getattr(
        config, "use_sliding_window", True
    )
    hidden = windowed and "sliding_attention" in kinds and not any(windows)
    if hidden or getattr(config, "attention_chunk_size", None):
        raise NotPackableError("it limits what a token sees by masks of its own")


def settle(trainer: Any, trl_scorer: Scorer) -> bool:
    """Whether a trainer can update on packed rows; if not, say why, once.

    Args:
        trainer: with its model where training will use it.
        trl_scorer: TRL's way, for the comparison.
    """
    reason = None
    try:
        if trainer._is_vlm:
            raise NotPackableError("it reads images as well as text")
        if trainer.aux_loss_enabled:
            raise NotPackableError(
                "its auxiliary loss counts how often each row's tokens chose an expert"
            )
        with trainer.accelerator.autocast():
            for model in filter(None, (trainer.model_wrapped, trainer.ref_model)):
                base = causal_model(trainer.accelerator.unwrap_model(model))
                check(model, base, trl_scorer, half=_computes_in_half(trainer, base))
    except NotPackableError as error:
        reason = str(error)
    unable = trainer.accelerator.gather(
        torch.tensor([reason is not None], device=trainer.accelerator.device)
    )
    if unable.any():  # on one process is on all: they have to take the same path
        reason = reason or "another process cannot"
        logger.warning(
            f"Packed updates are off, and updates cost what they cost with TRL. About this model: {reason}."
        )
    return not unable.any()


def _computes_in_half(trainer: Any, model: PreTrainedModel) -> bool:
    """Whether products are rounded to fewer bits than float32 has."""
    quantised = getattr(model, "is_quantized", False)
    tf32 = model.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    return (
        trainer.args.bf16
        or trainer.args.fp16
        or quantised
        or tf32
        or model.dtype in (torch.bfloat16, torch.float16)
    )
