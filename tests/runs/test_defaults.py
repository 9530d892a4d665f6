"""What a recipe gets where it says nothing: an adapter's settings, a batch, and a length."""

import json

import pytest
import yaml
from peft import PeftConfig
from transformers import GenerationConfig
from trl import GRPOConfig as TRLGRPOConfig

from grpo_hf import GRPOConfig
from grpo_hf.models.loading import lora_config
from grpo_hf.runs import preflight
from grpo_hf.runs.defaults import describe
from grpo_hf.runs.output_checks import first_checkpoint
from grpo_hf.runs.recipe import read_recipe

TRLS = TRLGRPOConfig.__dataclass_fields__
OPEN = {
    "learning_rate",
    "lr_scheduler_type",
    "lora_dropout",
    "lora_target_modules",
    "gradient_accumulation_steps",
    "logging_steps",
    "use_peft",
}


@pytest.fixture
def recipe(tmp_path, tiny_checkpoint):
    """Return a function that reads a recipe of few lines on four rows, with settings and flags."""
    (tmp_path / "mine.py").write_text(
        "def same(completions, **columns):\n    return [1.0 for _ in completions]\n"
    )
    rows = [json.dumps({"question": f"{number} + 3?"}) for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    few = {
        "model_name_or_path": str(tiny_checkpoint),
        "dataset_path": str(tmp_path / "rows.jsonl"),
        "rewards": ["./mine.py:same"],
        "output_dir": str(tmp_path / "run"),
        "eval_rows": 0,
        "use_cpu": True,
        "report_to": "none",
    }

    def read(*flags, **settings):
        file = tmp_path / "few.yaml"
        file.write_text(yaml.safe_dump(few | settings))
        return read_recipe(["--config", str(file), *flags])

    return read


class TestSettings:
    def test_of_a_recipe_that_gives_none(self, recipe):
        read = recipe()
        assert set(read.chosen) == OPEN
        training = read.training
        assert training.learning_rate >= 10 * TRLS["learning_rate"].default
        assert training.lr_scheduler_type == "constant_with_warmup"
        assert (training.logging_steps, training.gradient_accumulation_steps) == (1, 4)
        lora = lora_config(read.model)
        assert isinstance(lora, PeftConfig)
        assert (lora.target_modules, lora.lora_dropout) == ("all-linear", 0.0)

    @pytest.mark.parametrize("way", ["file", "flag"])
    def test_what_is_given_stays(self, recipe, way):
        given = {
            "learning_rate": 3e-6,
            "logging_steps": 10,
            "lora_target_modules": ["q_proj", "k_proj"],
        }
        flags = []
        for name, value in given.items():
            flags += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
        read = recipe(**given) if way == "file" else recipe(*flags)
        assert set(read.chosen) == OPEN - set(given)
        assert (read.training.learning_rate, read.training.logging_steps) == (3e-6, 10)
        assert lora_config(read.model).target_modules == {"q_proj", "k_proj"}

    def test_all_weights_train_with_trl_s_rate(self, recipe):
        read = recipe(use_peft=False)
        assert read.training.learning_rate == TRLS["learning_rate"].default
        assert set(read.chosen) == {"gradient_accumulation_steps", "logging_steps"}

    def test_a_saved_adapter_brings_its_own(self, recipe):
        chosen = recipe(adapter="runs/earlier").chosen
        assert set(chosen) == OPEN - {"lora_dropout", "lora_target_modules"}

    @pytest.mark.parametrize(
        "name, value",
        [("per_device_train_batch_size", 16), ("num_generations", 4), ("steps_per_generation", 2)],
    )
    def test_a_batch_that_was_thought_of_stays(self, recipe, name, value):
        assert "gradient_accumulation_steps" not in recipe(**{name: value}).chosen

    def test_a_logging_strategy_stays(self, recipe):
        assert "logging_steps" not in recipe(logging_strategy="epoch").chosen

    def test_named_parameters_get_no_modules_beside_them(self, recipe):
        chosen = recipe(lora_target_parameters=["experts.weight"]).chosen
        assert "lora_target_modules" not in chosen

    def test_the_python_api_keeps_trl_s_numbers(self, tmp_path):
        ours = GRPOConfig(output_dir=str(tmp_path), use_cpu=True)
        for name in ("learning_rate", "lr_scheduler_type", "logging_steps"):
            assert getattr(ours, name) == TRLS[name].default
        assert ours.gradient_accumulation_steps == TRLS["gradient_accumulation_steps"].default

    def test_one_line_says_which(self, recipe):
        (line,) = describe(recipe(learning_rate=1e-5).chosen)
        assert "lora_target_modules all-linear" in line
        assert "learning_rate" not in line and "use_peft" not in line
        assert describe({"use_peft": True}) == []

    @pytest.mark.parametrize(
        "settings, said",
        [
            ({"max_steps": 40}, "at the end, step 40, because save_steps is 500"),
            ({"max_steps": 40, "save_steps": 40}, "at the end, step 40"),
            ({"max_steps": 2}, "at the end, step 2."),
            ({"max_steps": 40, "save_steps": 10}, "at step 10 (save_steps)."),
            ({"max_steps": 40, "save_steps": 0.3}, "at step 12 (save_steps)."),
            ({}, "at step 500 (save_steps), or at the end of a shorter run"),
            ({"save_steps": 0.3}, "after 30% of the steps"),
            ({"save_strategy": "epoch"}, "epoch"),
            ({"save_strategy": "no"}, "no checkpoints are saved"),
        ],
    )
    def test_when_it_saves_for_the_first_time_is_said(self, recipe, settings, said):
        assert said in first_checkpoint(recipe(**settings).training)

    def test_the_saved_recipe_has_them_all(self, recipe, tmp_path):
        read = recipe()
        (tmp_path / "run").mkdir()
        read.save(tmp_path / "run")
        again = read_recipe(
            ["--config", str(tmp_path / "run" / "recipe.yaml"), "--output_dir", "elsewhere"]
        )
        assert again.chosen == {}
        assert again.training.learning_rate == read.training.learning_rate


class TestLengthOfCompletions:
    """`max_completion_length`: TRL's, and less where the model cannot write so much."""

    def checked(self, recipe):
        return preflight.check_model(recipe, preflight.check_task(recipe))

    def test_fits_the_context(self, recipe):
        read = recipe()
        tokenizer = self.checked(read).tokenizer
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "3 + 3?"}], add_generation_prompt=True, return_dict=True
        )
        length = 256 - len(prompt["input_ids"])
        assert read.training.max_completion_length == length
        assert read.chosen["max_completion_length"] == length

    def test_is_what_the_model_s_files_say(self, recipe, tiny_checkpoint, tmp_path):
        model = tmp_path / "model"
        model.mkdir()
        for file in tiny_checkpoint.iterdir():
            (model / file.name).symlink_to(file)
        (model / "generation_config.json").unlink(missing_ok=True)
        GenerationConfig(max_new_tokens=40).save_pretrained(model)
        read = recipe(model_name_or_path=str(model))
        self.checked(read)
        assert read.training.max_completion_length == 40

    def test_that_was_given_is_refused_where_it_does_not_fit(self, recipe):
        with pytest.raises(ValueError, match="max_completion_length adds 300"):
            self.checked(recipe(max_completion_length=300))

    def test_of_prompts_that_leave_no_room(self, recipe):
        with pytest.raises(ValueError, match="do not fit the model's context"):
            self.checked(recipe(system_prompt="1 " * 300))
