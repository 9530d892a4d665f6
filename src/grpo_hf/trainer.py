"""The trainer: TRL's `GRPOTrainer`, whose stages are those of this library.

This is the only file that knows both. An override unpacks what TRL calls it with, calls a stage
with plain values, and returns what TRL expects; its docstring names what of TRL it relies on. What
TRL 1.16 does not hand from one method to the next travels in a `RolloutScorer` of that rollout.

Shapes: B rows of a rollout on this process, W processes, C the width of completions.
"""

from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from trl import GRPOTrainer as TRLGRPOTrainer

from . import quieting, trl_seam
from .algorithm import critic, kl_control, token_advantages
from .config import GRPOConfig, option
from .data import prompts
from .data.completions import columns_of
from .data.training_data import check_training_data
from .durable_trainer import DurableTrainer
from .errors import RewardFailuresError
from .models import adapters, loading, reference, reference_guards
from .reporting import credit_file, kl_tokens, live_view, model_card, report_to, run_callbacks
from .reporting.phases import timed
from .rollout import dynamic_sampling, generate, vllm_engine
from .scoring import failures, process_reward, step_scores, trial
from .scoring.scorer import RolloutScorer, scorer_under_way, weights_now
from .update import forwards, log_probs, micro_batches, packing_check


class GRPOTrainer(DurableTrainer):
    """TRL's trainer, and exactly its constructor, plus reward names.

    An entry of `reward_funcs` may also be what `load_reward` takes, as `"gsm8k"`, `"./mine.py:f"`
    or `"overlong(cache=64)"`; `org/name` and model folders stay TRL's reward models.

    With an adapter, the frozen base is the reference: no second model is loaded, the KL at step 0
    is checked to be 0, and the base is checked to be unchanged after training.

    Raises:
        GrpoError: a reward, adapter, setting, folder or reference that does not fit: errors.py.
    """

    __signature__ = signature(TRLGRPOTrainer)
    # For the model card; a run from a recipe sets the name of its data.
    dataset_source = "unnamed data"
    prompt_form: Any = None
    reward_weights: Tensor
    # What scores in the place of each of `reward_funcs`, which are the user's own.
    _entries = property(lambda self: self.run_rewards.entries_for(self.reward_funcs))

    @quieting.old_names()
    def __init__(self, *positional: Any, **named: Any) -> None:
        call = signature(TRLGRPOTrainer).bind(*positional, **named).arguments
        # Before TRL puts an adapter on the base, which some initialisations change.
        adapters.guard_adapters(call["model"], call.get("peft_config"))
        if call.get("args") is None:
            call["args"] = GRPOConfig(output_dir=f"{loading.model_name(call['model'])}-GRPO")
        report_to.check_report_to(call["args"])
        # Before TRL loads the model, which takes longer than to try a reward.
        check_training_data(trl_seam.data_drawn_by_trl(call, type(self)), call["args"])
        call["reward_funcs"], self.run_rewards = trial.prepare_rewards(call)
        with reference.made_here(call["model"], call["args"]), vllm_engine.made_here(call):
            super().__init__(**call)
        self.beta, self.continues_adapter = self.args.beta, isinstance(call["model"], PeftModel)
        self.traits = trl_seam.traits_of(self)
        self.chat_template_kwargs, self._continuing = prompts.split_options(self.args, self.traits)
        self._prepare_stages()

    def _prepare_stages(self) -> None:
        """Give the models their roles, and the run what its settings ask for, or refuse that."""
        args, model, traits = self.args, self.model, self.traits
        self.results: dict[str, Any] = {}
        reference.prepare_policy(model, self.ref_model, args, traits, self.continues_adapter)
        dynamic_sampling.check_dynamic_sampling(args, traits)
        kl_term = trl_seam.KLTerm(self)
        kl_callbacks = kl_control.kl_callbacks(args, kl_term, model, traits)
        self.kl_tokens = kl_tokens.KLTokens(kl_term, trl_seam.tokenizer_of(self), self.accelerator)
        self.critic = critic.build_critic(args, model, self.accelerator, traits)
        self.grouped = generate.GroupedSampling(trl_seam.tokenizer_of(self), self.accelerator)
        process_reward.attach_policy(self._entries, trl_seam.policy_of(self), traits)
        if option(args, "packed_update"):
            models = [self.accelerator.unwrap_model(each) for each in self._scored_models(model)]
            log_probs.prepare_models(models, self.temperature)
        own = [self.kl_tokens, *run_callbacks.report_callbacks(self.reward_func_names, args)]
        run_callbacks.exchange_callbacks(self.callback_handler, kl_callbacks + own)

    def train_here(self, checkpoint: str | None, **keywords: Any) -> Any:
        """Train, with the reference checked before and the base after."""
        state = trl_seam.policy_state(self, checkpoint)
        with reference_guards.guard_reference(state, self.args), live_view.ended():
            try:
                return super().train_here(checkpoint, **keywords)
            except RewardFailuresError:
                # What was learned before a reward failed too often is not lost.
                folder = Path(self.args.output_dir)
                if failures.lacks_checkpoint(folder, self.state.global_step, self.accelerator):
                    trl_seam.save_checkpoint(self)
                raise

    def _scored_models(self, policy: Any) -> list[Any]:
        """Return the models that score completions: the policy, and a reference model if any."""
        return [policy] if self.ref_model is None else [policy, self.ref_model]

    @cached_property
    def packs(self) -> packing_check.Packing:
        """Return which rows are updated packed; measured once, and logged if there are none."""
        score = super()._get_per_token_logps_and_entropies
        run = (self.accelerator, self.traits, self.args)
        return packing_check.decide_packing(self._scored_models(self.model_wrapped), score, *run)

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

        TRL 1.16: the old, the reference and the policy pass take log-probabilities, entropies or
        None, both (B, C), and an auxiliary loss or None from here.
        """
        block = (model, input_ids, attention_mask, logits_to_keep)
        if not self.packs.takes(input_ids):
            others = (batch_size, compute_entropy, *positional)
            scored = super()._get_per_token_logps_and_entropies(*block, *others, **named)
            return scored[0], log_probs.filled_entropies(scored[1]), *scored[2:]
        # TRL gives a batch size to passes without gradients.
        run = (self.args, self.traits, self.accelerator)
        budget = forwards.TokenBudget.of_run(*run) if batch_size else None
        with self.accelerator.autocast():
            scored = log_probs.packed_log_probs(*block, budget=budget, entropy=compute_entropy)
        return *scored, None

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Keep groups together. TRL 1.16 fills `_buffered_inputs` here, and counts in `_step`."""
        if not (self.model.training and self.packs):
            return super()._prepare_inputs(generation_batch)
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            changed = trl_seam.has_other_loss(self, GRPOTrainer)
            needs_all = self.beta != 0 or self.traits.entropy_in_loss or changed
            run = trl_seam.context_of(self)
            dealt = micro_batches.deal_rollout(batch, self.args, run, needs_all_rows=needs_all)
            trl_seam.log_metric(self, "signal/kept_fraction", dealt.kept_fraction)
            self._buffered_inputs: Any = dealt.micro_batches
        return self._buffered_inputs[self._step % steps]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Weigh a micro-batch as the whole batch would. TRL 1.16 returns what goes backward."""
        rows = micro_batches.rows_computed(inputs, trl_seam.context_of(self))
        with log_probs.only_rows(rows), self.kl_tokens.noted(inputs, self.args):
            return super()._compute_loss(model, inputs) * inputs.get("loss_scale", 1.0)

    @timed("reference")
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> trl_seam.Batch:
        """Make a rollout ready for the loss, as TRL 1.16 does here; replace groups if asked."""
        batch, rewards = self._roll_out(inputs)
        if self.model.training:
            run, tokenizer = trl_seam.context_of(self), trl_seam.tokenizer_of(self)
            weights, names = self.reward_weights, self.reward_func_names
            scored = credit_file.Scored(rewards, weights, names, self._steps)
            credit_file.record_credit(batch, scored, tokenizer, run, self.args, self.state)
            if option(self.args, "dynamic_sampling"):
                plan = trl_seam.refill_plan(self)
                with trl_seam.only_planned_rollout_logged(self, summed="monte_carlo/"):
                    replaced = dynamic_sampling.replace_groups(batch, self._roll_out, plan, run)
                trl_seam.log_metrics(self, replaced.metrics)
                batch = replaced.batch
        return batch

    def _roll_out(self, rows: list[dict[str, Any]]) -> tuple[trl_seam.Batch, Tensor]:
        """Make TRL's rollout, B rows, with its rewards, (W·B, F), and tokens their advantages."""
        scorer = RolloutScorer(self._entries, rows, trl_seam.context_of(self))
        seen_here = trl_seam.replaced_in_trl("use_adapter", reference.as_reference)
        with scorer.under_way(), seen_here, trl_seam.rewards_recorded(self) as returned:
            batch = super()._generate_and_score_completions(rows)
        rewards = returned[-1]
        if not self.model.training:
            return batch, rewards
        args, run, tokenizer = self.args, trl_seam.context_of(self), trl_seam.tokenizer_of(self)
        steps = self._steps = step_scores.of_rollout(scorer.scores, batch, rewards, tokenizer, run)
        settings = token_advantages.settings_of(args, self.reward_weights, packs=bool(self.packs))
        credit = token_advantages.credit_tokens(batch, rewards, steps, settings, run, self.critic)
        trl_seam.log_metrics(self, credit.metrics | step_scores.metrics(scorer.scores, steps))
        trl_seam.show_advantages(self, credit.shown)
        return {**batch, "advantages": credit.advantages}, rewards

    def _tokenize_prompts(self, conversations: list[Any]) -> Any:
        """Continue last messages if asked. TRL 1.16 returns (ids, images, multimodal fields)."""
        if self._continuing is None:
            return super()._tokenize_prompts(conversations)
        own = {"tools": self.tools or None, "chat_template": self.chat_template}
        tokenizer = self.processing_class
        return prompts.prompt_token_ids(conversations, tokenizer, self._continuing | own), None, {}

    @timed("rollout")
    def _generate(self, prompts: list[Any]) -> Any:
        """Begin to score. TRL 1.16 returns (_, completion_ids, _, completions, ...)."""
        output = super()._generate(prompts)
        self.grouped.share_reasons(trl_seam.context_of(self))
        scorer = scorer_under_way()
        # A rollout function and environments add columns later, when TRL calls the rewards.
        late = self.rollout_func is not None or self.environments is not None
        if scorer is not None and option(self.args, "early_rewards") and not late:
            columns = columns_of(scorer.rows) | {"prompts": prompts, "trainer_state": self.state}
            columns["completion_ids"] = output[1]
            scorer.begin(output[3], columns, self.accelerator.device)
        return output

    @timed("scoring")
    def _calculate_rewards(self, inputs: Any, *positional: Any, **named: Any) -> Tensor:
        """Score; leave failures out. TRL 1.16 returns the rewards of all processes here, (W·B, F).

        It reads `reward_weights` afterwards.
        """
        run = trl_seam.context_of(self)
        self.reward_weights, moved = weights_now(self._entries, self.args, self.reward_weights, run)
        scorer = scorer_under_way() or RolloutScorer(self._entries, inputs, run)
        with trl_seam.rewards_replaced(self, scorer.functions()):
            rewards = super()._calculate_rewards(inputs, *positional, **named)
        settled = failures.settle_failures(scorer.scores, rewards, run, self.args)
        trl_seam.log_metrics(self, settled.metrics | moved)
        return settled.rewards

    def _generate_single_turn(self, *positional: Any, **named: Any) -> Any:
        """Sample by groups. TRL 1.16 calls the model's `generate` here, or an engine."""
        grouped = option(self.args, "grouped_rollout") and trl_seam.samples_with_generate(self)
        with self.grouped.serving(self.model_wrapped if grouped else None) as served:
            return served.cut(*super()._generate_single_turn(*positional, **named))

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None
    ) -> None:
        """Write README.md. TRL 1.16 calls this at every checkpoint, transformers at every push."""
        if self.is_world_process_zero():
            facts = trl_seam.card_facts(self, dataset_name or self.dataset_source)
            folder = Path(self.args.output_dir)
            model_card.write_model_card(folder, facts, self.args, self.results, model_name, tags)
