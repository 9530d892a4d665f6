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
`--iterations` it goes on. Every other setting is that of recipes/gsm8k.py, but for `--process_reward`, and rewards have
no weight of their own.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_hf.errors import ConfigError
from grpo_hf.runs.program import exit_on_error, quiet

HERE = Path(__file__).parent
ANSWERS, SETTINGS = "answers.jsonl", "settings.json"


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
    if {"-h", "--help"} & set(rest):
        print(f"{__doc__}\n{flags.format_help()}\nand those of recipes/gsm8k.py:\n")
    with exit_on_error():
        from grpo_hf.runs.recipe import read_recipe

        recipe = read_recipe(rest, default=HERE / "iterative.yaml")
        from accelerate import PartialState

        from grpo_hf.reward_models.fit import FitSettings
        from grpo_hf.runs import preflight
        from grpo_hf.runs import train as run
        from grpo_hf.runs.iterative import Continued, IterativeGRPO, check

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
        check(recipe.training)
        check_settings(recipe, settings)
        task = preflight.check_task(recipe)
        recipe.training.reward_weights = [
            1.0,
            *weights_of(task.rewards, recipe.training.reward_weights),
        ]
        prompts = run.prompts_of(recipe, task)
        loop = IterativeGRPO(
            run.policy_of(recipe),
            prompts.tokenizer,
            recipe.training,
            prompts.train,
            judge=task.rewards[0],
            rewards=task.rewards,
            continued=continued,
        )
        keep_settings(recipe, settings)
        loop.run(settings.iterations)
        if prompts.held_out is not None:
            show(loop, settings.iterations, task.eval_reward, prompts.held_out.to_list())
        PartialState().destroy_process_group()


def given_to(recipe: Any, settings: argparse.Namespace) -> dict[str, Any]:
    """What a run is begun with, as JSON has it; the number of iterations may grow."""
    own = {name: value for name, value in vars(settings).items() if name != "iterations"}
    return json.loads(json.dumps({**own, **recipe.given}, default=str))


def check_settings(recipe: Any, settings: argparse.Namespace) -> None:
    """Refuse to go on with anything else than what the run was begun with."""
    file, given = Path(recipe.training.output_dir) / SETTINGS, given_to(recipe, settings)
    begun = json.loads(file.read_text(encoding="utf-8")) if file.exists() else given
    if different := sorted(name for name in {*begun, *given} if begun.get(name) != given.get(name)):
        name = different[0]
        raise ConfigError(
            f"{file.parent} was begun with {name} {begun.get(name)!r}, and this is {given.get(name)!r}. Go on with the "
            "settings that it has, or give another --output_dir."
        )


def keep_settings(recipe: Any, settings: argparse.Namespace) -> None:
    """Write down what the run is begun with, once it is known to work."""
    from accelerate import PartialState

    from grpo_hf.runs.iterative import write_whole

    if PartialState().is_main_process:
        text = json.dumps(given_to(recipe, settings), indent=2)
        write_whole(Path(recipe.training.output_dir) / SETTINGS, text + "\n")


def weights_of(rewards: Sequence[Any], given: Sequence[float] | None) -> list[float]:
    """The weights of the rewards beside r_φ, which are judges unless told otherwise."""
    own = next((reward for reward in rewards if reward.settings.weight is not None), None)
    if own is not None:
        raise ConfigError(
            f"{own.spec} has a weight of its own; here rewards are judges beside r_φ. Leave the weight out, and give "
            "--reward_weights, one for each reward, to train on them as well."
        )
    return list(given or [0.0] * len(rewards))


def show(loop: Any, iterations: int, reward: Any, rows: list[dict[str, Any]]) -> None:
    """Print the accuracy of each iteration's policy on the held-out prompts, and what its reward model is worth."""
    from accelerate import PartialState
    from rich.console import Console
    from rich.table import Table

    from grpo_hf.evaluation.answers import judging, right_answers
    from grpo_hf.evaluation.statistics import accuracy

    answers = [
        answered(loop, number, [row["prompt"] for row in rows]) for number in range(iterations + 1)
    ]
    if not PartialState().is_main_process:
        return
    table = Table(
        title=f"greedy answers to {len(rows)} held-out prompts; fresh pairs that r_φ ranks right"
    )
    for column in ("iteration", "right", "accuracy", "95% interval", "r_φ", "pairs", "replayed"):
        table.add_column(column, justify="right")
    with judging([reward], loop.args) as (judge,):
        shares = [
            accuracy([bool(mark) for mark in right_answers(judge, rows, texts)])
            for texts in answers
        ]
    for number, share in enumerate(shares):
        report = json.loads(
            (loop.folder / f"iteration-{number}" / "report.json").read_text(encoding="utf-8")
        )
        ranked = report["before"]["accuracy"]
        table.add_row(
            str(number),
            f"{share.right}/{share.total}",
            f"{share.value:.3f}",
            f"{share.low:.3f} to {share.high:.3f}",
            f"{ranked['right'] / ranked['total']:.3f}"
            if number
            else "",  # before, it has learned from none
            str(report["pairs"]),
            str(report["replayed"]),
        )
    Console(highlight=False).print(table)
    Console(highlight=False).print(
        f"policy: {loop.folder}/iteration-{iterations}/policy", soft_wrap=True
    )


def answered(loop: Any, number: int, prompts: list[Any]) -> list[str]:
    """The greedy answers of an iteration's policy, by all processes, or those of an earlier call."""
    from accelerate import PartialState

    from grpo_hf.evaluation.answers import greedy_completions
    from grpo_hf.runs.checkpoints import load_policy
    from grpo_hf.runs.iterative import write_whole

    place = loop.folder / f"iteration-{number}"
    if (place / ANSWERS).exists():
        return [
            json.loads(line) for line in (place / ANSWERS).read_text(encoding="utf-8").splitlines()
        ]
    load_policy(loop.model, place / "policy")
    texts = greedy_completions(
        loop.model,
        loop.tokenizer,
        prompts,
        max_new_tokens=loop.args.max_completion_length,
        batch_size=loop.args.per_device_train_batch_size,
        template_options=loop.args.chat_template_kwargs,
    )
    if PartialState().is_main_process:
        write_whole(place / ANSWERS, "".join(json.dumps(text) + "\n" for text in texts))
    return texts


if __name__ == "__main__":
    main(sys.argv[1:])
