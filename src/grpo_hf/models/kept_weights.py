"""Copies of weights as they were, to be seen in the place of those that train.

An adapter that is disabled leaves the base, unless weights of the base train beside it: its biases
(`bias="all"`), or what a user has unfrozen. Copies of just those complete the base.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

# Under this name a PEFT model holds its copies. A deep copy of the model copies them along.
_ATTRIBUTE = "kept_weights"
# Where adapters keep the module that they wrap.
_WRAPPED = ("base_layer", "original_module")


class Snapshot:
    """Copies of some weights of a model, as they were when they were taken."""

    def __init__(self) -> None:
        # The weights themselves and no names, which change when another adapter wraps a layer.
        self._copies: list[tuple[nn.Parameter, Tensor]] = []

    def take(self, weights: Iterable[nn.Parameter]) -> None:
        """Copy the weights of which there is no copy yet."""
        # By identity, because comparing tensors compares their entries.
        known = {id(weight) for weight, _ in self._copies}
        for weight in weights:
            if id(weight) not in known:
                self._copies.append((weight, weight.detach().clone()))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """See the copies in the place of the weights for a block.

        No numbers are copied: for the block the weights point to the copies' memory.
        """
        trained = [weight.data for weight, _ in self._copies]
        try:
            for weight, copy in self._copies:
                # The model may have moved to another device, or have another dtype by now.
                weight.data = copy.to(weight)
            yield
        finally:
            for (weight, _), data in zip(self._copies, trained, strict=True):
                weight.data = data

    @property
    def tensors(self) -> list[Tensor]:
        """The copies."""
        return [copy for _, copy in self._copies]

    @property
    def size(self) -> int:
        """How many bytes the copies take."""
        return sum(copy.nbytes for copy in self.tensors)


class KeptWeights:
    """What a PEFT model keeps of weights that train.

    Attributes:
        base: the base's own weights that train beside an adapter, as they were.
        start: all weights that train, as they were when the run began, where that is the reference
            and PEFT cannot hold it as a second adapter; otherwise None.
    """

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self.base = Snapshot()
        self.start: Snapshot | None = None

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Do what PEFT's method does, with the base's own weights in their place."""
        with self.base.in_place(), type(self._model).disable_adapter(self._model):
            yield


def kept_weights(model: Any) -> KeptWeights:
    """Return what a PEFT model keeps; there may be nothing in it."""
    kept = vars(model).get(_ATTRIBUTE)
    return KeptWeights(model) if kept is None else kept


def keep_base(model: PeftModel) -> list[str]:
    """Keep copies of the base's own weights that train, and let `disable_adapter` show them.

    Returns:
        The names of these weights.
    """
    training = base_weights_that_train(model)
    if training:
        kept = kept_weights(model)
        kept.base.take(training.values())
        setattr(model, _ATTRIBUTE, kept)
        # Also TRL and users read the base through this method.
        setattr(model, "disable_adapter", kept.disable_adapter)  # noqa: B010
    return list(training)


def keep_start(model: PeftModel) -> None:
    """Keep copies of all weights that train, as the reference."""
    kept = kept_weights(model)
    kept.start = Snapshot()
    kept.start.take(weight for weight in model.parameters() if weight.requires_grad)
    setattr(model, _ATTRIBUTE, kept)


def base_weights_that_train(model: PeftModel) -> dict[str, nn.Parameter]:
    """Return the weights that train and belong to no adapter, by name."""
    of_adapters = {id(weight) for weight, _ in _adapter_weights(model).values()}
    training = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad and id(weight) not in of_adapters:
            training[name] = weight
    return training


def role_weights(model: PeftModel, adapter: str) -> dict[str, nn.Parameter]:
    """Return the weights of one adapter, by name."""
    weights = {}
    for name, (weight, within) in _adapter_weights(model).items():
        # A part of the name and not just inside of it: `ref` is in `refined` as well.
        if adapter in within.split("."):
            weights[name] = weight
    return weights


def _adapter_weights(model: PeftModel) -> dict[str, tuple[nn.Parameter, str]]:
    """Return the weights of all adapters by name, each with its name inside of its adapter.

    The name of a layer says nothing: an adapter may be called `model` or `layers`.
    """
    weights = {}
    # Tuners begin the names of what they add with a prefix, also outside of layers.
    prefix = getattr(model.base_model, "prefix", None) or "prompt_encoder"
    for name, weight in model.named_parameters():
        outer, found, within = name.partition(f".{prefix}")
        if name.startswith(prefix):
            weights[name] = (weight, name)
        elif found and outer:
            weights[name] = (weight, within)
    for outer, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        for within, weight in module.named_parameters():
            if within.partition(".")[0] not in _WRAPPED:
                weights[f"{outer}.{within}"] = (weight, within)
    return weights
