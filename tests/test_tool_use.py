"""A model that calls Python, alone and in recipes/tool_integrated.py.

Answers of several turns are those of TRL's rollout with tools.
"""

import itertools
import json

import pytest
import trl
import yaml
from datasets import Dataset
from support.programs import RECIPES, load_recipe
from support.tool_model import CONVERSATIONS, tool_model, tool_tokenizer

from grpo_hf.cli import main
from grpo_hf.data.completions import completion_text
from grpo_hf.data.prompts import prompt_token_ids
from grpo_hf.errors import ConfigError
from grpo_hf.reporting.metrics_file import read_metrics
from grpo_hf.rollout.conversations import ToolUse, conversing
from grpo_hf.rollout.sampling import GREEDY, continuing, end_token_ids, is_cut
from grpo_hf.run_files import read_lines
from grpo_hf.runs.preflight import check_model, check_task
from grpo_hf.runs.recipe import read_recipe
from grpo_hf.scoring.model_tools import call_tool, python

pytestmark = pytest.mark.long

TOOLS_RECIPE = RECIPES / "tool_integrated.yaml"
PROMPTS = [conversation[:1] for conversation in CONVERSATIONS]


@pytest.fixture(scope="module")
def tokenizer():
    return tool_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tool_model(tokenizer)


def answers(model, tokenizer, tokens, most_rounds=None, options=None):
    use = ToolUse([python], call_tool, most_rounds)
    ids = prompt_token_ids(PROMPTS, tokenizer, use.template_options(tokenizer, options))
    with continuing(model, tokenizer, GREEDY) as sample:
        ends = end_token_ids(model, tokenizer)

        def cut(ids, room):
            return is_cut(ids, ends, room, {})

        converse = conversing(sample, model, tokenizer, use, options, is_cut=cut)
        found = converse(ids, tokens)
    return [written.completion for written in found]


def test_what_it_calls_is_run_and_comes_back(model, tokenizer):
    found = answers(model, tokenizer, 150)
    for messages, (_, *expected) in zip(found[:3], CONVERSATIONS[:3], strict=True):
        assert messages == expected
    # The fourth conversation was learnt as far as the error, which the model reads.
    assert found[3][:2] == CONVERSATIONS[3][1:]


def test_begun_answers_that_are_gone_on_with_change_no_turn_of_a_tool(model, tokenizer):
    """An error of the template before: a tool's turn is rendered up to a new one."""
    found = answers(model, tokenizer, 150, options={"continue_final_message": True})
    assert found == answers(model, tokenizer, 150)


@pytest.mark.parametrize("tokens", [150, 60, 45, 12])
@pytest.mark.parametrize("most_rounds", [None, 1])
def test_answers_are_those_of_trl(model, tokenizer, tmp_path, tokens, most_rounds):
    """TRL's own rollout, greedy; results that do not fit are left out there, too."""
    args = trl.GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        max_completion_length=tokens,
        max_tool_calling_iterations=most_rounds,
        num_generations=2,
        per_device_train_batch_size=4,
        generation_kwargs={"do_sample": False},
        top_k=0,
    )
    trainer = trl.GRPOTrainer(
        model,
        lambda completions, **columns: [0.0] * len(completions),
        args,
        Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=tokenizer,
        tools=[python],
    )
    trainer._sync_tool_dicts = [{"python": python}] * len(PROMPTS)
    trainer._async_tool_dicts = [{}] * len(PROMPTS)
    completions = trainer._generate([list(prompt) for prompt in PROMPTS])[3]
    assert answers(model, tokenizer, tokens, most_rounds) == completions


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    """A checkpoint of the model, and two of its questions with the answers."""
    folder = tmp_path_factory.mktemp("tools")
    tokenizer.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")
    lines = []
    for (question, *_, answer), _ in itertools.product(CONVERSATIONS[:2], range(4)):
        row = {"question": question["content"], "answer": answer["content"]}
        lines.append(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "test.jsonl").write_text(lines[0] + lines[-1])
    return folder


def as_messages(answer):
    return answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]


def roles_of(turns):
    return [message["role"] for message in turns or []]


def flags(folder, run):
    return [
        *("--model_name_or_path", str(folder / "model"), "--dataset_path", str(folder)),
        *("--dtype", "float32", "--use_cpu", "--gradient_checkpointing", "false"),
        *("--max_steps", "2", "--gradient_accumulation_steps", "2", "--eval_rows", "2"),
        *("--num_generations", "4", "--per_device_train_batch_size", "4"),
        *("--instruction", "", "--temperature", "0.2", "--max_completion_length", "150"),
        *("--logging_steps", "1", "--output_dir", str(run)),
    ]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The folder of a run with the tool."""
    run = tmp_path_factory.mktemp("runs") / "tools"
    load_recipe("tool_integrated").main(flags(folder, run))
    return run


def test_programs_run_in_training_and_in_the_comparison(trained):
    run = trained
    metrics = read_metrics(run)
    assert [row["tools/call_frequency"] > 0.5 for row in metrics] == [True, True]
    compared = read_lines(run / "evaluation.jsonl")
    for row, conversation in zip(compared, CONVERSATIONS[:2], strict=True):
        assert row["base"] == {
            "answer": conversation[1:],
            "right": True,
            "cut": False,
            "reward": 1.0,
        }


@pytest.mark.parametrize("none", [["--tools", ""], ["--tools="], ["--tools"]])
def test_a_recipe_with_tools_runs_without_them(folder, tmp_path, none):
    """The chain of thought beside the programs: what the recipe's docstring says."""
    recipe = read_recipe([*flags(folder, tmp_path), *none], default=TOOLS_RECIPE)
    assert recipe.task.tools == check_task(recipe, may_use_tools=True).tools == []
    assert yaml.safe_load(recipe.saved_in(tmp_path))["tools"] == []


def test_a_training_without_the_tools_of_its_recipe_calls_none(folder, tmp_path):
    run = tmp_path / "run"
    load_recipe("tool_integrated").main([*flags(folder, run), "--max_steps", "1", "--tools", ""])
    (metrics,) = read_metrics(run)
    assert metrics["reward"] >= 0 and not [name for name in metrics if name.startswith("tools/")]
    for row in read_lines(run / "evaluation.jsonl"):
        assert {message["role"] for message in as_messages(row["base"]["answer"])} == {"assistant"}


def test_an_evaluation_lets_the_model_call_its_tools(trained, capsys):
    """Both columns of the paper's table, from one run."""

    def lines_of(*more):
        main(["eval", str(trained), "--samples", "2", "--json", *more])
        (summary,) = json.loads(capsys.readouterr().out)
        return summary, read_lines(trained / "evaluations" / "held_out.jsonl")

    summary, lines = lines_of()
    assert summary["settings"]["tools"] == ["python"]
    assert summary["base"]["accuracy"]["value"] == 1.0
    for line, (question, *expected) in zip(lines, CONVERSATIONS[:2], strict=True):
        assert line["prompt"] == [question]
        assert line["base"]["turns"] == expected
        assert len(line["adapter"]["sample_turns"]) == 2
        # At this temperature the model says what it has learnt by heart.
        assert expected in line["base"]["sample_turns"]
        for text, turns in zip(line["base"]["samples"], line["base"]["sample_turns"], strict=True):
            assert text == completion_text(turns)
    summary, lines = lines_of("--tools", "")
    assert "tools" not in summary["settings"]
    for side, line in itertools.product(("base", "adapter"), lines):
        turns = [line[side]["turns"], *line[side]["sample_turns"]]
        assert "tool" not in itertools.chain(*map(roles_of, turns))


def test_tools_that_cannot_work_are_named_before_the_model_loads(folder, tmp_path, tiny_checkpoint):
    (tmp_path / "mine.py").write_text("def shout(text):\n    return text.upper()\n")

    def check(*more):
        arguments = [*flags(folder, tmp_path / "run"), "--rewards", "gsm8k", *more]
        recipe = read_recipe(arguments)
        return check_model(recipe, check_task(recipe, may_use_tools=True))

    with pytest.raises(ConfigError, match=r"tool 'pyton' is not known. Did you mean 'python'\?"):
        check("--tools", "pyton")
    with pytest.raises(ConfigError, match=r"shout.* has no description for the model"):
        check("--tools", f"{tmp_path}/mine.py:shout")
    with pytest.raises(ConfigError, match=r"there is no tool file .*nowhere\.py"):
        check("--tools", f"{tmp_path}/nowhere.py:f")
    with pytest.raises(ConfigError, match="chat template has no turns for calls of tools"):
        check("--tools", "python", "--model_name_or_path", str(tiny_checkpoint))
    with pytest.raises(ConfigError, match="the model calls none in this program"):
        check_task(
            read_recipe([*flags(folder, tmp_path), "--rewards", "gsm8k", "--tools", "python"])
        )
