"""The prompt of a row: from what the data holds to what the trainer takes, and to token ids.

A prompt is a list of messages where the tokenizer has a chat template, and plain text where it has
none, or where the data holds text that was rendered with the template before. Messages reach the
trainer as they are in the data: calls of tools, their results, and empty contents among them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, ModelError
from ..run_context import RunTraits
from .readers import Row

# The option of `apply_chat_template` with which the model continues a prompt's last message.
CONTINUE = "continue_final_message"
# TRL's format for supervised training: its messages end with an answer. In a column of any other
# name an assistant's last message is a beginning.
ANSWERED_COLUMN = "messages"

# The second is OpenAI's newer name.
SYSTEM_ROLES = ("system", "developer")
# Enough of a wrong value to recognise it, and still a message of one line.
_LONGEST_SHOWN_VALUE = 60
# A text that no chat template writes.
_PROBE = "What was said"


@dataclass(frozen=True)
class PromptForm:
    """How the prompts of a dataset are made from its raw values.

    Args:
        chat: whether the tokenizer has a chat template. With one, a text becomes a system message,
            if there is a system prompt, and a user message that ends with the instruction. Without
            one, the same texts follow each other as plain text.
        rendered: whether texts were rendered with the chat template before; they stay as they are.
        answered: whether messages end with an answer, as in datasets for supervised training. The
            answer is left out. Else an assistant's last message is a beginning to continue.
        system_prompt: text before every prompt that has no system message of its own.
        instruction: text below every prompt.
    """

    chat: bool
    rendered: bool = False
    answered: bool = False
    system_prompt: str | None = None
    instruction: str | None = None


def prompt_builder(form: PromptForm) -> Callable[[Any], list[Row] | str]:
    """Return a function that turns a raw prompt into the prompt that the trainer takes.

    The function raises `ValueError` for a value that is no prompt, and `ModelError` for a list of
    messages without a chat template.
    """

    def build(raw: Any) -> list[Row] | str:
        if isinstance(raw, list) and form.rendered:
            raise ValueError("prompt is a list of messages; rendered_prompts says that it is text")
        if isinstance(raw, list):
            return _from_messages(raw, form)
        if not isinstance(raw, str) or not raw.strip():
            raise ValueError(f"prompt is {_shown(raw)}; expected text or a list of messages")
        return raw if form.rendered else _from_text(raw, form)

    return build


def _from_text(raw: str, form: PromptForm) -> list[Row] | str:
    text = f"{raw}\n{form.instruction}" if form.instruction else raw
    if not form.chat:
        # A base model continues the text; the newline at the end lets it start a line of its own.
        return f"{form.system_prompt}\n\n{text}\n" if form.system_prompt else f"{text}\n"
    messages = []
    if form.system_prompt:
        messages.append({"role": "system", "content": form.system_prompt})
    messages.append({"role": "user", "content": text})
    return messages


def _from_messages(raw: list[Any], form: PromptForm) -> list[Row]:
    if not form.chat:
        raise ModelError(
            "the prompts are lists of messages, and the tokenizer has no chat template to render "
            "them. Use an instruct model, or a column of plain text (--prompt_column)."
        )
    messages = [_copied_message(message) for message in raw]
    while form.answered and is_answered(messages):
        messages.pop()
    if not any(message["content"] or message.get("tool_calls") for message in messages):
        raise ValueError("no message with a content")
    if form.instruction:
        _instruct(messages, form.instruction)
    # A row's own system message is more specific than the one of the recipe, also an empty one.
    if form.system_prompt and messages[0]["role"] not in SYSTEM_ROLES:
        messages.insert(0, {"role": "system", "content": form.system_prompt})
    return messages


def _copied_message(message: Any) -> Row:
    """Copy a message; raise `ValueError` if it has no role, or content that is not text."""
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or not role:
        raise ValueError("a message lacks its role")
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise ValueError(f"a message of {role} holds {_shown(part)}; recipes are for text")
    if content is not None and not isinstance(content, str | list):
        raise ValueError(f"the content of a message of {role} is {_shown(content)}; expected text")
    # TRL 1.16 reads the content of every message, and a call of a tool may come without one.
    return {**message, "content": content}


def _instruct(messages: list[Row], instruction: str) -> None:
    """Put the instruction below the user's last message, or the last one where no user speaks."""
    place = len(messages) - 1
    for index, message in enumerate(messages):
        if message["role"] == "user":
            place = index
    content = messages[place]["content"]
    if isinstance(content, list):
        below: Any = [*content, {"type": "text", "text": f"\n{instruction}"}]
    else:
        below = f"{content}\n{instruction}" if content else instruction
    messages[place] = {**messages[place], "content": below}


def _shown(value: Any) -> str:
    return "empty" if value is None or value == "" else repr(value)[:_LONGEST_SHOWN_VALUE]


def template_marks(tokenizer: Any) -> list[str]:
    """Return what shows that a text was rendered with the tokenizer's chat template.

    These are the special tokens that the template writes around what a user says. The token that
    begins every text does not count. A template without special tokens is known by the words
    between what the user said and the answer.
    """
    said = [{"role": "user", "content": _PROBE}]
    text = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    marks = []
    for token in tokenizer.added_tokens_decoder.values():
        written = str(token)
        if token.special and written in text and written != tokenizer.bos_token:
            marks.append(written)
    before_answer = text.partition(_PROBE)[2].strip()
    return marks or ([before_answer] if before_answer else [])


def count_rendered(raw_prompts: Iterable[Any], tokenizer: Any) -> tuple[int, int]:
    """Return how many texts seem to be rendered with the chat template, and how many there are."""
    texts = [raw for raw in raw_prompts if isinstance(raw, str) and raw.strip()]
    if not texts or tokenizer.chat_template is None:
        return 0, len(texts)
    marks = template_marks(tokenizer)
    rendered = 0
    for text in texts:
        rendered += any(mark in text for mark in marks)
    return rendered, len(texts)


def begins_twice(raw_prompts: Iterable[Any], tokenizer: Any) -> bool:
    """Whether a text begins with the token that the tokenizer puts before every text as well."""
    first = tokenizer.bos_token
    for raw in raw_prompts:
        if first and isinstance(raw, str) and raw.startswith(first):
            # One text stands for all: the tokenizer treats them alike.
            return tokenizer(raw)["input_ids"][:2] == [tokenizer.bos_token_id] * 2
    return False


def is_answered(messages: Sequence[Any]) -> bool:
    """Whether the last message is one of the assistant."""
    last = messages[-1] if messages else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def begins_answer(prompt: Any) -> bool:
    """Whether a prompt ends with the beginning of an answer, which the model can continue."""
    if isinstance(prompt, str) or not is_answered(prompt):
        return False
    # After the call of a tool comes the tool's answer; there is no text to go on with.
    return prompt[-1]["content"] is not None and not prompt[-1].get("tool_calls")


def continuing_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options of the chat template that continue begun answers, if these do not decide."""
    return {CONTINUE: True} | dict(options or {})


def split_options(args: Any, traits: RunTraits) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Take `continue_final_message` out of the options that TRL gives to the chat template.

    TRL 1.16 always asks the template for a new turn, which this option contradicts.

    Args:
        args: `chat_template_kwargs`, the options.

    Returns:
        The other options, and all of them where last messages have to be continued, else None.

    Raises:
        ConfigError: they have to be, and prompts hold images or come from environments.
    """
    options = dict(args.chat_template_kwargs or {})
    continues = options.pop(CONTINUE, False)
    if not continues:
        return options, None
    if traits.reads_images or traits.has_environments:
        raise ConfigError(
            f"chat_template_kwargs has {CONTINUE}, which is for text without environments. "
            "Leave it out."
        )
    return options, options | {CONTINUE: True}


def prompt_token_ids(
    prompts: Iterable[Any], tokenizer: Any, template_options: dict[str, Any] | None = None
) -> list[list[int]]:
    """Return the token ids of each prompt as the trainer feeds it to the model.

    Messages go through the chat template; texts are tokenized as they are. The template opens a
    new turn of the assistant. With the option `continue_final_message` it leaves the last message
    open instead, where that is the beginning of an answer.

    Args:
        prompts: all lists of messages, or all plain texts.
        tokenizer: the model's tokenizer.
        template_options: keyword arguments of the chat template.

    Raises:
        ValueError: the template changes the message that has to be continued.
    """
    prompts = list(prompts)
    if not prompts:
        # There is no first prompt that shows the form of the others.
        return []
    if not isinstance(prompts[0], list):
        return tokenizer(prompts)["input_ids"]
    options = dict(template_options or {})
    continued: list[int] = []
    if options.pop(CONTINUE, False):
        continued = [row for row, prompt in enumerate(prompts) if begins_answer(prompt)]
    opened = sorted(set(range(len(prompts))) - set(continued))
    token_ids: dict[int, list[int]] = {}
    for rows, how in ((opened, "add_generation_prompt"), (continued, CONTINUE)):
        if rows:
            chats = [prompts[row] for row in rows]
            ids = _rendered_ids(chats, tokenizer, {**options, how: True})
            token_ids.update(zip(rows, ids, strict=True))
    return [token_ids[row] for row in range(len(prompts))]


def _rendered_ids(chats: Sequence[Any], tokenizer: Any, options: dict[str, Any]) -> list[list[int]]:
    rendered = tokenizer.apply_chat_template(chats, tokenize=True, return_dict=True, **options)
    return rendered["input_ids"]
