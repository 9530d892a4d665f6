"""Conversations with a trained model: what it is asked, what it answers, and how it is shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.runs import made_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_hf.cli import main
from grpo_hf.errors import DataError
from grpo_hf.runs import chat_loop
from grpo_hf.runs.chat import Chat
from grpo_hf.runs.trained import TrainedModel, open_run

PROMPT = {"system_prompt": "Be brief.", "instruction": "Show your work."}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "run"
    made_run(folder, tiny_checkpoint, recipe=PROMPT)
    return folder


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedModel:
    return open_run(run)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a user type lines; an exception is raised in the place of a line."""

    def type_lines(*lines: Any) -> None:
        left = iter(lines)

        def read(_: str) -> str:
            line = next(left, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)

    return type_lines


def test_an_answer_begins_as_in_the_prompts_of_the_run(run: Path, trained: TrainedModel) -> None:
    begun = {"role": "assistant", "content": "The sum is"}
    rows = [{"prompt": [{"role": "user", "content": text}, begun]} for text in "ab"]
    held_out = run / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = Chat(trained, greedy=True, max_new_tokens=12)
    held_out.unlink()
    tokenizer = trained.tokenizer
    messages: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}]
    for text in ("1 + 1?", "2 + 2?"):
        messages += [{"role": "user", "content": f"{text}\nShow your work."}, begun]
        inputs = tokenizer.apply_chat_template(
            messages, continue_final_message=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            output = trained.model.generate(
                **inputs, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id
            )
        new = output[0, inputs["input_ids"].size(1) :]
        expected = tokenizer.decode(new, skip_special_tokens=True)
        assert chat.ask(text)["adapter"] == expected
        messages[-1] = {"role": "assistant", "content": f"The sum is{expected}"}


def test_beginnings_that_differ_are_none_of_a_conversation(run: Path, trained: TrainedModel):
    rows = []
    for text in "ab":
        begun = {"role": "assistant", "content": f"{text} is"}
        rows.append({"prompt": [{"role": "user", "content": text}, begun]})
    held_out = run / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Chat(trained).beginning is None
    held_out.unlink()
    assert Chat(trained).beginning is None


def greedy(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """What transformers answers, without anything of ours."""
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        output = model.generate(
            **inputs, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id
        )
    return tokenizer.decode(output[0, inputs["input_ids"].size(1) :], skip_special_tokens=True)


def test_both_answer_as_transformers_and_peft_do_turn_by_turn(
    run: Path, trained: TrainedModel, tiny_checkpoint: Path
):
    chat = Chat(trained, greedy=True)
    answers = [chat.ask("What is 2 + 3?"), chat.ask("And 4?")]
    tokenizer = AutoTokenizer.from_pretrained(run)
    models = {"base": AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()}
    other = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    models["adapter"] = PeftModel.from_pretrained(other, str(run)).eval()
    for name, model in models.items():
        messages = [{"role": "system", "content": "Be brief."}]
        for turn, text in enumerate(("What is 2 + 3?", "And 4?")):
            messages.append({"role": "user", "content": f"{text}\nShow your work."})
            expected = greedy(model, tokenizer, messages)
            assert answers[turn][name] == expected
            messages.append({"role": "assistant", "content": expected})
    assert answers[0]["base"] != answers[0]["adapter"], "the adapter has no effect"


def test_an_answer_comes_in_pieces(trained: TrainedModel):
    pieces: dict[str, list[str]] = {"base": [], "adapter": []}
    answers = Chat(trained).ask("What?", lambda name, text: pieces[name].append(text))
    for name, answer in answers.items():
        assert "".join(pieces[name]) == answer
    assert max(map(len, pieces.values())) > 1


def test_an_answer_that_would_have_gone_on_is_known(
    trained: TrainedModel, monkeypatch: pytest.MonkeyPatch
):
    chat = Chat(trained, greedy=True, max_new_tokens=4)
    answers = chat.ask("What?")
    longer = Chat(trained, greedy=True, max_new_tokens=5).ask("What?")
    # Five tokens begin with the same four, after which both would have gone on.
    for name, answer in answers.items():
        assert longer[name].startswith(answer) and name in chat.cut_off
    every_token = list(range(len(trained.tokenizer)))
    monkeypatch.setattr(trained.model.generation_config, "eos_token_id", every_token)
    chat.ask("What?")
    assert chat.cut_off == []


def test_draws_are_those_of_the_seed_and_the_run(trained: TrainedModel):
    asked = [Chat(trained, seed=seed).ask("What?") for seed in (1, 1, 2)]
    assert asked[0] == asked[1] != asked[2]
    chat = Chat(trained, temperature=0)
    assert chat.ask("What?") == Chat(trained, greedy=True).ask("What?")


def test_base_and_adapter_draw_the_same_numbers(tmp_path: Path, tiny_checkpoint: Path):
    made_run(tmp_path / "run", tiny_checkpoint, recipe={}, scale=0.0)
    answers = Chat(open_run(tmp_path / "run")).ask("What?")
    assert answers["base"] == answers["adapter"]


def test_a_conversation_that_is_forgotten_begins_anew(trained: TrainedModel):
    chat = Chat(trained, greedy=True)
    first = chat.ask("What?")
    assert chat.ask("What?") != first
    chat.reset()
    assert chat.ask("What?") == first
    chat.set_system_prompt("Be long.")
    assert chat.ask("What?") != first


def test_a_base_model_goes_on_in_plain_text(tmp_path: Path, tiny_checkpoint: Path):
    made_run(tmp_path / "run", tiny_checkpoint, recipe=PROMPT)
    trained = open_run(tmp_path / "run")
    trained.tokenizer.chat_template = None
    chat = Chat(trained, greedy=True)
    answer = chat.ask("What?")["base"]
    chat.ask("And?")
    expected = f"Be brief.\n\nWhat?\nShow your work.\n{answer}\nAnd?\nShow your work.\n"
    assert chat._said["base"].startswith(expected)


def test_a_conversation_that_is_too_long_is_said(trained: TrainedModel):
    chat = Chat(trained)
    with pytest.raises(DataError, match=r"the conversation has \d+ tokens.*/reset"):
        chat.ask("What? " * 2000)
    assert chat.ask("What?").keys() == {"base", "adapter"}, "the conversation is as it was"


def test_an_answer_that_is_interrupted_leaves_no_trace(trained: TrainedModel):
    chat = Chat(trained, greedy=True)
    first = chat.ask("What?")
    chat.reset()

    def interrupt(name: str, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.ask("No!", interrupt)
    assert chat.ask("What?") == first


def test_prompts_of_a_pipe_are_answered_each_by_itself(run: Path, capsys, monkeypatch):
    lines = ["What?\n", "\n", "What?\n", "/temperature 2\n", "What?\n"]
    monkeypatch.setattr("sys.stdin", iter_stdin(lines))
    main(["chat", str(run), "--greedy", "--json", "--max_new_tokens", "5"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["What?"] * 3
    assert rows[0] == rows[1] != rows[2]
    assert all(row.keys() == {"prompt", "base", "adapter", "cut_off"} for row in rows)

    monkeypatch.setattr("sys.stdin", iter_stdin(lines[:1]))
    main(["chat", str(run), "--greedy", "--max_new_tokens", "5"])
    shown = capsys.readouterr().out
    expected = f"> What?\nbase:    {rows[0]['base']}\nadapter: {rows[0]['adapter']}\n"
    expected += "note: the answer of base and of adapter was cut off at 5 tokens.\n\n"
    assert shown == expected


def test_what_is_added_to_the_words_of_a_user_is_said(run: Path, capsys, monkeypatch):
    """Who did not know it typed the instruction a second time."""
    for flags, drawn in (([], "drawn at temperature 1"), (["--greedy"], "greedy")):
        monkeypatch.setattr("sys.stdin", iter_stdin(["What?\n"]))
        main(["chat", str(run), "--max_new_tokens", "2", *flags])
        said = capsys.readouterr().err
        assert "note: a conversation begins with the system prompt 'Be brief.'; each" in said
        assert "each message ends with the instruction 'Show your work.'" in said
        assert f"answers are {drawn}." in said


def iter_stdin(lines: list[str]) -> Any:
    class Lines(list):
        def isatty(self) -> bool:
            return False

    return Lines(lines)


@pytest.mark.parametrize("columns", ["100", "50"])
def test_in_a_terminal_both_answers_are_shown(
    trained: TrainedModel, typed, capsys, monkeypatch, columns: str
):
    monkeypatch.setenv("COLUMNS", columns)
    typed("What?", "/reset", "/what", KeyboardInterrupt())
    chat_loop.talk(Chat(trained, greedy=True))
    shown = capsys.readouterr().out
    answers = Chat(trained, greedy=True).ask("What?")
    for name, answer in answers.items():
        assert name in shown
        for word in answer.split():
            assert word in shown
    assert "note: /what is no command." in shown


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/reset", "The conversation is forgotten."),
        ("/greedy", "Greedy from here on."),
        ("/temperature 0.5", "Temperature 0.5 from here on."),
        ("/temperature 0", "Greedy from here on."),
        ("/system Be long.", "A new conversation with this system prompt."),
        ("/system", "A new conversation without a system prompt."),
        (
            "/temperature hot",
            "note: the temperature is 'hot'; expected a number from 0 on, as 0.7.",
        ),
    ],
)
def test_a_command_says_what_it_did_in_a_terminal_alone(
    trained: TrainedModel, typed, capsys, command: str, said: str
):
    chat = Chat(trained)
    typed(command)
    chat_loop.talk(chat)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [said, ""]
    if not said.startswith("note"):
        chat_loop.answer_lines(chat, [command], as_json=True)
        assert capsys.readouterr().out == ""


def test_what_cannot_be_asked_for_is_refused(run: Path, capsys):
    for flags, message in (
        (["--temperature", "hot"], "the temperature is 'hot'; expected a number from 0 on"),
        (["--temperature", "-1"], "the temperature is '-1'"),
        (["--max_new_tokens", "0"], "--max_new_tokens is 0; expected 1 or more"),
    ):
        with pytest.raises(SystemExit):
            main(["chat", str(run), *flags])
        assert message in capsys.readouterr().err
