"""Settings by topic, their explanations, and the schema of recipes for editors."""

import dataclasses
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from trl import GRPOConfig as TRLGRPOConfig
from trl import ModelConfig

from grpo_hf.config import GRPOConfig
from grpo_hf.errors import ConfigError
from grpo_hf.runs.recipe_schema import recipe_schema
from grpo_hf.runs.settings import Setting, all_settings, by_topic, find
from grpo_hf.runs.task_arguments import TaskArguments

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
MOST_WITHOUT_A_TOPIC = 10


@pytest.fixture(scope="module")
def settings():
    return all_settings()


@pytest.fixture(scope="module")
def validator():
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


class TestSettings:
    def test_are_all_fields(self, settings):
        names = set()
        for kind in (TaskArguments, ModelConfig, GRPOConfig):
            names |= {field.name for field in dataclasses.fields(kind) if field.init}
        assert set(settings) == names

    def test_each_says_what_it_does(self, settings):
        assert [name for name, setting in settings.items() if not setting.text] == []

    def test_explanations_are_sentences(self, settings):
        """TRL's docstrings have frames of tips and links that mean something on its site alone."""
        for name, setting in settings.items():
            framed = re.search(r"<Tip|\[!|\]\((?!https?:)|\[`", setting.text)
            assert framed is None, (name, setting.text)
        assert settings["attn_implementation"].text.endswith("Kernels Hub Integrations Guide.")
        assert settings["top_entropy_quantile"].text.startswith("ρ parameter")
        # The last one, before what the class raises.
        assert settings["push_samples"].text.endswith("and what `log_completions` writes.")

    def test_topics(self, settings):
        """A heading of TRL or transformers that is not known would fill the last topic."""
        topics = by_topic(settings)
        assert next(iter(topics)).startswith("task")
        assert len(topics["other"]) <= MOST_WITHOUT_A_TOPIC
        for name, word in {
            "rewards": "task",
            "lora_r": "adapter",
            "beta": "objective",
            "temperature": "generation",
            "vllm_mode": "vLLM",
            "learning_rate": "optimizer",
            "bf16": "precision",
            "report_to": "logging",
            "eval_steps": "evaluation",
            "save_steps": "saving",
            "fsdp": "devices",
            "packed_update": "grpo-hf",
        }.items():
            assert word in settings[name].topic, name

    def test_ours_are_explained_by_us(self, settings):
        assert settings["packed_update"].text.startswith("Compute each distinct token")
        # TRL's docstring says that 0 is the default.
        assert settings["beta"].text == "Coefficient of the KL term (paper: 0.04)."
        assert settings["beta"].default == 0.04

    def test_a_default_is_that_of_a_recipe(self, settings):
        rate = settings["learning_rate"]
        fields = TRLGRPOConfig.__dataclass_fields__
        assert rate.default_in_python == fields["learning_rate"].default < rate.default
        assert settings["use_peft"].default is True

    def test_are_found_by_name_flag_and_topic(self):
        for name in ("learning_rate", "--learning-rate", "learning-rate"):
            found = find(name)
            assert isinstance(found, Setting) and found.name == "learning_rate"
        names = [setting.name for setting in find("vllm")]
        assert "use_vllm" in names and "temperature" not in names

    def test_a_wrong_name_is_answered_with_the_closest(self):
        with pytest.raises(ConfigError, match="Did you mean 'warmup_steps'"):
            find("warmup_step")


class TestSchema:
    @pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
    def test_takes_the_recipes_that_we_ship(self, validator, file):
        validator.validate(yaml.safe_load(file.read_text(encoding="utf-8")))

    @pytest.mark.parametrize(
        "text",
        [
            "learning_rate: 5e-4",
            "rewards: [gsm8k, {overlong: {max_length: 64}}]",
            "rewards: gsm8k",
            "lora_target_modules: all-linear",
            "save_strategy: no",
            "delta: null",
            "scale_rewards: false",
            "generation_kwargs: {num_beams: 2}",
            "resume_from_checkpoint: auto",
            "report_to: none",
        ],
    )
    def test_takes_what_a_recipe_may_hold(self, validator, text):
        validator.validate(yaml.safe_load(text))

    @pytest.mark.parametrize(
        "text",
        [
            "learning_rat: 1.0",
            "learning_rate: fast",
            "max_steps: 1.5",
            "use_peft: perhaps",
            "loss_type: ppo",
            "eval_rows: [1]",
        ],
    )
    def test_refuses_what_is_wrong(self, validator, text):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(yaml.safe_load(text))

    def test_every_default_is_a_value_that_it_takes(self, validator):
        for name, described in validator.schema["properties"].items():
            if "default" in described:
                validator.validate({name: described["default"]})
