"""The guards of the reference: the KL at step 0, and the bytes of the frozen base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import FourierFTConfig, LoraConfig, PromptTuningConfig
from support.adapters import load, lora
from support.models import decoder
from transformers import TrainerCallback

from grpo_hf import GRPOTrainer, trl_seam
from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.errors import ReferenceDriftError
from grpo_hf.models import reference_guards

MakeTrainer = Callable[..., GRPOTrainer]


def test_soft_prompts_are_no_drift(make_trainer: MakeTrainer) -> None:
    soft = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    make_trainer(peft_config=soft, max_steps=1).train()


def test_a_policy_that_does_not_start_at_its_reference_is_refused(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(peft_config=lora(init_lora_weights=False))  # random B: not a no-op
    with pytest.raises(ReferenceDriftError, match="at step 0"):
        trainer.train()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_kl_is_zero_at_the_first_step(make_trainer: MakeTrainer, dropout: float) -> None:
    trainer = make_trainer(peft_config=lora(lora_dropout=dropout), max_steps=1)
    trainer.train()
    assert abs(trainer.state.log_history[0]["kl"]) <= 1e-6


class WriteIntoTheBase(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        next(p for n, p in model.named_parameters() if "base_layer.weight" in n).data.view(-1)[
            7
        ] += 1e-3


@pytest.mark.long
def test_a_base_that_was_written_to_is_noticed(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=lora())
    trainer.add_callback(WriteIntoTheBase())
    with pytest.raises(ReferenceDriftError, match="frozen weights changed"):
        trainer.train()


def test_one_flipped_bit_changes_the_digest(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint, dtype="bfloat16").requires_grad_(False)
    names = reference_guards.frozen_names(model)
    before = reference_guards.frozen_digest(model, names)
    assert reference_guards.frozen_digest(model, names) == before
    next(model.parameters()).data.view(torch.int16).view(-1)[11] ^= 1
    assert reference_guards.frozen_digest(model, names) != before


class FreezeHalfOfTheAdapter(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for name, weight in model.named_parameters():
            if "lora_A" in name:
                weight.requires_grad_(False)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_an_adapter_may_be_frozen_while_it_trains(make_trainer: MakeTrainer, beta: float) -> None:
    trainer = make_trainer(peft_config=lora(), beta=beta)
    trainer.add_callback(FreezeHalfOfTheAdapter())
    trainer.train()


def test_without_a_kl_term_a_base_that_was_written_to_is_said(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    """ReLoRA merges its adapter into the base now and then, and TRL trains on."""
    trainer = make_trainer(peft_config=lora(), beta=0.0)
    trainer.add_callback(WriteIntoTheBase())
    trainer.train()
    assert "a base that is not the one on disk" in caplog.text


@pytest.mark.long
def test_frozen_weights_may_be_sparse_or_infinite(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=lora())
    base = trainer.model.get_base_model().model
    mask = torch.full((4, 4), -torch.inf).triu(1)
    base.mask = torch.nn.Parameter(mask, requires_grad=False)
    base.sparse = torch.nn.Parameter(torch.eye(4).to_sparse(), requires_grad=False)
    trainer.train()


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4, 50]},
    ],
    ids=["embeddings", "tokens"],
)
def test_adapters_on_embeddings_train_and_their_kl_is_checked(
    make_trainer: MakeTrainer, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **settings)
    trainer = make_trainer(
        model=decoder("Qwen2", vocab_size=len(tiny_tokenizer())),
        peft_config=config,
        learning_rate=1e-2,
    )
    trainer.train()
    kls = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert kls[0] == 0.0
    assert kls[1] > 0
    assert "not checked" not in caplog.text


def gpt2(**settings: Any) -> Any:
    return decoder("GPT2", vocab_size=len(tiny_tokenizer()), **settings)


def test_dropout_of_the_base_is_said_and_not_refused(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    model = gpt2(resid_pdrop=0.3, embd_pdrop=0.3)
    trainer = make_trainer(model=model, peft_config=lora(), max_steps=1)
    state = torch.get_rng_state()
    policy = trl_seam.policy_state(trainer, None)
    with reference_guards.guard_reference(policy, trainer.args):
        pass
    assert torch.equal(torch.get_rng_state(), state)
    caplog.clear()
    trainer.train()
    assert trainer.state.log_history[0]["kl"] > 1e-2
    said = [text for text in caplog.messages if "Dropout is on" in text]
    assert len(said) == 1
    assert "disable_dropout=True" in said[0]


def test_dropout_is_said_without_an_adapter_too(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(model=gpt2(resid_pdrop=0.3, embd_pdrop=0.3), max_steps=1).train()
    assert sum("Dropout is on" in text for text in caplog.messages) == 1


@pytest.mark.long
@pytest.mark.parametrize("settings", [{"use_dora": True}, {"bias": "all"}, None])
def test_the_guards_are_quiet_under_autocast(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture, settings: dict[str, Any] | None
) -> None:
    model = decoder("Qwen2", vocab_size=len(tiny_tokenizer()))
    config = None if settings is None else lora(**settings)
    make_trainer(model=model, peft_config=config, bf16=True, max_steps=2).train()
    for text in caplog.messages:
        assert "KL" not in text or "frozen copy" in text


def test_without_dropout_nothing_is_said_of_it(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    model = gpt2(resid_pdrop=0.3, embd_pdrop=0.3)
    make_trainer(model=model, peft_config=lora(), max_steps=1, disable_dropout=True).train()
    assert "Dropout is on" not in caplog.text


def test_an_adapter_that_is_no_no_op_by_design_trains_as_with_trl(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    fourier = FourierFTConfig(target_modules=["q_proj"], n_frequency=50, task_type="CAUSAL_LM")
    make_trainer(peft_config=fourier, max_steps=1).train()
    assert "FourierFTConfig changes the model from the start" in caplog.text


def test_a_guard_that_cannot_read_the_model_steps_aside(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any, **__: Any) -> float:
        raise AttributeError("no such thing")

    monkeypatch.setattr(reference_guards, "kl_at_start", unknown)
    trainer = make_trainer(peft_config=lora(), max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1
    assert "is not checked" in caplog.text
    assert "AttributeError: no such thing" in caplog.text
