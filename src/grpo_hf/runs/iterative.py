"""Iterative GRPO (DeepSeekMath, arXiv 2402.03300, algorithm 1): policy and reward model in turns.

    for every iteration
        π_ref ← π_θ                  the reference becomes a frozen copy of the policy's adapter
        M steps of GRPO on the rewards of r_φ
        r_φ learns from samples of π_θ; a share of its pairs is replayed from earlier iterations

Policy, reference and reward model are adapters on one base. Each iteration has a folder, and each
of its phases writes one result into it:

    iteration-2/policy/           the trainer's run, with its checkpoints
    iteration-2/samples.jsonl     prompts, completions and their scores by a rule: the replay buffer
                                  of later iterations
    iteration-2/reward_model/     a PEFT adapter with its head
    iteration-2/report.json       the accuracy of r_φ on these samples, before and after it learned

A phase reads its input from these folders, and its result counts once it is complete. A run that
was killed therefore continues with the phase that it was in, and ends with the same weights as a
run without an interruption: a GRPO phase continues from its last whole checkpoint, every other
phase from its start. Iteration 0 is the policy before any GRPO, and its first r_φ.
"""

import copy
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel

from .. import trl_seam
from ..config import GRPOConfig, option
from ..data.completions import Completion, as_completions
from ..durability.resume import AUTO
from ..errors import ConfigError, DataError, GrpoError
from ..evaluation.answers import judged, judging, sampled_completions
from ..models import adapters
from ..models.shards import strategy_of
from ..reward_models.fit import FitSettings
from ..reward_models.model import RewardModel
from ..reward_models.preferences import Pair, ScoredGroup, pairs_of
from ..rollout.sampling import sampling_of
from ..run_files import say, write_whole
from ..scoring.reward import Reward
from ..trainer import GRPOTrainer
from ..update.cpu_lora import join_products
from ..update.cpu_products import multiply_faster
from .checkpoints import clear_without_checkpoint, load_policy, save_policy
from .finished import push_run

# An empty file with this name marks a policy folder whose training has ended.
_FINISHED = "finished"
_SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Continued:
    """How the reward model continues to learn between the iterations.

    Args:
        prompts: the number of training prompts that are drawn in every iteration.
        samples: the number of completions of each prompt.
        pairs: the largest number of pairs of each prompt.
        replay: the share of the pairs that come from earlier iterations.
        fit: learning rate, epochs and batch size.

    Raises:
        ConfigError: `replay` is not a share below 1, or a number is below its minimum.
    """

    prompts: int = 256
    samples: int = 8
    pairs: int = 8
    replay: float = 0.1
    fit: FitSettings = field(default_factory=FitSettings)

    def __post_init__(self) -> None:
        # A pair takes two samples of one prompt.
        if not 0 <= self.replay < 1 or self.prompts < 1 or self.samples < 2 or self.pairs < 1:
            raise ConfigError(
                f"prompts {self.prompts}, samples {self.samples}, pairs {self.pairs}, replay "
                f"{self.replay}; expected at least 1, 2 and 1, and a share from 0 to below 1."
            )


def check(args: GRPOConfig) -> None:
    """Check that the settings do not contradict algorithm 1.

    Raises:
        ConfigError: FSDP or DeepSpeed shards the weights, of which each phase begins with whole
            ones; the reference is the base, which does not follow the policy; or `process_reward`
            is set, which would score continuations by r_φ.
    """
    if strategy_of(args) != "ddp":
        raise ConfigError(
            "iterative GRPO samples, fits r_φ and begins each phase on whole weights, and FSDP and "
            "DeepSpeed shard them in the first phase for good. Train on plain processes (DDP: "
            "accelerate launch --multi_gpu), with a 4-bit base (--load_in_4bit true) where memory "
            "is short."
        )
    if args.beta != 0 and option(args, "reference") == "base":
        raise ConfigError(
            "reference 'base' holds every iteration to the base, and algorithm 1 holds each to the "
            "policy before it. Set --reference initial, or --beta 0 for no reference at all."
        )
    spec = option(args, "process_reward")
    if spec is not None:
        raise ConfigError(
            f"process_reward {spec!r} judges continuations by the first reward, and in iterative "
            "GRPO that is r_φ, which gives no shares of right ones. Leave process_reward out."
        )


class IterativeGRPO:
    """The loop over a policy `model`, an adapter on a frozen base.

    Args:
        args: the settings of each iteration's GRPO. `max_steps` is M, `output_dir` is the folder of
            all iterations, and iteration n uses `seed` + n.
        judge: the rule on the data's columns that says which samples are better; r_φ learns from
            it.
        rewards: further rewards beside r_φ, which comes first; `reward_weights` has an entry for
            each of them.

    Raises:
        ConfigError: see `check`.
        ModelError: the weights of a 4-bit base cannot train any more.
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
        # The first phase may sample before any trainer exists, and on some CPUs one inference packs
        # 4-bit weights for good.
        adapters.keep_trainable(model)
        self.model = model
        self.tokenizer = tokenizer
        self.args = args
        self.dataset = dataset
        self.judge = judge
        self.rewards = list(rewards)
        self.continued = continued or Continued()
        self.folder = Path(args.output_dir)
        # The trainer will do the same. A process that resumes may begin with any phase, and every
        # phase has to round as it did in a run without an interruption.
        multiply_faster(model)
        join_products(model)

    def run(self, iterations: int) -> RewardModel:
        """Do what is missing of that many iterations, and return the last reward model.

        The policy and the reward model of the last iteration are then on the base.
        """
        for number in range(iterations + 1):
            place = self._place(number)
            phases = (
                (self._policy, place / "policy" / _FINISHED),
                (self._samples, place / _SAMPLES),
                (self._reward_model, place / "reward_model"),
            )
            for phase, result in phases:
                # All processes must agree, or some would wait in a phase that others skip.
                if all(gather_object([result.exists()])):
                    continue
                name = result.relative_to(place).parts[0]
                PartialState().print(f"iteration {number}: {name}", flush=True)
                phase(number, place)
                PartialState().wait_for_everyone()
        return self.load(iterations)

    def load(self, number: int) -> RewardModel:
        """Put the final policy and reward model of an iteration on the base."""
        place = self._place(number)
        load_policy(self.model, place / "policy")
        if "reward" in self.model.peft_config:
            self.model.delete_adapter("reward")
        return RewardModel.load(place / "reward_model", self.model, self.tokenizer)

    def _place(self, number: int) -> Path:
        return self.folder / f"iteration-{number}"

    def _policy(self, number: int, place: Path) -> None:
        """Set π_ref ← π_θ and take M steps of GRPO; iteration 0 only saves the policy."""
        folder = place / "policy"
        if number == 0:
            save_policy(self.model, folder)
        else:
            self._train_policy(number, folder)
        if PartialState().is_main_process:
            (folder / _FINISHED).touch()
            if self.args.push_to_hub and number > 0:
                self._push(folder)

    def _push(self, folder: Path) -> None:
        """Push the policy of an iteration; the next one begins whether that succeeds or not."""
        try:
            push_run(folder, self.args.hub_model_id or folder.name, self.args)
        except GrpoError as error:
            say(f"note: {error}")

    def _train_policy(self, number: int, folder: Path) -> None:
        """Train the policy of the previous iteration, and save it in `folder`."""
        reward_model = self.load(number - 1)
        args = copy.copy(self.args)
        args.output_dir = str(folder)
        args.seed = self.args.seed + number
        # The trainer refuses a folder with another run's weights, so leftovers go first.
        clear_without_checkpoint(folder)
        trainer = GRPOTrainer(
            self.model,
            [reward_model.as_reward(), *self.rewards],
            args,
            train_dataset=self.dataset,
            processing_class=self.tokenizer,
        )
        trainer.train(resume_from_checkpoint=AUTO)
        # There is no `end_training()` here: it ends the process group, which later phases need.
        trl_seam.save_model_here(trainer)
        trl_seam.finish_pushes(trainer)

    def _samples(self, number: int, place: Path) -> None:
        """Sample completions of the policy and write them with their scores by the rule."""
        load_policy(self.model, place / "policy")
        # The seed depends on the iteration alone, so a phase that is repeated draws the same rows.
        rng = random.Random(f"{self.args.seed}/{number}")
        count = min(self.continued.prompts, len(self.dataset))
        rows = self.dataset.select(rng.sample(range(len(self.dataset)), count)).to_list()
        completions = sampled_completions(
            self.model,
            self.tokenizer,
            [row["prompt"] for row in rows],
            self.continued.samples,
            sampling=sampling_of(self.args),
            seed=self.args.seed + number,
            max_new_tokens=self.args.max_completion_length,
            # This counts prompts: a batch then has as many completions as a training batch.
            batch_size=max(1, self.args.per_device_train_batch_size // self.continued.samples),
            template_options=self.args.chat_template_kwargs,
        )
        if PartialState().is_main_process:
            write_whole(place / _SAMPLES, self._judged_lines(rows, completions))

    def _judged_lines(
        self, rows: Sequence[dict[str, Any]], completions: Sequence[Sequence[Completion]]
    ) -> str:
        """Score the completions of each row by the rule; return one JSON line per row."""
        row_of_text: list[dict[str, Any]] = []
        all_texts: list[Completion] = []
        for row, texts in zip(rows, completions, strict=True):
            row_of_text += [row] * len(texts)
            all_texts += texts
        with judging([self.judge], self.args) as (judge,):
            outcomes = judged(judge, row_of_text, all_texts)
        scores = iter([outcome.value for outcome in outcomes])
        lines = []
        for row, texts in zip(rows, completions, strict=True):
            line = {
                "prompt": row["prompt"],
                "completions": as_completions(texts, [row["prompt"]]),
                "scores": [next(scores) for _ in texts],
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        return "".join(lines)

    def _reward_model(self, number: int, place: Path) -> None:
        """Train r_φ on pairs of this iteration and a few of earlier ones, and save it."""
        if number == 0:
            reward_model = RewardModel.on(self.model, self.tokenizer, seed=self.args.seed)
        else:
            reward_model = self.load(number - 1)
        fresh, replayed = self._pairs(number)
        # Here it has not learned from these samples yet.
        before = reward_model.evaluate(fresh)
        settings = replace(self.continued.fit, seed=self.args.seed + number)
        reward_model.fit_pairs(fresh + replayed, **vars(settings))
        report = {
            "pairs": len(fresh),
            "replayed": len(replayed),
            "before": asdict(before),
            "fitted": asdict(reward_model.evaluate(fresh)),
        }
        if PartialState().is_main_process:
            text = json.dumps(report, indent=2) + "\n"
            (place / "report.json").write_text(text, encoding="utf-8")
            # The folder is the phase's result: it gets its name when everything is in it.
            partial = place / "reward_model.partial"
            shutil.rmtree(partial, ignore_errors=True)
            reward_model.save(partial)
            partial.rename(place / "reward_model")

    def _pairs(self, number: int) -> tuple[list[Pair], list[Pair]]:
        """Return the pairs of this iteration, and the replayed pairs of earlier iterations.

        The replayed pairs are the share `replay` of both together, or all earlier pairs where
        there are fewer.

        Raises:
            DataError: this iteration has no pair.
        """
        history: list[Pair] = []
        for earlier in range(number):
            history += self._pairs_of_iteration(earlier)
        fresh = self._pairs_of_iteration(number)
        if not fresh:
            raise DataError(
                f"{self._place(number) / _SAMPLES}: the rule says the same of all samples of each "
                "prompt, so no pair of them teaches r_φ anything. Take prompts that the policy can "
                "sometimes do, or more samples of each, and another output folder for that."
            )
        # With n fresh pairs and m replayed ones, m / (n + m) = replay.
        wanted = round(len(fresh) * self.continued.replay / (1 - self.continued.replay))
        return fresh, random.Random(number).sample(history, min(wanted, len(history)))

    def _pairs_of_iteration(self, number: int) -> list[Pair]:
        groups = _read(self._place(number) / _SAMPLES)
        # The same seed every time, so that a replayed pair is one that r_φ has seen before.
        return pairs_of(groups, limit=self.continued.pairs, seed=number)


def _read(samples: Path) -> list[ScoredGroup]:
    """Return the groups of completions of a `samples.jsonl`."""
    # `splitlines` would also cut at U+2028, which a completion may hold. The text ends with a
    # newline, so the last part is empty.
    lines = samples.read_text(encoding="utf-8").split("\n")[:-1]
    groups = []
    for line in lines:
        row = json.loads(line)
        groups.append(ScoredGroup(row["prompt"], row["completions"], row["scores"]))
    return groups
