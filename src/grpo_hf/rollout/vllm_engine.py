"""vLLM as the sampler of a trainer: TRL's `VLLMGeneration`, which is given weights in another way.

TRL 1.16 sends all weights with the adapter merged into them. Where the policy is a LoRA, vLLM holds
the same frozen base as the trainer does, and what changes is the adapter: after each update it is
written into a folder (vllm_adapter.py), and loaded from there by the engine in this process, or by
servers (vllm_servers.py). How completions are asked for stays TRL's.
"""

import atexit
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers.integrations import is_deepspeed_zero3_enabled

from ..config import option
from ..config_checks import server_addresses
from ..errors import ConfigError, EngineError, GrpoError
from ..run_files import warn_once
from ..trl_seam import found_in_trl, name_or_path, replaced_in_trl, vllm_parts, weights_are_awake
from .vllm_adapter import AdapterFolder, name_of_run
from .vllm_check import check_samples
from .vllm_merged import merged_copies
from .vllm_process import (
    PlainEngine,
    ProcessEngine,
    check_sampling,
    end_engines,
    engine_dtype,
    on_cpu,
    start_engine,
)
from .vllm_servers import Servers
from .vllm_sync import (
    ADAPTER,
    MERGED,
    choose_sync,
    is_quantized,
    serve_command,
    served_rank,
    why_not_adapter,
)

_TRL_SAMPLER = "VLLMGeneration"
# What has to be undone when a run ends.
_undo: list[Callable[[], None]] = []


@contextmanager
def made_here(call: Mapping[str, Any]) -> Iterator[None]:
    """Let TRL, for the block that builds a trainer, make a sampler whose base stays the base.

    Args:
        call: of the trainer's constructor: `model`, `args`, and `peft_config` where it is given.

    Raises:
        ConfigError: vLLM cannot sample this policy, or not as was asked.
        EngineError: vLLM does not start, or no server answers.
    """
    model, args = call["model"], call["args"]
    if not args.use_vllm:
        yield
        return
    is_adapted = isinstance(model, PeftModel)
    config = model.active_peft_config if is_adapted else call.get("peft_config")
    choose_sync(args, config, quantized=is_quantized(model, args.model_init_kwargs))
    make = found_in_trl(_TRL_SAMPLER)
    with replaced_in_trl(_TRL_SAMPLER, partial(_sampler, make, args)):
        yield


def close_engines() -> None:
    """End the engines of this process, and forget adapters at servers, so that memory is free."""
    while _undo:
        _undo.pop()()
    end_engines()


# It also runs where a run ends by an error.
atexit.register(close_engines)


def _sampler(make: Any, args: Any, **settings: Any) -> Any:
    """Return TRL's sampler for a policy, and let it sync as the run wants it.

    Args:
        make: TRL's class.
        settings: what TRL 1.16 gives it: `model`, `accelerator`, `mode` and so on.
    """
    model, accelerator = settings["model"], settings["accelerator"]
    config = model.active_peft_config if isinstance(model, PeftModel) else None
    sync = choose_sync(args, config, quantized=is_quantized(model, None))
    reason = why_not_adapter(config) or _why_not_beside(model)
    # Adapters of sharded weights are gathered where that is asked for; nobody has tried it.
    if reason is None and _is_sharded(accelerator) and option(args, "vllm_sync") is None:
        reason = "its weights are sharded (FSDP, ZeRO-3)"
    elif reason is not None and sync == ADAPTER and option(args, "vllm_sync") == ADAPTER:
        raise ConfigError(f"vllm_sync is 'adapter', and {reason}. Set --vllm_sync merged.")
    if reason is not None:
        sync = MERGED
    if sync == ADAPTER:
        return adapter_sampler(args, settings, make)
    if config is not None and reason is not None:
        warn_once(f"vLLM is sent all weights, with the adapter merged in, because {reason}.")

    if settings["mode"] == "colocate":
        check_sampling(args)

    def start(**of_trl: Any) -> PlainEngine:
        return PlainEngine(start_engine(on_cpu(accelerator), **of_trl))

    with vllm_parts(LLM=start), _explained(settings):
        generation = make(**settings)
    if settings["mode"] == "server":
        generation.generate = partial(_generate_there, generation.generate, server_addresses(args))
    copies = config is not None and not _is_sharded(accelerator)
    generation.sync_weights = partial(_send_all, generation.sync_weights, model, copies)
    alone = settings["mode"] == "colocate" and settings["tensor_parallel_size"] == 1
    generation.continue_tokens = partial(_continue, generation) if alone else None
    return generation


def adapter_sampler(args: Any, settings: Any, make: Any = None) -> Any:
    """Return TRL's sampler for a policy that vLLM is given as base and adapter.

    Args:
        settings: see `_sampler`.
        make: TRL's class, where it is replaced now.

    Raises:
        EngineError: vLLM does not start, or no server answers.
    """
    make = make or found_in_trl(_TRL_SAMPLER)
    sampler = _server_sampler if settings["mode"] == "server" else _process_sampler
    return sampler(make, args, settings)


def _why_not_beside(model: Any) -> str | None:
    """Return why the weights beside an adapter keep it from vLLM, or None."""
    if len(getattr(model, "active_adapters", ())) > 1:
        return f"the policy is several adapters at once ({', '.join(model.active_adapters)})"
    for name, weight in model.named_parameters():
        if weight.requires_grad and "lora_" not in name:
            return f"weights of the base train beside it ({name})"
    return None


def _is_sharded(accelerator: Any) -> bool:
    is_fsdp = getattr(accelerator.state, "fsdp_plugin", None) is not None
    return is_fsdp or is_deepspeed_zero3_enabled()


def _process_sampler(make: Any, args: Any, settings: Any) -> Any:
    """Return a sampler with an engine in this process, started on the untouched base."""
    model, accelerator = settings["model"], settings["accelerator"]
    check_sampling(args)
    extra = {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": served_rank(model.active_peft_config),
        "dtype": engine_dtype(model, accelerator),
    }

    def start(**of_trl: Any) -> ProcessEngine:
        return ProcessEngine(start_engine(extra | on_cpu(accelerator), **of_trl))

    with vllm_parts(LLM=start), _explained(settings):
        generation = make(**settings)
    place = option(args, "vllm_adapter_dir") or tempfile.mkdtemp(prefix="grpo-adapter-")
    folder = AdapterFolder(Path(place).absolute(), name_of_run())
    sync = AdapterSync(generation, generation.llm.load, folder)
    sync.everywhere = True
    alone = settings["tensor_parallel_size"] == 1
    return _attached(generation, sync, partial(_continue, generation) if alone else None)


def _server_sampler(make: Any, args: Any, settings: Any) -> Any:
    """Return a sampler that asks servers, which are given the adapter."""
    accelerator, model = settings["accelerator"], settings["model"]
    base = name_or_path(model.config)
    servers = servers_of(args, base, model.active_peft_config, sync=ADAPTER)
    if accelerator.is_main_process:
        servers.wait()
    # TRL would ask vLLM's own package for the address of this machine, to send weights from.
    parts = {"VLLMClient": lambda **_: servers, "is_vllm_available": lambda *_: True}
    with vllm_parts(**parts):
        generation = make(**settings)
    generation.vllm_client = servers
    run = [name_of_run()]
    broadcast_object_list(run, from_process=0)
    place = option(args, "vllm_adapter_dir") or Path(args.output_dir) / "vllm_adapter"
    folder = AdapterFolder(Path(place).absolute(), run[0])
    load = servers.load if accelerator.is_main_process else servers.follow
    sync = AdapterSync(generation, load, folder)
    _undo.append(servers.unload if accelerator.is_main_process else lambda: None)
    return _attached(generation, sync, partial(_continue_at, generation))


def _attached(generation: Any, sync: "AdapterSync", continues: Any) -> Any:
    generation.sync_weights = sync
    generation.continue_tokens = continues
    _undo.append(sync.close)
    return generation


def find_servers(args: Any, base: str, config: Any, *, sync: str, waits: bool) -> None:
    """Wait for the servers of a run, before its model loads.

    Args:
        base: name or folder of the model.
        config: of the policy's adapter, or None.
        sync: which way they get weights.
        waits: whether one is waited for where nobody answers, as the run says it.

    Raises:
        EngineError: one does not answer, or was started otherwise.
    """
    servers = servers_of(args, base, config, sync=sync, waits=waits)
    servers.wait(with_adapters=sync == ADAPTER)


def servers_of(args: Any, base: str, config: Any, *, sync: str, waits: bool = True) -> Servers:
    """Return the servers of a run; nobody is asked yet. Arguments are those of `find_servers`."""
    port = args.vllm_server_port if args.vllm_server_base_url is None else None
    return Servers(
        server_addresses(args),
        patience=args.vllm_server_timeout,
        command=serve_command(base, config, sync=sync, port=port),
        waits=waits,
    )


class AdapterSync:
    """Loads the policy's adapter into vLLM; TRL calls it where it would send all weights."""

    # Whether every process has an engine of its own, and writes for it.
    everywhere = False

    def __init__(self, generation: Any, load: Callable[[str, Path], None], folder: Any) -> None:
        """Prepare; nothing is loaded before the first call.

        Args:
            generation: TRL's sampler.
            load: takes the name and the folder of a version.
            folder: writes versions.
        """
        self._generation = generation
        self._load = load
        self._folder = folder
        self._checked = False
        self._loaded: str | None = None

    def __call__(self) -> None:
        """Load the adapter as it is now."""
        generation = self._generation
        if generation.mode == "colocate" and generation.enable_sleep_mode:
            generation.llm.wake_up(tags=["weights"])
            weights_are_awake(generation)
        if not self._checked:
            self._checked = True
            check_samples(generation, self.load)
        self.load()

    def load(self) -> None:
        """Write the adapter, load it, and forget the version before."""
        accelerator = self._generation.accelerator
        writes = self.everywhere or accelerator.is_main_process
        model = accelerator.unwrap_model(self._generation.model)
        name, place = self._folder.write(model, writes=writes)
        self._load(name, place)
        self._forget()
        self._loaded = name
        # Others may ask the servers, too.
        accelerator.wait_for_everyone()

    def close(self) -> None:
        """Remove the files."""
        self._forget()
        self._folder.remove()

    def _forget(self) -> None:
        if self._loaded is not None:
            self._folder.forget(self._loaded)


def _continue(generation: Any, prompts: list[list[int]], tokens: int, copies: int) -> list[Any]:
    """Continue tokens by the engine of this process; equal prompts lie side by side."""
    before = generation.max_completion_length
    generation.max_completion_length = tokens
    try:
        return generation.generate(prompts, None, copies)[1]
    finally:
        generation.max_completion_length = before


def _continue_at(generation: Any, prompts: list[list[int]], tokens: int, copies: int) -> list[Any]:
    """Continue tokens at the servers, without the other processes."""
    sampling = {
        "n": copies,
        "repetition_penalty": generation.repetition_penalty,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        "min_p": generation.min_p or 0.0,
        "max_tokens": tokens,
        "logprobs": 0,
        "structured_outputs_regex": generation.structured_outputs_regex,
        "generation_kwargs": generation.generation_kwargs,
    }
    return generation.vllm_client.generate(prompts[::copies], **sampling)["completion_ids"]


def _send_all(sync: Callable[[], None], model: Any, copies: bool) -> None:
    """Send all weights, as TRL does it.

    Args:
        copies: whether an adapter is merged into copies.

    Raises:
        EngineError: vLLM does not take them.
    """
    try:
        with merged_copies(model) if copies else nullcontext():
            sync()
    except GrpoError:
        raise
    # What vLLM makes of weights differs from layer to layer, and so do its errors.
    except Exception as error:
        raise EngineError(
            f"vLLM does not take the weights that it is sent ({type(error).__name__}: {error}); "
            "vLLM for CPUs takes none at all. --vllm_sync adapter sends a LoRA adapter alone, and "
            "--use_vllm false samples with transformers."
        ) from error


def _generate_there(generate: Any, urls: list[str], *positional: Any, **named: Any) -> Any:
    """Sample at the server that TRL sends all weights to.

    Raises:
        EngineError: it does not answer, or refuses.
    """
    try:
        return generate(*positional, **named)
    except GrpoError:
        raise
    # TRL 1.16 raises a bare Exception for what the server answers.
    except Exception as error:
        raise EngineError(
            f"the vLLM server {', '.join(urls)} does not sample ({type(error).__name__}: {error}). "
            "Start it again; --resume_from_checkpoint auto goes on from the last checkpoint."
        ) from error


@contextmanager
def _explained(settings: Any) -> Iterator[None]:
    """Say what to do where vLLM does not start, or TRL's way does not find its server."""
    try:
        yield
    except GrpoError:
        raise
    # vLLM and its drivers raise errors of all kinds.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip()
        if settings["mode"] == "server":
            raise EngineError(
                f"vLLM cannot be sent all weights as TRL does it ({reason}). With a LoRA adapter, "
                "--vllm_sync adapter needs a stock server; else see TRL's page on vLLM."
            ) from error
        if isinstance(error, ValueError) and "tensor_parallel_size" in reason:
            raise ConfigError(f"vllm_tensor_parallel_size: {error}") from error
        raise EngineError(
            f"vLLM does not start beside the training ({reason}). Its memory is set by "
            "--vllm_gpu_memory_utilization and --vllm_max_model_length; --use_vllm false samples "
            "with transformers."
        ) from error
