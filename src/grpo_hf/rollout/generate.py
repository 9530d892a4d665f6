"""Sample whole groups, so that each prompt is read once, where that is measured to be right.

TRL samples with `model.generate`, one row per completion, so a prompt is read G times.
`GroupedSampling` puts another decoding loop (decoding.py) into that call, with the adapter folded
into the weights. Before it does so for the first time, it compares the two on the run's own
prompts and settings (self_check.py). Where they differ, or where the loop does not serve a call
(refusals.py), `generate` runs as it would without, and the log says why, once.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import GenerationConfig

from ..models.adapters import causal_model
from ..models.measuring import in_float32, zeros_filled
from ..models.precision import computes_in_half, free_memory
from ..run_context import RunContext
from ..trl_seam import attention_implementation, whole_generation_config
from .decoding import sample_groups
from .merged_weights import copied_bytes, merged
from .refusals import why_not_these_inputs, why_not_these_settings, why_not_this_method
from .self_check import Reference
from .stop_strings import StopStrings

logger = logging.getLogger(__name__)

# Settings whose values may change from call to call without a new measurement.
_FREE = {"max_new_tokens", "max_length", "temperature", "top_p", "top_k", "min_p", "max_time"}

# Copies of weights are worth a word if they take more than this share of the free memory.
NOTABLE = 0.1

_OFF = "Grouped rollouts are off, and rollouts cost what they cost with TRL."


@dataclass(frozen=True)
class _Way:
    """How rows are sampled by groups, and what the log says of what that lacks."""

    merges: bool
    shares_prefixes: bool
    lacks: str = ""

    def weights(self, model: Any) -> AbstractContextManager[None]:
        return merged(model) if self.merges else nullcontext()

    @property
    def loop(self) -> Any:
        return partial(sample_groups, shares_prefixes=self.shares_prefixes)


# From the fastest on; the first one that is measured to be right is taken.
_WAYS = (
    _Way(merges=True, shares_prefixes=True),
    _Way(
        True,
        False,
        "Each row of a rollout keeps the states of its prompt, which costs memory and time:",
    ),
    _Way(False, False, "Rollouts do not fold the adapter into the weights, which costs time:"),
)


class Served:
    """What TRL leaves to do with the completions of a call of `generate`."""

    def __init__(self) -> None:
        self.stops: StopStrings | None = None

    def cut(self, completions: Sequence[list[int]], *others: Any) -> tuple[Any, ...]:
        """Cut completions at stop strings, if the call had any, and return them before the rest."""
        if self.stops is not None:
            completions = self.stops.cut(completions)
        return completions, *others


class GroupedSampling:
    """The sampling of one run, which measures each setting once and says each reason once."""

    def __init__(self, tokenizer: Any = None, accelerator: Accelerator | None = None) -> None:
        """Prepare; nothing is measured before the first call.

        Args:
            tokenizer: for stop strings.
            accelerator: of the run, where there is one. Each process goes its own way, as prompts
                differ; what others lack is logged by `share_reasons`.
        """
        self._tokenizer = tokenizer
        self._accelerator = accelerator
        # By what decides: the way that was measured to be right, or None.
        self._ways: dict[Any, _Way | None] = {}
        self._said: set[str] = set()
        # Those of this process that the others do not know yet.
        self._unshared: list[str] = []

    @contextmanager
    def serving(self, model: Any) -> Iterator[Served]:
        """Let `model.generate` sample by groups for the length of a `with` block.

        Args:
            model: wrapped for training or not; `None` where TRL's way is asked for.

        Yields:
            What the block's calls of `generate` leave to do.
        """
        served = Served()
        if model is None:
            yield served
            return
        if self._accelerator is not None:
            model = self._accelerator.unwrap_model(model)
        generate = model.generate
        # Usually the class's; a method that was put on the object has to come back afterwards.
        of_its_own = vars(model).get("generate")
        replaced = why_not_this_method(model)

        def generate_groups(*positional: Any, **named: Any) -> Any:
            if reason := replaced or why_not_these_inputs(model, positional, named):
                self._say(f"{_OFF} About this call: {reason}")
                return generate(*positional, **named)
            return self._generate(model, generate, named, served)

        model.generate = generate_groups
        try:
            yield served
        finally:
            del model.generate
            if of_its_own is not None:
                model.generate = of_its_own

    def share_reasons(self, run: RunContext) -> None:
        """Log on the main process what other processes lack; all of them have to call this.

        Args:
            run: this process's view of the rollout.
        """
        reasons = run.gather_list(self._unshared)
        self._unshared = []
        for reason in reasons:
            self._log(reason, " (on another process)")

    def _generate(
        self, model: Any, generate: Callable[..., Any], call: dict[str, Any], served: Served
    ) -> Any:
        """Run a call of `generate` the way that was measured to be right for it."""
        own = causal_model(model)
        config = whole_generation_config(own, call["generation_config"])
        stops = StopStrings(self._tokenizer, config)
        served.stops = stops
        width = call["input_ids"].shape[1]
        reason = why_not_these_settings(model, config, width)
        if reason is not None:
            self._say(f"{_OFF} About these settings: {reason}")
        way = None
        if reason is None:
            with stops.as_criterion(own.generation_config, call) as by_groups:
                way = self._way(model, generate, config, by_groups)
                if way is not None:
                    self._say_copies(model, way)
                    with way.weights(model):
                        output = generate(**by_groups, custom_generate=way.loop)
        if way is None:
            output = generate(**call, **stops.for_generate)
        # Settings that return more than tokens are TRL's to refuse.
        if isinstance(output, Tensor):
            stops.find_ends(output, width)
        return output

    def _way(
        self,
        model: Any,
        generate: Callable[..., Any],
        config: GenerationConfig,
        call: dict[str, Any],
    ) -> _Way | None:
        """Return the fastest way that is right, measured at the first call of its kind."""
        kind = self._kind(model, config)
        if kind not in self._ways:
            self._ways[kind], reason = self._measured(model, generate, config, call)
            if reason is not None:
                self._say(reason)
        return self._ways[kind]

    @torch.no_grad()
    def _measured(
        self,
        model: Any,
        generate: Callable[..., Any],
        config: GenerationConfig,
        call: dict[str, Any],
    ) -> tuple[_Way | None, str | None]:
        """Return the fastest way that is right, and why a faster one is not."""
        base = causal_model(model)
        half = computes_in_half(base, autocast=self._autocasts(model.device.type))
        with zeros_filled(model), in_float32(base, wanted=half, castable=True) as exact:
            try:
                reference = Reference(model, generate, config, call, half=not exact)
            # It raises again in the call itself, as it does in TRL.
            except Exception as error:
                return None, f"{_OFF} `generate` itself fails ({type(error).__name__}: {error})"
            way, reasons = _fastest(model, reference)
        # What float32 does not show: a part that does not take the precision of the run.
        if way is not None and half and exact:
            with way.weights(model):
                reason = reference.why_not_running(way.loop)
            if reason is not None:
                way = None
                reasons.append(reason)
        if way is None:
            return None, f"{_OFF} About this model with these settings: {reasons[-1]}"
        lacks = f"{way.lacks} about this model with these settings, "
        return way, lacks + reasons[0] if reasons else None

    def _say_copies(self, model: Any, way: _Way) -> None:
        """Say what the merged weights take, where that is a notable part of the free memory."""
        taken = copied_bytes(model) if way.merges else 0
        if taken > NOTABLE * free_memory(model.device):
            self._say(
                f"While a rollout is sampled, copies of the weights with the adapter in them take "
                f"{taken / 2**30:.1f} GiB beside the model (--grouped_rollout false: none)"
            )

    def _autocasts(self, device: str) -> bool:
        precision = "no" if self._accelerator is None else self._accelerator.mixed_precision
        return precision in ("bf16", "fp16") or torch.is_autocast_enabled(device)

    def _kind(self, model: Any, config: GenerationConfig) -> Any:
        """Return what decides whether a model can be sampled by groups, beside its weights."""
        device = model.device.type
        settings = []
        for name, value in sorted(config.to_dict().items()):
            if name not in _FREE:
                # Some settings are objects, and each call has copies of them.
                settings.append((name, re.sub(r" at 0x[0-9a-f]+", "", repr(value))))
        precision = (model.dtype, self._autocasts(device), torch.get_autocast_dtype(device))
        adapters = None
        if isinstance(model, PeftModel):
            layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
            disabled = any(layer.disable_adapters for layer in layers)
            adapters = (tuple(model.active_adapters), disabled)
        implementation = attention_implementation(causal_model(model).config.get_text_config())
        return id(causal_model(model)), device, implementation, precision, adapters, tuple(settings)

    def _say(self, reason: str) -> None:
        """Log a reason of this process, once, and keep it for the others."""
        if reason not in self._said:
            self._unshared.append(reason)
        self._log(reason)

    def _log(self, reason: str, where: str = "") -> None:
        """Log a reason once, on the main process."""
        if reason in self._said:
            return
        self._said.add(reason)
        if self._accelerator is None or self._accelerator.is_main_process:
            logger.warning(f"{reason}{where}.")


def _fastest(model: Any, reference: Reference) -> tuple[_Way | None, list[str]]:
    """Return the fastest way that is right, and why those before it are not."""
    reasons: list[str] = []
    for way, fallback in zip(_WAYS, _WAYS[1:] + _WAYS[-1:], strict=True):
        with way.weights(model):
            reason = reference.why_not(way.loop)
            # With dropout in its attention a model in training does not share prefixes.
            if reason is None and _has_dropout(model):
                reason = reference.why_not(fallback.loop)
        if reason is None:
            return way, reasons
        reasons.append(reason)
    return None, reasons


def _has_dropout(model: Any) -> bool:
    """Return whether a configuration asks for dropout in attention, whatever it calls it."""
    config = causal_model(model).config.get_text_config().to_dict()
    return any("att" in name and "drop" in name and config[name] for name in config)
