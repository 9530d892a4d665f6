"""One case through TRL's trainer and through ours, and what differs.

Both get the same models, rows and completions. Where ours differs from TRL on purpose, TRL's run is
given the same order of rows and the same divisors, each in a function of its own below.
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import peft
import torch
import trl
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import grpo_hf
from grpo_hf import reward_settings
from grpo_hf.update.micro_batches import OVER_TOKENS, loss_mask

from .differential_cases import Case
from .tiny_architectures import tiny

COMMON = {
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


@dataclass
class Run:
    """What one trainer did."""

    trainer: Any
    start: dict[str, Tensor]
    end: dict[str, Tensor]
    logged: list[str]
    # By rollout: what the trainer wrote greedily, if it was asked.
    written: list[list[list[int]]]
    # By rollout: the places of its rows in the order in which they were trained on.
    orders: list[Tensor] = field(default_factory=list)

    @property
    def moved(self) -> Tensor:
        """Return by how much all weights together moved."""
        parts = [(self.end[name] - self.start[name]).flatten() for name in sorted(self.end)]
        return torch.cat(parts)


# Models


def save_model(case: Case, tokenizer: Any, folder: Path) -> Path:
    """Write the base of a case to a folder, as a user would have it."""
    model = tiny(case.architecture, case.options, tokenizer, seed=case.seed)
    random = Random(case.seed)
    for name, weight in model.named_parameters():
        # Biases begin as zeros, and would hide that they are forgotten.
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.1)
    if case.model["ends"]:
        more = random.sample(range(5, len(tokenizer)), case.model["ends"])
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *more]
    model.to(getattr(torch, case.model["dtype"])).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_policy(case: Case, folder: Path) -> Any:
    """Return what the trainer gets as `model`: a folder's name, a model, or a PEFT model."""
    how = {"dtype": case.model["dtype"]}
    if case.model["attention"] is not None:
        how["attn_implementation"] = case.model["attention"]
    if case.model["by_name"] and not (case.adapter and case.adapter["as_model"]):
        return str(folder), how
    model = AutoModelForCausalLM.from_pretrained(folder, **how)
    if case.model["frozen"] and case.adapter is None:
        for index, weight in enumerate(model.parameters()):
            weight.requires_grad_(index % 3 > 0)
    if case.adapter and case.adapter["as_model"]:
        torch.manual_seed(case.seed)
        config = adapter_config(case, model)
        model = peft.get_peft_model(model, config, adapter_name=case.adapter["name"])
    return model, None


def adapter_config(case: Case, model: Any) -> Any:
    """Return the PEFT configuration of a case, with the names of this model's layers in it."""
    assert case.adapter is not None
    kind, settings = case.adapter["kind"], dict(case.adapter["settings"])
    if kind in ("PromptTuning", "PrefixTuning"):
        settings["num_virtual_tokens"] = 3
    elif kind == "LNTuning":
        settings["target_modules"] = sorted(_leaves(model, "norm"))
    elif kind != "Lora":
        settings["target_modules"] = sorted(_leaves(model, "linear"))[:3]
        settings |= {"r": 4} if kind in ("LoHa", "LoKr", "Vera") else {}
        settings |= {"feedforward_modules": []} if kind == "IA3" else {}
        settings |= {"r": 0, "oft_block_size": 4} if kind == "OFT" else {}
    else:
        for name in ("target_modules", "modules_to_save"):
            _name_layers(settings, name, model, case.seed)
    return getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **settings)


def _leaves(model: Any, kind: str) -> set[str]:
    """Return the last parts of the names of a model's linear layers or norms."""
    head = model.get_output_embeddings()
    names = set()
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear | Conv1D) and module is not head
        norm = "norm" in type(module).__name__.lower()
        if linear if kind == "linear" else norm:
            names.add(name.rpartition(".")[2])
    return names


def _name_layers(settings: dict[str, Any], name: str, model: Any, seed: int) -> None:
    """Put layer names in the place of words such as `embeddings` in the settings of LoRA."""
    wanted = settings.get(name)
    named = {id(module): path.rpartition(".")[2] for path, module in model.named_modules()}
    linear = sorted(_leaves(model, "linear"))
    if "out_proj" in linear and any("mamba" in type(m).__name__.lower() for m in model.modules()):
        # PEFT refuses this layer of them.
        linear.remove("out_proj")
        wanted = "some" if wanted == "all-linear" else wanted
    if wanted == "some":
        settings[name] = Random(seed).sample(linear, k=max(1, len(linear) // 2))
    elif wanted in ("embeddings", "head"):
        of = (
            model.get_input_embeddings()
            if wanted == "embeddings"
            else model.get_output_embeddings()
        )
        others = linear[:2] if name == "target_modules" else []
        settings[name] = [named[id(of)], *others]
    elif wanted == "norm":
        settings[name] = sorted(_leaves(model, "norm"))[:1]
    elif wanted == "experts":
        experts = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.ndim == 3}
        settings["target_modules"] = linear[:2]
        settings["target_parameters"] = sorted(f"experts.{n}" for n in experts)


# Rows, completions and rewards


def rows_of(case: Case) -> Any:
    """Return the prompts of a case, ragged."""
    random = Random(f"rows/{case.seed}")
    texts = []
    for _ in range(case.data["rows"]):
        characters = "0123456789abcdef ,."
        length = random.randint(1, case.data["longest"])
        if case.data["even"]:
            # A digit is a token.
            length, characters = case.data["longest"], "0123456789"
        texts.append("".join(random.choice(characters) for _ in range(length)))
    if case.data["repeated"]:
        texts = [texts[index // 2] for index in range(len(texts))]
    rows = []
    for index, text in enumerate(texts):
        prompt = [{"role": "user", "content": text}] if case.data["chat"] else text
        rows.append({"prompt": prompt, "answer": index % 5})
    data = Dataset.from_list(rows)
    return data.to_iterable_dataset() if case.data["streamed"] else data


class Completions:
    """Completions that depend on the seed, the number of the call and the row.

    `written` holds what the trainer itself wrote before, if it was asked.
    """

    def __init__(self, case: Case, tokenizer: Any) -> None:
        self._case = case
        self._tokenizer = tokenizer
        self._calls = 0
        self.written: list[list[list[int]]] = []

    def draw(self, prompts: list[Any]) -> list[list[int]]:
        """Return a completion for each prompt: some end, some are cut off."""
        longest = self._case.training["max_completion_length"]
        completions = []
        for row in range(len(prompts)):
            random = Random(f"{self._case.seed}/{self._calls}/{row}")
            tokens = [random.randrange(5, len(self._tokenizer)) for _ in range(longest)]
            if random.random() < 0.7:
                tokens = [*tokens[: random.randrange(longest)], self._tokenizer.eos_token_id]
            completions.append(tokens)
        self._calls += 1
        return completions

    def stand_in(self, trainer: Any, *, ask: bool) -> None:
        """Stand in for `_generate_single_turn` of a trainer.

        Args:
            ask: whether the trainer writes its own completions as well, greedily. They are kept to
                be compared: those of a prompt are equal, so they would teach nothing.
        """
        generate = trainer._generate_single_turn

        def single_turn(prompt_ids: list[Any], *others: Any, **named: Any) -> tuple[Any, None]:
            if ask:
                self.written.append(generate(prompt_ids, *others, **named)[0])
            return self.draw(prompt_ids), None

        trainer._generate_single_turn = single_turn

    def rollout_function(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Be a rollout function as TRL calls it."""
        drawn = self.draw(prompts)
        ids = []
        for prompt in prompts:
            text = prompt if isinstance(prompt, str) else prompt[0]["content"]
            ids.append(self._tokenizer(text)["input_ids"])
        zeros = [[0.0] * len(tokens) for tokens in drawn]
        return {"prompt_ids": ids, "completion_ids": drawn, "logprobs": zeros}


@reward_settings(in_process=True)
def tokens(completion_ids: list[list[int]], answer: list[int], **_: Any) -> list[float]:
    return [(sum(ids) + gold) % 7 / 3 for ids, gold in zip(completion_ids, answer, strict=True)]


@reward_settings(in_process=True)
def coarse(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(len(ids) % 3 == 0) for ids in completion_ids]


@reward_settings(in_process=True)
def text(completions: list[Any], **_: Any) -> list[float]:
    return [len(str(completion)) / 10 for completion in completions]


@reward_settings(in_process=True)
def sometimes_none(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [None if sum(ids) % 3 == 0 else sum(ids) % 5 / 2 for ids in completion_ids]


@reward_settings(in_process=True)
def constant(completions: list[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


@reward_settings(in_process=True, batched=True)
def by_row(completions: list[Any], **_: Any) -> list[float]:
    return [index * 5 % 7 / 2 for index in range(len(completions))]


@reward_settings(in_process=True)
async def asynchronous(completion_ids: list[list[int]], **_: Any) -> list[float]:
    await asyncio.sleep(0)
    return [float(sum(ids) % 4) for ids in completion_ids]


def compares_the_group(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Say nothing about how it is called, as a reward that was written for TRL."""
    sums = [sum(ids) % 11 for ids in completion_ids]
    return [float(each - min(sums)) for each in sums]


REWARDS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        tokens,
        coarse,
        text,
        sometimes_none,
        constant,
        by_row,
        asynchronous,
        compares_the_group,
    )
}


# What differs on purpose, given to TRL as well


@contextmanager
def rows_dealt_as(orders: list[Tensor]) -> Iterator[None]:
    """Let TRL take the rows of each rollout in an order that was recorded, instead of shuffling."""
    left = iter(orders)

    def ordered(batch: dict[str, Any]) -> dict[str, Any]:
        order = next(left)
        dealt: dict[str, Any] = {}
        for name, value in batch.items():
            whole = value is None or (isinstance(value, Tensor) and value.ndim == 0)
            if isinstance(value, Tensor) and not whole:
                value = value[order]
            elif not whole:
                value = [value[place] for place in order.tolist()]
            dealt[name] = value
        return dealt

    with patch("trl.trainer.grpo_trainer.shuffle_sequence_dict", ordered):
        yield


@contextmanager
def tokens_of_each_step(trainer: Any) -> Iterator[None]:
    """Let TRL divide by the tokens of each optimizer step, as one large batch would.

    TRL divides losses over tokens by the average of a rollout's steps, and `bnpo` by the tokens of
    each micro-batch.
    """
    args = trainer.args
    window, steps = args.gradient_accumulation_steps, args.steps_per_generation
    split, compute_loss = trl.trainer.grpo_trainer.split_tensor_dict, trainer._compute_loss

    def split_with_totals(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
        pieces = split(batch, parts)
        for start in range(0, steps, window):
            chunk = pieces[start : start + window]
            total = sum(loss_mask(piece).sum() for piece in chunk)
            for piece in chunk:
                if args.loss_type in OVER_TOKENS:
                    piece["num_items_in_batch"] = total * steps / window
                if args.loss_type == "bnpo":
                    piece["weight"] = loss_mask(piece).sum() * window / total.clamp(min=1)
        return pieces

    def weighted(model: Any, inputs: dict[str, Any]) -> Tensor:
        return compute_loss(model, inputs) * inputs.get("weight", 1.0)

    if steps % window:
        yield
        return
    trainer._compute_loss = weighted
    with patch("trl.trainer.grpo_trainer.split_tensor_dict", split_with_totals):
        yield


def round_entropies(trainer: Any) -> None:
    """Let a trainer choose tokens of high entropy by rounded numbers.

    The first tokens of a group follow the same prompt, so their entropies are equal, and where the
    threshold is among them rounding would decide. A packed row computes them once.
    """
    choose = trainer.get_high_entropy_mask
    trainer.get_high_entropy_mask = lambda entropies, *others: choose(
        entropies.round(decimals=4), *others
    )


# Runs


class _Kept(logging.Handler):
    """Keep what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def logged_by_us() -> Iterator[list[str]]:
    handler, logger = _Kept(), logging.getLogger("grpo_hf")
    logger.addHandler(handler)
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)


def make_trainer(
    case: Case, library: Any, tokenizer: Any, base: Path, output: Path
) -> tuple[Any, list[Any]]:
    """Return a trainer of one library for a case."""
    model, how = load_policy(case, base)
    settings = COMMON | case.training | {"output_dir": str(output)}
    if how is not None:
        settings["model_init_kwargs"] = how
    config = library.GRPOConfig
    if library is grpo_hf and case.trl_config:
        config = trl.GRPOConfig
    elif library is grpo_hf:
        settings |= case.ours
    config_of_adapter = None
    if case.adapter and not case.adapter["as_model"]:
        # A model that exists as a folder's name has to be looked into for the names of its layers.
        seen = model if how is None else AutoModelForCausalLM.from_pretrained(model)
        config_of_adapter = adapter_config(case, seen)
    completions = Completions(case, tokenizer)
    trainer = library.GRPOTrainer(
        model,
        [REWARDS[name] for name in case.rewards],
        config(**settings),
        rows_of(case),
        eval_dataset=rows_of(case) if "eval_strategy" in case.training else None,
        processing_class=tokenizer,
        peft_config=config_of_adapter,
        rollout_func=completions.rollout_function if case.completions == "function" else None,
    )
    round_entropies(trainer)
    if case.completions != "function":
        completions.stand_in(trainer, ask=case.completions == "greedy")
    return trainer, completions.written


def trained(case: Case, library: Any, tokenizer: Any, base: Path, theirs_like: Run | None) -> Run:
    """Train one trainer of a library.

    Args:
        theirs_like: our run, whose order of rows and divisors TRL's run is given.
    """
    output = base.parent / library.__name__
    shutil.rmtree(output, ignore_errors=True)
    with logged_by_us() as messages:
        trainer, written = make_trainer(case, library, tokenizer, base, output)
        run = Run(trainer, _weights(trainer), {}, messages, written)
        given: Any = nullcontext()
        if theirs_like is None:
            _record_orders(trainer, run.orders)
        # Where ours samples or packs, it draws other random numbers, and TRL shuffles by these.
        elif theirs_like.trainer.packs or case.training["generation_kwargs"].get("do_sample"):
            given = rows_dealt_as(theirs_like.orders)
        divided = theirs_like is not None and theirs_like.trainer.packs
        with given, tokens_of_each_step(trainer) if divided else nullcontext():
            trainer.train()
    run.end = _weights(trainer)
    return run


def _weights(trainer: Any) -> dict[str, Tensor]:
    weights = {}
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            weights[name] = weight.detach().double().clone()
    return weights


def _record_orders(trainer: Any, orders: list[Tensor]) -> None:
    """Number the rows of each rollout, and write down in which order they are trained on."""
    roll_out, prepare = trainer._generate_and_score_completions, trainer._prepare_inputs
    buffered = None

    def numbered(inputs: Any) -> Any:
        batch = roll_out(inputs)
        return {**batch, "place": torch.arange(len(batch["prompt_ids"]))}

    def recorded(inputs: Any) -> Any:
        nonlocal buffered
        prepared = prepare(inputs)
        if trainer.model.training and trainer._buffered_inputs is not buffered:
            buffered = trainer._buffered_inputs
            orders.append(torch.cat([piece["place"] for piece in buffered]))
        return prepared

    trainer._generate_and_score_completions, trainer._prepare_inputs = numbered, recorded


def greedy_prompts(case: Case) -> list[list[int]]:
    """Return four ragged prompts, each as often as a group has completions."""
    random = Random(f"greedy/{case.seed}")
    prompts = []
    for _ in range(4):
        prompt = [random.randrange(5, 300) for _ in range(random.randint(1, 12))]
        prompts += [prompt] * case.training["num_generations"]
    return prompts


def greedy_of_run(case: Case, run: Run, prompts: list[list[int]]) -> list[list[int]]:
    """Return what the policy of a run writes to prompts."""
    trainer, group = run.trainer, case.training["num_generations"]
    trainer.model.train()
    with logged_by_us() as messages:
        texts = type(trainer)._generate_single_turn(trainer, prompts, None, {}, group)[0]
    run.logged += messages
    return texts


def move_alike(case: Case, runs: list[Run]) -> None:
    """Put the same trained weights, moved further, into both models, so that adapters matter."""
    generator = torch.Generator().manual_seed(case.seed)
    first = dict(runs[0].trainer.model.named_parameters())
    others = [dict(run.trainer.model.named_parameters()) for run in runs[1:]]
    for name in sorted(runs[0].end):
        weight = first[name].data
        weight.add_(torch.randn(weight.shape, generator=generator).to(weight.dtype), alpha=0.1)
        for other in others:
            other[name].data.copy_(weight)
