r"""Pay for reasoning in the language that was asked for.

This is the language consistency of DeepSeek-R1 (arXiv 2501.12948). R1 takes the share of words in
the target language. Here letters are counted, so that text without spaces can be judged. The unit
is a sentence: its Han and kana letters are Japanese if there is kana among them, else Chinese; its
Hangul letters are Korean; and for all its other letters together py3langid names one language.
Code, formulas, LaTeX commands, links, tags, numbers and single Latin letters (variables) belong to
no language and are not counted.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.errors import RewardSpecError, did_you_mean
from grpo_hf.rewards._options import refuse
from grpo_hf.scoring.reward import reward_settings

# py3langid knows 140 languages, and it takes a short English sentence for Scots Gaelic now and
# then. Few completions are in a language that is not in this list; the wanted language is added.
_COMMON = (
    "ar",
    "cs",
    "de",
    "en",
    "es",
    "fa",
    "fr",
    "hi",
    "id",
    "it",
    "nl",
    "pl",
    "pt",
    "ru",
    "sv",
    "tr",
    "uk",
    "vi",
)
# The script of a letter says that it belongs to one of these languages.
_BY_SCRIPT = ("ja", "ko", "zh")

_KANA = re.compile(
    "[\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fd-\u30ff\u31f0-\u31ff\uff66-\uff9d]"
)
_HAN_OR_KANA = re.compile(
    rf"{_KANA.pattern[:-1]}\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff]"
)
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
_LETTER = re.compile(r"[^\W\d_]")

# A dollar sign opens a formula as in Pandoc: no space inside it, no digit after it. So "$2 or $3"
# are prices.
_NOT_LANGUAGE = re.compile(
    r"`[^`\n]*+`"
    r"|\$\$[^$]++\$\$|(?<!\\)\$(?!\s)[^$\n]++(?<!\s)\$(?!\d)"
    r"|\\\((?:(?!\\[()]).)++\\\)|\\\[(?:(?!\\[\[\]]).)++\\\]"
    r"|\\[A-Za-z]++(?:\{[^{}\n]*+\})*+"
    r"|</?[A-Za-z][^<>\n]{0,40}+>"
    r"|(?:https?://|www\.)[!-~]++"
    r"|(?<![A-Za-z])[A-Za-z](?![A-Za-z])"
    r"|(?<![A-Za-z0-9_])[A-Za-z_]*+\d[A-Za-z0-9_]*+",
    re.DOTALL,
)
_SENTENCE_END = re.compile(r"[\n。！？]+|(?<=[.!?…])\s+")
# A sentence of a word or two can be in any language.
_MIN_CHARACTERS = 40


def _check_options(language: str) -> None:
    if language in _BY_SCRIPT:
        return
    known = sorted(set(_identifier(None).labels).union(_BY_SCRIPT))
    if language not in known:
        expected = f"an ISO 639-1 code: {', '.join(known)}"
        refuse("language", "language", language, expected, did_you_mean(str(language), known))


@reward_settings(imports=("py3langid",), check=_check_options)
def language(
    completions: list[Completion], *, language: str = "en", **columns: Any
) -> list[float | None]:
    """Return the share of the completion's letters that stand in text of the wanted language.

    Args:
        completions: texts, or lists of messages; thinking and answer are judged together.
        language: ISO 639-1 code ("en", "de", "zh", ...).

    Returns:
        One reward per completion, from 0.0 to 1.0; None where no letter is left to judge (a bare
        `#### 42` is in every language).

    Raises:
        RewardSpecError: the language is not known, or py3langid is not installed.

    >>> language(["First we add the apples of both girls.", "#### 42"])
    [1.0, None]
    >>> language(["Zuerst zählen wir die Äpfel zusammen."])
    [0.0]
    >>> language(["所以答案是四十二。 Done!!"], language="zh")
    [0.6666666666666666]
    """
    _check_options(language)
    rewards = []
    for completion in completions:
        rewards.append(_share(completion_text(completion), language))
    return rewards


def _share(text: str, wanted: str) -> float | None:
    """Return the share of letters in the wanted language; None if there are no letters."""
    letters: Counter[str] = Counter()
    # Every other piece between fences is code; the last one too if its fence was never closed.
    prose = " ".join(text.split("```")[::2])
    for sentence in _sentences(_NOT_LANGUAGE.sub(" ", prose)):
        for code, count in _letters_by_language(sentence, wanted):
            letters[code] += count
    total = letters.total()
    return letters[wanted] / total if total else None


def _sentences(prose: str) -> Iterator[str]:
    """Yield the sentences; one that is too short to judge is joined with the next."""
    held = ""
    for sentence in _SENTENCE_END.split(prose):
        held += sentence.strip() + " "
        if len(held) > _MIN_CHARACTERS:
            yield held
            held = ""
    yield held


def _letters_by_language(sentence: str, wanted: str) -> Iterator[tuple[str, int]]:
    """Yield each language of a sentence and how many of its letters belong to it."""
    rest, han_or_kana = _HAN_OR_KANA.subn(" ", sentence)
    if han_or_kana:
        code = "ja" if _KANA.search(sentence) else "zh"
        yield code, han_or_kana
    rest, hangul = _HANGUL.subn(" ", rest)
    if hangul:
        yield "ko", hangul
    other = len(_LETTER.findall(rest))
    if not other:
        return
    if wanted in _BY_SCRIPT:
        # These letters are not of the wanted language's script, so they are foreign, and no
        # matter of which language.
        yield "", other
    else:
        code, _ = _identifier(wanted).classify(rest)
        yield code, other


# Loading the model is slow, and a run has few rewards for languages.
@lru_cache(maxsize=8)
def _identifier(wanted: str | None) -> Any:
    """Return py3langid's model for the common languages and the wanted one.

    With None, return the model for all languages that it knows.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise RewardSpecError(
            "language: the package 'py3langid' is not installed. Install it with: "
            "pip install 'grpo-hf[language]'"
        ) from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    if wanted is not None:
        identifier.set_languages({*_COMMON, wanted})
    return identifier
