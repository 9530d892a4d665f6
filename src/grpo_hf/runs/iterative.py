"""Iterative GRPO (DeepSeekMath, arXiv 2402.03300, algorithm 1): reward model and reference follow the policy.

    for every iteration
        π_ref ← π_θ                                    a frozen copy of the adapter
        M steps of GRPO on the rewards of r_φ
        r_φ learns from samples of π_θ, a share of its pairs replayed from earlier iterations

All of them are adapters on one base. Each iteration has a folder, and each of its phases a result there:

    iteration-2/policy/           the trainer's run, with its checkpoints
    iteration-2/samples.jsonl     prompts, completions and what a rule says of them: the replay buffer of later ones
    iteration-2/reward_model/     a PEFT adapter with its head
    iteration-2/report.json       what r_φ was worth on these samples, before and after it learned from them

A phase reads what it begins with from there, and its result counts once it is complete, so a run that was killed goes
on where it was and ends where it would have ended: a GRPO phase from its last whole checkpoint, every other phase from
its start. Iteration 0 is the policy as it came, and its first r_φ.
"""

import copy
import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel

from ..models import adapters
from ..config import GRPOConfig, option
from ..data.completions import as_completions
from ..errors import ConfigError, DataError
from ..evaluation.answers import judged, judging, sampled_completions
from ..reward_models.fit import FitSettings
from ..update.cpu_lora import join_products
from .checkpoints import is_at_its_end, load_policy, save_policy, whole_checkpoint
from ..reward_models.preferences import Pair, ScoredGroup, pairs_of
from ..scoring.reward import Reward
from ..reward_models.model import RewardModel
from ..rollout.sampling import sampling_of
from ..trainer import GRPOTrainer

_FINISHED = "finished"  # an empty file in the folder of a policy that is


@dataclass(frozen=True)
class Continued:
    """How the reward model learns between the iterations.

    Args:
        prompts: of the training data, drawn anew in every iteration.
        samples: of each prompt.
        pairs: of each prompt at most.
        replay: share of the pairs that come from earlier iterations.
        fit: learning rate, epochs, batch size.

    Raises:
        ConfigError: `replay` is no share below 1, or a number is below its least.
    """

    prompts: int = 256
    samples: int = 8
    pairs: int = 8
    replay: float = 0.1
    fit: FitSettings = field(default_factory=FitSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.replay < 1 or self.prompts < 1 or self.samples < 2 or self.pairs < 1:
            raise ConfigError(
                f"prompts {self.prompts}, samples {self.samples}, pairs {self.pairs}, replay {self.replay}; expected "
                "at least 1, 2 and 1, and a share from 0 to below 1."
            )


def check(args: GRPOConfig) -> None:
    """Check that settings leave algorithm 1 what it needs.

    Raises:
        ConfigError: a reference that does not follow the policy, or `process_reward`, which would judge by r_φ.
    """
    if args.beta != 0 and option(args, "reference") == "base":
        raise ConfigError(
            "reference 'base' holds every iteration to the base, and algorithm 1 holds each to the policy before it. "
            "Set --reference initial, or --beta 0 for no reference at all."
        )
    if (spec := option(args, "process_reward")) is not None:
        raise ConfigError(
            f"process_reward {spec!r} judges continuations by the first reward, and in iterative GRPO that is r_φ, "
            "which gives no shares of right ones. Leave process_reward out."
        )


class IterativeGRPO:
    """The loop over a policy `model`, which holds adapter `default` on a frozen base.

    Args:
        args: of each iteration's GRPO; `max_steps` is M, `output_dir` the folder of all, and `seed` is counted up.
        rewards: beside that of r_φ, which comes first; `reward_weights` has an entry for each.
        judge: what says which samples are better, to r_φ: a rule on the data's columns.

    Raises:
        ConfigError: see `check`.
        ModelError: a 4-bit base whose weights cannot train any more.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: Any,
        args: GRPOConfig,
        dataset: Any,
        *,
        judge: Reward,
        rewards: Sequence[Any] = (),
        continued: Continued | None = None,
    ) -> None:
        check(args)
        adapters.keep_trainable(model)  # before the first samples
        self.model, self.tokenizer, self.args, self.dataset = model, tokenizer, args, dataset
        self.judge, self.rewards, self.continued = judge, list(rewards), continued or Continued()
        self.folder = Path(args.output_dir)
        join_products(
            model
        )  # as the trainer will: all phases round alike, whichever a process begins with

    def run(self, iterations: int) -> RewardModel:
        """Do what is not done of so many iterations; the last one's policy and reward model are then on the base."""
        for number in range(iterations + 1):
            place = self.folder / f"iteration-{number}"
            for phase, result in (
                (self._policy, place / "policy" / _FINISHED),
                (self._samples, place / "samples.jsonl"),
                (self._reward_model, place / "reward_model"),
            ):
                if all(gather_object([result.exists()])):
                    continue
                PartialState().print(
                    f"iteration {number}: {result.relative_to(place).parts[0]}", flush=True
                )
                phase(number, place)
                PartialState().wait_for_everyone()
        return self.load(iterations)

    def load(self, number: int) -> RewardModel:
        """Put the policy and the reward model that an iteration ended with on the base."""
        place = self.folder / f"iteration-{number}"
        load_policy(self.model, place / "policy")
        if "reward" in self.model.peft_config:
            self.model.delete_adapter("reward")
        return RewardModel.load(place / "reward_model", self.model, self.tokenizer)

    def _policy(self, number: int, place: Path) -> None:
        """π_ref ← π_θ, then M steps of GRPO."""
        folder = place / "policy"
        if number == 0:
            save_policy(self.model, folder)
        else:
            reward_model = self.load(number - 1)
            adapters.drop_reference(
                self.model
            )  # TRL makes the new one, a copy of the policy as it is
            args = copy.copy(self.args)
            args.output_dir, args.seed = str(folder), self.args.seed + number
            checkpoint = whole_checkpoint(folder)
            trainer = GRPOTrainer(
                self.model,
                [reward_model.as_reward(), *self.rewards],
                args,
                train_dataset=self.dataset,
                processing_class=self.tokenizer,
            )
            if checkpoint is not None and is_at_its_end(checkpoint):
                load_policy(self.model, Path(checkpoint))
            else:
                trainer.train(resume_from_checkpoint=checkpoint)
            trainer.save_model()  # and no `trainer.end()`, which ends the process group for good
        if PartialState().is_main_process:
            (folder / _FINISHED).touch()

    def _samples(self, number: int, place: Path) -> None:
        """Completions of the policy, and what the rule says of them."""
        load_policy(self.model, place / "policy")
        chosen = random.Random(f"{self.args.seed}/{number}")
        count = min(self.continued.prompts, len(self.dataset))
        rows = self.dataset.select(chosen.sample(range(len(self.dataset)), count)).to_list()
        completions = sampled_completions(
            self.model,
            self.tokenizer,
            [row["prompt"] for row in rows],
            self.continued.samples,
            sampling=sampling_of(self.args),
            seed=self.args.seed + number,
            max_new_tokens=self.args.max_completion_length,
            batch_size=max(1, self.args.per_device_train_batch_size // self.continued.samples),
            template_options=self.args.chat_template_kwargs,
        )
        if PartialState().is_main_process:
            asked = [row for row in rows for _ in range(self.continued.samples)]
            with judging([self.judge], self.args) as (judge,):
                scores = iter(
                    judged(judge, asked, [text for texts in completions for text in texts])
                )
            lines = []
            for row, texts in zip(rows, completions, strict=True):
                shaped = as_completions(texts, [row["prompt"]])
                line = {
                    "prompt": row["prompt"],
                    "completions": shaped,
                    "scores": [next(scores) for _ in texts],
                }
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            write_whole(place / "samples.jsonl", "".join(lines))

    def _reward_model(self, number: int, place: Path) -> None:
        """r_φ goes on learning, from this iteration's pairs and a few of earlier ones."""
        if number == 0:
            reward_model = RewardModel.on(self.model, self.tokenizer, seed=self.args.seed)
        else:
            reward_model = self.load(number - 1)
        fresh, replayed = self._pairs(number)
        before = reward_model.evaluate(fresh)  # of samples that it has not learned from
        reward_model.fit_pairs(
            fresh + replayed, **vars(replace(self.continued.fit, seed=self.args.seed + number))
        )
        report = {"pairs": len(fresh), "replayed": len(replayed), "before": asdict(before)}
        report["fitted"] = asdict(reward_model.evaluate(fresh))
        if PartialState().is_main_process:
            (place / "report.json").write_text(
                json.dumps(report, indent=2) + "\n", encoding="utf-8"
            )
            partial = place / "reward_model.partial"
            shutil.rmtree(partial, ignore_errors=True)
            reward_model.save(partial)
            partial.rename(place / "reward_model")

    def _pairs(self, number: int) -> tuple[list[Pair], list[Pair]]:
        """This iteration's pairs, and those replayed: `replay` of all are from earlier ones, if these have as many."""
        files = [self.folder / f"iteration-{n}" / "samples.jsonl" for n in range(number + 1)]
        *earlier, fresh = (
            pairs_of(_read(f), limit=self.continued.pairs, seed=n) for n, f in enumerate(files)
        )
        if not fresh:
            raise DataError(
                f"{files[-1]}: the rule says the same of all samples of each prompt, so no pair of them teaches r_φ "
                "anything. Take prompts that the policy can sometimes do, or more samples of each, and another output "
                "folder for that."
            )
        history = [pair for pairs in earlier for pair in pairs]
        wanted = round(len(fresh) * self.continued.replay / (1 - self.continued.replay))
        return fresh, random.Random(number).sample(history, min(wanted, len(history)))


def write_whole(file: Path, text: str) -> None:
    """Write a file, all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def _read(samples: Path) -> list[ScoredGroup]:
    lines = samples.read_text(encoding="utf-8").split("\n")[
        :-1
    ]  # splitlines would cut at U+2028 in a text as well
    rows = map(json.loads, lines)
    return [ScoredGroup(row["prompt"], row["completions"], row["scores"]) for row in rows]
