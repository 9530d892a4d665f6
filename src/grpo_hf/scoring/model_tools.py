"""Tools: functions that the model may call while it answers, and Python in the sandbox as one.

What a tool returns comes back to the model as a turn, and its tokens are no part of the objective
(TRL 1.16, `tools`). This is DeepSeekMath's tool-integrated reasoning (arXiv 2402.03300, section 2).
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
)

from ..errors import ConfigError, RewardError, did_you_mean
from .registry import named_function
from .sandbox import Limits, confinement, run_sandboxed

Tool = Callable[..., Any]

_NOT_DESCRIBED = (DocstringParsingException, TypeHintParsingException)
_LIMITS = Limits(seconds=10.0, memory=512 << 20)
# The end of a long output says most: the last result, or the error.
_MOST_CHARACTERS = 1_000


def python(code: str) -> str:
    """Run a Python program and return what it prints.

    Args:
        code: The program. It has to print its results.
    """
    done = run_sandboxed(
        [sys.executable, "-I", "program.py"],
        files={"program.py": code},
        limits=_LIMITS,
        # Else numpy starts a thread per core, and the limit on processes counts threads.
        environment={"OMP_NUM_THREADS": "1"},
    )
    said = [done.stdout.strip()]
    if done.reason != "exited":
        said.append(f"The program was ended: {done.reason}.")
    elif done.returncode != 0:
        # The last line names the error; the lines before it name files of the sandbox.
        said.append(done.stderr.strip().rpartition("\n")[2])
    text = "\n".join(filter(None, said)) or "The program has printed nothing."
    return text if len(text) <= _MOST_CHARACTERS else f"...{text[-_MOST_CHARACTERS:]}"


_BUILT_IN = {"python": python}


def load_tools(specs: Sequence[str], folder: Path) -> list[Tool]:
    """Return the tools that a recipe names, checked as far as that needs no model.

    Args:
        specs: `python`, `./file.py:function` or `package.module:function`.
        folder: what files are relative to.

    Raises:
        ConfigError: a tool is not known, has no description that a model could read, or cannot be
            confined on this machine.
    """
    tools = []
    for spec in specs:
        tool = _find(spec, folder)
        try:
            get_json_schema(tool)
        except (*_NOT_DESCRIBED, TypeError, ValueError) as error:
            raise ConfigError(
                f"tool {spec!r} has no description for the model: {error} Expected a docstring "
                "with an `Args:` entry, and a type hint, for each parameter."
            ) from error
        tools.append(tool)
    if python in tools:
        try:
            confinement()
        except RewardError as error:
            raise ConfigError(f"tool 'python': {error}") from error
    return tools


def _find(spec: str, folder: Path) -> Tool:
    if spec in _BUILT_IN:
        return _BUILT_IN[spec]
    try:
        named = named_function(spec, folder, "tool")
    except RewardError as error:
        raise ConfigError(str(error)) from error
    if named is None:
        raise ConfigError(
            f"tool {spec!r} is not known.{did_you_mean(spec, _BUILT_IN)} Expected "
            f"{', '.join(_BUILT_IN)}, './my_tools.py:my_function' or 'package.module:function'."
        )
    return named[0]


def call_tool(tools: Sequence[Tool], call: Any) -> dict[str, Any]:
    """Return the turn with which a tool answers a call, or with which an error does (TRL 1.16).

    Args:
        call: as the chat template writes it: `{"type": "function", "function": {"name": ...,
            "arguments": {...}}}`.
    """
    name = call.get("name", "unknown")
    try:
        if call["type"] != "function":
            raise ValueError(f"Unsupported tool call type: {call['type']}")
        name = call["function"]["name"]
        by_name = {tool.__name__: tool for tool in tools}
        if name not in by_name:
            raise ValueError(f"Tool {name} not found.")
        result = by_name[name](**call["function"]["arguments"])
    # A tool is the user's, and the model reads what went wrong.
    except Exception as error:
        result = {"error": str(error)}
    return {"role": "tool", "name": name, "content": str(result)}
