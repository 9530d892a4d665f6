"""Log-probabilities of completions from a packed row.

Shapes: as in packing.py.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..models.adapters import causal_model
from ..trl_seam import add_forward_hook_once, fused_log_probs
from .cpu_lm_head import selected_log_probs
from .cpu_lora import join_products
from .cpu_products import multiply_faster
from .forwards import TokenBudget
from .packing import IGNORED, PackedGroups

# What a configuration may do to logits between the head and the softmax; TRL's head knows them all.
_SCALES = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def prepare_models(models: Sequence[Any], temperature: float) -> None:
    """Let the models of a run take packed rows, and the policy's LoRA layers save passes.

    TRL 1.16 has given each of them its fused head by now.

    Args:
        models: the policy first, then a reference model if there is one, unwrapped.
        temperature: what the logits are divided by.
    """
    for model in models:
        take_layouts(causal_model(model), temperature)
        multiply_faster(model)
    # The policy alone: a reference model has no LoRA layers that train.
    join_products(models[0])


def take_layouts(model: PreTrainedModel, temperature: float) -> None:
    """Let a model that has TRL's fused head take packed rows: `model(..., layout=layout)`.

    Calls without a layout stay as they are. The shared parts of the prompts, which predict nothing,
    leave the row before the head. In float32 on a CPU, cpu_lm_head.py replaces TRL's head.

    Args:
        model: a causal language model after TRL's `add_fused_lm_head`, without its PEFT wrapper.
        temperature: what the logits are divided by.
    """
    # A second trainer on one model starts anew.
    trl_forward = forward_without_layouts(model)

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
        if not _has_plain_head(self):
            return fused_log_probs(trl_forward, layout.labels, *positional, layout=layout, **named)
        # A row is forwarded as a whole, so a cache would be filled and thrown away.
        states = self.base_model(*positional, **named, use_cache=False, layout=layout)
        return _scored(self, states.last_hidden_state[0], layout.labels[0], temperature, entropy)

    forward.without_layouts = trl_forward  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)
    add_forward_hook_once(model.base_model, _suffixes_only)


def forward_without_layouts(model: PreTrainedModel) -> Any:
    """Return the forward that a model had before `take_layouts`, or has if that was not called."""
    # Where a run computes in half precision, accelerate wraps what is there.
    taken = inspect.unwrap(model.forward, stop=lambda each: hasattr(each, "without_layouts"))
    return getattr(taken, "without_layouts", model.forward)


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


@dataclass(frozen=True)
class RowsComputed:
    """Which rows of a micro-batch are computed, and what stands for the others.

    Args:
        kept (B,): whether a row is computed.
        loss_mask (B, C): which tokens count in the loss.
        old_log_probs (B, C): those of the policy that sampled, where TRL computed them.
        total: sums a tensor over processes.
    """

    kept: Tensor
    loss_mask: Tensor
    old_log_probs: Tensor | None
    total: Callable[[Tensor], Tensor]

    def fill_log_probs(self, log_probs: Tensor) -> Tensor:
        """Give rows that are left out the ratio 1, which no loss without a signal clips."""
        if self.old_log_probs is None:
            # TRL takes a detached copy of what it gets here as the old ones.
            return log_probs
        return torch.where(self.kept[:, None], log_probs, self.old_log_probs)

    def fill_entropies(self, entropies: Tensor) -> Tensor:
        """Give tokens of rows that are left out the mean of all others, so that it stays the mean.

        It is NaN where no process computes a row; TRL leaves NaN out of what it logs.
        """
        counted = self.loss_mask * self.kept[:, None]
        own = (entropies.detach() * counted).sum()
        entropy, tokens = self.total(torch.stack([own, counted.sum().to(own)]))
        return torch.where(self.kept[:, None], entropies, entropy / tokens)


_rows_computed: ContextVar[RowsComputed | None] = ContextVar("rows_computed", default=None)


@contextmanager
def only_rows(computed: RowsComputed | None) -> Iterator[None]:
    """Compute some rows of the blocks that are scored inside a `with` block; `None`: all of them.

    TRL's loss calls the scorer with its block and no more, so the rows travel beside it. The masks
    of the batch stay as they are.
    """
    token = _rows_computed.set(computed)
    try:
        yield
    finally:
        _rows_computed.reset(token)


def filled_entropies(entropies: Tensor | None) -> Tensor | None:
    """Return entropies of all rows, (B, C), as those of a packed row are inside of `only_rows`.

    Another process may have packed its rows, and then waits for the sum of this one.
    """
    computed = _rows_computed.get()
    if computed is None or entropies is None:
        return entropies
    return computed.fill_entropies(entropies)


def packed_log_probs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    logits_to_keep: int,
    *,
    entropy: bool = False,
    budget: TokenBudget | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Score each completion token by a forward over the distinct tokens of a block.

    Args:
        model: as TRL has it, wrapped or not, after `take_layouts`.
        input_ids, attention_mask (B, P + C): prompts padded left, completions right.
        logits_to_keep: C.
        entropy: whether entropies are wanted.
        budget: how many tokens go into one forward; all of them if not given.

    Returns:
        Log-probabilities, and entropies or `None`, (B, C) each; 0 where there is no token. Inside
        of `only_rows`, rows that are left out have what stands for them there.
    """
    computed = _rows_computed.get()
    if computed is not None:
        attention_mask = attention_mask * computed.kept[:, None]
    every_row = slice(0, len(input_ids))
    # What lies where is found out on the host: the device is waited for once, whatever is cut.
    block = (input_ids.cpu(), attention_mask.cpu(), logits_to_keep)
    log_probs = []
    entropies = []
    for piece in [every_row] if budget is None else budget.pieces(*block):
        layout = _layout_of(*block, piece, input_ids.device)
        of_piece, entropies_of_piece = forward_packed(model, layout, entropy=entropy)
        # A forward for company's sake has a row that is not of this piece.
        rows_of_piece = piece.stop - piece.start
        log_probs.append(of_piece[:rows_of_piece])
        if entropies_of_piece is not None:
            entropies.append(entropies_of_piece[:rows_of_piece])
    of_rows = torch.cat(log_probs)
    if computed is not None:
        of_rows = computed.fill_log_probs(of_rows)
    return of_rows, filled_entropies(torch.cat(entropies) if entropies else None)


def _layout_of(
    input_ids: Tensor,
    attention_mask: Tensor,
    logits_to_keep: int,
    rows: slice,
    device: torch.device,
) -> PackedGroups:
    """Lay some rows of a block down; of no rows, a single token that is not scored."""
    if rows.start == rows.stop:
        nothing = torch.zeros_like(attention_mask[:1])
        return PackedGroups.pack(input_ids[:1], nothing, logits_to_keep, device)
    return PackedGroups.pack(input_ids[rows], attention_mask[rows], logits_to_keep, device)


def forward_packed(
    model: nn.Module, layout: PackedGroups, *, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Score one packed row: log-probabilities, and entropies if asked for, (B, C) each."""
    # Each layout has other lengths: a compiled forward would be compiled anew at every micro-batch.
    with torch.compiler.set_stance("force_eager"):
        output = model(
            input_ids=layout.input_ids,
            position_ids=layout.position_ids,
            # A 4D mask counts as prepared already, so that transformers builds none.
            attention_mask=layout.input_ids.new_ones(1, 1, 1, 1),
            layout=layout,
            entropy=entropy,
        )
    return layout.unpack(output.log_probs), layout.unpack(output.entropy) if entropy else None
