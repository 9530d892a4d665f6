"""The policy's adapter as files that vLLM reads: each version whole, in a folder of its own.

A new folder for every version, because vLLM 0.32 takes what it has computed for a prompt by an
adapter's name and folder: the same ones again would give states of older weights.
"""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.integrations import is_deepspeed_zero3_enabled

from ..errors import ConfigError, EngineError


class AdapterSampler:
    """What samples from a base with the adapter that was loaded last, or from the base alone."""

    # None: the base alone.
    _adapter: Any = None

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Sample without the adapter for a block; it stays loaded."""
        adapter, self._adapter = self._adapter, None
        try:
            yield
        finally:
            self._adapter = adapter


class AdapterFolder:
    """Writes versions of one adapter, of which the newest stays."""

    def __init__(self, folder: Path, run: str) -> None:
        """Prepare; nothing is written yet.

        Args:
            folder: an absolute path, which vLLM can read.
            run: tells the adapters of several runs apart; see `name_of_run`.
        """
        self._folder = folder
        self._run = run
        self._versions = 0

    def write(self, model: Any, *, writes: bool) -> tuple[str, Path]:
        """Write the active adapter as a new version.

        All processes have to call this: parts of sharded weights are gathered.

        Args:
            model: the policy, a PEFT model with one active adapter.
            writes: whether this process writes.

        Returns:
            The name of the version, and its folder.

        Raises:
            EngineError: the folder cannot be written to.
        """
        self._versions += 1
        name = f"{self._run}-{self._versions}"
        place = self._folder / name
        with _whole_weights(model) as weights:
            if writes:
                try:
                    _save(model, weights, place)
                except OSError as error:
                    raise EngineError(
                        f"the adapter cannot be written for vLLM into {place} ({error}). Give "
                        "another folder, which the servers can read as well: --vllm_adapter_dir."
                    ) from error
        return name, place

    def forget(self, name: str) -> None:
        """Remove a version that no engine reads any more."""
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def remove(self) -> None:
        """Remove the folder, where nothing else is in it."""
        with suppress(OSError):
            self._folder.rmdir()


def check_adapter_folder(folder: Path) -> None:
    """Check that versions can be written into a folder, which may not be there yet.

    Raises:
        ConfigError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".grpo-", dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"vllm_adapter_dir: nothing can be written into {folder} ({error.strerror or error}). "
            "Give another folder, which the servers can read as well."
        ) from error


def name_of_run() -> str:
    """Return a name that no other run has, at a server that serves several."""
    return f"grpo-{uuid.uuid4().hex[:12]}"


def _save(model: Any, weights: dict[str, Tensor], place: Path) -> None:
    # Under another name first: a server of a shared disk must not see half of it.
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    adapter = model.active_adapter
    # Embeddings do not belong to it, and to look for new ones PEFT would ask the Hub.
    model.save_pretrained(
        str(partial),
        selected_adapters=[adapter],
        state_dict=weights,
        save_embedding_layers=False,
    )
    # PEFT puts every adapter but `default` into a folder of its name.
    inside = partial / adapter
    (inside if inside.is_dir() else partial).rename(place)
    shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _whole_weights(model: Any) -> Iterator[dict[str, Tensor]]:
    """Yield the weights of the active adapter by name, gathered where they are sharded."""
    marked = f".{model.active_adapter}."
    weights: dict[str, Any] = {}
    for name, weight in model.named_parameters():
        if "lora_" in name and marked in name:
            weights[name] = weight
    if is_deepspeed_zero3_enabled():
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(weights.values())):
            yield {name: weight.detach().cpu() for name, weight in weights.items()}
        return
    for name, weight in weights.items():
        # FSDP2's parameters are tensors that know how to gather themselves.
        whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        weights[name] = whole.detach().cpu()
    yield weights
