"""Loading a base: its dtype, 4 bits, GGUF, and checkpoints that lack weights."""

import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from huggingface_hub import HfApi
from support.adapters import load, logits, lora
from support.tiny_gguf import tiny_llama, write_gguf
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from grpo_hf import GRPOTrainer
from grpo_hf.errors import HubUnreachable, ModelError
from grpo_hf.models.loading import load_base, read_model_config
from grpo_hf.models.places import check_found, check_local

MakeTrainer = Callable[..., GRPOTrainer]


class TestNamesThatAreNoFolders:
    @pytest.fixture(autouse=True)
    def beside_models(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "models" / "smollm2-135m-instruct").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)

    def test_a_misspelled_folder_is_said_at_once(self) -> None:
        with pytest.raises(ModelError) as caught:
            read_model_config("models/smollm2-135m-instuct")
        meant = "Did you mean 'models/smollm2-135m-instruct'?"
        assert f"no such model folder here. {meant}" in str(caught.value)

    @pytest.mark.parametrize("known", [None, False])
    @pytest.mark.parametrize(
        "typed", ["model/smollm2-135m-instruct", "./modles/smollm2-135m-instuct"]
    )
    def test_a_misspelled_folder_of_the_folder_is_said_at_once(
        self, typed: str, known: bool | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("grpo_hf.models.places.is_on_hub", lambda name: known)
        with pytest.raises(ModelError, match="Did you mean 'models/smollm2-135m-instruct'"):
            read_model_config(typed)

    def test_what_the_hub_may_have_is_left_to_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where a folder has an owner's name, its other models are still on the Hub."""
        asked = []

        def model_info(self: Any, name: str, timeout: float) -> None:
            asked.append(name)

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
        check_local("models/other", "model", "config.json")
        assert asked == ["models/other"]
        # Fetched before, it needs no Hub.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        (tmp_path / "models--models--third").mkdir()
        check_local("models/third", "model", "config.json")
        # Without such a folder, or one that is called like it, nobody is asked.
        check_local("owner/fourth", "model", "config.json")
        check_local("model/fifth", "model", "config.json")
        assert asked == ["models/other"]
        check_local("model/smollm2-135m-instruct", "model", "config.json")
        assert asked == ["models/other", "model/smollm2-135m-instruct"]


class TestNamesOnTheHub:
    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "smollm2").mkdir()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    @pytest.mark.parametrize("kind", [OSError, RuntimeError, TimeoutError])
    def test_a_hub_that_does_not_answer_is_asked_once(
        self, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
    ) -> None:
        asked = []

        def model_info(self: Any, name: str, timeout: float) -> None:
            asked.append(name)
            raise kind("Name or service not known")

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
        with pytest.raises(HubUnreachable, match=r"does not answer.*Did you mean 'smollm2'"):
            read_model_config("smollm")
        assert asked == ["smollm"]
        # What was fetched before needs no answer.
        Path("cache/models--smollm").mkdir(parents=True)
        check_found("smollm", "model")
        check_found("smollm2", "model")
        assert asked == ["smollm"]

    def test_a_hub_that_is_slow_is_left_to_the_libraries(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Someone listens there, and TRL would wait for the answer."""
        with socket.create_server(("127.0.0.1", 0)) as mute:
            endpoint = f"http://127.0.0.1:{mute.getsockname()[1]}"
            monkeypatch.setattr("huggingface_hub.HfApi", partial(HfApi, endpoint=endpoint))
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
            monkeypatch.setattr("grpo_hf.models.places._HUB_PATIENCE", 0.2)
            check_found("smollm", "model")

    def test_a_hub_that_has_no_such_model_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("grpo_hf.models.places.is_on_hub", lambda name: False)
        with pytest.raises(ModelError, match="the Hub has no such repository"):
            read_model_config("smollm")


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_base_has_the_dtype_that_was_asked_for(
    tiny_checkpoint: Path, name: str, dtype: torch.dtype
) -> None:
    assert {p.dtype for p in load(tiny_checkpoint, dtype=name).parameters()} == {dtype}


@pytest.mark.long
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
