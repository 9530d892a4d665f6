"""Prompts of every shape reach the model as the chat template, and so TRL, renders them."""

import json

import pytest
from jinja2 import TemplateError
from support.chats import CALL, SHAPES, TEMPLATES, USER, tokenizer_with
from support.data_files import jsonl
from tokenizers.processors import TemplateProcessing
from trl import maybe_apply_chat_template

from grpo_hf.data.prompts import (
    CONTINUE,
    PromptForm,
    begins_answer,
    begins_twice,
    count_rendered,
    prompt_builder,
    prompt_token_ids,
    template_marks,
)
from grpo_hf.data.readers import Split, read_split
from grpo_hf.data.rows import build_dataset

CHAT = PromptForm(chat=True)
CANNOT_RENDER = (TemplateError, ValueError, TypeError)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """All shapes in one file, as a run reads it."""
    file = tmp_path_factory.mktemp("chats") / "train.jsonl"
    file.write_text(jsonl([{"prompt": messages} for messages in SHAPES.values()]))
    built, checked = build_dataset(read_split(path=str(file)), "prompt", prompt_builder(CHAT))
    assert checked.bad == []
    return dict(zip(SHAPES, built["prompt"], strict=True))


def test_messages_are_those_of_the_data(dataset):
    assert dataset == SHAPES


@pytest.mark.parametrize("template", ["chatml", *TEMPLATES])
def test_messages_are_rendered_as_the_template_does(dataset, template):
    tokenizer = tokenizer_with(template)
    rendered = 0
    for shape, messages in SHAPES.items():
        try:
            expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        except CANNOT_RENDER:
            with pytest.raises(CANNOT_RENDER):
                prompt_token_ids([dataset[shape]], tokenizer)
            continue
        assert prompt_token_ids([dataset[shape]], tokenizer) == [expected["input_ids"]], shape
        rendered += 1
    assert rendered >= len(SHAPES) // 3


@pytest.mark.parametrize("template", ["chatml", *TEMPLATES])
def test_a_beginning_is_continued_as_trl_renders_it(dataset, template):
    """`maybe_apply_chat_template` is how TRL prepares a prompt as text."""
    tokenizer = tokenizer_with(template)
    continued = 0
    for shape, messages in SHAPES.items():
        if messages[-1]["role"] == "system" or shape == "call at the end":
            continue  # TRL's function refuses those
        try:
            text = maybe_apply_chat_template({"prompt": messages}, tokenizer)["prompt"]
        except CANNOT_RENDER:
            continue
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        found = prompt_token_ids([dataset[shape]], tokenizer, {CONTINUE: True})
        assert found == [expected], shape
        continued += begins_answer(messages)
    # DeepSeek's template writes the words of the last turn without what precedes </think>.
    assert continued >= 1


def test_continued_and_opened_prompts_in_one_batch(dataset):
    tokenizer = tokenizer_with("chatml")
    prompts = [dataset[shape] for shape in SHAPES if shape != "beginning in parts"]
    options = {CONTINUE: True}
    alone = [prompt_token_ids([prompt], tokenizer, options)[0] for prompt in prompts]
    assert prompt_token_ids(prompts, tokenizer, options) == alone
    assert prompt_token_ids([], tokenizer, options) == []
    texts = ["a", "b c"]
    assert prompt_token_ids(texts, tokenizer, options) == tokenizer(texts)["input_ids"]


def test_options_reach_the_template():
    tokenizer = tokenizer_with("qwen3")
    options = {"enable_thinking": False, "tools": [{"type": "function", "function": {"name": "f"}}]}
    expected = tokenizer.apply_chat_template([USER], add_generation_prompt=True, **options)
    assert prompt_token_ids([[USER]], tokenizer, options) == [expected["input_ids"]]


class TestText:
    def test_without_a_chat_template(self):
        assert prompt_builder(PromptForm(chat=False))("Hi") == "Hi\n"
        form = PromptForm(chat=False, system_prompt="S", instruction="I")
        assert prompt_builder(form)("Hi") == "S\n\nHi\nI\n"

    def test_with_a_chat_template(self):
        assert prompt_builder(CHAT)("Hi") == [{"role": "user", "content": "Hi"}]
        form = PromptForm(chat=True, system_prompt="S", instruction="I")
        assert prompt_builder(form)("Hi") == [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Hi\nI"},
        ]

    @pytest.mark.parametrize("chat", [True, False])
    def test_rendered(self, chat):
        build = prompt_builder(PromptForm(chat=chat, rendered=True))
        assert build("<|user|>Hi<|assistant|>\n") == "<|user|>Hi<|assistant|>\n"
        with pytest.raises(ValueError, match="list of messages; rendered_prompts says"):
            build([USER])

    @pytest.mark.parametrize(
        ("template", "special", "marks"),
        [
            ("chatml", ["<|im_start|>", "<|im_end|>"], ["<|im_start|>", "<|im_end|>"]),
            ("qwen2_5", ["<|im_start|>", "<|im_end|>"], ["<|im_start|>", "<|im_end|>"]),
            # Its markers are ordinary words here.
            ("chatml", [], ["<|im_end|>\n<|im_start|>assistant"]),
            ("gemma", [], ["<end_of_turn>\n<start_of_turn>model"]),
        ],
    )
    def test_what_shows_that_a_text_is_rendered(self, template, special, marks):
        tokenizer = tokenizer_with(template, *special)
        assert template_marks(tokenizer) == marks
        rendered = tokenizer.apply_chat_template([USER], add_generation_prompt=True, tokenize=False)
        values = [rendered, rendered + "<think>", "What is 2 + 3?", None, [USER], ""]
        assert count_rendered(values, tokenizer) == (2, 3)
        tokenizer.chat_template = None
        assert count_rendered(values, tokenizer) == (0, 3)

    @pytest.mark.parametrize("adds", [True, False])
    def test_a_text_that_begins_twice(self, adds):
        tokenizer = tokenizer_with("llama3")
        if adds:
            one = TemplateProcessing(
                single="<|pad|> $A", special_tokens=[("<|pad|>", tokenizer.bos_token_id)]
            )
            tokenizer.backend_tokenizer.post_processor = one
        rendered = tokenizer.apply_chat_template([USER], tokenize=False)
        assert begins_twice([None, "2+3?", rendered], tokenizer) == adds
        assert not begins_twice(["2+3?"], tokenizer)


class TestMessages:
    def test_an_answer_is_left_out_of_supervised_data(self):
        build = prompt_builder(PromptForm(chat=True, answered=True))
        raw = [USER, {"role": "assistant", "content": "5."}]
        assert build(raw) == [USER]
        assert prompt_builder(CHAT)(raw) == raw

    def test_the_data_is_not_changed(self):
        raw = [dict(USER)]
        prompt_builder(PromptForm(chat=True, instruction="I"))(raw)
        assert raw == [USER]

    def test_a_row_s_own_system_message_wins(self):
        build = prompt_builder(PromptForm(chat=True, system_prompt="S"))
        assert build([USER])[0] == {"role": "system", "content": "S"}
        for content in ("own", "", None):
            own = {"role": "system", "content": content}
            assert build([own, USER]) == [own, USER]
        # OpenAI's newer name for a system message.
        own = {"role": "developer", "content": "own"}
        assert build([own, USER]) == [own, USER]

    @pytest.mark.parametrize("shape", SHAPES)
    def test_an_instruction_stands_below_what_the_user_says_last(self, shape):
        built = prompt_builder(PromptForm(chat=True, instruction="I"))(SHAPES[shape])
        changed = [
            (before, after)
            for before, after in zip(SHAPES[shape], built, strict=True)
            if before != after
        ]
        ((before, after),) = changed
        assert json.dumps(after["content"]).rstrip(']}"').endswith("\\nI")
        users = [message for message in SHAPES[shape] if message["role"] == "user"]
        assert before == (users[-1] if users else SHAPES[shape][-1])

    def test_a_call_without_content(self):
        """TRL reads the content of every message."""
        built = prompt_builder(CHAT)([USER, {"role": "assistant", "tool_calls": [CALL]}])
        assert built[1]["content"] is None and not begins_answer(built)

    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            (None, "prompt is empty"),
            ("", "prompt is empty"),
            (" \n", r"prompt is ' \\n'"),
            (7, "prompt is 7"),
            ([], "no message with a content"),
            ([{"role": "user", "content": ""}], "no message with a content"),
            ([{"role": "user"}], "no message with a content"),
            ([{"content": "Hi"}], "a message lacks its role"),
            ([{"role": "user", "content": [{"type": "image"}]}], "holds {'type': 'image'}; recip"),
            ([{"role": "user", "content": ["Hi"]}], "a message of user holds 'Hi'"),
            ([{"role": "user", "content": 7}], "the content of a message of user is 7"),
            (["Hi"], "a message lacks its role"),
        ],
    )
    def test_unusable(self, raw, reason):
        with pytest.raises(ValueError, match=reason):
            prompt_builder(CHAT)(raw)

    def test_nothing_left_of_an_answered_prompt(self):
        build = prompt_builder(PromptForm(chat=True, answered=True))
        with pytest.raises(ValueError, match="no message with a content"):
            build([{"role": "assistant", "content": "A"}])


def test_a_split_may_hold_texts_and_messages():
    rows = [{"prompt": "Hi"}, {"prompt": [USER]}]
    dataset, _ = build_dataset(Split(rows, [], "x"), "prompt", prompt_builder(CHAT))
    assert dataset["prompt"][:] == [[{"role": "user", "content": "Hi"}], [USER]]
