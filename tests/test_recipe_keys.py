"""Tests of the names of settings that are known before the libraries are imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from grpo_hf import recipe_keys
from grpo_hf.cli import main
from grpo_hf.errors import ConfigError
from grpo_hf.recipe_keys import check_flags, check_keys, setting_names
from grpo_hf.runs.recipe import read_recipe, settings_parser


def test_the_names_are_those_of_the_parser():
    assert setting_names() == set(settings_parser()[1])


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("lerning_rate: 1.0e-4", [], "'lerning_rate' is not known. Did you mean 'learning_rate'?"),
        ("seed: 1", ["--max_stps", "3"], "--max_stps is not known. Did you mean '--max_steps'?"),
        ("seed: 1", ["--max-stps=3"], "Did you mean '--max_steps'?"),
        ("- seed", [], "expected settings as `key: value` lines, got list"),
        ("", [], "is empty"),
        ("a: [", [], "not a YAML file"),
    ],
)
def test_mistakes_are_named_as_the_parser_names_them(
    tmp_path: Path, text: str, flags: list[str], said: str
):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as soon:
        check_keys(file)
        check_flags(flags)
    with pytest.raises(ConfigError) as late:
        read_recipe(["--config", str(file), *flags])
    assert said in str(soon.value) and str(soon.value) == str(late.value)


@pytest.mark.parametrize(
    ("command", "wrong", "right"),
    [
        (["eval", "runs/none"], "--sampels", "--samples"),
        (["rewards", "check", "recipe.yaml"], "--rwos", "--rows"),
    ],
)
def test_a_flag_of_the_command_may_have_been_meant(
    capsys: pytest.CaptureFixture[str], command: list[str], wrong: str, right: str
):
    with pytest.raises(SystemExit) as end:
        main([*command, wrong, "3"])
    assert end.value.code == 2
    assert f"{wrong} is not known. Did you mean '{right}'?" in capsys.readouterr().err


def test_whatever_a_flag_may_look_like_passes(tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text("beta: 0.0\nrewards: [gsm8k]\n")
    check_keys(file)
    check_flags(["--beta", "-1", "--max-steps=3", "--no_bf16", "--help", "--rewards", "a", "b"])
    file.write_text("env: {A: 1}\n")
    check_keys(file)


@pytest.mark.parametrize("found", [None, SyntaxError, LookupError])
def test_a_source_of_another_form_checks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: type[Exception] | None
):
    def sources():
        if found is not None:
            raise found("elsewhere")
        return iter(())

    monkeypatch.setattr(recipe_keys, "_sources", sources)
    file = tmp_path / "recipe.yaml"
    file.write_text("of_a_later_version: 1\n")
    assert setting_names() is None
    check_keys(file)
    check_flags(["--of_a_later_version"])


def test_a_class_above_that_is_elsewhere_checks_nothing(monkeypatch: pytest.MonkeyPatch):
    files = recipe_keys._FILES | {"transformers": ()}
    monkeypatch.setattr(recipe_keys, "_FILES", files)
    assert setting_names() is None


def test_nothing_heavy_is_imported_for_a_mistake(tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text("lerning_rate: 1.0e-4\n")
    code = (
        "import sys, atexit; from grpo_hf.cli import main;"
        "atexit.register(lambda: print({'torch', 'trl', 'transformers'} & set(sys.modules)));"
        f"main(['COMMAND', {str(file)!r}])"
    )
    for command in ("train", "plan"):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("COMMAND", command)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and "Did you mean 'learning_rate'?" in done.stderr
        assert done.stdout.strip() == "set()"
