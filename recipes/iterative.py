"""Train with iterative GRPO and a reward model on the policy's own base.

    # embedded model and problems, offline, a CPU
    python recipes/iterative.py --config recipes/iterative_tiny.yaml
    # Qwen2.5-0.5B-Instruct and GSM8K from the Hub
    python recipes/iterative.py

    iteration 0         The first reward compares samples of the policy. The reward model r_φ is
                        trained on these pairs.
    iteration 1, 2 ...  The reference becomes a copy of the policy. GRPO runs for --max_steps with
                        r_φ as reward. r_φ is trained further on samples of the new policy; a tenth
                        of the pairs is replayed from earlier iterations.

Policy, reference and reward model are three adapters on one frozen base. The rewards of the recipe
act as judges: the first one says which of two samples is better, to train r_φ. All of them are also
logged in training, with the weights `reward_weights`, by default 0. So a comparison of
`rewards/gsm8k/mean` with `rewards/reward_model/mean` shows whether r_φ rewards correct completions.

After an interruption, run the same command again: finished work is not repeated, and the result is
the same as without the interruption. With more --iterations a finished run continues. The other
settings are those of recipes/gsm8k.py, with two exceptions: there is no --process_reward, and a
reward cannot have a weight of its own.

Source: DeepSeekMath (arXiv 2402.03300), algorithm 1.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grpo_hf.errors import ConfigError
from grpo_hf.run_files import REPORT_FILE
from grpo_hf.runs.program import exit_on_error, quiet

HERE = Path(__file__).parent

# The greedy completions of an iteration's policy, in its folder.
ANSWERS = "answers.jsonl"

# The settings of a run, in its output folder.
SETTINGS = "settings.json"

# The accuracy of every iteration, in the output folder.
RESULTS = "results.json"


def main(arguments: Sequence[str]) -> None:
    """Run the iterations that are not finished, and show the accuracy after each iteration."""
    quiet()
    parser = flags()
    settings, recipe_flags = parser.parse_known_args(arguments)
    # `read_recipe` prints the help of the other flags, and ends the program.
    if "-h" in recipe_flags or "--help" in recipe_flags:
        print(f"{__doc__}\n{parser.format_help()}\nand those of recipes/gsm8k.py:\n")
    with exit_on_error():
        from grpo_hf.runs.recipe import read_recipe

        recipe = read_recipe(recipe_flags, default=HERE / "iterative.yaml")
        # These imports take seconds. They stand here so that a wrong flag is reported before them.
        from accelerate import PartialState

        from grpo_hf.runs import preflight
        from grpo_hf.runs import train as run
        from grpo_hf.runs.iterative import IterativeGRPO, check

        continued = continued_settings(settings)
        check(recipe.training)
        check_settings(recipe, settings)
        task = preflight.check_task(recipe)
        # `IterativeGRPO` puts r_φ, with weight 1, in front of the recipe's rewards.
        judge_weights = weights_of(task.rewards, recipe.training.reward_weights)
        recipe.training.reward_weights = [1.0, *judge_weights]
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


def flags() -> argparse.ArgumentParser:
    """Return a parser for the flags of this program; other flags go to the recipe."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--collect_prompts", type=int, default=256)
    parser.add_argument("--collect_samples", type=int, default=8)
    parser.add_argument("--pairs_per_prompt", type=int, default=8)
    parser.add_argument("--replay", type=float, default=0.1)
    parser.add_argument("--reward_learning_rate", type=float, default=2e-5)
    parser.add_argument("--reward_epochs", type=int, default=1)
    parser.add_argument("--reward_batch_size", type=int, default=8)
    return parser


def continued_settings(settings: argparse.Namespace) -> Any:
    """Return the settings of the reward model's training."""
    from grpo_hf.reward_models.fit import FitSettings
    from grpo_hf.runs.iterative import Continued

    return Continued(
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


def settings_of(recipe: Any, settings: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that a run must not change, as JSON represents them."""
    own = vars(settings).copy()
    # The number of iterations may grow.
    del own["iterations"]
    # Through JSON and back, so that the result can be compared with that of a file.
    return json.loads(json.dumps({**own, **recipe.given}, default=str))


def check_settings(recipe: Any, settings: argparse.Namespace) -> None:
    """Check that a run continues with the settings that it began with.

    Raises:
        ConfigError: a setting is different.
    """
    file = Path(recipe.training.output_dir) / SETTINGS
    # A new run has no file yet.
    if not file.exists():
        return
    old = json.loads(file.read_text(encoding="utf-8"))
    new = settings_of(recipe, settings)
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            raise ConfigError(
                f"{file.parent} was begun with {name} {old.get(name)!r}, "
                f"and this is {new.get(name)!r}. Go on with the settings that it has, "
                "or give another --output_dir."
            )


def keep_settings(recipe: Any, settings: argparse.Namespace) -> None:
    """Write the settings of a run to its folder, after all checks have passed."""
    from accelerate import PartialState

    from grpo_hf.run_files import write_whole

    # All processes share the folder, and only one may write.
    if PartialState().is_main_process:
        text = json.dumps(settings_of(recipe, settings), indent=2)
        write_whole(Path(recipe.training.output_dir) / SETTINGS, text + "\n")


def weights_of(rewards: Sequence[Any], weights: Sequence[float] | None) -> list[float]:
    """Return the weights of the recipe's rewards, by default 0.

    With weights of 0, r_φ alone trains the policy.

    Raises:
        ConfigError: a reward has a weight of its own.
    """
    for reward in rewards:
        if reward.settings.weight is not None:
            raise ConfigError(
                f"{reward.spec} has a weight of its own; here rewards are judges beside r_φ. "
                "Leave the weight out, and give --reward_weights, one for each reward, "
                "to train on them as well."
            )
    return list(weights or [0.0] * len(rewards))


def show(loop: Any, iterations: int, reward: Any, rows: list[dict[str, Any]]) -> None:
    """Print the accuracy of every iteration's policy and of its reward model.

    The policies answer the held-out prompts. The accuracy of a reward model is the share of fresh
    pairs that it ranks correctly, before it has been trained on them.
    """
    from accelerate import PartialState
    from rich.console import Console
    from rich.table import Table

    from grpo_hf.evaluation.answers import judging
    from grpo_hf.run_files import write_whole
    from grpo_hf.runs.finished import say_report

    prompts = [row["prompt"] for row in rows]
    answers = []
    for number in range(iterations + 1):
        answers.append(answered(loop, number, prompts))
    # All processes take part in the answers; one of them prints.
    if not PartialState().is_main_process:
        return
    table = Table(
        title=f"greedy answers to {len(rows)} held-out prompts; fresh pairs that r_φ ranks right"
    )
    for column in ("iteration", "right", "accuracy", "95% interval", "r_φ", "pairs", "replayed"):
        table.add_column(column, justify="right")
    results = []
    with judging([reward], loop.args) as (judge,):
        for number, texts in enumerate(answers):
            results.append(iteration_result(loop, number, judge, rows, texts))
            table.add_row(str(number), *iteration_cells(results[-1]))
    write_whole(loop.folder / RESULTS, json.dumps(results, indent=1) + "\n")
    console = Console(highlight=False)
    console.print(table)
    # In one piece, so that the paths can be copied.
    console.print(f"policy: {loop.folder}/iteration-{iterations}/policy", soft_wrap=True)
    policies = [loop.folder / f"iteration-{number}/policy" for number in range(1, iterations + 1)]
    say_report(*policies, page=loop.folder / REPORT_FILE)


def iteration_result(
    loop: Any, number: int, judge: Any, rows: list[dict[str, Any]], texts: list[str]
) -> dict[str, Any]:
    """Return the accuracy of one iteration's policy, and what is known of its reward model."""
    from grpo_hf.evaluation.answers import right_answers
    from grpo_hf.evaluation.statistics import accuracy

    share = accuracy(list(map(bool, right_answers(judge, rows, texts))))
    file = loop.folder / f"iteration-{number}" / "report.json"
    report = json.loads(file.read_text(encoding="utf-8"))
    ranked = report["before"]["accuracy"]
    return {
        "policy": asdict(share),
        # Before iteration 0 the reward model has not been trained at all.
        "ranked": ranked if number > 0 else None,
        "pairs": report["pairs"],
        "replayed": report["replayed"],
    }


def iteration_cells(result: dict[str, Any]) -> list[str]:
    """Return the cells of the table for one iteration."""
    share, ranked = result["policy"], result["ranked"]
    return [
        f"{share['right']}/{share['total']}",
        f"{share['right'] / share['total']:.3f}",
        f"{share['low']:.3f} to {share['high']:.3f}",
        f"{ranked['right'] / ranked['total']:.3f}" if ranked else "",
        str(result["pairs"]),
        str(result["replayed"]),
    ]


def answered(loop: Any, number: int, prompts: list[Any]) -> list[str]:
    """Return the greedy completions of an iteration's policy.

    All processes share the work. The result is kept in a file, and later calls read it.
    """
    from accelerate import PartialState

    from grpo_hf.evaluation.answers import greedy_of_run
    from grpo_hf.run_files import write_whole
    from grpo_hf.runs.checkpoints import load_policy

    folder = loop.folder / f"iteration-{number}"
    file = folder / ANSWERS
    if file.exists():
        return list(map(json.loads, file.read_text(encoding="utf-8").splitlines()))
    load_policy(loop.model, folder / "policy")
    texts = greedy_of_run(loop.model, loop.tokenizer, prompts, loop.args)
    if PartialState().is_main_process:
        lines = [json.dumps(text) + "\n" for text in texts]
        # An interrupted write must not leave a part of the file, which the next call would read.
        write_whole(file, "".join(lines))
    return texts


if __name__ == "__main__":
    main(sys.argv[1:])
