"""GRPOConfig: TRL's configuration with the paper's objective as default, and the fields that TRL has no word for."""

import os
from dataclasses import dataclass, field
from math import lcm
from typing import Any

from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig as TRLGRPOConfig

from .errors import ConfigError

# What TRL 1.16 would refuse only in the middle of the first step.
_CHOICES = {
    "reference": ("initial", "base"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
_POSITIVE = (
    "max_refills",
    "reward_timeout",
    "temperature",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_iterations",
)


@dataclass
class GRPOConfig(TRLGRPOConfig):
    """TRL's `GRPOConfig` with DeepSeekMath's objective (arXiv 2402.03300, eq. 3) as default.

    Three defaults differ from TRL 1.16: `loss_type="grpo"` (TRL: "dapo"), `beta=0.04` (TRL: 0), and
    `use_bias_correction_kl=False` (TRL: True), so that the KL term is eq. 4 as printed. `bf16` is on where an
    accelerator supports it and off on a CPU, where it would only be slow. Everything else is TRL's.

    Args:
        reference (`str`): what the KL term holds the policy to: `"initial"`, the policy as this run found it (the base
            for a new adapter, a frozen copy for a continued one), or `"base"`, the base with every adapter disabled.
        packed_update (`bool`): compute each distinct token of an update once. Off: TRL's update.
        grouped_rollout (`bool`): read each prompt once per group when sampling. Off: TRL's rollout.
        early_rewards (`bool`): score during the reference pass. Off: after it.
        reward_timeout (`float`): seconds that a reward may take for a completion, if it has no `timeout` of its own.
        reward_workers (`int`, *optional*): completions scored at a time, in processes of their own; by default the
            cores of this process. 0: rewards run in the trainer's process, where a hang or a crash is one of the run.
        max_reward_failures (`float`): share of a reward's completions that may fail in a step; beyond it the run stops.
        dynamic_sampling (`bool`): replace groups without a signal by fresh prompts (DAPO, arXiv 2503.14476).
        max_refills (`int`): how many rounds of fresh prompts a rollout may take.

    Raises:
        ConfigError: G < 2, a batch that does not hold whole groups, or a value that is not possible.
    """

    loss_type: str = field(
        default="grpo",
        metadata={
            "help": "Loss formulation: the paper's `grpo`, or another of TRL's.",
            "choices": ["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "luspo", "sapo", "vespo"],
        },
    )
    beta: float = field(default=0.04, metadata={"help": "Coefficient of the KL term (paper: 0.04)."})
    use_bias_correction_kl: bool = field(
        default=False,
        metadata={"help": "Multiply the KL term by the importance ratio (not in the paper's equation 4)."},
    )
    reference: str = field(
        default="initial",
        metadata={
            "help": "What the KL term holds the policy to: `initial`, the policy as this run found it, or `base`, the "
            "base model with every adapter disabled.",
            "choices": ["initial", "base"],
        },
    )

    packed_update: bool = field(
        default=True,
        metadata={"help": "Compute each distinct token of an update once; `false` is TRL's update."},
    )
    grouped_rollout: bool = field(
        default=True,
        metadata={
            "help": "Read each prompt once per group when sampling, from merged weights; `false` is TRL's rollout."
        },
    )

    early_rewards: bool = field(
        default=True,
        metadata={"help": "Score completions while the reference pass runs; `false` is TRL's order."},
    )
    reward_timeout: float = field(default=10.0, metadata={"help": "Seconds that a reward may take for a completion."})
    reward_workers: int | None = field(
        default=None,
        metadata={"help": "Completions scored at a time, in processes of their own; 0: in the trainer's process."},
    )
    max_reward_failures: float = field(
        default=0.5,
        metadata={"help": "Share of a reward's completions that may fail in a step before the run stops."},
    )
    dynamic_sampling: bool = field(
        default=False,
        metadata={"help": "Roll out fresh prompts in the place of groups without a signal (DAPO, arXiv 2503.14476)."},
    )
    max_refills: int = field(
        default=3, metadata={"help": "With `dynamic_sampling`: how many rounds of fresh prompts a rollout may take."}
    )

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}.")
        for name in _POSITIVE:
            if not (value := getattr(self, name)) > 0:
                raise ConfigError(f"{name} is {value}; expected a number above 0.")
        if not 0 <= self.max_reward_failures <= 1 or (self.reward_workers or 0) < 0:
            raise ConfigError(
                f"max_reward_failures is {self.max_reward_failures} and reward_workers {self.reward_workers}; expected "
                "a share from 0 to 1, and a number of processes that is not negative."
            )
        check_geometry(self)
        if self.bf16 is None:
            self.bf16: bool | None = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the token: transformers pickles the arguments to `training_args.bin`, and pushes that."""
        return {**vars(self), "hub_token": None}


def option(args: TRLGRPOConfig, name: str) -> Any:
    """One of our fields; its default for TRL's own configuration, which the trainer takes as well."""
    return getattr(args, name, GRPOConfig.__dataclass_fields__[name].default)


def check_geometry(args: TRLGRPOConfig) -> None:
    """Check that a generation batch holds whole groups, before TRL does with fewer words.

    Raises:
        ConfigError: G < 2, or processes x batch x accumulation is not a multiple of G.
    """
    group = args.num_generations
    if group is None or group < 2:
        raise ConfigError(
            f"num_generations is {group}; a group needs at least 2 completions, because the advantage of one compares "
            "it with the others. Set --num_generations 8, for example."
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = args.per_device_train_batch_size
    if args.generation_batch_size is not None:
        rows, product = args.generation_batch_size, f"generation_batch_size {args.generation_batch_size}"
        unit = lcm(group, processes * batch)  # TRL 1.16 wants whole micro-batches in it as well
        whole = -(-rows // unit) * unit
        first, second = f"--generation_batch_size {whole}", f"--generation_batch_size {whole + unit}"
    else:
        label = "steps_per_generation" if args.steps_per_generation else "gradient_accumulation_steps"
        steps = getattr(args, label)
        rows = processes * batch * steps
        named = f"{processes} process{'es' if processes > 1 else ''}"
        product = f"{named} x per_device_train_batch_size {batch} x {label} {steps} = {rows} completions"
        first, second = f"--per_device_train_batch_size {-(-batch // group) * group}", f"--{label} {group}"
    if rows % group:
        if rows > 1 and rows % (processes * batch) == 0:
            divisors = [divisor for divisor in range(2, rows + 1) if rows % divisor == 0]
            second = f"--num_generations {min(divisors, key=lambda divisor: abs(divisor - group))}"
        raise ConfigError(
            f"{product}: not a multiple of num_generations {group}, so a group would be torn. Two settings that work: "
            f"{first}, or {second}."
        )
