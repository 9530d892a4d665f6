"""DeepSeek-R1's stages, one after the other, on small data (arXiv 2501.12948, section 2.3 and figure 2).

    python recipes/r1.py --config recipes/r1_tiny.yaml    # embedded model and problems, offline, minutes on one core
    python recipes/r1.py                                  # Qwen2.5-1.5B-Instruct on GSM8K, from the Hub, on one GPU

    cold_start   supervised steps on worked problems: the form, and enough to begin with       a checkpoint, the base
    rl           GRPO with rewards for accuracy, form and language                             an adapter on it
    samples      answers of that adapter to training prompts; those with every full mark stay  samples.jsonl
    sft          a fresh adapter on the base learns the answers that stayed                    an adapter
    rl_again     GRPO goes on from there                                                       an adapter

At the end each stage's answers to the same held-out prompts stand in one table. A stage has a folder of its own in
--output_dir, and one that is finished is not run again: the same command goes on where an interrupted run was.

The settings are those of both GRPO stages; beside them there are --cold_start_rows, --sample_prompts,
--samples_per_prompt and --sft_epochs. The embedded model's worked problems think in German every third time, so
that it mixes languages as R1-Zero did, and the language reward has something to do.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from grpo_hf.errors import ConfigError, DataError
from grpo_hf.runs.program import exit_on_error, quiet

HERE = Path(__file__).parent
FINISHED = "finished"  # an empty file in the folder of a stage that is
BATCH = 32  # of supervised steps, and of prompts that are sampled together
SUPERVISED_RATE = (
    4  # times GRPO's learning rate: a right token says more than a reward for all of them
)
THOUGHTS = (
    "First {}, then {}, so together {}.",
    "First {}, then {}, so together {}.",
    "Erst {}, dann {}, also zusammen {}.",
)


def main(arguments: Sequence[str]) -> None:
    """Run the stages that are not finished, and show what each of them brought."""
    quiet()
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument(
        "--cold_start_rows", type=int, default=1000
    )  # the embedded model has as many as it takes
    flags.add_argument("--sample_prompts", type=int, default=512)
    flags.add_argument("--samples_per_prompt", type=int, default=4)
    flags.add_argument("--sft_epochs", type=float, default=2.0)
    settings, rest = flags.parse_known_args(arguments)
    from grpo_hf.runs.recipe import EMBEDDED_MODEL, read_recipe

    with exit_on_error():
        recipe = read_recipe(rest, default=HERE / "r1.yaml")
        out = Path(recipe.training.output_dir)
        from grpo_hf.runs.preflight import check_model, check_task
        from grpo_hf.runs.train import train

        task = check_task(recipe)
        if task.held_out is None:
            raise ConfigError(
                "eval_rows is 0; the stages are compared on held-out prompts. Give --eval_rows 200."
            )
        if recipe.model.model_name_or_path == EMBEDDED_MODEL:
            run_stage(out / "cold_start", lambda: teach_embedded(recipe, out / "cold_start"))
        else:
            run_stage(
                out / "cold_start",
                lambda: teach(recipe, check_model(recipe, task), settings.cold_start_rows),
            )

        def on_the_base(stage: str, *more: str) -> Any:
            base = ["--model_name_or_path", str(out / "cold_start"), "--cold_start_steps", "0"]
            own = [*rest, *base, "--output_dir", str(out / stage), *more]
            return read_recipe(own, default=HERE / "r1.yaml")

        run_stage(out / "rl", lambda: train(on_the_base("rl", *resumed(out / "rl"))))
        sampling = on_the_base("samples")
        prompts = check_model(sampling, task)
        run_stage(out / "samples", lambda: sample(sampling, task, prompts, out / "rl", settings))
        run_stage(
            out / "sft",
            lambda: learn_samples(
                on_the_base("sft"), prompts, out / "samples", settings.sft_epochs
            ),
        )
        again = ("--adapter", str(out / "sft"))
        run_stage(
            out / "rl_again",
            lambda: train(on_the_base("rl_again", *again, *resumed(out / "rl_again"))),
        )
        show(out, task.rewards, prompts.held_out.to_list(), recipe.training)


def run_stage(folder: Path, work: Callable[[], object]) -> None:
    """Do a stage's work, or find that it was done."""
    if (folder / FINISHED).exists():
        print(f"stage {folder.name}: finished before, in {folder}", flush=True)
        return
    print(f"stage {folder.name}", flush=True)
    work()
    (folder / FINISHED).touch()


def resumed(folder: Path) -> list[str]:
    """The flags with which a stage goes on where it was interrupted."""
    from grpo_hf.runs.checkpoints import whole_checkpoint

    checkpoint = whole_checkpoint(folder)
    return [] if checkpoint is None else ["--resume_from_checkpoint", checkpoint]


def in_r1_form(answer: str, *, number: int | None = None) -> str:
    """GSM8K's `working` and `#### n` in R1's tags; of the embedded problem `number`, the working as a sentence."""
    working, _, gold = answer.rpartition("####")
    working = re.sub(r"<<.*?>>", "", working).strip()  # GSM8K's calculator notes
    if number is not None:
        working = THOUGHTS[number % len(THOUGHTS)].format(*working.splitlines())
    return f"<think>{working}</think><answer>{gold.strip()}</answer>"


def teach_embedded(recipe: Any, folder: Path) -> None:
    """Stage cold_start for the embedded model: all its weights learn."""
    from grpo_hf.demo.cold_start import BATCH, cold_start
    from grpo_hf.demo.word_problems import word_problems

    steps, seed, use_cpu = (
        recipe.task.cold_start_steps,
        recipe.training.seed,
        recipe.training.use_cpu,
    )
    rows = enumerate(islice(word_problems("cold_start", seed=seed), steps * BATCH))
    worked = [{**row, "answer": in_r1_form(row["answer"], number=number)} for number, row in rows]
    cold_start(folder.parent, steps=steps, seed=seed, use_cpu=use_cpu, worked=worked).rename(folder)


def teach(recipe: Any, prompts: Any, count: int) -> None:
    """Stage cold_start for any other model: a LoRA learns training problems with their solutions, and is merged."""
    if "answer" not in prompts.train.column_names:
        raise DataError(
            "the cold start needs a column answer with solutions that end in `#### n`, as GSM8K has them."
        )
    rows = prompts.train.select(range(min(count, len(prompts.train))))
    pairs = [(row["prompt"], in_r1_form(row["answer"])) for row in rows]
    folder = Path(recipe.training.output_dir) / "cold_start"
    model = supervised(recipe, prompts.tokenizer, pairs, folder, epochs=1)
    model.merge_and_unload().save_pretrained(folder)


def sample(
    recipe: Any, task: Any, prompts: Any, adapter: Path, settings: argparse.Namespace
) -> None:
    """Stage samples: rejection sampling, where an answer stays if every reward gives it the full mark."""
    from peft import PeftModel

    from grpo_hf.evaluation.answers import judging, right_answers, sampled_completions
    from grpo_hf.models.loading import load_base
    from grpo_hf.rollout.sampling import sampling_of

    training, tokenizer, folder = (
        recipe.training,
        prompts.tokenizer,
        Path(recipe.training.output_dir),
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = PeftModel.from_pretrained(load_base(recipe.model), adapter).to(training.device).eval()
    rows = prompts.train.select(range(min(settings.sample_prompts, len(prompts.train)))).to_list()
    samples = sampled_completions(
        model,
        tokenizer,
        [row["prompt"] for row in rows],
        settings.samples_per_prompt,
        sampling=sampling_of(training),
        seed=training.seed,
        max_new_tokens=training.max_completion_length,
        batch_size=BATCH,
        template_options=training.chat_template_kwargs,
    )
    asked = [row for row in rows for _ in range(settings.samples_per_prompt)]
    texts = [text for of_prompt in samples for text in of_prompt]
    with judging(task.rewards, training) as judges:
        marks = zip(*(right_answers(judge, asked, texts) for judge in judges), strict=True)
    kept = [
        (row["prompt"], text)
        for row, text, full in zip(asked, texts, marks, strict=True)
        if all(full)
    ]
    print(
        f"rejection sampling: {len(kept)} of {len(texts)} answers have every full mark", flush=True
    )
    if not kept:
        raise DataError(
            "no sample has the full mark of every reward: train stage rl longer, or ask for less."
        )
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps(pair) + "\n" for pair in kept), encoding="utf-8"
    )


def learn_samples(recipe: Any, prompts: Any, samples: Path, epochs: float) -> None:
    """Stage sft: a fresh adapter learns the samples, and answers the held-out prompts."""
    from grpo_hf.evaluation.answers import greedy_completions
    from grpo_hf.evaluation.comparison import EVALUATION_FILE

    training, folder = recipe.training, Path(recipe.training.output_dir)
    pairs = [
        json.loads(line)
        for line in (samples / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    model = supervised(recipe, prompts.tokenizer, pairs, folder, epochs=epochs)
    model.save_pretrained(folder)
    answers = greedy_completions(
        model,
        prompts.tokenizer,
        prompts.held_out["prompt"],
        max_new_tokens=training.max_completion_length,
        batch_size=training.per_device_train_batch_size,
        template_options=training.chat_template_kwargs,
    )
    lines = [json.dumps({"adapter": {"answer": answer}}) + "\n" for answer in answers]
    (folder / EVALUATION_FILE).write_text("".join(lines), encoding="utf-8")


def supervised(
    recipe: Any, tokenizer: Any, pairs: list[Any], folder: Path, *, epochs: float
) -> Any:
    """A fresh adapter on the recipe's model, trained on pairs of prompt and completion."""
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
        use_cpu=training.use_cpu,
        gradient_checkpointing=training.gradient_checkpointing,
        save_strategy="no",
        report_to="none",
        seed=training.seed,
        disable_tqdm=True,
    )
    rows = [
        {"prompt": prompt, "completion": as_completions([text], [prompt])[0]}
        for prompt, text in pairs
    ]
    trainer = SFTTrainer(
        load_base(recipe.model),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=get_peft_config(recipe.model),
    )
    trainer.train()
    tokenizer.save_pretrained(folder)
    return trainer.model


def show(out: Path, rewards: Sequence[Any], rows: list[dict[str, Any]], training: Any) -> None:
    """Print each stage's accuracy on the held-out prompts, and the share of full marks from the other rewards."""
    from rich.console import Console
    from rich.table import Table

    from grpo_hf.evaluation.answers import judging, right_answers
    from grpo_hf.evaluation.comparison import EVALUATION_FILE
    from grpo_hf.evaluation.statistics import accuracy

    table = Table(
        "stage", "right", "accuracy", "95% interval", title=f"{len(rows)} held-out prompts, greedy"
    )
    for reward in rewards[1:]:
        table.add_column(reward.name)
    stages = {"cold_start": ("rl", "base"), "rl": ("rl", "adapter"), "sft": ("sft", "adapter")}
    with judging(rewards, training) as judges:
        for stage, (folder, who) in (stages | {"rl_again": ("rl_again", "adapter")}).items():
            lines = (out / folder / EVALUATION_FILE).read_text(encoding="utf-8").splitlines()
            texts = [json.loads(line)[who]["answer"] for line in lines]
            marks = [right_answers(judge, rows, texts) for judge in judges]
            first, *others = [accuracy([bool(full) for full in found]) for found in marks]
            numbers = (
                f"{first.right}/{first.total}",
                f"{first.value:.3f}",
                f"{first.low:.3f} to {first.high:.3f}",
            )
            table.add_row(stage, *numbers, *(f"{other.value:.3f}" for other in others))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
