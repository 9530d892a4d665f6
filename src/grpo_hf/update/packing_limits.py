"""What a few short rows cannot show about packing is looked up here, and refused or given a limit.

`packing_check.py` measures whether a model takes packed rows. A measurement sees what happens in
its rows. It sees neither noise that is drawn in training only, nor what begins with longer rows: a
window, chunks, the best k of all keys, positions that are stretched beyond a length.
"""

import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import NotPackableError
from ..models.positions import stretching_positions
from ..trl_seam import own_hooks
from .packing import PackedGroups

# PEFT 0.21: adapters that work token by token; tests hold each of them against TRL's rows.
TOKENWISE_ADAPTERS = {
    "ADALORA",
    "BOFT",
    "C3A",
    "DELORA",
    "FOURIERFT",
    "HRA",
    "IA3",
    "LN_TUNING",
    "LOHA",
    "LOKR",
    "LORA",
    "MISS",
    "OFT",
    "ROAD",
    "SHIRA",
    "TRAINABLE_TOKENS",
    "VBLORA",
    "VERA",
    "WAVEFT",
}

# Options of LoRA under which it looks at a batch, or draws random numbers, in training.
ROWWISE_OPTIONS = {
    "alora_invocation_tokens": "its adapter looks for invocation tokens once per row (aLoRA)",
    "monteclora_config": "its adapter draws weights at each forward (MonteCLoRA)",
    "velora_config": "its adapter keeps an average of the first batch (VeLoRA)",
    "arrow_config": "its adapter routes between others (Arrow)",
}

# Libraries whose hooks leave the values of a forward as they are, and whose modules do the same in
# training as when they are measured, in rows of any length that their configuration allows.
_KNOWN = (
    "accelerate",
    "bitsandbytes",
    "deepspeed",
    "fla",
    "grpo_hf",
    "kernels",
    "liger_kernel",
    "peft",
    "torch",
    "transformers",
    "trl",
)

# Names of numbers that may say how far a token sees, or from which length on positions change.
_LENGTH = re.compile(
    r"window|chunk|block|top_?k|keep|local|segment|stride|span|context|max_distance|mem_len"
    r"|floor_scale"
)
# Numbers of layers, experts, images and answers have such names, too. Mamba's chunks are a way to
# compute, and change nothing.
_NO_LENGTH = re.compile(
    r"^n_|^num_|layer|expert|moe|group|pattern|type|image|multiple|method|^(mamba_)?chunk_size$"
)


def refuse_by_looking(model: nn.Module, *, embedding_noise: bool) -> None:
    """Refuse what reads rows or draws noise in training, where no measurement sees it.

    Args:
        model: as training will use it, unwrapped.
        embedding_noise: whether the run adds noise to embeddings (NEFTune).

    Raises:
        NotPackableError: says what was found.
    """
    if embedding_noise:
        raise NotPackableError("NEFTune scales the noise of embeddings by the length of a row")
    for adapter in getattr(model, "peft_config", {}).values():
        kind = getattr(adapter.peft_type, "value", adapter.peft_type)
        if kind not in TOKENWISE_ADAPTERS:
            raise NotPackableError(f"adapters of type {kind} are not known to work token by token")
        for option, reason in ROWWISE_OPTIONS.items():
            if getattr(adapter, option, None):
                raise NotPackableError(reason)
    refuse_unknown_hooks(model)


def refuse_unknown_modules(model: nn.Module) -> None:
    """Refuse modules of the user's, and forwards that were replaced on the object.

    They may read rows in training alone, or from a length on that nothing declares.

    Raises:
        NotPackableError: names the first such module.
    """
    for name, module in model.named_modules():
        homes = [type(module).__module__]
        replaced = vars(module).get("forward")
        if replaced is not None:
            # accelerate wraps the forward of the whole model, and remembers what it has wrapped.
            homes += [home_of(replaced), home_of(inspect.unwrap(replaced))]
        for home in homes:
            if home.split(".")[0] not in _KNOWN:
                raise NotPackableError(
                    f"{name or 'the model'} computes with code that is no known library's ({home})"
                )


def home_of(function: Any) -> str:
    """Return the module in which a function is written."""
    # functools.partial has no module of its own.
    return getattr(getattr(function, "func", function), "__module__", None) or ""


def refuse_unknown_hooks(model: nn.Module) -> None:
    """Refuse hooks of the user's: they may read rows, and what they see would be another shape.

    Raises:
        NotPackableError: names the module that has such a hook.
    """
    for name, module in model.named_modules():
        for hook in own_hooks(module):
            home = home_of(hook)
            noise = home.startswith("transformers.integrations.neftune")
            if noise or home.split(".")[0] not in _KNOWN:
                raise NotPackableError(f"a hook on {name or 'the model'} may read rows ({home})")


def refuse_unread_layout(layout: PackedGroups, base: PreTrainedModel) -> None:
    """Refuse a model with layers that never asked for the layout of the row.

    Args:
        layout: of a row that the model has read.
        base: the causal language model.

    Raises:
        NotPackableError: says how many layers asked.
    """
    layers = base.config.get_text_config().num_hidden_layers
    # A layer with attention of its own does not ask; nor does one without attention.
    attending = len({module for module, _ in layout.readers})
    # What carries state along the row begins with a convolution. The recurrence behind it is
    # measured.
    convolutions = [module for module in base.modules() if isinstance(module, nn.Conv1d)]
    all_read = len(layout.convolutions) == len(convolutions)
    if not all_read or (attending != layers and not convolutions):
        convolve = f", and {len(layout.convolutions)} of {len(convolutions)} convolutions read it"
        raise NotPackableError(
            f"{attending} of its {layers} layers attend through AttentionInterface"
            f"{convolve if convolutions else ''}"
        )


def longest_packed_row(config: Any, told: set[int], measured: int) -> float:
    """Return up to which length rows may be packed, by the numbers of a configuration.

    Args:
        config: of the text model.
        told: the windows that the model gives its attention, which packed attention keeps.
        measured: tokens of the shortest row that was measured.

    Returns:
        One less than the smallest length at which a token may see less, or positions may change;
        infinity where there is none.
    """
    longest = math.inf
    for number in _lengths(config):
        # Models count a window with or without the token itself, or to both sides of it.
        known = {number - 1, number, number + 1, number // 2, number // 2 + 1}
        if not told & known and number >= measured:
            longest = min(longest, number - 1)
    return longest


def _lengths(config: Any) -> Iterator[int]:
    """Find the numbers of a configuration that may be such a length."""
    kinds = getattr(config, "layer_types", None)
    # transformers 5.23: without `layer_types` all layers are alike. Masks are made by these kinds,
    # also where `use_sliding_window` is false (SmolLM3).
    if kinds:
        windowed = any("sliding" in kind for kind in kinds)
    else:
        windowed = getattr(config, "use_sliding_window", True)
    for name, value in config.to_dict().items():
        if name == "sliding_window" and not windowed:
            continue
        if _LENGTH.search(name) and not _NO_LENGTH.search(name):
            yield from _numbers(value)
    for _, length in stretching_positions(config):
        yield length


def _numbers(value: Any) -> list[int]:
    """Return the positive integers in a value or a list of values."""
    numbers = []
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, int) and not isinstance(each, bool) and each > 0:
            numbers.append(each)
    return numbers
