"""Tests of what is said where held-out prompts are among the training prompts."""

from dataclasses import replace

import pytest

from grpo_hf.data.overlap import digests_of, notes_on_overlap, which_are_in
from grpo_hf.data.prompts import PromptForm, prompt_builder
from grpo_hf.data.readers import Split

QUESTIONS = ["What is 2 + 3?", "What is 4 + 5?\nSay it."]
FORMS = [
    PromptForm(chat=True),
    PromptForm(chat=True, system_prompt="Be brief.", instruction="Say it."),
    PromptForm(chat=False, system_prompt="Be brief.", instruction="Say it."),
]


def test_rows_of_the_test_file_that_are_trained_on_are_counted():
    train = Split([{"question": "a"}, {"question": "b"}], [], "train.jsonl")
    test = Split([{"question": "b"}, {"question": "c"}, {"question": "b"}], [], "test.jsonl")
    (note,) = notes_on_overlap(test, train, None)
    assert note.startswith("2 of 3 held-out prompts are also in the training data.")
    assert notes_on_overlap(Split([{"question": "c"}], [], "test.jsonl"), train, None) == []
    (all_of_them,) = notes_on_overlap(train, train, None)
    assert all_of_them.startswith("2 of 2 held-out prompts are")


@pytest.mark.parametrize("form", FORMS)
def test_a_question_is_known_again_with_another_instruction(form: PromptForm):
    trained = digests_of(map(prompt_builder(form), QUESTIONS), form)
    assert len(set(trained)) == len(QUESTIONS)
    other = replace(form, system_prompt=None, instruction="Think first.")
    asked = [prompt_builder(other)(raw) for raw in [*QUESTIONS, "What is 2 + 30?"]]
    assert which_are_in(trained, asked, other) == [True, True, False]
    # Of a stream nobody knows them.
    assert which_are_in(None, asked, other) is None


def test_what_was_said_before_a_question_counts():
    form = PromptForm(chat=True)
    go_on = {"role": "user", "content": "And now?"}
    first = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "Yes."}, go_on]
    second = [{"role": "user", "content": "Two."}, {"role": "assistant", "content": "No."}, go_on]
    system = {"role": "system", "content": "Be kind."}
    assert which_are_in(digests_of([first], form), [second, [system, *first]], form) == [
        False,
        True,
    ]
