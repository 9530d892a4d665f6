"""The prompt of a run as a stranger writes it, and the code that loads its model and asks it."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.prompts import PromptForm

# No row of anybody's data: a card is pushed, and prompts are not.
EXAMPLE = "Your text here."
_HERE = "."


def example_prompt(
    form: "PromptForm | None", tokenizer: Any, options: dict[str, Any] | None
) -> tuple[Any, str]:
    """Return the example as messages or text, and as the model reads it.

    Args:
        form: how the run made its prompts; None where that is a script's business.
        options: keyword arguments of the chat template.
    """
    # A card is written anew without them, and they take seconds to import.
    from ..data.prompts import PromptForm, prompt_builder

    chat = getattr(tokenizer, "chat_template", None) is not None
    # Also of data that was rendered or answered before, the example begins as a user's text.
    form = replace(form or PromptForm(chat=chat), rendered=False, answered=False)
    prompt = prompt_builder(form)(EXAMPLE)
    if isinstance(prompt, str):
        return prompt, prompt
    more = {**(options or {}), "add_generation_prompt": True}
    # The example has no beginning of an answer to go on with.
    more.pop("continue_final_message", None)
    return prompt, tokenizer.apply_chat_template(prompt, tokenize=False, **more)


def code(card: dict[str, Any]) -> str:
    """Return a program that loads the model of a card and asks it the example.

    Args:
        card: what is known of the run, see `model_card.write_model_card`.
    """
    name = card["repo"] or _HERE
    said = "" if card["repo"] else "  # this folder, or its name on the Hub"
    lines = []
    if not card["has_adapter"]:
        lines += ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
        lines += [f'name = "{name}"{said}', "model = AutoModelForCausalLM.from_pretrained(name)"]
    # The adapter's file names the folder of its base, which a push cuts.
    elif card["base_model"] or (not card["repo"] and card.get("base_is_folder")):
        if not card["base_model"]:
            said = "  # this folder; its base is a folder of this machine"
        lines += ["from peft import AutoPeftModelForCausalLM"]
        lines += ["from transformers import AutoTokenizer", "", f'name = "{name}"{said}']
        lines += ["model = AutoPeftModelForCausalLM.from_pretrained(name)"]
    else:
        lines += ["from peft import PeftModel"]
        lines += ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
        lines += [f'name = "{name}"{said}']
        lines += [f'base = "path/to/{card["base"]}"  # it is not on the Hub']
        lines += ["model = AutoModelForCausalLM.from_pretrained(base)"]
        lines += ["model = PeftModel.from_pretrained(model, name)"]
    lines += ["tokenizer = AutoTokenizer.from_pretrained(name)"]
    return "\n".join(lines + _asking(card))


def _asking(card: dict[str, Any]) -> list[str]:
    prompt, options = card["prompt"], card["template_options"]
    if isinstance(prompt, str):
        lines = [f'inputs = tokenizer({prompt!r}, return_tensors="pt")']
    else:
        lines = ["messages = ["]
        for message in prompt:
            lines.append(f"    {json.dumps(message, ensure_ascii=False)},")
        lines += ["]", "inputs = tokenizer.apply_chat_template("]
        lines += ["    messages,", "    add_generation_prompt=True,", "    return_dict=True,"]
        lines.append('    return_tensors="pt",')
        if options:
            lines.append(f"    **{options!r},")
        lines.append(")")
    return [
        *lines,
        f"output = model.generate(**inputs, max_new_tokens={card['max_new_tokens']}, "
        "do_sample=False)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], '
        "skip_special_tokens=True))",
    ]
