"""Whole runs of recipes: evaluations during the training, and what rewards see of the data."""

import errno
import json
import shutil

import pytest
import yaml
from datasets import Dataset
from support.chats import SHAPES, USER
from support.questions import CHATS, one_by_one
from support.vllm import vllm_installed
from transformers import AutoTokenizer
from trl.scripts import grpo as trl_grpo

from grpo_hf.cli import main
from grpo_hf.errors import ConfigError, DataError, GrpoError
from grpo_hf.evaluation import answers, evaluate
from grpo_hf.run_files import METRICS_FILE, OVER_TIME_FILE, read_lines
from grpo_hf.run_report.record import read_run
from grpo_hf.runs import preflight, training_evaluations
from grpo_hf.runs.recipe import read_recipe
from grpo_hf.runs.train import train
from grpo_hf.runs.trained import open_run

# It notes what it sees, and pays for the length.
REWARD = """
import json

def seen(completions, prompts, **columns):
    known = {name: columns.get(name) for name in ("solution", "tools", "messages")}
    with open(__file__ + ".seen", "a") as file:
        for index, prompt in enumerate(prompts):
            row = {name: values and values[index] for name, values in known.items()}
            file.write(json.dumps({"prompt": prompt, **row}) + "\\n")
    return [float(len(str(completion))) for completion in completions]
"""


@pytest.fixture
def make(tmp_path, tiny_checkpoint):
    """A recipe on splits that are given, with short settings."""
    (tmp_path / "noting.py").write_text(REWARD)

    def recipe(splits, **settings):
        data = tmp_path / "data"
        data.mkdir()
        for name, rows in splits.items():
            (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        short = {
            "model_name_or_path": str(tiny_checkpoint),
            "lora_target_modules": "all-linear",
            "dataset_path": str(data),
            "rewards": ["./noting.py:seen"],
            "output_dir": str(tmp_path / "run"),
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "max_completion_length": 8,
            "max_steps": 2,
            "logging_steps": 1,
            "eval_rows": 0,
            "save_strategy": "no",
            "use_cpu": True,
            "report_to": "none",
            "reward_workers": 0,
        }
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(short | settings))
        return read_recipe(["--config", str(file)])

    return recipe


ACCURACY = """
def whole(completions, answer, **columns):
    texts = [each if isinstance(each, str) else each[0]["content"] for each in completions]
    # Any reward is 0 or 1 here, and not the same for all.
    return [float(len(text) % 2) for text in texts]
"""


@pytest.fixture
def greedy_passes(monkeypatch) -> list[list[str]]:
    """The prompts of each pass over a set that is answered greedily."""
    passes: list[list[str]] = []
    complete = answers.completed_batches

    def noted(model, tokenizer, prompts, *, copies, **settings):
        if copies == 1:
            passes.append([prompt[-1]["content"] for prompt in prompts])
        return complete(model, tokenizer, prompts, copies=copies, **settings)

    for module in (answers, evaluate):
        monkeypatch.setattr(module, "completed_batches", noted)
    return passes


@pytest.mark.long
def test_another_set_may_begin_its_answers_where_the_training_data_does_not(make, tmp_path):
    """The set at the end of the training opened a new turn, and `grpo-hf eval` went on."""
    (tmp_path / "whole.py").write_text(ACCURACY)
    rows = [{"prompt": f"Say {number}.", "answer": str(number)} for number in range(12)]
    begun = []
    for chat in CHATS:
        prompt = [*chat, {"role": "assistant", "content": "It is the"}]
        begun.append({"prompt": prompt, "answer": "e"})
    (tmp_path / "begun.jsonl").write_text("\n".join(map(json.dumps, begun)))
    recipe = make(
        {"train": rows[:8], "test": rows[8:]},
        rewards=["./whole.py:whole"],
        eval_data=[f"begun={tmp_path}/begun.jsonl"],
        eval_samples=0,
    )
    train(recipe)
    trained = open_run(tmp_path / "run")
    texts = []
    for row in begun:
        texts.append(
            trained.tokenizer.apply_chat_template(
                row["prompt"], continue_final_message=True, tokenize=False
            )
        )
    expected = one_by_one(trained.model, trained.tokenizer, texts, 8)
    lines = read_lines(tmp_path / "run" / "evaluations" / "begun.jsonl")
    assert [line["adapter"]["greedy"] for line in lines] == expected


def test_a_begun_answer_that_the_template_drops_is_refused_before_the_training(
    make, tmp_path, tiny_checkpoint
):
    """Nobody rendered it before the evaluation, which comes when the training has been paid for."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    thoughtless = "{{ message['content'].split('</think>')[-1] }}"
    tokenizer.chat_template = f"{{% for message in messages %}}{thoughtless}{{% endfor %}}"
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    tokenizer.save_pretrained(model)
    begun = {"role": "assistant", "content": "<think>\n\n</think>\n\nIt is the"}
    rows = [{"prompt": f"Say {number}.", "answer": "e"} for number in range(8)]
    (tmp_path / "begun.jsonl").write_text(
        json.dumps({"prompt": [{"role": "user", "content": "Say a."}, begun], "answer": "e"})
    )
    (tmp_path / "whole.py").write_text(ACCURACY)
    recipe = make(
        {"train": rows},
        rewards=["./whole.py:whole"],
        model_name_or_path=str(model),
        eval_data=[f"begun={tmp_path}/begun.jsonl"],
    )
    with pytest.raises(DataError, match=r"begun.jsonl: the model's chat template cannot render"):
        train(recipe)
    assert not (tmp_path / "run" / METRICS_FILE).exists()


@pytest.mark.long
def test_accuracies_during_the_training_and_more_sets_at_its_end(
    make, tmp_path, capsys, greedy_passes
):
    """Check that the logged accuracies are those of the final comparison, and the sets complete."""
    rows = [{"prompt": f"Say {number}.", "answer": str(number)} for number in range(12)]
    (tmp_path / "whole.py").write_text(ACCURACY)
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, rows[:4])))
    recipe = make(
        {"train": rows[:8], "test": rows[8:]},
        rewards=["./whole.py:whole"],
        eval_rows=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        metric_for_best_model="accuracy",
        learning_rate=0.05,
        eval_data=[f"other={tmp_path}/other.jsonl"],
        eval_samples=2,
    )
    comparison = train(recipe)
    # Once by the base, by the adapter at each step, and nothing again at the end.
    held_out = [asked for asked in greedy_passes if asked[0] == "Say 8."]
    assert len(held_out) == 3 and {len(asked) for asked in held_out} == {3}
    assert len(greedy_passes) == 5
    run = tmp_path / "run"
    logged = list(map(json.loads, (run / METRICS_FILE).read_text().splitlines()))
    (final,) = (row for row in logged if row["step"] == 2 and "eval_accuracy" in row)
    assert final["eval_accuracy"] == comparison.adapter.value
    assert final["eval_accuracy_base"] == comparison.base.value
    assert final["eval_accuracy_difference_low"] == comparison.low
    record = read_run(run, "run")
    for rows_of_record, names in (
        (record.steps, {"reward", "loss"}),
        (record.evaluated, {"eval_reward", "eval_accuracy"}),
    ):
        assert [row["step"] for row in rows_of_record if names <= row.keys()] == [1, 2]
    kept = read_lines(run / OVER_TIME_FILE)
    assert [line["step"] for line in kept] == [1, 2]
    # The comparison at the end is that of the last evaluation.
    for line in kept:
        for place, (found, row) in enumerate(zip(line["rows"], record.answers, strict=True)):
            assert (found["row"], found["gold"]) == (place, str(8 + place))
            assert (found["prompt"], found["base"]) == (row["prompt"], row["base"])
    assert [found["adapter"] for found in kept[1]["rows"]] == [
        row["adapter"] for row in record.answers
    ]
    assert kept[0]["rows"] != kept[1]["rows"]
    for name, problems in (("held_out", 3), ("other", 4)):
        summary = json.loads((run / "evaluations" / f"{name}.json").read_text())
        assert (summary["problems"], summary["samples"]) == (problems, 2)
        assert summary["adapter"]["pass_at"].keys() == {"1", "2"}
        lines = (run / "evaluations" / f"{name}.jsonl").read_text().splitlines()
        assert len(lines) == problems
    summary = json.loads((run / "evaluations" / "held_out.json").read_text())
    assert summary["adapter"]["accuracy"]["value"] == comparison.adapter.value
    said = capsys.readouterr().out
    assert "other: 4 problems" in said and "held_out: 3 problems" in said
    # The folder alone is enough later on, and finds what is there already.
    main(["eval", str(run), "--json", "--samples", "2"])
    again = json.loads(capsys.readouterr().out)
    assert [found["set"] for found in again] == ["held_out", "other"]
    assert again[0]["difference"] == summary["difference"]


@pytest.mark.long
def test_a_resumed_run_shows_each_evaluation_once(make, tmp_path):
    """Of many held-out prompts six are followed, and a step that is made again replaces itself."""
    rows = [{"prompt": f"Say {number}.", "answer": str(number)} for number in range(21)]
    (tmp_path / "whole.py").write_text(ACCURACY)
    often = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    splits = {"train": rows[:8], "test": rows[8:]}
    train(make(splits, rewards=["./whole.py:whole"], eval_rows=13, **often))
    run = tmp_path / "run"
    first = (run / OVER_TIME_FILE).read_text()
    shutil.rmtree(run / "checkpoint-2")
    flags = ["--config", str(tmp_path / "recipe.yaml"), "--resume_from_checkpoint", "auto"]
    train(read_recipe([*flags, "--max_steps", "3"]))
    kept = read_lines(run / OVER_TIME_FILE)
    assert [line["step"] for line in kept] == [1, 2, 2, 3]
    assert (run / OVER_TIME_FILE).read_text().startswith(first)
    assert read_run(run, "run").over_time == [kept[0], *kept[2:]]
    assert [[row["row"] for row in line["rows"]] for line in kept] == [[0, 2, 4, 6, 8, 10]] * 4


@pytest.mark.long
def test_an_evaluation_that_cannot_be_written_costs_nothing_else(
    make, tmp_path, caplog, monkeypatch
):
    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training_evaluations, "evaluate_set", full)
    rows = [{"prompt": f"Say {number}."} for number in range(12)]
    recipe = make({"train": rows[:8], "test": rows[8:]}, eval_rows=3, eval_samples=2)
    assert train(recipe) is not None
    assert "evaluations cannot be written (No space left on device)" in caplog.text
    assert (tmp_path / "run/README.md").is_file()


@pytest.mark.long
def test_evaluations_during_the_training(make, tmp_path, capsys, greedy_passes):
    splits = {
        "train": [{"prompt": f"train {number}"} for number in range(8)],
        "test": [{"prompt": f"test {number}"} for number in range(5)],
    }
    recipe = make(
        splits,
        eval_rows=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
    )
    comparison = train(recipe)
    assert comparison is not None and comparison.base.total == 3
    # The best checkpoint may be another one than the last, so it answers for itself.
    assert len(greedy_passes) == 4
    rows = list(map(json.loads, (tmp_path / "run" / METRICS_FILE).read_text().splitlines()))
    rewards = {row["step"]: row["eval_reward"] for row in rows if "eval_reward" in row}
    assert list(rewards) == [1, 2]
    said = capsys.readouterr().out
    for step, reward in rewards.items():
        assert f"evaluation at step {step}  reward {reward:.3f}  seen " in said
    assert "step 2/2" in said
    asked = [json.loads(line)["prompt"][0]["content"] for line in seen_lines(tmp_path)]
    # The first three rows of the test split, as in the comparison at the end.
    assert {prompt for prompt in asked if prompt.startswith("test")} == {
        "test 0",
        "test 1",
        "test 2",
    }


@pytest.mark.long
def test_vllm_ends_before_base_and_adapter_are_compared(make, tmp_path):
    with vllm_installed() as engine:
        splits = {"train": [{"prompt": "train"}] * 4, "test": [{"prompt": "test"}]}
        comparison = train(
            make(splits, eval_rows=1, max_steps=1, use_vllm=True, vllm_mode="colocate")
        )
        assert comparison.base.total == 1
        assert engine.started[0].calls[-1] == "shutdown"
    for name in ("adapter_model.safetensors", "evaluation.jsonl", "README.md"):
        assert (tmp_path / "run" / name).is_file()


def test_what_vllm_cannot_sample_is_refused_before_a_model_loads(make):
    settings = {"use_vllm": True, "use_dora": True, "vllm_sync": "adapter"}
    recipe = make({"train": [{"prompt": "train"}] * 4}, **settings)
    with vllm_installed() as engine, pytest.raises(ConfigError, match="--vllm_sync merged"):
        preflight.check_model(recipe, preflight.check_task(recipe))
    assert not engine.started


def seen_lines(folder):
    return (folder / "noting.py.seen").read_text().splitlines()


@pytest.mark.long
@pytest.mark.parametrize("shape", ["user", "beginning"])
def test_without_a_strategy_nothing_is_evaluated_in_between(make, tmp_path, shape):
    recipe = make(
        {"train": [{"prompt": SHAPES[shape]}] * 4, "test": [{"prompt": [USER]}]}, eval_rows=1
    )
    assert train(recipe).base.total == 1
    assert "eval_reward" not in (tmp_path / "run" / METRICS_FILE).read_text()
    assert not (tmp_path / "run" / OVER_TIME_FILE).exists()


class TestStreams:
    @pytest.mark.long
    def test_train_and_are_evaluated(self, make, tmp_path):
        rows = [{"question": f"train {number}", "gold": str(number)} for number in range(70)]
        # A row that cannot be used comes after those that are read ahead.
        rows.append({"question": None, "gold": "0"})
        splits = {"train": rows, "test": [{"question": "test", "gold": "0"}] * 3}
        recipe = make(
            splits,
            dataset_streaming=True,
            columns=["solution=gold"],
            eval_rows=2,
            eval_strategy="steps",
            eval_steps=2,
            max_steps=3,
            shuffle_dataset=False,
        )
        assert train(recipe).base.total == 2
        seen = list(map(json.loads, seen_lines(tmp_path)))
        trained = {}
        for row in seen:
            text = row["prompt"][0]["content"]
            if text.startswith("train"):
                trained[text] = row["solution"]
        # Two prompts a step, in their order.
        assert trained == {f"train {number}": str(number) for number in range(6)}

    def test_rows_are_held_out_from_the_beginning(self, make, tmp_path):
        rows = [{"prompt": f"row {number}"} for number in range(8)]
        recipe = make({"train": rows}, dataset_streaming=True, eval_rows=2)
        task = preflight.check_task(recipe, may_stream=True)
        assert [row["prompt"] for row in task.held_out.rows] == ["row 0", "row 1"]
        assert "its first 2 rows are held out" in task.notes[0]
        prompts = preflight.check_model(recipe, task)
        texts = [row["prompt"][0]["content"] for row in prompts.train]
        assert texts == [f"row {number}" for number in range(2, 8)]

    @pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
    def test_every_format(self, make, tmp_path, suffix):
        rows = [{"prompt": f"row {number}", "solution": f"s{number}"} for number in range(4)]
        recipe = make({"train": rows}, dataset_streaming=True)
        file = tmp_path / f"all{suffix}"
        if suffix == ".parquet":
            Dataset.from_list(rows).to_parquet(file)
        elif suffix == ".csv":
            Dataset.from_list(rows).to_csv(file)
        else:
            file.write_text(
                json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
            )
        recipe.task.dataset_path = str(file)
        task = preflight.check_task(recipe, may_stream=True)
        found = list(preflight.check_model(recipe, task).train)
        assert [row["solution"] for row in found] == ["s0", "s1", "s2", "s3"]
        assert found[0]["prompt"] == [{"role": "user", "content": "row 0"}]

    def test_a_bad_row_is_named_and_left_out(self, make, caplog):
        rows = [{"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}]
        recipe = make({"train": rows}, dataset_streaming=True)
        prompts = preflight.check_model(recipe, preflight.check_task(recipe, may_stream=True))
        assert [row["prompt"][0]["content"] for row in prompts.train] == ["a", "b"]
        assert "A row of the stream is left out: prompt is empty" in caplog.text

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"max_steps": -1}, "Give --max_steps"),
            ({"dynamic_sampling": True}, "--dynamic_sampling draws fresh prompts"),
            ({"dataset_path": "embedded:word_problems"}, "leave dataset_streaming out"),
            ({"dataset_train_split": "trian"}, "no file for the split 'trian'"),
            ({"per_device_train_batch_size": 32}, "has 4 prompts, and a generation batch needs 8"),
        ],
        ids=str,
    )
    def test_what_does_not_go_with_them(self, make, settings, said):
        recipe = make({"train": [{"prompt": "a"}] * 4}, dataset_streaming=True, **settings)
        with pytest.raises(GrpoError, match=said):
            preflight.check_task(recipe, may_stream=True)

    def test_other_programs_have_to_know_all_rows(self, make):
        recipe = make({"train": [{"prompt": "a"}] * 4}, dataset_streaming=True)
        with pytest.raises(ConfigError, match="this program has to know all rows"):
            preflight.check_task(recipe)


class TestAgainstTRLsScript:
    """`trl grpo` and a recipe with the same settings give the same rows to rewards."""

    CHATS = ("user", "empty system", "call, content null", "call, content empty")
    TOOLS = (
        [{"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "int"}}}}],
        [{"type": "function", "function": {"name": "now", "parameters": {"zone": "UTC"}}}],
        None,
        [],
    )

    def settings(self, tmp_path, tiny_checkpoint):
        return {
            "model_name_or_path": str(tiny_checkpoint),
            "dataset_name": str(tmp_path / "data"),
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_completion_length": 8,
            "max_steps": 2,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "use_peft": True,
            "lora_target_modules": "all-linear",
        }

    @pytest.mark.long
    def test_conversations_with_tools(self, tmp_path, tiny_checkpoint, monkeypatch, make):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.chdir(tmp_path)
        rows = []
        for number, (chat, tools) in enumerate(zip(self.CHATS, self.TOOLS, strict=True)):
            row = {"prompt": SHAPES[chat], "solution": f"${number}$", "tools": tools}
            rows.append(row | {"messages": [*SHAPES[chat], {"role": "assistant", "content": "a"}]})
        ours = make({"train": rows}, **self.settings(tmp_path, tiny_checkpoint), dataset_path=None)
        train(ours)
        seen = {*seen_lines(tmp_path)}
        (tmp_path / "noting.py.seen").unlink()
        flags = ["--reward_funcs", "noting.seen", "--output_dir", str(tmp_path / "trl")]
        for name, value in self.settings(tmp_path, tiny_checkpoint).items():
            flags += [f"--{name}", str(value)]
        trl_grpo.main(*trl_grpo.make_parser().parse_args_and_config(flags))
        assert seen == {*seen_lines(tmp_path)}
        expected = [
            {name: row[name] for name in ("prompt", "solution", "tools", "messages")}
            for row in rows
        ]
        assert sorted(map(json.dumps, expected)) == sorted(seen)


@pytest.mark.long
def test_a_finished_run_is_not_compared_again(make, tmp_path, capsys):
    rows = [{"prompt": f"What is {number} + 3?", "solution": "5"} for number in range(8)]
    make({"train": rows, "test": rows[:2]}, save_strategy="steps", save_steps=1, eval_rows=2)
    file = tmp_path / "recipe.yaml"

    def run(*flags):
        capsys.readouterr()
        train(read_recipe(["--config", str(file), "--resume_from_checkpoint", "auto", *flags]))
        return capsys.readouterr().out

    assert "comparing base and adapter on 2" in run()
    again = run()
    assert "the run has finished, at step 2" in again and "comparing" not in again
    # A recipe that asks for more gets it.
    assert "comparing base and adapter on 1" in run("--eval_rows", "1")
    assert "comparing base and adapter on 1" in run("--eval_rows", "1", "--max_steps", "3")
    assert "the run has finished, at step 3" in run("--eval_rows", "1", "--max_steps", "3")


@pytest.mark.long
def test_a_run_that_may_not_go_on_leaves_the_recipe_that_is_there(make, tmp_path):
    rows = [{"prompt": f"What is {number} + 3?", "solution": "5"} for number in range(8)]
    make({"train": rows}, save_strategy="steps", save_steps=1)
    file = tmp_path / "recipe.yaml"
    train(read_recipe(["--config", str(file)]))
    kept = (tmp_path / "run" / "recipe.yaml").read_bytes()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:4])))
    more = ["--resume_from_checkpoint", "auto", "--max_steps", "4", "--temperature", "0.5"]
    with pytest.raises(ConfigError, match="data is 4 rows"):
        train(read_recipe(["--config", str(file), *more]))
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == kept
