"""What a run has trained, found again: whatever is in its folder, and wherever its base went."""

import shutil
from pathlib import Path

import pytest
import torch
from support.runs import made_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_hf.durability import whole_checkpoints
from grpo_hf.errors import ConfigError, DataError, ModelError
from grpo_hf.runs.trained import open_run, settings_of

TOKENS = torch.arange(10, 42).unsqueeze(0)  # (1, 32) token ids


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.fixture
def run(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    folder = tmp_path / "runs" / "mine"
    made_run(folder, tiny_checkpoint, recipe={"temperature": 0.5, "system_prompt": "Be brief."})
    return folder


def test_a_run_is_its_base_with_its_adapter_and_its_settings(tmp_path: Path, tiny_checkpoint: Path):
    made = made_run(tmp_path / "run", tiny_checkpoint, recipe={"temperature": 0.5})
    trained = open_run(tmp_path / "run")
    torch.testing.assert_close(logits(trained.model), logits(made))
    with trained.model.disable_adapter():
        base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
        torch.testing.assert_close(logits(trained.model), logits(base))
    assert trained.has_adapter and trained.base == str(tiny_checkpoint)
    assert not trained.model.training
    assert trained.settings.sampling["temperature"] == 0.5
    assert trained.settings.max_new_tokens == 12


def test_settings_for_other_devices_do_not_matter(run: Path):
    with (run / "recipe.yaml").open("a") as file:
        file.write("bf16: true\nuse_vllm: true\ndeepspeed: nowhere.json\n")
    assert settings_of(run).task.system_prompt == "Be brief."


def test_a_run_of_a_script_has_defaults(tmp_path: Path, tiny_checkpoint: Path):
    made_run(tmp_path / "run", tiny_checkpoint)
    settings = open_run(tmp_path / "run").settings
    assert settings.task.system_prompt is None
    assert settings.sampling["temperature"] == 1.0


def test_a_recipe_that_is_none_is_named(run: Path):
    (run / "recipe.yaml").write_text("[torn")
    with pytest.raises(ConfigError, match=r"recipe\.yaml cannot be read"):
        settings_of(run)


def test_a_base_that_has_moved_is_said_where(run: Path, tiny_checkpoint: Path, tmp_path: Path):
    file = run / "adapter_config.json"
    file.write_text(file.read_text().replace(str(tiny_checkpoint), "/nowhere/llama"))
    with pytest.raises(ModelError, match=r"its base /nowhere/llama is not there any more.*--base"):
        open_run(run)
    assert open_run(run, base=str(tiny_checkpoint)).has_adapter
    # By the path that the run was started with, from another folder.
    shutil.copytree(tiny_checkpoint, tmp_path / "models" / "llama")
    file.write_text(file.read_text().replace("/nowhere/llama", "models/llama"))
    assert open_run(run).base == str(tmp_path / "models" / "llama")


def test_a_checkpoint_is_opened_with_the_settings_of_its_run(run: Path, tiny_checkpoint: Path):
    made_run(run / "checkpoint-4", tiny_checkpoint, scale=0.1)
    trained = open_run(run / "checkpoint-4")
    assert trained.folder == run / "checkpoint-4"
    assert trained.settings.task.system_prompt == "Be brief."


def test_of_a_run_that_has_not_ended_it_is_the_newest_checkpoint(
    tmp_path: Path, tiny_checkpoint: Path
):
    for step in (2, 4):
        checkpoint = tmp_path / "run" / f"checkpoint-{step}"
        made_run(checkpoint, tiny_checkpoint)
        whole_checkpoints.seal(checkpoint, {"step": step})
    said: list[str] = []
    folder = tmp_path / "run"
    assert open_run(folder, say=said.append).folder.name == "checkpoint-4"
    assert said == ["note: the run has not ended; this is checkpoint-4."]


def test_a_whole_model_has_no_base(tmp_path: Path, tiny_checkpoint: Path):
    shutil.copytree(tiny_checkpoint, tmp_path / "run")
    trained = open_run(tmp_path / "run")
    assert not trained.has_adapter
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    torch.testing.assert_close(logits(trained.model), logits(base))


def test_an_adapter_of_another_name_is_found(tmp_path: Path, tiny_checkpoint: Path):
    made_run(tmp_path / "run" / "second", tiny_checkpoint)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "run")
    assert open_run(tmp_path / "run").folder.name == "second"


def test_folders_without_a_run_say_what_was_expected(tmp_path: Path):
    with pytest.raises(DataError, match="no such folder"):
        open_run(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"holds no adapter .* no model .* no whole checkpoint"):
        open_run(tmp_path)


def test_an_adapter_of_another_base_does_not_fit(run: Path, tmp_path: Path, tiny_checkpoint: Path):
    other = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    config = type(other.config)(**{**other.config.to_dict(), "intermediate_size": 64})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="the adapter does not fit the base"):
        open_run(run, base=str(tmp_path / "other"))
