"""Saved reward models: PEFT's format, what is refused, and what is not overwritten."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.reward_models import ANSWERS, CHAT, COMPLETIONS, PROMPTS, alone, classifier, policy_on
from transformers import AutoModelForCausalLM

from grpo_hf.errors import ModelError, OutputExistsError
from grpo_hf.reward_models.model import RewardModel
from grpo_hf.rewards.reward_model import reward_model as reward_by_name


def test_peft_and_the_reward_read_the_same_scores_from_its_folder(
    model: RewardModel, tokenizer: Any, tmp_path: Path
) -> None:
    texts, chats = model.scores(PROMPTS, COMPLETIONS), model.scores(CHAT, ANSWERS)
    model.save(tmp_path / "rm")
    loaded = classifier(tmp_path / "rm")
    expected = [
        alone(loaded, tokenizer(p + c).input_ids) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    assert texts.tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in expected}) == 4  # or equality would mean little
    assert reward_by_name(COMPLETIONS, PROMPTS, model=str(tmp_path / "rm")) == pytest.approx(
        expected, abs=1e-5
    )
    assert reward_by_name(ANSWERS, CHAT, model=str(tmp_path / "rm")) == pytest.approx(
        chats.tolist(), abs=1e-5
    )
    assert chats.tolist() != pytest.approx(expected, abs=1e-3)


def test_a_saved_one_comes_back(
    model: RewardModel, tiny_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    scores = model.scores(PROMPTS, COMPLETIONS)
    model.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["score"]
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert {".".join(name.split(".")[:3]) for name in weights} == {
        "base_model.model.score",
        "base_model.model.model",
    }
    back = RewardModel.load(tmp_path, policy_on(tiny_checkpoint, r=2), tokenizer)
    assert torch.equal(back.scores(PROMPTS, COMPLETIONS), scores)
    model.save(tmp_path)  # its own folder it may write again


def test_no_other_folder_is_overwritten(model: RewardModel, tmp_path: Path) -> None:
    model.model.save_pretrained(tmp_path / "policy", selected_adapters=["default"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("policy", "notes", "file"):
        with pytest.raises(
            OutputExistsError, match=f"{name} holds something other than a reward model"
        ):
            model.save(tmp_path / name)
    assert (
        json.loads((tmp_path / "policy" / "adapter_config.json").read_text())["task_type"]
        == "CAUSAL_LM"
    )


def test_what_does_not_fit_is_refused(
    model: RewardModel, tiny_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="has an adapter 'reward' already"):
        RewardModel.on(model.model, tokenizer)
    with pytest.raises(
        ModelError, match=r"came to LlamaForCausalLM with NoneType. Give get_peft_model"
    ):
        RewardModel.on(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), tokenizer)
    with pytest.raises(ModelError, match="changes the base weights"):
        RewardModel.on(
            model.model, tokenizer, adapter="other", lora=LoraConfig(init_lora_weights="pissa")
        )
    model.model.save_pretrained(tmp_path, selected_adapters=["default"])
    with pytest.raises(
        ModelError, match="holds an adapter without a reward model's head, as a trainer writes one"
    ):
        RewardModel.load(tmp_path, model.model, tokenizer, adapter="other")
    save_file(
        {"base_model.model.score.weight": torch.zeros(1, 64)},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(ModelError, match=r"the head is \(1, 64\); expected \(1, 128\)"):
        RewardModel.load(tmp_path, model.model, tokenizer, adapter="other")
    with pytest.raises(ModelError, match="nowhere"):
        RewardModel.load(tmp_path / "nowhere", model.model, tokenizer, adapter="other")
    assert set(model.model.peft_config) == {"default", "reward"}


def test_another_base_is_refused_and_leaves_nothing(
    model: RewardModel, tokenizer: Any, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_config(
        model.model.config.__class__(**model.model.config.to_dict() | {"num_hidden_layers": 2})
    )
    model.save(tmp_path)
    policy = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match=r"does not fit the base: .*layers\.2"):
        RewardModel.load(tmp_path, policy, tokenizer)
    assert set(policy.peft_config) == {"default"}


def test_push_uploads_what_save_writes(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []

    def commit(_: Any, repo_id: str, operations: Any, **__: Any) -> None:
        pushed = {}
        for operation in operations:
            with operation.as_file() as file:
                pushed[operation.path_in_repo] = file.read()
        calls.append((repo_id, pushed))

    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "create_repo",
        lambda _, repo_id, **given: calls.append((repo_id, given)),
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", commit)
    base = str(tmp_path / "base")
    monkeypatch.setattr(model.model.peft_config["reward"], "base_model_name_or_path", base)
    model.push("org/rm")
    model.save(tmp_path / "saved")
    saved = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    config = json.loads(saved.pop("adapter_config.json"))
    assert calls[0] == ("org/rm", {"private": True, "exist_ok": True})
    repo, pushed = calls[1]
    assert repo == "org/rm"
    assert json.loads(pushed.pop("adapter_config.json")) == (
        config | {"base_model_name_or_path": "base"}
    )
    assert pushed == saved and config["base_model_name_or_path"] == base
