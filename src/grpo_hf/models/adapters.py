"""One frozen base, seen through adapters: the policy, the base itself, and other roles.

    policy     base + the active adapter
    base       adapters disabled, and copies of weights of the base that train beside them
    others     base + one more adapter each: a reward model, a critic

reference.py shows the reference. Nothing else in this library switches adapters.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..errors import ModelError
from ..trl_seam import is_packed, layers_that_pack, name_or_path, never_pack
from .kept_weights import kept_weights, role_weights
from .loading import loading
from .places import absolute, check_local

# These write into the base weights when the adapter is created, so that the base with the adapter
# disabled is no longer the model that the user gave.
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def continue_adapter(base: PreTrainedModel, adapter: str) -> PeftModel:
    """Put a saved adapter on the base and make it trainable again, as the policy."""
    guard_adapter_config(PeftConfig.from_pretrained(adapter))
    return PeftModel.from_pretrained(base, adapter, is_trainable=True)


def check_adapter(adapter: str, config: Any) -> None:
    """Check from file headers alone that a saved LoRA adapter fits a base configuration.

    Raises:
        ModelError: no adapter there, a layer that the base lacks, or a layer of another size.
    """
    folder = Path(adapter)
    check_local(adapter, "adapter", "adapter_config.json")
    with loading("adapter", adapter):
        guard_adapter_config(PeftConfig.from_pretrained(adapter))
    # An adapter on the Hub has no file to look into yet: PEFT itself compares while it loads.
    if not folder.is_dir():
        return
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        _check_layers(adapter, weights, config)
    # The older format, .bin, has no header to read: there, too, PEFT compares while it loads.
    elif not (folder / "adapter_model.bin").is_file():
        raise ModelError(
            f"{adapter}: no adapter_model.safetensors beside adapter_config.json; was the save "
            "complete?"
        )


def _check_layers(adapter: str, weights: Path, config: Any) -> None:
    """Compare the layers in an adapter's file with those of a base that exists as shapes only."""
    # Shapes cost no memory; the base itself may take minutes to load.
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config)
    shapes = {}
    for name, weight in base.named_parameters():
        shapes[name] = tuple(weight.shape)
    with safe_open(weights, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (safe_open is not iterable)
            module, is_lora, part = key.removeprefix("base_model.model.").partition(".lora_")
            # An adapter on a parameter (target_parameters) has no layer of its own to compare.
            if not is_lora or module.endswith("base_layer"):
                continue
            shape = tensors.get_slice(key).get_shape()
            # A is (r, in) and B is (out, r), so each names one side of the base's weight.
            size = shape[1] if part.startswith(("A", "embedding_A")) else shape[0]
            base_shape = shapes.get(f"{module}.weight")
            # Either side, because some layers (Conv1D of GPT-2) keep their weight transposed.
            if base_shape is None or size not in base_shape:
                raise _misfit(adapter, module, size, base_shape)


def _misfit(adapter: str, module: str, size: int, base_shape: tuple[int, ...] | None) -> ModelError:
    saved = json.loads((Path(adapter) / "adapter_config.json").read_text())
    if base_shape is None:
        problem = "the base has no such layer"
    else:
        problem = f"{size} does not fit the base's {base_shape}"
    return ModelError(
        f"adapter {adapter} does not fit the base: {module}: {problem}. It was trained on "
        f"{saved.get('base_model_name_or_path')}; give that as --model_name_or_path."
    )


def guard_adapter_config(config: PeftConfig | None) -> None:
    """Refuse adapters whose creation changes the base.

    The reference is the base with the adapter disabled, so it would not be the user's model.

    Raises:
        ModelError: PiSSA, OLoRA, CorDA, LoftQ or LoRA-GA initialisation, or KaSA.
    """
    # KaSA cuts the smallest singular values off the base's weights.
    if getattr(config, "kasa_config", None) is not None:
        raise ModelError(
            "kasa_config changes the base weights when the adapter is created, so the base with "
            "the adapter disabled is not the model you started from. Leave kasa_config out."
        )
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        raise ModelError(
            f"init_lora_weights={init!r} changes the base weights when the adapter is created, so "
            "the base with the adapter disabled is not the model you started from, and the KL term "
            "would pull towards something else. Use init_lora_weights=True, 'gaussian', 'eva' or "
            "'orthogonal'."
        )


def guard_adapters(model: Any, peft_config: PeftConfig | None) -> None:
    """Refuse a PEFT model that trains nothing, and adapters that change the base.

    Args:
        model: what the user gave to the trainer: a name, a model, or a PEFT model.
        peft_config: of an adapter that the trainer will create.

    Raises:
        ModelError: no weight requires a gradient, as after
            `PeftModel.from_pretrained(base, adapter)`, or an initialisation changes the base.
    """
    guard_adapter_config(peft_config)
    for config in getattr(model, "peft_config", {}).values():
        guard_adapter_config(config)
    # PEFT loads an adapter for inference unless it is told otherwise.
    if isinstance(model, PeftModel) and not any(p.requires_grad for p in model.parameters()):
        raise ModelError(
            "the PEFT model has no trainable weights: nothing would be learned. Load it with "
            "PeftModel.from_pretrained(base, adapter, is_trainable=True)."
        )


def keep_trainable(model: Any) -> None:
    """Keep 4-bit layers differentiable.

    On some CPUs bitsandbytes 0.50 packs their weights at the first inference. The kernel for
    packed weights has no backward, so every path through the layer would be missing from the
    gradient, without an error.

    Raises:
        ModelError: the weights are packed already.
    """
    for layer in layers_that_pack(model):
        if is_packed(layer):
            raise ModelError(
                "the 4-bit base has been used for inference, and bitsandbytes has packed its "
                "weights for that: they cannot train any more. Load it again and give it to the "
                "trainer first."
            )
        never_pack(layer)


def causal_model(model: Any) -> PreTrainedModel:
    """Return the causal language model inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def base_found_from_anywhere(model: Any) -> Iterator[None]:
    """Name a base that is a folder by its absolute path, in what is saved of adapters in a block.

    PEFT reads a relative path from the folder that a program is started in, and asks the Hub for
    one that is not there.
    """
    configs = list(getattr(model, "peft_config", {}).values())
    named = [config.base_model_name_or_path for config in configs]
    loaded = name_or_path(causal_model(model).config) if configs else ""
    try:
        for config in configs:
            config.base_model_name_or_path = _base_to_save(config.base_model_name_or_path, loaded)
        yield
    finally:
        # PEFT warns of a configuration that is used again and names another base.
        for config, name in zip(configs, named, strict=True):
            config.base_model_name_or_path = name


def _base_to_save(named: str | None, loaded: str) -> str | None:
    """Return the name of a base for an adapter's file.

    Args:
        named: by the adapter's configuration, which may be older than the run.
        loaded: by which the base was loaded.
    """
    if named and not os.path.isabs(named):
        return absolute(named)
    # A folder that is gone; or none is named yet, where PEFT takes the loaded one.
    if not named or not os.path.isdir(named):
        return absolute(loaded) if os.path.isdir(loaded) else named
    return named


@contextmanager
def as_base(model: Any) -> Iterator[Any]:
    """See a PEFT model for a block as the base alone, with every adapter disabled."""
    with model.disable_adapter():
        yield model


def add_role(model: PeftModel, adapter: str, config: PeftConfig) -> None:
    """Put one more adapter on the base, frozen; what trains and what is active stay as they were.

    Raises:
        ModelError: the model has an adapter of this name, or this one would change the base.
    """
    if adapter in model.peft_config:
        raise ModelError(
            f"the model has an adapter {adapter!r} already ({', '.join(model.peft_config)}). Give "
            f"another name, or remove it with model.delete_adapter({adapter!r})."
        )
    guard_adapter_config(config)
    # Before anything reads through the base, since reading is what packs 4-bit weights.
    keep_trainable(model)
    with flags_kept(model):
        model.add_adapter(adapter, config)
    for weight in role_weights(model, adapter).values():
        weight.requires_grad_(False)


@contextmanager
def seen_through(model: PeftModel, adapter: str, *, train: bool = False) -> Iterator[None]:
    """See the base through another adapter for a block, without dropout and without training.

    Afterwards the active adapter, each module's mode and each weight's `requires_grad` are what
    they were, also where adapters were disabled.

    Args:
        train: turns dropout on, and lets this adapter's weights alone require gradients.
    """
    active = model.active_adapter
    disabled = _disabled_layers(model)
    # The base under another adapter is the one that the policy started from.
    with flags_kept(model), kept_weights(model).base.in_place():
        try:
            # A reward model may be read inside a block that disables adapters.
            for layer in disabled:
                layer.enable_adapters(True)
            model.set_adapter(adapter, inference_mode=not train)
            # By identity, because comparing tensors compares their entries.
            own = set(map(id, role_weights(model, adapter).values()))
            # A policy may train more than its adapter: nothing of that may learn here.
            for weight in model.parameters():
                weight.requires_grad_(weight.requires_grad and id(weight) in own)
            model.train(train)
            yield
        finally:
            model.set_adapter(active)
            for layer in disabled:
                layer.enable_adapters(False)


def _disabled_layers(model: PeftModel) -> list[Any]:
    """Return the layers whose adapters are switched off at the moment."""
    layers = []
    for module in model.modules():
        is_adapted = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        if is_adapted and module.disable_adapters:
            layers.append(module)
    return layers


@contextmanager
def flags_kept(model: Any) -> Iterator[None]:
    """Restore, after a block, which weights require a gradient and which modules train."""
    # PEFT sets `requires_grad` of all adapters when one is added or becomes active.
    gradients = [(weight, weight.requires_grad) for weight in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for weight, requires_grad in gradients:
            weight.requires_grad_(requires_grad)
        # Not module.train(mode), which would set the modules below as well.
        for module, training in modes:
            module.training = training
