"""The reward model r_φ: an adapter and a scalar head on the policy's frozen base.

No second model is in memory.

    r_φ(x, y) = w · h_φ(x, y)    h_φ: the base's last hidden state (H,) through the adapter
                                 w: the head (H,)

Read at the last token, it judges a completion. Read at the end of each step, it judges the steps:
this is a process reward model, and σ(r_φ) is the probability that the step is right. Between calls
the policy is what it was, to the last bit.

B rows of a batch, T tokens of a padded row, H hidden size, P pairs.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence

from ..data.batching import parts
from ..data.prompts import prompt_token_ids
from ..errors import DataError
from ..models import adapters
from ..models.kept_weights import role_weights
from ..models.positions import context_of
from ..models.random_state import own_random_numbers
from ..models.shards import in_step
from ..reporting.pushing import pushed_files
from ..scoring.reward import reward_settings
from ..scoring.steps import StepRewards, step_places
from . import files, tokens
from .fit import FitSettings, fit
from .preferences import Pair, PairReport, columns_of_pairs, pair_loss, pair_report


class RewardModel:
    """A reward model on a base that is in memory; make one with `on`, or `load` a saved one."""

    def __init__(
        self, model: PeftModel, tokenizer: Any, head: nn.Linear, adapter: str, max_length: int
    ) -> None:
        self.model = model
        # The head learns only inside `fit_pairs` and `fit_steps`.
        self.head = head.requires_grad_(False)
        self.adapter = adapter
        # A copy, because the trainer's tokenizer may truncate on the other side.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.truncation_side = "left"
        if self.tokenizer.pad_token is None:
            # As in TRL.
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.longest = self.tokenizer.model_max_length
        context = context_of(adapters.causal_model(model).config)
        if context is not None:
            self.longest = min(context, self.longest)
        self.max_length = min(max_length, self.longest)

    @classmethod
    def on(
        cls,
        model: PeftModel,
        tokenizer: Any,
        *,
        lora: LoraConfig | None = None,
        adapter: str = "reward",
        max_length: int = 2048,
        seed: int = 0,
    ) -> Self:
        """Put an untrained reward model on the base under a policy.

        Its adapter starts as a no-op.

        Args:
            model: the base with the policy.
            tokenizer: the policy's tokenizer.
            lora: the adapter's configuration; by default the policy's, on the same layers.
            adapter: the adapter's name; a second reward model needs another name.
            max_length: tokens that `scores` reads at most; a longer text loses its beginning.
            seed: of the adapter's and the head's weights.

        Raises:
            ModelError: the policy is no LoRA adapter, or an adapter has this name already.
        """
        with own_random_numbers(seed):
            head = files.new_head(model)
            adapters.add_role(model, adapter, files.role_config(model, lora))
        return cls(model, tokenizer, head, adapter, max_length)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: PeftModel,
        tokenizer: Any,
        *,
        adapter: str = "reward",
        max_length: int = 2048,
    ) -> Self:
        """Put a saved reward model, from a folder or the Hub, on the base under a policy.

        Raises:
            ModelError: the folder holds no reward model, or one of another base.
        """
        # The loaded weights replace random ones, whose draws must not show in the run.
        with own_random_numbers(0):
            head = files.load(str(folder), model, adapter)
        return cls(model, tokenizer, head, adapter, max_length)

    def save(self, folder: str | Path) -> None:
        """Write a PEFT adapter of a sequence classifier with one label.

        The reward in `rewards/reward_model.py` reads this format as well.

        Raises:
            OutputExistsError: the folder holds something other than a reward model.
        """
        files.save(Path(folder), self.model, self.adapter, self.head, self.tokenizer)

    def push(self, repo_id: str, *, private: bool | None = True) -> None:
        """Save the reward model to a repository on the Hub; create the repository if necessary.

        Folders of this machine, as that of a local base, are cut to their names.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            files_of_model = [file.operation for file in pushed_files(Path(folder), samples=False)]
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            api.create_commit(repo_id, files_of_model, commit_message="Upload reward model")

    # Scores

    def scores(
        self, prompts: Sequence[Any], completions: Sequence[Any], *, batch_size: int = 8
    ) -> Tensor:
        """Return r_φ of each completion after its prompt, (B,); NaN where both are empty.

        The score is read at the last token that is not the tokenizer's padding token. transformers'
        sequence classifiers do the same once TRL has given them that token. The padding token in
        the base's configuration does not count: making a trainer changes it.

        Args:
            prompts, completions: texts, or lists of messages, which the tokenizer's chat template
                renders.
            batch_size: rows per forward pass; like padding, it changes scores by rounding only.

        Raises:
            DataError: a prompt is a list of messages and its completion is not, or vice versa.
        """
        rows = tokens.rows_of_tokens(self.tokenizer, prompts, completions, self.max_length)
        scores = []
        for row, values in zip(rows, self.token_scores(rows, batch_size=batch_size), strict=True):
            scores.append(values[self._end(row)].item() if row else math.nan)
        return torch.tensor(scores)

    @torch.no_grad()
    def token_scores(self, rows: Sequence[Sequence[int]], *, batch_size: int = 8) -> list[Tensor]:
        """Return the head's value at every token of each row, (T,) each, in the order of `rows`.

        Raises:
            DataError: a row has more tokens than the base has positions.
        """
        self._check_positions(max(map(len, rows), default=0))
        scores = [torch.empty(0)] * len(rows)
        order = [index for index, row in enumerate(rows) if row]
        # Neighbours of equal length need no padding. The longest rows come first, so that memory
        # runs out at once or never.
        order.sort(key=lambda index: len(rows[index]), reverse=True)
        with adapters.seen_through(self.model, self.adapter):
            for batch in in_step(self.model, parts(order, batch_size)):
                batch_values = self._forward(tokens.rows_at(rows, batch) or [[0]]).cpu()  # (B, T)
                for index, values in zip(batch, batch_values[: len(batch)], strict=True):
                    # A copy, so that no row keeps the whole padded batch in memory.
                    scores[index] = values[: len(rows[index])].clone()
        return scores

    def step_scores(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        step_ends: Sequence[Sequence[int]],
        *,
        batch_size: int = 8,
    ) -> list[Tensor]:
        """Return r_φ at the last token of each step, a tensor per row.

        The sigmoid of a score is the probability that the step is right.

        Args:
            prompt_ids, completion_ids: token ids, a list per row.
            step_ends: the tokens of the completion at which its steps end, counted from 0.
            batch_size: rows per forward pass.

        Raises:
            DataError: a step ends outside its completion.
        """
        rows, places = step_places(prompt_ids, completion_ids, step_ends)
        scores = []
        for values, ends in zip(
            self.token_scores(rows, batch_size=batch_size), places, strict=True
        ):
            scores.append(values[ends])
        return scores

    def as_reward(self) -> Callable[..., list[float | None]]:
        """Return a reward function for a trainer of the policy on the same base.

        It gives None where a score is not finite.
        """

        @reward_settings(in_process=True, batched=True, early=False)
        def scored(
            prompts: list[Any], completions: list[Any], **columns: Any
        ) -> list[float | None]:
            """Pays what the reward model on the policy's own base says."""
            scores = self.scores(prompts, completions).tolist()
            return [score if math.isfinite(score) else None for score in scores]

        # A run's metrics are named after the function.
        scored.__name__ = f"{self.adapter}_model"
        return scored

    def as_step_reward(
        self, by: str = "lines", template_options: dict[str, Any] | None = None
    ) -> Callable[..., list[StepRewards | None]]:
        """Return a step reward function for a trainer of the policy on the same base.

        A step earns σ(r_φ) at the token that ends it. A step that ends with the text is read before
        the token that ends the turn. The function gives None for a completion without steps, for
        one whose tokens do not write its text, and for one that is longer than the base's
        positions.

        Args:
            by: how a completion is cut; see `split_steps`.
            template_options: the trainer's `chat_template_kwargs`.
        """

        @reward_settings(in_process=True, batched=True, early=False)
        def scored(
            prompts: list[Any],
            completions: list[Any],
            completion_ids: list[list[int]],
            **columns: Any,
        ) -> list[StepRewards | None]:
            """Pays each step the probability that it is right, by the reward model on the base."""
            prompt_ids = prompt_token_ids(prompts, self.tokenizer, template_options)
            steps = tokens.readable_steps(
                self.tokenizer, prompt_ids, completions, completion_ids, by, self.longest
            )
            scores = self.step_scores(steps.prompt_ids, steps.completion_ids, steps.token_ends)
            rewards: list[StepRewards | None] = [None] * len(completions)
            for place, ends, values in zip(steps.places, steps.text_ends, scores, strict=True):
                rewards[place] = StepRewards(ends, values.sigmoid().tolist())
            return rewards

        scored.__name__ = f"process_{self.adapter}_model"
        return scored

    # Learning

    def fit_pairs(self, pairs: Sequence[Pair], **settings: Any) -> list[float]:
        """Learn preferences: descend `preferences.pair_loss`.

        Args:
            pairs: the preferences.
            settings: fields of `FitSettings`.

        Returns:
            The loss of each step of the optimizer.

        Raises:
            DataError: there are no pairs, or a prompt and its completion have no token together.
        """
        columns = columns_of_pairs(pairs)
        chosen, rejected = tokens.pair_rows(self.tokenizer, columns, self.max_length)
        lengths = []
        for better_row, worse_row in zip(chosen, rejected, strict=True):
            lengths.append(max(len(better_row), len(worse_row)))

        def loss_of(batch: Sequence[int]) -> Tensor:
            rows = tokens.rows_at(chosen, batch) + tokens.rows_at(rejected, batch)
            ends = [self._end(row) for row in rows]
            scores = self._forward(rows)[range(len(rows)), ends]  # (2P,)
            better, worse = scores.chunk(2)  # (P,) each
            margin = torch.tensor(tokens.rows_at(columns.margins, batch)).to(scores)  # (P,)
            # `pair_loss` is a mean, and `fit` wants a sum.
            return pair_loss(better, worse, margin) * len(batch)

        whole = FitSettings(**settings)
        # An example is two rows, so a forward pass has room for half the number of examples.
        halved = replace(whole, tokens_at_once=whole.tokens_at_once // 2)
        return self._fit(lengths, [1] * len(pairs), loss_of, halved)

    def fit_steps(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        step_ends: Sequence[Sequence[int]],
        labels: Sequence[Sequence[float]],
        **settings: Any,
    ) -> list[float]:
        """Learn whether steps are right: descend the binary cross-entropy at the ends of steps.

            L = −[y log σ(r) + (1 − y) log(1 − σ(r))]

        The loss of a batch is the mean over its steps.

        Args:
            prompt_ids, completion_ids: token ids, a list per row.
            step_ends: the tokens of the completion at which its steps end, counted from 0.
            labels: y in [0, 1] of each step: right or not, or the share of continuations that
                ended well.
            settings: fields of `FitSettings`.

        Returns:
            The loss of each step of the optimizer.

        Raises:
            DataError: a label is missing or no probability, a step ends outside its completion, or
                a row has more tokens than the base has positions.

        Source: Math-Shepherd (arXiv 2312.08935), equation 2.
        """
        rows, places = step_places(prompt_ids, completion_ids, step_ends)
        tokens.check_labels(step_ends, labels)

        def loss_of(batch: Sequence[int]) -> Tensor:
            batch_values = self._forward(tokens.rows_at(rows, batch))  # (B, T)
            at_ends = []
            targets: list[float] = []
            for index, values in zip(batch, batch_values, strict=True):
                at_ends.append(values[places[index]])
                targets.extend(labels[index])
            logits = torch.cat(at_ends)
            # A sum: `fit` divides by the number of steps of the whole batch.
            return binary_cross_entropy_with_logits(
                logits, torch.tensor(targets).to(logits), reduction="sum"
            )

        lengths = list(map(len, rows))
        return self._fit(lengths, list(map(len, labels)), loss_of, FitSettings(**settings))

    def evaluate(self, pairs: Sequence[Pair], *, batch_size: int = 8) -> PairReport:
        """Return how well the scores tell held-out pairs apart."""
        columns = columns_of_pairs(pairs)
        # One call for both sides, so that rows of similar length share a batch.
        prompts = columns.prompts * 2
        completions = columns.chosen + columns.rejected
        chosen, rejected = self.scores(prompts, completions, batch_size=batch_size).chunk(2)
        return pair_report(chosen, rejected)

    def _fit(
        self,
        lengths: Sequence[int],
        terms: Sequence[int],
        loss_of: Callable[[Sequence[int]], Tensor],
        settings: FitSettings,
    ) -> list[float]:
        self._check_positions(max(lengths, default=0))
        self.head.to(adapters.causal_model(self.model).device).requires_grad_(True)
        try:
            with adapters.seen_through(self.model, self.adapter, train=True):
                adapter_weights = role_weights(self.model, self.adapter).values()
                weights = [*adapter_weights, *self.head.parameters()]
                return fit(weights, lengths, terms, loss_of, settings)
        finally:
            # Scores need no gradients, and the head is ready for them even if training failed.
            self.head.requires_grad_(False)

    def _check_positions(self, length: int) -> None:
        if length > self.longest:
            raise DataError(
                f"a row has {length} tokens; the base has positions for {self.longest}. Cut it."
            )

    def _forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the head's value at every token, (B, T)."""
        base = adapters.causal_model(self.model)
        # Padding stands on the right, where it moves no position. The base is causal, so no token
        # sees the padding after it, and no attention mask is needed.
        tensors = [torch.tensor(row) for row in rows]
        ids = pad_sequence(tensors, batch_first=True).to(base.device)  # (B, T)
        output = base.base_model(input_ids=ids, use_cache=False)
        # The head is float32, the base may not be.
        hidden_states = output.last_hidden_state.float()  # (B, T, H)
        return self.head.to(base.device)(hidden_states).squeeze(-1)

    def _end(self, row: Sequence[int]) -> int:
        return tokens.last_token(row, self.tokenizer.pad_token_id)
