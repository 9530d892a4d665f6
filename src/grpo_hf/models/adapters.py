"""One frozen base, seen through adapters: the policy on it, the reference without it, and their guards.

    policy     base + LoRA adapter `default`, the only weights that train
    reference  base with adapters disabled; for a run that continues an adapter, base + its frozen copy `ref`; after a
               reset, base + a frozen copy `ref` of the policy as it was then

Nothing else in this library switches adapters.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl.trainer.utils import use_adapter

from .loading import check_local, loading
from ..config import option
from ..errors import ModelError, ReferenceDriftError

if TYPE_CHECKING:
    from ..trainer import GRPOTrainer

# These write into the base weights when the adapter is created, so "adapter disabled" is no longer the base.
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
    if not folder.is_dir():
        return  # on the Hub: PEFT itself compares while loading
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        if (folder / "adapter_model.bin").is_file():
            return  # the older format has no header to read: PEFT itself compares while loading
        raise ModelError(f"{adapter}: no adapter_model.safetensors beside adapter_config.json; was the save complete?")
    with torch.device("meta"):
        layers = {name: tuple(p.shape) for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    with safe_open(weights, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (safe_open is not iterable)
            module, found, part = key.removeprefix("base_model.model.").partition(".lora_")
            if not found or module.endswith("base_layer"):  # target_parameters: no layer of their own
                continue
            shape, base = tensors.get_slice(key).get_shape(), layers.get(f"{module}.weight")
            size = shape[1] if part.startswith(("A", "embedding_A")) else shape[0]
            if base is None or size not in base:
                trained_on = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
                what = "the base has no such layer" if base is None else f"{size} does not fit the base's {base}"
                raise ModelError(
                    f"adapter {adapter} does not fit the base: {module}: {what}. It was trained on {trained_on}; give "
                    "that as --model_name_or_path."
                )


def guard_adapter_config(config: PeftConfig | None) -> None:
    """Refuse adapters whose creation changes the base, because the reference is the base with the adapter disabled.

    Raises:
        ModelError: PiSSA, OLoRA, CorDA, LoftQ or LoRA-GA initialisation.
    """
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        raise ModelError(
            f"init_lora_weights={init!r} changes the base weights when the adapter is created, so the base with the "
            "adapter disabled is not the model you started from, and the KL term would pull towards something else. "
            "Use init_lora_weights=True, 'gaussian', 'eva' or 'orthogonal'."
        )


def guard_adapters(model: Any, peft_config: PeftConfig | None) -> None:
    """Refuse a PEFT model that trains nothing, and adapters, on it or to come, that change the base.

    Raises:
        ModelError: no weight requires a gradient, as after `PeftModel.from_pretrained(base, adapter)`, or an
            initialisation that changes the base.
    """
    for config in (peft_config, *getattr(model, "peft_config", {}).values()):
        guard_adapter_config(config)
    if isinstance(model, PeftModel) and not any(p.requires_grad for p in model.parameters()):
        raise ModelError(
            "the PEFT model has no trainable weights: nothing would be learned. Load it with "
            "PeftModel.from_pretrained(base, adapter, is_trainable=True)."
        )


def prepare(model: Any, reference: str) -> None:
    """Make what TRL has built what this library promises: its reference, and weights that stay trainable.

    For a continued adapter TRL 1.16 has put a frozen copy of it on the base as `ref`. With `reference="base"` the copy
    goes, and TRL falls back to the base with adapters disabled.

    Raises:
        ModelError: a 4-bit base whose weights cannot train any more.
    """
    if reference == "base":
        drop_reference(model)
    keep_trainable(model)


def keep_trainable(model: Any) -> None:
    """Keep 4-bit layers differentiable: bitsandbytes 0.50 packs their weights at the first inference on some CPUs, and
    the kernel for packed weights has no backward: every path through the layer would be missing from the gradient.

    Raises:
        ModelError: the weights are packed already.
    """
    for linear in (module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")):
        if getattr(linear.weight.quant_state, "packing_format_for_cpu", False):
            raise ModelError(
                "the 4-bit base has been used for inference, and bitsandbytes has packed its weights for that: they "
                "cannot train any more. Load it again and give it to the trainer first."
            )
        linear.support_avx512bf16_for_cpu = False


def causal_model(model: Any) -> PreTrainedModel:
    """The causal language model inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def as_base(model: Any) -> Iterator[Any]:
    """The base alone: the PEFT model with every adapter disabled."""
    with model.disable_adapter():
        yield model


@contextmanager
def as_reference(model: Any) -> Iterator[Any]:
    """What the KL term compares with: the frozen copy `ref` where there is one, else the base alone."""
    with use_adapter(model, "ref" if "ref" in model.peft_config else None):
        yield model


def drop_reference(model: Any) -> None:
    """Forget the frozen copy, if there is one: the reference is the base alone, until there is another."""
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")


def reset_reference(model: PeftModel) -> None:
    """Make the policy as it is now the reference: π_ref ← π_θ, as a frozen copy `ref` of the active adapter.

    The policy stays active, and the run's random numbers are those that it would have had.

    Source: arXiv 2402.03300, algorithm 1, line 3.
    """
    policy = model.active_adapter
    if "ref" not in model.peft_config:
        with torch.random.fork_rng(devices=[]):  # PEFT initialises on the CPU
            add_role(model, "ref", model.peft_config[policy])
    copies, weights = role_weights(model, "ref"), role_weights(model, policy)
    for copy, weight in zip(copies.values(), weights.values(), strict=True):
        copy.data = copy.data.to(weight).copy_(weight.data)  # PEFT's new adapters are float32, the policy may not be


def add_role(model: PeftModel, adapter: str, config: PeftConfig) -> None:
    """Put one more adapter on the base, frozen; what trains and what is active stay as they were.

    Raises:
        ModelError: an adapter of this name is there, or this one would change the base.
    """
    if adapter in model.peft_config:
        raise ModelError(
            f"the model has an adapter {adapter!r} already ({', '.join(model.peft_config)}). Give another name, or "
            f"remove it with model.delete_adapter({adapter!r})."
        )
    guard_adapter_config(config)
    keep_trainable(model)  # before anything reads through the base
    with _flags_kept(model):
        model.add_adapter(adapter, config)
    for weight in role_weights(model, adapter).values():
        weight.requires_grad_(False)


def role_weights(model: PeftModel, adapter: str) -> dict[str, torch.nn.Parameter]:
    """The weights of one adapter, by name."""
    return {name: weight for name, weight in model.named_parameters() if adapter in name.split(".")}


@contextmanager
def seen_through(model: PeftModel, adapter: str, *, train: bool = False) -> Iterator[None]:
    """The base through another adapter, for the length of a `with` block: without dropout, and without training.

    Afterwards the active adapter, each module's mode and each weight's `requires_grad` are what they were, also where
    adapters were disabled. With `train`, dropout is on, and this adapter's weights alone require gradients.
    """
    active = model.active_adapter
    layers = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    disabled = [layer for layer in model.modules() if isinstance(layer, layers) and layer.disable_adapters]
    with _flags_kept(model):
        try:
            for layer in disabled:
                layer.enable_adapters(True)
            model.set_adapter(adapter, inference_mode=not train)
            own = {id(weight) for weight in role_weights(model, adapter).values()}
            for weight in model.parameters():  # a policy may train more than its adapter
                weight.requires_grad_(weight.requires_grad and id(weight) in own)
            model.train(train)
            yield
        finally:
            model.set_adapter(active)
            for layer in disabled:
                layer.enable_adapters(False)


@contextmanager
def _flags_kept(model: Any) -> Iterator[None]:
    """Afterwards each weight requires a gradient, and each module trains, if it did before."""
    weights = [(weight, weight.requires_grad) for weight in model.parameters()]
    modules = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for weight, requires_grad in weights:
            weight.requires_grad_(requires_grad)
        for module, training in modules:
            module.training = training










