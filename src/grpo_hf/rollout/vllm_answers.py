"""vLLM as the writer of an evaluation's answers: one base, with the adapter beside it and without.

It is started, given the adapter and checked against the model as in a training (vllm_engine.py).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator

from ..errors import ConfigError, EngineError
from .sampling import Sample, end_token_ids
from .vllm_engine import adapter_sampler, close_engines
from .vllm_sync import ADAPTER, choose_sync, is_quantized, why_not_adapter


class VllmAnswers:
    """Continues tokens by vLLM, as `sampling.continuing` does by transformers.

    Args:
        engine: of this process, or servers; it samples with the adapter.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def as_base(self) -> AbstractContextManager[None]:
        """Sample without the adapter for a block."""
        without: AbstractContextManager[None] = self._engine.as_base()
        return without

    @contextmanager
    def continuing(
        self, model: Any, tokenizer: Any, sampling: Mapping[str, Any]
    ) -> Iterator[Sample]:
        """Yield a function from lists of tokens and a limit to what is written after them.

        Args:
            model: the policy, of which the tokens that end a completion are read.
            sampling: settings of `generate`.
        """
        settings = _settings_of(sampling)
        ends = {*end_token_ids(model, tokenizer), *(settings.get("stop_token_ids") or [])}
        settings["stop_token_ids"] = sorted(ends)

        def sample(asked: list[list[int]], tokens: int) -> list[list[int]]:
            # As `generate` does, from torch's generator, which an evaluation seeds for each batch.
            seed = int(torch.randint(2**31, ()))
            more = settings if settings["temperature"] == 0 else settings | {"seed": seed}
            return self._continued(asked, tokens, more)

        yield sample

    def _continued(
        self, asked: list[list[int]], tokens: int, settings: Mapping[str, Any]
    ) -> list[list[int]]:
        # Copies of a prompt are one request, or one seed would write all of them alike.
        runs = [(prompt, len(list(copies))) for prompt, copies in groupby(asked)]
        written: dict[int, list[list[int]]] = {}
        for count in {count for _, count in runs}:
            places = [place for place, run in enumerate(runs) if run[1] == count]
            prompts = [runs[place][0] for place in places]
            # `generation_kwargs` may have a limit as well.
            limit = min(tokens, settings.get("max_tokens") or tokens)
            own = {"n": count, "max_tokens": limit}
            rows = self._engine.complete(prompts, **{**settings, **own})
            for number, place in enumerate(places):
                written[place] = rows[number * count : (number + 1) * count]
        found = []
        for place in range(len(runs)):
            found += written[place]
        return found


def start_answers(
    model: Any, tokenizer: Any, args: Any, say: Callable[[str], None]
) -> VllmAnswers | None:
    """Start vLLM for the answers of a base and its adapter, or say why transformers writes them.

    All processes have to call this.

    Args:
        model: the policy, a PEFT model with one active adapter.
        args: of the run.

    Raises:
        EngineError: vLLM does not start in one of several processes, or is another model there.
    """
    accelerator = Accelerator(mixed_precision="no")
    try:
        engine = _started(model, tokenizer, args, accelerator)
    # What is wrong with settings is so in every process.
    except ConfigError as error:
        reason = str(error)
    except EngineError as error:
        if accelerator.num_processes > 1:
            raise
        reason = str(error)
    else:
        return VllmAnswers(engine)
    # An engine that started, and was found to be another model, still has its share of the memory.
    close_engines()
    say(f"note: transformers writes the answers and not vLLM: {reason}")
    return None


def _started(model: Any, tokenizer: Any, args: Any, accelerator: Accelerator) -> Any:
    """Return an engine or servers with the adapter loaded.

    Raises:
        ConfigError: vLLM cannot answer for this policy.
        EngineError: it does not start, or computes what another model would.
    """
    config = model.active_peft_config
    if choose_sync(args, config, quantized=is_quantized(model, None)) != ADAPTER:
        reason = why_not_adapter(config) or "vllm_sync is merged, and the base has to be there too"
        raise ConfigError(f"{reason}.")
    if args.vllm_mode == "colocate" and args.vllm_tensor_parallel_size > 1:
        raise ConfigError(
            "an engine over several devices answers for all processes at once. Set "
            "--vllm_tensor_parallel_size 1, or --vllm_mode server."
        )
    generation = adapter_sampler(args, _trl_settings(model, tokenizer, args, accelerator))
    generation.sync_weights()
    return generation.llm if args.vllm_mode == "colocate" else generation.vllm_client


def _trl_settings(model: Any, tokenizer: Any, args: Any, accelerator: Any) -> dict[str, Any]:
    """Return what TRL 1.16 makes its sampler with, where an evaluation has the same."""
    return {
        "model": model,
        "accelerator": accelerator,
        "processing_class": tokenizer,
        "mode": args.vllm_mode,
        "server_base_url": args.vllm_server_base_url,
        "server_host": args.vllm_server_host,
        "server_port": args.vllm_server_port,
        "server_timeout": args.vllm_server_timeout,
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": args.vllm_gpu_memory_utilization,
        "max_model_length": args.vllm_max_model_length,
        "enable_sleep_mode": False,
        "model_impl": args.vllm_model_impl,
        "trust_remote_code": args.trust_remote_code,
    }


def _settings_of(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of vLLM that draw as settings of `generate` do."""
    if not sampling.get("do_sample", True):
        return {"temperature": 0.0}
    return {name: value for name, value in sampling.items() if value is not None}
