"""What the stages of a training step have to know of the run: small values instead of the trainer.

Their fields are read from the trainer in trl_seam.py, where TRL's names are known. The trainer
hands them to a stage beside the data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from .errors import ConfigError


# All of them are frozen: a stage returns what it has to say, and changes nothing of the run.
@dataclass(frozen=True)
class RunContext:
    """One process's view of a rollout.

    Rows of all processes lie side by side, those of process 0 first, and groups may span processes.

    Args:
        accelerator: for what all processes have to know together.
        group_size: G, the completions of one prompt; an evaluation may have another than training.
        training: whether the policy learns from this rollout.
        step: optimizer steps that are done.
    """

    accelerator: Accelerator
    group_size: int
    training: bool
    step: int

    @property
    def logged_step(self) -> int:
        """The step that the log shows this rollout under: of a training the one that it makes."""
        return self.step + 1 if self.training else self.step

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        """How many processes there are, W."""
        return self.accelerator.num_processes

    def mine(self, rows: int) -> slice:
        """Return where this process's rows lie among those of all processes.

        Args:
            rows: B, how many rows each process has.
        """
        first = self.rank * rows
        return slice(first, first + rows)

    def gather(self, values: Tensor) -> Tensor:
        """Return the rows of all processes, (B, ...) -> (W·B, ...)."""
        # Not gather_for_metrics, which drops rows that fill up a last batch; groups need them all.
        return self.accelerator.gather(values)

    def gather_list(self, values: list[Any]) -> list[Any]:
        """Return the entries of all processes in one list; they may be anything that pickles."""
        # accelerate gathers objects by a function; its accelerator has a method for tensors alone.
        return gather_object(values)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over processes, entry by entry."""
        return self.accelerator.reduce(values, "sum")


@dataclass(frozen=True)
class RunTraits:
    """The kind of run that a trainer was set up for.

    By it a stage refuses a run, or leaves it to TRL.

    Args:
        sharded_weights: FSDP or DeepSpeed keeps parts of the weights in other processes.
        reads_images: the model takes images beside text.
        samples_together: vLLM samples for several processes at once, which all have to ask.
        has_tools: the policy calls tools, or plays in environments.
        has_environments: environments write prompts, and have tools of their own.
        has_rollout_function: a function of the user's samples the completions.
        entropy_in_loss: the loss has an entropy bonus, or picks tokens by their entropy.
        has_auxiliary_loss: the loss balances the experts of a mixture.
    """

    sharded_weights: bool = False
    reads_images: bool = False
    samples_together: bool = False
    has_tools: bool = False
    has_environments: bool = False
    has_rollout_function: bool = False
    entropy_in_loss: bool = False
    has_auxiliary_loss: bool = False

    def refuse_sharded_weights(self, feature: str, need: str, otherwise: str) -> None:
        """Refuse a feature that needs whole weights in every process.

        Args:
            feature: the setting that asks for it.
            need: what it does with them, as in "copies whole weights".
            otherwise: what to do instead.

        Raises:
            ConfigError: the weights are sharded.
        """
        if self.sharded_weights:
            raise ConfigError(
                f"{feature} {need}, and FSDP and DeepSpeed shard them. Train on plain processes "
                f"(DDP: accelerate launch --multi_gpu), or {otherwise}."
            )


@dataclass(frozen=True)
class RefillPlan:
    """Where dynamic sampling draws fresh prompts from, and how often.

    Args:
        data: the training data, rows by index.
        seed: decides the draw, the same on all processes.
        rounds: how many times fresh prompts may be rolled out.
        pad_token_id: what rows of token ids are padded with.
    """

    data: Any
    seed: str
    rounds: int
    pad_token_id: int


@dataclass(frozen=True)
class Policy:
    """The policy of a trainer, for a reward that samples from it.

    Args:
        context: returns the view of the rollout that is being scored.
        tokenize: prompts to token ids, as a rollout tokenizes them.
        sample: continues lists of tokens: (prompt ids, most new tokens, n) to token ids. Equal
            lists lie side by side, n of each.
        tokenizer: of the policy.
        max_completion_length: how many tokens a completion may have.
    """

    # Functions, because step, mode and weights change while a reward holds the policy.
    context: Callable[[], RunContext]
    tokenize: Callable[[Sequence[Any]], list[list[int]]]
    sample: Callable[[list[list[int]], int, int], list[list[int]]]
    tokenizer: Any
    max_completion_length: int


@dataclass(frozen=True)
class PolicyState:
    """The policy before training, for the guards of its reference.

    Args:
        model: unwrapped; a PEFT model where there is an adapter.
        reference_model: the second model that is the reference of a policy without an adapter.
        log_probs: scores as the run does: (model, input ids (1, T), mask (1, T), tokens to score)
            to log-probabilities, (1, tokens to score).
        fresh: whether nothing has trained it in this run, or in a run that this one resumes.
        has_kl_term: whether β is not 0.
        continues_adapter: whether the user gave the adapter, trained before.
        autocast: whether the run computes in bf16 or fp16.
        sharded_weights: whether parts of the weights are in other processes.
    """

    model: Any
    reference_model: Any
    log_probs: Callable[..., Tensor]
    fresh: bool
    has_kl_term: bool
    continues_adapter: bool
    autocast: bool
    sharded_weights: bool


@dataclass(frozen=True)
class CardFacts:
    """Facts about a run for its model card, beside its settings and results.

    Args:
        base: the name or folder of the base model.
        dataset: the name or folder of the data.
        rewards: name with options, and weight, of each reward.
        adapter: the configuration of the policy's adapter, or None.
        has_adapter: whether the policy is an adapter at all.
        steps: optimizer steps that were made.
        purposes: what rewards pay for, by their names with options.
        prompt_form: how prompts are made (`data.prompts.PromptForm`), or None where a script does.
        tokenizer: of the policy.
        repo: the repository on the Hub that the run pushes to, or None.
    """

    base: str
    dataset: str
    rewards: list[tuple[str, float]]
    adapter: Any
    has_adapter: bool
    steps: int
    purposes: dict[str, str] = field(default_factory=dict)
    prompt_form: Any = None
    tokenizer: Any = None
    repo: str | None = None
