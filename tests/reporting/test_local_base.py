"""A base that is a folder of this machine, given by a relative path: who finds it from where."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from support.cards import code_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_hf.cli import main
from grpo_hf.models.adapters import base_found_from_anywhere
from grpo_hf.reporting.public_names import own_weights
from grpo_hf.runs.evaluating import facts_of
from grpo_hf.runs.trained import open_run

# How `make smollm2` writes it.
SAYS = "SmolLM2-135M-Instruct from a GGUF file of 4 bits (Q4_1), in float32."
CARD = f"---\nbase_model: tester/original\nlicense: apache-2.0\n---\n\n{SAYS}\n"
SETTINGS = {
    "dtype": "float32",
    "lora_r": 4,
    "lora_target_modules": "all-linear",
    "dataset_path": "embedded:word_problems",
    "rewards": ["gsm8k"],
    "output_dir": "runs/mine",
    "max_steps": 2,
    "save_steps": 1,
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
    "logging_steps": 1,
    "eval_rows": 2,
    "use_cpu": True,
    "report_to": "none",
}


def python(folder: Path, *arguments: str) -> str:
    """Run Python in a folder, without a Hub; return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["named on the Hub", "its owner's"])
def project(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a base and a run that was started there, which names the base by its path."""
    here = tmp_path_factory.mktemp("project")
    shutil.copytree(tiny_checkpoint, here / "models" / "llama")
    if request.param == "named on the Hub":
        (here / "models" / "llama" / "README.md").write_text(CARD)
    recipe = SETTINGS | {"model_name_or_path": "models/llama"}
    (here / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        main(["train", "recipe.yaml"])
    return here


@pytest.mark.long
def test_the_code_of_the_card_runs_in_the_folder_of_the_run(project: Path):
    run = project / "runs" / "mine"
    card = (run / "README.md").read_text()
    assert str(project) not in card
    base = AutoModelForCausalLM.from_pretrained(project / "models" / "llama")
    tokenizer = AutoTokenizer.from_pretrained(project / "models" / "llama")
    model = PeftModel.from_pretrained(base, str(run)).eval()
    inputs = tokenizer("<|user|>Your text here.<|assistant|>", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].size(1) :], skip_special_tokens=True)
    assert python(run, "-c", code_of(card)) == f"{answer}\n"


@pytest.mark.long
def test_peft_finds_the_base_of_a_run_and_its_checkpoints_from_anywhere(project: Path):
    run = project / "runs" / "mine"
    for folder in (run, run / "checkpoint-1", run / "checkpoint-2"):
        adapter = json.loads((folder / "adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == str(project / "models" / "llama")


def test_a_project_that_has_moved_finds_its_base_by_the_recipe(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    moved = tmp_path / "moved"
    shutil.copytree(project, moved)
    # The old folder is not there in the new one's world.
    for file in moved.rglob("adapter_config.json"):
        file.write_text(file.read_text().replace(str(project), "/nowhere/project"))
    environment = moved / "runs" / "mine" / "environment.jsonl"
    environment.write_text(environment.read_text().replace(str(project), "/nowhere/project"))
    for folder in (moved / "runs" / "mine", moved / "runs" / "mine" / "checkpoint-1"):
        monkeypatch.chdir(tmp_path)
        assert open_run(folder).base == str(moved / "models" / "llama")
        monkeypatch.chdir(moved)
        assert open_run(folder).base == "models/llama"
    # A run of a script has no recipe, and knows where it was started.
    (moved / "runs" / "mine" / "recipe.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    for folder in (moved / "runs" / "mine", moved / "runs" / "mine" / "checkpoint-1"):
        assert open_run(folder).base == str(moved / "models" / "llama")


@pytest.mark.parametrize(
    ("named", "saved"),
    [
        ("models/llama", "HERE/models/llama"),
        # PEFT would name the folder that the base was loaded from.
        (None, "HERE/models/llama"),
        # An adapter that is continued, whose base has moved since it was trained.
        ("/nowhere/llama", "HERE/models/llama"),
        # One from the Hub, whose name says more than the folder of its base.
        ("org/llama", "org/llama"),
    ],
)
def test_an_adapter_names_its_base_while_it_is_saved(
    named: str | None,
    saved: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    shutil.copytree(tiny_checkpoint, tmp_path / "models" / "llama")
    monkeypatch.chdir(tmp_path)
    base = AutoModelForCausalLM.from_pretrained("models/llama")
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    model.add_adapter("critic", LoraConfig(r=2, target_modules="all-linear"))
    for config in model.peft_config.values():
        config.base_model_name_or_path = named
    with base_found_from_anywhere(model):
        model.save_pretrained("run")
    for file in ("run/adapter_config.json", "run/critic/adapter_config.json"):
        adapter = json.loads(Path(file).read_text())
        assert adapter["base_model_name_or_path"] == saved.replace("HERE", str(tmp_path))
    assert {config.base_model_name_or_path for config in model.peft_config.values()} == {named}
    # A model without adapters has nothing to name.
    with base_found_from_anywhere(AutoModelForCausalLM.from_pretrained("models/llama")):
        pass


def test_answers_kept_by_a_run_are_those_of_its_base_by_any_path(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A training has the base by the path that was given, and `grpo-hf eval` by the adapter's."""
    shutil.copytree(tiny_checkpoint, tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    relative = AutoModelForCausalLM.from_pretrained("llama")
    absolute = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    assert facts_of(relative, tmp_path) == facts_of(absolute, tmp_path)


def test_what_was_measured_is_told_from_the_original(project: Path):
    card = ModelCard.load(project / "runs" / "mine" / "README.md")
    limits = card.text.partition("## Known limits")[2]
    listed = python(project, "-m", "grpo_hf.cli", "push", "runs/mine", "me/mine", "--dry_run")
    (adapter,) = re.findall(r"^  adapter_config.json .*$", listed, re.MULTILINE)
    assert adapter.endswith(
        f"(folders of this machine cut; its base is {card.data.base_model or 'llama'})"
    )
    if not (project / "models" / "llama" / "README.md").is_file():
        assert "weights of a local folder" not in limits + listed
        return
    assert card.data.base_model == "tester/original"
    said = (
        "It was trained and measured on the weights of a local folder, `llama`, which says of "
        f'itself: "{SAYS}" On tester/original itself it was not measured.'
    )
    assert f"\n- {said}\n" in limits
    assert f"\nnote: {said}\n" in listed


MADE = "---\nbase_model: org/base\n---\n"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"README.md": f'{MADE}\n# Base\nIn 4 bits,\nof "Base". More.'}, "In 4 bits, of 'Base'."),
        ({"README.md": f"{MADE}![x](y)\n\n<!-- a\n\nb -->\n- a\n\nBold"}, "Bold"),
        ({"README.md": MADE}, ""),
        ({"README.md": f"{MADE}Made by /home/me/quantize.py.\n\nMore."}, ""),
        ({"README.md": f"{MADE}{'long ' * 200}."}, f"{'long ' * 39}[...]"),
        # A copy of the Hub's model, a folder without a card, one that names nothing.
        ({"README.md": MADE, "config.json": '{"_name_or_path": "org/base"}'}, None),
        ({"config.json": "{}"}, None),
        ({"README.md": "Mine."}, None),
        ({"README.md": "---\nbase_model: /home/me/llama\n---\nMine."}, None),
    ],
)
def test_a_folder_says_whose_weights_it_has(
    files: dict[str, str], says: str | None, tmp_path: Path
):
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    assert own_weights(str(tmp_path)) == says


def test_names_on_the_hub_have_no_weights_of_their_own():
    assert own_weights("org/base") is None and own_weights("") is None
