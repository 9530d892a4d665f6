"""Tests of token credit: the text and the advantage of every token, and how they are shown."""

import json
import random
import re
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

from grpo_hf import reward_settings
from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.reporting.credit_display import colour, share, to_html, to_text
from grpo_hf.reporting.credit_file import logged_step, record
from grpo_hf.reporting.metrics_file import read_metrics
from grpo_hf.reporting.token_credit import (
    CREDIT_FILE,
    Completion,
    Group,
    credited_group,
    token_texts,
)

LORA = LoraConfig(r=4, target_modules="all-linear")
MULTILINGUAL = "größe 日本語 👩‍👩‍👧 naïve — «ok»\n\t12 + 3 = 15 !"
NAN = float("nan")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@reward_settings(in_process=True)
def has_digit(completions: list[str], **_: Any) -> list[float]:
    """Pay for a digit; about every other group of an untrained model then has equal rewards."""
    return [float(any(map(str.isdigit, text))) for text in completions]


def sentencepiece_like() -> Tokenizer:
    """Return a tokenizer like Llama 2's.

    It has ▁ for a space, bytes for what is no word, and drops a space at the start of a text.
    """
    pieces = ["▁", "▁so", "▁a", "a", "b", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


class TestTexts:
    @pytest.mark.parametrize("seed", range(3))
    def test_random_tokens_make_the_decoded_text(self, tokenizer: Any, seed: int):
        """Check random ids, most of which are parts of characters or no characters at all."""
        chance, other = random.Random(seed), sentencepiece_like()
        for length in (0, 1, 2, 15, 16, 17, 60, 200):
            ids = [chance.randrange(len(tokenizer)) for _ in range(length)]
            texts = token_texts(tokenizer.decode, ids)
            assert len(texts) == length and "".join(texts) == tokenizer.decode(ids)
            ids = [chance.randrange(other.get_vocab_size()) for _ in range(length)]
            assert "".join(token_texts(other.decode, ids)) == other.decode(ids)

    def test_a_character_belongs_to_the_token_that_completes_it(self, tokenizer: Any):
        """Compare with the bytes: after each token, some characters are complete."""
        ids = tokenizer(MULTILINGUAL * 5)["input_ids"]
        # Printable bytes stand for themselves, the others follow from 256 on.
        letters = set(ByteLevel.alphabet())
        others = [byte for byte in range(256) if chr(byte) not in letters]
        byte_of = {chr(byte): byte for byte in range(256)}
        for n, byte in enumerate(others):
            byte_of[chr(256 + n)] = byte
        data = b""
        expected = []
        for token in tokenizer.convert_ids_to_tokens(ids):
            before = data.decode("utf-8", "ignore")
            data += bytes(byte_of[letter] for letter in token)
            expected.append(data.decode("utf-8", "ignore")[len(before) :])
        assert "" in expected and "日" in expected
        assert token_texts(tokenizer.decode, ids) == expected

    def test_a_space_that_the_decoder_drops_at_the_start_is_there_later(self):
        decode = sentencepiece_like().decode
        assert token_texts(decode, [1, 2, 3, 4] * 10)[:5] == ["so", " a", "a", "b", " so"]
        assert token_texts(decode, [1, 2, 3, 4] * 10)[4:] == [" so", " a", "a", "b"] * 9

    def test_the_work_grows_with_the_length_alone(self, tokenizer: Any):
        def decoded(ids: list[int]) -> int:
            work = []
            token_texts(lambda part: [work.append(len(part)), tokenizer.decode(part)][1], ids)
            return sum(work)

        ids = tokenizer(MULTILINGUAL * 40)["input_ids"]
        assert len(ids) > 1500 and decoded(ids) < 15 * len(ids)


def batch_of(tokenizer: Any, texts: list[str], advantages: Any) -> dict[str, Any]:
    """Return a generation batch of these completions of two prompts, padded as by TRL."""
    rows = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    width = max(map(len, rows)) + 2
    prompts = [
        tokenizer("1 + 1 =" if i < len(rows) // 2 else "2 + 2 =")["input_ids"]
        for i in range(len(rows))
    ]
    pad = tokenizer.pad_token_id
    return {
        "prompt_ids": torch.tensor([[pad, *ids] for ids in prompts]),
        "prompt_mask": torch.tensor([[0] + [1] * len(ids) for ids in prompts]),
        "completion_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids in rows]),
        "completion_mask": torch.tensor(
            [[1] * len(ids) + [0] * (width - len(ids)) for ids in rows]
        ),
        "advantages": torch.as_tensor(advantages),
    }


class TestGroups:
    TEXTS = ("a 1", "b", "c 2", "d")

    def group(self, tokenizer: Any, advantages: Any, **changes: Any) -> Group:
        batch = batch_of(tokenizer, list(self.TEXTS), advantages) | changes
        return credited_group(batch, [1.0, 0.0, None, 0.5], step=7, size=2, tokenizer=tokenizer)

    def test_outcome_supervision_gives_every_token_the_advantage_of_its_completion(
        self, tokenizer: Any
    ):
        group = self.group(tokenizer, [0.5, -0.5, 0.25, -0.25])
        assert (group.step, group.prompt, group.scale) == (7, "1 + 1 =", 0.5)
        assert ["".join(one.tokens) for one in group.completions] == ["a 1<|end|>", "b<|end|>"]
        assert [set(one.advantages) for one in group.completions] == [{0.5}, {-0.5}]
        assert [one.special for one in group.completions] == [
            [len(one.tokens) - 1] for one in group.completions
        ]
        assert [one.reward for one in group.completions] == [1.0, 0.0]

    def test_a_group_without_a_signal_is_passed_over(self, tokenizer: Any):
        group = self.group(tokenizer, [0.0, 0.0, 0.25, -0.25])
        assert group.prompt == "2 + 2 =" and [one.reward for one in group.completions] == [
            None,
            0.5,
        ]
        assert self.group(tokenizer, [0.0] * 4).prompt == "1 + 1 ="

    def test_process_supervision_gives_every_token_its_own(self, tokenizer: Any):
        batch = batch_of(tokenizer, list(self.TEXTS), [0.0] * 4)
        shape = batch["completion_ids"].shape
        own = torch.arange(shape.numel()).view(shape) / 8 - 1
        group = self.group(tokenizer, own)
        for row, one in enumerate(group.completions):
            assert one.advantages == own[row, : len(one.tokens)].tolist()

    def test_what_the_loss_leaves_out_has_none(self, tokenizer: Any):
        """Check a tool's answer, which `tool_mask` masks, and a truncated completion.

        TRL masks the latter in `completion_mask`.
        """
        mask = batch_of(tokenizer, list(self.TEXTS), [0.0] * 4)["completion_mask"]
        answer = torch.ones_like(mask)
        answer[0, 1] = mask[1] = 0
        first, second = self.group(
            tokenizer, [0.5, -0.5, 0.0, 0.0], tool_mask=answer, completion_mask=mask
        ).completions
        assert first.advantages == [0.5, 0.0, *[0.5] * (len(first.tokens) - 2)]
        assert second.tokens == second.advantages == []
        assert "left out of the loss" in to_html([Group(1, "", [second])])

    def test_large_groups_are_cut_and_torn_ones_taken_as_they_are(self, tokenizer: Any):
        batch = batch_of(tokenizer, ["a"] * 20, [0.5] * 20)
        group = credited_group(batch, [0.0] * 20, step=1, size=10, tokenizer=tokenizer)
        assert len(group.completions) == 8
        batch = batch_of(tokenizer, ["a", "b"], [0.5, 0.5])
        group = credited_group(batch, [0.0] * 16, step=1, size=8, tokenizer=tokenizer)
        assert len(group.completions) == 2


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / CREDIT_FILE).read_text(encoding="utf-8")
    return list(map(json.loads, text.split("\n")[:-1]))


class TestRuns:
    def test_a_run_keeps_what_it_trained_on(self, make_trainer: Any, tmp_path: Path):
        trainer = make_trainer(peft_config=LORA, logging_steps=2, max_steps=4)
        batches, generate = {}, trainer._generate_and_score_completions

        def remembered(rows: Any) -> Any:
            batches[trainer.state.global_step + 1] = batch = generate(rows)
            return batch

        trainer._generate_and_score_completions = remembered
        trainer.train()
        kept = lines(tmp_path / "run")
        assert [row["step"] for row in kept] == [2, 4]
        decode = trainer.processing_class.decode
        for row in kept:
            batch = batches[row["step"]]
            (place,) = {0, 4} & set(self.places(batch, row, decode))
            assert row["prompt"] == decode(
                batch["prompt_ids"][place][batch["prompt_mask"][place].bool()]
            )
            for number, one in enumerate(row["completions"], place):
                ids = batch["completion_ids"][number][batch["completion_mask"][number].bool()]
                assert "".join(one["tokens"]) == decode(ids) and len(one["tokens"]) == len(ids)
                assert one["advantages"] == pytest.approx(
                    [batch["advantages"][number].item()] * len(ids), rel=1e-3
                )
                text = decode(ids, skip_special_tokens=True)
                assert one["reward"] == len(text) + text.count("1")

    @staticmethod
    def places(batch: dict[str, Any], row: dict[str, Any], decode: Any) -> list[int]:
        """Return the rows of a batch that have the text of the first completion."""
        wanted = "".join(row["completions"][0]["tokens"])
        found = []
        rows = zip(batch["completion_ids"], batch["completion_mask"], strict=True)
        for place, (ids, mask) in enumerate(rows):
            if decode(ids[mask.bool()]) == wanted:
                found.append(place)
        return found

    def test_rewards_are_those_of_the_completions_when_groups_are_replaced(
        self, make_trainer: Any, tmp_path: Path
    ):
        trainer = make_trainer(
            peft_config=LORA,
            reward_funcs=has_digit,
            dynamic_sampling=True,
            max_steps=4,
            max_completion_length=4,
        )
        trainer.train()
        replaced = [row["signal/refilled_groups"] for row in read_metrics(tmp_path / "run")]
        assert any(replaced)
        for row in lines(tmp_path / "run"):
            for one in row["completions"]:
                text = ""
                for position, token in enumerate(one["tokens"]):
                    if position not in one["special"]:
                        text += token
                assert one["reward"] == float(any(map(str.isdigit, text)))

    def test_a_resumed_run_appends(self, make_trainer: Any, tmp_path: Path):
        make_trainer(peft_config=LORA, max_steps=2, save_strategy="steps", save_steps=1).train()
        before = (tmp_path / "run" / CREDIT_FILE).read_bytes()
        make_trainer(peft_config=LORA, max_steps=3).train(resume_from_checkpoint=True)
        assert (tmp_path / "run" / CREDIT_FILE).read_bytes().startswith(before)
        assert [row["step"] for row in lines(tmp_path / "run")] == [1, 2, 3]

    def test_it_can_be_left_out(self, make_trainer: Any, tmp_path: Path):
        make_trainer(peft_config=LORA, max_steps=1, log_credit=False).train()
        assert read_metrics(tmp_path / "run") and not (tmp_path / "run" / CREDIT_FILE).exists()

    @pytest.mark.parametrize(
        "changes", [{"training": False}, {"main": False}, {"logging_strategy": "no"}, {"steps": 0}]
    )
    def test_nothing_is_written_by(self, tmp_path: Path, tokenizer: Any, changes: dict[str, Any]):
        """An evaluation, another process, a run that does not log, and a rollout outside of training."""
        given = {"training": True, "main": True, "logging_strategy": "steps", "steps": 5} | changes
        args = arguments(
            1, 1, 1, logging_strategy=given["logging_strategy"], output_dir=str(tmp_path)
        )
        trainer = SimpleNamespace(
            args=args,
            state=SimpleNamespace(global_step=0, logging_steps=1, max_steps=given["steps"]),
            model=SimpleNamespace(training=given["training"]),
            is_world_process_zero=lambda: given["main"],
            reward_weights=torch.ones(2),
            num_generations=2,
            _tokenizer=tokenizer,
        )
        rewards = torch.tensor([[1.0, 2.0], [NAN, 0.5], [NAN, NAN], [0.0, 0.0]])
        batch = batch_of(tokenizer, ["a", "b", "c", "d"], [0.0, 0.0, 0.5, 0.5])
        record(trainer, batch, rewards)
        assert list(tmp_path.iterdir()) == []
        trainer.model.training, trainer.is_world_process_zero, trainer.state.max_steps = (
            True,
            lambda: True,
            5,
        )
        args.logging_strategy = "steps"
        record(trainer, batch, rewards)
        batch["advantages"] = torch.tensor([0.5, 0.5, 0.0, 0.0])
        record(trainer, batch, rewards)
        rewards_kept = [[one["reward"] for one in row["completions"]] for row in lines(tmp_path)]
        assert rewards_kept == [[None, 0.0], [3.0, 0.5]]


def arguments(
    per_generation: int, iterations: int, accumulation: int, **more: Any
) -> SimpleNamespace:
    return SimpleNamespace(
        steps_per_generation=per_generation,
        num_iterations=iterations,
        gradient_accumulation_steps=accumulation,
        **{"logging_strategy": "steps", "logging_first_step": False} | more,
    )


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("per_generation", "iterations", "accumulation"), [*product([1, 2, 3, 4], [1, 2], [1, 2, 3, 4])]
)
def test_a_logged_step_has_credit_where_it_has_rewards(
    per_generation: int, iterations: int, accumulation: int, first: bool
):
    """Simulate every micro-step; TRL logs the rewards of the rollouts since the last log."""
    for every in (1, 2, 3, 5):
        args = arguments(per_generation, iterations, accumulation, logging_first_step=first)
        steps = 12
        logged = []
        for step in range(1, steps + 1):
            if step % every == 0 or (first and step == 1):
                logged.append(step)
        # A rollout is made before every so many micro-steps; it is known by the steps done by then.
        made = []
        for micro_step in range(0, steps * accumulation, per_generation * iterations):
            made.append(micro_step // accumulation)
        kept = set()
        for done in made:
            state = SimpleNamespace(global_step=done, logging_steps=every, max_steps=steps)
            kept.add(logged_step(args, state))
        expected = set()
        for last, now in pairwise([0, *logged]):
            if any(last <= done < now for done in made):
                expected.add(now)
        assert kept - {None} == expected


class Page(HTMLParser):
    """A parsed page: the texts of its completions, their spans, and every tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.spans: list[dict[str, Any]] = []
        self.tags: list[str] = []
        self._inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        if tag == "div":
            self._inside = attributes["class"] == "completion"
            self.texts += [""] * self._inside
        if tag == "span" and self._inside:
            self.spans.append(attributes)

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "div"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data


HOSTILE = [
    '<script>alert("1")</script>',
    "\n\n",
    "  ",
    "",
    "</div>",
    "&amp;",
    " x",
    "</style><!--",
    "$body",
    "<|end|>",
]


def completion(tokens: list[str], advantages: list[float]) -> Completion:
    return Completion(tokens, advantages, special=[len(tokens) - 1], reward=0.5)


class TestPages:
    def test_the_text_of_a_page_is_the_completions(self, tokenizer: Any):
        texts = [MULTILINGUAL, "\n  leading and trailing \n\n"]
        ids = [tokenizer(text)["input_ids"] for text in texts]
        ones = [completion(token_texts(tokenizer.decode, row), [0.5] * len(row)) for row in ids]
        assert Page(to_html([Group(1, "p", ones)])).texts == texts

    def test_nothing_of_a_completion_or_prompt_is_read_as_html(self):
        group = Group(3, "<b>&</b><script>x</script>", [completion(HOSTILE, [0.1] * len(HOSTILE))])
        page = to_html([group])
        parsed = Page(page)
        assert parsed.texts == ["".join(HOSTILE)]
        assert "<script" not in page and not {"script", "b"} & set(parsed.tags)
        assert "&lt;b&gt;&amp;&lt;/b&gt;" in page

    def test_a_page_needs_nothing_else(self):
        page = to_html([Group(1, "p", [completion(HOSTILE, [0.1] * len(HOSTILE))])])
        tags = Page(page).tags
        assert not {"link", "img", "script", "iframe"} & set(tags)
        assert not re.search(r"https?:|url\(|@import", page)

    def test_control_characters_are_pictures(self):
        group = Group(
            1, "\x1b[2J", [completion(["\x1b[31m", "\x00\r", "\x7f\x9b", "\n"], [0.5] * 4)]
        )
        terminal, page = to_text(group).plain, to_html([group])
        for shown in (terminal, page):
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
            assert "␛[31m" in shown and "␀␍" in shown and "␛[2J" in shown

    def test_tooltips_steps_and_special_tokens(self):
        advantages = [0.25, 0.25, -1.0, -1.0, 0.0]
        spans = Page(
            to_html([Group(1, "", [completion(["a", "", "b", "c", "d"], advantages)])])
        ).spans
        assert [span["title"] for span in spans] == ["+0.25", "-1", "-1", "+0"]
        assert [span["class"].split() for span in spans] == [
            ["up"],
            ["down", "step"],
            ["down"],
            ["special", "step"],
        ]

    def test_colour_grows_with_the_advantage_and_is_symmetric(self):
        values = [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]
        spans = Page(to_html([Group(1, "", [completion(list("abcdefg"), values)])])).spans
        shares = [float(span["style"].removeprefix("--share:")) for span in spans]
        assert shares == [abs(value) / 2 for value in values]
        signs = [{"up": 1, "down": -1}.get(span["class"].split(" ")[0], 0) for span in spans]
        assert signs == [-1, -1, -1, 0, 1, 1, 1]

    def test_the_terminal_s_colours_are_symmetric_and_can_be_read(self):
        def luminance(rgb: tuple[int, int, int]) -> float:
            linear = [c / 3294 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        portions = [share(value, 4.0) for value in (0, 1, 2, 3, 4)]
        blue = [colour(portion) for portion in portions]
        orange = [colour(-portion) for portion in portions]
        assert blue[0] == orange[0] == (255, 255, 255)
        for scale in (blue, orange):
            brightness = [luminance(rgb) for rgb in scale]
            assert brightness == sorted(brightness, reverse=True) and len(set(scale)) == len(scale)
            assert all((value + 0.05) / 0.05 > 7 for value in brightness)  # WCAG AAA for black text
            distances = [sum(255 - channel for channel in rgb) for rgb in scale]
            assert distances == pytest.approx(
                [distances[-1] * portion for portion in portions], abs=2
            )
        assert all(b[2] > b[0] and o[0] > o[2] for b, o in zip(blue[1:], orange[1:], strict=True))

    def test_the_terminal_shows_white_space_steps_and_advantages(self):
        tokens, advantages = ["a", " ", "\n", " b", "<|end|>"], [1.0, 1.0, 1.0, -0.5, -0.5]
        text = to_text(Group(9, "prompt", [completion(tokens, advantages)]))
        assert "a·⏎\n│ b<|end|>\n" in text.plain
        assert "step 9" in text.plain and "reward 0.500, advantages -0.500 to +1.000" in text.plain
        start = text.plain.index("a·⏎")
        backgrounds = {}
        for span in text.spans:
            if getattr(span.style, "bgcolor", None):
                for offset in range(span.start, span.end):
                    backgrounds[offset] = span.style.bgcolor.triplet
        assert tuple(backgrounds[start]) == tuple(backgrounds[start + 2]) == colour(1.0)
        assert tuple(backgrounds[text.plain.index(" b<")]) == colour(-0.5)
        assert start + 4 not in backgrounds  # the mark itself

    def test_a_group_without_a_signal_has_no_colour(self):
        group = Group(1, "p", [completion(["a", "b"], [0.0, 0.0])])
        assert group.scale == 0 and "-0 " not in to_text(group).plain
        assert {span["class"].split(" ")[0] for span in Page(to_html([group])).spans} == {
            "",
            "special",
        }

    def test_a_line_of_the_file_is_the_group_again(self):
        group = Group(5, MULTILINGUAL, [completion(HOSTILE, [0.5] * len(HOSTILE))])
        assert Group.of(json.loads(json.dumps(asdict(group)))) == group
