"""Rewards of every shape: the values and the learnt weights are TRL's, and the log says how."""

import functools
import os
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import trl
from datasets import Dataset
from support.models import LORA
from transformers import AutoTokenizer, TrainerCallback

import grpo_hf

FACTOR = 1.0
CALLS = 0
SEEN: list[str] = []


def plain(completions, **_):
    return [float(len(text)) for text in completions]


def reads_column(completions, **columns):
    return [
        float(text.count(gold)) for text, gold in zip(completions, columns["answer"], strict=True)
    ]


async def awaited(completions, **_):
    return [float(text.count("1")) for text in completions]


def scaled(completions, scale, **_):
    return [scale * len(text) for text in completions]


def with_list_as_default(completions, seen=[], **_):  # noqa: B006
    seen.extend(completions)
    return [float(len(seen)) for _ in completions]


class Keyword:
    def __init__(self, word):
        self.word, self.__name__ = word, f"keyword_{word}"

    def __call__(self, completions, **_):
        return [float(text.count(self.word)) for text in completions]


class AwaitedKeyword:
    async def __call__(self, completions, **_):
        return [float(text.count("a")) for text in completions]


class Counter:
    def __init__(self):
        self.calls = 0

    def method(self, completions, **_):
        self.calls += 1
        return [self.calls + len(text) for text in completions]


def generator(completions, **_):
    for text in completions:
        yield float(len(text))


def returns_generator(completions, **_):
    return (len(text) for text in completions)


def returns_map(completions, **_):
    return map(len, completions)


def returns_dict_values(completions, **_):
    return dict(enumerate(map(len, completions))).values()


def returns_array(completions, **_):
    return np.array([len(text) for text in completions], dtype=np.float32)


def returns_column_tensor(completions, **_):
    return torch.tensor([[float(len(text))] for text in completions])


def mixed(completions, **_):
    kinds = [lambda n: None, np.float64, torch.tensor, lambda n: n > 12, int]
    return [kinds[row % len(kinds)](len(text)) for row, text in enumerate(completions)]


def shortest(completions, **_):
    lengths = list(map(len, completions))
    low, high = min(lengths), max(lengths)
    return [0.0 if low == high else 0.5 - (n - low) / (high - low) for n in lengths]


def rank(completions, **_):
    ordered = sorted(completions, key=len)
    return [ordered.index(text) / len(completions) for text in completions]


# Nothing to see in a rollout without copies, and yet it compares.
def unlike_others(completions, **_):
    return [len(text) - 100.0 * (completions.count(text) > 1) for text in completions]


def seldom_compares(completions, **_):
    repeated = [text for text in completions if completions.count(text[:1]) > 2]
    return [len(text) - 100.0 * (text in repeated) for text in completions]


def with_own_pool(completions, **_):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(len, completions))


def with_prompts(function):
    @functools.wraps(function)
    def wrapper(prompts, completions, **columns):
        return function([prompts[0] + text for text in completions], columns["answer"])

    return wrapper


@with_prompts
def takes_two(completions, answer):
    return [float(len(text) + len(gold)) for text, gold in zip(completions, answer, strict=True)]


def in_place(completions, answer, **_):
    completions[:] = [text.upper() for text in completions]
    answer[0] += "1"
    return [float(text.count("A")) for text in completions]


class Tally:
    calls = 0

    @classmethod
    def add(cls):
        cls.calls += 1
        return cls.calls


def counts_by_class(completions, **_):
    return [float(Tally.add() * len(text)) for text in completions]


def reads_environment(completions, **_):
    return [float(os.getenv("REWARD_FACTOR", "1")) * len(text) for text in completions]


@functools.lru_cache
def found_once():
    return {"factor": 1.0}


def reads_cache(completions, **_):
    return [found_once()["factor"] * len(text) for text in completions]


def counts_by_global(completions, **_):
    global CALLS
    CALLS += 1
    return [float(CALLS) * len(text) for text in completions]


def counts_by_attribute(completions, **_):
    counts_by_attribute.calls = getattr(counts_by_attribute, "calls", 0) + 1
    return [float(counts_by_attribute.calls) + len(text) for text in completions]


def fills_list(completions, **_):
    SEEN.extend(completions)
    return [float(SEEN.count(text) + len(text)) for text in completions]


def random_numbers(completions, **_):
    return [random.random() for _ in completions]


def numpy_numbers(completions, **_):
    return np.random.rand(len(completions))


def torch_numbers(completions, **_):
    return torch.rand(len(completions))


def reads_state(completions, trainer_state, **_):
    logged = [entry["reward"] for entry in trainer_state.log_history if "reward" in entry]
    return [len(text) + trainer_state.global_step + sum(logged) / 100 for text in completions]


def rebound_by_callback(completions, **_):
    return [FACTOR * len(text) for text in completions]


def defined_later(completions, **_):
    return [LATE * len(text) for text in completions]  # noqa: F821


def logs(completions, log_extra, log_metric, **_):
    log_extra("length", [len(text) for text in completions])
    log_metric("longest", max(map(len, completions)))
    return [float(len(text)) for text in completions]


class Rebind(TrainerCallback):
    def __init__(self, environments):
        self.environments = environments

    def on_step_end(self, *_, **__):
        global FACTOR
        FACTOR += 1
        self.environments[0] += 0.5
        os.environ["REWARD_FACTOR"] = str(FACTOR)
        found_once()["factor"] = FACTOR


def shapes() -> tuple[list[Any], list[TrainerCallback]]:
    """Fresh rewards, and the callbacks that change what some of them refer to."""
    global FACTOR, CALLS
    FACTOR, CALLS = 1.0, 0
    Tally.calls = 0
    SEEN.clear()
    found_once.cache_clear()
    os.environ.pop("REWARD_FACTOR", None)
    globals().pop("LATE", None)
    vars(counts_by_attribute).clear()
    with_list_as_default.__defaults__[0].clear()
    environments, offset = [1.0], 0.5

    def closes_over_environments(completions, **_):
        return [environments[0] * len(text) for text in completions]

    def closes_over_number(completions, **_):
        return [offset * len(text) for text in completions]

    rewards = [
        *(plain, reads_column, awaited, lambda completions, **_: [offset for _ in completions]),
        *(partial(scaled, scale=2.0), closes_over_number, closes_over_environments),
        *(Keyword("a"), Keyword("1"), AwaitedKeyword(), Counter().method),
        *(generator, returns_generator, returns_map, returns_dict_values, returns_array),
        *(returns_column_tensor, mixed, shortest, rank, unlike_others),
        *(counts_by_global, counts_by_attribute, with_list_as_default, fills_list),
        *(random_numbers, numpy_numbers, torch_numbers),
        *(reads_state, rebound_by_callback, defined_later, logs),
        *(seldom_compares, with_own_pool, takes_two, counts_by_class, reads_environment),
        *(reads_cache, in_place, reads_column, plain),
    ]
    return rewards, [Rebind(environments)]


def reward_model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), num_attention_heads=2, num_labels=1, pad_token_id=0, **sizes
    )
    return transformers.LlamaForSequenceClassification(config)


@pytest.mark.long
def test_every_shape_of_reward_is_paid_and_learnt_as_in_trl(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(library: Any, **ours: Any) -> tuple[Any, list[Any]]:
        rewards, callbacks = shapes()
        tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint, padding_side="left")
        rewards.append(reward_model(tokenizer))
        trainer = library.GRPOTrainer(
            str(tiny_checkpoint),
            rewards,
            library.GRPOConfig(
                **{"output_dir": str(tmp_path / library.__name__), "max_steps": 4},
                **{"num_generations": 4, "per_device_train_batch_size": 8},
                **{"beta": 0.04, "loss_type": "grpo", "use_bias_correction_kl": False},
                **{"max_completion_length": 8, "logging_steps": 1, "save_strategy": "no"},
                **{"report_to": "none", "use_cpu": True, "bf16": False, "optim": "sgd"},
                **{"learning_rate": 0.5, "gradient_checkpointing": False},
                **ours,
            ),
            Dataset.from_list([{"prompt": f"{n} + 1 = ", "answer": str(n)} for n in range(16)]),
            processing_class=tokenizer,
            reward_processing_classes=[None] * (len(rewards) - 1) + [tokenizer],
            callbacks=callbacks,
            peft_config=LORA,
        )
        globals()["LATE"] = 2.0
        trainer.train()
        return trainer, rewards

    theirs, _ = run(trl)
    ours, rewards = run(grpo_hf, packed_update=False, grouped_rollout=False)
    assert [given is kept for given, kept in zip(rewards, ours.reward_funcs, strict=True)] == [
        True
    ] * len(rewards)
    assert ours.reward_func_names == theirs.reward_func_names
    for mine, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        for name in (key for key in other if "reward" in key or key == "longest"):
            assert mine[name] == pytest.approx(other[name], abs=1e-6), name
    assert all(entry["grad_norm"] > 0 for entry in ours.state.log_history if "loss" in entry)
    weights = dict(theirs.model.named_parameters())
    for name, weight in ours.model.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-7, msg=name)
    entries = ours.run_rewards.entries_for(rewards)[:-1]
    isolated = {entry.__name__ for entry in entries if entry.is_isolated}
    assert isolated == {
        *("plain", "reads_column", "awaited", "<lambda>", "scaled", "closes_over_number"),
        *("generator", "returns_generator", "returns_map", "returns_dict_values", "returns_array"),
        *("shortest", "rank", "unlike_others", "seldom_compares", "reads_state", "logs"),
        *("with_own_pool", "takes_two"),
    }
    assert "'torch_numbers' is called in the trainer's process" in caplog.text
    assert "'in_place' is called in the trainer's process" in caplog.text
    assert "it changes the lists that it is called with" in caplog.text and "rebound" in caplog.text
    assert "it refers to LATE, which has no value yet" in caplog.text
    ours.run_rewards.process.close()
