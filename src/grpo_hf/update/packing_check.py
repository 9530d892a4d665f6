"""Whether a model can be updated on packed rows: measured with a few tokens, before it is trusted.

A few short texts go through a packed row and through TRL's rows. Three things are asked of them:

- Every layer has to read the layout of the row.
- What a text's neighbours in the row say must not change its own log-probabilities. This needs no
  tolerance, so it finds a state that leaks at any weights and in any precision.
- The log-probabilities have to be TRL's. They are compared in float32 where that can be had:
  half precision would hide at small weights what training lets grow.

Weights that are 0 and will be trained, such as the second matrix of LoRA, are something else
meanwhile, because a part of a model that is multiplied by 0 shows nothing. What short rows cannot
show is looked up (packing_limits.py).

Shapes: as in packing.py.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from ..config import option
from ..errors import NotPackableError, SeamMovedError
from ..models.adapters import causal_model
from ..models.measuring import in_float32, unreported, without_dropout, zeros_filled
from ..models.precision import computes_in_half
from ..process_log import get_logger
from ..run_context import RunTraits
from ..trl_seam import attention_implementation, check_fused_head
from .log_probs import forward_packed, forward_without_layouts
from .packed_attention import read_layouts
from .packed_states import read_layouts_of_states
from .packing import PackedGroups
from .packing_limits import (
    longest_packed_row,
    refuse_by_looking,
    refuse_unknown_hooks,
    refuse_unknown_modules,
    refuse_unread_layout,
)

logger = get_logger(__name__)

# TRL's way: (model, input_ids, attention_mask, logits_to_keep) -> (log-probabilities, ...).
Scorer = Callable[..., tuple[Tensor, Tensor | None, Any]]

# Rows as TRL lays them out: ids and mask, (B, P + C), and C.
Block = tuple[Tensor, Tensor, int]

# What is measured: two prompts with two completions each, small numbers in no order. The prompts
# are of one length: TRL gives the model no positions, and padding would shift them.
_PROMPTS = ([3, 17, 10, 24], [4, 12, 28, 9])
_COMPLETIONS = ([8, 21, 30, 13], [15, 7], [11, 29, 18], [22, 3, 14])
# The same lengths, and the same first text between other neighbours.
_OTHER_PROMPTS = (_PROMPTS[0], [2, 16, 23, 31])
_OTHER_COMPLETIONS = (_COMPLETIONS[0], [20, 9], [6, 25, 17], [31, 5, 8])
_SHORTEST = min(map(len, _PROMPTS)) + min(map(len, _COMPLETIONS))

_LIBRARY = Path(__file__).parents[1]

# How far apart log-probabilities may be, on average: those of one text among other neighbours;
# those of a packed row and of TRL's; and either where TRL's own numbers move as much, at most.
# Half precision keeps 8 bits of a logit of about 10.
_TOLERANCES = {False: (2e-6, 1e-5, 1e-4), True: (0.0, 1e-3, 5e-2)}
_TIMES_NOISE = 3.0


@dataclass
class Packing:
    """Which rows a run may update packed.

    Args:
        longest: how many tokens a row may have, padding included; 0 if none is packed.
        model: the policy, for hooks that come later.
    """

    longest: float
    model: nn.Module
    _said: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return self.longest > 0

    def takes(self, block: Tensor) -> bool:
        """Return whether a block of rows, (B, P + C), may be packed; say once why not."""
        if not self:
            return False
        if block.shape[1] > self.longest:
            self._say(
                f"Rows of more than {self.longest:.0f} tokens are updated as in TRL: by its "
                "configuration, the model sees less or counts positions otherwise from there on."
            )
            return False
        try:
            refuse_unknown_hooks(self.model)
        except NotPackableError as error:
            self._say(f"Packed updates are off from here on. About this model: {error}.")
            return False
        return True

    def _say(self, message: str) -> None:
        if message not in self._said:
            # The rows of this process may be the only long ones.
            logger.warning(message, main_process_only=False)
        self._said.add(message)


def decide_packing(
    models: Sequence[nn.Module],
    trl_scorer: Scorer,
    accelerator: Accelerator,
    traits: RunTraits,
    args: Any,
) -> Packing:
    """Decide which rows a run can update packed; where it is none of them, say why, once.

    Args:
        models: the policy, and a reference model if there is one, as training will use them.
        trl_scorer: TRL's way, for the comparison.
        accelerator: of the run.
        traits: of the run.
        args: of the run.
    """
    reason = None
    longest = float("inf")
    shift = 0.0
    policy = accelerator.unwrap_model(models[0])
    if not option(args, "packed_update"):
        return Packing(0.0, policy)
    try:
        if traits.reads_images:
            raise NotPackableError("it reads images as well as text")
        if traits.has_auxiliary_loss:
            raise NotPackableError(
                "its auxiliary loss counts how often each row's tokens chose an expert"
            )
        refuse_by_looking(policy, embedding_noise=args.neftune_noise_alpha is not None)
        # As training will compute.
        with accelerator.autocast(), unreported(args):
            for model in models:
                base = causal_model(accelerator.unwrap_model(model))
                half = computes_in_half(base, autocast=args.bf16 or args.fp16)
                castable = not traits.sharded_weights
                limit, shift = check_packing(model, base, trl_scorer, half=half, castable=castable)
                longest = min(longest, limit)
                # Last, because what is measured to be wrong says more.
                refuse_unknown_modules(accelerator.unwrap_model(model))
        if traits.sharded_weights and longest < float("inf"):
            # Processes have rows of different lengths, and forward as often as each other.
            raise NotPackableError(f"rows of more than {longest:.0f} tokens may differ")
    except NotPackableError as error:
        reason = f"About this model: {error}"
    except SeamMovedError as error:
        reason = f"This is no matter of the model: {error}"
    unable = torch.tensor([reason is not None], device=accelerator.device)
    # One process that cannot is enough: all of them have to take the same path.
    if accelerator.gather(unable).any():
        reason = reason or "About this model: another process cannot"
        longest = 0.0
        logger.warning(
            f"Packed updates are off, and updates cost what they cost with TRL. {reason}."
        )
    elif shift:
        logger.warning(
            "TRL's log-probabilities of this model change with the padding of a row, by "
            f"{shift:.1e} per token here. Packed updates take those of a row by itself "
            "(--packed_update false: TRL's)."
        )
    if longest:
        _say_what_packing_replaces(policy, args)
    return Packing(longest, policy)


def _say_what_packing_replaces(policy: nn.Module, args: Any) -> None:
    """Log which of the user's choices about speed serve packed updates in another way."""
    chosen = attention_implementation(causal_model(policy).config.get_text_config())
    # Of transformers' functions, the one that calls what packed updates call, too.
    if chosen != "sdpa":
        logger.warning(
            f"Packed updates call torch's own attention kernels, on CUDA its FlashAttention 2. "
            f"{chosen!r} serves rollouts, and rows that are not packed."
        )
    if getattr(args, "torch_compile", False):
        logger.warning(
            "Packed updates run without torch.compile, because each row has other lengths; what is "
            "not packed runs compiled (--packed_update false: all updates)."
        )


@torch.no_grad()
def check_packing(
    model: nn.Module,
    base: PreTrainedModel,
    trl_scorer: Scorer,
    *,
    half: bool,
    castable: bool = True,
) -> tuple[float, float]:
    """Compare the packed way with TRL's on two prompts of two completions each.

    Args:
        model: as TRL has it.
        base: the causal language model inside it.
        trl_scorer: TRL's way.
        half: whether the model computes in half precision.
        castable: whether its weights may be float32 for the comparison.

    Returns:
        How many tokens a row may have to be packed; and by how much TRL's log-probabilities change
        with the padding of a row, 0 for rounding.

    Raises:
        NotPackableError: the model cannot take a packed row, or its numbers differ.
        SeamMovedError: another library has changed a name that the packed way relies on.
    """
    config = base.config.get_text_config()
    read_layouts(attention_implementation(config))
    read_layouts_of_states(base)
    check_fused_head(forward_without_layouts(base))
    blocks = (
        _block(_PROMPTS, _COMPLETIONS, base),
        _block(_OTHER_PROMPTS, _OTHER_COMPLETIONS, base),
    )
    with without_dropout(model), zeros_filled(model), _errors_as_reasons():
        # As training will compute, which may end in another error than float32 does.
        layout = PackedGroups.pack(*blocks[0])
        packed, _ = forward_packed(model, layout)
        refuse_unread_layout(layout, base)
        with in_float32(base, wanted=half, castable=castable) as exact:
            if half and exact:
                packed, _ = forward_packed(model, PackedGroups.pack(*blocks[0]))
            shift = _refuse_other_numbers(model, blocks, packed, trl_scorer, half=not exact)
        told = {window for _, window in layout.readers if window}
        return longest_packed_row(config, told, _SHORTEST), shift


def _block(
    prompts: Sequence[list[int]], completions: Sequence[list[int]], base: PreTrainedModel
) -> Block:
    """Lay texts out as TRL does: ids and mask, (4, P + C), and C."""
    longest = max(map(len, completions))
    rows = []
    masks = []
    for row, completion in enumerate(completions):
        tokens = prompts[row // 2] + completion
        padding = [0] * (longest - len(completion))
        rows.append(tokens + padding)
        masks.append([1] * len(tokens) + padding)
    ids = torch.tensor(rows, device=base.device) % base.config.get_text_config().vocab_size
    return ids, torch.tensor(masks, device=base.device), longest


def _trl_log_probs(
    model: nn.Module, block: Block, trl_scorer: Scorer, *, padding: int = 0
) -> Tensor:
    """Score a block TRL's way, (4, C), with so many tokens of padding in front of its rows."""
    ids, mask, longest = block
    scored = trl_scorer(model, pad(ids, (padding, 0)), pad(mask, (padding, 0)), longest)[0]
    return scored * mask[:, -longest:]


def _refuse_other_numbers(
    model: nn.Module, blocks: tuple[Block, Block], packed: Tensor, trl_scorer: Scorer, *, half: bool
) -> float:
    """Refuse a model whose numbers in a packed row depend on the row, or are not TRL's.

    Args:
        model: as TRL has it.
        blocks: two that have the first text in common.
        packed: log-probabilities of the first one in a packed row, (4, C).
        trl_scorer: TRL's way.
        half: whether the numbers are those of half precision.

    Returns:
        By how much TRL's own numbers change with padding, where that is more than rounding.
    """
    elsewhere, _ = forward_packed(model, PackedGroups.pack(*blocks[1]))
    expected = _trl_log_probs(model, blocks[0], trl_scorer)
    leak = _apart(elsewhere[0], packed[0])
    difference = _apart(packed, expected)
    exactly, closely, at_most = _TOLERANCES[half]
    # Rounding moves TRL's own numbers as well when the same texts are laid out in another way.
    # Experts that get other numbers of tokens do so, and half precision does.
    padded = _trl_log_probs(model, blocks[0], trl_scorer, padding=1)
    shift = _apart(padded, expected)
    noise = min(at_most, _TIMES_NOISE * shift)
    # Written so that NaN is refused as well.
    if not leak <= max(exactly, noise):
        raise NotPackableError(
            f"a text in a packed row changes with its neighbours, by {leak:.1e} per token"
        )
    if not difference <= max(closely, noise):
        raise NotPackableError(
            f"its log-probabilities in a packed row are {difference:.1e} from those in separate "
            "rows"
        )
    return 0.0 if half or shift <= at_most else shift


def _apart(values: Tensor, others: Tensor) -> float:
    return (values - others).abs().mean().item()


@contextmanager
def _errors_as_reasons() -> Iterator[None]:
    """Turn what layers raise, on a row that they were not written for, into a reason.

    Raises:
        NotPackableError: a layer of the model raised.
        SeamMovedError: this library did, or met a name that has moved.
    """
    try:
        yield
    except (NotPackableError, SeamMovedError):
        # These say already what is wrong.
        raise
    # Code of any model may raise anything, and a check ends no run.
    except Exception as error:
        what = f"({type(error).__name__}: {error})"
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        # Values and shapes that do not fit are the model's; a wrong name or call is ours.
        if isinstance(error, TypeError | AttributeError) and raised_in.is_relative_to(_LIBRARY):
            moved = f"an error in {raised_in.name} {what}; please report it"
            raise SeamMovedError(moved) from error
        raise NotPackableError(f"it does not take a packed row {what}") from error
