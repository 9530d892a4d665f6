"""The seam: every private or undocumented name of another library that grpo-hf relies on.

TRL changes every week, and private names may change without notice. So only two files touch such
a name. The trainer overrides the methods in `OVERRIDDEN`, and keeps what they keep as TRL does. All
else goes through a function of this file, whose docstring says what was read; `READ_IN` says in
which version. `tests/test_trl_seam.py` compares each of them with the installed libraries, and its
failures name what has moved.

Shapes: B rows of a rollout on this process, W processes, G completions per group, P and C the
widths of prompts and completions, F reward functions.
"""

import copy
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any, Literal, NotRequired, TypedDict
from unittest.mock import patch

from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import TrainerState
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import TrainOutput

from .config import option
from .errors import ConfigError, SeamMovedError
from .run_context import (
    CardFacts,
    Policy,
    PolicyState,
    RefillPlan,
    RunContext,
    RunTraits,
)

# The versions whose source was read; an error about a name that moved tells them to the user.
READ_IN = {
    "trl": "1.16.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "torch": "2.13.0",
    "bitsandbytes": "0.50.2",
}

# Methods of TRL's trainer that ours overrides, with the parameters that TRL calls them with.
OVERRIDDEN = {
    "_get_per_token_logps_and_entropies": (
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
    ),
    "_prepare_inputs": ("self", "generation_batch"),
    "_tokenize_prompts": ("self", "prompts"),
    "_generate_and_score_completions": ("self", "inputs"),
    "_generate": ("self", "prompts"),
    "_generate_single_turn": (
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
    ),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_compute_loss": ("self", "model", "inputs"),
    "compute_loss": ("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
    "_get_grad_norm": ("self", "model", "grad_norm"),
    "save_model": ("self", "output_dir", "_internal_call"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_save_rng_state": ("self", "output_dir"),
    "_load_rng_state": ("self", "checkpoint"),
    "_get_train_sampler": ("self", "dataset"),
    "create_model_card": ("self", "model_name", "dataset_name", "tags"),
    "push_to_hub": ("self",),
    "_push_from_checkpoint": ("self", "checkpoint_folder"),
    "log": ("self", "logs", "start_time"),
}

# Names of methods between a rollout and its gradient.
LOSS_METHODS = re.compile(r"loss|training_step|_prepare_input|logps|_mask$|_weights$")

# Functions and methods that are called, with the parameters that they are called with.
CALLED = {
    "trl.trainer.grpo_trainer:GRPOTrainer._save_checkpoint": ("self", "model", "trial"),
    "trl.trainer.grpo_trainer:GRPOTrainer._get_train_sampler": ("self",),
    "transformers:Trainer._get_output_dir": ("self", "trial"),
    "transformers:Trainer._load_from_checkpoint": ("self", "resume_from_checkpoint"),
    "trl.trainer.grpo_trainer:GRPOTrainer.get_train_dataloader": ("self",),
    "trl.trainer.utils:use_adapter": ("model", "adapter_name"),
    "trl.trainer.grpo_trainer:use_adapter": ("model", "adapter_name"),
    "trl.trainer.grpo_trainer:create_model_from_path": ("model_id",),
    "trl.trainer.utils:get_callable_name": ("func",),
    "trl.trainer.utils:is_async_callable": ("func",),
    "trl.trainer.grpo_trainer:GRPOTrainer._get_tool_suffix_ids": ("self", "tool_messages"),
    "trl.chat_template_utils:supports_tool_calling": ("processing_class",),
    "trl.chat_template_utils:add_response_schema": ("processing_class",),
    "trl.chat_template_utils:is_chat_template_prefix_preserving": ("processing_class",),
    "trl.chat_template_utils:get_training_chat_template": ("processing_class",),
    "trl.chat_template_utils:parse_response": ("tokenizer", "ids", "prefix", "tools"),
    "trl:get_peft_config": ("model_args",),
    "trl:get_quantization_config": ("model_args",),
    "transformers:Trainer.train": ("self", "resume_from_checkpoint"),
    "transformers:Trainer.push_to_hub": ("self",),
    "transformers:Trainer.save_model": ("self", "output_dir", "_internal_call"),
    "transformers:Trainer._finish_current_push": ("self",),
    "transformers.trainer:hf_api": (),
    "transformers:Trainer.remove_callback": ("self", "callback"),
    "transformers.generation.utils:GenerationMixin._prepare_generation_config": (
        "self",
        "generation_config",
    ),
}

# Attributes of TRL's trainer that are set where it is made.
TRAINER_ATTRIBUTES = (
    "_metrics",
    "_logs",
    "_tokenizer",
    "_is_vlm",
    "_step",
    "_buffered_inputs",
    "_entropy_bonus_enabled",
    "aux_loss_enabled",
    "beta",
    "callback_handler",
    "chat_template",
    "chat_template_kwargs",
    "current_gradient_accumulation_steps",
    "environments",
    "environment_factories",
    "generation_config",
    "log_completions",
    "loss_type",
    "multi_objective_aggregation",
    "num_generations",
    "num_generations_eval",
    "ref_model",
    "reward_func_names",
    "reward_funcs",
    "reward_weights",
    "rollout_func",
    "scale_rewards",
    "temperature",
    "tools",
    "top_entropy_quantile",
    "use_transformers_continuous_batching",
    "use_vllm",
)

# What TRL's fused head takes beside a model's own arguments: labels that are shifted already, and
# the word that it is meant. It returns `log_probs` and `entropy`.
FUSED_HEAD = ("shift_labels", "fused_lm_head")


class Batch(TypedDict, total=False):
    """A rollout as TRL keeps it: tensors of B rows, and the number of tokens of all processes."""

    prompt_ids: Tensor  # (B, P)
    prompt_mask: Tensor  # (B, P)
    completion_ids: Tensor  # (B, C)
    completion_mask: Tensor  # (B, C)
    advantages: Tensor  # (B,), or (B, C) where each token has its own
    num_items_in_batch: Tensor  # ()
    # Where the policy may have moved since the rollout: elsewhere the ratio is 1, and TRL skips it.
    old_per_token_logps: NotRequired[Tensor]  # (B, C)
    # Where β is not 0.
    ref_per_token_logps: NotRequired[Tensor]  # (B, C)
    # Where vLLM samples, whose numbers differ from those of the model that trains.
    sampling_per_token_logps: NotRequired[Tensor]  # (B, C)
    importance_sampling_ratio: NotRequired[Tensor]  # (B, C) or (B, 1)
    # Where tools or environments write tokens between those of the policy.
    tool_mask: NotRequired[Tensor]  # (B, C)


# TRL: what a trainer is


def tokenizer_of(trainer: Any) -> Any:
    """Return the trainer's tokenizer, also where its processing class is a processor."""
    return trainer._tokenizer


def traits_of(trainer: Any) -> RunTraits:
    """Return what kind of run a trainer was set up for."""
    return RunTraits(
        sharded_weights=trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled,
        reads_images=trainer._is_vlm,
        samples_together=trainer.use_vllm and _sample_alone(trainer) is None,
        has_tools=bool(trainer.tools or trainer.environment_factories),
        has_environments=trainer.environment_factories is not None,
        has_rollout_function=trainer.rollout_func is not None,
        # Below 1 the quantile is taken over all tokens, those of rows without advantage among them.
        entropy_in_loss=trainer._entropy_bonus_enabled or trainer.top_entropy_quantile < 1,
        has_auxiliary_loss=trainer.aux_loss_enabled,
    )


def context_of(trainer: Any) -> RunContext:
    """Return this process's view of the rollout that a trainer makes now."""
    # TRL 1.16 tells a training rollout from an evaluation by the mode of the model.
    training = trainer.model.training
    return RunContext(
        accelerator=trainer.accelerator,
        group_size=trainer.num_generations if training else trainer.num_generations_eval,
        training=training,
        step=trainer.state.global_step,
    )


def has_other_loss(trainer: Any, ours: type) -> bool:
    """Return whether a subclass of ours, or a method put on the object, may change the loss."""
    for name in filter(LOSS_METHODS.search, dir(ours)):
        if name in vars(trainer) or getattr(type(trainer), name) is not getattr(ours, name):
            return True
    return False


def data_drawn_by_trl(call: Mapping[str, Any], trainer_class: type) -> Any:
    """Return the training data of a constructor's call; None where a subclass draws rows of it.

    Args:
        trainer_class: `GRPOTrainer` of this library, or a subclass, which comes before it.
    """
    data = call.get("train_dataset")
    for parent in trainer_class.__mro__:
        if parent.__module__ == f"{__package__}.trainer":
            return data
        # A stream has no length, and rows can only be drawn from it in order.
        own = {"_get_train_sampler", "get_train_dataloader"} & vars(parent).keys()
        if own and hasattr(data, "__len__"):
            return None
    return data


def refill_plan(trainer: Any) -> RefillPlan:
    """Return where dynamic sampling draws fresh prompts from now, and how often.

    TRL counts this process's forward and backward passes in `_step`; those of one optimizer step
    draw different prompts.
    """
    args = trainer.args
    step = (trainer.state.global_step, trainer._step % args.gradient_accumulation_steps)
    return RefillPlan(
        data=trainer.train_dataset,
        seed=f"{args.seed}/{step}",
        rounds=option(args, "max_refills"),
        pad_token_id=trainer._tokenizer.pad_token_id,
    )


def samples_with_generate(trainer: Any) -> bool:
    """Return whether completions come from the model's own `generate`, on whole weights."""
    engine = trainer.use_vllm or trainer.use_transformers_continuous_batching
    # DeepSpeed's stages 1 and 2 leave whole weights on every process.
    sharded = trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()
    return not engine and not sharded


def policy_of(trainer: Any) -> Policy:
    """Return a trainer's policy as something that tokenizes and samples."""

    def sample(prompt_ids: list[list[int]], tokens: int, copies: int) -> list[list[int]]:
        if trainer.use_vllm:
            return _sample_alone(trainer)(prompt_ids, tokens, copies)
        return continue_tokens(trainer, prompt_ids, max_new_tokens=tokens, num_generations=copies)

    return Policy(
        # Functions and no values: step, mode and weights change while a reward holds the policy.
        context=lambda: context_of(trainer),
        tokenize=lambda prompts: prompt_ids_of(trainer, prompts),
        sample=sample,
        tokenizer=trainer._tokenizer,
        max_completion_length=trainer.max_completion_length,
    )


def _sample_alone(trainer: Any) -> Any:
    """Return how vLLM continues tokens for one process, or None; ours puts it on TRL's sampler."""
    return getattr(getattr(trainer, "vllm_generation", None), "continue_tokens", None)


def vllm_parts(**parts: Any) -> AbstractContextManager[Any]:
    """Let TRL's `VLLMGeneration` find other parts of vLLM for a block that makes one.

    It makes an `LLM` in process or a `VLLMClient`, where `is_vllm_available()`.
    """
    from trl.generation import vllm_generation

    # What is not installed is not there.
    return patch.multiple(vllm_generation, create=True, **parts)


def weights_are_awake(generation: Any) -> None:
    """Tell TRL's `VLLMGeneration` that its engine's weights need no sync after a sleep."""
    generation._llm_weights_sleeping = False


def policy_state(trainer: Any, resume: str | bool | None) -> PolicyState:
    """Return what the guards of the reference have to know of a trainer before it trains."""
    args = trainer.args

    def log_probs(*block: Any) -> Tensor:
        # The autocast of the loss, and the trainer's own way to score: packed rows where it packs.
        with trainer.compute_loss_context_manager():
            return trainer._get_per_token_logps_and_entropies(*block)[0]

    return PolicyState(
        model=trainer.accelerator.unwrap_model(trainer.model),
        reference_model=trainer.ref_model,
        log_probs=log_probs,
        # `train` may be called twice, and the second time the policy is not untouched.
        fresh=not resume and trainer.state.global_step == 0,
        has_kl_term=trainer.beta != 0,
        continues_adapter=trainer.continues_adapter,
        autocast=args.bf16 or args.fp16,
        sharded_weights=trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled,
    )


def loss_of(trainer: Any, micro_batch: Any) -> Tensor:
    """Return the loss of some rows, as an optimizer step of one micro-batch has it."""
    # The training loop sets it, and a trainer that replays a batch is in none.
    trainer.current_gradient_accumulation_steps = 1
    with trainer.compute_loss_context_manager():
        return trainer._compute_loss(trainer.accelerator.unwrap_model(trainer.model), micro_batch)


def card_facts(trainer: Any, dataset_source: str) -> CardFacts:
    """Return what the card of a run says about it."""
    specs = []
    purposes = {}
    # A reward model has no spec, and goes by the name that TRL gives it.
    # What scores in the place of what the user gave; TRL's own trainer has none of it.
    entries = getattr(trainer, "_entries", trainer.reward_funcs)
    for entry, name in zip(entries, trainer.reward_func_names, strict=True):
        reward = getattr(entry, "reward", None)
        specs.append(getattr(reward, "spec", name))
        purposes[specs[-1]] = getattr(reward, "purpose", "")
    return CardFacts(
        base=trainer.model.config._name_or_path,
        dataset=dataset_source,
        rewards=list(zip(specs, trainer.reward_weights.tolist(), strict=True)),
        adapter=getattr(trainer.model, "active_peft_config", None),
        has_adapter=hasattr(trainer.model, "peft_config"),
        steps=trainer.state.global_step,
        purposes=purposes,
        prompt_form=getattr(trainer, "prompt_form", None),
        tokenizer=tokenizer_of(trainer),
        repo=trainer.hub_model_id if trainer.args.push_to_hub else None,
    )


def save_checkpoint(trainer: Any) -> None:
    """Write a checkpoint of this step, as TRL does at `save_steps`."""
    trainer._save_checkpoint(trainer.model, trial=None)


def save_model_here(trainer: Any) -> None:
    """Write the policy into the output folder, without the push that `save_model` adds."""
    trainer.save_model(_internal_call=True)


def finish_pushes(trainer: Any) -> None:
    """Wait for pushes of checkpoints that are under way."""
    trainer._finish_current_push()


def uploads_by(client: Any) -> AbstractContextManager[Any]:
    """Let transformers' trainer upload by another client of the Hub for a block."""
    from transformers import trainer

    return patch.object(trainer, "hf_api", lambda: client)


def place_between_steps(trainer: Any) -> Callable[[], None]:
    """Note what a rollout changes of a trainer; return what undoes that.

    TRL counts passes in `_step`, and keeps a rollout in `_buffered_inputs`, numbers in `_metrics`.
    """
    step, buffered = trainer._step, trainer._buffered_inputs
    tokens = trainer.state.num_input_tokens_seen
    # Copies of the lists, because TRL appends to the lists themselves.
    waiting = {name: list(values) for name, values in trainer._metrics["train"].items()}

    def go_back() -> None:
        trainer._step, trainer._buffered_inputs = step, buffered
        trainer.state.num_input_tokens_seen = tokens
        trainer._metrics["train"].clear()
        trainer._metrics["train"].update(waiting)

    return go_back


@contextmanager
def checkpoint_written_in(trainer: Any, folder: Path, run: Path) -> Iterator[None]:
    """Have a trainer write a checkpoint in another folder than its run's, and push nothing yet.

    `_save_checkpoint` asks `_get_output_dir` for the folder. It notes in the trainer's state where
    the best checkpoint lies, which may be this one.
    """
    state, args = trainer.state, trainer.args
    pushes, args.push_to_hub = args.push_to_hub, False
    try:
        with patch.object(trainer, "_get_output_dir", lambda trial: str(folder)):
            yield
    finally:
        args.push_to_hub = pushes
    if str(state.best_model_checkpoint).startswith(str(folder)):
        state.best_model_checkpoint = str(run / Path(state.best_model_checkpoint).name)
        if args.should_save:
            state.save_to_json(str(folder / f"checkpoint-{state.global_step}/trainer_state.json"))


def load_finished(trainer: Any, checkpoint: Path) -> TrainOutput:
    """Take the weights and the state of a run that has made its last step.

    Raises:
        ConfigError: FSDP or DeepSpeed, which cut weights for a training alone.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            f"{checkpoint} is the end of this run, and FSDP and DeepSpeed read weights back for a "
            "training alone. Its adapter or model is in that folder. Raise --max_steps or "
            "--num_train_epochs to train on, or load it on one process to compare it."
        )
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return TrainOutput(trainer.state.global_step, 0.0, {})


def window_of(trainer: Any) -> dict[str, Any]:
    """Return where a trainer is between two steps, for `restore_window`.

    Beside what `place_between_steps` notes, transformers adds losses up in `_tr_loss` since the
    line of `_globalstep_last_logged`.
    """
    passes = trainer.args.steps_per_generation * trainer.num_iterations
    # What is left of a rollout that no step reads any more would only take space.
    is_over = trainer._step % passes == 0
    # A subclass may add numbers of any kind, and TRL takes their mean.
    waiting = {}
    for name, values in trainer._metrics["train"].items():
        waiting[name] = [float(value) for value in values]
    return {
        "step": trainer._step,
        "rollout": None if is_over else trainer._buffered_inputs,
        "metrics": waiting,
        "loss": trainer._tr_loss,
        "logged": trainer._globalstep_last_logged,
    }


def restore_window(trainer: Any, window: Mapping[str, Any]) -> None:
    """Put a trainer where another was when it returned a window."""
    device = trainer.accelerator.device
    trainer._step = window["step"]
    trainer._buffered_inputs = send_to_device(window["rollout"], device)
    trainer._metrics["train"].update(window["metrics"])
    trainer._tr_loss = window["loss"].to(device)
    trainer._globalstep_last_logged = window["logged"]


def active_adapter(model: Any, name: str | None) -> AbstractContextManager[None]:
    """See a PEFT model through another adapter for a block; `None` disables all of them."""
    # Not at the top: TRL takes seconds to import, and most of this file does without.
    from trl.trainer.utils import use_adapter

    return use_adapter(model, adapter_name=name)


def found_in_trl(name: str) -> Callable[..., Any]:
    """Return the function that TRL's trainer finds under a name of its module."""
    from trl.trainer import grpo_trainer

    return getattr(grpo_trainer, name)


def replaced_in_trl(name: str, function: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Let TRL's trainer find another function under a name of its module for a block.

    It reads a reference inside `use_adapter(model, adapter_name)`, and makes the reference of a
    model without an adapter by `create_model_from_path(name, **settings)`.
    """
    from trl.trainer import grpo_trainer

    return patch.object(grpo_trainer, name, function)


def check_fused_head(forward: Callable[..., Any]) -> None:
    """Check that a forward takes what `fused_log_probs` gives it.

    Args:
        forward: of a model after TRL's `add_fused_lm_head`.

    Raises:
        SeamMovedError: a keyword is not there.
    """
    # TRL's forward carries the signature of the model's own, which lacks these keywords.
    parameters = inspect.signature(forward, follow_wrapped=False).parameters
    for name in FUSED_HEAD:
        if name not in parameters:
            raise SeamMovedError(
                f"the head that TRL gives a model takes no {name!r}, as trl {READ_IN['trl']} did; "
                "install that version, or set packed_update to false"
            )


def fused_log_probs(
    forward: Callable[..., Any], shifted_labels: Tensor, /, *positional: Any, **named: Any
) -> Any:
    """Run a model with TRL's fused head, which returns `log_probs` and `entropy`.

    Args:
        forward: of a model after TRL's `add_fused_lm_head`.
        shifted_labels (1, S): the next token of each position.
        positional, named: the model's own arguments; PEFT passes `labels=None` among them.
    """
    return forward(*positional, **named, shift_labels=shifted_labels, fused_lm_head=True)


# transformers: state along a row


StateKind = Literal["convolution", "delta rule", "scan", "fused scan"]

# The functions of a model's file that carry state from token to token, and what they do. Each file
# has its own copies, which take the keyword arguments of the model's call.
STATE_FUNCTIONS: dict[str, StateKind] = {
    "causal_conv1d_fn": "convolution",
    "torch_chunk_gated_delta_rule": "delta rule",
    "mamba2_chunk_scan": "scan",
    "mamba2_split_conv1d_scan_combined": "fused scan",
}


def files_of_layers(model: nn.Module) -> list[Any]:
    """Return the modules of Python in which the classes of a model's layers are defined."""
    names = {type(layer).__module__ for layer in model.modules()}
    return [sys.modules[name] for name in sorted(names) if name in sys.modules]


# TRL: what a trainer logs


def log_metric(trainer: Any, name: str, value: float) -> None:
    """Log a number; TRL shows the mean of what was logged since the last logging step.

    TRL keeps a list per name and mode in `_metrics`.
    """
    mode = "train" if trainer.model.training else "eval"
    # A tensor would stay on its device until the next logging step.
    trainer._metrics[mode][name].append(float(value))


def log_metrics(trainer: Any, values: Mapping[str, float]) -> None:
    """Log several numbers, each by `log_metric`."""
    for name, value in values.items():
        log_metric(trainer, name, value)


def show_advantages(trainer: Any, advantages: Tensor | None) -> None:
    """Put other advantages into the table of completions for the last rollout.

    Args:
        advantages (B,): of this process; they are gathered here, as TRL gathers them. With `None`
            the table keeps what it has.
    """
    if advantages is None:
        return
    table = trainer._logs["advantages"]
    everywhere = trainer.accelerator.gather(advantages).tolist()
    # The table keeps `generation_batch_size` rows; an evaluation may have more.
    for _ in range(min(len(everywhere), len(table))):
        table.pop()
    table.extend(everywhere)


@contextmanager
def only_planned_rollout_logged(trainer: Any, summed: str) -> Iterator[None]:
    """Forget what rollouts inside the block log, as if there had been the one before it only.

    Two kinds of numbers stay: the count of tokens that the model has seen, and costs, which add to
    those of the rollout before.

    Args:
        summed: the beginning of the names of costs.
    """
    metrics = trainer._metrics["train"]
    table = trainer._logs
    # Copies of the lists, because TRL appends to the lists themselves.
    planned = {name: list(values) for name, values in metrics.items()}
    trainer._logs = copy.deepcopy(table)
    try:
        yield
    finally:
        for name, values in metrics.items():
            if name in planned and name.startswith(summed):
                planned[name][-1] += sum(values[len(planned[name]) :])
        # TRL keeps one entry here, the count so far, and the model has seen the fresh tokens, too.
        tokens = metrics["num_tokens"]
        # The same dictionary is filled again: it makes a list for every new name.
        metrics.clear()
        metrics.update(planned | {"num_tokens": tokens})
        trainer._logs = table


# TRL: what a trainer does


@contextmanager
def rewards_recorded(trainer: Any) -> Iterator[list[Tensor]]:
    """Record the rewards that TRL normalises inside a block: what `_calculate_rewards` returns.

    The method is found on the object, so what a subclass adds to them is included.

    Yields:
        A list that gets an entry per call, (W·B, F), of all processes, NaN for None.
    """
    calculate = trainer._calculate_rewards
    returned: list[Tensor] = []

    def recorded(*positional: Any, **named: Any) -> Tensor:
        rewards = calculate(*positional, **named)
        returned.append(rewards)
        return rewards

    # A method that was put on the object comes back afterwards.
    with patch.object(trainer, "_calculate_rewards", recorded):
        yield returned


def rewards_replaced(
    trainer: Any, functions: Sequence[Callable[..., Any]]
) -> AbstractContextManager[Any]:
    """Let TRL call other reward functions for a block, under the names of the trainer's own.

    `_calculate_rewards` reads `reward_funcs` once, when it begins.
    """
    return patch.object(trainer, "reward_funcs", list(functions))


def rollout_function_replaced(trainer: Any, function: Any) -> AbstractContextManager[Any]:
    """Let TRL call another rollout function for a block. `_generate` reads `rollout_func`."""
    return patch.object(trainer, "rollout_func", function)


def prompt_ids_of(trainer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Tokenize prompts as a rollout does: messages through the chat template, texts as they are."""
    return trainer._tokenize_prompts(list(prompts))[0]


def continue_tokens(
    trainer: Any, prompt_ids: list[list[int]], *, max_new_tokens: int, num_generations: int
) -> list[list[int]]:
    """Sample continuations of lists of tokens from the policy, as a rollout samples completions.

    `_generate_single_turn` reads `generation_config` of the trainer, and returns token ids first.
    """
    # Replaced and not changed, so that the trainer's own comes back untouched.
    config = trainer.generation_config
    trainer.generation_config = copy.deepcopy(config)
    trainer.generation_config.max_new_tokens = max_new_tokens
    try:
        return trainer._generate_single_turn(prompt_ids, None, {}, num_generations)[0]
    finally:
        trainer.generation_config = config


class KLTerm:
    """The KL term of a trainer's loss: its weight β, and what the last optimizer step measured."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    @property
    def beta(self) -> float:
        """The weight of the KL term; TRL reads it for each loss."""
        return self._trainer.beta

    @beta.setter
    def beta(self, value: float) -> None:
        self._trainer.beta = value

    def kl_of_step(self) -> float:
        """Return the mean KL of the optimizer step that just ended, over all processes.

        TRL appends a KL per micro-batch, reduced over processes.
        """
        # Entries before these are of steps since the last logging step. A look must not make a list
        # where there is none: TRL would log a KL without a value.
        logged = self._trainer._metrics["train"].get("kl", [])
        return mean(logged[-self._trainer.current_gradient_accumulation_steps :])

    def log(self) -> None:
        """Log the weight that the step had, as `beta`."""
        log_metric(self._trainer, "beta", self.beta)

    def log_spread(self, median: float, largest: float) -> None:
        """Log beside the mean KL the median of a step's tokens, and the largest KL of a token.

        TRL logs the mean of a list; the largest of all steps since the last line shall stay.
        """
        log_metric(self._trainer, "kl/median", median)
        metrics = self._trainer._metrics["train"]
        metrics["kl/max"] = [max([float(largest), *metrics["kl/max"]])]

    @contextmanager
    def log_probs_recorded(self) -> Iterator[list[Tensor]]:
        """Record the log-probabilities that a loss of the training computes inside a block.

        `_compute_loss` calls `_get_per_token_logps_and_entropies` once, on the object.

        Yields:
            A list that gets an entry per call, (B, C), without its gradient; none in an evaluation.
        """
        score = self._trainer._get_per_token_logps_and_entropies
        training = self._trainer.model.training
        returned: list[Tensor] = []

        def recorded(*positional: Any, **named: Any) -> Any:
            scored = score(*positional, **named)
            if training:
                returned.append(scored[0].detach())
            return scored

        with patch.object(self._trainer, "_get_per_token_logps_and_entropies", recorded):
            yield returned


# transformers


def attention_implementation(config: Any) -> str:
    """Return the name under which a model looks its attention function up."""
    return config._attn_implementation


def name_or_path(config: Any) -> str:
    """Return the name or folder that a model was loaded from."""
    return config._name_or_path


def whole_generation_config(model: Any, generation_config: Any) -> Any:
    """Return a generation configuration with the model's own settings filled in."""
    return model._prepare_generation_config(generation_config)[0]


def cache_argument(inputs: Mapping[str, Any]) -> str:
    """Return the name by which `generate` hands its cache to a decoding loop and to a model.

    It is `past_key_values` up to transformers 5.23, and `cache` from 5.24 on.

    Args:
        inputs: what a `custom_generate` function is called with.
    """
    return "cache" if "cache" in inputs else "past_key_values"


def parser_actions(parser: Any) -> list[Any]:
    """Return the actions of an argument parser, in the order in which they were added.

    argparse has no public list of them.
    """
    return parser._actions


def own_hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """Return the hooks around a module's own forward and backward."""
    return [
        *module._forward_pre_hooks.values(),
        *module._forward_hooks.values(),
        *module._backward_pre_hooks.values(),
        *module._backward_hooks.values(),
    ]


def add_forward_hook_once(module: nn.Module, hook: Callable[..., Any]) -> None:
    """Register a forward hook that also gets keyword arguments, unless it is there already."""
    # A second trainer on one model finds the hook of the first.
    if hook not in module._forward_hooks.values():
        module.register_forward_hook(hook, with_kwargs=True)


# PEFT


def lora_is_two_products(layer: Any, adapter: str) -> bool:
    """Return whether a LoRA layer adds `x A B` for this adapter to its base, and nothing else.

    DoRA and other variants stand in `lora_variant`; `lora_bias` is true where B has a bias.
    """
    return not (
        layer.merged
        or layer.disable_adapters
        or adapter in layer.lora_variant
        or layer.lora_bias[adapter]
    )


# accelerate


def forward_before_autocast(model: Any) -> Callable[..., Any]:
    """Return the forward of a model that accelerate wraps in a run's autocast, or its forward."""
    return vars(model).get("_original_forward", model.forward)


# bitsandbytes


def layers_that_pack(model: nn.Module) -> list[Any]:
    """Return the 4-bit layers that pack their weights at the first inference on some CPUs."""
    return [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]


def is_packed(layer: Any) -> bool:
    """Return whether a 4-bit layer has packed its weight, whose kernel has no backward."""
    return bool(getattr(layer.weight.quant_state, "packing_format_for_cpu", False))


def never_pack(layer: Any) -> None:
    """Keep a 4-bit layer from packing its weight."""
    layer.support_avx512bf16_for_cpu = False


def prepare_tool_calls(tokenizer: Any) -> str | None:
    """Let a tokenizer read calls of tools, as TRL's trainer does when it is made (TRL 1.16).

    Returns:
        The chat template that conversations with tools need, or None for the tokenizer's own.

    Raises:
        ConfigError: its chat template has no calls of tools, or nobody knows how to read them.
    """
    from trl import chat_template_utils

    if not chat_template_utils.supports_tool_calling(tokenizer):
        raise ConfigError(
            "tools: the model's chat template has no turns for calls of tools and their results. "
            "Take a model that was trained to call tools, such as Qwen/Qwen3-0.6B."
        )
    try:
        if all(
            getattr(tokenizer, name, None) is None
            for name in ("response_template", "response_schema")
        ):
            chat_template_utils.add_response_schema(tokenizer)
        if chat_template_utils.is_chat_template_prefix_preserving(tokenizer):
            return None
        return chat_template_utils.get_training_chat_template(tokenizer)
    except ValueError as error:
        raise ConfigError(f"tools: {error}") from error


def read_answer(tokenizer: Any, written: list[int], before: list[int], tools: Any) -> Any:
    """Return the message that the model wrote, calls of tools included (TRL 1.16).

    Args:
        before: the tokens that `written` continues.
    """
    from trl import chat_template_utils

    return chat_template_utils.parse_response(tokenizer, written, prefix=before, tools=tools)


def tool_turn_ids(
    tokenizer: Any, turns: Sequence[Any], template_options: Mapping[str, Any]
) -> list[int]:
    """Return the tokens of tools' turns behind a call, up to where the model goes on (TRL 1.16).

    Args:
        template_options: keyword arguments of the chat template, `chat_template` among them.
    """
    from trl import GRPOTrainer

    options = dict(template_options)
    # All that TRL's method reads of a trainer.
    trainer = SimpleNamespace(
        processing_class=tokenizer,
        _tokenizer=tokenizer,
        _is_vlm=False,
        chat_template=options.pop("chat_template", None),
        chat_template_kwargs=options,
    )
    return GRPOTrainer._get_tool_suffix_ids(trainer, list(turns))
