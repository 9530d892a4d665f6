"""GRPOConfig: TRL's configuration with the paper's objective as default, and the one field that TRL has no word for."""

import os
from dataclasses import dataclass, field

import torch
from trl import GRPOConfig as TRLGRPOConfig

from .errors import ConfigError


@dataclass
class GRPOConfig(TRLGRPOConfig):
    """TRL's `GRPOConfig` with DeepSeekMath's objective (arXiv 2402.03300, eq. 3) as default.

    Three defaults differ from TRL 1.16: `loss_type="grpo"` (TRL: "dapo"), `beta=0.04` (TRL: 0), and
    `use_bias_correction_kl=False` (TRL: True), so that the KL term is eq. 4 as printed. `bf16` is on where an
    accelerator supports it and off on a CPU, where it would only be slow. Everything else is TRL's.

    Args:
        reference (`str`): what the KL term holds the policy to: `"initial"`, the policy as this run found it (the base
            for a new adapter, a frozen copy for a continued one), or `"base"`, the base with every adapter disabled.

    Raises:
        ConfigError: G < 2, a batch that does not hold whole groups, or an unknown `reference`.
    """

    loss_type: str = field(
        default="grpo",
        metadata={"help": "Loss formulation: the paper's `grpo`, or any that TRL has (dapo, dr_grpo, bnpo, ...)."},
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

    def __post_init__(self) -> None:
        if self.reference not in ("initial", "base"):
            raise ConfigError(f"reference is {self.reference!r}; expected 'initial' or 'base'.")
        check_geometry(self)
        if self.bf16 is None:
            self.bf16: bool | None = not self.fp16 and not self.use_cpu and _accelerator_has_bf16()
        super().__post_init__()


def check_geometry(args: TRLGRPOConfig) -> None:
    """Check that a generation batch holds whole groups, before TRL does with fewer words.

    Raises:
        ConfigError: G < 2, or processes x batch x accumulation is not a multiple of G.
    """
    group = args.num_generations
    if group < 2:
        raise ConfigError(
            f"num_generations is {group}; a group needs at least 2 completions, because the advantage of one compares "
            "it with the others. Set --num_generations 8, for example."
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if args.generation_batch_size is not None:
        rows, product = args.generation_batch_size, f"generation_batch_size {args.generation_batch_size}"
    else:
        steps = args.steps_per_generation or accumulation
        label = "steps_per_generation" if args.steps_per_generation else "gradient_accumulation_steps"
        rows = processes * batch * steps
        product = f"{processes} processes x per_device_train_batch_size {batch} x {label} {steps} = {rows} completions"
    if rows % group:
        whole = -(-batch // group) * group
        divisor = min((d for d in range(2, rows + 1) if rows % d == 0), key=lambda d: abs(d - group), default=None)
        other = f", or --num_generations {divisor}" if divisor else f", or --gradient_accumulation_steps {group}"
        raise ConfigError(
            f"{product}: not a multiple of num_generations {group}, so a group would be torn. Two settings that work: "
            f"--per_device_train_batch_size {whole}{other}."
        )


def _accelerator_has_bf16() -> bool:
    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported()) or (
        hasattr(torch, "xpu") and torch.xpu.is_available()
    )
