"""GRPOConfig: TRL's configuration with the paper's objective as default, and a few more fields."""

import os
from dataclasses import dataclass, field
from math import lcm
from typing import Any, NamedTuple

from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig as TRLGRPOConfig

from .errors import ConfigError

# TRL 1.16 would refuse other values of these only in the middle of the first step.
_CHOICES = {
    "reference": ("initial", "base"),
    # TRL also takes true for "group" and false for "none".
    "scale_rewards": ("group", "batch", "none", True, False),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "advantage_estimator": ("group", "reward", "gae"),
}
# Settings that have to be above 0. None is accepted: it turns a setting off, or TRL fills it in.
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
    `use_bias_correction_kl=False` (TRL: True), so that the KL term is eq. 4 as printed. `bf16` is
    on where an accelerator supports it and off on a CPU, where it would only be slow. All other
    defaults are TRL's.

    Args:
        reference (`str`): the reference of the KL term. `"initial"` is the policy at the start of
            the run: the base for a new adapter, a frozen copy for a continued one. `"base"` is the
            base with every adapter disabled.
        reference_reset_every (`int`, *optional*): the number of optimizer steps after which a
            frozen copy of the policy's adapter becomes the reference, again and again (iterative
            GRPO, arXiv 2402.03300, algorithm 1).
        target_kl (`float`, *optional*): the KL per token to which β is steered, starting from
            `beta` (arXiv 1909.08593, section 2.2).
        advantage_estimator (`str`): `"group"` compares a reward with those of its group (GRPO).
            `"reward"` takes the reward itself, which with rewards of 0 and 1 is online rejection
            sampling fine-tuning (arXiv 2402.03300, section 5.2). `"gae"` is PPO's estimator, with
            a critic (arXiv 1506.02438, eq. 16). The last two are for comparison.
        gae_lambda (`float`): λ of `"gae"`: 1 uses the rewards that followed, 0 uses the critic's
            estimate of them.
        gae_gamma (`float`): γ of `"gae"`, the discount per token.
        critic_learning_rate (`float`): the learning rate of the critic, which has its own AdamW.
        packed_update (`bool`): compute each distinct token of an update once. False: TRL's update.
        grouped_rollout (`bool`): read each prompt once per group when sampling. False: TRL's
            rollout.
        early_rewards (`bool`): compute rewards during the reference pass. False: after it.
        reward_timeout (`float`, *optional*): the seconds that a reward may take for a completion,
            if it has no `timeout` of its own; by default a minute, or 30 times what it took so far.
        reward_workers (`int`, *optional*): the number of completions that are scored at a time, in
            worker processes; by default the number of cores of this process. With 0, rewards run in
            the trainer's process, where a reward that hangs or crashes stops the run.
        max_reward_failures (`float`): the share of a reward's completions that may fail in a step;
            beyond it the run stops.
        process_reward (`str`, *optional*): `"monte_carlo(n=4)"` rewards each step of a completion
            with the mean of the first reward over n continuations from that step (arXiv
            2312.08935). It counts as the last reward: `reward_weights` has an entry for it.
        dynamic_sampling (`bool`): replace groups without a signal by fresh prompts (DAPO, arXiv
            2503.14476).
        max_refills (`int`): the largest number of rounds of fresh prompts in a rollout.
        log_credit (`bool`): keep one group of each logging step, with every token's advantage, in
            `credit.jsonl`.

    Raises:
        ConfigError: G < 2, a batch that does not hold whole groups, a value that is not possible,
            or settings of the KL term or of the advantages that contradict each other.
    """

    # The loss and its KL term.
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
            "help": "What the KL term holds the policy to: `initial`, the policy as this run found "
            "it, or `base`, the base model with every adapter disabled.",
            "choices": ["initial", "base"],
        },
    )
    reference_reset_every: int | None = field(
        default=None,
        metadata={
            "help": "Make the policy the reference after every so many optimizer steps (iterative "
            "GRPO)."
        },
    )
    target_kl: float | None = field(
        default=None,
        metadata={"help": "The KL per token that the coefficient of the KL term is steered to."},
    )

    # Advantages; the three settings after the estimator are for `gae` alone.
    advantage_estimator: str = field(
        default="group",
        metadata={
            "help": "Advantage of a completion: `group`, its reward against its group's; `reward`, "
            "the reward itself (online RFT); `gae`, PPO's from a critic.",
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

    # Speed: the results are those of TRL up to rounding, so each can be switched off to compare.
    packed_update: bool = field(
        default=True,
        metadata={
            "help": "Compute each distinct token of an update once; `false` is TRL's update."
        },
    )
    grouped_rollout: bool = field(
        default=True,
        metadata={
            "help": "Read each prompt once per group when sampling, from merged weights; `false` "
            "is TRL's rollout."
        },
    )

    early_rewards: bool = field(
        default=True,
        metadata={
            "help": "Score completions while the reference pass runs; `false` is TRL's order."
        },
    )
    # How rewards run, and how often they may fail.
    reward_timeout: float | None = field(
        default=None, metadata={"help": "Seconds that a reward may take for a completion."}
    )
    reward_workers: int | None = field(
        default=None,
        metadata={
            "help": "Completions scored at a time, in processes of their own; 0: in the trainer's "
            "process."
        },
    )
    max_reward_failures: float = field(
        default=0.5,
        metadata={
            "help": "Share of a reward's completions that may fail in a step before the run stops."
        },
    )
    # What is rewarded and rolled out beyond plain GRPO.
    process_reward: str | None = field(
        default=None,
        metadata={
            "help": "Reward for the steps of completions, from continuations of them: "
            "monte_carlo(n=4)."
        },
    )
    dynamic_sampling: bool = field(
        default=False,
        metadata={
            "help": "Roll out fresh prompts in the place of groups without a signal (DAPO, arXiv "
            "2503.14476)."
        },
    )
    max_refills: int = field(
        default=3,
        metadata={
            "help": "With `dynamic_sampling`: how many rounds of fresh prompts a rollout may take."
        },
    )
    # What a run writes down.
    log_credit: bool = field(
        default=True,
        metadata={
            "help": "Keep a group of each logging step, with every token's advantage, for "
            "`grpo-hf credit`."
        },
    )

    def __post_init__(self) -> None:
        # Our checks come before TRL's, because their messages say what to do.
        check_values(self)
        check_kl_term(self)
        check_estimator(self)
        check_geometry(self)
        # TRL 1.16 would turn bf16 on wherever fp16 is off, also on devices that do not support it.
        if self.bf16 is None:
            self.bf16: bool | None = (
                not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
            )
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the token.

        transformers pickles the arguments to `training_args.bin`, and pushes that file to the Hub.
        """
        return {**vars(self), "hub_token": None}


def option(args: TRLGRPOConfig, name: str) -> Any:
    """Return one of our fields, or its default for a configuration of TRL's own class.

    The trainer takes both classes.
    """
    return getattr(args, name, GRPOConfig.__dataclass_fields__[name].default)


def check_values(args: GRPOConfig) -> None:
    """Check each setting that has a fixed set of values or a range.

    Raises:
        ConfigError: a value is not possible.
    """
    for name, known in _CHOICES.items():
        value = getattr(args, name)
        if value not in known:
            raise ConfigError(
                f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}."
            )
    for name in _POSITIVE:
        value = getattr(args, name)
        # `not value > 0` instead of `value <= 0`, because NaN has to be refused as well.
        if value is not None and not value > 0:
            raise ConfigError(f"{name} is {value}; expected a number above 0.")
    if not 0 <= args.max_reward_failures <= 1 or (args.reward_workers or 0) < 0:
        raise ConfigError(
            f"max_reward_failures is {args.max_reward_failures} and reward_workers "
            f"{args.reward_workers}; expected a share from 0 to 1, and a number of processes that "
            "is not negative."
        )
    if args.mask_truncated_completions and (args.generation_kwargs or {}).get("stop_strings"):
        raise ConfigError(
            "mask_truncated_completions leaves out completions without an end-of-sequence token, "
            "so every one that ends at one of the stop_strings. Leave out one of the two."
        )


def check_kl_term(args: GRPOConfig) -> None:
    """Check that there is a KL term to steer, and that its reference may move.

    Raises:
        ConfigError: `target_kl` or `reference_reset_every` is set with beta 0, or the reference is
            the base and should be reset.
    """
    for name in ("target_kl", "reference_reset_every"):
        value = getattr(args, name)
        if value is not None and not args.beta > 0:
            raise ConfigError(
                f"beta is {args.beta:g}, so there is no KL term, and {name} {value} would do "
                f"nothing. Set --beta 0.04, or leave {name} out."
            )
    if args.reference_reset_every is not None and args.reference == "base":
        raise ConfigError(
            f"reference_reset_every {args.reference_reset_every} moves the reference, and "
            "reference 'base' holds it to the base. Set --reference initial, or leave "
            "reference_reset_every out."
        )


def check_estimator(args: GRPOConfig) -> None:
    """Check that no other setting needs another kind of advantages.

    Raises:
        ConfigError: λ or γ is outside [0, 1], or a setting about groups is used with an estimator
            that does not compare groups.
    """
    for name in ("gae_lambda", "gae_gamma"):
        value = getattr(args, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} is {value}; expected a number from 0 to 1.")
    if args.advantage_estimator == "group":
        return
    required: dict[str, Any] = {
        "process_reward": None,
        "multi_objective_aggregation": "sum_then_normalize",
    }
    # With a critic every completion has a signal, so no group has to be replaced.
    if args.advantage_estimator == "gae":
        required["dynamic_sampling"] = False
    for name, needed in required.items():
        value = getattr(args, name)
        if value != needed:
            raise ConfigError(
                f"advantage_estimator is {args.advantage_estimator!r}, which does not go with "
                f"{name} {value!r}. Use --advantage_estimator group, or {name}={needed!r}."
            )


def check_geometry(args: TRLGRPOConfig) -> None:
    """Check that a generation batch holds whole groups.

    TRL checks it later, with a message that names no settings that work.

    Raises:
        ConfigError: G < 2, or processes x batch x accumulation is not a multiple of G.
    """
    group = args.num_generations
    if group is None or group < 2:
        raise ConfigError(
            f"num_generations is {group}; a group needs at least 2 completions, because the "
            "advantage of one compares it with the others. Set --num_generations 8, for example."
        )
    # Set by the launcher; asking accelerate would start the process group.
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    geometry = _geometry(args, group, processes)
    rows = geometry.rows
    if rows % group == 0:
        return
    second = geometry.second_advice
    # Where the rows can be cut into groups of another size, memory and speed stay as they are.
    if rows > 1 and rows % (processes * args.per_device_train_batch_size) == 0:
        second = f"--num_generations {_nearest_divisor(rows, group)}"
    raise ConfigError(
        f"{geometry.description}: not a multiple of num_generations {group}, so a group would be "
        f"torn. Two settings that work: {geometry.first_advice}, or {second}."
    )


class _Geometry(NamedTuple):
    """The size of a generation batch, and two settings that would make it a multiple of G."""

    rows: int
    description: str
    first_advice: str
    second_advice: str


def _geometry(args: TRLGRPOConfig, group: int, processes: int) -> _Geometry:
    """Return the geometry from `generation_batch_size`, or from the sizes that it follows from."""
    batch = args.per_device_train_batch_size
    if args.generation_batch_size is not None:
        rows = args.generation_batch_size
        # TRL 1.16 requires that a generation batch holds whole micro-batches, too.
        unit = lcm(group, processes * batch)
        whole = _round_up(rows, unit)
        return _Geometry(
            rows,
            f"generation_batch_size {rows}",
            f"--generation_batch_size {whole}",
            f"--generation_batch_size {whole + unit}",
        )
    # TRL 1.16 takes the accumulation steps where the steps of a generation are not given.
    label = "gradient_accumulation_steps"
    if args.steps_per_generation:
        label = "steps_per_generation"
    steps = getattr(args, label)
    rows = processes * batch * steps
    plural = "es" if processes > 1 else ""
    return _Geometry(
        rows,
        f"{processes} process{plural} x per_device_train_batch_size {batch} x {label} {steps} = "
        f"{rows} completions",
        f"--per_device_train_batch_size {_round_up(batch, group)}",
        f"--{label} {group}",
    )


def _round_up(number: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `number`."""
    return -(-number // unit) * unit


def _nearest_divisor(rows: int, group: int) -> int:
    """Return the divisor of `rows` from 2 on that is nearest to `group`; of two, the smaller."""
    nearest = rows
    for divisor in range(rows, 1, -1):
        if rows % divisor == 0 and abs(divisor - group) <= abs(nearest - group):
            nearest = divisor
    return nearest
