"""The plan of a recipe: what it needs, before anything is loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from accelerate import PartialState
from peft import PeftConfig

from ..demo.tiny_model import tiny_config, tiny_tokenizer
from ..errors import ConfigError, GrpoError
from ..models import loading
from ..models.precision import free_memory
from ..models.shards import strategy_of
from ..planning.cost import Cost, EarlierRun, earlier_run
from ..planning.fitting import fit_into, usable
from ..planning.geometry import Geometry
from ..planning.known_shapes import known_models
from ..planning.model_shape import ModelShape, shape_of
from ..planning.page import Plan, model_table, page, size_text
from ..planning.precision import Precision
from ..planning.run_facts import Engine, RunFacts
from ..run_files import say
from ..scoring.registry import split_spec
from .prompt_lengths import USUAL_TOKENS, prompt_lengths
from .recipe import EMBEDDED_MODEL, Recipe
from .run_data import model_source


@dataclass(frozen=True)
class Question:
    """What a plan is asked for beside a recipe.

    Args:
        gpus: how many GPUs train; by default as many as `accelerate` says, or one.
        accelerate: a configuration of accelerate, with the number of GPUs and the strategy.
        prompt_tokens: tokens of a prompt; by default those of the recipe's data.
        completion_tokens: tokens of a completion; by default those of `like`, or the most allowed.
        rate: tokens per second of all GPUs together, as a run prints it.
        like: the folder of an earlier run, for its rate and completions where these are not given.
        dollars_per_hour: of one GPU.
        device: `cuda` or `cpu`; by default what the recipe says, and a CPU where there is no GPU.
    """

    gpus: int | None = None
    accelerate: Path | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    rate: float | None = None
    like: Path | None = None
    dollars_per_hour: float | None = None
    device: str | None = None


def plan_text(recipe: Recipe, question: Question) -> str:
    """Return the plan of a recipe as text.

    Raises:
        NotPlannableError: the model's configuration does not say what it is made of.
        GrpoError: there is no such model, run or configuration.
    """
    name = recipe.model.model_name_or_path
    lengths = prompt_lengths(recipe, question.prompt_tokens)
    question = replace(question, prompt_tokens=lengths.longest, device=device_of(recipe, question))
    run = plan_facts(recipe, question)
    on_gpu = run
    if run.device == "cpu":
        on_gpu = plan_facts(recipe, replace(question, device="cuda"))
    gpus = run.geometry.gpus
    earlier = None if question.like is None else earlier_run(question.like)
    steps = recipe.training.max_steps
    # For the cost a completion may be shorter than the longest, for which there has to be memory.
    completion, source = _mean_completion(recipe, question, earlier, run.geometry.completion)
    cost = Cost.of(
        replace(run.geometry, prompt=lengths.mean),
        steps=steps if steps > 0 else None,
        rate=earlier.rate if question.rate is None and earlier is not None else question.rate,
        dollars_per_hour=question.dollars_per_hour,
        completion=completion,
    )
    file = recipe.file or "the flags"
    strategy_text = f", {run.strategy} on {gpus} GPUs" if gpus > 1 else ""
    title = f"plan of {file}: {name}{strategy_text}"
    notes = _notes(run, lengths.source, source)
    return page(Plan(title, run, on_gpu, cost, rate_hint(recipe), notes))


def _mean_completion(
    recipe: Recipe, question: Question, earlier: EarlierRun | None, longest: int
) -> tuple[float | None, str]:
    """Return the tokens of a completion on average, and a note on where the number is from.

    It is None for the most that a run allows; `longest` is a guess where it allows any number.
    """
    limit = recipe.training.max_completion_length
    if question.completion_tokens is not None:
        given = question.completion_tokens
        return given, f"for time and cost completions are taken to have {given} tokens"
    if earlier is None or earlier.completion is None:
        note = (
            "completions that end earlier take less time and cost less (--completion_tokens N, "
            "or --like RUN for the lengths of an earlier run)"
        )
        return None if limit else longest, note
    mean = min(earlier.completion, limit or earlier.completion)
    why = f"as in {question.like}"
    if mean < earlier.completion:
        why = f"the most they may have; those of {question.like} had {earlier.completion:.1f}"
    return mean, (
        f"for time and cost completions are taken to have {mean:.1f} tokens on average, {why} "
        "(--completion_tokens for another number)"
    )


def device_of(recipe: Recipe, question: Question) -> str:
    """Return what a plan is for: `cpu` or `cuda`."""
    asks_for_gpus = question.gpus is not None or question.accelerate is not None
    if question.device is not None:
        return question.device
    if recipe.training.use_cpu or not (asks_for_gpus or torch.cuda.is_available()):
        return "cpu"
    return "cuda"


def rate_hint(recipe: Recipe) -> str:
    """Return the commands that measure the rate of a first run, which is in no configuration."""
    if recipe.file is None:
        return "for times give --tokens_per_second, as the lines of a run print it, or --like RUN"
    short = "--max_steps 2 --eval_rows 0 --output_dir runs/rate"
    return (
        f"for times measure two steps: grpo-hf train {recipe.file} {short}\n"
        f"then:                        grpo-hf plan {recipe.file} --like runs/rate"
    )


def plan_facts(recipe: Recipe, question: Question) -> RunFacts:
    """Return what decides how much memory a recipe takes.

    Raises:
        GrpoError: as `plan_text`.
    """
    gpus, strategy = gpus_of(question)
    config = _config_of(recipe)
    shape = _shape(recipe, config)
    return facts_of(recipe, shape, config, question, gpus=gpus, strategy=strategy)


def table_text(recipe: Recipe, question: Question) -> str:
    """Return which well-known model fits into which device with the settings of a recipe."""
    gpus, strategy = gpus_of(question)
    runs = {}
    for name, config in known_models().items():
        shape = _shape(recipe, config)
        runs[name] = facts_of(recipe, shape, config, question, gpus=gpus, strategy=strategy)
    return model_table(runs)


def warn_if_too_large(recipe: Recipe, config: Any, prompt_tokens: int) -> None:
    """Say in one line, before a training, that it will not fit into the device's memory.

    It ends no run: what it does not know is said, or left out.

    Args:
        config: of the model.
        prompt_tokens: of the longest prompt.
    """
    try:
        warning = _warning(recipe, config, prompt_tokens)
    # A model that is not known may fail anywhere, and its training may work all the same.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        if not isinstance(error, GrpoError):
            reason = f"{type(error).__name__}: {reason}"
        warning = f"note: the memory of this run is not planned: {reason}"
    if warning is not None and PartialState().is_main_process:
        say(warning)


def _warning(recipe: Recipe, config: Any, prompt_tokens: int) -> str | None:
    """Return what is wrong with the memory of a run on this device, if anything is."""
    args = recipe.training
    kind = args.device.type
    if kind not in ("cpu", "cuda"):
        return None
    question = Question(gpus=args.world_size, prompt_tokens=prompt_tokens, device=kind)
    strategy = strategy_of(args)
    shape = _shape(recipe, config)
    run = facts_of(recipe, shape, config, question, gpus=args.world_size, strategy=strategy)
    if kind == "cuda":
        device = torch.cuda.get_device_properties(args.device).total_memory
    else:
        # Processes on one machine share its memory.
        device = psutil.virtual_memory().available // max(1, args.world_size)
    fit = fit_into(run, device)
    room = min(usable(device, kind), free_memory(args.device))
    if fit.fits and fit.needed <= room:
        return None
    advice = f" {fit.change} would make it fit." if fit.change else ""
    return (
        f"warning: this run needs about {size_text(fit.needed)} in its phase {fit.phase}, and "
        f"{size_text(room)} are free on {args.device}.{advice} `grpo-hf plan` has the details."
    )


def gpus_of(question: Question) -> tuple[int, str]:
    """Return how many GPUs train, and how they divide the work.

    Raises:
        ConfigError: the configuration of accelerate cannot be read.
    """
    if question.accelerate is None:
        return question.gpus or 1, "ddp"
    try:
        settings = yaml.safe_load(question.accelerate.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{question.accelerate}: cannot be read ({error}).") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{question.accelerate}: expected a configuration of accelerate.")
    kind = str(settings.get("distributed_type", "NO")).upper()
    strategy = "fsdp" if kind == "FSDP" else "ddp"
    processes = settings.get("num_processes", 1)
    if not isinstance(processes, int) or processes < 1:
        raise ConfigError(
            f"{question.accelerate}: num_processes is {processes!r}; expected a number above 0."
        )
    if kind == "DEEPSPEED":
        strategy = "zero3" if _zero_stage(question.accelerate, settings) == 3 else "zero2"
    return question.gpus or processes, strategy


def _zero_stage(file: Path, settings: Mapping[str, Any]) -> int:
    """Return the stage of ZeRO that a configuration of accelerate names, or its DeepSpeed file."""
    nested = settings.get("deepspeed_config") or {}
    stage: Any = nested
    if isinstance(nested, Mapping):
        stage = nested.get("zero_stage", 2)
        if "deepspeed_config_file" in nested:
            file = Path(str(nested["deepspeed_config_file"]))
            try:
                stage = json.loads(file.read_text(encoding="utf-8"))["zero_optimization"]["stage"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{file}: no stage of ZeRO in it ({error!r}).") from error
    if stage not in range(4):
        raise ConfigError(f"{file}: the stage of ZeRO is {stage!r}; expected a number up to 3.")
    return int(stage)


def _config_of(recipe: Recipe) -> Any:
    """Return the configuration of a recipe's model; its weights need not be there.

    Raises:
        ModelError, HubUnreachable: there is none.
    """
    name = recipe.model.model_name_or_path
    if name is None:
        raise ConfigError("no model named: give --model_name_or_path.")
    if name == EMBEDDED_MODEL:
        return tiny_config(tiny_tokenizer())
    return loading.read_model_config(name, needs_weights=False, **model_source(recipe))


def _shape(recipe: Recipe, config: Any) -> ModelShape:
    """Return the sizes of a model with the adapter of a recipe.

    Raises:
        NotPlannableError: it is not known what such a model is made of.
    """
    return shape_of(
        config,
        loading.lora_config(recipe.model),
        trust_remote_code=recipe.training.trust_remote_code,
    )


def facts_of(
    recipe: Recipe,
    shape: ModelShape,
    config: Any,
    question: Question,
    *,
    gpus: int,
    strategy: str,
) -> RunFacts:
    """Return what decides how much memory a run takes."""
    args = recipe.training
    device = question.device or ("cpu" if args.use_cpu else "cuda")
    autocast = bool(args.fp16 or args.bf16)
    if device == "cuda" and "bf16" not in recipe.given and not args.fp16:
        # It is on where the device supports it, and this one may be none.
        autocast = True
    precision = Precision.of(recipe.model, config, autocast=autocast)
    geometry = Geometry.of(args, gpus=gpus, prompt=question.prompt_tokens or USUAL_TOKENS)
    if device == "cpu" and precision.quantized is not None and precision.products == 2:
        # bitsandbytes' products in half precision on a CPU depend on the number of rows.
        geometry = replace(geometry, packed=False)
    return RunFacts(
        shape=shape,
        geometry=geometry,
        precision=precision,
        device=device,
        uses_adapter=recipe.model.use_peft or recipe.task.adapter is not None,
        dropout=recipe.model.lora_dropout if recipe.model.use_peft else 0.0,
        checkpointing=bool(args.gradient_checkpointing),
        reference_copy=_reference_copy(recipe),
        optimizer_bytes=_optimizer_bytes(args, precision),
        has_kl=args.beta > 0,
        scores_old=args.num_iterations > 1
        or args.steps_per_generation > (args.gradient_accumulation_steps),
        grouped=args.grouped_rollout,
        strategy=strategy,
        reward_bytes=_reward_bytes(recipe),
        has_critic=args.advantage_estimator == "gae",
        engine=Engine.of(args),
    )


def _reference_copy(recipe: Recipe) -> str:
    args = recipe.training
    if args.beta == 0:
        return "none"
    if not recipe.model.use_peft and recipe.task.adapter is None:
        return "model"
    continued = recipe.task.adapter is not None and args.reference == "initial"
    return "adapter" if continued or args.reference_reset_every is not None else "none"


def _optimizer_bytes(args: Any, precision: Precision) -> int:
    """Return the bytes of the optimizer's states for each weight that trains."""
    name = str(getattr(args.optim, "value", args.optim))
    if "8bit" in name:
        return 2
    if "sgd" in name or "adafactor" in name:
        return 0
    # AdamW's averages have the type of the weights.
    return 2 * precision.adapter


def _reward_bytes(recipe: Recipe) -> int:
    """Return the bytes of the reward models that a recipe loads in its process."""
    size = 0
    for spec in recipe.task.rewards:
        name, options = _name_and_options(spec)
        if name != "reward_model" or not isinstance(options.get("model"), str):
            continue
        config = _reward_config(options["model"])
        shape = shape_of(config)
        dtype = str(options.get("dtype", "auto"))
        if dtype == "auto":
            dtype = str(config.dtype)
        size += shape.parameters * (4 if dtype.endswith("float32") else 2)
    return size


def _reward_config(name: str) -> Any:
    """Return the configuration of a reward model, which may be an adapter on another model.

    Raises:
        ModelError, HubUnreachable: there is none.
    """
    if (Path(name) / "adapter_config.json").is_file():
        name = PeftConfig.from_pretrained(name).base_model_name_or_path
    return loading.read_model_config(name, needs_weights=False)


def _name_and_options(spec: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(spec, Mapping):
        name, options = next(iter(spec.items()))
        return str(name), options or {}
    return split_spec(str(spec))


def _notes(run: RunFacts, prompts: str, completions: str) -> list[str]:
    """Return what the plan takes for granted.

    Args:
        prompts: a note on their lengths.
        completions: a note on their mean length.
    """
    notes = [
        prompts,
        f"for the memory completions are taken to have {run.geometry.completion} tokens",
        completions,
        *run.shape.notes,
    ]
    if run.device == "cpu":
        notes.append("this is the plan for a CPU; --device cuda or --gpus N has that for GPUs")
    if run.geometry.packed:
        notes.append("updates are taken to be packed, which a run measures (--packed_update false)")
    if run.precision.weights == 2 and run.precision.quantized is None and run.weight_shards == 1:
        copied = size_text(run.shape.parameters * 4)
        notes.append(
            f"not counted: before the first step the weights are measured in float32, {copied} "
            "more, where twice that is free"
        )
    return notes
