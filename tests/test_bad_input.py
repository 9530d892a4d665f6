"""Every mistake that a user can make with a run ends before a model is loaded, with exit code 2
and the way out.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from support.programs import load_recipe
from support.vllm import vllm_installed
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from grpo_hf.durability import whole_checkpoints
from grpo_hf.reporting import report_to

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "recipes" / "gsm8k.py"
ROWS = [{"question": f"How much is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(8)]


class ModelLoadedError(BaseException):
    """Stands for the start of the expensive part."""


@pytest.fixture
def no_model(monkeypatch):
    def from_pretrained(*_, **__):
        raise ModelLoadedError

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)


@pytest.fixture
def run(tmp_path, tiny_checkpoint, no_model, capsys):
    """`recipes/gsm8k.py` with settings that are all right but for those given; returns what it
    says on leaving.
    """
    program = load_recipe("gsm8k")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    good = {
        "model_name_or_path": str(tiny_checkpoint),
        "dataset_path": str(tmp_path / "train.jsonl"),
        "rewards": ["gsm8k"],
        "output_dir": str(tmp_path / "run"),
        "max_completion_length": 16,
        "per_device_train_batch_size": 8,
        "max_steps": 1,
        "eval_rows": 2,
        "use_cpu": True,
        "report_to": "none",
    }

    def main(*flags, **settings):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(good | settings))
        with pytest.raises(SystemExit) as left:
            program.main(["--config", str(file), *flags])
        said = capsys.readouterr()
        assert left.value.code == 2
        assert said.err.startswith("error: ")
        assert "Traceback" not in said.err
        return said.err

    return main


def in_a_process(*command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_without_a_mistake_the_model_is_loaded(run):
    with pytest.raises(ModelLoadedError):
        run()


@pytest.mark.long
def test_as_a_user_sees_it():
    done = in_a_process(str(PROGRAM), "--reward", "gsm8k")
    assert done.returncode == 2
    assert done.stderr.endswith(
        "error: flag --reward is not known. Did you mean '--rewards'? Try --help, or "
        "`grpo-hf settings`.\n"
    )
    assert "Traceback" not in done.stderr


class TestSettings:
    def test_unknown_key(self, run):
        text = run(learning_rat=1.0)
        assert (
            "recipe.yaml: setting 'learning_rat' is not known. Did you mean 'learning_rate'?"
            in text
        )

    def test_unknown_flag(self, run):
        assert "flag --num-generation is not known. Did you mean '--num_generations'?" in run(
            "--num-generation", "4"
        )

    def test_a_value_that_does_not_fit(self, run):
        assert "recipe.yaml: max_steps is 'many' (str); expected int." in run(max_steps="many")

    def test_a_loss_that_trl_does_not_have(self, run):
        assert "loss_type is 'grop' (str); expected one of grpo, dapo, dr_grpo" in run(
            loss_type="grop"
        )
        assert "argument --loss_type/--loss-type: invalid choice: 'grop'" in run(
            "--loss_type", "grop"
        )

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"learning_rate": -1e-5}, "learning_rate is -1e-05; expected a number that is not"),
            ({"learning_rate": float("nan")}, "learning_rate is nan; expected"),
            ({"max_steps": 0, "num_train_epochs": 0}, "there is nothing to train"),
            ({"max_completion_length": 0}, "max_completion_length is 0; expected a number above 0"),
            ({"top_p": 2.0}, "top_p is 2.0; expected a number from 0 to 1"),
            ({"adam_beta1": 1.5}, "adam_beta1 is 1.5; expected a number from 0 to 1"),
            ({"lora_r": 0}, "the adapter does not fit the model: `r` should be a positive"),
            ({"lora_dropout": 3.0}, "the adapter does not fit the model: dropout"),
            ({"use_vllm": True, "vllm_mode": "colocate"}, "vLLM is not installed"),
        ],
    )
    def test_values_that_mean_nothing(self, run, settings, said):
        assert said in run(**settings)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"vllm_mode": "nonsense"}, "'nonsense'; expected one of 'colocate', 'server'"),
            ({"vllm_model_impl": "mine"}, "vllm_model_impl is 'mine'; expected one of 'vllm'"),
            ({"vllm_importance_sampling_mode": "x"}, "expected one of 'token_truncate', 'token_"),
            ({"vllm_importance_sampling_clip_max": -1.0}, "is -1.0; expected a number above 0"),
            ({"vllm_gpu_memory_utilization": 2.0}, "2.0; expected a number above 0 up to 1"),
            ({"vllm_gpu_memory_utilization": float("nan")}, "is nan; expected a number above 0"),
            ({"vllm_tensor_parallel_size": -1}, "is -1; expected a number from 1 on"),
            ({"vllm_tensor_parallel_size": 2}, "is 2, and 1 process trains"),
            ({"vllm_max_model_length": 0}, "vllm_max_model_length is 0; expected"),
            ({"vllm_max_model_length": 4}, "vllm_max_model_length is 4, and the longest prompt"),
            ({"vllm_adapter_dir": "/proc/none"}, "nothing can be written into /proc/none"),
            ({"vllm_mode": "server", "vllm_server_timeout": float("nan")}, "is nan; expected"),
            ({"vllm_mode": "server", "vllm_server_port": 99999}, "from 1 up to 65535"),
        ],
    )
    def test_vllm_s_settings(self, run, settings, said):
        with vllm_installed():
            assert said in run(use_vllm=True, **settings)

    def test_a_prompt_that_vllm_never_reads_may_be_longer_than_its_room(self, run, tmp_path):
        """A held-out prompt is for the comparison, unless the training evaluates on it."""
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        long = {"question": "How many? " * 20, "answer": "4"}
        (folder / "test.jsonl").write_text(json.dumps(long) + "\n")
        settings = {"use_vllm": True, "vllm_max_model_length": 60, "dataset_path": str(folder)}
        with vllm_installed():
            with pytest.raises(ModelLoadedError):
                run(**settings)
            said = run(**settings, eval_strategy="steps", eval_steps=1)
        assert "vllm_max_model_length is 60, and the longest prompt has" in said

    @pytest.mark.parametrize(
        "url",
        [
            "nonsense",
            "localhost:8000",
            "http://",
            "http://a:port",
            "http://a:99999",
            "ftp://a:1",
            "file:///etc/passwd",
            "http://http://a:80",
            ",",
        ],
    )
    def test_what_is_no_address_of_a_server(self, run, url):
        text = run(use_vllm=True, vllm_mode="server", vllm_server_base_url=url)
        assert f"vllm_server_base_url: {url!r} is no address of a server; expected one as" in text

    @pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no.such.host.invalid:80"])
    def test_nobody_at_the_address_of_a_server(self, run, url, caplog):
        settings = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": url}
        began = time.monotonic()
        text = run(**settings)
        assert f"the vLLM server {url} does not answer" in text
        assert "waited for with --vllm_server_timeout" in text and "vllm serve" in text
        assert "vLLM" not in caplog.text and time.monotonic() - began < 30
        # Who says for how long is told that it is waited, before the time is up.
        text = run(**settings, vllm_server_timeout=0.2)
        assert "for 0.2 s (--vllm_server_timeout)" in text
        (record,) = (each for each in caplog.records if "vLLM" in each.getMessage())
        assert f"{url} does not answer" in record.getMessage()
        assert "It is waited for, 0.2 s at most" in record.getMessage()

    def test_other_machines_need_not_see_the_server(self, run, monkeypatch):
        url = "http://127.0.0.1:9"
        settings = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": url}
        monkeypatch.setenv("GROUP_RANK", "1")
        with pytest.raises(ModelLoadedError):
            run(**settings)

    @pytest.mark.parametrize("model", ["a folder", "embedded:tiny"])
    def test_matrices_that_the_model_does_not_have(self, run, model):
        settings = {"model_name_or_path": model, "cold_start_steps": 2}
        text = run(lora_target_modules=["q_prj"], **settings if model != "a folder" else {})
        assert "q_prj" in text and "Did you mean 'q_proj'? Its matrices are called q_proj" in text

    @pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
    def test_a_logger_that_is_not_installed(self, run, name, monkeypatch):
        name_in_transformers = "get_available_reporting_integrations"
        monkeypatch.setattr(report_to, name_in_transformers, lambda: ["mlflow"])
        text = run(report_to=[name])
        assert f"report_to names {name}, which is not installed. Install it" in text

    def test_a_logger_that_nobody_knows(self, run):
        assert "wanbd is not supported" in (text := run(report_to=["wanbd"]))
        assert "Did you mean 'wandb'?" in text

    def test_group_of_one(self, run):
        assert "num_generations is 1; a group needs at least 2 completions" in run(
            "--num_generations", "1"
        )

    def test_batch_that_tears_a_group(self, run):
        text = run("--num_generations", "6")
        assert (
            "1 process x per_device_train_batch_size 8 x gradient_accumulation_steps 1 "
            "= 8 completions" in text
        )
        assert "--per_device_train_batch_size 12, or --num_generations" in text

    def test_no_model_named(self, run):
        assert "no model named: give --model_name_or_path" in run(model_name_or_path=None)


class TestRewards:
    def test_none_named(self, run):
        assert "no reward named: give --rewards" in run(rewards=[])

    def test_unknown_name(self, run):
        text = run(rewards=["gsm9k"])
        assert "reward 'gsm9k' is not known. Did you mean 'gsm8k'?" in text
        assert "grpo-hf rewards list" in text

    def test_unknown_option(self, run):
        assert "has no option 'max_len'. Did you mean 'max_length'?" in run(
            "--rewards", "overlong(max_len=8)"
        )

    def test_file_that_is_not_there(self, run, tmp_path):
        assert f"there is no reward file {tmp_path / 'mine.py'}" in run(rewards=["./mine.py:score"])

    def test_weights_that_do_not_fit(self, run):
        text = run("--reward_weights", "1", "2")
        assert (
            "reward_weights has 2 entries for 1 rewards (gsm8k); expected one weight per reward"
            in text
        )

    def test_eval_reward_that_is_not_among_them(self, run):
        assert "eval_reward is 'gsm8', which is not among the rewards gsm8k. Did you mean" in run(
            eval_reward="gsm8"
        )


class TestData:
    def test_none_named(self, run):
        assert "no dataset named: give --dataset_path" in run(dataset_path=None)

    def test_missing_file(self, run, tmp_path):
        text = run(dataset_path=str(tmp_path / "trian.jsonl"))
        meant = f"Did you mean '{tmp_path}/train.jsonl'?"
        assert f"trian.jsonl: no such dataset file or folder. {meant}" in text

    def test_a_common_ending_makes_no_names_alike(self, run, tmp_path):
        (tmp_path / "zh.jsonl").touch()
        text = run(dataset_path=str(tmp_path / "nothere.jsonl"))
        assert "nothere.jsonl: no such dataset file or folder. Expected a" in text

    def test_missing_split(self, run):
        assert "the split 'training' was asked for" in run(dataset_train_split="training")

    def test_column_that_a_reward_needs(self, run, tmp_path):
        (tmp_path / "other.jsonl").write_text('{"question": "q", "solution": "4"}\n' * 9)
        text = run(dataset_path=str(tmp_path / "other.jsonl"))
        assert "reward 'gsm8k' needs the column 'answer'" in text
        assert "Its columns are question, solution." in text
        assert "--columns answer=<its name there>" in text

    def test_column_that_a_reward_needs_in_the_test_split(self, run, tmp_path):
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "train.jsonl").write_text((tmp_path / "train.jsonl").read_text())
        (folder / "test.jsonl").write_text('{"question": "q"}\n')
        assert f"'answer', which {folder / 'test.jsonl'} does not have" in run(
            dataset_path=str(folder)
        )

    @pytest.mark.parametrize("content", ["", "\n\n"])
    def test_empty(self, run, tmp_path, content):
        (tmp_path / "empty.jsonl").write_text(content)
        assert "empty.jsonl: no usable row: it holds no rows." in run(
            dataset_path=str(tmp_path / "empty.jsonl")
        )

    def test_no_usable_row(self, run, tmp_path):
        (tmp_path / "nulls.jsonl").write_text('{"question": "q", "answer": null}\n' * 9)
        text = run(dataset_path=str(tmp_path / "nulls.jsonl"), eval_rows=0)
        assert "no usable row: 9 of 9 rows" in text
        assert "nulls.jsonl:1: answer is empty" in text

    def test_too_few_rows_to_hold_some_out(self, run):
        text = run(eval_rows=8)
        assert "has no split 'test' and 8 rows, too few to hold out 8 of them" in text
        assert "--eval_rows" in text

    @pytest.mark.parametrize("embedded", [False, True])
    def test_too_few_rows_for_a_step(self, run, tmp_path, embedded):
        (tmp_path / "one.jsonl").write_text('{"question": "1?", "answer": "#### 1"}\n\n{}\n')
        model = {"model_name_or_path": "embedded:tiny", "cold_start_steps": 1} if embedded else {}
        said = run(
            dataset_path=str(tmp_path / "one.jsonl"),
            eval_rows=0,
            num_generations=4,
            max_steps=-1,
            num_train_epochs=3,
            **model,
        )
        assert "one.jsonl has 1 prompt, and a generation batch needs 2 different ones" in said
        assert "Give at least 2 rows to train on, or lower per_device_train_batch_size" in said

    def test_nothing_to_evaluate_on(self, run):
        said = run(eval_rows=0, eval_strategy="steps", eval_steps=1)
        assert "eval_strategy is 'steps' and eval_rows 0" in said

    def test_prompt_longer_than_the_context(self, run, tmp_path):
        rows = [*ROWS, {"question": "1" * 300, "answer": "#### 1"}]
        (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = run(dataset_path=str(tmp_path / "long.jsonl"), eval_rows=0)
        assert (
            "1 of 9 prompts do not fit the model's context of 256 tokens: the longest "
            "(usable row 8) has 30" in text
        )
        assert "max_completion_length adds 16" in text

    def test_completions_longer_than_the_context(self, run):
        assert "8 of 8 prompts do not fit" in run(max_completion_length=250, eval_rows=0)


class TestModelFolder:
    @pytest.fixture
    def folder(self, tiny_checkpoint, tmp_path):
        return shutil.copytree(tiny_checkpoint, tmp_path / "model")

    def test_missing(self, run, folder):
        text = run(model_name_or_path=f"{folder.parent}/modle")
        assert f"modle: no such model folder. Did you mean '{folder}'?" in text

    def test_no_configuration(self, run, folder):
        (folder / "config.json").unlink()
        assert "no model in this folder: it has no config.json. It holds " in run(
            model_name_or_path=str(folder)
        )

    def test_no_tokenizer(self, run, folder):
        for file in folder.glob("tokenizer*"):
            file.unlink()
        text = run(model_name_or_path=str(folder))
        assert f"{folder}: the model folder holds no tokenizer" in text
        assert "tokenizer.save_pretrained(folder)" in text

    def test_no_weights(self, run, folder):
        (folder / "model.safetensors").unlink()
        assert f"{folder}: the model folder holds no weights" in run(model_name_or_path=str(folder))

    @pytest.mark.parametrize(
        ("file", "what"), [("config.json", "model"), ("tokenizer.json", "tokenizer")]
    )
    def test_broken_files(self, run, folder, file, what):
        (folder / file).write_text("{")
        assert f"the {what} in {folder} cannot be read (" in run(model_name_or_path=str(folder))

    def test_messages_without_a_chat_template(self, run, folder, tmp_path):
        (folder / "chat_template.jinja").unlink()
        rows = [
            {"messages": [{"role": "user", "content": row["question"]}], "answer": row["answer"]}
            for row in ROWS
        ]
        (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = run(model_name_or_path=str(folder), dataset_path=str(tmp_path / "chat.jsonl"))
        assert "the tokenizer has no chat template to render them. Use an instruct model" in text

    def test_text_without_a_chat_template_is_no_mistake(self, run, folder):
        (folder / "chat_template.jinja").unlink()
        with pytest.raises(ModelLoadedError):
            run(model_name_or_path=str(folder))


@pytest.fixture
def offline(monkeypatch):
    """What HF_HUB_OFFLINE=1 sets when the libraries are imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


class TestAdapter:
    def test_a_name_that_is_nowhere(self, run, offline):
        assert "adapter 'nope' c" in run(adapter="nope")

    @pytest.fixture
    def adapter(self, tiny_checkpoint, tmp_path):
        """A function that saves a fresh LoRA adapter of a model with this configuration."""

        def save(config=None, **changes):
            config = config or AutoConfig.from_pretrained(tiny_checkpoint, **changes)
            model = AutoModelForCausalLM.from_config(config)
            model.name_or_path = "somebody/other-model"
            get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")).save_pretrained(
                tmp_path / "adapter"
            )
            return str(tmp_path / "adapter")

        return save

    def test_that_fits_is_no_mistake(self, run, adapter):
        with pytest.raises(ModelLoadedError):
            run(adapter=adapter())

    def test_of_another_size(self, run, adapter):
        text = run(adapter=adapter(hidden_size=64))
        assert "does not fit the base: model.layers.0." in text
        assert "does not fit the base's (" in text
        assert "It was trained on somebody/other-model; give that as --model_name_or_path." in text

    def test_of_more_layers(self, run, adapter):
        assert "model.layers.4." in (text := run(adapter=adapter(num_hidden_layers=5)))
        assert "the base has no such layer" in text

    def test_of_another_architecture(self, run, adapter):
        text = run(adapter=adapter(GPT2Config(n_embd=128, n_layer=2, n_head=4, vocab_size=100)))
        assert "does not fit the base: transformer.h.0." in text
        assert "the base has no such layer" in text

    def test_missing(self, run, tmp_path):
        assert "no such adapter folder" in run(adapter=str(tmp_path / "adapter"))

    def test_without_its_weights(self, run, adapter):
        folder = adapter()
        Path(folder, "adapter_model.safetensors").unlink()
        assert "no adapter_model.safetensors beside adapter_config.json" in run(adapter=folder)


class TestOutput:
    @pytest.mark.parametrize(
        "trace", ["metrics.jsonl", "adapter_config.json", "model.safetensors", "checkpoint-5/x"]
    )
    def test_folder_that_holds_another_run(self, run, tmp_path, trace):
        folder = tmp_path / "run"
        (folder / trace).parent.mkdir(parents=True)
        (folder / trace).write_bytes(b"precious\x00\xff")
        before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        text = run()
        assert (
            f"{folder} holds a run already ({trace.partition('/')[0]}), which is not overwritten"
            in text
        )
        way = (
            "--resume_from_checkpoint auto"
            if trace.startswith("checkpoint") or not trace.startswith("model")
            else "It has no checkpoint: remove or rename it"
        )
        assert way in text
        assert "--output_dir" in text
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before

    def test_folder_that_cannot_be_written_to(self, run, tmp_path):
        (tmp_path / "file").write_text("in the way")
        text = run(output_dir=str(tmp_path / "file" / "run"))
        assert "file/run cannot be written to (Not a directory). Give another --output_dir." in text

    def test_a_file_in_its_place(self, run, tmp_path):
        (tmp_path / "file").write_text("in the way")
        assert "cannot be written to (File exists)" in run(output_dir=str(tmp_path / "file"))
        assert (tmp_path / "file").read_text() == "in the way"

    @pytest.mark.parametrize("there", [True, False])
    def test_nothing_to_resume_from(self, run, tmp_path, there):
        if there:
            (tmp_path / "run").mkdir()
        text = run("--resume_from_checkpoint", "true")
        assert f"{tmp_path / 'run'} holds no checkpoint to resume from" in text
        assert "--save_steps" in text

    @pytest.mark.parametrize("resume", ["true", "run/checkpoint-5"])
    def test_a_finished_run_is_not_resumed(self, run, tmp_path, resume, monkeypatch):
        monkeypatch.chdir(tmp_path)
        checkpoint = tmp_path / "run" / "checkpoint-5"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text('{"global_step": 5, "max_steps": 5}')
        whole_checkpoints.seal(checkpoint, {"step": 5, "settings": {}})
        text = run("--resume_from_checkpoint", resume, max_steps=5)
        assert (
            "checkpoint-5 is at step 5 of 5: the run has finished. Give a larger --max_steps"
            in text
        )

    def test_checkpoint_that_is_not_there(self, run):
        assert "--resume_from_checkpoint runs/x: no such" in run(
            "--resume_from_checkpoint", "runs/x"
        )


class TestHubNotReachable:
    MODEL = (
        "error: model 'org/model' could not be fetched from the Hub",
        "point --model_name_or_path at a local folder",
        "or try recipes/gsm8k_tiny.yaml",
    )
    DATASET = (
        "error: dataset 'org/data' could not be fetched from the Hub (",
        "point --dataset_path at a local folder or file, "
        "or use --dataset_path embedded:word_problems",
    )
    WITHOUT_WAITING = (  # huggingface_hub waits 23 s in all between its attempts
        "import runpy, sys, time; waited = []; time.sleep = waited.append; sys.argv.pop(0);"
        "import atexit; atexit.register(lambda: print(sum(waited)));"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )

    def test_offline_model(self, run, offline):
        text = run(model_name_or_path="org/model")
        assert all(part in text for part in self.MODEL)

    def test_offline_dataset(self, run, offline):
        text = run(dataset_path=None, dataset_name="org/data")
        assert all(part in text for part in self.DATASET)

    @pytest.mark.long
    @pytest.mark.parametrize("what", ["model", "dataset"])
    def test_nothing_answers(self, tmp_path, what):
        """In a process of its own: Hugging Face's libraries read their environment once."""
        flags = {
            "model": [
                "--model_name_or_path",
                "org/model",
                "--dataset_path",
                "embedded:word_problems",
            ],
            "dataset": ["--dataset_name", "org/data"],
        }[what]
        done = in_a_process(
            *(
                "-c",
                self.WITHOUT_WAITING,
                str(PROGRAM),
                *flags,
                "--output_dir",
                str(tmp_path / "run"),
                "--use_cpu",
            ),
            HF_HUB_OFFLINE="0",
            HF_ENDPOINT="http://127.0.0.1:9",
            HF_HOME=str(tmp_path),
        )
        assert done.returncode == 2, done.stderr
        assert all(
            part in done.stderr for part in (self.MODEL if what == "model" else self.DATASET)
        )
        assert "Traceback" not in done.stderr
        assert float(done.stdout) < 30  # seconds
