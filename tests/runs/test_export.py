"""What is exported computes what base and adapter did, and is served with the run's prompts."""

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from support.chats import TEMPLATES, tokenizer_with
from support.runs import made_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_hf.cli import main
from grpo_hf.data.prompts import PromptForm
from grpo_hf.errors import ConfigError, ModelError, OutputExistsError
from grpo_hf.models.loading import dequantized
from grpo_hf.runs.export import Export, converter_of, export
from grpo_hf.runs.modelfile import form_there, modelfile

SMOLLM2 = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct"
QUESTIONS = torch.arange(10, 74).reshape(4, 16)
CONVERTER = """
import pathlib, sys
model, outfile, file, outtype, kind = sys.argv[1:]
assert (outfile, outtype) == ("--outfile", "--outtype"), sys.argv
weights = pathlib.Path(model, "model.safetensors").stat().st_size
pathlib.Path(file).write_text(f"{kind} of {weights} bytes")
"""


def greedy(model: Any) -> list[list[int]]:
    with torch.no_grad():
        return model.generate(QUESTIONS, max_new_tokens=12, do_sample=False).tolist()


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


@pytest.fixture
def run(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    made_run(tmp_path / "mine", tiny_checkpoint, recipe={"instruction": "Show your work."})
    return tmp_path / "mine"


@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "down_proj"], "use_dora": True, "use_rslora": True},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["v_proj", "embed_tokens"], "rank_pattern": {"v_proj": 2}},
    ],
    ids=["lora", "dora", "head", "embeddings"],
)
def test_the_merged_copy_answers_as_base_and_adapter(
    tmp_path: Path, tiny_checkpoint: Path, adapter: dict[str, Any]
):
    before = hashlib.sha256((tiny_checkpoint / "model.safetensors").read_bytes()).digest()
    config = LoraConfig(r=4, **adapter)
    made = made_run(tmp_path / "run", tiny_checkpoint, recipe={}, adapter=config)
    folder = export(Export(tmp_path / "run"))
    assert folder == tmp_path / "run" / "merged"
    merged = loaded(folder)
    assert not hasattr(merged, "peft_config")
    assert greedy(merged) == greedy(made) != greedy(loaded(tiny_checkpoint))
    tokenizers = [AutoTokenizer.from_pretrained(each) for each in (folder, tiny_checkpoint)]
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert merged.generation_config.eos_token_id == made.generation_config.eos_token_id
    after = hashlib.sha256((tiny_checkpoint / "model.safetensors").read_bytes()).digest()
    assert before == after, "the base is not a copy any more"


def test_the_precision_is_the_base_s_and_its_rounding_is_said(
    tmp_path: Path, tiny_checkpoint: Path, capsys
):
    half = tmp_path / "half"
    loaded(tiny_checkpoint).to(torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(half)
    made_run(tmp_path / "run", half, recipe={"dtype": "float32"}, scale=1e-3)
    assert loaded(export(Export(tmp_path / "run"))).dtype == torch.bfloat16
    said = re.search(r"in bfloat16, (\d+)% of the weights .* stay as", capsys.readouterr().out)
    assert said is not None
    # By brute force, from the files: the exported weights against those of the base.
    same, all_of_them = 0, 0
    before, after = loaded(half).state_dict(), loaded(tmp_path / "run" / "merged").state_dict()
    for name, weight in before.items():
        if "proj" in name:
            same += int((weight == after[name]).sum())
            all_of_them += weight.numel()
    assert abs(100 * same / all_of_them - float(said[1])) < 1
    exact = export(Export(tmp_path / "run", to=tmp_path / "exact", dtype="float32"))
    assert loaded(exact).dtype == torch.float32
    assert "by rounding" not in capsys.readouterr().out


def test_a_base_of_4_bits_is_what_the_adapter_saw(tmp_path: Path, tiny_checkpoint: Path, capsys):
    recipe = {"load_in_4bit": True}
    made_run(tmp_path / "run", tiny_checkpoint, recipe=recipe)
    merged = loaded(export(Export(tmp_path / "run")))
    assert "the run trained on 4-bit weights: they are turned back into float32" in (
        capsys.readouterr().out
    )
    assert getattr(merged.config, "quantization_config", None) is None
    from grpo_hf.runs.trained import open_run

    four = open_run(tmp_path / "run").model
    full = loaded(tiny_checkpoint)
    with torch.no_grad():
        expected, rounded = four(QUESTIONS).logits, merged(QUESTIONS).logits
        with four.disable_adapter():
            change = (four(QUESTIONS).logits - full(QUESTIONS).logits).norm()
    assert (rounded - expected).norm() < 0.1 * change, "those are other weights"


def test_an_adapter_that_cannot_be_in_the_weights_is_refused(tmp_path: Path, tiny_checkpoint: Path):
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    soft = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(base, soft).save_pretrained(tmp_path / "run")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "run")
    with pytest.raises(ModelError, match=r"\(PROMPT_TUNING\) cannot be folded.*as an adapter"):
        export(Export(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*merged*")), "half an export is left"


def test_nothing_is_overwritten(run: Path, tmp_path: Path):
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputExistsError, match="there exists, and is not overwritten"):
        export(Export(run, to=tmp_path / "there"))
    (tmp_path / "file").touch()
    with pytest.raises(OutputExistsError, match=r"cannot be written"):
        export(Export(run, to=tmp_path / "file" / "merged"))


def test_a_whole_model_is_exported_as_it_is(tmp_path: Path, tiny_checkpoint: Path, capsys):
    shutil.copytree(tiny_checkpoint, tmp_path / "run")
    merged = loaded(export(Export(tmp_path / "run")))
    assert greedy(merged) == greedy(loaded(tiny_checkpoint))
    assert "--enable-lora" not in capsys.readouterr().out


def test_the_commands_that_serve_it_are_printed(run: Path, tiny_checkpoint: Path, capsys):
    main(["export", str(run)])
    shown = capsys.readouterr().out
    merged = run / "merged"
    assert f"vllm serve {merged} --served-model-name mine\n" in shown
    assert f"ollama create mine -f {merged}/Modelfile && ollama run mine\n" in shown
    adapter = f"vllm serve {tiny_checkpoint} --enable-lora --max-lora-rank 8 --lora-modules mine="
    assert adapter + str(run) in shown
    assert f"exported to {merged}:\n  Modelfile  " in shown
    assert "Show your work." in (merged / "Modelfile").read_text()


def test_llama_cpp_s_converter_makes_a_gguf_file(run: Path, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text(CONVERTER)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama.cpp"))
    main(["export", str(run), "--format", "gguf", "--outtype", "q8_0"])
    folder = run / "gguf"
    assert {file.name for file in folder.iterdir()} == {"mine-q8_0.gguf", "Modelfile"}
    assert (folder / "mine-q8_0.gguf").read_text().startswith("q8_0 of ")
    assert (folder / "Modelfile").read_text().startswith("FROM ./mine-q8_0.gguf\n")
    shown = capsys.readouterr().out
    assert "ollama create mine" in shown and f"vllm serve {folder}" not in shown


@pytest.mark.slow
@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names no folder of llama.cpp")
def test_the_real_converter_writes_the_policy(tmp_path: Path):
    """llama.cpp knows tokenizers by name, and none of a test's, so it takes a real model."""
    if not SMOLLM2.is_dir():
        pytest.skip("there is no models/smollm2-135m-instruct: make smollm2")
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    made = made_run(tmp_path / "run", SMOLLM2, recipe={}, adapter=config)
    folder = export(Export(tmp_path / "run", format="gguf", outtype="f32"))
    there = dequantized(
        AutoModelForCausalLM.from_pretrained(folder, gguf_file="run-f32.gguf", dtype=torch.float32)
    )
    with torch.no_grad(), made.disable_adapter():
        base = made(QUESTIONS).logits
    with torch.no_grad():
        policy, converted = made(QUESTIONS).logits, there(QUESTIONS).logits
    torch.testing.assert_close(converted, policy, rtol=1e-3, atol=1e-3)
    assert (base - policy).abs().max() > 1


def test_a_converter_that_fails_or_is_not_there_says_why(run: Path, tmp_path: Path, monkeypatch):
    failing = tmp_path / "convert.py"
    failing.write_text("import sys; sys.exit('BPE pre-tokenizer was not recognized')")
    with pytest.raises(ModelError, match=r"BPE pre-tokenizer was not recognized\n.*safetensors"):
        export(Export(run, format="gguf", converter=failing))
    assert not (run / "gguf").exists()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"git clone .*llama\.cpp.*--converter"):
        export(Export(run, format="gguf"))
    (tmp_path / "convert_hf_to_gguf.py").touch()
    assert converter_of(tmp_path) == tmp_path / "convert_hf_to_gguf.py"


@pytest.mark.parametrize("template", [*TEMPLATES, "chatml"])
def test_ollama_s_template_writes_what_the_chat_template_does(template: str):
    tokenizer = tokenizer_with(template)
    form = PromptForm(chat=True, system_prompt="Be brief.", instruction="Show your work.")
    there, system = form_there(tokenizer, form, {})
    if there is None:
        assert "no simple form" in modelfile(".", tokenizer, form, {})
        return
    assert system == "Be brief."
    messages = [{"role": "system", "content": "Be brief."}]
    written = ""
    for question, answer in (("What?", "This."), ("Why?", "So.")):
        # As Ollama does for each turn; it has a system text in the first one alone.
        head, _, turn = there.removeprefix("{{ if .System }}").partition("{{ end }}")
        written += (head.replace("{{ .System }}", "Be brief.") if not written else "") + (
            turn.replace("{{ .Prompt }}", question).replace("{{ .Response }}", answer)
        )
        messages.append({"role": "user", "content": f"{question}\nShow your work."})
        messages.append({"role": "assistant", "content": answer})
    # Up to the last answer, which is the model's.
    asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert written.rpartition("So.")[0] == asked


@pytest.mark.long
def test_most_templates_have_a_form_there():
    form = PromptForm(chat=True, system_prompt="Be brief.")
    found = [name for name in TEMPLATES if form_there(tokenizer_with(name), form, {})[0]]
    assert {"qwen2_5", "qwen3", "llama3"} <= set(found)


def test_a_system_text_of_the_template_s_own_is_kept():
    form = PromptForm(chat=True)
    assert form_there(tokenizer_with("qwen2_5"), form, {})[1].startswith("You are Qwen")
    assert form_there(tokenizer_with("chatml"), form, {})[1] is None
