"""The reward model r_φ: an adapter and a scalar head on the policy's frozen base, so no second model is in memory.

    r_φ(x, y) = w · h_φ(x, y)      h_φ: the base's last hidden state (H,) through the adapter, w: the head (H,)

Read at the last token it judges a completion; read at the end of each step, the steps: a process reward model, where
σ(r_φ) is the probability that the step is right. Between calls the policy is what it was, to the last bit.

B rows of a batch, T tokens of a padded row, H hidden size.
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
from ..models.random_state import own_random_numbers
from ..scoring.reward import reward_settings
from ..scoring.steps import StepRewards, found_steps, step_places, without_end
from . import files
from .fit import FitSettings, fit
from .preferences import Pair, PairReport, checked, pair_loss, pair_report


class RewardModel:
    """A reward model on a base that is in memory already; make one with `on`, or `load` a saved one."""

    def __init__(
        self, model: PeftModel, tokenizer: Any, head: nn.Linear, adapter: str, max_length: int
    ) -> None:
        config = adapters.causal_model(model).config.get_text_config()
        self.model, self.head, self.adapter = model, head.requires_grad_(False), adapter
        self.tokenizer = copy.deepcopy(tokenizer)  # the trainer's may cut on the other side
        self.tokenizer.truncation_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # as TRL does
        positions = (
            getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        )
        self.longest = min(positions, self.tokenizer.model_max_length)
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

        The adapter starts as a no-op.

        Args:
            model: base and policy.
            tokenizer: the policy's.
            lora: by default as the policy's, on the same layers.
            adapter: its name; a second reward model needs another.
            max_length: tokens that `scores` reads at most; a longer text loses its beginning.
            seed: of the weights.

        Raises:
            ModelError: the policy is no LoRA adapter, or there is an adapter of this name.
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
            ModelError: what is there is no reward model, or none of this base.
        """
        with own_random_numbers(0):
            head = files.load(str(folder), model, adapter)
        return cls(model, tokenizer, head, adapter, max_length)

    def save(self, folder: str | Path) -> None:
        """Write a PEFT adapter of a sequence classifier with one label, which `rewards/reward_model.py` takes as well.

        Raises:
            OutputExistsError: the folder holds something other than a reward model.
        """
        files.save(Path(folder), self.model, self.adapter, self.head, self.tokenizer)

    def push(self, repo_id: str, *, private: bool | None = None) -> None:
        """Save it to a repository on the Hub, which is made if it is not there."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message="Upload reward model"
            )

    # Scores

    def scores(
        self, prompts: Sequence[Any], completions: Sequence[Any], *, batch_size: int = 8
    ) -> Tensor:
        """r_φ of each completion behind its prompt, (B,); NaN where both are empty.

        Read at the last token that is not the tokenizer's padding token, as transformers' sequence classifiers do once
        TRL has given them that token: the base's own is another after a trainer was made.

        Args:
            prompts, completions: texts, or lists of messages, which the tokenizer's chat template renders.
            batch_size: rows per forward pass; like padding, it changes no score beyond rounding.

        Raises:
            DataError: a prompt is messages and its completion is not, or the other way round.
        """
        rows = [self._token_ids(*pair) for pair in zip(prompts, completions, strict=True)]
        found = self.token_scores(rows, batch_size=batch_size)
        ends = map(self._end, rows)
        return torch.tensor(
            [at[end].item() if len(at) else math.nan for at, end in zip(found, ends, strict=True)]
        )

    @torch.no_grad()
    def token_scores(self, rows: Sequence[Sequence[int]], *, batch_size: int = 8) -> list[Tensor]:
        """The head's value at every token of each row, (T,) each, in the order of `rows`.

        Raises:
            DataError: a row is longer than the base has positions for.
        """
        self._check_lengths(list(map(len, rows)))
        found = [torch.empty(0)] * len(rows)
        # Neighbours of one length need no padding; the longest first, so that memory runs out at once or never.
        order = sorted(
            (i for i, row in enumerate(rows) if row), key=lambda i: len(rows[i]), reverse=True
        )
        with adapters.seen_through(self.model, self.adapter):
            for batch in parts(order, batch_size):
                values = self._forward([rows[i] for i in batch]).cpu()
                for index, value in zip(batch, values, strict=True):
                    found[index] = value[: len(rows[index])].clone()
        return found

    def step_scores(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        step_ends: Sequence[Sequence[int]],
        *,
        batch_size: int = 8,
    ) -> list[Tensor]:
        """r_φ at the last token of each step; its sigmoid is the probability that the step is right.

        Args:
            prompt_ids, completion_ids: token ids, a list per row.
            step_ends: positions in the completion at which its steps end, counted from 0.

        Raises:
            DataError: a step ends outside its completion.
        """
        rows, places = step_places(prompt_ids, completion_ids, step_ends)
        found = self.token_scores(rows, batch_size=batch_size)
        return [values[where] for values, where in zip(found, places, strict=True)]

    def as_reward(self) -> Callable[..., list[float | None]]:
        """A reward function for a trainer of the policy on the same base; None where a score is not finite."""

        @reward_settings(in_process=True, batched=True, early=False)
        def scored(
            prompts: list[Any], completions: list[Any], **columns: Any
        ) -> list[float | None]:
            """Pays what the reward model on the policy's own base says."""
            return [
                score if math.isfinite(score) else None
                for score in self.scores(prompts, completions).tolist()
            ]

        scored.__name__ = f"{self.adapter}_model"
        return scored

    def as_step_reward(
        self, by: str = "lines", template_options: dict[str, Any] | None = None
    ) -> Callable[..., list[StepRewards | None]]:
        """A step reward function for a trainer of the policy on the same base: σ(r_φ) where each step ends.

        A step that ends with the text is read before the end of the turn. None for a completion without steps, for one
        that its tokens do not write, and for one that the base has no positions for.

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
            """Pays for each step the probability that it is right, says the reward model on the policy's own base."""
            asked = prompt_token_ids(prompts, self.tokenizer, template_options)
            written = [without_end(self.tokenizer, ids) for ids in completion_ids]
            cuts = [
                found_steps(self.tokenizer, *row, by)
                for row in zip(completions, written, strict=True)
            ]
            kept = [
                i
                for i, (ends, _) in enumerate(cuts)
                if ends and len(asked[i]) + len(written[i]) <= self.longest
            ]
            scores = self.step_scores(
                [asked[i] for i in kept], [written[i] for i in kept], [cuts[i][1] for i in kept]
            )
            found: list[StepRewards | None] = [None] * len(completions)
            for i, values in zip(kept, scores, strict=True):
                found[i] = StepRewards(cuts[i][0], values.sigmoid().tolist())
            return found

        scored.__name__ = f"process_{self.adapter}_model"
        return scored

    # Learning

    def fit_pairs(self, pairs: Sequence[Pair], **settings: Any) -> list[float]:
        """Learn preferences: descend `preferences.pair_loss`.

        Args:
            settings: fields of `FitSettings`.

        Returns:
            The loss of each step.
        """
        chosen = [self._token_ids(pair.prompt, pair.chosen) for pair in checked(pairs)]
        rejected = [self._token_ids(pair.prompt, pair.rejected) for pair in pairs]
        if empty := sum(not row for row in chosen + rejected):
            raise DataError(
                f"{empty} texts of the pairs have no token, so nothing can be read there. Leave them out."
            )

        def loss(batch: Sequence[int]) -> Tensor:
            rows = [chosen[i] for i in batch] + [rejected[i] for i in batch]
            scores = self._forward(rows)[
                range(len(rows)), [self._end(row) for row in rows]
            ]  # (2P,)
            better, worse = scores.chunk(2)
            margin = torch.tensor([pairs[i].margin for i in batch]).to(scores)
            return pair_loss(better, worse, margin) * len(batch)

        lengths = [max(map(len, both)) for both in zip(chosen, rejected, strict=True)]
        given = FitSettings(**settings)
        both = replace(given, tokens_at_once=given.tokens_at_once // 2)
        return self._fit(lengths, [1] * len(pairs), loss, both)

    def fit_steps(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        step_ends: Sequence[Sequence[int]],
        labels: Sequence[Sequence[float]],
        **settings: Any,
    ) -> list[float]:
        """Learn whether steps are right: descend the binary cross-entropy at step ends, its mean over a batch's steps.

        L = −[y log σ(r) + (1 − y) log(1 − σ(r))]; Math-Shepherd (arXiv 2312.08935, equation 2).

        Args:
            labels: y in [0, 1] per end: right or not, or the share of continuations that ended well.
            settings: fields of `FitSettings`.

        Returns:
            The loss of each step of the optimizer.

        Raises:
            DataError: a label is missing or no probability, or a step ends outside its completion.
        """
        rows, places = step_places(prompt_ids, completion_ids, step_ends)
        for ends, marks in zip(step_ends, labels, strict=True):
            if len(ends) != len(marks) or not ends or not all(0 <= mark <= 1 for mark in marks):
                raise DataError(
                    f"{len(ends)} step ends have labels {list(marks)}; expected one from 0 to 1 for each."
                )

        def loss(batch: Sequence[int]) -> Tensor:
            values = self._forward([rows[i] for i in batch])  # (B, T)
            read = torch.cat([value[places[i]] for i, value in zip(batch, values, strict=True)])
            wanted = [mark for i in batch for mark in labels[i]]
            return binary_cross_entropy_with_logits(
                read, torch.tensor(wanted).to(read), reduction="sum"
            )

        return self._fit(
            list(map(len, rows)), list(map(len, labels)), loss, FitSettings(**settings)
        )

    def evaluate(self, pairs: Sequence[Pair], *, batch_size: int = 8) -> PairReport:
        """How well it tells held-out pairs apart."""
        prompts = [pair.prompt for pair in checked(pairs)] * 2
        completions = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        return pair_report(*self.scores(prompts, completions, batch_size=batch_size).chunk(2))

    def _fit(
        self,
        lengths: Sequence[int],
        terms: Sequence[int],
        loss_of: Callable[[Sequence[int]], Tensor],
        settings: FitSettings,
    ) -> list[float]:
        self._check_lengths(lengths)
        self.head.to(adapters.causal_model(self.model).device).requires_grad_(True)
        try:
            with adapters.seen_through(self.model, self.adapter, train=True):
                weights = [
                    *adapters.role_weights(self.model, self.adapter).values(),
                    *self.head.parameters(),
                ]
                return fit(weights, lengths, terms, loss_of, settings)
        finally:
            self.head.requires_grad_(False)

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        if (most := max(lengths, default=0)) > self.longest:
            raise DataError(
                f"a row has {most} tokens; the base has positions for {self.longest}. Cut it."
            )

    def _forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The head at every token, (B, T); rows are padded on the right, where padding moves no position."""
        base = adapters.causal_model(self.model)
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(base.device)
        read = base.base_model(input_ids=ids, use_cache=False)  # no mask: nobody looks to the right
        return self.head.to(base.device)(read.last_hidden_state.float()).squeeze(-1)

    def _token_ids(self, prompt: Any, completion: Any) -> list[int]:
        if isinstance(prompt, str) != isinstance(completion, str):
            kinds = f"{type(prompt).__name__} and its completion {type(completion).__name__}"
            raise DataError(f"a prompt is {kinds}; expected two texts, or two lists of messages.")
        chat = not isinstance(prompt, str)
        whole = [*prompt, *completion] if chat else prompt + completion
        text = self.tokenizer.apply_chat_template(whole, tokenize=False) if chat else whole
        # A chat template writes the special tokens itself.
        options = {
            "add_special_tokens": not chat,
            "truncation": True,
            "max_length": self.max_length,
        }
        return self.tokenizer(text, **options)["input_ids"]

    def _end(self, row: Sequence[int]) -> int:
        """The last token that is not padding; for a classifier, padding is a matter of the token alone."""
        return next(
            (i for i in reversed(range(len(row))) if row[i] != self.tokenizer.pad_token_id), 0
        )
