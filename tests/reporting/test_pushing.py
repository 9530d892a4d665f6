"""What of a finished run goes to the Hub, by `grpo-hf push`, and what a Hub that fails costs."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.fakehub import TOKEN, FakeHub

from grpo_hf.durability import whole_checkpoints
from grpo_hf.reporting.pushing import pushed_files

REPO = "tester/demo"
# Waits that a test can wait for.
PUSH = """
import sys
from grpo_hf.reporting import pushing
pushing._WAITS = (0.01, 0.02, 0.03)
from grpo_hf.cli import main
main(["push", *sys.argv[1:]])
"""
PUSHED = {
    "README.md": "# run\n",
    "metrics.jsonl": '{"step": 1, "reward": 0.5}\n',
    "adapter_model.safetensors": "weights",
    "tokenizer.json": "{}",
    "tokenizer_config.json": '{"model_max_length": 64}',
}
SAMPLES = {
    "credit.jsonl": '{"step": 1, "prompt": "secret"}\n',
    "evaluation.jsonl": '{"prompt": "secret"}\n',
    "answers_over_time.jsonl": '{"step": 1, "rows": [{"prompt": "secret"}]}\n',
    "completions/completions_00001.parquet": "secret",
}
NEVER = {
    "training_args.bin": "a pickle",
    "checkpoint-2/adapter_config.json": "{}",
    "checkpoint-2/optimizer.pt": "moments",
    "notes.txt": "mine",
    "failures.jsonl": '{"step": 1, "prompt": "secret"}\n',
    ".lock": "",
    "README.md.partial": "half",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run, whose base and data are folders of this machine."""
    folder = tmp_path / "runs" / "mine"
    for name, text in (PUSHED | SAMPLES | NEVER).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    adapter = {"base_model_name_or_path": str(tmp_path / "base"), "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    recipe = {
        "model_name_or_path": "org/base",
        "dataset_path": str(tmp_path / "data.jsonl"),
        "adapter": "~/adapters/first",
        "gguf_file": "model.gguf",
        "system_prompt": "/no_think",
        "rewards": [
            "gsm8k",
            f"{tmp_path}/a folder (mine)/mine.py:judge(model='{tmp_path}/judge', way='a/b')",
            {"../../rewards/other.py:f": {"file": str(tmp_path / "x.json"), "share": 0.5}},
        ],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def push(hub: FakeHub, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PUSH, *map(str, arguments)]
    env = hub.environment() | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_a_run_is_pushed_without_its_samples_and_folders(fake_hub: FakeHub, run: Path):
    done = push(fake_hub, run, REPO)
    assert done.returncode == 0, done.stderr
    files = fake_hub.files(REPO)
    assert set(files) == set(PUSHED) | {"adapter_config.json", "recipe.yaml"}
    for name, text in PUSHED.items():
        assert files[name] == text.encode()
    assert json.loads(files["adapter_config.json"]) == {"base_model_name_or_path": "base", "r": 4}
    assert yaml.safe_load(files["recipe.yaml"]) == {
        "model_name_or_path": "org/base",
        "dataset_path": "data.jsonl",
        "adapter": "first",
        "gguf_file": "model.gguf",
        "system_prompt": "/no_think",
        "rewards": [
            "gsm8k",
            "mine.py:judge(model='judge', way='a/b')",
            {"other.py:f": {"file": "x.json", "share": 0.5}},
        ],
    }
    for content in files.values():
        assert b"secret" not in content and str(run.parents[1]).encode() not in content
    assert fake_hub.repos["model", REPO].private
    listed, address = done.stdout.split("  not pushed: ")
    assert listed.startswith(f"pushing {len(files)} files of {run} to {REPO}:\n")
    assert set(re.findall(r"^  (\S+)  [\d,]+ bytes", listed, re.MULTILINE)) == set(files)
    left = ".lock, README.md.partial, answers_over_time.jsonl, checkpoint-2, completions,"
    assert address.startswith(left)
    assert address.endswith(f"pushed to {fake_hub.url}/{REPO} (private)\n")


@pytest.mark.long
def test_samples_and_the_public_are_asked_for(fake_hub: FakeHub, run: Path):
    done = push(fake_hub, run, REPO, "--samples", "--public")
    assert done.returncode == 0, done.stderr
    assert set(SAMPLES) <= set(fake_hub.files(REPO))
    assert not set(NEVER) & set(fake_hub.files(REPO))
    assert not fake_hub.repos["model", REPO].private
    assert done.stdout.endswith("/tester/demo (public)\n")
    # A second push finds a repository that is public, whatever it would make itself.
    assert (
        f"note: the repository {REPO} was there before, and is public."
        in push(fake_hub, run, REPO).stdout
    )


def test_a_hub_that_stumbles_is_asked_again(fake_hub: FakeHub, run: Path):
    fake_hub.failures = [503, 500]
    done = push(fake_hub, run, REPO)
    assert done.returncode == 0, done.stderr
    assert "trying again in 0.01 s" in done.stdout and "trying again in 0.02 s" in done.stdout
    assert "README.md" in fake_hub.files(REPO)


def test_a_hub_that_stays_away_names_the_command_for_later(fake_hub: FakeHub, run: Path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = push(fake_hub, run, REPO, "--samples", HF_ENDPOINT=nobody)
    assert done.returncode == 2
    assert done.stdout.count("trying again in") == 3
    command = f"grpo-hf push {run} {REPO} --samples"
    assert done.stderr.startswith("error: the Hub does not answer (")
    assert done.stderr.endswith(f"All files are in {run}. Push them later: {command}\n")


@pytest.mark.long
def test_a_refusal_is_not_tried_again(fake_hub: FakeHub, run: Path):
    refused = push(fake_hub, run, REPO, HF_TOKEN="hf_wrong")
    assert refused.returncode == 2 and "trying again" not in refused.stdout
    assert f"error: the Hub refused the push to {REPO} (" in refused.stderr
    assert "`hf auth login`" in refused.stderr and f"grpo-hf push {run} {REPO}" in refused.stderr
    fake_hub.failures = [403]
    assert "the Hub refused the push" in push(fake_hub, run, REPO).stderr


@pytest.mark.parametrize(
    ("repo", "environment", "message"),
    [
        ("tester/a b", {}, "tester/a b cannot be pushed to: "),
        (REPO, {"HF_HUB_OFFLINE": "1"}, "the Hub does not answer (Cannot reach"),
        (REPO, {"HF_TOKEN": ""}, "tester/demo"),
    ],
)
def test_what_cannot_be_pushed_says_why(
    fake_hub: FakeHub, run: Path, repo: str, environment: dict[str, str], message: str
):
    done = push(fake_hub, run, repo, **environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: {message}" in done.stderr or message in done.stderr


@pytest.mark.long
def test_a_push_that_was_interrupted_goes_on_with_what_is_missing(fake_hub: FakeHub, run: Path):
    (run / "second").mkdir()
    large = {"adapter_model.safetensors": "a", "second/adapter_model.safetensors": "b"}
    for name, letter in large.items():
        (run / name).write_text(letter * 20_000)
    fake_hub.upload_failures = [0, 400]
    assert push(fake_hub, run, REPO).returncode == 2
    assert REPO not in fake_hub.repos or not fake_hub.files(REPO)
    sent = uploads(fake_hub)
    assert push(fake_hub, run, REPO).returncode == 0
    assert len(uploads(fake_hub)) == len(sent) + 1, "what was there was sent again"
    for name, letter in large.items():
        assert fake_hub.files(REPO)[name] == letter.encode() * 20_000
    commits = len(fake_hub.repos["model", REPO].commits)
    assert push(fake_hub, run, REPO).returncode == 0
    assert len(uploads(fake_hub)) == len(sent) + 1
    assert len(fake_hub.repos["model", REPO].commits) <= commits + 1


def uploads(hub: FakeHub) -> list[str]:
    return [request for request in hub.requests if request.startswith("PUT /lfs/")]


def test_a_dry_run_lists_and_asks_nobody(fake_hub: FakeHub, run: Path):
    done = push(fake_hub, run, REPO, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"would push 7 files of {run} to {REPO}:\n")
    assert "  in all  " in done.stdout and "not pushed: " in done.stdout
    assert fake_hub.requests == []


@pytest.fixture
def killed(run: Path) -> Path:
    """The folder of a run that was killed after its second checkpoint, in which it saved."""
    model = {"adapter_model.safetensors": "weights", "tokenizer.json": "{}"}
    for name in [*model, "tokenizer_config.json", "adapter_config.json"]:
        (run / name).unlink()
    shutil.rmtree(run / "checkpoint-2")
    for step in (2, 4, 6):
        checkpoint = run / f"checkpoint-{step}"
        checkpoint.mkdir()
        for name, text in model.items():
            (checkpoint / name).write_text(f"{text} of step {step}")
        adapter = {"base_model_name_or_path": str(run.parents[1] / "base"), "r": 4}
        (checkpoint / "adapter_config.json").write_text(json.dumps(adapter))
        (checkpoint / "README.md").write_text("# the card as it was\n")
        (checkpoint / "optimizer.pt").write_text("moments")
        whole_checkpoints.seal(checkpoint, {"step": step})
    (run / "checkpoint-6" / "adapter_model.safetensors").write_text("torn")
    return run


@pytest.mark.long
def test_of_a_run_that_has_not_ended_the_newest_whole_checkpoint_goes(
    fake_hub: FakeHub, killed: Path
):
    listed = push(fake_hub, killed, REPO, "--dry_run").stdout
    assert fake_hub.requests == []
    done = push(fake_hub, killed, REPO)
    assert done.returncode == 0, done.stderr
    files = fake_hub.files(REPO)
    assert set(files) == {
        *("README.md", "metrics.jsonl", "recipe.yaml"),
        *("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"),
    }
    assert files["adapter_model.safetensors"] == b"weights of step 4"
    assert json.loads(files["adapter_config.json"]) == {"base_model_name_or_path": "base", "r": 4}
    assert files["README.md"] == PUSHED["README.md"].encode(), "the card is that of the run"
    for said, verb in ((listed, "would push"), (done.stdout, "pushing")):
        assert said.startswith("note: the run has not ended; this is checkpoint-4.\n")
        assert f"\n{verb} 6 files of {killed} to {REPO}:\n" in said
        assert set(re.findall(r"^  (\S+)  [\d,]+ bytes", said, re.MULTILINE)) == set(files)
        (left,) = re.findall(r"^  not pushed: (.*)$", said, re.MULTILINE)
        assert "checkpoint-2" in left and "checkpoint-4" not in left


@pytest.mark.parametrize("flags", [[], ["--dry_run"]])
def test_a_run_without_weights_is_not_pushed(fake_hub: FakeHub, killed: Path, flags: list[str]):
    for checkpoint in killed.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    done = push(fake_hub, killed, REPO, *flags)
    assert done.returncode == 2 and fake_hub.requests == []
    assert done.stderr.startswith(f"error: {killed}: its run has ended at step 1 and saved nothing")
    assert "Train again, with a smaller --save_steps." in done.stderr
    # What says how to read weights is none.
    (killed / "adapter_config.json").write_text("{}")
    done = push(fake_hub, killed, REPO, *flags)
    assert done.returncode == 2 and "saved nothing" in done.stderr and fake_hub.requests == []


def test_evaluations_and_curves_go_and_their_samples_stay(run: Path, tmp_path: Path):
    for name, text in {
        "evaluations/svamp.json": json.dumps({"set": "svamp", "data": f"{tmp_path}/svamp.jsonl"}),
        "evaluations/svamp.jsonl": "secret",
        "report/reward.png": "picture",
        "report.html": "secret",
    }.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(text)
    pushed = {file.name: file.content for file in pushed_files(run, samples=False)}
    assert {"evaluations/svamp.json", "report/reward.png"} <= set(pushed)
    assert not {"evaluations/svamp.jsonl", "report.html"} & set(pushed)
    assert json.loads(pushed["evaluations/svamp.json"])["data"] == "svamp.jsonl"
    names = {file.name for file in pushed_files(run, samples=True)}
    assert {"evaluations/svamp.jsonl", "report.html"} <= names


def test_a_folder_that_is_no_run_is_not_pushed(fake_hub: FakeHub, tmp_path: Path):
    done = push(fake_hub, tmp_path, REPO)
    assert done.returncode == 2 and "is not the output folder of a run" in done.stderr
    assert TOKEN not in done.stderr and fake_hub.requests == []


def test_an_adapter_of_another_name_is_pushed_in_its_folder(run: Path):
    (run / "second").mkdir()
    (run / "second" / "adapter_config.json").write_text("{}")
    (run / "second" / "adapter_model.safetensors").write_text("weights")
    names = {file.name for file in pushed_files(run, samples=False)}
    assert {"second/adapter_config.json", "second/adapter_model.safetensors"} <= names


def test_a_configuration_that_is_not_json_is_pushed_as_it_is(run: Path):
    (run / "generation_config.json").write_text("{ torn")
    (file,) = (f for f in pushed_files(run, samples=False) if f.name == "generation_config.json")
    assert file.content == run / "generation_config.json" and file.size == len("{ torn")
