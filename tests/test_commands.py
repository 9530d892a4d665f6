"""Every command of the documents runs, or names what it needs.

Those of `grpo-hf` are run here one after the other, as the README has them, on the embedded model.
Of the others the program and each flag exist, and each is in one of three lists: `CHEAP` are run
here, `ELSEWHERE` by another test, and `NEEDS` has what needs a GPU, the Hub, data, another program
or more minutes than a test has. The page of such a command says so beside it, and the list names
the tests of its program, which have less to do.
"""

import importlib
import io
import json
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from support.runs import made_run

from grpo_hf import cli
from grpo_hf.cli import main
from grpo_hf.runs.chat import Chat
from grpo_hf.runs.recipe import settings_parser
from grpo_hf.runs.trained import open_run

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("grpo-hf", "make", "python", "accelerate", "echo", "pip", "lm_eval", "vllm", "ollama")
# What a command needs that no test has, and where its program is tested; the first sign counts.
NEEDS = {
    "--use_vllm": "vLLM: tests/real_vllm",
    "grpo-hf replay": "a step that was not finite: tests/durability/test_broken_runs.py",
    "held_out svamp math500": "the Hub: tests/evaluation/test_evaluate.py",
    "grpo_hf.cli eval": "the Hub: tests/evaluation/test_evaluate.py",
    "runs/sweeps/calculations": "SmolLM2: benchmarks/sweeps.py",
    "runs/learning/": "SmolLM2: benchmarks/experiments.py",
    "runs/then/": "SmolLM2: benchmarks/experiments.py",
    "plot runs/gsm8k_smollm2": "SmolLM2: benchmarks/experiments.py",
    "grpo-hf push": "the Hub: tests/runs/test_pushing_a_run.py",
    "--format gguf": "llama.cpp's converter: tests/runs/test_export.py",
    "pip install 'lm-eval[hf]'": "lm-eval: tests/evaluation/test_lm_eval.py",
    "lm_eval --model hf": "lm-eval: tests/evaluation/test_lm_eval.py",
    "vllm serve BASE": "vLLM: tests/real_vllm",
    "vllm serve": "vLLM: tests/runs/test_export.py",
    "ollama create": "Ollama: tests/runs/test_export.py",
    "make vllm-bench": "vLLM: tests/real_vllm",
    "make gpu-check": "GPU: tests/test_gpu_check.py",
    "benchmarks.gpu_check": "GPU: tests/test_gpu_check.py",
    "--use_cpu false": "a GPU: tests/recipes/test_gsm8k_recipe.py",
    "--task gsm8k_short": "GSM8K: tests/test_learning.py",
    "--task gsm8k": "a GPU: tests/test_learning.py",
    "benchmarks.supervised": "a GPU: tests/test_learning.py",
    "FOLDER/gsm8k": "GSM8K: tests/recipes/test_gsm8k_recipe.py",
    "bigbench_mistake": "BIG-Bench Mistake: tests/recipes/test_process_reward_model_recipe.py",
    "make bench": "an hour: tests/test_benchmarks.py",
    "benchmarks.scoring": "a minute: tests/test_benchmarks.py",
    "benchmarks.sweep ": "minutes: tests/test_benchmarks.py",
    "benchmarks.update": "minutes: tests/test_benchmarks.py",
    "benchmarks.plan": "minutes: tests/test_benchmarks.py",
    "benchmarks.sweeps --task": "minutes: tests/test_sweeps.py",
    "benchmarks.learning --task": "minutes: tests/test_learning.py",
    "benchmarks.experiments --run": "minutes: tests/test_experiments.py",
    "recipes/countdown.py": "minutes: tests/recipes/test_countdown_recipe.py",
    "recipes/iterative.py": "minutes: tests/recipes/test_iterative_recipe.py",
    "recipes/math_shepherd.py": "minutes: tests/recipes/test_math_shepherd_recipe.py",
    "recipes/paradigm.py": "minutes: tests/recipes/test_paradigm_recipe.py",
    "recipes/r1.py": "minutes: tests/recipes/test_r1_recipe.py",
}
# What another test runs.
ELSEWHERE = {
    "make demo": "tests/recipes/test_make_demo.py",
    "make smollm2": "tests/recipes/test_smollm2.py",
    # This is one of them.
    "make test": "tests/test_commands.py",
}
# What is run here, and writes its pages and pictures to another folder.
CHEAP = ("--list", "--page", "benchmarks.plot")
# How far from a command its page may say what it needs, in characters.
NEARBY = 500
# A line of code with a flag or a usual program is a command; these lines are none.
COMMAND = re.compile(r"[a-z][\w.-]* (?:.* )?--?[a-z]|(?:git|curl|cd|uv|conda|docker|sbatch|trl) ")
OUTPUT = ("set --save_total_limit, and go on",)
# So that a training takes seconds; flags win over the recipe.
TINY = "--max_steps 2 --max_completion_length 8 --eval_rows 4 --use_cpu --dtype float32"
FENCED = re.MULTILINE | re.DOTALL
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def lines_of_code() -> list[tuple[str, str]]:
    """Return the lines in blocks of code that may be a shell's, with the document of each."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = re.findall(r"^ {4,}(?:\$ )?(\S.*)$", text, re.MULTILINE)
        for block in re.findall(r"^```(?:bash|sh|shell|console)?\n(.*?)^```", text, FENCED):
            lines += block.splitlines()
        for line in lines:
            # A comment has two spaces before it; a value may hold a hash.
            found.append((document.name, re.split(r"\s{2,}#|\s#\s", line)[0].strip()))
    return found


def commands() -> list[tuple[str, str]]:
    """Return the commands in blocks of code, with the document of each.

    Variables before a command, and what `export` prints before one (`vLLM:  `), are left out.
    """
    found = []
    for document, line in lines_of_code():
        command = re.sub(r"^(?:\w+: +)?(?:[A-Z_]+=\S+ +)*", "", line)
        if command.startswith(tuple(f"{program} " for program in PROGRAMS)):
            found.append((document, command))
    return found


def needed(command: str) -> str | None:
    # A dry run lists files, and asks nobody.
    if "--dry_run" in command:
        return None
    return next((why for sign, why in NEEDS.items() if sign in command), None)


def run_here() -> list[str]:
    """Return the commands of `grpo-hf` that need nothing, the README's first, each once."""
    found: dict[str, None] = {}
    for _, command in commands():
        if "grpo-hf" in command and needed(command) is None:
            found[command] = None
    return list(found)


@pytest.fixture(scope="module")
def desk(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's rows, and the files that the documents speak of."""
    desk = tmp_path_factory.mktemp("desk")
    rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(40)]
    (desk / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (desk / "data/svamp").mkdir(parents=True)
    svamp = {"Body": "Ida has 3 pens.", "Question": "How many pens has Ida?", "Answer": 3}
    (desk / "data/svamp/test.jsonl").write_text(json.dumps(svamp) + "\n")
    shutil.copytree(tiny_checkpoint, desk / "model")
    shutil.copytree(ROOT / "recipes", desk / "recipes", ignore=shutil.ignore_patterns("__*"))
    (desk / "mine.py").write_text(python_block("# mine.py"))
    return desk


def python_block(first_line: str) -> str:
    """Return the block of Python in the README that begins with a line."""
    return block("python", first_line)


def block(language: str, first_line: str) -> str:
    """Return the block of a language in the README that begins with a line."""
    text = README.read_text(encoding="utf-8")
    found = re.search(rf"```{language}\n({re.escape(first_line)}\n.*?)```", text, re.DOTALL)
    assert found is not None
    return found.group(1)


def run(command: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of `grpo-hf` in this process, and fail where it exits with an error."""
    before, _, after = command.rpartition("|")
    piped = shlex.split(before)[1] if before else ""
    words, _, target = after.replace(MODEL, "model").partition(">")
    arguments = shlex.split(words)[1:]
    if arguments[0] in ("train", "baseline"):
        arguments += TINY.split()
    monkeypatch.chdir(desk)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{piped}\n"))
    with monkeypatch.context() as context:
        if target:
            context.setattr(sys, "stdout", (desk / target.strip()).open("w", encoding="utf-8"))
        try:
            main(arguments)
        except SystemExit as end:
            assert not end.code, f"{command}: exit code {end.code}"


@pytest.mark.long
def test_the_commands_of_the_documents_run(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the documents, each in the folder that the one before has left."""
    for command in run_here():
        for name in ("recipe.yaml", "mine.yaml"):
            # Pages about one command speak of a recipe without saying where it came from.
            if (desk / "mine/recipe.yaml").is_file() and not (desk / name).exists():
                settings = yaml.safe_load((desk / "mine/recipe.yaml").read_text())
                settings["rewards"] = ["gsm8k"]
                (desk / name).write_text(yaml.safe_dump(settings))
        for name in ("a", "b", "c"):
            if (desk / "runs/mine").is_dir() and not (desk / f"runs/{name}").exists():
                shutil.copytree(desk / "runs/mine", desk / f"runs/{name}")
        run(command, desk, monkeypatch)
        capsys.readouterr()
    assert (desk / "runs/mine/report.html").is_file()
    assert (desk / "curve.png").stat().st_size > 0


@pytest.mark.long
def test_the_readme_s_code_asks_the_adapter_as_its_run_did(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    instruction = yaml.safe_load(block("yaml", "# mine/recipe.yaml"))["instruction"]
    made_run(Path("runs/mine"), tiny_checkpoint, recipe={"instruction": instruction})
    chat = Chat(open_run(Path("runs/mine")), greedy=True, max_new_tokens=64)
    (row,) = re.findall(r'^    (\{"question": .*\})$', README.read_text(encoding="utf-8"), re.M)
    answer = chat.ask(json.loads(row)["question"])["adapter"]
    capsys.readouterr()
    exec(python_block("from peft import AutoPeftModelForCausalLM"), {})
    assert capsys.readouterr().out == f"{answer}\n"


def other_commands(signs: tuple[str, ...] = ("",)) -> list[Any]:
    """Return the commands of other programs that hold one of the signs, as parameters of a test."""
    found = []
    for document, command in commands():
        # The command's own flags are not in one file; what it does is run above.
        other = "grpo-hf" not in command and command.split()[0] in ("make", "python", "accelerate")
        if other and any(sign in command for sign in signs):
            found.append(pytest.param(command, id=f"{document}: {command[:60]}"))
    return found


@pytest.mark.parametrize("command", other_commands(CHEAP))
def test_cheap_commands_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that they write is the one that is there: nobody has changed it by hand."""
    _, _, name, *flags = shlex.split(command)
    program = importlib.import_module(name)
    docs = tmp_path / "docs"
    docs.mkdir()
    monkeypatch.setattr(program, "ROOT", tmp_path)
    program.main(flags)
    assert any(docs.iterdir()) or flags == ["--list"]
    for page in docs.glob("*.md"):
        there = (ROOT / "docs" / page.name).read_text(encoding="utf-8")
        assert page.read_text(encoding="utf-8") == there, command


@pytest.mark.parametrize("command", other_commands())
def test_programs_and_flags_exist(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for word in words[1:]:
            name = word.partition("=")[0]
            pattern = rf"^{name} \?=" if "=" in word else rf"^{name}:"
            assert re.search(pattern, makefile, re.MULTILINE), f"{word} is not in the Makefile"
        return
    if words[0] == "accelerate":
        # The launcher's own parser ends the test at a flag that it does not know.
        given = launch_command_parser().parse_args(words[2:])
        words = ["python", *(["-m"] if given.module else []), given.training_script]
        words += given.training_script_args
    if words[1:3] == ["-m", "grpo_hf.cli"]:
        options, rest = cli._parser()[0].parse_known_args(words[3:])
        assert options.takes_settings or not rest
        check_flags(rest, "")
        return
    if words[:2] == ["python", "-m"]:
        file = ROOT / f"{words[2].replace('.', '/')}.py"
    else:
        file = next(ROOT / word for word in words if word.endswith(".py"))
    assert file.is_file()
    check_flags(words[2:], file.read_text(encoding="utf-8"))


def check_flags(words: list[str], program: str) -> None:
    """Fail at a flag that is neither a setting nor in the text of a program."""
    settings = settings_parser()[1]
    for word in words:
        if word.startswith("--") and word != "--config":
            name = word.removeprefix("--")
            assert name in settings or name in program, word


def test_no_command_is_left_out() -> None:
    """Each is run, here or by another test, or it is in the list of what needs more."""
    run = {*run_here(), *(parameter.values[0] for parameter in other_commands(CHEAP))}
    for document, command in commands():
        elsewhere = any(sign in command for sign in ELSEWHERE)
        settled = command in run or elsewhere or needed(command) is not None
        assert settled, (
            f"{document}: no test runs `{command}`. Name what it needs in NEEDS, and on its page, "
            "or the test that runs it in ELSEWHERE."
        )
    # A program that this file does not know would otherwise be no command.
    known = tuple(f"{program} " for program in PROGRAMS)
    for document, line in lines_of_code():
        command = re.sub(r"^(?:\w+: +)?(?:[A-Z_]+=\S+ +)*", "", line)
        if COMMAND.match(command) and not line.startswith(OUTPUT):
            assert command.startswith(known), f"{document}: {line}"


@pytest.mark.parametrize(("document", "command"), commands())
def test_pages_say_what_a_command_needs(document: str, command: str) -> None:
    why = needed(command)
    if why is None:
        return
    path = next(path for path in DOCUMENTS if path.name == document)
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8").replace("\\\n", " "))
    place = text.index(re.sub(r"\s+", " ", command))
    # The command itself says nothing to a reader: `--use_vllm`.
    around = text[max(place - NEARBY, 0) : place] + text[place + len(command) :][:NEARBY]
    assert why.partition(":")[0] in around


def test_installed_extras_exist() -> None:
    """`pip install 'grpo-hf[judge]'` in a sentence is a command, too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set()
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        named |= set(re.findall(r"`(?:pip install )?'grpo-hf\[([\w,]+)\]'`", text))
    assert "language" in named
    assert {extra for each in named for extra in each.split(",")} <= set(
        project["optional-dependencies"]
    )


def test_servers_get_the_flags_that_are_tested() -> None:
    """vLLM is not here to parse them; the real one is started with these."""
    tested = (ROOT / "tests/real_vllm/conftest.py").read_text(encoding="utf-8")
    served = [command for _, command in commands() if command.startswith("vllm serve BASE")]
    assert served
    for command in served:
        for flag in re.findall(r"--[\w-]+", command):
            assert flag in tested, flag


def test_what_is_not_run_here_is_tested_elsewhere() -> None:
    for why in (*NEEDS.values(), *ELSEWHERE.values()):
        assert (ROOT / why.rpartition(": ")[2]).exists(), why
    # A sign that no command has any more would hide a command of the future.
    for sign in (*NEEDS, *ELSEWHERE, *CHEAP):
        assert any(sign in command for _, command in commands()), sign
