"""GRPOConfig: TRL's configuration with the paper's objective as default, and a few more fields."""

from dataclasses import dataclass, field
from typing import Any

from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig as TRLGRPOConfig

from .config_checks import (
    check_engine,
    check_estimator,
    check_geometry,
    check_kl_term,
    check_values,
    processes_planned,
)


@dataclass
class GRPOConfig(TRLGRPOConfig):
    """TRL's `GRPOConfig` with DeepSeekMath's objective (arXiv 2402.03300, eq. 3) as default.

    Three defaults of the objective differ from TRL 1.16: `loss_type="grpo"` (TRL: "dapo"),
    `beta=0.04` (TRL: 0), and `use_bias_correction_kl=False` (TRL: True), so that the KL term is
    eq. 4 as printed. `bf16` is on where an accelerator supports it and off on a CPU, where it would
    only be slow. A new repository on the Hub is private. All other defaults are TRL's.

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
        max_tokens_per_forward (`int`): the most tokens in a forward of a packed pass without
            gradients, those of the old and the reference policy; a longer row has one to itself.
        grouped_rollout (`bool`): read each prompt once per group when sampling. False: TRL's
            rollout.
        vllm_sync (`str`, *optional*): with `use_vllm`, what vLLM gets after an update.
            `"adapter"` is the LoRA adapter alone, beside the untouched base; `"merged"` is TRL's
            way, all weights with the adapter merged into copies. By default the adapter, where
            there is one that vLLM can serve.
        vllm_adapter_dir (`str`, *optional*): the folder by which the adapter goes to vLLM; servers
            have to read it under the same path. By default in the output folder for servers, and a
            temporary one in this process.
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
        non_finite (`str`): what to do with a step whose loss, log-probabilities or gradient are NaN
            or infinite. `"stop"` ends the run with an error before the weights change; `"skip"`
            leaves the step out, and stops after five such steps in a row.
        resume_changed (`bool`): go on from a checkpoint of other batches, group sizes, seeds, data
            or numbers of processes, or of weights alone, which is refused otherwise.
        log_credit (`bool`): keep one group of each logging step, with every token's advantage, in
            `credit.jsonl`.
        live_view (`bool`): show a run that is started in a terminal in a view of its present step,
            reward, KL and completions. False, and where the output is no terminal or more than
            warnings is logged: a line per logging step.
        hub_private_repo (`bool`, *optional*): make a new repository on the Hub private; None takes
            the default of the Hub or the organization.
        push_samples (`bool`): push prompts and completions too: `credit.jsonl`, `gaming.json`,
            `kl_tokens.jsonl`, `evaluation.jsonl`, `answers_over_time.jsonl` and what
            `log_completions` writes.

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
    max_tokens_per_forward: int = field(
        default=8192,
        metadata={"help": "Most tokens in a packed forward of the old or the reference policy."},
    )
    grouped_rollout: bool = field(
        default=True,
        metadata={
            "help": "Read each prompt once per group when sampling, from merged weights; `false` "
            "is TRL's rollout."
        },
    )

    vllm_sync: str | None = field(
        default=None,
        metadata={
            "help": "What vLLM gets after an update: `adapter`, or `merged`, all weights (TRL's "
            "way). By default the adapter, where vLLM can serve it.",
            "choices": ["adapter", "merged"],
        },
    )
    vllm_adapter_dir: str | None = field(
        default=None,
        metadata={"help": "Folder by which the adapter goes to vLLM; servers have to read it."},
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
    # What ends a run, what goes on, and what it writes down.
    resume_changed: bool = field(
        default=False,
        metadata={
            "help": "Go on from a checkpoint of other settings, data or processes, which is "
            "refused otherwise."
        },
    )
    non_finite: str = field(
        default="stop",
        metadata={
            "help": "A step whose numbers are NaN or infinite: `stop` the run, or `skip` the step.",
            "choices": ["stop", "skip"],
        },
    )
    log_credit: bool = field(
        default=True,
        metadata={
            "help": "Keep a group of each logging step, with every token's advantage, for "
            "`grpo-hf credit`."
        },
    )
    live_view: bool = field(
        default=True,
        metadata={"help": "Show the run in a view, in a terminal; `false`: a line per step."},
    )
    # What leaves the machine.
    hub_private_repo: bool | None = field(
        default=True,
        metadata={
            "help": "Make a new repository on the Hub private; `false`: public. One that is there "
            "stays as it is."
        },
    )
    push_samples: bool = field(
        default=False,
        metadata={"help": "Push prompts and completions as well (credit, evaluation)."},
    )

    def __post_init__(self) -> None:
        # Our checks come before TRL's, because their messages say what to do.
        check_values(self)
        check_kl_term(self)
        check_estimator(self)
        check_geometry(self)
        check_engine(self)
        # TRL 1.16 would turn bf16 on wherever fp16 is off, also on devices that do not support it.
        if self.bf16 is None:
            self.bf16: bool | None = (
                not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
            )
        # Under its new name TRL's default is no deprecated setting that somebody gave. Before
        # transformers 5.23 there is no new name.
        default = self.__dataclass_fields__["gradient_checkpointing"].default
        unset = getattr(self, "activation_checkpointing", False) is None
        if unset and self.gradient_checkpointing == default:
            self.activation_checkpointing: bool | None = self.gradient_checkpointing
        super().__post_init__()

    @property
    def world_size(self) -> int:
        """The number of processes: of this run, or of the one that is planned."""
        return processes_planned() or super().world_size

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
