"""The commands that use what a run has trained: `grpo-hf chat`, `export` and `push`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .run_folders import check_free, check_weights
from .runs.program import LOADING

# The flags of `grpo-hf export`, as its settings are called.
_EXPORT = ["run", "to", "format", "dtype", "outtype", "converter", "base", "trust_remote_code"]


def add_use_commands(commands: Any) -> None:
    """Add the commands to those of `grpo-hf`."""
    chat = commands.add_parser(
        "chat", help="talk to a run's base and adapter", description=_chat.__doc__
    )
    _add_run(chat)
    chat.add_argument("--greedy", action="store_true", help="the most likely token each time")
    chat.add_argument("--temperature", metavar="X", help="instead of the run's")
    chat.add_argument(
        "--max_new_tokens", type=int, metavar="N", help="longest answer (max_completion_length)"
    )
    chat.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (0)")
    chat.add_argument("--system", metavar="TEXT", help="system prompt, instead of the run's")
    chat.add_argument("--json", action="store_true", help="of piped prompts: a JSON object each")
    chat.set_defaults(command=_chat, begins_with=LOADING)

    export = commands.add_parser(
        "export", help="a run's merged weights, or a GGUF file", description=_export.__doc__
    )
    _add_run(export)
    export.add_argument("--to", type=Path, metavar="DIR", help="folder to write (RUN/merged)")
    export.add_argument(
        "--format", choices=["safetensors", "gguf"], default="safetensors", help="(safetensors)"
    )
    export.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of the merged weights (auto: the base's)",
    )
    export.add_argument(
        "--outtype", default="f16", metavar="TYPE", help="of the GGUF file: f16, q8_0, ... (f16)"
    )
    export.add_argument(
        "--converter", type=Path, metavar="FILE", help="llama.cpp's convert_hf_to_gguf.py"
    )
    export.set_defaults(command=_export, begins_with=LOADING)

    push = commands.add_parser("push", help="push a run to the Hub", description=_push.__doc__)
    push.add_argument("run", type=Path, help="output folder of a run")
    push.add_argument("repo", metavar="REPO", help="repository on the Hub, as me/my-adapter")
    push.add_argument("--public", action="store_true", help="make a new repository public")
    push.add_argument(
        "--samples",
        action="store_true",
        help="push prompts and completions too (credit.jsonl, evaluation.jsonl)",
    )
    push.add_argument("--dry_run", action="store_true", help="only list the files")
    push.set_defaults(command=_push)


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Add what says which model is loaded."""
    parser.add_argument("run", type=Path, help="output folder of a run, or a checkpoint in it")
    parser.add_argument("--base", metavar="MODEL", help="the base, if it has moved")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code that comes with the base"
    )


# The docstrings of the commands are what `--help` shows as their descriptions.


def _chat(options: argparse.Namespace, rest: list[str]) -> None:
    """Talk to the base and the adapter of a run, side by side: with the run's system prompt,
    instruction and sampling. Of a pipe each line is a prompt by itself."""
    # Before the imports, which take longer.
    check_weights(options.run)
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise ConfigError(f"--max_new_tokens is {options.max_new_tokens}; expected 1 or more.")
    from .runs.chat_loop import answer_lines, talk, temperature_of

    # Before the model loads, which takes longer.
    temperature = None if options.temperature is None else temperature_of(options.temperature)
    from .runs.chat import Chat
    from .runs.trained import open_run

    chat = Chat(
        open_run(options.run, base=options.base, trust_remote_code=options.trust_remote_code),
        greedy=options.greedy,
        temperature=temperature,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )
    if options.system is not None:
        chat.set_system_prompt(options.system)
    print(f"note: {chat.manner}.", file=sys.stderr, flush=True)
    if sys.stdin.isatty():
        talk(chat)
    else:
        answer_lines(chat, sys.stdin, as_json=options.json)


def _export(options: argparse.Namespace, rest: list[str]) -> None:
    """Write a copy of the base with the run's adapter in its weights, as safetensors or as a GGUF
    file, and print how vLLM and Ollama serve it. Nothing is overwritten."""
    check_weights(options.run)
    if options.to is not None:
        check_free(options.to)
    from .runs.export import Export, export

    asked = vars(options)
    export(Export(**{name: asked[name] for name in _EXPORT}))


def _push(options: argparse.Namespace, rest: list[str]) -> None:
    """Push the folder of a finished run to a repository on the Hub, which is private if it is new.
    Prompts and completions stay here unless they are asked for."""
    from .runs.finished import push

    push(
        options.run,
        options.repo,
        private=not options.public,
        samples=options.samples,
        dry_run=options.dry_run,
    )
