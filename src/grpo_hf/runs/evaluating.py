"""`grpo-hf eval`: base and adapter of a run on sets of problems, from the folder of the run."""

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import TrainerState

from ..data.prompts import continuing_options
from ..errors import ConfigError, DataError, OutputExistsError
from ..evaluation.answers import judging
from ..evaluation.comparison import GreedyAnswers
from ..evaluation.evaluate import evaluate, parts_of
from ..evaluation.evaluation_progress import EvaluationProgress
from ..evaluation.problem_set import Answering, ProblemSet
from ..evaluation.summary_text import report_of
from ..models.places import absolute
from ..reporting.model_card import refresh_card
from ..rollout.conversations import ToolUse
from ..rollout.sampling import sampling_of
from ..rollout.vllm_answers import VllmAnswers, start_answers
from ..rollout.vllm_engine import close_engines
from ..run_files import EVALUATIONS, HELD_OUT_SET, say, say_first
from ..run_folders import check_folder
from ..scoring.model_tools import Tool, call_tool, load_tools
from ..trl_seam import name_or_path
from .evaluation_sets import EvaluationSet, SetReader, check_names, trained_prompts
from .preflight import judges_of, rewards_of
from .recipe import Recipe, read_recipe, relocated
from .trained import TrainedModel, open_run, recipe_file

# Completions that vLLM is asked for at a time. It takes as many of them at once as fit.
_ENGINE_BATCH = 256
# Completions that are written at a time where a run sampled more: answers are kept batch by batch,
# and more of them at once are hardly faster.
_BATCH = 64
# How a training dealt its batches and engines over its processes, in a form that fits any number of
# them: an evaluation may have others.
_UNDEALT = {
    "num_generations": 2,
    "steps_per_generation": 2,
    "generation_batch_size": None,
    "eval_strategy": "no",
    "vllm_tensor_parallel_size": 1,
}
_LIBRARIES = ("grpo-hf", "trl", "transformers", "peft", "torch")


@dataclass(frozen=True)
class Question:
    """What `grpo-hf eval` was asked for.

    Args:
        data: sets, as `NAME`, `NAME=PATH` or `PATH`; none for those of the recipe.
        samples: sampled completions of each problem, beside the greedy one.
        limit: the first rows of each set only.
        batch_size: completions that are written at a time; None for the run's.
        reward: a spec, instead of the sets' own.
        category: a column by which results are shown apart, instead of the sets' own.
        base: where the base is, if it has moved.
        as_json: print the summaries and nothing else.
    """

    data: Sequence[str] = ()
    samples: int = 0
    limit: int | None = None
    batch_size: int | None = None
    reward: str | None = None
    category: str | None = None
    base: str | None = None
    trust_remote_code: bool = False
    as_json: bool = False


def evaluate_run(run: Path, question: Question, settings: Sequence[str]) -> list[dict[str, Any]]:
    """Evaluate a run, print the results, and return the summaries.

    Args:
        run: the output folder of a run, or a checkpoint in it.
        settings: flags of the recipe that are changed for the evaluation, as
            `--temperature 0.6 --max_completion_length 1024`.

    Raises:
        GrpoError: the first thing that is wrong; see errors.py.
    """
    file = _recipe_file(run)
    recipe = read_recipe(["--config", str(file), *settings], instead=_UNDEALT)
    home = file.parent
    _check(question)
    asked = _asked(question, recipe)
    rewards = judges_of(*rewards_of(recipe))
    # With --json, standard output has nothing else.
    tell = partial(say_first, to_stderr=question.as_json)
    trained = open_run(
        run,
        base=question.base,
        trust_remote_code=question.trust_remote_code,
        say=tell,
        # With the flags of this evaluation, which may be those of loading.
        recipe=recipe,
    )
    if not trained.has_adapter:
        raise ConfigError(
            f"{run}: the run trained the whole model, so there is no adapter to switch off. "
            "Compare base and model with another program, such as lm-eval (docs/evaluation.md)."
        )
    trained.model.to(PartialState().device)
    reader = SetReader(
        home,
        recipe,
        rewards,
        trained.tokenizer,
        trained=trained_prompts(home),
        reward=question.reward,
        category=question.category,
    )
    # All of them, so that a mistake in the last one shows before the first has taken its hour.
    sets = [reader.read(each).limited(question.limit) for each in asked]
    for found in sets:
        for note in found.notes:
            tell(f"note: {note}")
    engine = None
    if recipe.training.use_vllm:
        engine = start_answers(trained.model, trained.tokenizer, recipe.training, tell)
    summaries = []
    try:
        answering = _answering(trained, recipe, question, engine)
        for found in sets:
            summary = _evaluate(
                trained,
                recipe,
                found,
                answering,
                home,
                among_others=len(sets) > 1,
                shown=not question.as_json,
            )
            summaries.append(summary)
    except KeyboardInterrupt:
        tell("The answers so far are kept: the same command goes on with them.")
        raise
    finally:
        close_engines()
    if PartialState().is_main_process:
        refresh_card(home)
    # The page has the evaluations of the run, and none of its checkpoints.
    if not _is_of_checkpoint(trained):
        # On a line of its own, so that it can be copied.
        tell(f"The page of the run has this after\n  grpo-hf report {shlex.quote(str(home))}")
    if question.as_json:
        say_first(json.dumps(summaries, indent=1, ensure_ascii=False))
    return summaries


def _recipe_file(run: Path) -> Path:
    check_folder(run)
    file = recipe_file(run)
    if file is None:
        raise DataError(
            f"{run} has no recipe.yaml, which says how prompts are made and what is right. "
            "Expected the output folder of a run from a recipe. For a run of a script, write one "
            "beside the adapter: rewards, system_prompt, instruction and max_completion_length."
        )
    return file


def _check(question: Question) -> None:
    least = {"samples": 0, "limit": 1, "batch_size": 1}
    for name, lowest in least.items():
        value = getattr(question, name)
        if value is not None and value < lowest:
            raise ConfigError(f"--{name} is {value}; expected a number from {lowest}.")


def _asked(question: Question, recipe: Recipe) -> list[str]:
    asked = list(question.data) or [HELD_OUT_SET, *recipe.task.eval_data]
    check_names(asked)
    return asked


def _answering(
    trained: TrainedModel, recipe: Recipe, question: Question, engine: VllmAnswers | None
) -> Answering:
    training = recipe.training
    answering = answering_of(
        training,
        load_tools(recipe.task.tools, recipe.folder),
        max_new_tokens=training.max_completion_length or trained.settings.max_new_tokens,
        samples=question.samples,
        batch_size=question.batch_size or (None if engine is None else _ENGINE_BATCH),
        # What TRL takes where a recipe says nothing.
        steps_per_generation=training.gradient_accumulation_steps,
    )
    return replace(answering, engine=engine)


def _is_of_checkpoint(trained: TrainedModel) -> bool:
    return trained.folder.name.startswith("checkpoint-")


def _evaluate(
    trained: TrainedModel,
    recipe: Recipe,
    found: EvaluationSet,
    answering: Answering,
    home: Path,
    *,
    among_others: bool,
    shown: bool,
) -> dict[str, Any]:
    folder = home / EVALUATIONS
    if _is_of_checkpoint(trained):
        # Beside each other, so that two checkpoints can be compared.
        folder /= trained.folder.name
    policy = Policy(
        trained.model, trained.tokenizer, trained.folder, recipe.training, TrainerState()
    )
    with _written(folder):
        summary = evaluate_set(policy, found, answering, folder, among_others=among_others)
        if shown:
            show_summary(summary, folder, home)
    return summary


def answering_of(
    training: Any,
    tools: Sequence[Tool],
    *,
    max_new_tokens: int,
    samples: int = 0,
    batch_size: int | None = None,
    steps_per_generation: int,
) -> Answering:
    """Return how the prompts of a run are answered in an evaluation.

    Args:
        training: settings of the run.
        tools: what the model may call, which is what it may call in training.
        batch_size: completions that are written at a time; None for as many as the run sampled at
            a time, with an upper limit.
        steps_per_generation: micro-batches whose completions the run sampled at a time.
    """
    use = None
    if tools:
        use = ToolUse(tools, call_tool, training.max_tool_calling_iterations)
    # Both fit by the user's word.
    sampled = min(training.per_device_train_batch_size * steps_per_generation, _BATCH)
    fits = max(training.per_device_eval_batch_size, sampled)
    return Answering(
        max_new_tokens=max_new_tokens,
        batch_size=batch_size or fits,
        samples=samples,
        sampling=sampling_of(training),
        seed=training.seed,
        # As the training continues the begun answers of its data, in any other set, too.
        template_options=continuing_options(training.chat_template_kwargs),
        tool_use=use,
    )


@dataclass(frozen=True)
class Policy:
    """A base with an adapter on it, whose answers are evaluated.

    Args:
        folder: that holds the adapter.
        training: settings of its run.
        state: of its trainer, for rewards that read it.
    """

    model: Any
    tokenizer: Any
    folder: Path
    training: Any
    state: TrainerState


def evaluate_set(
    policy: Policy,
    found: EvaluationSet,
    answering: Answering,
    folder: Path,
    *,
    answered: Mapping[str, GreedyAnswers] | None = None,
    among_others: bool = False,
) -> dict[str, Any]:
    """Evaluate base and adapter on a set, and return the summary.

    Args:
        folder: of the evaluations of a run.
        answered: greedy answers that are there already, by side.
        among_others: whether other sets are evaluated as well, so that the progress names this one.

    Raises:
        OSError: the results cannot be written.
    """
    with (
        judging(found.rewards, policy.training) as rewards,
        EvaluationProgress(
            found.name,
            len(found.rows),
            parts_of(answering),
            named=among_others,
        ) as progress,
    ):
        return evaluate(
            policy.model,
            policy.tokenizer,
            ProblemSet(
                found.name,
                found.rows,
                rewards,
                found.category,
                found.source,
                answered or {},
                found.trained,
            ),
            answering,
            folder,
            facts=facts_of(policy.model, policy.folder),
            trainer_state=policy.state,
            progress=progress.update,
        )


def show_summary(summary: dict[str, Any], folder: Path, home: Path) -> None:
    """Print the tables of a set, in the first process only.

    Args:
        folder: that holds the answers.
        home: that the file of a reward is relative to.
    """
    # Who reads it may look for the file from here.
    summary = summary | {"reward": relocated(summary["reward"], home, Path.cwd())}
    if PartialState().is_main_process:
        shown = StringIO()
        console = Console(file=shown, force_terminal=sys.stdout.isatty(), highlight=False)
        console.print(report_of(summary, folder))
        say(shown.getvalue().rstrip("\n"))


def facts_of(model: Any, folder: Path) -> dict[str, Any]:
    """Return what the answers of a model depend on, beside how they are asked for.

    Args:
        model: the policy.
        folder: that holds its adapter.
    """
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        versions[library] = version(library)
    adapter = hashlib.sha256()
    for file in sorted(folder.rglob("adapter_model.*")):
        if not file.relative_to(folder).parts[0].startswith("checkpoint-"):
            adapter.update(file.read_bytes())
    return {
        "base": absolute(name_or_path(model.config)),
        "adapter": adapter.hexdigest()[:16],
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantized": bool(getattr(model, "is_quantized", False)),
        "versions": versions,
    }


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputExistsError(
            f"{folder} cannot be written ({error.strerror or error}). Free space there, or make it "
            "writable; the answers so far are kept where they could be."
        ) from error
