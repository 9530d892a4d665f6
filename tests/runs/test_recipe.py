"""Tests of YAML and flags: precedence, types, messages about mistakes, and saved recipes."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from trl import GRPOConfig as TRLGRPOConfig

from grpo_hf.errors import ConfigError, RewardNotFound
from grpo_hf.runs.recipe import read_recipe
from grpo_hf.runs.task_arguments import TaskArguments
from grpo_hf.scoring.registry import load_reward

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path):
    """Return a function that reads flags over a YAML file with a given text.

    The file begins with settings for a run on a CPU without any reporting.
    """

    def read(text="", *flags, file=None):
        file = file or tmp_path / "recipe.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            f"output_dir: {tmp_path / 'run'}\nuse_cpu: true\nreport_to: none\n{text}",
            encoding="utf-8",
        )
        return read_recipe(["--config", str(file), *flags])

    return read


def settings(recipe):
    """Return all settings of a run."""
    return [dataclasses.asdict(part) for part in (recipe.task, recipe.model, recipe.training)]


class TestPrecedence:
    def test_flags_over_yaml_over_defaults(self, recipe):
        read = recipe("beta: 0.1\nlora_r: 4\neval_rows: 7", "--beta", "0.2", "--lora-r=5")
        assert (read.training.beta, read.model.lora_r, read.task.eval_rows) == (0.2, 5, 7)
        assert read.training.num_generations == 8

    def test_lora_is_on_unless_turned_off(self, recipe):
        assert recipe().model.use_peft is True
        assert recipe("use_peft: false").model.use_peft is False
        assert recipe("", "--use_peft", "false").model.use_peft is False

    def test_a_flag_turns_a_yaml_list_around(self, recipe):
        read = recipe(
            "rewards: [gsm8k]\nreward_weights: [1.0]",
            "--rewards",
            "a",
            "b(x=1)",
            "--reward_weights",
            "1",
            "2",
        )
        assert read.task.rewards == ["a", "b(x=1)"]
        assert read.training.reward_weights == [1.0, 2.0]

    def test_without_a_file(self, tmp_path):
        read = read_recipe(["--use_cpu", "--report_to", "none", "--output_dir", str(tmp_path)])
        assert read.training.use_cpu is True
        assert read.file is None
        assert read.folder == Path.cwd()

    @pytest.mark.parametrize("form", ["separate", "joined", "default"])
    def test_forms_of_config(self, recipe, tmp_path, form):
        file = recipe("beta: 0.3").file
        flags = {
            "separate": ["--config", str(file)],
            "joined": [f"--config={file}"],
            "default": [],
        }[form]
        read = read_recipe(
            ["--lora_r", "4", *flags, "--seed", "1"], default=file if form == "default" else None
        )
        assert (read.training.beta, read.model.lora_r, read.training.seed) == (0.3, 4, 1)
        assert (read.file, read.folder) == (file, tmp_path)

    def test_config_wins_over_the_default_file(self, recipe, tmp_path):
        file = recipe("beta: 0.3").file
        assert (
            read_recipe(["--config", str(file)], default=tmp_path / "other.yaml").training.beta
            == 0.3
        )


class TestYamlValues:
    @pytest.mark.parametrize(
        "text, part, name, value",
        [
            ("learning_rate: 5e-4", "training", "learning_rate", 5e-4),  # text to PyYAML
            ("learning_rate: 1", "training", "learning_rate", 1.0),
            ("lora_dropout: '0.25'", "model", "lora_dropout", 0.25),
            ("max_steps: '12'", "training", "max_steps", 12),
            ("delta: 2e0", "training", "delta", 2.0),
            ("delta: null", "training", "delta", None),
            ("reward_weights: [1, 5e-1]", "training", "reward_weights", [1.0, 0.5]),
            ("gradient_checkpointing: false", "training", "gradient_checkpointing", False),
            ("gradient_checkpointing: no", "training", "gradient_checkpointing", False),
            ("gradient_checkpointing: 'no'", "training", "gradient_checkpointing", False),
            ("mask_truncated_completions: yes", "training", "mask_truncated_completions", True),
            ("save_strategy: no", "training", "save_strategy", "no"),  # false to PyYAML
            ("lr_scheduler_type: cosine", "training", "lr_scheduler_type", "cosine"),
            ("scale_rewards: false", "training", "scale_rewards", "none"),
            (
                "generation_kwargs: {num_beams: 2}",
                "training",
                "generation_kwargs",
                {"num_beams": 2},
            ),
            ("resume_from_checkpoint: true", "training", "resume_from_checkpoint", True),
            ("dataset_config: 2024", "task", "dataset_config", "2024"),
            ("system_prompt: null", "task", "system_prompt", None),
            ("lora_target_modules: all-linear", "model", "lora_target_modules", "all-linear"),
            (
                "lora_target_modules: [q_proj, v_proj]",
                "model",
                "lora_target_modules",
                ["q_proj", "v_proj"],
            ),
            ("rewards: gsm8k", "task", "rewards", ["gsm8k"]),
            ("rewards: [gsm8k, {overlong: {max_length: 64}}]", "task", "rewards", None),
            ("rewards:\n- gsm8k\n- overlong: {max_length: 64}", "task", "rewards", None),
        ],
    )
    def test_become_the_settings_type(self, recipe, text, part, name, value):
        if value is None and name == "rewards":
            value = ["gsm8k", {"overlong": {"max_length": 64}}]
        read = getattr(getattr(recipe(text), part), name)
        assert read == value
        assert isinstance(read, type(value))

    def test_reward_options_reach_the_reward(self, recipe):
        spec = recipe("rewards:\n- overlong: {max_length: 64, cache: 8}").task.rewards[0]
        assert load_reward(spec).options == {"max_length": 64, "cache": 8}

    @pytest.mark.parametrize(
        "text, message",
        [
            ("max_steps: many", r"max_steps is 'many' \(str\); expected int"),
            ("max_steps: 2.5", r"max_steps is 2.5 \(float\); expected int"),
            ("max_steps: true", r"max_steps is True \(bool\); expected int"),
            ("max_steps: null", r"max_steps is None \(NoneType\); expected int"),
            ("learning_rate: [1]", r"learning_rate is \[1\] \(list\); expected float"),
            ("learning_rate: fast", r"learning_rate is 'fast' \(str\); expected float"),
            ("delta: {a: 1}", r"delta is {'a': 1} \(dict\); expected float \| None"),
            ("use_peft: maybe", r"use_peft is 'maybe' \(str\); expected bool"),
            ("use_peft: 2", r"use_peft is 2 \(int\); expected bool"),
            ("dtype: bfloat17", r"dtype is 'bfloat17' \(str\); expected one of auto, bfloat16"),
            (
                "lr_scheduler_type: cosin",
                r"lr_scheduler_type is 'cosin' \(str\); expected one of linear, cosine",
            ),
            ("reference: first", r"reference is 'first' \(str\); expected one of initial, base"),
            (
                "reward_weights: [1, heavy]",
                r"reward_weights is \[1, 'heavy'\] \(list\); expected list\[float\] \| None",
            ),
            (
                "columns: {answer: solution}",
                r"columns is {'answer': 'solution'} \(dict\); expected list\[str\]",
            ),
            ("rewards: [[gsm8k]]", r"rewards is \[\['gsm8k'\]\] \(list\); expected list\[str\]"),
            (
                "system_prompt: [a, b]",
                r"system_prompt is \['a', 'b'\] \(list\); expected str \| None",
            ),
        ],
    )
    def test_wrong_types(self, recipe, text, message):
        with pytest.raises(ConfigError, match=message) as error:
            recipe(text)
        assert "recipe.yaml: " in str(error.value)


class TestMistakes:
    @pytest.mark.parametrize(
        "text, message",
        [
            (
                "learning_rat: 1",
                r"setting 'learning_rat' is not known. Did you mean 'learning_rate'\?",
            ),
            ("num_generation: 4", r"Did you mean 'num_generations'\?"),
            ("reward: [gsm8k]", r"Did you mean 'rewards'\?"),
            ("5: x", r"setting '5' is not known\."),
            (
                "no_gradient_checkpointing: true",
                r"setting 'no_gradient_checkpointing' is not known\.",
            ),
            ("help: true", r"setting 'help' is not known\."),
            ("env: {A: b}", "set environment variables in the shell"),
            ("a: [1", "not a YAML file"),
            ("num_generations: 1", "a group needs at least 2 completions"),
            (
                "loss_type: grpo\nload_in_4bit: true\nload_in_8bit: true",
                "recipe.yaml: .*8 bit and 4 bit",
            ),
        ],
    )
    def test_in_the_file(self, recipe, text, message):
        with pytest.raises(ConfigError, match=message):
            recipe(text)

    @pytest.mark.parametrize(
        "flags, message",
        [
            (
                ["--learning-rat", "1"],
                r"flag --learning-rat is not known. Did you mean '--learning_rate'\? Try --help",
            ),
            (["--num_generation=4"], r"Did you mean '--num_generations'\?"),
            (["--learning_rate", "fast"], "learning_rate.*invalid float value: 'fast'"),
            (["--max_steps", "2.5"], "max_steps.*invalid int value: '2.5'"),
            (["--dtype", "bfloat17"], "dtype.*invalid choice: 'bfloat17'"),
            (["--rewards"], "rewards.*expected at least one argument"),
            (
                ["recipes/other.yaml"],
                r"'recipes/other.yaml' is not a flag. A recipe is named as --config recipes/other",
            ),
            (["--config", "other.yaml"], "flag --config is not known"),
        ],
    )
    def test_in_the_flags(self, recipe, flags, message):
        with pytest.raises(ConfigError, match=message):
            recipe("", *flags)

    def test_config_without_a_file(self):
        with pytest.raises(ConfigError, match="--config needs a file"):
            read_recipe(["--lora_r", "4", "--config"])

    def test_missing_file(self, recipe, tmp_path):
        recipe()
        with pytest.raises(
            ConfigError, match=r"recipes.yaml: no such recipe. Did you mean '/.*/recipe.yaml'\?"
        ):
            read_recipe(["--config", str(tmp_path / "recipes.yaml")])
        with pytest.raises(ConfigError, match="no such recipe"):
            read_recipe(["--config", str(tmp_path / "nowhere" / "recipe.yaml")])

    @pytest.mark.parametrize(
        "content, said", [("", "is empty: expected"), ("- beta", "got list"), ("beta", "got str")]
    )
    def test_file_that_is_no_mapping(self, tmp_path, content, said):
        (tmp_path / "recipe.yaml").write_text(content)
        with pytest.raises(ConfigError, match=said):
            read_recipe(["--config", str(tmp_path / "recipe.yaml")])

    def test_file_that_cannot_be_read(self, tmp_path):
        (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
        for file in (tmp_path, tmp_path / "recipe.yaml"):
            with pytest.raises(ConfigError, match="not a YAML file"):
                read_recipe(["--config", str(file)])

    def test_columns(self, recipe):
        assert recipe("columns: [answer=Answer, q=a=b]").column_map == {
            "answer": "Answer",
            "q": "a=b",
        }
        for wrong in ("answer", "answer=", "=Answer"):
            with pytest.raises(
                ConfigError,
                match=f"--columns {wrong}: expected name_that_rewards_know=name_in_the_data",
            ):
                _ = recipe("", "--columns", wrong).column_map


class TestSave:
    def saved(self, read, folder, *flags):
        folder.mkdir(exist_ok=True)
        read.save(folder)
        return read_recipe(["--config", str(folder / "recipe.yaml"), *flags])

    def test_given_holds_what_was_given(self, recipe):
        read = recipe(
            "learning_rate: 5e-4",
            "--seed",
            "3",
            "--no_gradient_checkpointing",
            "--lr-scheduler-type=cosine",
        )
        assert {
            name: read.given[name]
            for name in read.given
            if name not in ("output_dir", "use_cpu", "report_to")
        } == {
            "learning_rate": 5e-4,
            "seed": 3,
            "gradient_checkpointing": False,
            "lr_scheduler_type": "cosine",
        }

    def test_round_trip(self, recipe, tmp_path):
        read = recipe(
            "learning_rate: 5e-4\ninstruction: 'End with: ####'\nsystem_prompt: Größe „eins“\n"
            "lora_target_modules: all-linear\n"
            "rewards:\n- gsm8k\n- overlong: {max_length: 64}\nsave_strategy: no\n"
            "generation_kwargs: {top_p: 0.9}\n",
            *(
                "--reward_weights",
                "1",
                "0.5",
                "--no_gradient_checkpointing",
                "--optim",
                "adamw_torch",
            ),
            *(
                "--lr_scheduler_type",
                "cosine",
                "--num_generations",
                "4",
                "--columns",
                "answer=gold",
            ),
        )
        again = self.saved(read, tmp_path / "run", "--output_dir", read.training.output_dir)
        assert settings(again) == settings(read)
        assert again.given == read.chosen | read.given

    def test_a_name_is_no_file_though_a_file_has_it(self, recipe, tmp_path):
        (tmp_path / "gsm8k.py").touch()
        assert self.saved(recipe("rewards: [gsm8k]"), tmp_path / "run").task.rewards == ["gsm8k"]

    def test_only_what_was_given_or_chosen_is_written(self, recipe, tmp_path):
        read = recipe("beta: 0.1")
        self.saved(read, tmp_path / "run")
        written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
        # A run's folder is its own.
        assert set(written) == {"use_cpu", "report_to", "beta"} | set(read.chosen)

    @pytest.mark.parametrize("by", ["file", "flag"])
    def test_the_token_is_used_and_never_written(self, recipe, tmp_path, by):
        read = (
            recipe("hub_token: hf_s3cret")
            if by == "file"
            else recipe("", "--hub_token", "hf_s3cret")
        )
        assert read.training.hub_token == "hf_s3cret"
        assert "hub_token" not in read.given
        self.saved(read, tmp_path / "run")
        assert "s3cret" not in (tmp_path / "run" / "recipe.yaml").read_text()

    @pytest.mark.parametrize("form", ["plain", "text options", "mapping", "absolute"])
    def test_reward_files_are_found_from_both_folders(self, recipe, tmp_path, monkeypatch, form):
        home = tmp_path / "my project (1)"
        home.mkdir()
        (home / "mine.py").write_text(
            "def score(completions, *, by=1): return [by for _ in completions]\n"
        )
        absolute = str(home / "mine.py")
        rewards = {
            "plain": ["./mine.py:score"],
            "text options": ["mine.py:score(by=2)"],
            "mapping": [{"./mine.py:score": {"by": 2}}],
            "absolute": [f"{absolute}:score(by=2)"],
        }[form]
        read = recipe(yaml.safe_dump({"rewards": rewards}), file=home / "recipe.yaml")
        again = self.saved(read, tmp_path / "run")
        monkeypatch.chdir("/")
        for each in (read, again):
            reward = load_reward(each.task.rewards[0], relative_to=each.folder)
            assert reward(completions=["x"]) == [1 if form == "plain" else 2]
        if form != "absolute":  # a path of this machine would travel to the Hub
            assert str(tmp_path) not in str(again.task.rewards)

    def test_other_rewards_are_written_as_they_are(self, recipe, tmp_path):
        rewards = ["gsm8k", "package.module:function", "overlong(max_length=64)", "./gone.py:score"]
        assert (
            self.saved(recipe(yaml.safe_dump({"rewards": rewards})), tmp_path / "run").task.rewards
            == rewards
        )


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_the_recipes_that_we_ship_are_read(file, tmp_path):
    read = read_recipe(["--config", str(file), "--output_dir", str(tmp_path), "--use_cpu"])
    assert read.task.rewards
    assert read.model.use_peft is True


def test_help_shows_what_the_recipe_sets(recipe, capsys):
    with pytest.raises(SystemExit) as done:
        recipe("learning_rate: 5e-4\neval_rows: 77", "--help")
    assert done.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "(default: 0.0005)" in printed
    assert "(default: 77)" in printed


def test_every_setting_of_ours_is_documented():
    for field in dataclasses.fields(TaskArguments):
        assert field.metadata["help"]
        assert f"\n        {field.name} (`" in TaskArguments.__doc__


def test_every_setting_of_trl_as_yaml_is_what_trl_makes_of_it(tmp_path):
    """A file with TRL's whole configuration, defaults written out, gives TRL's configuration."""
    given = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    written = {}
    for setting in dataclasses.fields(TRLGRPOConfig):
        value = setting.default
        if setting.default_factory is not dataclasses.MISSING:
            value = setting.default_factory()
        if setting.init:
            # YAML holds what an enumeration stands for.
            written[setting.name] = getattr(value, "value", value)
    file = tmp_path / "trl.yaml"
    file.write_text(yaml.safe_dump(written | given))
    read = read_recipe(["--config", str(file)]).training
    made = TRLGRPOConfig(**given)
    for setting in dataclasses.fields(made):
        assert getattr(read, setting.name) == getattr(made, setting.name), setting.name


class TestFilesOfFlags:
    """A flag means a file of the current folder, as a shell completes it; a recipe's entry, its."""

    @pytest.fixture(autouse=True)
    def folders(self, tmp_path, monkeypatch):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        for place, value in (("here", 1), ("mine", 2), ("task", 3)):
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / place / "reward.py").write_text(
                f"def score(completions, **columns):\n    return [{value}] * len(completions)\n"
            )
        (tmp_path / "mine" / "only.py").write_text((tmp_path / "mine" / "reward.py").read_text())

    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("reward.py:score", 1),
            ("./reward.py:score", 1),
            ("../task/reward.py:score", 3),
            # A file that is not here is the recipe's, as before.
            ("./only.py:score", 2),
            (None, 2),
        ],
    )
    def test_are_read_from_the_current_folder(self, recipe, tmp_path, flag, value):
        flags = [] if flag is None else ["--rewards", flag]
        file = tmp_path / "mine" / "recipe.yaml"
        read = recipe("rewards: ['./reward.py:score']\n", *flags, file=file)
        reward = load_reward(read.task.rewards[0], relative_to=read.folder)
        assert reward.function(completions=["x"]) == [value]
        # A saved recipe still means the same file.
        (tmp_path / "run").mkdir()
        read.save(tmp_path / "run")
        saved = read_recipe(["--config", str(tmp_path / "run" / "recipe.yaml"), "--use_cpu=true"])
        again = load_reward(saved.task.rewards[0], relative_to=saved.folder)
        assert again.function(completions=["x"]) == [value]

    def test_a_file_of_the_home_folder_is_that_file(self, recipe, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "task"))
        flag = "~/reward.py:score"
        read = recipe("", "--rewards", flag, file=tmp_path / "mine" / "recipe.yaml")
        reward = load_reward(read.task.rewards[0], relative_to=read.folder)
        assert reward.function(completions=["x"]) == [3]

    @pytest.mark.parametrize(
        ("flag", "shown"),
        [
            ("./reward.py:scores", "reward ./reward.py: no function 'scores' there."),
            ("reward.py:scores", "reward ./reward.py: no function 'scores' there."),
            ("../task/reward.py:scores", "reward ../task/reward.py: no function 'scores' there."),
            ("./rewards.py:score", "there is no reward file {here}/rewards.py. Did you mean"),
        ],
    )
    def test_errors_name_them_as_they_were_typed(self, recipe, tmp_path, flag, shown):
        read = recipe("", "--rewards", flag, file=tmp_path / "mine" / "recipe.yaml")
        with pytest.raises(RewardNotFound) as error:
            load_reward(read.task.rewards[0], relative_to=read.folder)
        assert str(error.value).startswith(shown.format(here=tmp_path / "here"))
