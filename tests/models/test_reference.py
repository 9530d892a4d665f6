"""The reference is the policy as it was, whatever its adapter is, and what trains beside it."""

import copy
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import (
    AdaLoraConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
)
from support.adapters import is_as, load, logits, lora
from support.models import decoder
from transformers import AutoTokenizer, TrainerCallback

import grpo_hf
from grpo_hf import GRPOTrainer, RewardModel, reward_settings
from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.errors import ModelError, ReferenceDriftError
from grpo_hf.models import adapters
from grpo_hf.models.kept_weights import (
    base_weights_that_train,
    keep_base,
    kept_weights,
    role_weights,
)
from grpo_hf.models.reference import as_reference

MakeTrainer = Callable[..., GRPOTrainer]
FAST = {"learning_rate": 5e-2, "optim": "sgd", "max_steps": 3, "beta": 0.5}


def qwen2(**settings: Any) -> Any:
    """A small model with biases that do something."""
    model = decoder("Qwen2", vocab_size=len(tiny_tokenizer()), **settings)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.1)
    return model.eval()


def moved(model: PeftModel) -> PeftModel:
    """With weights that are not those of its start."""
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    return model


def seen_as_reference(trainer: GRPOTrainer) -> torch.Tensor:
    trainer.model.eval()
    with as_reference(trainer.model) as model:
        return logits(model)


class WatchReference:
    """What TRL gets for the log-probabilities of the reference, with what they are scored on."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.batches: list[dict[str, Any]] = []
        make = trainer._roll_out

        def roll_out(rows: Any) -> Any:
            batch, rewards = make(rows)
            self.batches.append(batch)
            return batch, rewards

        trainer._roll_out = roll_out

    def assert_scored_by(self, original: Any) -> None:
        """Compare the last rollout with the distribution of the model itself."""
        batch = self.batches[-1]
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        width = batch["completion_ids"].shape[1]
        with torch.no_grad():
            scores = original.eval()(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        of_tokens = scores[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)[:, -width:]
        own = batch["completion_mask"].bool()
        torch.testing.assert_close(
            batch["ref_per_token_logps"][own], of_tokens[own], rtol=0, atol=1e-4
        )


# Weights of the base that train beside the adapter


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("beside", ["all", "lora_only", "norms"])
def test_the_reference_stays_where_weights_of_the_base_train(
    make_trainer: MakeTrainer,
    caplog: pytest.LogCaptureFixture,
    beside: str,
    checkpointing: bool,
) -> None:
    model = qwen2()
    original = copy.deepcopy(model)
    bias = "none" if beside == "norms" else beside
    trainer = make_trainer(
        model=model, peft_config=lora(bias=bias), gradient_checkpointing=checkpointing, **FAST
    )
    if beside == "norms":
        for name, weight in trainer.model.named_parameters():
            weight.requires_grad_(weight.requires_grad or "norm" in name)
    watch = WatchReference(trainer)
    trainer.train()
    assert base_weights_that_train(trainer.model)
    watch.assert_scored_by(original)
    base = logits(original)
    assert torch.equal(seen_as_reference(trainer), base)
    with trainer.model.disable_adapter():
        assert torch.equal(logits(trainer.model), base)
    with adapters.as_base(trainer.model) as seen:
        assert torch.equal(logits(seen), base)
    # The policy has moved, with the weights of the base.
    for weight, kept in kept_weights(trainer.model).base._copies:
        assert not torch.equal(weight, kept)
    said = [text for text in caplog.messages if "train beside the adapter" in text]
    assert len(said) == 1


def test_nothing_is_kept_or_said_of_an_ordinary_adapter(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(model=qwen2(), peft_config=lora(modules_to_save=["lm_head"]), **FAST)
    trainer.train()
    assert "kept_weights" not in vars(trainer.model)
    assert "disable_adapter" not in vars(trainer.model)
    assert "beside the adapter" not in caplog.text


class WriteIntoTheCopies(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        kept_weights(model).base.tensors[0].view(-1)[0] += 1e-3


def test_copies_that_were_written_to_are_noticed(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(model=qwen2(), peft_config=lora(bias="all"), **FAST)
    trainer.add_callback(WriteIntoTheCopies())
    with pytest.raises(ReferenceDriftError, match="frozen weights changed"):
        trainer.train()


@pytest.mark.long
def test_a_resumed_run_has_the_same_reference(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    settings = FAST | {
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "constant",
        "peft_config": lora(bias="all"),
    }
    whole = make_trainer(model=qwen2(), output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    first = make_trainer(
        model=qwen2(), output_dir=str(tmp_path / "cut"), **settings | {"max_steps": 2}
    )
    first.train()
    resumed = make_trainer(model=qwen2(), output_dir=str(tmp_path / "cut"), **settings)
    watch = WatchReference(resumed)
    resumed.train(resume_from_checkpoint=True)
    watch.assert_scored_by(qwen2())
    assert torch.equal(seen_as_reference(resumed), logits(qwen2()))
    for weight, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(weight, other)


@pytest.mark.long
def test_another_role_sees_the_base_as_it_was(make_trainer: MakeTrainer) -> None:
    """A reward model's scores do not move with the policy's biases."""
    trainer = make_trainer(model=qwen2(), peft_config=lora(bias="all"), **FAST)
    reward_model = RewardModel.on(trainer.model, tiny_tokenizer(), lora=lora())
    before = reward_model.scores(["1 + 2 = "], ["3"])
    trainer.train()
    assert torch.equal(reward_model.scores(["1 + 2 = "], ["3"]), before)


def test_a_copy_of_the_model_has_copies_of_its_own() -> None:
    model = get_peft_model(qwen2(), lora(bias="all"))
    keep_base(model)
    base = logits(qwen2())
    twin = copy.deepcopy(moved(model))
    for weight in model.parameters():
        weight.data.zero_()
    with twin.disable_adapter():
        assert torch.equal(logits(twin), base)


def test_resets_beside_weights_of_the_base_are_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ModelError, match=r"reference_reset_every .*bias='none'"):
        make_trainer(model=qwen2(), peft_config=lora(bias="all"), reference_reset_every=2)


def test_the_base_under_trained_biases_is_unknown(make_trainer: MakeTrainer) -> None:
    model = get_peft_model(qwen2(), lora(bias="all"))
    with pytest.raises(ModelError, match="Take reference='initial'"):
        make_trainer(model=model, reference="base")


# Adapters that go on


@pytest.mark.long
@pytest.mark.parametrize("name", ["default", "sft", "model", "layers", "ref"])
def test_an_adapter_of_any_name_has_its_start_as_reference(
    make_trainer: MakeTrainer, name: str
) -> None:
    model = moved(get_peft_model(qwen2(), lora(), adapter_name=name))
    original = copy.deepcopy(model)
    trainer = make_trainer(model=model, **FAST)
    assert trainer.beta == trainer.args.beta == 0.5
    watch = WatchReference(trainer)
    trainer.train()
    watch.assert_scored_by(original)
    kls = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert abs(kls[0]) <= 1e-6
    assert kls[-1] > 1e-5
    torch.testing.assert_close(seen_as_reference(trainer), logits(original))
    assert not torch.allclose(logits(trainer.model), logits(original))


@pytest.mark.long
@pytest.mark.parametrize("settings", [{"advantage_estimator": "gae"}, {"reference_reset_every": 1}])
def test_a_run_goes_on_under_another_name_as_under_default(
    make_trainer: MakeTrainer, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Critic, resets, checkpoints, resuming, saving and the card."""
    learned = []
    for name in ("default", "sft"):
        torch.manual_seed(0)
        model = moved(get_peft_model(qwen2(), lora(), adapter_name=name))
        run = FAST | settings | {"save_strategy": "steps", "save_steps": 1}
        run |= {"output_dir": str(tmp_path / name), "lr_scheduler_type": "constant"}
        make_trainer(model=copy.deepcopy(model), **run | {"max_steps": 2}).train()
        trainer = make_trainer(model=model, **run)
        trainer.train(resume_from_checkpoint=True)
        trainer.save_model()
        saved = tmp_path / name if name == "default" else tmp_path / name / name
        read = PeftModel.from_pretrained(qwen2(), saved).eval()
        assert torch.equal(logits(read), logits(trainer.model.eval()))
        assert "| `lora_r` | 4 |" in (tmp_path / name / "README.md").read_text()
        learned.append([weight.detach() for weight in role_weights(trainer.model, name).values()])
        learned[-1].append(seen_as_reference(trainer))
    for weight, other in zip(*learned, strict=True):
        assert torch.equal(weight, other)


@pytest.mark.long
def test_an_adapter_of_another_name_takes_the_fast_ways(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    model = get_peft_model(qwen2(), lora(), adapter_name="sft")
    trainer = make_trainer(model=model, **FAST)
    trainer.train()
    assert trainer.packs
    assert "are off" not in caplog.text


CONTINUED = {
    "biases": lora(bias="all"),
    "head and norms": lora(modules_to_save=["lm_head", "norm"]),
    "tokens": LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices=[3, 4], task_type="CAUSAL_LM"
    ),
    "AdaLoRA": AdaLoraConfig(
        target_modules=["q_proj"], total_step=10, tinit=1, tfinal=1, task_type="CAUSAL_LM"
    ),
    "LoHa": LoHaConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "OFT": OFTConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "VeRA": VeraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", CONTINUED)
def test_an_adapter_of_any_kind_has_its_start_as_reference(
    make_trainer: MakeTrainer, kind: str
) -> None:
    model = moved(get_peft_model(qwen2(tie_word_embeddings=False), CONTINUED[kind]))
    start = logits(model.eval())
    trainer = make_trainer(model=model, **FAST)
    trainer.train()
    assert abs(trainer.state.log_history[0]["kl"]) <= 1e-6
    torch.testing.assert_close(seen_as_reference(trainer), start)


@pytest.mark.long
def test_a_continued_adapter_learns_what_it_learns_with_trl(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """With the flags for TRL's own path, and under a name that TRL cannot take."""

    def learned(library: Any, name: str, **ours: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = moved(get_peft_model(load(tiny_checkpoint), lora(), adapter_name=name))
        args = library.GRPOConfig(
            output_dir=str(tmp_path / f"{library.__name__}-{name}"),
            num_generations=4,
            per_device_train_batch_size=8,
            max_completion_length=8,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            loss_type="grpo",
            use_bias_correction_kl=False,
            gradient_checkpointing=False,
            **FAST,
            **ours,
        )
        tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint, padding_side="left")
        rows = sums()
        trainer = library.GRPOTrainer(model, lengths, args, rows, processing_class=tokenizer)
        trainer.train()
        return [weight.detach() for weight in trainer.model.parameters() if weight.requires_grad]

    slow = {"packed_update": False, "grouped_rollout": False, "early_rewards": False}
    expected = learned(trl, "default")
    for name in ("default", "sft"):
        for weight, other in zip(learned(grpo_hf, name, **slow), expected, strict=True):
            assert torch.equal(weight, other)


@reward_settings(in_process=True)
def lengths(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def sums() -> Any:
    return Dataset.from_list([{"prompt": f"{a} + {a + 1} = "} for a in range(32)])


def test_weights_of_a_role_are_found_by_the_adapters_own_names() -> None:
    model = get_peft_model(qwen2(), lora(modules_to_save=["lm_head"]), adapter_name="model")
    model.add_adapter("layers", LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    names = role_weights(model, "model")
    assert all(".lora_" in name or "modules_to_save" in name for name in names)
    # 3 layers with 7 matrices, an A and a B each, and the head.
    assert len(names) == 3 * 7 * 2 + 1
    assert len(role_weights(model, "layers")) == 3 * 2
    assert role_weights(model, "norm") == {}


# Without an adapter


def with_new_tokens(folder: Path) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    model = load(folder)
    model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer


@pytest.mark.parametrize("name", [None, "/nowhere/at/all"])
def test_a_model_that_is_not_its_files_has_its_start_as_reference(
    tiny_checkpoint: Path, make_trainer: MakeTrainer, name: str | None
) -> None:
    model, tokenizer = with_new_tokens(tiny_checkpoint)
    if name is not None:
        model.config._name_or_path = name
    original = copy.deepcopy(model)
    trainer = make_trainer(
        model=model,
        processing_class=tokenizer,
        generation_kwargs={"suppress_tokens": list(range(len(tokenizer) - 2))},
        **FAST,
    )
    watch = WatchReference(trainer)
    trainer.train()
    assert abs(trainer.state.log_history[0]["kl"]) <= 1e-6
    assert int(watch.batches[0]["completion_ids"].max()) >= len(tokenizer) - 2
    watch.assert_scored_by(original)
    assert is_as(logits(trainer.ref_model), logits(original))


def test_a_model_by_name_has_its_files_as_reference(
    tiny_checkpoint: Path, make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(model=str(tiny_checkpoint), **FAST)
    trainer.train()
    assert is_as(logits(trainer.ref_model), logits(load(tiny_checkpoint)))
    assert "frozen copy" not in caplog.text


def test_without_a_kl_term_no_model_is_copied(
    tiny_checkpoint: Path, make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    assert make_trainer(model=load(tiny_checkpoint), beta=0.0).ref_model is None
    assert "frozen copy" not in caplog.text


def test_files_of_another_size_are_refused_before_training(
    tiny_checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    model, tokenizer = with_new_tokens(tiny_checkpoint)
    with pytest.raises(ModelError, match=r"reference='initial', .*beta=0"):
        make_trainer(model=model, processing_class=tokenizer, reference="base")


def test_files_with_other_weights_are_said(
    tiny_checkpoint: Path, make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(tiny_checkpoint)
    for weight in model.parameters():
        weight.data *= 1.1
    trainer = make_trainer(model=model, reference="base", **FAST)
    trainer.train()
    assert "The reference is not the policy as it starts" in caplog.text
    assert is_as(logits(trainer.ref_model), logits(load(tiny_checkpoint)))


def test_a_model_that_has_no_copy_has_trls_reference(
    tiny_checkpoint: Path, make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    """What users keep on a model, such as a lock or activations, is no matter of the reference."""
    for kept in (Lock(), torch.ones(2, requires_grad=True) * 2):
        model = load(tiny_checkpoint)
        model.kept = kept
        trainer = make_trainer(model=model)
        assert is_as(logits(trainer.ref_model), logits(load(tiny_checkpoint)))
    assert "cannot be copied (TypeError" in caplog.text
    assert "cannot be copied (RuntimeError" in caplog.text


def test_a_lack_of_memory_says_what_to_do(
    tiny_checkpoint: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model = load(tiny_checkpoint)
    monkeypatch.setattr(type(model), "__deepcopy__", no_memory, raising=False)
    with pytest.raises(ModelError, match=r"can't allocate memory\). Train an adapter"):
        make_trainer(model=model)
