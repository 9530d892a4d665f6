"""Run DeepSeek-R1's training stages one after the other on small data.

    python recipes/r1.py --config recipes/r1_tiny.yaml    # embedded model, offline, one core
    python recipes/r1.py                                  # Qwen2.5-1.5B-Instruct, GSM8K, one GPU

    stage        what it does                                                result
    cold_start   supervised training on worked problems teaches the format   a checkpoint, the base
    rl           GRPO with rewards for accuracy, format and language         an adapter on the base
    samples      rejection sampling: the adapter answers training prompts,   samples.jsonl
                 and samples with the full mark of every reward are kept
    sft          a fresh adapter on the base learns the kept samples         an adapter on the base
    rl_again     GRPO continues from the adapter of stage sft                an adapter on the base

At the end a table, and results.json, compare the stages on the same held-out prompts. Every stage
has its own folder in --output_dir. A finished stage is not run again, so the same command continues
after an interruption.

The settings apply to both GRPO stages. The other stages have flags of their own: --cold_start_rows,
--sample_prompts, --samples_per_prompt and --sft_epochs. For the embedded model, every third worked
problem has German reasoning. So the model mixes languages, as R1-Zero did, and the language reward
has something to correct.

Source: DeepSeek-R1 (arXiv 2501.12948), section 2.3 and figure 2.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from grpo_hf.errors import ConfigError, DataError
from grpo_hf.run_files import REPORT_FILE
from grpo_hf.runs.program import exit_on_error, quiet
from r1_stages.table import SAMPLES_FILE, show

HERE = Path(__file__).parent

# An empty file with this name marks the folder of a finished stage.
FINISHED = "finished"

# Rows of a supervised batch, and prompts that are sampled together.
BATCH = 32

# Factor of GRPO's learning rate for supervised training. A correct token tells the model more than
# one reward for a whole completion, so larger steps are safe.
SUPERVISED_RATE = 4

# The embedded problems take these sentences in turn: two in English, then one in German. Each has
# the 20 letters below which the language reward does not judge.
THOUGHTS = (
    "First {}, and then {}, so together {}.",
    "First {}, and then {}, so together {}.",
    "Erst {}, dann {}, also zusammen {}.",
)


def main(arguments: Sequence[str]) -> None:
    """Run the stages that are not finished, and show the accuracy after each stage."""
    quiet()
    settings, recipe_flags = flags().parse_known_args(arguments)
    with exit_on_error():
        recipe = read(recipe_flags)
        # These imports take seconds. They stand here so that a wrong flag is reported before them.
        from grpo_hf.runs.finished import say_report
        from grpo_hf.runs.preflight import check_model, check_task
        from grpo_hf.runs.train import train

        task = check_task(recipe)
        if task.held_out is None:
            raise ConfigError(
                "eval_rows is 0; the stages are compared on held-out prompts. Give --eval_rows 200."
            )
        stages = Stages(Path(recipe.training.output_dir), tuple(recipe_flags))
        out = stages.out
        run_stage(out / "cold_start", lambda: make_base(recipe, task, settings))
        run_stage(out / "rl", lambda: train(stages.resumable("rl")))
        sampling = stages.recipe("samples")
        # The base exists only now, and its tokenizer and chat template decide the prompts.
        prompts = check_model(sampling, task)
        run_stage(out / "samples", lambda: sample(sampling, task, prompts, out / "rl", settings))
        run_stage(
            out / "sft",
            lambda: learn_samples(
                stages.recipe("sft"), prompts, out / "samples", settings.sft_epochs
            ),
        )
        adapter_flags = ("--adapter", str(out / "sft"))
        run_stage(out / "rl_again", lambda: train(stages.resumable("rl_again", *adapter_flags)))
        show(out, task.rewards, prompts.held_out.to_list(), recipe.training)
        say_report(out / "rl", out / "rl_again", page=out / REPORT_FILE)


def flags() -> argparse.ArgumentParser:
    """Return a parser for the flags of this program; other flags go to the recipe."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # Not for the embedded model: the number of its rows follows from --cold_start_steps.
    parser.add_argument("--cold_start_rows", type=int, default=1000)
    parser.add_argument("--sample_prompts", type=int, default=512)
    parser.add_argument("--samples_per_prompt", type=int, default=4)
    parser.add_argument("--sft_epochs", type=float, default=2.0)
    return parser


def read(flags: Sequence[str]) -> Any:
    """Return the settings of one run."""
    from grpo_hf.runs.recipe import read_recipe

    return read_recipe(flags, default=HERE / "r1.yaml")


@dataclass(frozen=True)
class Stages:
    """Stages makes the settings of the stages that start from the cold-started base."""

    out: Path
    flags: tuple[str, ...]

    def recipe(self, stage: str, *more_flags: str) -> Any:
        """Return the settings of a stage."""
        own_flags = [
            "--model_name_or_path",
            str(self.out / "cold_start"),
            "--cold_start_steps",
            "0",
            "--output_dir",
            str(self.out / stage),
        ]
        # Of a flag that is given twice the last one counts, so the stage's own flags come last.
        return read([*self.flags, *own_flags, *more_flags])

    def resumable(self, stage: str, *more_flags: str) -> Any:
        """Return the settings of a stage that resumes from its last checkpoint, if it has one."""
        return self.recipe(stage, *more_flags, *resumed(self.out / stage))


def run_stage(folder: Path, work: Callable[[], object]) -> None:
    """Do a stage's work unless the stage is finished."""
    if (folder / FINISHED).exists():
        print(f"stage {folder.name}: finished before, in {folder}", flush=True)
        return
    print(f"stage {folder.name}", flush=True)
    work()
    # Written last: an interrupted stage has no such file and is run again.
    (folder / FINISHED).touch()


def resumed(folder: Path) -> list[str]:
    """Return the flags that start a stage, or resume it from its last whole checkpoint."""
    from grpo_hf.durability.resume import AUTO
    from grpo_hf.runs.checkpoints import clear_without_checkpoint

    clear_without_checkpoint(folder)
    return ["--resume_from_checkpoint", AUTO]


def in_r1_form(answer: str, *, number: int | None = None) -> str:
    """Return a GSM8K answer (`working`, then `#### n`) in R1's tags.

    Args:
        number: the index of an embedded problem, whose working becomes a sentence; None for GSM8K.
    """
    working, _, gold = answer.rpartition("####")
    # GSM8K's calculator notes, such as <<2*3=6>>, are not part of the text.
    working = re.sub(r"<<.*?>>", "", working).strip()
    if number is not None:
        working = THOUGHTS[number % len(THOUGHTS)].format(*working.splitlines())
    return f"<think>{working}</think><answer>{gold.strip()}</answer>"


def make_base(recipe: Any, task: Any, settings: argparse.Namespace) -> None:
    """Run stage cold_start, which makes the base of all later stages."""
    from grpo_hf.runs.preflight import check_model
    from grpo_hf.runs.recipe import EMBEDDED_MODEL

    if recipe.model.model_name_or_path == EMBEDDED_MODEL:
        teach_embedded(recipe, Path(recipe.training.output_dir) / "cold_start")
    else:
        teach(recipe, check_model(recipe, task), settings.cold_start_rows)


def teach_embedded(recipe: Any, folder: Path) -> None:
    """Train all weights of the embedded model on worked problems in R1's form."""
    from grpo_hf.demo.cold_start import BATCH, cold_start, like_the_run
    from grpo_hf.demo.word_problems import word_problems

    steps = recipe.task.cold_start_steps
    seed = recipe.training.seed
    worked = []
    rows = islice(word_problems("cold_start", seed=seed), steps * BATCH)
    for number, row in enumerate(rows):
        worked.append({**row, "answer": in_r1_form(row["answer"], number=number)})
    checkpoint = cold_start(
        folder.parent, steps=steps, **like_the_run(recipe.training), worked=worked
    )
    # `cold_start` names the folder after its settings; here the stage has a fixed folder.
    checkpoint.rename(folder)


def teach(recipe: Any, prompts: Any, count: int) -> None:
    """Train a LoRA adapter on training problems with their solutions, and merge it into the model.

    Raises:
        DataError: the training data has no solutions.
    """
    if "answer" not in prompts.train.column_names:
        raise DataError(
            "the cold start needs a column answer with solutions that end in `#### n`, "
            "as GSM8K has them."
        )
    pairs = []
    for row in prompts.train.select(range(min(count, len(prompts.train)))):
        pairs.append((row["prompt"], in_r1_form(row["answer"])))
    folder = Path(recipe.training.output_dir) / "cold_start"
    model = supervised(recipe, prompts.tokenizer, pairs, folder, epochs=1)
    # Later stages put a fresh adapter on this model, so what it learned goes into its weights.
    model.merge_and_unload().save_pretrained(folder)


def sample(
    recipe: Any, task: Any, prompts: Any, adapter: Path, settings: argparse.Namespace
) -> None:
    """Run stage samples: keep the samples that get the full mark of every reward.

    Raises:
        DataError: no sample is kept.
    """
    folder = Path(recipe.training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    count = min(settings.sample_prompts, len(prompts.train))
    rows = prompts.train.select(range(count)).to_list()
    groups = sample_adapter(recipe, prompts.tokenizer, rows, adapter, settings.samples_per_prompt)
    # The rewards take one row per completion.
    row_of_text = []
    texts = []
    for row, group in zip(rows, groups, strict=True):
        row_of_text += [row] * len(group)
        texts += group
    passed = full_marks(task.rewards, recipe.training, row_of_text, texts)
    kept = []
    for row, text, is_passed in zip(row_of_text, texts, passed, strict=True):
        if is_passed:
            kept.append((row["prompt"], text))
    print(
        f"rejection sampling: {len(kept)} of {len(texts)} answers have every full mark", flush=True
    )
    if not kept:
        raise DataError(
            "no sample has the full mark of every reward: train stage rl longer, or ask for less."
        )
    write_lines(folder / SAMPLES_FILE, kept)


def sample_adapter(
    recipe: Any, tokenizer: Any, rows: list[dict[str, Any]], adapter: Path, samples_per_prompt: int
) -> list[list[str]]:
    """Return samples of an adapter on the base for every row, with the settings of training."""
    from peft import PeftModel

    from grpo_hf.evaluation.answers import sampled_completions
    from grpo_hf.models.loading import load_base
    from grpo_hf.rollout.sampling import sampling_of

    training = recipe.training
    # No trainer moves the model to the device or turns dropout off here.
    model = PeftModel.from_pretrained(load_base(recipe.model), adapter).to(training.device).eval()
    return sampled_completions(
        model,
        tokenizer,
        [row["prompt"] for row in rows],
        samples_per_prompt,
        sampling=sampling_of(training),
        seed=training.seed,
        max_new_tokens=training.max_completion_length,
        batch_size=BATCH,
        template_options=training.chat_template_kwargs,
    )


def full_marks(
    rewards: Sequence[Any], training: Any, rows: list[dict[str, Any]], texts: list[str]
) -> list[bool]:
    """Return for each completion whether it gets the full mark of every reward."""
    from grpo_hf.evaluation.answers import judging, right_answers

    passed = [True] * len(texts)
    with judging(rewards, training) as judges:
        for judge in judges:
            for index, is_right in enumerate(right_answers(judge, rows, texts)):
                # None, a reward that failed, counts as no full mark.
                passed[index] = passed[index] and bool(is_right)
    return passed


def write_lines(file: Path, values: Sequence[Any]) -> None:
    """Write values to a JSON Lines file."""
    lines = [json.dumps(value) + "\n" for value in values]
    file.write_text("".join(lines), encoding="utf-8")


def learn_samples(recipe: Any, prompts: Any, samples: Path, epochs: float) -> None:
    """Run stage sft: train a fresh adapter on the kept samples, and answer the held-out prompts."""
    from grpo_hf.evaluation.answers import greedy_of_run
    from grpo_hf.run_files import EVALUATION_FILE

    folder = Path(recipe.training.output_dir)
    # Written whole by the stage before; each line is a pair, which is no object.
    lines = (samples / SAMPLES_FILE).read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    model = supervised(recipe, prompts.tokenizer, pairs, folder, epochs=epochs)
    model.save_pretrained(folder)
    texts = greedy_of_run(model, prompts.tokenizer, prompts.held_out["prompt"], recipe.training)
    # The same format as the evaluation of a GRPO run, so that `show` reads all stages alike.
    evaluation = [{"adapter": {"answer": text}} for text in texts]
    write_lines(folder / EVALUATION_FILE, evaluation)


def supervised(
    recipe: Any, tokenizer: Any, pairs: list[Any], folder: Path, *, epochs: float
) -> Any:
    """Train a fresh adapter on the recipe's model with pairs of prompt and completion.

    Returns:
        The model with the adapter.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer, get_peft_config

    from grpo_hf.data.completions import as_completions
    from grpo_hf.models.loading import load_base

    training = recipe.training
    args = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=SUPERVISED_RATE * training.learning_rate,
        warmup_steps=5,
        logging_steps=10,
        bf16=training.bf16,
        fp16=training.fp16,
        use_cpu=training.use_cpu,
        gradient_checkpointing=training.gradient_checkpointing,
        # No checkpoints. A supervised stage is short: after an interruption it starts again.
        save_strategy="no",
        report_to="none",
        seed=training.seed,
        disable_tqdm=True,
    )
    rows = []
    for prompt, text in pairs:
        rows.append({"prompt": prompt, "completion": as_completions([text], [prompt])[0]})
    trainer = SFTTrainer(
        load_base(recipe.model),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=get_peft_config(recipe.model),
    )
    trainer.train()
    # Beside the weights, so that the folder can be loaded like any other model.
    tokenizer.save_pretrained(folder)
    return trainer.model


if __name__ == "__main__":
    main(sys.argv[1:])
