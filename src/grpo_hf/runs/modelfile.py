"""The Modelfile by which Ollama serves an exported model with the prompts of its run.

Ollama renders a chat with a template of Go, and knows the templates of well-known models alone. So
the model's own template is rendered with marks in the place of what is said, and the texts between
the marks are its template.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from jinja2 import TemplateError

from ..data.prompts import PromptForm

# Texts that no template writes.
_SYSTEM, _USER, _ANSWER = "<<system text>>", "<<user text>>", "<<answer text>>"
_MARKED = {
    "s": {"role": "system", "content": _SYSTEM},
    "u": {"role": "user", "content": _USER},
    "a": {"role": "assistant", "content": _ANSWER},
}
# The settings that both know, by their name here and there.
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


class Parts(NamedTuple):
    """What a chat template writes around the system text, a user's text, and an answer."""

    before_system: str
    after_system: str
    before_user: str
    before_answer: str
    after_answer: str


def modelfile(
    source: str,
    tokenizer: Any,
    form: PromptForm,
    sampling: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a Modelfile.

    Args:
        source: the file or folder of the weights, as seen from the Modelfile.
        form: how the run made its prompts.
        sampling: how it drew its completions.
        options: keyword arguments of the chat template.
    """
    lines = [f"FROM {source}"]
    for name, name_there in _PARAMETERS.items():
        value = sampling.get(name)
        # Ollama has defaults of its own, so that what is off has to be said, too.
        if value is not None:
            lines.append(f"PARAMETER {name_there} {value:g}")
    template, system = form_there(tokenizer, form, options or {})
    if template is None:
        lines.append("# The chat template has no simple form: Ollama uses the one that it knows.")
    else:
        if form.instruction:
            lines.append("# The run put its instruction below every prompt, and so does this.")
        lines.append(f"TEMPLATE {_quoted(template)}")
        if tokenizer.eos_token:
            lines.append(f"PARAMETER stop {json.dumps(tokenizer.eos_token, ensure_ascii=False)}")
    if system:
        lines.append(f"SYSTEM {_quoted(system)}")
    return "\n".join(lines) + "\n"


def form_there(
    tokenizer: Any, form: PromptForm, options: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    """Return the template of a turn in Ollama's form, and the system text.

    Returns:
        The template is None where it has no simple form, the text None where there is none.
    """
    below = f"\n{form.instruction}" if form.instruction else ""
    if not form.chat:
        parts: Parts | None = Parts("", "\n\n", "", "\n", "")
        system = form.system_prompt
    else:
        try:
            parts = _parts(tokenizer, options)
        except (TemplateError, ValueError, TypeError):
            parts = None
        system = form.system_prompt
        if system is None and parts is not None:
            system = _default_system(tokenizer, options, parts)
            # The template always writes something there, which this form cannot say.
            parts = None if system == "" else parts
    if parts is None or "{{" in below:
        return None, system
    system_turn = f"{parts.before_system}{{{{ .System }}}}{parts.after_system}"
    user_turn = f"{parts.before_user}{{{{ .Prompt }}}}{below}{parts.before_answer}"
    answer = f"{{{{ .Response }}}}{parts.after_answer}"
    return f"{{{{ if .System }}}}{system_turn}{{{{ end }}}}{user_turn}{answer}", system


def _parts(tokenizer: Any, options: Mapping[str, Any]) -> Parts | None:
    """Return what the template writes before and after a system text, a user's, and an answer."""
    before_system, found, rest = _rendered(tokenizer, options, "su").partition(_SYSTEM)
    between = rest.partition(_USER)[0]
    after_answer = _rendered(tokenizer, options, "sua").rpartition(_ANSWER)[2]
    turns = _rendered(tokenizer, options, "suau", add_generation_prompt=True)
    # What begins a turn is seen at the second one, which has no system text before it.
    before_user = turns.partition(_ANSWER)[2].partition(_USER)[0].removeprefix(after_answer)
    before_answer = turns.rpartition(_USER)[2]
    if not (found and before_user and between.endswith(before_user)):
        return None
    parts = Parts(
        before_system, between.removesuffix(before_user), before_user, before_answer, after_answer
    )
    turn = f"{before_user}{_USER}{before_answer}"
    whole = f"{before_system}{_SYSTEM}{parts.after_system}{turn}{_ANSWER}{after_answer}{turn}"
    return parts if whole == turns and not any("{{" in part for part in parts) else None


def _default_system(tokenizer: Any, options: Mapping[str, Any], parts: Parts) -> str | None:
    """Return what the template writes as the system text of who gives none, or None."""
    before = _rendered(tokenizer, options, "u").partition(_USER)[0].removesuffix(parts.before_user)
    has_ends = before.startswith(parts.before_system) and before.endswith(parts.after_system)
    if not before or not has_ends:
        return None
    return before.removeprefix(parts.before_system).removesuffix(parts.after_system)


def _rendered(tokenizer: Any, options: Mapping[str, Any], roles: str, **more: Any) -> str:
    """Return a chat of marks as the template renders it, without the token that begins a text.

    Args:
        roles: the first letter of each message's role: system, user, assistant.
    """
    messages = [_MARKED[role] for role in roles]
    text = tokenizer.apply_chat_template(messages, **{**options, **more, "tokenize": False})
    adds_first = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    # Where the tokenizer adds it to every text, llama.cpp does so, too.
    return text.removeprefix(tokenizer.bos_token) if adds_first else text


def _quoted(text: str) -> str:
    """Return a text as a Modelfile takes one of several lines."""
    return f'"""{text}"""'
