"""The trainer: TRL's `GRPOTrainer` with reward names, a guarded reference and progress that a person can read.

Every override is a few lines that hand over to one stage of the library; its docstring names what of TRL it relies on.
"""

from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from trl import GRPOTrainer as TRLGRPOTrainer

from .algorithm import critic, kl_control, monte_carlo, token_advantages
from .config import GRPOConfig, option
from .models import adapters, loading, reference_guards
from .reporting import model_card, token_credit
from .reporting.output_folder import claim_output_folder
from .reporting.progress import replace_progress
from .rollout import dynamic_sampling, generate
from .scoring import early_start, failures, trial
from .update import log_probs, micro_batches


class GRPOTrainer(TRLGRPOTrainer):
    """TRL's trainer, and exactly its constructor, plus reward names.

    An entry of `reward_funcs` may also be anything that `load_reward` takes: a registered or installed name
    (`"gsm8k"`), `"./mine.py:concise"`, `"package.module:function"`, each with options, as in `"overlong(cache=64)"`.
    A string of the form `org/name`, or a model folder, stays what it is in TRL: a reward model.

    With a `peft_config`, or a `PeftModel`, the frozen base with the adapter disabled is the reference: no second model
    is loaded, the KL at step 0 is checked to be 0, and the base is checked to be unchanged after training.

    Raises:
        RewardError: a reward cannot be found or does not fit.
        ModelError: an adapter that changes the base, or that does not train.
        OutputExistsError: `train()` without `resume_from_checkpoint` into a folder that holds another run.
        ReferenceDriftError: the reference is not where it has to be.
    """

    __signature__ = signature(TRLGRPOTrainer)

    dataset_source = "unnamed data"  # runs/train.py knows better
    _owns_output_folder = False

    def __init__(self, *positional: Any, **named: Any) -> None:
        given = signature(TRLGRPOTrainer.__init__).bind(self, *positional, **named).arguments
        adapters.guard_adapters(given["model"], given.get("peft_config"))
        given["args"] = given.get("args") or GRPOConfig(
            output_dir=f"{loading.model_name(given['model'])}-GRPO"
        )
        given["reward_funcs"], self._reward_process = trial.ready(given, given["args"])
        super().__init__(**{name: value for name, value in given.items() if name != "self"})
        self.continues_adapter = isinstance(given["model"], PeftModel)
        adapters.prepare(self.model, option(self.args, "reference"))
        dynamic_sampling.check(self)
        kl_control.install(self)
        self.critic = critic.of(self)
        monte_carlo.attach(self)
        log_probs.prepare(self)
        self.results: dict[str, Any] = {}  # for the model card, like the source
        replace_progress(self)

    def train(self, resume_from_checkpoint: str | bool | None = None, **keywords: Any) -> Any:
        """Train, with the output folder claimed first, the reference checked before and the base after.

        transformers 5.23: `Trainer.train(resume_from_checkpoint)` prepares, loops and returns a `TrainOutput`.
        """
        fresh = not resume_from_checkpoint
        if not self._owns_output_folder:
            claim_output_folder(
                Path(self.args.output_dir), self.accelerator, resume=resume_from_checkpoint
            )
        self._owns_output_folder = True
        with (
            reference_guards.guarded(self, fresh=fresh and self.state.global_step == 0),
            failures.checkpointed(self),
        ):
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **keywords)

    @cached_property
    def packs(self) -> bool:
        """Whether updates run on packed rows; measured on the model when first asked, and said once if not."""
        return option(self.args, "packed_update") and log_probs.settle(
            self, super()._get_per_token_logps_and_entropies
        )

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        *positional: Any,
        **named: Any,
    ) -> tuple[Tensor, Tensor | None, Any]:
        """Score completions on packed rows.

        TRL 1.16: the old, the reference and the policy pass all come here, and take (log-probs (B, C), entropies or
        None, auxiliary loss or None).
        """
        block = (model, input_ids, attention_mask, logits_to_keep)
        if not self.packs:
            others = (batch_size, compute_entropy, *positional)
            return super()._get_per_token_logps_and_entropies(*block, *others, **named)
        rows = max(batch_size, self.num_generations) if batch_size else None
        with self.accelerator.autocast():
            return *log_probs.packed_log_probs(
                *block, rows=rows, compute_entropy=compute_entropy
            ), None

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Deal micro-batches that keep groups together. TRL 1.16 fills `_buffered_inputs` here, read by `_step`."""
        if not (self.model.training and self.packs):
            return super()._prepare_inputs(generation_batch)
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs: Any = micro_batches.divide(self, batch)
        return self._buffered_inputs[self._step % steps]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Weigh a micro-batch as the whole batch would. TRL 1.16: `_compute_loss` returns what goes into backward."""
        return super()._compute_loss(model, inputs) * inputs.get("loss_scale", 1.0)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Replace groups without a signal. TRL 1.16 turns dataset rows into a batch that is ready for the loss here."""
        batch = self._roll_out(inputs)
        if option(self.args, "log_credit"):  # of the planned prompts, whose rewards these are
            token_credit.record(self, batch, self._rewards)
        if option(self.args, "dynamic_sampling") and self.model.training:
            batch = dynamic_sampling.replace_silent_groups(self, batch, self._roll_out)
        return batch

    def _roll_out(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollout; advantages of equal rewards are 0 to the last bit, and each token's own where steps count."""
        self._rows = rows
        batch = super()._generate_and_score_completions(rows)
        exact = self.packs or option(self.args, "dynamic_sampling")
        batch = micro_batches.without_rounding(self, batch, self._rewards) if exact else batch
        return (
            token_advantages.of_tokens(self, batch, self._rewards) if self.model.training else batch
        )

    def _generate(self, prompts: list[Any]) -> Any:
        """Begin scoring. TRL 1.16 returns (prompt_ids, completion_ids, tool_mask, completions, ...)."""
        output = super()._generate(prompts)
        early_start.begin(
            self, self._rows, prompts, completions=output[3], completion_ids=output[1]
        )
        return output

    def _calculate_rewards(self, *positional: Any, **named: Any) -> Tensor:
        """Count failures and leave them out. TRL 1.16 returns the rewards of all processes here, (W·B, F)."""
        failures.set_weights(self)
        self._rewards = failures.settle(self, super()._calculate_rewards(*positional, **named))
        return self._rewards

    def _generate_single_turn(self, *positional: Any, **named: Any) -> Any:
        """Sample by groups. TRL 1.16 calls `generate` here, unless vLLM or continuous batching is on."""
        with generate.by_groups(self):
            return super()._generate_single_turn(*positional, **named)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None
    ) -> None:
        """Write the card as README.md. TRL 1.16 calls this at every checkpoint, transformers at every push."""
        if self.is_world_process_zero():
            model_card.write_model_card(
                self, model_name=model_name, dataset_name=dataset_name, tags=tags
            )
