"""The conversation of `grpo-hf chat`: in a terminal, or with one prompt a line from a pipe."""

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError, DataError
from ..run_files import say
from .chat import Chat

_HELP = """\
/reset            forget the conversation
/greedy           the most likely token each time
/temperature X    draw answers at a temperature
/system TEXT      another system prompt, and a new conversation
/quit             leave, as Ctrl-D does"""
# Two columns of fewer characters than this are hard to read.
_NARROWEST = 60
# Lines of the terminal that the table itself and the prompt take.
_LINES_AROUND = 6


def talk(chat: Chat) -> None:
    """Talk in a terminal until the user leaves; base and adapter answer side by side."""
    # With it, `input` remembers lines and edits them; Windows has none.
    with suppress(ImportError):
        import readline  # noqa: F401
    say("Type a message, or /help. Ctrl-C ends an answer, Ctrl-D the conversation.")
    with _interruptible():
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                say("")
                return
            if line == "/quit":
                return
            try:
                if line and not _obeyed(chat, line, tell=say):
                    _show_answers(chat, line)
                    _say_cut_off(chat)
            except KeyboardInterrupt:
                say("note: the answer was ended, and is not part of the conversation.")
            except (ConfigError, DataError) as error:
                say(f"note: {error}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let each Ctrl-C interrupt what runs, where a program would end at the second one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def answer_lines(chat: Chat, lines: Iterable[str], *, as_json: bool) -> None:
    """Answer each line as a conversation of its own, until the lines end.

    Args:
        as_json: print a JSON object a line: the prompt, each answer by who gives it, and whose
            answers were cut off.
    """
    width = max(map(len, chat.speakers)) + 2
    for line in lines:
        text = line.strip()
        if not text or _obeyed(chat, text):
            continue
        chat.reset()
        if as_json:
            answers: dict[str, Any] = {"prompt": text} | chat.ask(text)
            say(json.dumps(answers | {"cut_off": chat.cut_off}, ensure_ascii=False))
            continue
        say(f"> {text}")
        for name, answer in chat.ask(text).items():
            say(f"{name + ':':{width}}{answer}")
        _say_cut_off(chat)
        say("")


def _say_cut_off(chat: Chat) -> None:
    """Say whose answer would have gone on."""
    if chat.cut_off:
        whose = " and of ".join(chat.cut_off)
        say(f"note: the answer of {whose} was cut off at {chat.max_new_tokens} tokens.")


def _obeyed(chat: Chat, line: str, tell: Callable[[str], None] | None = None) -> bool:
    """Do what a line commands; return whether it was a command.

    Args:
        tell: says what took effect; None for silence, as a pipe takes answers alone.

    Raises:
        ConfigError: there is no such command, or it cannot have this value.
    """
    if not line.startswith("/"):
        return False
    command, _, value = line.partition(" ")
    commands: dict[str, Callable[[], Any]] = {
        "/help": lambda: say(_HELP),
        "/reset": chat.reset,
        "/greedy": lambda: chat.set_temperature(0.0),
        "/temperature": lambda: chat.set_temperature(temperature_of(value)),
        "/system": lambda: chat.set_system_prompt(value.strip() or None),
    }
    if command not in commands:
        raise ConfigError(
            f"{command} is no command. /help lists them; a message may begin with a space instead."
        )
    commands[command]()
    if tell is not None and command != "/help":
        tell(_effect(chat, command))
    return True


def _effect(chat: Chat, command: str) -> str:
    """Return what a command has changed, as a sentence."""
    if command == "/reset":
        return "The conversation is forgotten."
    if command == "/system":
        which = "with this" if chat.form.system_prompt else "without a"
        return f"A new conversation {which} system prompt."
    if chat.greedy:
        return "Greedy from here on."
    return f"Temperature {chat.sampling['temperature']:g} from here on."


def temperature_of(text: str) -> float:
    """Return a temperature, which is 0 or more.

    Raises:
        ConfigError: it is none.
    """
    try:
        temperature = float(text)
    except ValueError:
        temperature = -1.0
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"the temperature is {text!r}; expected a number from 0 on, as 0.7.")
    return temperature


def _show_answers(chat: Chat, text: str) -> None:
    """Show the answers while they grow, and keep them on the screen."""
    columns = shutil.get_terminal_size().columns
    if len(chat.speakers) == 1 or columns < _NARROWEST:
        _show_below_each_other(chat, text)
        return
    console = Console(highlight=False)
    written = dict.fromkeys(chat.speakers, "")
    with Live(console=console, transient=True, refresh_per_second=12) as live:

        def grow(name: str, piece: str) -> None:
            written[name] += piece
            live.update(_side_by_side(written, console, most=console.height - _LINES_AROUND))

        answers = chat.ask(text, grow)
    console.print(_side_by_side(answers, console, most=None))


def _show_below_each_other(chat: Chat, text: str) -> None:
    speaking = ""

    def show(name: str, piece: str) -> None:
        nonlocal speaking
        if name != speaking and len(chat.speakers) > 1:
            sys.stdout.write(("\n" if speaking else "") + f"{name}:\n")
        speaking = name
        sys.stdout.write(piece)
        sys.stdout.flush()

    chat.ask(text, show)
    sys.stdout.write("\n")


def _side_by_side(answers: dict[str, str], console: Console, *, most: int | None) -> Table:
    """Return a table with a column per answer.

    Args:
        most: how many lines to show, the last ones; None for all.
    """
    width = console.width // len(answers) - 3
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    cells = []
    for name, answer in answers.items():
        table.add_column(escape(name), width=width)
        lines = Text(answer).wrap(console, width)
        # A live view cannot scroll: of a long answer it shows where it is growing.
        cells.append(Text("\n").join(lines if most is None else lines[-max(most, 1) :]))
    table.add_row(*cells)
    return table
