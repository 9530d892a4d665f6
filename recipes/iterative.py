"""Iterative GRPO with a reward model on the policy's own base (DeepSeekMath, arXiv 2402.03300, algorithm 1).

    python recipes/iterative.py --config recipes/iterative_tiny.yaml      # embedded model and problems, offline, a CPU
    accelerate launch recipes/iterative.py                                # Qwen2.5-0.5B-Instruct, GSM8K, from the Hub

    iteration 0        samples of the policy, judged by the first reward, train r_φ
    iteration 1, 2 …   the policy becomes its own reference; --max_steps of GRPO on what r_φ says;
                       samples of the new policy train r_φ on, a tenth of the pairs replayed from earlier iterations

Policy, reference and reward model are three adapters on one frozen base. The rewards of the recipe are judges here: the
first says which of two samples is better, to r_φ, and all are logged in training with the weights of `reward_weights`,
by default 0. So `rewards/gsm8k/mean` beside `rewards/reward_model/mean` shows whether what r_φ pays for is true.

Run it again after an interruption: what is finished is not done again, and it ends where it would have ended. With more
`--iterations` it goes on. Every other setting is that of recipes/gsm8k.py.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_hf.console import quiet
from grpo_hf.errors import ConfigError, exit_on_error

HERE = Path(__file__).parent
ANSWERS = "answers.jsonl"


def main(arguments: Sequence[str]) -> None:
    """Run the iterations that are not finished, and show what each of them brought."""
    quiet()
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--iterations", type=int, default=2)
    flags.add_argument("--collect_prompts", type=int, default=256)
    flags.add_argument("--collect_samples", type=int, default=8)
    flags.add_argument("--pairs_per_prompt", type=int, default=8)
    flags.add_argument("--replay", type=float, default=0.1)
    flags.add_argument("--reward_learning_rate", type=float, default=2e-5)
    flags.add_argument("--reward_epochs", type=int, default=1)
    flags.add_argument("--reward_batch_size", type=int, default=8)
    settings, rest = flags.parse_known_args(arguments)
    with exit_on_error():
        from grpo_hf.recipe import read_recipe

        recipe = read_recipe(rest, default=HERE / "iterative.yaml")
        from grpo_hf.fitting import FitSettings
        from grpo_hf.iterate import Continued, IterativeGRPO
        from grpo_hf.scoring import ScoredReward

        continued = Continued(
            prompts=settings.collect_prompts,
            samples=settings.collect_samples,
            pairs=settings.pairs_per_prompt,
            replay=settings.replay,
            fit=FitSettings(
                learning_rate=settings.reward_learning_rate,
                epochs=settings.reward_epochs,
                batch_size=settings.reward_batch_size,
            ),
        )
        task, prompts, model = ready(recipe)
        same_settings(recipe, settings)
        own = recipe.training.reward_weights or [0.0] * len(task.rewards)
        recipe.training.reward_weights = [1.0, *own]
        loop = IterativeGRPO(
            model,
            prompts.tokenizer,
            recipe.training,
            prompts.train,
            judge=ScoredReward(task.rewards[0]),
            rewards=task.rewards,
            continued=continued,
        )
        loop.run(settings.iterations)
        if prompts.held_out is not None:
            show(loop, settings.iterations, ScoredReward(task.eval_reward), prompts.held_out)


def same_settings(recipe: Any, settings: argparse.Namespace) -> None:
    """Keep what the run was begun with, and refuse to go on with anything else but more iterations."""
    from accelerate import PartialState

    file = Path(recipe.training.output_dir) / "settings.json"
    own = {name: value for name, value in vars(settings).items() if name != "iterations"}
    given = json.loads(json.dumps({**own, **recipe.given}, default=str))
    begun = json.loads(file.read_text(encoding="utf-8")) if file.exists() else given
    if different := sorted(name for name in {*begun, *given} if begun.get(name) != given.get(name)):
        name = different[0]
        raise ConfigError(
            f"{file.parent} was begun with {name} {begun.get(name)!r}, and this is {given.get(name)!r}. Go on with the "
            "settings that it has, or give another --output_dir."
        )
    if PartialState().is_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(given, indent=2) + "\n", encoding="utf-8")
    PartialState().wait_for_everyone()


def ready(recipe: Any) -> tuple[Any, Any, Any]:
    """The task, its prompts, and a fresh policy on the frozen base; nothing is loaded before all is checked."""
    from peft import get_peft_model
    from transformers import set_seed
    from trl import get_peft_config

    from grpo_hf import preflight, roles
    from grpo_hf.base import load_base
    from grpo_hf.recipe import EMBEDDED_MODEL
    from grpo_hf.run import cold_started

    task = preflight.check_task(recipe)
    if recipe.model.model_name_or_path == EMBEDDED_MODEL:
        preflight.check_rows(recipe, task, chat=False)
        recipe.model.model_name_or_path = cold_started(recipe)
    prompts = preflight.check_model(recipe, task)
    base = load_base(recipe.model, gguf_file=recipe.task.gguf_file)
    set_seed(recipe.training.seed)
    peft_config = get_peft_config(recipe.model)
    roles.guard_adapter_config(peft_config)
    return task, prompts, get_peft_model(base.to(recipe.training.device), peft_config)


def show(loop: Any, iterations: int, reward: Any, held_out: Any) -> None:
    """Print the accuracy of each iteration's policy on the held-out prompts, and what its reward model is worth."""
    from accelerate import PartialState
    from rich.console import Console
    from rich.table import Table

    from grpo_hf.evaluation import accuracy, greedy_completions, right_answers
    from grpo_hf.policy_files import load_policy

    rows = held_out.to_list()
    title = f"greedy answers to {len(rows)} held-out prompts; r_φ on fresh pairs, before it learned from them"
    table = Table(title=title)
    for column in ("iteration", "right", "accuracy", "95% interval", "r_φ tells apart", "calibration error", "pairs"):
        table.add_column(column, justify="right")
    for number in range(iterations + 1):
        place = loop.folder / f"iteration-{number}"
        if not (answers := place / ANSWERS).exists():
            load_policy(loop.model, place / "policy")
            texts = greedy_completions(
                loop.model,
                loop.tokenizer,
                [row["prompt"] for row in rows],
                max_new_tokens=loop.args.max_completion_length,
                batch_size=loop.args.per_device_train_batch_size,
                template_options=loop.args.chat_template_kwargs,
            )
            answers.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
        texts = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
        share = accuracy([bool(mark) for mark in right_answers(reward, rows, texts)])
        report = json.loads((place / "report.json").read_text(encoding="utf-8"))
        told = accuracy_of(report["before"]["accuracy"]) if number else "untrained"
        table.add_row(
            str(number),
            f"{share.right}/{share.total}",
            f"{share.value:.3f}",
            f"{share.low:.3f} to {share.high:.3f}",
            told,
            f"{report['before']['calibration_error']:.3f}" if number else "",
            f"{report['pairs']} + {report['replayed']} replayed",
        )
    if PartialState().is_main_process:
        Console(highlight=False).print(table)
        Console(highlight=False).print(f"policy: {loop.folder}/iteration-{iterations}/policy", soft_wrap=True)


def accuracy_of(report: dict[str, Any]) -> str:
    """A share and its interval, from a report."""
    return f"{report['right'] / report['total']:.3f} [{report['low']:.3f}, {report['high']:.3f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
