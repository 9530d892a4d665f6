"""Tests of token credit as a page and in a terminal."""

import re
from dataclasses import asdict
from html.parser import HTMLParser
from typing import Any

import pytest
from support.credit import HOSTILE, MULTILINGUAL, completion
from support.run_folders import credit_group

from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.reporting.credit_display import colour, share, to_html, to_text
from grpo_hf.reporting.token_credit import Group, token_texts


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


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


@pytest.mark.parametrize(
    ("size", "groups", "said"),
    [
        (32, 1, "2 of the 32 completions of a group"),
        (32, 4, "2 of the 32 completions of a group, one of 4 groups of the rollout"),
        (2, 4, "all 2 completions of a group, one of 4 groups of the rollout"),
        (2, 1, "all 2 completions of a group"),
        # As an earlier version has written it.
        (None, None, "completions of one group, of which at most 8 are kept"),
    ],
)
def test_it_says_how_much_of_a_step_it_shows(size: int | None, groups: int | None, said: str):
    row = {"step": 3, "prompt": "p", "completions": [asdict(completion(["a"], [0.5]))] * 2}
    group = Group.of(row if size is None else row | {"size": size, "groups": groups})
    assert f"\n{said}\n" in to_text(group).plain
    assert f"<p>{said}</p>" in to_html([group])


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

    def test_a_step_has_its_reward(self):
        group = credit_group(3)
        assert "+ 2⏎\n[step 0.9]│#### 4[step 0.25]<|end|>" in to_text(group).plain
        assert 'title="+1, step 0.9"' in to_html([group])

    def test_a_group_without_a_signal_has_no_colour(self):
        group = Group(1, "p", [completion(["a", "b"], [0.0, 0.0])])
        assert group.scale == 0 and "-0 " not in to_text(group).plain
        assert {span["class"].split(" ")[0] for span in Page(to_html([group])).spans} == {
            "",
            "special",
        }
