import os
import sys
import time
from pathlib import Path

import pytest

from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards import language as module
from grpo_hf.rewards.language import language

pytest.importorskip("py3langid")

EN = "First we add the apples of both girls, and then we divide the sum by the number of days."
DE = "Zuerst zählen wir die Äpfel der beiden Mädchen zusammen, und dann teilen wir durch die Tage."
FR = (
    "On additionne d'abord les pommes des deux filles, "
    "puis on divise la somme par le nombre de jours."
)
RU = "Сначала сложим яблоки обеих девочек, а потом разделим сумму на количество дней."
ZH = "我们先把两个女孩的苹果加起来，然后除以天数。"
JA = "まず二人の女の子のりんごを足して、それから日数で割ります。"
KO = "먼저 두 소녀의 사과를 더한 다음 날짜 수로 나눕니다."
TEXTS = {"en": EN, "de": DE, "fr": FR, "ru": RU, "zh": ZH, "ja": JA, "ko": KO}


def score(text, wanted="en"):
    [reward] = language([text], language=wanted)
    return reward


def letters(text):
    return sum(map(str.isalpha, text))


@pytest.mark.parametrize("wanted", TEXTS)
@pytest.mark.parametrize("written", TEXTS)
def test_whole_texts(wanted, written):
    assert score(TEXTS[written], wanted) == float(wanted == written)


@pytest.mark.parametrize(
    ("wanted", "other"), [("en", "de"), ("de", "en"), ("en", "zh"), ("zh", "en"), ("ko", "ru")]
)
@pytest.mark.parametrize("joint", [" ", "\n", "\n\n"])
def test_mixed_text_gets_the_share_of_its_letters(wanted, other, joint):
    one = TEXTS[wanted]
    two = TEXTS[other]
    for pieces in ([one, two], [two, one, one], [one, two, two, two]):
        expected = pieces.count(one) * letters(one) / sum(map(letters, pieces))
        # A letter that stands alone is not counted, so the share is not exact.
        assert score(joint.join(pieces), wanted) == pytest.approx(expected, abs=0.02)


def test_other_scripts_are_seen_within_a_sentence():
    english = "and then we divide all of it by the days"
    chinese = "我们计算苹果的总数"
    share = letters(english) / (letters(english) + len(chinese))
    assert score(f"{chinese} {english}.") == pytest.approx(share)
    assert score(f"{chinese} {english}.", "zh") == pytest.approx(1 - share)


@pytest.mark.parametrize(
    "foreign",
    [
        "$\\text{Anzahl der Äpfel} = x$",
        "\\(\\mathrm{Anzahl} + y\\)",
        "\\[\\text{Anzahl der}\\]",
        "$$\\alpha\n+ \\beta$$",
        "`die_anzahl_der_aepfel`",
        "```python\ndie_anzahl = der_aepfel + der_birnen\n```",
        "<antwort>42</antwort>",
        "https://www.beispiel.de/die-anzahl-der-aepfel",
        "12 + 30 = 42",
        "x + y = z",
        "\\boxed{Anzahl}",
    ],
)
def test_mathematics_code_and_tags_have_no_language(foreign):
    assert score(f"{EN}\n{foreign}\n{EN}") == 1.0
    assert score(f"{ZH}{foreign}{ZH}", "zh") == 1.0
    assert score(f"{DE} {foreign}\n{DE}", "en") == 0.0


def test_code_that_was_cut_off_is_code():
    assert score(f"{EN}\n```\n{DE}") == 1.0


def test_prices_are_no_formula():
    assert score(f"It costs $5. {DE} It costs $6.") < 0.3


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " \n",
            "#### 42",
            "6 * 7 = 42",
            "$x^2$",
            "```\nlines of code\n",
            "😀",
            "<think></think>",
        ),
        *("So $x=3$.", "The answer is 42.", "Also $x=3$.", "设 $x=3$。", "答案是42。", "Done!"),
        "sin(x) + cos(y)",
        "speed = distance / time",
        "math.sqrt(number_of_apples) + numberOfPears",
        "for i in range(10):\n    total = total + values[i]\nprint('the sum of all values', total)",
        "import numpy as np\nnumbers = np.array([1, 2])\nprint(numbers.mean())",
        "def largest(numbers):\n    if not numbers:\n        return None\n    return max(numbers)",
        "pub fn double(number: i32) -> i32 {\n    let result = number * 2;\n    result\n}",
    ],
)
@pytest.mark.parametrize("wanted", ["en", "de", "zh"])
def test_too_little_to_judge_is_none(text, wanted):
    assert score(text, wanted) is None
    assert language([[{"role": "assistant", "content": text}]], language=wanted) == [None]


@pytest.mark.parametrize("wanted", ["en", "de", "zh"])
def test_grade_school_problems(wanted):
    folder = Path(os.environ.get("GRPO_HF_DATA", ""), "mgsm")
    if "GRPO_HF_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("GRPO_HF_DATA does not name a folder with mgsm/mgsm_en.tsv")
    for written in ("en", "de", "zh"):
        lines = (folder / f"mgsm_{written}.tsv").read_text(encoding="utf-8").splitlines()
        questions = [line.split("\t")[0] for line in lines]
        assert len(questions) == 250
        rewards = language(questions, language=wanted)
        mean = sum(rewards) / len(rewards)
        assert mean > 0.98 if wanted == written else mean < 0.01


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("for example: we add all of the apples", "en"),
        ("if we add (as above) all of them, we get 42", "en"),
        ("return the books to the library, please", "en"),
        ("x = 5, so we know that the answer is right", "en"),
        ("Wir addieren alle Äpfel(n) und Birnen.", "de"),
        ("答案是四十二", "zh"),
        ("答えは四十二です", "ja"),
    ],
)
def test_sentences_that_look_like_code_are_language(text, wanted):
    assert score(text, wanted) == 1.0


def test_a_few_words_beside_another_script_have_no_language():
    assert score(f"{ZH} OK, x cm.", "en") == 0.0
    assert score(f"{EN} 答案。") == pytest.approx(1 - 2 / (letters(EN) + 2))
    # Too few in each sentence, and enough together.
    parts = ("we add the apples", "and all the pears", "of both of them")
    assert score("".join(f"{ZH}{part}。" for part in parts)) > 0.3


@pytest.mark.parametrize("wanted", ["en", "de", "zh"])
def test_short_texts_are_right_or_not_judged(wanted):
    folder = Path(os.environ.get("GRPO_HF_DATA", ""), "mgsm")
    if "GRPO_HF_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("GRPO_HF_DATA does not name a folder with mgsm/mgsm_en.tsv")
    lines = (folder / f"mgsm_{wanted}.tsv").read_text(encoding="utf-8").splitlines()[:100]
    beginnings = []
    for line in lines:
        question = line.split("\t")[0]
        words = question.split() if wanted != "zh" else list(question)
        for count in (1, 2, 3, 4, 5, 6, 8, 12):
            beginnings.append((" " if wanted != "zh" else "").join(words[:count]))
    judged = [reward for reward in language(beginnings, language=wanted) if reward is not None]
    assert 0.25 * len(beginnings) < len(judged) < 0.95 * len(beginnings)
    assert sum(judged) / len(judged) > 0.985


@pytest.mark.parametrize("code", ["english", "EN", "xx", "", "zxy"])
def test_unknown_language_names_the_known_ones(code):
    with pytest.raises(
        RewardSpecError, match=rf"language is {code!r}, a str; expected .*\bde, .*\ben, .*\bzh\b"
    ):
        score(EN, code)


def test_missing_package_says_what_to_install(monkeypatch):
    module._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(RewardSpecError, match=r"pip install 'grpo-hf\[language\]'"):
        score(EN)
    assert score(ZH, "zh") == 1.0, "scripts are told apart without it"
    monkeypatch.undo()
    assert score(EN) == 1.0


def test_the_model_is_loaded_once():
    language([EN] * 3)
    before = module._identifier.cache_info().misses
    start = time.process_time()
    assert language([EN] * 512) == [1.0] * 512
    assert module._identifier.cache_info().misses == before
    assert time.process_time() - start < 2.0


N = 100_000


@pytest.mark.parametrize(
    "text",
    [
        *(
            "x " * (N // 2),
            "a" * N,
            "a1" * (N // 2),
            "_" * N,
            "中" * N,
            "\n" * N,
            "hello. " * (N // 7),
            "\ud800" * N,
        ),
        *(
            "$" * N,
            "$a" * (N // 2),
            "$$a" * (N // 3),
            "`" * N,
            "```" * (N // 3),
            "<a" * (N // 2),
            "www." * (N // 4),
        ),
        *(
            "def " + "(" * N + "x",
            "def (" + " " * N + "x",
            "x = " + "a" * N,
            "x = " + "ab " * (N // 3),
        ),
        *(
            "x = ab" + " " * N + "1",
            "a." * (N // 2),
            "a_" * (N // 2),
            "aB" * (N // 2),
            "f(" * (N // 2),
        ),
        *("\\(" * (N // 2), "\\[" * (N // 2), "\\a{" * (N // 3), "\\" * N, f"{EN} " * 1000),
    ],
    ids=lambda text: repr(text[:9]),
)
@pytest.mark.parametrize("wanted", ["en", "zh"])
def test_long_completions_are_fast(text, wanted):
    start = time.process_time()
    reward = score(text, wanted)
    assert reward is None or 0.0 <= reward <= 1.0
    assert time.process_time() - start < 2.0


def test_takes_what_trl_passes():
    assert language(
        prompts=["a", "b", "c"],
        completions=[EN, DE, [{"role": "assistant", "content": EN}]],
        completion_ids=[[1, 2], [1, 3], [1]],
        answer=["42", "42", "42"],
        trainer_state=None,
        log_extra=None,
        log_metric=None,
    ) == [1.0, 0.0, 1.0]
