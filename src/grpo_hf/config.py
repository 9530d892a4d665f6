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
    "advantage_estimator": ("group", "reward", "gae"),
}
_POSITIVE = (
    "target_kl",
    "reference_reset_every",
    "critic_learning_rate",
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
        reference_reset_every (`int`, *optional*): optimizer steps after which the policy becomes the reference, again
            and again, as a frozen copy of its adapter (iterative GRPO, arXiv 2402.03300, algorithm 1).
        target_kl (`float`, *optional*): the KL per token that β is steered to, from `beta` on (arXiv 1909.08593,
            section 2.2).
        advantage_estimator (`str`): `"group"`, the reward against those of its group (GRPO); `"reward"`, the reward
            itself, which with rewards of 0 and 1 is online rejection sampling fine-tuning (arXiv 2402.03300, section
            5.2); or `"gae"`, PPO's, from a critic (arXiv 1506.02438, eq. 16). The last two are for comparison.
        gae_lambda (`float`): λ of `"gae"`: 1 takes what followed as it was, 0 the critic's word for it.
        gae_gamma (`float`): γ of `"gae"`, the discount per token.
        critic_learning_rate (`float`): of the critic's own AdamW.
        packed_update (`bool`): compute each distinct token of an update once. Off: TRL's update.
        grouped_rollout (`bool`): read each prompt once per group when sampling. Off: TRL's rollout.
        early_rewards (`bool`): score during the reference pass. Off: after it.
        reward_timeout (`float`): seconds that a reward may take for a completion, if it has no `timeout` of its own.
        reward_workers (`int`, *optional*): completions scored at a time, in processes of their own; by default the
            cores of this process. 0: rewards run in the trainer's process, where a hang or a crash is one of the run.
        max_reward_failures (`float`): share of a reward's completions that may fail in a step; beyond it the run stops.
        process_reward (`str`, *optional*): `"monte_carlo(n=4)"` rewards each step with what n continuations from it
            earn by the first reward (arXiv 2312.08935). It counts as the last reward: `reward_weights` has an entry for
            it.
        dynamic_sampling (`bool`): replace groups without a signal by fresh prompts (DAPO, arXiv 2503.14476).
        max_refills (`int`): how many rounds of fresh prompts a rollout may take.
        log_credit (`bool`): keep a group of each logging step, with every token's advantage, in `credit.jsonl`.

    Raises:
        ConfigError: G < 2, a batch that does not hold whole groups, a value that is not possible, or settings of the
            KL term or of the advantages that contradict each other.
    """

    loss_type: str = field(
        default="grpo",
        metadata={
            "help": "Loss formulation: the paper's `grpo`, or another of TRL's.",
            "choices": ["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "luspo", "sapo", "vespo"],
        },
    )
    beta: float = field(
        default=0.04, metadata={"help": "Coefficient of the KL term (paper: 0.04)."}
    )
    use_bias_correction_kl: bool = field(
        default=False,
        metadata={
            "help": "Multiply the KL term by the importance ratio (not in the paper's equation 4)."
        },
    )
    reference: str = field(
        default="initial",
        metadata={
            "help": "What the KL term holds the policy to: `initial`, the policy as this run found it, or `base`, the "
            "base model with every adapter disabled.",
            "choices": ["initial", "base"],
        },
    )
    reference_reset_every: int | None = field(
        default=None,
        metadata={
            "help": "Make the policy the reference after every so many optimizer steps (iterative GRPO)."
        },
    )
    target_kl: float | None = field(
        default=None,
        metadata={"help": "The KL per token that the coefficient of the KL term is steered to."},
    )

    advantage_estimator: str = field(
        default="group",
        metadata={
            "help": "Advantage of a completion: `group`, its reward against its group's; `reward`, the reward itself "
            "(online RFT); `gae`, PPO's from a critic.",
            "choices": ["group", "reward", "gae"],
        },
    )
    gae_lambda: float = field(default=0.95, metadata={"help": "λ of `gae` advantages."})
    gae_gamma: float = field(
        default=1.0, metadata={"help": "γ of `gae` advantages: the discount per token."}
    )
    critic_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of the critic of `gae`."}
    )

    packed_update: bool = field(
        default=True,
        metadata={
            "help": "Compute each distinct token of an update once; `false` is TRL's update."
        },
    )
    grouped_rollout: bool = field(
        default=True,
        metadata={
            "help": "Read each prompt once per group when sampling, from merged weights; `false` is TRL's rollout."
        },
    )

    early_rewards: bool = field(
        default=True,
        metadata={
            "help": "Score completions while the reference pass runs; `false` is TRL's order."
        },
    )
    reward_timeout: float = field(
        default=10.0, metadata={"help": "Seconds that a reward may take for a completion."}
    )
    reward_workers: int | None = field(
        default=None,
        metadata={
            "help": "Completions scored at a time, in processes of their own; 0: in the trainer's process."
        },
    )
    max_reward_failures: float = field(
        default=0.5,
        metadata={
            "help": "Share of a reward's completions that may fail in a step before the run stops."
        },
    )
    process_reward: str | None = field(
        default=None,
        metadata={
            "help": "Reward for the steps of completions, from continuations of them: monte_carlo(n=4)."
        },
    )
    dynamic_sampling: bool = field(
        default=False,
        metadata={
            "help": "Roll out fresh prompts in the place of groups without a signal (DAPO, arXiv 2503.14476)."
        },
    )
    max_refills: int = field(
        default=3,
        metadata={
            "help": "With `dynamic_sampling`: how many rounds of fresh prompts a rollout may take."
        },
    )
    log_credit: bool = field(
        default=True,
        metadata={
            "help": "Keep a group of each logging step, with every token's advantage, for `grpo-hf credit`."
        },
    )

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ConfigError(
                    f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}."
                )
        for name in _POSITIVE:
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; expected a number above 0.")
        if not 0 <= self.max_reward_failures <= 1 or (self.reward_workers or 0) < 0:
            raise ConfigError(
                f"max_reward_failures is {self.max_reward_failures} and reward_workers {self.reward_workers}; expected "
                "a share from 0 to 1, and a number of processes that is not negative."
            )
        check_kl_term(self)
        check_estimator(self)
        check_geometry(self)
        if self.bf16 is None:
            self.bf16: bool | None = (
                not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
            )
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the token: transformers pickles the arguments to `training_args.bin`, and pushes that."""
        return {**vars(self), "hub_token": None}


def option(args: TRLGRPOConfig, name: str) -> Any:
    """One of our fields; its default for TRL's own configuration, which the trainer takes as well."""
    return getattr(args, name, GRPOConfig.__dataclass_fields__[name].default)


def check_kl_term(args: GRPOConfig) -> None:
    """Check that there is a KL term to steer, and that its reference may move.

    Raises:
        ConfigError: `target_kl` or `reference_reset_every` with beta 0, or resets of a reference that is the base.
    """
    steered = [
        name for name in ("target_kl", "reference_reset_every") if getattr(args, name) is not None
    ]
    if steered and not args.beta > 0:
        raise ConfigError(
            f"beta is {args.beta:g}, so there is no KL term, and {steered[0]} {getattr(args, steered[0])} would do "
            f"nothing. Set --beta 0.04, or leave {steered[0]} out."
        )
    if args.reference_reset_every is not None and args.reference == "base":
        raise ConfigError(
            f"reference_reset_every {args.reference_reset_every} moves the reference, and reference 'base' holds it to "
            "the base. Set --reference initial, or leave reference_reset_every out."
        )


def check_estimator(args: GRPOConfig) -> None:
    """Check that nothing that is asked for needs advantages of another kind.

    Raises:
        ConfigError: λ or γ outside [0, 1]; a setting that is about groups, with an estimator that has none.
    """
    for name in ("gae_lambda", "gae_gamma"):
        if not 0 <= (value := getattr(args, name)) <= 1:
            raise ConfigError(f"{name} is {value}; expected a number from 0 to 1.")
    without: dict[str, Any] = {
        "process_reward": None,
        "multi_objective_aggregation": "sum_then_normalize",
    }
    if (
        args.advantage_estimator == "gae"
    ):  # every completion has a signal, and every token its own advantage
        without |= {"dynamic_sampling": False}
    for name, needed in without.items() if args.advantage_estimator != "group" else ():
        if (value := getattr(args, name)) != needed:
            raise ConfigError(
                f"advantage_estimator is {args.advantage_estimator!r}, which does not go with {name} {value!r}. Use "
                f"--advantage_estimator group, or {name}={needed!r}."
            )


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
        rows, product = (
            args.generation_batch_size,
            f"generation_batch_size {args.generation_batch_size}",
        )
        unit = lcm(group, processes * batch)  # TRL 1.16 wants whole micro-batches in it as well
        whole = -(-rows // unit) * unit
        first, second = (
            f"--generation_batch_size {whole}",
            f"--generation_batch_size {whole + unit}",
        )
    else:
        label = (
            "steps_per_generation" if args.steps_per_generation else "gradient_accumulation_steps"
        )
        steps = getattr(args, label)
        rows = processes * batch * steps
        named = f"{processes} process{'es' if processes > 1 else ''}"
        product = (
            f"{named} x per_device_train_batch_size {batch} x {label} {steps} = {rows} completions"
        )
        first, second = (
            f"--per_device_train_batch_size {-(-batch // group) * group}",
            f"--{label} {group}",
        )
    if rows % group:
        if rows > 1 and rows % (processes * batch) == 0:
            divisors = [divisor for divisor in range(2, rows + 1) if rows % divisor == 0]
            second = f"--num_generations {min(divisors, key=lambda divisor: abs(divisor - group))}"
        raise ConfigError(
            f"{product}: not a multiple of num_generations {group}, so a group would be torn. Two settings that work: "
            f"{first}, or {second}."
        )
