"""TRL's trainer, whose runs survive: the overrides of `GRPOTrainer` that change no number.

The stages of an update are in trainer.py. As there, an override unpacks what it is called with,
calls a stage with plain values, and its docstring names what of the libraries it relies on.
"""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

from trl import GRPOTrainer as TRLGRPOTrainer

from . import quieting, trl_seam
from .config import option
from .durability import (
    broken_steps,
    dead_run,
    disk,
    finite,
    output_folder,
    resume,
    rollout_checks,
    run_state,
    whole_checkpoints,
)
from .durability.launchers import leave_with_launcher
from .durability.leaving import Departure, Leaving
from .durability.peers import Peers
from .models import adapters
from .models.random_state import remembered_random_numbers
from .reporting import progress, pushing
from .run_files import written_or_said

_LAST_STEP = "It was not saved. Lower learning_rate, and go on from the newest checkpoint."
_NOT_SAVED = (
    "It is not saved, and what was saved before is untouched. Lower learning_rate, and go on from "
    "the newest checkpoint."
)


class DurableTrainer(TRLGRPOTrainer):
    """TRL's trainer in a folder of its own, which signals ask to leave."""

    # A second `train()` may go on in the folder that the first one claimed, with its watch.
    _owns_output_folder = False
    _watched = False
    _shown_at = -1
    # That of the `train()` under way.
    _departure = Departure()
    # PPO's, where the estimator has one.
    critic: Any = None

    def train(self, resume_from_checkpoint: str | bool | None = None, **keywords: Any) -> Any:
        """Train in a folder that belongs to this run. transformers 5.23 returns a `TrainOutput`."""
        checkpoint, folder = self._checkpoint_for(resume_from_checkpoint), self.args.output_dir
        if checkpoint is not None and resume.is_at_its_end(checkpoint, self.args):
            return trl_seam.load_finished(self, checkpoint)
        leave_with_launcher()
        self._watch_numbers()
        self._departure = Departure(self.accelerator, self._place, resumes=checkpoint is not None)
        peers = Peers(alone=self.accelerator.num_processes == 1)
        saving = disk.saving(Path(folder))
        with self._departure.heeded(self), peers.explained(), saving, quieting.old_names():
            output = self.train_here(str(checkpoint) if checkpoint else None, **keywords)
        model = self.accelerator.unwrap_model(self.model)
        finite.check_weights(model, "after the last step", _LAST_STEP)
        return output

    def _checkpoint_for(self, wish: str | bool | None) -> Path | None:
        """Claim the run's folder; return the checkpoint to go on from, with its state at hand."""
        folder, has_begun = Path(self.args.output_dir), False
        if not self._owns_output_folder:
            has_begun = output_folder.claim_output_folder(folder, self.accelerator, resume=wish)
            self.add_callback(self._order)
        self._owns_output_folder = True
        checkpoint = resume.checkpoint_for(folder, wish, self.accelerator, has_begun=has_begun)
        self._resumed = run_state.read_state(checkpoint, self.args.process_index)
        if checkpoint is not None:
            insists = option(self.args, "resume_changed")
            if not resume.goes_on_as_it_was(checkpoint, self._settings(), insists=insists):
                self._resumed = run_state.of_any_run(self._resumed)
        self._order.restore(self._resumed.get("order"))
        return checkpoint

    def _settings(self) -> dict[str, Any]:
        """Return what decides the future of the run, beside its state."""
        policy = self.accelerator.unwrap_model(self.model)
        return resume.settings_of(self.args, self.train_dataset, policy)

    def _watch_numbers(self) -> None:
        """Check the weights that a training begins with, and watch those of its steps."""
        broken_steps.check_skipping(self.args, self.accelerator)
        model = self.accelerator.unwrap_model(self.model)
        finite.check_before_training(model, self.ref_model)
        self._numbers.forget()
        if not self._watched:
            self.add_callback(dead_run.DeadRunWatch())
        self._watched = True

    def train_here(self, checkpoint: str | None, **keywords: Any) -> Any:
        """Train in the folder that was claimed."""
        try:
            output = super().train(resume_from_checkpoint=checkpoint, **keywords)
            # Otherwise these are the weights of another step.
            if not self.args.load_best_model_at_end:
                self._departure.leave_if_asked()
        except Leaving:
            save = partial(trl_seam.save_checkpoint, self)
            self._departure.leave(save, Path(self.args.output_dir), self.state.global_step)
        return output

    @cached_property
    def _order(self) -> run_state.DataOrder:
        """Return what remembers from where the order of each epoch was drawn."""
        return run_state.DataOrder()

    def _place(self) -> Any:
        """Note where the run is between two steps; return what goes back there."""
        undo, redraw = trl_seam.place_between_steps(self), remembered_random_numbers()
        return lambda: (undo(), redraw())

    @cached_property
    def _numbers(self) -> finite.StepNumbers:
        """Return what remembers the losses of a step until its gradient is known."""
        return finite.StepNumbers(self.args.gradient_accumulation_steps)

    def compute_loss(self, model: Any, inputs: Any, *positional: Any, **named: Any) -> Any:
        """Remember a micro-batch and its loss. transformers 5.23 sends the loss backward."""
        loss = super().compute_loss(model, inputs, *positional, **named)
        if self.model.training:
            self._numbers.add(inputs, loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Stop before a step whose numbers are not finite, or leave it out.

        transformers 5.23 calls this with clipped gradients, right before the optimizer's step.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        run = trl_seam.context_of(self)
        verdict = self._numbers.judge(norm, run)
        if verdict is not None:
            policy, tokenizer = trl_seam.policy_state(self, None), trl_seam.tokenizer_of(self)
            broken_steps.leave_out_or_stop(verdict, policy, tokenizer, self.args, run)
            # Optimizers pass over weights without a gradient: their moments stay as well.
            model.zero_grad()
        return norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights that are finite. transformers 5.23: checkpoints are saved by this, too."""
        model = self.accelerator.unwrap_model(self.model)
        finite.check_weights(model, f"after step {self.state.global_step}", _NOT_SAVED)
        run = Path(self.args.output_dir)
        with disk.saving(run), adapters.base_found_from_anywhere(model):
            if _internal_call and self.args.should_save:
                whole_checkpoints.copy_card(run, Path(output_dir or run))
            super().save_model(output_dir, _internal_call=_internal_call)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint that is whole, or not there. TRL 1.16 writes, removes and pushes."""
        run, step, now = Path(self._get_output_dir(trial)), self.state.global_step, self._settings()
        with (
            whole_checkpoints.written_whole(run, step, now, self.accelerator) as unfinished,
            trl_seam.checkpoint_written_in(self, unfinished, run),
        ):
            super()._save_checkpoint(model, trial)
        newest, args, best = run / f"checkpoint-{step}", self.args, self.state.best_model_checkpoint
        if args.should_save:
            whole_checkpoints.remove_beyond(args.save_total_limit, newest, best and Path(best))
        if args.push_to_hub:
            self._push_from_checkpoint(str(newest))

    def _save_rng_state(self, output_dir: str) -> None:
        """Save what decides the future. transformers 5.23: each process saves its own here."""
        super()._save_rng_state(output_dir)
        state = {
            "order": self._order.state(self.state),
            "window": trl_seam.window_of(self),
            "critic": self.critic.state() if self.critic else None,
        }
        run_state.write_state(Path(output_dir), self.args.process_index, state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Go on within a rollout. transformers 5.23 calls this right before the first step."""
        super()._load_rng_state(checkpoint)
        if self._resumed.get("window"):
            trl_seam.restore_window(self, self._resumed["window"])
        if self.critic and self._resumed.get("critic"):
            self.critic.restore(self._resumed["critic"])

    def _get_train_sampler(self, *positional: Any, **named: Any) -> Any:
        """Follow the order of the data. TRL 1.16 returns a sampler, None for a stream."""
        sampler = super()._get_train_sampler(*positional, **named)
        self._order.follow(getattr(sampler, "generator", None))
        return sampler

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """Abandon a rollout for a signal. TRL 1.16 samples, scores and normalises here."""
        with self._departure.abandoning(self.model.training):
            return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, prompt_ids: Any, *positional: Any, **named: Any) -> Any:
        """Cut sampling short for a signal. TRL 1.16 returns token ids and log-probabilities."""
        sample = partial(super()._generate_single_turn, prompt_ids, *positional, **named)
        # Engines and sharded weights sample on all processes in step, which none may leave.
        if not (self.model.training and trl_seam.samples_with_generate(self)):
            return sample()
        return self._departure.sampled(
            sample, prompt_ids, filler=trl_seam.tokenizer_of(self).eos_token_id
        )

    def _generate(self, prompts: list[Any]) -> Any:
        """Check what is sampled, and leave together. TRL 1.16 calls `rollout_func` here."""
        run, model = trl_seam.context_of(self), self.accelerator.unwrap_model(self.model)
        function = self.rollout_func
        if function is not None:
            size = model.config.get_text_config().vocab_size
            function = rollout_checks.checked_rollout(function, size, run)
        with (
            trl_seam.rollout_function_replaced(self, function),
            rollout_checks.logits_explained(model, self.args.learning_rate, run.step),
        ):
            output = super()._generate(prompts)
        self._departure.agreed(self.model.training)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; a disk or network that fails is said. TRL 1.16 writes `log_completions` here."""
        due, self._shown_at = progress.completions_due(self.state.global_step, logs, self._shown_at)
        self.log_completions = self.args.log_completions and due
        with written_or_said("A log"):
            super().log(logs, start_time)
        self._departure.logged()

    @cached_property
    def _uploads(self) -> pushing.RunClient:
        """Return the client by which this run is pushed."""
        samples = option(self.args, "push_samples")
        return pushing.RunClient(samples=samples, private=self.args.hub_private_repo)

    def push_to_hub(self, *positional: Any, **named: Any) -> Any:
        """Push what a reader needs. transformers 5.23 uploads all of the folder here."""
        with trl_seam.uploads_by(self._uploads):
            return super().push_to_hub(*positional, **named)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push as `push_to_hub`, in the background. transformers 5.23 does so at each save."""
        with trl_seam.uploads_by(self._uploads):
            super()._push_from_checkpoint(checkpoint_folder)
