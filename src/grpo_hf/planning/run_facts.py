"""What decides how much memory a run takes, as plain values: `RunFacts`."""

from dataclasses import dataclass, field
from typing import Any

from .geometry import Geometry
from .model_shape import ModelShape
from .precision import Precision

# What TRL 1.16 and accelerate 1.15 split over GPUs, by the name of the strategy.
SHARDS_WEIGHTS = ("fsdp", "zero3")
SHARDS_OPTIMIZER = ("fsdp", "zero2", "zero3")
STRATEGIES = ("ddp", *SHARDS_OPTIMIZER)


@dataclass(frozen=True)
class Engine:
    """What samples.

    Args:
        kind: `generate` of transformers, or vLLM's `colocate` or `server`.
        share: of the GPU's memory that a colocated vLLM takes.
        sleeps: whether it gives that back during updates.
    """

    kind: str = "generate"
    share: float = 0.0
    sleeps: bool = False

    @classmethod
    def of(cls, args: Any) -> "Engine":
        """Read it from the settings of a run."""
        if not args.use_vllm:
            return cls()
        if args.vllm_mode != "colocate":
            return cls("server")
        return cls("colocate", args.vllm_gpu_memory_utilization, args.vllm_enable_sleep_mode)


@dataclass(frozen=True)
class RunFacts:
    """One process of a run on one device.

    Args:
        device: `cpu` or `cuda`.
        capacity: bytes of the device's memory.
        uses_adapter: whether an adapter trains, and not the whole model.
        dropout: of the adapter.
        checkpointing: whether activations of a layer are computed again in the backward.
        reference_copy: `none`, an `adapter`, or a whole `model`.
        optimizer_bytes: per weight that trains.
        has_kl: whether completions are scored by the reference.
        scores_old: whether they are scored by the policy before an update.
        grouped: whether rollouts go by groups.
        strategy: how GPUs divide the work, one of `STRATEGIES`.
        reward_bytes: of reward models on the device.
        has_critic: whether a critic learns beside the policy.
    """

    shape: ModelShape
    geometry: Geometry
    precision: Precision
    device: str = "cuda"
    capacity: int = 0
    uses_adapter: bool = True
    dropout: float = 0.0
    checkpointing: bool = True
    reference_copy: str = "none"
    optimizer_bytes: int = 8
    has_kl: bool = True
    scores_old: bool = False
    grouped: bool = True
    strategy: str = "ddp"
    reward_bytes: int = 0
    has_critic: bool = False
    engine: Engine = field(default_factory=Engine)

    @property
    def weight_shards(self) -> int:
        """GPUs over which the weights are split."""
        return self.geometry.gpus if self.strategy in SHARDS_WEIGHTS else 1

    @property
    def optimizer_shards(self) -> int:
        """GPUs over which gradients and the optimizer's states are split."""
        return self.geometry.gpus if self.strategy in SHARDS_OPTIMIZER else 1

    @property
    def base_bytes(self) -> int:
        """Bytes of the base's weights, whole."""
        return self.bytes_of(self.shape.parameters, self.shape.total("matrices"))

    @property
    def layer_bytes(self) -> int:
        """Bytes of the largest decoder layer."""
        return self.bytes_of(self.shape.largest("parameters"), self.shape.largest("matrices"))

    def bytes_of(self, parameters: int, matrices: int) -> int:
        """Return the bytes of some parameters, of which those of the matrices may be quantized."""
        if self.precision.quantized is None:
            return parameters * self.precision.weights
        rest = (parameters - matrices) * self.precision.weights
        return round(matrices * self.precision.quantized) + rest
