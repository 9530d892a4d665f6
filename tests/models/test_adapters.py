"""One base, many roles: loading, the reference, and the guards that keep the base what it is."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from support.tiny_gguf import tiny_llama, write_gguf
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import ModelConfig

from grpo_hf import GRPOTrainer
from grpo_hf.errors import ModelError, ReferenceDriftError
from grpo_hf.models import adapters as roles
from grpo_hf.models import reference_guards
from grpo_hf.models.loading import load_base

MakeTrainer = Callable[..., GRPOTrainer]


def load(folder: Path, **settings: Any) -> Any:
    return load_base(ModelConfig(model_name_or_path=str(folder), **settings))


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **settings)


def moved_adapter(checkpoint: Path, folder: Path) -> Path:
    """A saved adapter that is not a no-op, as an earlier run leaves it."""
    model = get_peft_model(load(checkpoint), lora())
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 13)[None]).logits


# Loading


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_base_has_the_dtype_that_was_asked_for(
    tiny_checkpoint: Path, name: str, dtype: torch.dtype
) -> None:
    assert {p.dtype for p in load(tiny_checkpoint, dtype=name).parameters()} == {dtype}


def test_a_4_bit_base_takes_an_adapter_and_trains(
    tiny_checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    base = load(tiny_checkpoint, load_in_4bit=True)
    assert base.is_loaded_in_4bit
    trainer = make_trainer(model=base, peft_config=lora(), max_steps=2)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert any(
        not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before
    )


def test_a_4_bit_base_still_learns_after_generation(
    tiny_checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    """bitsandbytes 0.50 packs 4-bit weights at the first inference on some CPUs, and cannot
    train packed ones.
    """

    def gradient(*, generated: bool) -> torch.Tensor:
        model = make_trainer(
            model=load(tiny_checkpoint, load_in_4bit=True), peft_config=lora()
        ).model
        if generated:
            logits(model.eval())
        model.train()
        model(input_ids=torch.arange(3, 13)[None], labels=torch.arange(3, 13)[None]).loss.backward()
        return torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "lora_B" in n])

    assert torch.equal(gradient(generated=True), gradient(generated=False))


def test_a_4_bit_base_that_was_packed_is_refused(
    tiny_checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    base = load(tiny_checkpoint, load_in_4bit=True)
    logits(base.eval())
    if not has_avx512bf16():
        pytest.skip("bitsandbytes packs only on a CPU with AVX512-BF16")
    with pytest.raises(ModelError, match="cannot train any more"):
        make_trainer(model=base, peft_config=lora())


def test_a_gguf_base_has_the_written_weights_and_is_an_ordinary_model(tmp_path: Path) -> None:
    written = tiny_llama()
    write_gguf(written, tmp_path / "tiny.gguf")
    model = load_base(ModelConfig(model_name_or_path=str(tmp_path)), gguf_file="tiny.gguf")
    for (name, weight), (_, expected) in zip(
        model.named_parameters(), written.named_parameters(), strict=True
    ):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0, msg=name)
    model(input_ids=torch.arange(10)[None]).logits.sum().backward()
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), logits(model)
    )


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load(tiny_checkpoint)
    weights = {
        n: w
        for n, w in model.state_dict().items()
        if "layers.3.mlp" not in n and n != "lm_head.weight"
    }
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelError, match=r"3 weights of LlamaForCausalLM .*layers\.3\.mlp"):
        load(tmp_path)


# The reference


def test_kl_term_needs_no_second_model_in_memory(
    tiny_checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    def parameters_alive() -> int:
        gc.collect()
        return sum(o.numel() for o in gc.get_objects() if isinstance(o, torch.nn.Parameter))

    others = parameters_alive()
    trainer = make_trainer(beta=0.04, peft_config=lora())
    base = load(tiny_checkpoint).num_parameters()
    adapter = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    trainer.train()
    assert trainer.ref_model is None
    assert parameters_alive() - others == base + adapter


def test_reference_of_a_new_adapter_is_the_base(
    tiny_checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(peft_config=lora(), max_steps=3, learning_rate=1e-2)
    trainer.train()
    base = logits(load(tiny_checkpoint))
    assert not torch.allclose(logits(trainer.model), base)
    with roles.as_reference(trainer.model) as model:
        assert torch.equal(logits(model), base)
    with roles.as_base(trainer.model) as model:
        assert torch.equal(logits(model), base)


def test_reference_of_a_continued_adapter_is_its_frozen_copy(
    tiny_checkpoint: Path, tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    adapter = moved_adapter(tiny_checkpoint, tmp_path / "adapter")
    start = logits(PeftModel.from_pretrained(load(tiny_checkpoint), adapter))
    trainer = make_trainer(
        model=roles.continue_adapter(load(tiny_checkpoint), str(adapter)),
        max_steps=3,
        learning_rate=1e-2,
    )
    trainer.train()
    assert not torch.allclose(logits(trainer.model), start)
    with roles.as_reference(trainer.model) as model:
        torch.testing.assert_close(logits(model), start)
    assert not any(p.requires_grad for n, p in trainer.model.named_parameters() if ".ref." in n)
    assert any(p.requires_grad for n, p in trainer.model.named_parameters() if ".default." in n)


def test_reference_of_a_continued_adapter_can_be_the_base(
    tiny_checkpoint: Path, tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    adapter = moved_adapter(tiny_checkpoint, tmp_path / "adapter")
    model = roles.continue_adapter(load(tiny_checkpoint), str(adapter))
    trainer = make_trainer(model=model, reference="base")
    trainer.train()
    with roles.as_reference(trainer.model) as reference:
        assert torch.equal(logits(reference), logits(load(tiny_checkpoint)))
    assert trainer.state.log_history[0]["kl"] > 1e-4  # it starts away from the base, on purpose


# Guards


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_adapters_that_change_the_base_are_refused(make_trainer: MakeTrainer, init: str) -> None:
    config = lora()
    config.init_lora_weights = init  # set afterwards: PEFT wants scipy before it takes loftq
    with pytest.raises(ModelError, match=f"init_lora_weights='{init}' changes the base"):
        make_trainer(peft_config=config)


def test_a_wrapped_model_whose_adapter_changed_the_base_is_refused(
    tiny_checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    model = get_peft_model(load(tiny_checkpoint), lora(init_lora_weights="pissa"))
    with pytest.raises(ModelError, match="changes the base"):
        make_trainer(model=model)


def test_soft_prompts_are_no_drift(make_trainer: MakeTrainer) -> None:
    soft = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    make_trainer(peft_config=soft, max_steps=1).train()


def test_an_adapter_loaded_for_inference_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    adapter = moved_adapter(tiny_checkpoint, tmp_path / "adapter")
    with pytest.raises(ModelError, match="is_trainable=True"):
        make_trainer(model=PeftModel.from_pretrained(load(tiny_checkpoint), adapter))


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


def test_a_base_that_was_written_to_is_noticed(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=lora())
    trainer.add_callback(WriteIntoTheBase())
    with pytest.raises(ReferenceDriftError, match="frozen weights changed"):
        trainer.train()


def test_one_flipped_bit_changes_the_digest(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint, dtype="bfloat16").requires_grad_(False)
    before = reference_guards.frozen_digest(model)
    assert reference_guards.frozen_digest(model) == before
    next(model.parameters()).data.view(torch.int16).view(-1)[11] ^= 1
    assert reference_guards.frozen_digest(model) != before
