"""A conversation with a trained model and its base, each of which goes on from its own answers.

    chat = Chat(open_run(Path("runs/mine")))
    chat.ask("Anna has 3 apples and buys 4 more. How many has she?")
    # {"base": "...", "adapter": "..."}

There is one base in memory; its adapter is switched off for the answers of the base.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from textwrap import shorten
from typing import Any

import torch
from transformers import TextStreamer

from ..data.prompts import CONTINUE, continuing_options, prompt_builder, prompt_token_ids
from ..errors import DataError
from ..models import adapters
from ..models.positions import context_of
from ..models.random_state import own_random_numbers
from ..rollout.sampling import GREEDY, end_token_ids, generation_settings, is_cut
from .evaluation_sets import common_beginning
from .trained import TrainedModel

BASE, ADAPTER, WHOLE = "base", "adapter", "model"
# Characters of a system prompt that are shown.
_SHOWN_CHARACTERS = 80
# What is called with the name of who speaks and the next piece of text.
Listener = Callable[[str, str], None]


class Chat:
    """A conversation with a run's model, and the same one with its base.

    Prompts have the run's system prompt and instruction, and answers are drawn as in the run.
    """

    def __init__(
        self,
        trained: TrainedModel,
        *,
        greedy: bool = False,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        """Begin a conversation.

        Args:
            greedy: the most likely token each time, instead of a drawn one.
            temperature: instead of the run's.
            max_new_tokens: the longest answer; by default the run's longest completion.
            seed: of the random numbers, which are the same for base and adapter.
        """
        self.trained = trained
        self.greedy = greedy
        self.sampling = dict(trained.settings.sampling)
        if temperature is not None:
            self.set_temperature(temperature)
        self.max_new_tokens = max_new_tokens or trained.settings.max_new_tokens
        self.form = trained.settings.form(trained.tokenizer)
        options = trained.settings.training["chat_template_kwargs"]
        self.template_options = continuing_options(options)
        # As in training, where the prompts of the data began the answer.
        self.beginning = None
        if self.form.chat and self.template_options[CONTINUE]:
            self.beginning = common_beginning(trained.folder)
        self.seed = seed
        self.speakers = (BASE, ADAPTER) if trained.has_adapter else (WHOLE,)
        # Whose last answer ended at the limit of its tokens.
        self.cut_off: list[str] = []
        self._asked = 0
        self.reset()

    @property
    def manner(self) -> str:
        """What is asked beside the user's words, and how tokens are chosen, in words."""
        said = []
        if self.form.system_prompt:
            shown = shorten(self.form.system_prompt, _SHOWN_CHARACTERS, placeholder=" ...")
            said.append(f"a conversation begins with the system prompt {shown!r}")
        if self.form.instruction:
            said.append(f"each message ends with the instruction {self.form.instruction!r}")
        if self.beginning is not None:
            said.append(f"each answer goes on from {self.beginning!r}")
        temperature = self.sampling.get("temperature", 1.0)
        drawn = "are greedy" if self.greedy else f"are drawn at temperature {temperature:g}"
        return "; ".join([*said, f"answers {drawn}"])

    def reset(self) -> None:
        """Forget the conversation."""
        self._said: dict[str, Any] = dict.fromkeys(self.speakers)

    def set_system_prompt(self, system_prompt: str | None) -> None:
        """Begin a new conversation under another system prompt, or under none."""
        self.form = replace(self.form, system_prompt=system_prompt)
        self.reset()

    def set_temperature(self, temperature: float) -> None:
        """Draw answers at a temperature; at 0, take the most likely token each time."""
        self.greedy = temperature == 0
        if temperature:
            self.sampling["temperature"] = temperature

    def ask(self, text: str, listener: Listener | None = None) -> dict[str, str]:
        """Say something, and return the answers by who gives them.

        Args:
            text: what the user says.
            listener: gets the answers piece by piece while they are written.

        Raises:
            DataError: the conversation no longer fits the model's context.
        """
        prompts = {name: self._prompt(name, text) for name in self.speakers}
        token_ids = {name: self._token_ids(prompt) for name, prompt in prompts.items()}
        answers = {}
        self.cut_off = []
        for name in self.speakers:
            answers[name] = self._answer(name, token_ids[name], listener)
        # After both: who interrupts an answer has not asked.
        for name, answer in answers.items():
            self._said[name] = _continued(prompts[name], answer)
        self._asked += 1
        return answers

    def _prompt(self, name: str, text: str) -> Any:
        """Return what was said so far, with what the user says now."""
        said = self._said[name]
        if said is None:
            prompt = prompt_builder(self.form)(text)
        else:
            prompt = said + prompt_builder(replace(self.form, system_prompt=None))(text)
        if self.beginning is None:
            return prompt
        return [*prompt, {"role": "assistant", "content": self.beginning}]

    def _token_ids(self, prompt: Any) -> list[int]:
        trained = self.trained
        (token_ids,) = prompt_token_ids([prompt], trained.tokenizer, self.template_options)
        context = context_of(adapters.causal_model(trained.model).config)
        if context is not None and len(token_ids) + self.max_new_tokens > context:
            raise DataError(
                f"the conversation has {len(token_ids)} tokens, and an answer may have "
                f"{self.max_new_tokens}; the model reads {context} at most. Begin a new one "
                "(/reset), or give a smaller --max_new_tokens."
            )
        return token_ids

    def _answer(self, name: str, token_ids: list[int], listener: Listener | None) -> str:
        model, tokenizer = self.trained.model, self.trained.tokenizer
        sampling = GREEDY if self.greedy else self.sampling
        config = generation_settings(model, tokenizer, sampling)
        config.max_new_tokens = self.max_new_tokens
        # A model may set a limit of its own, and transformers warns of two.
        config.max_length = None
        read = torch.tensor([token_ids], device=model.device)
        call: dict[str, Any] = {"attention_mask": torch.ones_like(read)}
        if listener is not None:
            call["streamer"] = _Streamer(tokenizer, name, listener)
        if config.stop_strings:
            call["tokenizer"] = tokenizer
        shown = adapters.as_base(model) if name == BASE else nullcontext()
        # The same random numbers for both, so that they differ by the adapter and not by luck.
        with own_random_numbers(self.seed + self._asked), shown, torch.no_grad():
            output = model.generate(input_ids=read, generation_config=config, **call)
        new_ids = output[0, len(token_ids) :].tolist()
        ends = end_token_ids(model, tokenizer)
        if is_cut(new_ids, ends, self.max_new_tokens, self.sampling):
            self.cut_off.append(name)
        return str(tokenizer.decode(new_ids, skip_special_tokens=True))


def _continued(prompt: Any, answer: str) -> Any:
    """Return a prompt with its answer, to go on from."""
    if isinstance(prompt, str):
        return f"{prompt}{answer}\n"
    if prompt[-1]["role"] == "assistant":
        return [*prompt[:-1], {"role": "assistant", "content": prompt[-1]["content"] + answer}]
    return [*prompt, {"role": "assistant", "content": answer}]


class _Streamer(TextStreamer):
    """Hands the text of an answer on while it is generated."""

    def __init__(self, tokenizer: Any, name: str, listener: Listener) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._name = name
        self._listener = listener

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._listener(self._name, text)
