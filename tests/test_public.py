"""What users and we rely on: the public names, TRL's constructor, and the parts of TRL that could move under us."""

import importlib
from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel
from support.settings import OURS
from trl.trainer import utils

import grpo_hf

PUBLIC = {
    "GRPOConfig": "grpo_hf.config",
    "GRPOTrainer": "grpo_hf.trainer",
    "Reward": "grpo_hf.scoring.registry",
    "RewardModel": "grpo_hf.reward_models.model",
    "StepRewards": "grpo_hf.scoring.steps",
    "completion_text": "grpo_hf.data.completions",
    "load_reward": "grpo_hf.scoring.registry",
    "register_reward": "grpo_hf.scoring.registry",
    "reward_settings": "grpo_hf.scoring.reward",
    "split_steps": "grpo_hf.scoring.steps",
}
CONSTRUCTOR = [
    "self",
    "model",
    "reward_funcs",
    "args",
    "train_dataset",
    "eval_dataset",
    "processing_class",
    "reward_processing_classes",
    "callbacks",
    "optimizers",
    "quantization_config",
    "peft_config",
    "tools",
    "rollout_func",
    "environment_factory",
]


def test_public_names():
    assert sorted(grpo_hf.__all__) == sorted(PUBLIC) == dir(grpo_hf)
    for name, home in PUBLIC.items():
        assert getattr(grpo_hf, name) is getattr(importlib.import_module(home), name)
    everything: dict[str, Any] = {}
    exec("from grpo_hf import *", everything)
    assert everything.keys() >= PUBLIC.keys()


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(grpo_hf, "GRPOTrainner")
    with pytest.raises(AttributeError, match="'grpo_hf' has no attribute 'GRPOTrainner'"):
        grpo_hf.__getattr__("GRPOTrainner")
    with pytest.raises(ImportError):
        exec("from grpo_hf import GRPOTrainner")


def test_the_trainer_and_its_configuration_are_trl_s():
    assert issubclass(grpo_hf.GRPOTrainer, trl.GRPOTrainer) and issubclass(
        grpo_hf.GRPOConfig, trl.GRPOConfig
    )
    assert signature(grpo_hf.GRPOTrainer) == signature(trl.GRPOTrainer)
    theirs, ours = signature(trl.GRPOConfig).parameters, signature(grpo_hf.GRPOConfig).parameters
    assert ours.keys() - theirs.keys() == OURS - theirs.keys() and theirs.keys() <= ours.keys()
    changed = {name for name in theirs if theirs[name].default != ours[name].default}
    assert changed == {"loss_type", "beta", "use_bias_correction_kl"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "missing a required argument: 'model'"),
        ({"model": "m", "rewards": 1}, "unexpected keyword.*'rewards'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments: dict[str, Any], said: str):
    with pytest.raises(TypeError, match=said):
        grpo_hf.GRPOTrainer(**arguments)


def assert_begins(function: Callable[..., Any], expected: list[str]) -> None:
    """The function's first parameters have these names, in this order, and what follows them is optional."""
    parameters = signature(function).parameters
    name = f"{function.__module__}.{function.__qualname__}"
    assert list(parameters)[: len(expected)] == expected, (
        f"{name} has moved: its parameters are {', '.join(parameters)}; grpo-hf calls it with {', '.join(expected)}"
    )
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    required = [
        parameter.name
        for parameter in list(parameters.values())[len(expected) :]
        if parameter.default is Parameter.empty and parameter.kind not in variadic
    ]
    assert not required, f"{name} has moved: it also requires {', '.join(required)}"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (trl.GRPOTrainer.__init__, CONSTRUCTOR),
        (
            trl.GRPOTrainer._get_per_token_logps_and_entropies,
            ["self", "model", "input_ids", "attention_mask", "logits_to_keep"],
        ),
        (trl.GRPOTrainer._tokenize_prompts, ["self", "prompts"]),
        (trl.GRPOTrainer._prepare_inputs, ["self", "generation_batch"]),
        (trl.GRPOTrainer._generate_and_score_completions, ["self", "inputs"]),
        (trl.GRPOTrainer._generate, ["self", "prompts"]),
        (
            trl.GRPOTrainer._generate_single_turn,
            ["self", "prompt_ids", "images", "multimodal_fields", "num_generations"],
        ),
        (trl.GRPOTrainer._compute_loss, ["self", "model", "inputs"]),
        (
            trl.GRPOTrainer._calculate_rewards,
            ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        ),
        (trl.GRPOTrainer.create_model_card, ["self", "model_name", "dataset_name", "tags"]),
        (trl.get_peft_config, ["model_args"]),
        (trl.get_quantization_config, ["model_args"]),
        (utils.use_adapter, ["model", "adapter_name"]),
        (utils.get_callable_name, ["func"]),
        (utils.is_async_callable, ["func"]),
        (transformers.Trainer.train, ["self", "resume_from_checkpoint"]),
        (transformers.Trainer.push_to_hub, ["self"]),
        (transformers.Trainer.remove_callback, ["self", "callback"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_what_we_call_and_override_has_not_moved(function: Callable[..., Any], expected: list[str]):
    assert_begins(function, expected)


def test_a_moved_signature_is_reported_by_name():
    def renamed(self, network, input_ids):
        """Stands for TRL's method after a change."""

    with pytest.raises(
        AssertionError, match=r"renamed has moved: its parameters are self, network, input_ids"
    ):
        assert_begins(renamed, ["self", "model"])
    with pytest.raises(AssertionError, match=r"renamed has moved: it also requires input_ids"):
        assert_begins(renamed, ["self", "network"])


def test_the_constructor_takes_nothing_that_we_do_not_know():
    found = list(signature(trl.GRPOTrainer.__init__).parameters)
    assert found == CONSTRUCTOR, (
        f"TRL's constructor has moved: {set(found) ^ set(CONSTRUCTOR) or 'the order'}"
    )


@pytest.fixture(scope="module")
def trainer(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> trl.GRPOTrainer:
    """TRL's own trainer with a new adapter, two rewards and prompts of messages."""

    def first(completions, **columns):
        return [0.0] * len(completions)

    def second(completions, **columns):
        return [1.0] * len(completions)

    prompts = [
        [{"role": "user", "content": "Anna has 3 apples. How many?"}],
        [{"role": "user", "content": "2?"}],
    ]
    return trl.GRPOTrainer(
        str(tiny_checkpoint),
        [first, second],
        trl.GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            num_generations=2,
            per_device_train_batch_size=2,
            max_completion_length=5,
            reward_weights=[1.0, 0.5],
            beta=0.04,
            use_cpu=True,
            bf16=False,
            report_to="none",
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )


def test_the_attributes_that_we_read_are_there(trainer: trl.GRPOTrainer):
    assert trainer.reward_func_names == ["first", "second"]
    assert trainer.reward_weights.tolist() == [1.0, 0.5]
    assert [reward.__name__ for reward in trainer.reward_funcs] == ["first", "second"]
    assert (trainer.beta, trainer.max_completion_length) == (0.04, 5)
    assert isinstance(trainer.model, PeftModel) and list(trainer.model.peft_config) == ["default"]
    assert trainer.processing_class.pad_token_id is not None
    assert (trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled) == (False, False)


def test_log_probs_are_those_of_the_last_tokens(trainer: trl.GRPOTrainer):
    """The first result is log softmax of the logits, divided by the temperature, at the labels: (B, logits_to_keep)."""
    ids = torch.arange(20, 32).view(2, 6)
    trainer.model.eval()
    with torch.no_grad():
        found = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, torch.ones_like(ids), 4
        )[0]
        logits = trainer.model(ids).logits / trainer.temperature
    expected = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)[:, -4:]
    torch.testing.assert_close(found, expected)


def test_prompts_are_tokenized_one_list_each(trainer: trl.GRPOTrainer):
    prompts = trainer.train_dataset["prompt"]
    rendered = [
        trainer.processing_class.apply_chat_template(p, add_generation_prompt=True) for p in prompts
    ]
    assert trainer._tokenize_prompts(list(prompts))[0] == [
        encoded["input_ids"] for encoded in rendered
    ]


def test_no_adapter_is_the_base(trainer: trl.GRPOTrainer):
    """`use_adapter(model, None)` disables every adapter, and puts them back."""
    model, ids = trainer.model.eval(), torch.arange(20, 32).unsqueeze(0)
    weights = [p for name, p in model.named_parameters() if "lora_B" in name]
    with torch.no_grad():
        base = model(ids).logits
        weights[0].fill_(0.1)
        adapted = model(ids).logits
        with utils.use_adapter(model, None):
            assert torch.equal(model(ids).logits, base)
        assert torch.equal(model(ids).logits, adapted) and not torch.equal(adapted, base)
        weights[0].zero_()
