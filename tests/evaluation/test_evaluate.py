"""Evaluations of a run from its folder: what is answered, judged, written, resumed and shared."""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from support.processes import SCRIPTS, launch
from support.questions import CHATS, one_by_one
from support.runs import made_run
from support.vllm import FakeLLM, FakeServer, vllm_installed

from grpo_hf.cli import main
from grpo_hf.data.overlap import digests_of
from grpo_hf.data.prompts import PromptForm, prompt_builder
from grpo_hf.errors import ConfigError, DataError, EngineError
from grpo_hf.evaluation import evaluate as evaluate_module
from grpo_hf.evaluation.answers import judging
from grpo_hf.evaluation.evaluate import evaluate
from grpo_hf.evaluation.problem_set import Answering, ProblemSet
from grpo_hf.evaluation.statistics import maj_at_k, pass_at_k
from grpo_hf.rollout import vllm_engine
from grpo_hf.runs import evaluating
from grpo_hf.runs.evaluating import Question, evaluate_run
from grpo_hf.runs.evaluation_sets import check_names, keep_trained
from grpo_hf.runs.trained import TrainedModel, open_run
from grpo_hf.scoring.registry import load_reward

pytestmark = pytest.mark.long

REWARD = """
from grpo_hf.scoring.reward import reward_settings

def last_letter(texts):
    return [text.strip()[-1:] or None for text in texts]

def votes(texts, answer, missing="none"):
    # The column of the problem, and no column that the data lacks.
    assert (answer, missing) == ("e", "none")
    return last_letter(texts)

@reward_settings(in_process=True, answers=votes)
def letter(completions, answer, **columns):
    texts = [each if isinstance(each, str) else each[0]["content"] for each in completions]
    return [float(said == gold) for said, gold in zip(last_letter(texts), answer)]

def length(completions, **columns):
    return [float(len(each)) for each in completions]
"""
KIND = ["short", "long"]


@pytest.fixture
def run(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A run whose reward looks at the last letter of an answer, with seven held-out prompts."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "letters.py").write_text(REWARD)
    rewards = ["./letters.py:letter", "./letters.py:length"]
    made_run(folder, tiny_checkpoint, recipe={"rewards": rewards, "seed": 3}, scale=0.5)
    lines = []
    for place, prompt in enumerate(CHATS):
        row = {"prompt": prompt, "answer": "e", "type": KIND[place % 2]}
        lines.append(json.dumps(row) + "\n")
    (folder / "held_out.jsonl").write_text("".join(lines))
    return folder


def lines_of(run: Path, name: str = "held_out") -> list[dict[str, Any]]:
    text = (run / "evaluations" / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_beginning_of_an_answer_is_gone_on_with(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in training, whose recipe says nothing of it: 33 of 56 were right, and 13 by eval.

    The training has the option from its data.
    """
    begun = [[*chat, {"role": "assistant", "content": "It is the"}] for chat in CHATS]
    rows = [json.dumps({"prompt": prompt, "answer": "e"}) + "\n" for prompt in begun]
    (run / "held_out.jsonl").write_text("".join(rows))
    main(["eval", str(run), "--json"])
    assert "7 of 7 prompts end with the beginning of an answer" in capsys.readouterr().err
    trained = open_run(run)
    texts = []
    for prompt in begun:
        texts.append(
            trained.tokenizer.apply_chat_template(
                prompt, continue_final_message=True, tokenize=False
            )
        )
    expected = one_by_one(trained.model, trained.tokenizer, texts, 12)
    assert [line["adapter"]["greedy"] for line in lines_of(run)] == expected
    # It is no other turn's answer.
    assert expected != one_by_one(trained.model, trained.tokenizer, begun, 12)


def last(text: str) -> str | None:
    return text.strip()[-1:] or None


def test_both_sides_answer_the_same_problems(run: Path, capsys: pytest.CaptureFixture[str]):
    main(["eval", str(run), "--samples", "3", "--json"])
    said = capsys.readouterr()
    (summary,) = json.loads(said.out)
    assert summary == json.loads((run / "evaluations" / "held_out.json").read_text())
    # A program reads the one, and its user the other.
    assert "held_out: 7 problems, 4 parts" in said.err
    assert said.err.endswith(f"The page of the run has this after\n  grpo-hf report {run}\n")
    lines = lines_of(run)
    trained = open_run(run)
    expected = {"adapter": one_by_one(trained.model, trained.tokenizer, CHATS, 12)}
    with trained.model.disable_adapter():
        expected["base"] = one_by_one(trained.model, trained.tokenizer, CHATS, 12)
    assert expected["base"] != expected["adapter"]
    for side, texts in expected.items():
        assert [line[side]["greedy"] for line in lines] == texts
        right = [last(text) == "e" for text in texts]
        assert [line[side]["greedy_right"] for line in lines] == right
        rewards = {"letter": float(right[0]), "length": 1.0}
        assert lines[0][side]["rewards"] == rewards
        assert summary[side]["accuracy"]["value"] == pytest.approx(sum(right) / 7)
        answers = [[last(text) for text in line[side]["samples"]] for line in lines]
        assert [line[side]["answers"] for line in lines] == answers
        correct = [[answer == "e" for answer in row] for row in answers]
        assert [line[side]["right"] for line in lines] == correct
        for line, marks in zip(lines, correct, strict=True):
            expected_rewards = [{"letter": float(mark), "length": 1.0} for mark in marks]
            assert line[side]["sample_rewards"] == expected_rewards
        for k in (1, 2, 3):
            found = summary[side]["pass_at"][str(k)]["value"]
            assert found == pytest.approx(pass_at_k(correct, k))
            found = summary[side]["maj_at"][str(k)]["value"]
            assert found == pytest.approx(maj_at_k(answers, correct, k))
    assert [line["prompt"] for line in lines] == CHATS
    assert {line["gold"] for line in lines} == {"e"}
    assert {name: each["problems"] for name, each in summary["by_category"].items()} == {
        "long": 3,
        "short": 4,
    }
    gained = []
    for line in lines:
        if line["adapter"]["greedy_right"] and not line["base"]["greedy_right"]:
            gained.append(line["row"])
    assert summary["flips"]["gained"] == gained
    cut = [line["base"]["greedy_cut"] for line in lines]
    assert cut == [not ended for ended in endings(trained)]
    assert summary["cut"]["base"] == sum(cut) and summary["cut"]["limit"] == 12
    assert summary["cut"]["gained_cut"] == sum(cut[row] for row in gained)
    # The reward pays all or nothing.
    assert "part_marks" not in summary


def test_what_a_terminal_shows_fits_80_columns(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    main(["eval", str(run), "--samples", "2"])
    said = capsys.readouterr().out
    # Folders have names of any length.
    assert max(map(len, said.replace(str(run), "run").splitlines())) <= 80
    for expected in (
        "held_out: 7 problems",
        "greedy",
        "pass@2",
        "maj@2",
        "short",
        "wrong to right",
    ):
        assert expected in said
    # One line each, with value and interval.
    (line,) = (line for line in said.splitlines() if line.startswith("pass@1"))
    assert line.count("[") == 3 and line.count("]") == 3


def endings(trained: TrainedModel) -> list[bool]:
    """Return whether each greedy answer of the base has its end within 12 tokens."""
    tokenizer = trained.tokenizer
    found = []
    for messages in CHATS:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with trained.model.disable_adapter():
            rows = trained.model.generate(**ids, max_new_tokens=12, do_sample=False)
        found.append(tokenizer.eos_token_id in rows[0, ids["input_ids"].size(1) :].tolist())
    return found


def evaluated(trained: TrainedModel, run: Path, folder: Path, **more: Any) -> dict[str, Any]:
    rewards = [load_reward("./letters.py:letter", relative_to=run)]
    rows = [{"prompt": prompt, "answer": "e"} for prompt in CHATS]
    answering = Answering(max_new_tokens=6, batch_size=2, samples=2, sampling={"temperature": 1.2})
    args: Any = type("Settings", (), {"reward_workers": 0, "reward_timeout": None})
    with judging(rewards, args) as scored:
        problems = ProblemSet("letters", rows, scored)
        return evaluate(trained.model, trained.tokenizer, problems, answering, folder, **more)


def files_of(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


class Killed(BaseException):
    pass


def kill_after(batches: int, trained: Any, run: Path, folder: Path) -> None:
    """Evaluate until so many batches are answered, and no further."""
    left = batches

    def kill(side: str, kind: str, count: int) -> None:
        nonlocal left
        left -= count > 0
        if left == 0:
            raise Killed

    with pytest.raises(Killed):
        evaluated(trained, run, folder, progress=kill)


@pytest.mark.parametrize("batches", [1, 13])
def test_an_evaluation_that_was_killed_goes_on_to_the_same_result(
    run: Path, tmp_path: Path, batches: int
):
    trained = open_run(run)
    evaluated(trained, run, tmp_path / "whole")
    kill_after(batches, trained, run, tmp_path / "cut")
    # What a killed process may leave in the middle of a line.
    with (tmp_path / "cut" / "letters.partial" / "0.jsonl").open("a") as file:
        file.write('{"side": "adapter", "kind": "samples", "row": 6, "texts": ["x')
    news: dict[tuple[str, str], list[int]] = {}

    def note(side: str, kind: str, count: int) -> None:
        news.setdefault((side, kind), []).append(count)

    summary = evaluated(trained, run, tmp_path / "cut", progress=note)
    assert news.pop(("both", "comparing")) == [0]
    # The first news of each part says what is kept of it: two problems of a batch, or more parts.
    kept = {1: [2, 0, 0, 0], 13: [7, 7, 4, 0]}[batches]
    assert [counts[0] for counts in news.values()] == kept
    assert [sum(counts) for counts in news.values()] == [7] * 4
    # Four greedy batches of two problems, and seven of one problem with two samples, on each side.
    assert sum(len(counts) - 1 for counts in news.values()) == 22 - batches
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    assert summary["problems"] == 7


def test_samples_that_an_earlier_version_kept_without_rewards_count(run: Path, tmp_path: Path):
    trained = open_run(run)
    whole = evaluated(trained, run, tmp_path / "whole")
    kill_after(13, trained, run, tmp_path / "cut")
    file = tmp_path / "cut" / "letters.partial" / "0.jsonl"
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert sum(row.pop("sample_rewards", None) is not None for row in kept) == 7
    file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert evaluated(trained, run, tmp_path / "cut") == whole
    lines = (tmp_path / "cut" / "letters.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert line["base"]["sample_rewards"] == [None, None]
        assert [each.keys() for each in line["adapter"]["sample_rewards"]] == [{"letter"}] * 2


def test_a_complete_evaluation_is_not_made_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained = open_run(run)
    first = evaluated(trained, run, tmp_path / "results")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "completed_batches", None)
        assert evaluated(trained, run, tmp_path / "results") == first
        with pytest.raises(TypeError):
            evaluated(trained, run, tmp_path / "results", facts={"adapter": "another"})
    # What was begun with other settings does not count.
    again = evaluated(trained, run, tmp_path / "results", facts={"adapter": "a third"})
    assert again["settings"]["adapter"] == "a third" and again["base"] == first["base"]


def test_two_processes_find_what_one_finds(run: Path, tmp_path: Path):
    script = tmp_path / "evaluate.py"
    script.write_text("import sys\nfrom grpo_hf.cli import main\nmain(sys.argv[1:])\n")
    main(["eval", str(run)])
    alone = lines_of(run)
    (run / "evaluations" / "held_out.json").unlink()
    said = launch(2, "eval", run, "--samples", 2, script=script)
    lines = lines_of(run)
    for line, expected in zip(lines, alone, strict=True):
        for side in ("base", "adapter"):
            assert line[side]["greedy"] == expected[side]["greedy"]
            assert len(set(line[side]["samples"])) == 2
    assert said.count("held_out: 7 problems") == 1, "only the first process shows the results"
    assert not (run / "evaluations" / "held_out.partial").exists()


def test_processes_on_different_disks_go_on_and_fail_together(run: Path, tmp_path: Path):
    said = launch(2, run, tmp_path / "disks", script=SCRIPTS / "evaluating_apart.py")
    # Both sides: three problems in the first process, and two in the second.
    for rank, count in enumerate((6, 4)):
        assert f"process {rank}: File exists, {count} answers" in said


@pytest.mark.parametrize("place", ["here", "server"])
def test_vllm_writes_the_answers_of_both_sides(
    run: Path, tiny_checkpoint: Path, place: str, capsys: pytest.CaptureFixture[str]
):
    main(["eval", str(run), "--json"])
    alone, expected = json.loads(capsys.readouterr().out), lines_of(run)
    flags = ["--samples", "2", "--json", "--use_vllm", "true"]
    with vllm_installed(), FakeServer(str(tiny_checkpoint)) as server:
        if place == "server":
            flags += ["--vllm_mode", "server", "--vllm_server_base_url", server.url]
        main(["eval", str(run), *flags])
        assert len(FakeLLM.started) == (place == "here")
    (summary,) = json.loads(capsys.readouterr().out)
    assert summary["settings"]["engine"] == "vllm"
    assert summary["difference"]["accuracy"] == alone[0]["difference"]["accuracy"]
    different = 0
    for line, by_transformers in zip(lines_of(run), expected, strict=True):
        for side in ("base", "adapter"):
            assert line[side]["greedy"] == by_transformers[side]["greedy"]
            different += len(set(line[side]["samples"])) == 2
    assert different >= 12, "copies of a prompt are drawn apart"
    if place == "here":
        # One batch for each kind of answer, of each side, beside the three prompts of the check.
        assert FakeLLM.started[0].calls.count("generate") == 3 + 4
        assert FakeLLM.started[0].calls[-1] == "shutdown"
    else:
        assert not server.adapters, "it is left as it was"


@pytest.mark.parametrize(
    "dealt",
    [
        {"num_generations": 8, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
        {"num_generations": 4, "per_device_train_batch_size": 3, "generation_batch_size": 24},
        {"per_device_eval_batch_size": 1, "eval_strategy": "steps", "eval_steps": 5},
        {"use_vllm": True, "vllm_tensor_parallel_size": 4},
    ],
)
def test_a_run_of_several_processes_is_evaluated_by_one(
    run: Path, dealt: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    file = run / "recipe.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | dealt))
    with vllm_installed():
        main(["eval", str(run), "--limit", "2", "--json"])
    (summary,) = json.loads(capsys.readouterr().out)
    assert summary["problems"] == 2


@pytest.mark.parametrize("place", ["here", "server"])
def test_vllm_s_own_settings_count_for_its_samples(
    run: Path, tiny_checkpoint: Path, place: str, capsys: pytest.CaptureFixture[str]
):
    more = {"max_tokens": 1, "logprobs": 1, "stop_token_ids": [9], "n": 5}
    flags = ["--use_vllm", "true", "--generation_kwargs", json.dumps(more)]
    with vllm_installed(), FakeServer(str(tiny_checkpoint)) as server:
        if place == "server":
            flags += ["--vllm_mode", "server", "--vllm_server_base_url", server.url]
        main(["eval", str(run), "--samples", "2", "--limit", "2", "--json", *flags])
        asked = [body for path, body in server.requests if path == "/v1/completions"]
    (summary,) = json.loads(capsys.readouterr().out)
    assert summary["settings"]["engine"] == "vllm"
    for line in lines_of(run):
        samples = line["adapter"]["samples"]
        assert len(samples) == 2 and max(map(len, samples)) < len(line["adapter"]["greedy"])
    if place == "server":
        assert 9 in asked[-1]["stop_token_ids"] and len(asked[-1]["stop_token_ids"]) > 1


def test_another_model_in_vllm_is_closed_before_transformers_writes(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def differs(*_: Any) -> None:
        raise EngineError("it has another base")

    monkeypatch.setattr(vllm_engine, "check_samples", differs)
    closed = []

    def evaluated(*given: Any, **more: Any) -> Any:
        closed.append("shutdown" in FakeLLM.started[0].calls)
        return evaluate(*given, **more)

    monkeypatch.setattr(evaluating, "evaluate", evaluated)
    with vllm_installed():
        main(["eval", str(run), "--limit", "2", "--json", "--use_vllm", "true"])
    assert closed == [True]
    assert "it has another base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parts", "asked", "at_once"),
    [("1", None, 4), ("3", None, 12), ("50", None, 64), ("3", 5, 5)],
)
def test_as_many_answers_at_a_time_as_a_run_sampled(
    run: Path, monkeypatch: pytest.MonkeyPatch, parts: str, asked: int | None, at_once: int
):
    sizes = []

    def evaluated(policy: Any, problems: Any, answering: Any, *given: Any, **more: Any) -> Any:
        sizes.append(answering.batch_size)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluating, "evaluate_set", evaluated)
    flags = ["--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "2"]
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(
            run,
            Question(batch_size=asked),
            [*flags, "--gradient_accumulation_steps", parts],
        )
    assert sizes == [at_once]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "vLLM is not installed here"),
        (["--vllm_mode", "server", "--vllm_server_base_url", "http://127.0.0.1:9"], "does not ans"),
        (["--vllm_mode", "server", "--vllm_sync", "merged"], "not installed here"),
    ],
)
def test_without_vllm_transformers_writes_them_and_a_line_says_so(
    run: Path, capsys: pytest.CaptureFixture[str], flags: list[str], reason: str
):
    more = ["--use_vllm", "true", "--vllm_server_timeout", "0.1", *flags]
    main(["eval", str(run), "--limit", "2", "--json", *more])
    said = capsys.readouterr()
    (summary,) = json.loads(said.out)
    assert summary["problems"] == 2 and "engine" not in summary["settings"]
    (note,) = [line for line in said.err.splitlines() if "transformers writes the answers" in line]
    assert reason in note


def test_data_of_ones_own_has_the_run_s_prompts(run: Path, tmp_path: Path):
    (tmp_path / "mine.jsonl").write_text('{"question": "How?", "answer": "e"}\n' * 3)
    settings = ["--system_prompt", "Be brief.", "--max_completion_length", "3"]
    (summary,) = evaluate_run(
        run, Question(data=[f"new={tmp_path}/mine.jsonl"], limit=2, as_json=True), settings
    )
    assert (summary["set"], summary["problems"]) == ("new", 2)
    prompt = lines_of(run, "new")[0]["prompt"]
    assert [message["content"] for message in prompt] == ["Be brief.", "How?"]


def test_prompts_that_were_trained_on_are_counted_and_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [{"question": f"How many is {number}?", "answer": "e"} for number in range(4)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    form = PromptForm(chat=True)
    asked = [prompt_builder(form)(row["question"]) for row in rows[1:3]]
    keep_trained(run, digests_of(asked, form))
    question = Question(data=["held_out", f"mine={tmp_path}/mine.jsonl"])
    # Of another length the prompts of the set are the same ones.
    settings = ["--max_completion_length", "3", "--instruction", "Be brief."]
    kept, mine = evaluate_run(run, question, settings)
    assert (kept["in_training"], mine["in_training"]) == (0, 2)
    assert [line["in_training"] for line in lines_of(run, "mine")] == [False, True, True, False]
    said = capsys.readouterr().out
    assert said.count("also in the training data") == 1
    assert "note: 2 of 4 prompts are also in the training data." in said


def test_a_run_that_kept_no_training_prompts_is_evaluated_all_the_same(run: Path):
    (summary,) = evaluate_run(run, Question(limit=2, as_json=True), [])
    assert "in_training" not in summary


def test_a_reward_that_fails_leaves_the_problem_out(run: Path):
    (run / "letters.py").write_text(REWARD + "\ndef nothing(completions, **columns):\n    1 / 0\n")
    question = Question(reward=f"{run}/letters.py:nothing", as_json=True, limit=2)
    (summary,) = evaluate_run(run, question, [])
    assert summary["problems"] == 0 and "base" not in summary
    assert lines_of(run)[0]["base"]["greedy_right"] is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["svmp"], "Did you mean 'svamp'"),
        (["svamp", "svamp"], "two sets are called 'svamp'"),
        (["other=/nowhere"], "no such file or folder"),
    ],
)
def test_sets_that_are_not_there_are_named(asked: list[str], message: str):
    with pytest.raises((ConfigError, DataError), match=message):
        check_names(asked)


def test_a_set_without_the_reward_s_column_says_so(run: Path, tmp_path: Path):
    (tmp_path / "mine.jsonl").write_text('{"question": "How?", "gold": "e"}\n')
    with pytest.raises(DataError, match="--reward NAME"):
        evaluate_run(run, Question(data=[f"{tmp_path}/mine.jsonl"]), [])


def test_flags_of_loading_load_the_model(run: Path, capsys: pytest.CaptureFixture[str]):
    for flags, dtype in (([], "float32"), (["--dtype", "bfloat16"], "bfloat16")):
        main(["eval", str(run), "--limit", "2", "--json", *flags])
        (summary,) = json.loads(capsys.readouterr().out)
        assert summary["settings"]["dtype"] == dtype


def test_base_and_adapter_are_seen_on_one_model(run: Path, tmp_path: Path):
    """Check that both sides read the same bytes of the base, and that nothing is left behind."""
    trained = open_run(run)
    assert isinstance(trained.model, PeftModel)
    weights = dict(trained.model.named_parameters())
    before = {name: weight.data_ptr() for name, weight in weights.items()}
    copies = {name: weight.detach().clone() for name, weight in weights.items()}
    seen: list[set[int]] = []

    def look(side: str, kind: str, count: int) -> None:
        pointers = {weight.data_ptr() for weight in trained.model.parameters()}
        seen.append(pointers)

    evaluated(trained, run, tmp_path / "results", progress=look)
    assert seen and all(pointers == set(before.values()) for pointers in seen)
    for name, weight in trained.model.named_parameters():
        assert torch.equal(weight, copies[name])


@pytest.mark.slow
def test_both_sides_take_twice_the_time_of_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Compare the time of this process, which other programs on the machine do not lengthen."""
    trained = open_run(run)
    monkeypatch.setattr(evaluate_module, "summary_of", lambda lines, **_: {"problems": 7})
    rows = [{"prompt": prompt, "answer": "e"} for prompt in CHATS * 8]
    rewards = [load_reward("./letters.py:letter", relative_to=run)]
    answering = Answering(max_new_tokens=64, batch_size=16)
    args: Any = type("Settings", (), {"reward_workers": 0, "reward_timeout": None})

    def seconds(sides: tuple[str, ...], number: int) -> float:
        monkeypatch.setattr(evaluate_module, "SIDES", sides)
        folder = tmp_path / f"{len(sides)}-{number}"
        with judging(rewards, args) as scored:
            problems = ProblemSet("letters", rows, scored)
            began = time.process_time()
            evaluate(trained.model, trained.tokenizer, problems, answering, folder)
        return time.process_time() - began

    seconds(("base", "adapter"), 0)
    ratios = []
    for number in range(1, 6):
        one = seconds(("adapter",), number)
        ratios.append(seconds(("base", "adapter"), number) / one)
    print("both sides against the adapter alone:", [round(ratio, 3) for ratio in ratios])
    assert statistics.median(ratios) <= 2.05
