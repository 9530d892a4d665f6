"""One run from recipe to result: check, load, train, save, compare with the base, push."""

import sys
from pathlib import Path

from accelerate import PartialState
from peft import PeftModel, get_peft_model
from transformers import set_seed
from transformers.utils import logging
from trl import get_peft_config

from ..models import loading
from ..evaluation import comparison
from ..evaluation.statistics import Comparison
from . import preflight
from ..reporting import report
from ..models import adapters
from ..errors import ModelError
from .recipe import EMBEDDED_MODEL, Recipe
from ..trainer import GRPOTrainer


def train(recipe: Recipe) -> Comparison | None:
    """Run a recipe.

    Returns:
        Base against adapter on the held-out prompts, or None where `eval_rows` is 0 or there is nothing to compare.

    Raises:
        GrpoError: something is wrong with the recipe, before the model is loaded where that can be known.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    say = PartialState().print
    task = preflight.check_task(recipe)
    prompts = prompts_of(recipe, task)
    for note in task.notes + prompts.notes:
        say(f"note: {note}", flush=True)
    named = ", ".join(reward.spec for reward in task.rewards)
    say(f"{len(prompts.train):,} prompts from {task.train.source}; rewards: {named}", flush=True)

    model = loading.load_base(
        recipe.model, gguf_file=recipe.task.gguf_file, trust_remote_code=recipe.training.trust_remote_code
    )
    peft_config = get_peft_config(recipe.model)
    if recipe.task.adapter is not None:
        model, peft_config = adapters.continue_adapter(model, recipe.task.adapter), None
    trainer = GRPOTrainer(
        model,
        task.rewards,
        recipe.training,
        train_dataset=prompts.train,
        processing_class=prompts.tokenizer,
        peft_config=peft_config,
    )
    trainer.dataset_source = task.train.source
    if trainer.is_world_process_zero():
        recipe.save(Path(recipe.training.output_dir))
    trainer.train(resume_from_checkpoint=task.resume)
    trainer.save_model()

    compared = None
    if prompts.held_out is not None and (reason := comparison.not_comparable(trainer)):
        say(f"note: no comparison with the base: {reason}", flush=True)
    elif prompts.held_out is not None:
        say(f"comparing base and adapter on {len(prompts.held_out)} held-out prompts", flush=True)
        compared = comparison.compare_with_base(trainer, prompts.held_out, task.eval_reward)
        trainer.results = compared.as_dict() if compared is not None else {}
    if recipe.training.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.create_model_card()
    if trainer.is_world_process_zero():
        report.show(compared, trainer, task.eval_reward)
    trainer.end()
    return compared


def prompts_of(recipe: Recipe, task: preflight.Task) -> preflight.Prompts:
    """The prompts of a recipe, checked with everything that needs no weights; the embedded model is taught before.

    Raises:
        GrpoError: the first thing that is wrong; see errors.py.
    """
    if recipe.model.model_name_or_path == EMBEDDED_MODEL:
        preflight.check_rows(recipe, task, chat=False)  # before minutes of a cold start
        recipe.model.model_name_or_path = cold_started(recipe)
    return preflight.check_model(recipe, task)


def policy_of(recipe: Recipe) -> PeftModel:
    """The policy on its frozen base, without a trainer: a fresh adapter, or the one that `--adapter` names.

    Raises:
        ModelError: no such model, an adapter that changes the base, or none at all.
    """
    config = get_peft_config(recipe.model)
    if config is None and recipe.task.adapter is None:
        raise ModelError("use_peft is false, and here the policy is an adapter beside others. Leave it out.")
    adapters.guard_adapter_config(config)
    model = loading.load_base(
        recipe.model, gguf_file=recipe.task.gguf_file, trust_remote_code=recipe.training.trust_remote_code
    ).to(recipe.training.device)
    adapters.keep_trainable(model)  # whoever wants no trainer samples first
    set_seed(recipe.training.seed)
    if recipe.task.adapter is not None:
        return adapters.continue_adapter(model, recipe.task.adapter)
    return get_peft_model(model, config)


def cold_started(recipe: Recipe) -> str:
    """The embedded model, taught the format; its checkpoint lies beside the run, for the next one."""
    from ..demo.cold_start import cold_start  # TRL's supervised trainer is not imported for runs that need none

    training = recipe.training
    cache = Path(training.output_dir).parent
    return str(cold_start(cache, steps=recipe.task.cold_start_steps, seed=training.seed, use_cpu=training.use_cpu))
