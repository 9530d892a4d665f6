"""vLLM's engine in the trainer's process: started once on the untouched base, given adapters."""

import gc
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, EngineError
from .vllm_adapter import AdapterSampler

# By what they were started with: a second trainer on the same base goes on with the engine of the
# first one, because two may not fit beside each other.
_started: dict[str, Any] = {}


class PlainEngine:
    """An engine of this process, whose refusals are errors of ours.

    Everything else is the engine's own.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def generate(self, *positional: Any, **named: Any) -> Any:
        """Sample.

        Raises:
            EngineError: a prompt or a setting is not possible in this engine.
        """
        try:
            return self._llm.generate(*positional, **named)
        except Exception as error:
            if not _is_refusal(error):
                raise
            raise EngineError(
                f"vLLM cannot sample this ({error}). --vllm_max_model_length is the room for a "
                "prompt and its completion; generation_kwargs and vllm_structured_outputs_regex "
                "are settings of vLLM's."
            ) from error


def _is_refusal(error: Exception) -> bool:
    """Return whether an error is a ValueError, or one of vLLM's own, as vLLM 0.32 has them."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, ValueError) or "vllm" in packages


class ProcessEngine(AdapterSampler, PlainEngine):
    """An engine of this process, sampling with the adapter that was loaded last."""

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter in the place of the one before."""
        from vllm.lora.request import LoRARequest

        in_place = LoRARequest(name, 1, str(folder), load_inplace=True)
        self._llm.llm_engine.add_lora(in_place)
        # Another request than that one: vLLM would read the files again at each token.
        self._adapter = LoRARequest(name, 1, str(folder))
        self._llm.reset_prefix_cache()

    def generate(self, *positional: Any, **named: Any) -> Any:
        """Sample with the adapter.

        Raises:
            EngineError: a prompt or a setting is not possible in this engine.
        """
        return super().generate(*positional, **{"lora_request": self._adapter, **named})

    def complete(self, prompts: Sequence[list[int]], **sampling: Any) -> list[list[int]]:
        """Return the tokens of `n` completions of each prompt, those of one side by side.

        Args:
            sampling: settings of vLLM's `SamplingParams`, `n` and `max_tokens` among them.
        """
        from vllm import SamplingParams

        outputs = self.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            sampling_params=SamplingParams(**sampling),
            use_tqdm=False,
        )
        written = []
        for output in outputs:
            written += [list(completion.token_ids) for completion in output.outputs]
        return written

    def sleep(self, level: int = 1, **named: Any) -> Any:
        """Move the base out of the way. At level 2, TRL's, vLLM would drop it."""
        return self._llm.sleep(level=min(level, 1), **named)


def check_sampling(args: Any) -> None:
    """Check that an engine takes the settings that TRL 1.16 hands on to it.

    Raises:
        ConfigError: one is not vLLM's.
    """
    from vllm import SamplingParams

    given = args.generation_kwargs or {}
    try:
        # Some are compared with the limit, as min_tokens is.
        SamplingParams(**{"max_tokens": args.max_completion_length, "logprobs": 0, **given})
    except Exception as error:
        # A TypeError names what vLLM does not know.
        if not (_is_refusal(error) or isinstance(error, TypeError)):
            raise
        raise ConfigError(
            f"generation_kwargs {given}: vLLM does not take them ({error}). With use_vllm they are "
            "arguments of its SamplingParams, such as stop in the place of stop_strings."
        ) from error


def on_cpu(accelerator: Any) -> dict[str, Any]:
    """Return what an engine beside a trainer on a CPU is started with."""
    if accelerator.device.type != "cpu":
        return {}
    # Bound to cores, the threads of the trainer would be, too.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # To compile for a CPU takes minutes.
    return {"enforce_eager": True}


def start_engine(extra: dict[str, Any], **settings: Any) -> Any:
    """Return an engine of this process; one that was started alike goes on.

    Args:
        extra: beside what TRL 1.16 starts it with.
    """
    settings |= extra
    key = repr(sorted(settings.items()))
    if key not in _started:
        from vllm import LLM

        _started[key] = LLM(**settings)
    return _started[key]


def end_engines() -> None:
    """End the engines of this process, so that their memory is free."""
    for llm in _started.values():
        # Its cache and its weights are the engine core's.
        with suppress(Exception):
            llm.llm_engine.engine_core.shutdown()
    _started.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def engine_dtype(model: Any, accelerator: Any) -> str:
    """Return the precision in which the policy computes, for the engine to compute in, too."""
    autocast = {"bf16": "bfloat16", "fp16": "float16"}.get(accelerator.mixed_precision)
    return autocast or str(model.dtype).removeprefix("torch.")
