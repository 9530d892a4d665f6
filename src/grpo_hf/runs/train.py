"""One run from recipe to result: check, load, train, save, compare with the base, push."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from transformers import TrainerCallback, set_seed

from .. import trl_seam
from ..data.overlap import which_are_in
from ..data.readers import EMBEDDED, EMBEDDED_PROBLEMS
from ..durability.output_folder import note_end
from ..errors import ModelError
from ..evaluation.statistics import Comparison
from ..models import adapters, loading
from ..reporting import report
from ..reporting.gaming_watch import say_findings
from ..rollout import vllm_engine
from ..run_files import say_first
from ..trainer import GRPOTrainer
from . import finished, preflight, training_evaluations
from .busy import say_if_busy
from .defaults import describe
from .evaluation_sets import EvaluationSet, keep_held_out, keep_trained
from .output_checks import first_checkpoint, step_of_its_end
from .recipe import EMBEDDED_MODEL, Recipe
from .trained import no_bars_in_a_file


class _AtBeginning(TrainerCallback):
    """Writes down what a run is when it begins.

    An interrupted run leaves its recipe behind, and one that may not go on leaves the recipe of
    the run that is there as it is.
    """

    def __init__(
        self, recipe: Recipe, trained: Any, held_out: training_evaluations.HeldOut | None
    ) -> None:
        self._recipe = recipe
        self._trained = trained
        self._held_out = held_out

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        run = Path(args.output_dir)
        self._recipe.save(run)
        keep_trained(run, self._trained)
        if self._held_out is not None:
            keep_held_out(run, self._held_out.rows)


def train(recipe: Recipe) -> Comparison | None:
    """Run a recipe.

    Returns:
        The comparison of base and adapter on the held-out prompts; None where `eval_rows` is 0 or
        there is nothing to compare.

    Raises:
        GrpoError: something is wrong with the recipe; before the model is loaded where that can be
            known.
    """
    no_bars_in_a_file()
    end = step_of_its_end(recipe)
    if end is not None:
        run = recipe.training.output_dir
        say_first(
            f"{run}: the run has finished, at step {end}, with all that its recipe asks for. "
            f"A larger --max_steps goes on; `grpo-hf report {run}` shows it."
        )
        return None
    task = preflight.check_task(recipe, may_stream=True, may_use_tools=True)
    prompts = prompts_of(recipe, task)
    notes = task.notes + prompts.notes + describe(recipe.chosen)
    # A run that goes on has saved its first one.
    if not any(Path(recipe.training.output_dir).glob("checkpoint-*")):
        notes = [*notes, first_checkpoint(recipe.training)]
    for note in notes:
        say_first(f"note: {note}")
    specs = ", ".join(reward.spec for reward in task.rewards)
    # A stream does not say how many there are.
    count = f"{len(prompts.train):,} prompts" if task.stream is None else "prompts"
    say_first(f"{count} from {task.train.source}; rewards: {specs}")
    trained = prompts.digests()
    sets = training_evaluations.read_sets(recipe, task, prompts, trained)
    trainer = make_trainer(recipe, task, prompts)
    held_out = None
    if prompts.held_out is not None:
        rows = prompts.held_out.to_list()
        marks = which_are_in(trained, prompts.held_out["prompt"], prompts.form)
        held_out = training_evaluations.HeldOut(trainer, rows, task.eval_reward, marks)
        if trainer.eval_dataset is not None:
            trainer.add_callback(training_evaluations.HeldOutAccuracy(trainer, held_out))
    trainer.add_callback(_AtBeginning(recipe, trained, held_out))
    trainer.train(resume_from_checkpoint=task.resume)
    # Before the comparison, which may fail on a reward; the adapter is what the run was for.
    trl_seam.save_model_here(trainer)
    # The comparison is the model's own work, for which the engine's memory is better free.
    vllm_engine.close_engines()
    try:
        comparison = _evaluate(trainer, held_out, sets, recipe.task.eval_samples)
    except Exception:
        _push(trainer)
        raise
    if trainer.is_world_process_zero():
        # Before what is printed last, which names it.
        finished.report(Path(trainer.args.output_dir))
        overlap = trainer.results.get("in_training")
        report.show(comparison, trainer.args.output_dir, task.eval_reward.name, in_training=overlap)
    # transformers before 5.23 has no `Trainer.end`, which does the same.
    trainer.accelerator.end_training()
    # The last of all: nothing is lost where the network fails.
    _push(trainer)
    if trainer.is_world_process_zero():
        note_end(Path(trainer.args.output_dir), trainer.state.global_step)
    return comparison


def _evaluate(
    trainer: GRPOTrainer,
    held_out: training_evaluations.HeldOut | None,
    sets: Sequence[EvaluationSet],
    samples: int,
) -> Comparison | None:
    """Compare with the base if there are prompts for that, and write the card."""
    comparison = None
    if held_out is not None:
        comparison = training_evaluations.compare(trainer, held_out)
        judge: dict[str, Any] = {"reward": held_out.reward.name, "means": held_out.reward.purpose}
        judge["in_training"] = held_out.in_training()
        trainer.results = comparison.as_dict() | judge if comparison is not None else {}
        # Again: the answers of the comparison are evidence, too, and the card names what was found.
        if trainer.is_world_process_zero():
            say_findings(Path(trainer.args.output_dir))
    training_evaluations.evaluate_sets(trainer, sets, samples, held_out)
    # A card that is pushed has the repository's name, as transformers names it.
    pushed_name = trainer.args.push_to_hub and trainer.args.hub_model_id
    trainer.create_model_card(model_name=pushed_name.split("/")[-1] if pushed_name else None)
    return comparison


def _push(trainer: GRPOTrainer) -> None:
    """Push the output folder, if the run asks for that; only the main process pushes.

    Raises:
        ConfigError, HubUnreachable: it cannot be pushed; the message says how to do it later.
    """
    args = trainer.args
    if not args.push_to_hub or not trainer.is_world_process_zero():
        return
    trl_seam.finish_pushes(trainer)
    finished.push_run(Path(args.output_dir), trainer.hub_model_id, args)


def make_trainer(recipe: Recipe, task: preflight.Task, prompts: preflight.Prompts) -> GRPOTrainer:
    """Load the model of a recipe, and make its trainer."""
    model = base_of(recipe)
    lora = loading.lora_config(recipe.model)
    if recipe.task.adapter is not None:
        model = adapters.continue_adapter(model, recipe.task.adapter)
        # The adapter is there; TRL would put a second one on the base.
        lora = None
    trainer = GRPOTrainer(
        model,
        task.rewards,
        recipe.training,
        train_dataset=prompts.train,
        # As in TRL's script.
        eval_dataset=prompts.held_out if recipe.training.eval_strategy != "no" else None,
        processing_class=prompts.tokenizer,
        peft_config=lora,
        tools=list(task.tools) or None,
    )
    # The trainer sees rows only, and the card says where they come from and how they are made.
    trainer.dataset_source = task.train.source
    trainer.prompt_form = prompts.form
    return trainer


def base_of(recipe: Recipe) -> Any:
    """Load the base of a recipe."""
    say_if_busy()
    return loading.load_base(
        recipe.model,
        gguf_file=recipe.task.gguf_file,
        trust_remote_code=recipe.training.trust_remote_code,
    )


def prompts_of(recipe: Recipe, task: preflight.Task) -> preflight.Prompts:
    """Check everything that needs no weights, and return the prompts of a recipe.

    The embedded model is taught its format before.

    Raises:
        GrpoError: the first thing that is wrong; see errors.py.
    """
    if recipe.model.model_name_or_path == EMBEDDED_MODEL:
        # Before a cold start, which takes minutes.
        preflight.check_embedded(recipe, task)
        recipe.model.model_name_or_path = cold_started(recipe)
    return preflight.check_model(recipe, task)


def policy_of(recipe: Recipe) -> PeftModel:
    """Return the policy on its frozen base, without a trainer.

    It is a fresh adapter, or the one that `--adapter` names.

    Raises:
        ModelError: no such model, an adapter that changes the base, or none at all.
    """
    config = loading.lora_config(recipe.model)
    if config is None and recipe.task.adapter is None:
        raise ModelError(
            "use_peft is false, and here the policy is an adapter beside others. Leave it out."
        )
    adapters.guard_adapter_config(config)
    model = base_of(recipe).to(recipe.training.device)
    # Without a trainer the first thing is to sample, and inference packs 4-bit weights.
    adapters.keep_trainable(model)
    # After loading, so that a fresh adapter does not depend on what loading drew.
    set_seed(recipe.training.seed)
    if recipe.task.adapter is not None:
        return adapters.continue_adapter(model, recipe.task.adapter)
    return get_peft_model(model, config)


def cold_started(recipe: Recipe) -> str:
    """Teach the embedded model the format, and return where its checkpoint lies.

    It learns from problems like those of the run, and from word problems where the run has data of
    its own. The checkpoint lies beside the run, for the next one.
    """
    # TRL's supervised trainer is not imported for runs that need none.
    from ..demo.cold_start import BATCH, cold_start, like_the_run

    training = recipe.training
    steps = recipe.task.cold_start_steps
    worked = None
    default = EMBEDDED_PROBLEMS[EMBEDDED]
    problems = EMBEDDED_PROBLEMS.get(recipe.task.dataset_path or EMBEDDED, default)
    # `cold_start` draws the default ones itself; rows handed to it give a checkpoint another name.
    if problems is not default:
        worked = list(islice(problems("cold_start", seed=training.seed), steps * BATCH))
    cache = Path(training.output_dir).parent
    return str(cold_start(cache, steps=steps, **like_the_run(training), worked=worked))
