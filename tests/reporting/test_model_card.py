"""What is published: a run pushed to a Hub and read back by a user, and the card in odd cases."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from support.cards import code_of
from support.fakehub import TOKEN, FakeHub
from support.run_folders import write_evaluation
from support.runs import made_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_hf import GRPOTrainer
from grpo_hf.config import GRPOConfig
from grpo_hf.data.prompts import PromptForm
from grpo_hf.evaluation.statistics import compare
from grpo_hf.reporting.model_card import refresh_card, write_model_card
from grpo_hf.reporting.public_names import hub_base, public_name
from grpo_hf.run_context import CardFacts
from grpo_hf.run_files import read_lines
from grpo_hf.runs.recipe import read_recipe
from grpo_hf.scoring.registry import load_reward

REPO = "tester/demo"
RECORD = {
    "README.md",
    "metrics.jsonl",
    "recipe.yaml",
}
KEPT_HERE = {"credit.jsonl", "evaluation.jsonl", "training_args.bin", "checkpoint-2"}
# Their folders of this machine are cut.
CUT = {"adapter_config.json", "recipe.yaml"}
ADAPTER = {"adapter_model.safetensors", "adapter_config.json"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
QUESTION = torch.arange(10, 42).unsqueeze(0)  # (1, 32) token ids
GSM8K = "Return 1.0 where the completion's final number is exactly the gold answer's, else 0.0."
ANSWER_FORMAT = "Return 1.0 where the completion ends in a line `#### n`, else 0.0."
LOCAL_PATH = re.compile(r"(?<![\w:/.])[/~][\w.]")
# The untrained model earns nothing from the recipe's other rewards and learns from this one only.
VOWELS = """
def vowels(completions, *, letters="aeiou", **columns):
    texts = [completion[0]["content"] for completion in completions]
    return [sum(text.count(letter) for letter in letters) / 10 for text in texts]
"""
PUBLISH = """
import sys
from huggingface_hub import HfApi

HfApi().create_repo(sys.argv[2])
HfApi().upload_folder(repo_id=sys.argv[2], folder_path=sys.argv[1])
"""
READ_BACK = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
question = torch.arange(10, 42).unsqueeze(0)
words = tokenizer.convert_ids_to_tokens(question[0])
torch.save({"logits": model(question).logits.detach(), "words": words}, sys.argv[3])
"""


@dataclass(frozen=True)
class Pushed:
    """A run that pushed itself: the Hub it went to, the base it trained, and its folder."""

    hub: FakeHub
    base: Path
    folder: Path
    output: str

    @property
    def files(self) -> dict[str, bytes]:
        return self.hub.files(REPO)

    @property
    def card(self) -> ModelCard:
        return ModelCard(self.files["README.md"].decode())


def python(hub: FakeHub, *arguments: object) -> str:
    environment = hub.environment() | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pushed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    here = tmp_path_factory.mktemp("pushed")
    settings = {
        "model_name_or_path": str(tiny_checkpoint),
        "dtype": "float32",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_modules": "all-linear",
        "dataset_path": "embedded:word_problems",
        "rewards": ["gsm8k", "answer_format", "./my_rewards/letters.py:vowels(letters='eio')"],
        "reward_weights": [1.0, 0.25, 2.0],
        "output_dir": str(here / "run"),
        "max_steps": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 16,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "eval_rows": 8,
        "use_cpu": True,
        "report_to": "none",
        "push_to_hub": True,
        "hub_model_id": REPO,
        "hub_token": TOKEN,
    }
    (here / "recipe.yaml").write_text(yaml.safe_dump(settings))
    (here / "my_rewards").mkdir()
    (here / "my_rewards" / "letters.py").write_text(VOWELS)
    with FakeHub(here / "hf_home") as hub:
        output = python(hub, "-m", "grpo_hf.cli", "train", here / "recipe.yaml")
        yield Pushed(hub, tiny_checkpoint, here / "run", output)


def tables(card: str) -> dict[str, dict[str, list[str]]]:
    """Return the card's tables by the heading above them, without backticks.

    A table has the other cells of a row by its first cell.
    """
    found: dict[str, dict[str, list[str]]] = {}
    heading = ""
    for line in card.splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| "):
            cells = [cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(heading, {})[cells[0]] = cells[1:]
    return found


@pytest.mark.long
def test_the_adapter_its_tokenizer_and_the_run_s_record_are_pushed_and_nothing_else(pushed: Pushed):
    assert {file.name for file in pushed.folder.iterdir()} >= KEPT_HERE
    curves = {f"report/{file.name}" for file in pushed.folder.glob("report/*.png")}
    assert curves, "the report has no picture for the card"
    assert set(pushed.files) == ADAPTER | TOKENIZER | RECORD | curves
    for name in pushed.files.keys() - CUT:
        assert pushed.files[name] == (pushed.folder / name).read_bytes(), name


@pytest.mark.long
def test_the_pushed_set_is_listed_before_and_the_address_after(pushed: Pushed):
    before, _, after = pushed.output.rpartition(f"pushing {len(pushed.files)} files of ")
    assert "answers:" in before, "the push is the last of all"
    listed = re.findall(r"^  (\S+)  [\d,]+ bytes", after.partition("  in all")[0], re.MULTILINE)
    total = sum(map(len, pushed.files.values()))
    assert f"  in all  {total:,} bytes\n" in after
    assert set(listed) == set(pushed.files)
    (left,) = re.findall(r"^  not pushed: (.*)$", after, re.MULTILINE)
    assert set(left.split(", ")) >= KEPT_HERE and ".card.json" not in left
    assert after.endswith(f"pushed to {pushed.hub.url}/{REPO} (private)\n")


def test_a_new_repository_is_private(pushed: Pushed):
    assert pushed.hub.repos["model", REPO].private


def test_no_folder_of_this_machine_is_in_any_commit(pushed: Pushed):
    for commit in pushed.hub.repos["model", REPO].commits:
        for path, file in commit.files.items():
            for folder in (pushed.base, pushed.folder):
                assert str(folder.parent).encode() not in file.content, f"{path}: {folder}"
    assert json.loads(pushed.files["adapter_config.json"])["base_model_name_or_path"] == (
        pushed.base.name
    )
    local = json.loads((pushed.folder / "adapter_config.json").read_text())
    assert local["base_model_name_or_path"] == str(pushed.base), "here it still finds its base"
    recipe = yaml.safe_load(pushed.files["recipe.yaml"])
    assert recipe["model_name_or_path"] == pushed.base.name
    assert recipe["rewards"][2] == "letters.py:vowels(letters='eio')"


def test_no_commit_holds_the_token(pushed: Pushed):
    commits = pushed.hub.repos["model", REPO].commits
    leaks = {
        path
        for commit in commits
        for path, file in commit.files.items()
        if TOKEN.encode() in file.content
    }
    assert leaks == set()


@pytest.mark.long
def test_the_pushed_adapter_on_the_base_answers_as_the_local_one(pushed: Pushed, tmp_path: Path):
    python(pushed.hub, "-c", READ_BACK, pushed.base, REPO, tmp_path / "answer.pt")
    read_back = torch.load(tmp_path / "answer.pt")

    base = AutoModelForCausalLM.from_pretrained(pushed.base, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(pushed.base)
    with torch.no_grad():
        untrained = base(QUESTION).logits
        local = PeftModel.from_pretrained(base, str(pushed.folder)).eval()(QUESTION).logits
    torch.testing.assert_close(read_back["logits"], local, rtol=0, atol=1e-6)
    assert (local - untrained).abs().max() > 1e-3, "nothing was learned: any adapter would pass"
    assert read_back["words"] == tokenizer.convert_ids_to_tokens(QUESTION[0])


@pytest.mark.long
def test_the_code_of_the_card_loads_the_pushed_files_and_answers(pushed: Pushed):
    code = code_of(pushed.card.text)
    assert f'name = "{REPO}"' in code
    # The one thing to fill in: this base is a folder of its owner's.
    here = code.replace(f"path/to/{pushed.base.name}", str(pushed.base))
    assert here != code
    shown = python(pushed.hub, "-c", here)
    assert shown == f"{answer_of(pushed.base, pushed.folder)}\n"


def answer_of(base: Path, run: Path) -> str:
    """What PEFT and transformers answer to the example of the card."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(run)).eval()
    question = "<|user|>Your text here.<|assistant|>"
    inputs = tokenizer(question, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].size(1) :], skip_special_tokens=True)


@pytest.mark.long
def test_a_stranger_needs_nothing_but_the_card_where_the_base_is_on_the_hub(
    tiny_checkpoint: Path, tmp_path: Path, fake_hub: FakeHub
):
    # The folder says which model of the Hub it is, and the Hub which licence that has.
    base = tmp_path / "llama"
    shutil.copytree(tiny_checkpoint, base)
    config = json.loads((base / "config.json").read_text()) | {"_name_or_path": "tester/base"}
    (base / "config.json").write_text(json.dumps(config))
    (base / "README.md").write_text("---\nlicense: mit\n---\n# base\n")
    python(fake_hub, "-c", PUBLISH, base, "tester/base")
    (base / "README.md").unlink()
    run = tmp_path / "run"
    made_run(run, base, recipe={})
    facts = {"base": str(base), "dataset": "org/data", "rewards": [], "adapter": None}
    args = GRPOConfig(output_dir=str(run), use_cpu=True, report_to="none", max_completion_length=16)
    tokenizer = AutoTokenizer.from_pretrained(base)
    whole = CardFacts(**facts, has_adapter=True, steps=1, tokenizer=tokenizer)
    write_model_card(run, whole, args, {})

    python(fake_hub, "-m", "grpo_hf.cli", "push", run, "tester/mine")
    card = ModelCard(fake_hub.files("tester/mine")["README.md"].decode())
    assert (card.data.base_model, card.data.license) == ("tester/base", "mit")
    assert "`llama` ([tester/base](https://huggingface.co/tester/base))" in card.text
    pushed = json.loads(fake_hub.files("tester/mine")["adapter_config.json"])
    assert pushed["base_model_name_or_path"] == "tester/base"
    assert python(fake_hub, "-c", code_of(card.text)) == f"{answer_of(base, run)}\n"


def test_the_pushed_weights_are_the_adapter_s_alone(pushed: Pushed):
    names = load_file(pushed.folder / "adapter_model.safetensors")
    assert names and all(".lora_" in name for name in names)
    assert json.loads(pushed.files["adapter_config.json"])["r"] == 4


def test_the_card_says_what_the_run_was(pushed: Pushed):
    text, settings = pushed.card.text, tables(pushed.card.text)
    assert text.lstrip().startswith("# demo\n")
    assert f"from `{pushed.base.name}` on `embedded:word_problems" in text
    assert settings["Rewards"] == {
        "reward": ["weight", "what it pays for"],
        "---": ["---", "---"],
        "gsm8k": ["1", GSM8K],
        "answer_format": ["0.25", ANSWER_FORMAT],
        "letters.py:vowels(letters='eio')": ["2", ""],
    }
    objective = text.partition("## Objective")[2].partition("##")[0]
    for part in (
        "loss `grpo`",
        "β = 0.04",
        "reference `initial`",
        "scaled by `group`",
        "ratio per token",
    ):
        assert part in objective
    expected = {
        "num_generations": "4",
        "max_completion_length": "16",
        "learning_rate": "0.01",
        "temperature": "1",
    }
    expected |= {
        "lr_scheduler_type": "constant_with_warmup",
        "lora_r": "4",
        "lora_alpha": "8",
        "optimizer steps": "2",
        "seed": "42",
    }
    assert {name: settings["Hyperparameters"][name] for name in expected} == {
        k: [v] for k, v in expected.items()
    }


def test_the_card_s_results_are_those_of_the_answers_on_disk(pushed: Pushed):
    rows = read_lines(pushed.folder / "evaluation.jsonl")
    results = tables(pushed.card.text)["Results"]
    assert len(rows) == 8 and "Accuracy on 8 held-out prompts" in pushed.card.text
    for name, shown in (("base", "base"), ("adapter", "with this adapter")):
        right = sum(row[name]["right"] for row in rows)
        # The untrained model; the interval is then [0, z² / (n + z²)] = [0, 3.8415 / 11.8415].
        assert right == 0
        assert results[shown] == ["0.000", "0.000 to 0.256"]
    # No answer differs, and eight rows cannot say that none ever would.
    same = compare([False] * 8, [False] * 8)
    assert -0.3 < same.low < 0 < same.high < 0.3
    interval = f"{same.low:+.3f} to {same.high:+.3f}"
    assert results["difference (paired)"] == ["+0.000", interval]


def test_the_card_holds_no_local_path(pushed: Pushed):
    text = pushed.files["README.md"].decode()
    assert not LOCAL_PATH.search(text)
    assert pushed.folder.parent.name not in text and "my_rewards" not in text
    assert LOCAL_PATH.search(f"on `{pushed.folder}`") and not LOCAL_PATH.search(
        "https://arxiv.org/abs/2402 org/name"
    )


def test_the_card_s_metadata_names_no_base_that_the_hub_does_not_have(pushed: Pushed):
    data = pushed.card.data.to_dict()
    (index,) = data.pop("model-index")
    assert data == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["grpo", "grpo-hf", "trl"],
    }
    assert index["name"] == "demo"
    assert "POST /api/validate-yaml" in pushed.hub.requests


def test_the_pushed_recipe_describes_the_run_again(pushed: Pushed):
    recipe = read_recipe(["--config", str(pushed.folder / "recipe.yaml")])
    assert (recipe.training.max_steps, recipe.training.reward_weights) == (2, [1.0, 0.25, 2.0])
    assert load_reward(recipe.task.rewards[2], relative_to=recipe.folder).options == {
        "letters": "eio"
    }


@pytest.fixture
def card(tmp_path: Path) -> Callable[..., ModelCard]:
    """Write the card of a run of which only what is given is special."""

    def write(
        *rewards: Any,
        results: dict[str, Any] | None = None,
        named: dict[str, Any] | None = None,
        template_options: dict[str, Any] | None = None,
        **special: Any,
    ) -> ModelCard:
        specs = [load_reward(reward).spec for reward in rewards or ["gsm8k"]]
        usual = {
            "base": "org/base",
            "dataset": "unnamed data",
            "rewards": [(spec, 1.0) for spec in specs],
            "adapter": LoraConfig(),
            "has_adapter": True,
            "steps": 7,
        }
        folder = tmp_path / "run"
        args = GRPOConfig(output_dir=str(folder), use_cpu=True, report_to="none")
        args.chat_template_kwargs = template_options
        facts = CardFacts(**usual | special)
        write_model_card(folder, facts, args, results or {}, **named or {})
        return ModelCard.load(folder / "README.md")

    return write


def test_a_run_without_evaluation_claims_no_results(card):
    text = card().text
    assert "Results" not in text and "accuracy" not in text.lower()
    assert "## Citation" in text


def test_a_prompt_that_began_the_answer_is_spoken_of(card, tiny_checkpoint: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    said = "In training the prompts ended with the beginning of an answer"
    for continues in (True, False):
        options = {"continue_final_message": continues}
        text = card(template_options=options, tokenizer=tokenizer).text
        assert (said in text) == continues


def test_the_card_of_an_older_run_is_made_anew(card, tmp_path: Path):
    """Whose facts lack what is noted since; an evaluation ended with a traceback."""
    before = card().text
    file = tmp_path / "run" / ".card.json"
    facts = json.loads(file.read_text())
    for name in ("begins_answers", "base_is_folder", "own_weights"):
        facts.pop(name)
    file.write_text(json.dumps(facts))
    refresh_card(tmp_path / "run")
    assert ModelCard.load(tmp_path / "run" / "README.md").text == before


def test_results_are_shown_with_their_intervals(card):
    right = compare([True] * 81 + [False] * 182, [True] * 263)
    results = tables(card(results=right.as_dict()).text)["Results"]
    assert results["base"] == ["0.308", f"{right.base.low:.3f} to {right.base.high:.3f}"]
    assert results["with this adapter"][0] == "1.000"
    assert results["difference (paired)"][0] == f"{182 / 263:+.3f}"


def test_the_length_of_a_run_is_that_which_it_took(card):
    assert "num_train_epochs" in card().text and "`max_steps`" not in card().text


def test_a_reward_that_calls_every_answer_right_cannot_tell(card):
    said = "The reward gives its full mark, 1.0, to all answers, so this says nothing"
    assert said in card(results=compare([True] * 40, [True] * 40).as_dict()).text
    assert said not in card(results=compare([True] * 39 + [False], [True] * 40).as_dict()).text


def test_prompts_that_were_trained_on_are_named_beside_the_results(card, tmp_path: Path):
    results = compare([True] * 20 + [False] * 20, [True] * 40).as_dict() | {"in_training": 8}
    said = "8 of 40 held-out prompts are also in the training data."
    found = card(results=results)
    assert said in found.text
    (result,) = found.data.eval_results
    assert result.metric_args["prompts_in_training_data"] == 8
    write_evaluation(tmp_path / "run")
    file = tmp_path / "run" / "evaluations" / "svamp.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"in_training": 2}))
    found = card(results=results | {"in_training": 0})
    assert said not in found.text
    assert "2 of 2 prompts of svamp are also in the training data." in found.text
    by_name = {result.dataset_name: result.metric_args for result in found.data.eval_results}
    assert by_name["svamp"]["prompts_in_training_data"] == 2


def test_what_was_held_out_has_one_name_and_one_accuracy(card, tmp_path: Path):
    results = compare([True] * 16 + [False] * 24, [True] * 24 + [False] * 16).as_dict()
    (tmp_path / "run").mkdir()
    # 0.4 and 0.6 of its problems are right, as of the run's own.
    write_evaluation(tmp_path / "run", "held_out")
    file = tmp_path / "run" / "evaluations" / "held_out.json"
    summary = json.loads(file.read_text())
    base = summary["base"]
    for problems, right, own in ((40, 0.4, 0), (10, 0.4, 1), (40, 0.5, 1)):
        judged = {"base": base | {"accuracy": base["accuracy"] | {"value": right}}}
        facts = {"problems": problems, "in_training": 3}
        file.write_text(json.dumps(summary | facts | judged))
        found = card(results=results)
        assert "held_out" not in found.text.partition("## Objective")[0]
        assert f"3 of {problems} held-out prompts are also" in found.text
        # What was answered with more room, or judged by another reward, is another accuracy; and a
        # part of what was held out says less than the comparison of the run, which then stays.
        shown = found.text.count(f"| held-out prompts | {problems} | accuracy, greedy |")
        named = {(each.dataset_name, each.metric_name) for each in found.data.eval_results}
        assert (shown, ("unnamed data, held out", "accuracy") in named) == (own, bool(own))
        assert ("unnamed data, held out", "accuracy, greedy") in named


@pytest.mark.parametrize(
    ("files", "name", "found"),
    [
        ({"config.json": '{"_name_or_path": "org/base"}'}, "llama", "org/base"),
        ({"config.json": '{"_name_or_path": "/home/me/llama"}'}, "llama", None),
        ({"README.md": "---\nbase_model: org/base\n---\n# x\n"}, "llama", "org/base"),
        ({"README.md": "---\nbase_model: [org/base, org/b]\n---\n"}, "llama", "org/base"),
        ({"README.md": "---\n: [torn\n---\n"}, "llama", None),
        ({"adapter_config.json": '{"base_model_name_or_path": "org/base"}'}, "llama", "org/base"),
        ({"config.json": "[1]"}, "hub/models--org--base/snapshots/0a1b", "org/base"),
        ({"config.json": "{}"}, "llama", None),
    ],
)
def test_a_folder_may_say_which_model_of_the_hub_it_is(
    files: dict[str, str], name: str, found: str | None, tmp_path: Path
):
    (tmp_path / name).mkdir(parents=True)
    for file, text in files.items():
        (tmp_path / name / file).write_text(text)
    assert hub_base(str(tmp_path / name)) == found


def test_a_card_grows_with_its_run_and_what_was_edited_stays(card, tmp_path: Path, capsys):
    text = card().text
    for absent in ("## Curves", "## Evaluations", "## Licence", "#### 10"):
        assert absent not in text
    run = tmp_path / "run"
    (run / "report").mkdir()
    for name in ("throughput", "kl", "at_k_svamp", "rewards", "of_its_own"):
        (run / "report" / f"{name}.png").touch()
    (run / "gaming.json").write_text('[{"text": "116 of 200 answers were #### 10."}]')
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    side = {"accuracy": share, "pass_at": {"1": share, "2": share, "16": share}, "maj_at": {}}
    summary = {"set": "svamp", "problems": 90, "base": side, "adapter": side, "difference": side}
    (run / "evaluations").mkdir()
    (run / "evaluations" / "svamp.json").write_text(json.dumps(summary))
    (run / "evaluations" / "torn.json").write_text("{")
    refresh_card(run, repo="me/mine", find_license=lambda name: f"that of {name}")
    written = ModelCard.load(run / "README.md")
    # In the order of the page, each with what to look for.
    pictures = re.findall(r"^!\[(.*)\]\(report/(.*)\.png\)$", written.text, re.MULTILINE)
    assert pictures == [
        ("pass@k: svamp", "at_k_svamp"),
        ("Reward", "rewards"),
        ("KL divergence from the reference", "kl"),
        ("Tokens per second", "throughput"),
        ("of its own", "of_its_own"),
    ]
    assert "**Reward.** The mean of each reward over the completions of a step.\n" in written.text
    assert "- 116 of 200 answers were #### 10." in written.text
    assert "that of org/base, as the base." in written.text
    assert written.text.count("| svamp | 90 |") == 3
    results = {each.metric_name: each for each in written.data.eval_results}
    assert list(results) == ["accuracy, greedy", "pass@1", "pass@16"]
    assert results["pass@16"].metric_value == 0.5
    assert results["pass@16"].metric_args == {"interval_95": [0.4, 0.6], "base_model": 0.5}
    assert 'name = "me/mine"' in written.text and "# mine\n" in written.text

    (run / "README.md").write_bytes(b"# My caf\xe9\n")
    refresh_card(run)
    assert (run / "README.md").read_bytes() == b"# My caf\xe9\n"
    (run / "README.md").write_text("# My own\n")
    refresh_card(run)
    assert (run / "README.md").read_text() == "# My own\n"
    assert capsys.readouterr().out.count("README.md was edited, and stays as it is.") == 2


def test_the_prompt_of_a_recipe_is_shown_as_the_model_reads_it(card, tiny_checkpoint: Path):
    form = PromptForm(chat=True, system_prompt="Be\nbrief.", instruction="End with ####.")
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    text = card(prompt_form=form, tokenizer=tokenizer).text
    assert "> Be\n> brief.\n" in text and "> End with ####.\n" in text
    rendered = re.findall(r"```text\n(.*?)\n```", text, re.DOTALL)
    assert rendered == ["<|system|>Be\nbrief.<|user|>Your text here.\nEnd with ####.<|assistant|>"]


def test_a_base_and_a_dataset_on_the_hub_become_metadata(card):
    data = card(base="org/base-1.5B", dataset="openai/gsm8k (train)").data
    assert data.base_model == "org/base-1.5B"
    assert data.datasets == ["openai/gsm8k"]


@pytest.mark.parametrize("kind", ["absolute", "relative", "home", "embedded"])
def test_local_names_become_no_metadata(card, kind: str, tmp_path: Path, monkeypatch):
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    name = {
        "absolute": str(tmp_path / "models" / "llama"),
        "relative": "models/llama",
        "home": "~/llama",
        "embedded": "llama",
    }[kind]
    written = card(base=name, dataset=name)
    assert "Trained from `llama` on `llama`" in written.text
    assert written.data.base_model is None and written.data.datasets is None


def test_an_unnamed_model_and_unset_data_are_called_so(card):
    assert "Trained from `unnamed model` on `unnamed data`" in card(base="").text


def test_names_given_by_the_caller_win(card):
    written = card(named={"model_name": "Mine", "tags": "math"}, dataset="org/data")
    assert "# Mine\n" in written.text and "on [org/data](https://hugg" in written.text
    assert written.data.datasets == ["org/data"]
    assert written.data.tags == ["grpo", "grpo-hf", "math", "trl"]


def test_names_given_to_the_trainer_win(make_trainer: Callable[..., GRPOTrainer], tmp_path: Path):
    trainer = make_trainer(peft_config=LoraConfig(r=4, target_modules="all-linear"))
    trainer.create_model_card(model_name="Mine", dataset_name="org/data", tags="math")
    written = ModelCard.load(tmp_path / "run" / "README.md")
    assert "# Mine\n" in written.text and "on [org/data](https://hugg" in written.text
    assert written.data.datasets == ["org/data"]
    assert written.data.tags == ["grpo", "grpo-hf", "math", "trl"]
    trainer.create_model_card()
    written = ModelCard.load(tmp_path / "run" / "README.md")
    assert "# run\n" in written.text and "on `unnamed data`" in written.text


def test_a_lambda_is_named_by_where_it_stands(card):
    rewards = tables(card(lambda completions, **columns: [0.0] * len(completions)).text)["Rewards"]
    (shown,) = rewards.keys() - {"reward", "---"}
    assert shown.endswith("<lambda>") and rewards[shown] == ["1", ""]


def test_a_file_reward_keeps_its_file_name_and_options(card, tmp_path: Path):
    folder = tmp_path.joinpath("a folder (mine)", *["deep" * 10] * 6)
    folder.mkdir(parents=True)
    (folder / "letters.py").write_text(VOWELS)
    for option in ("'xyz'", "'a/b/c'", "'a|b'", "'/'", repr("e" * 300)):
        rewards = tables(card(f"{folder}/letters.py:vowels(letters={option})").text)["Rewards"]
        escaped = option.replace("|", "\\|")
        assert rewards.keys() - {"reward", "---"} == {f"letters.py:vowels(letters={escaped})"}


def test_a_full_model_says_transformers(card):
    written = card(adapter=None, has_adapter=False)
    assert written.data.library_name == "transformers"
    assert not any(name.startswith("lora") for name in tables(written.text)["Hyperparameters"])


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("/home/me/models/llama", "llama"),
        ("/home/me/models/llama/", "llama"),
        ("../llama", "llama"),
        ("~/llama", "llama"),
        ("a/b/llama", "llama"),
        ("org/llama", "org/llama"),
        ("gpt2", "gpt2"),
        ("x" * 5000, "x" * 5000),
    ],
)
def test_public_name(name: str, public: str):
    assert public_name(name) == public
