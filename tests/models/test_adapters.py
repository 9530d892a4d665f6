"""One base, many roles: loading, the reference, and the guards that keep the base what it is."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora.config import KasaConfig
from support.adapters import is_as, load, logits, lora

from grpo_hf import GRPOTrainer
from grpo_hf.errors import ModelError
from grpo_hf.models import adapters as roles
from grpo_hf.models.reference import as_reference

MakeTrainer = Callable[..., GRPOTrainer]


def moved_adapter(checkpoint: Path, folder: Path) -> Path:
    """A saved adapter that is not a no-op, as an earlier run leaves it."""
    model = get_peft_model(load(checkpoint), lora())
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(folder)
    return folder


@pytest.mark.long
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


@pytest.mark.long
def test_reference_of_a_new_adapter_is_the_base(
    tiny_checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(peft_config=lora(), max_steps=3, learning_rate=1e-2)
    trainer.train()
    base = logits(load(tiny_checkpoint))
    assert not torch.allclose(logits(trainer.model), base)
    with as_reference(trainer.model) as model:
        assert is_as(logits(model), base)
    with roles.as_base(trainer.model) as model:
        assert is_as(logits(model), base)


@pytest.mark.long
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
    with as_reference(trainer.model) as model:
        torch.testing.assert_close(logits(model), start)
    assert not any(p.requires_grad for n, p in trainer.model.named_parameters() if ".ref." in n)
    assert any(p.requires_grad for n, p in trainer.model.named_parameters() if ".default." in n)


@pytest.mark.long
def test_reference_of_a_continued_adapter_can_be_the_base(
    tiny_checkpoint: Path, tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    adapter = moved_adapter(tiny_checkpoint, tmp_path / "adapter")
    model = roles.continue_adapter(load(tiny_checkpoint), str(adapter))
    trainer = make_trainer(model=model, reference="base")
    trainer.train()
    with as_reference(trainer.model) as reference:
        assert is_as(logits(reference), logits(load(tiny_checkpoint)))
    assert trainer.state.log_history[0]["kl"] > 1e-4  # it starts away from the base, on purpose


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_adapters_that_change_the_base_are_refused(make_trainer: MakeTrainer, init: str) -> None:
    config = lora()
    config.init_lora_weights = init  # set afterwards: PEFT wants scipy before it takes loftq
    with pytest.raises(ModelError, match=f"init_lora_weights='{init}' changes the base"):
        make_trainer(peft_config=config)


def test_kasa_cuts_the_base_and_is_refused(
    tiny_checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    config = lora(kasa_config=KasaConfig())
    with pytest.raises(ModelError, match="kasa_config changes the base"):
        make_trainer(peft_config=config)
    base = load(tiny_checkpoint)
    before = logits(base)
    model = get_peft_model(base, config)
    with model.disable_adapter():
        assert not torch.allclose(logits(model), before)


def test_a_wrapped_model_whose_adapter_changed_the_base_is_refused(
    tiny_checkpoint: Path, make_trainer: MakeTrainer
) -> None:
    model = get_peft_model(load(tiny_checkpoint), lora(init_lora_weights="pissa"))
    with pytest.raises(ModelError, match="changes the base"):
        make_trainer(model=model)


def test_an_adapter_loaded_for_inference_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    adapter = moved_adapter(tiny_checkpoint, tmp_path / "adapter")
    with pytest.raises(ModelError, match="is_trainable=True"):
        make_trainer(model=PeftModel.from_pretrained(load(tiny_checkpoint), adapter))
