r"""Pay for reasoning in the language that was asked for.

This is the language consistency of DeepSeek-R1 (arXiv 2501.12948). R1 takes the share of words in
the target language. Here letters are counted, so that text without spaces can be judged. The unit
is a sentence: its Han and kana letters are Japanese if there is kana among them, else Chinese; its
Hangul letters are Korean; and for all its other letters together py3langid names one language.
Code, formulas, LaTeX commands, links, tags, numbers and single Latin letters (variables) belong to
no language and are not counted. A few words can be of any language, so a completion with fewer than
20 letters is not judged, and fewer than 20 letters beside other scripts are not given a language.
"""

import re
from collections import Counter
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
    r"|(?<![A-Za-z0-9_])[A-Za-z_]*+\d[A-Za-z0-9_]*+"
    # sin(x), math.sqrt, number_of_apples, numberOfApples
    r"|(?<![\w.])[A-Za-z_]\w*+(?:\.[A-Za-z_]\w*+)*+(?=\()"
    r"|(?<![\w.])[A-Za-z]\w++(?:\.[A-Za-z]\w++)++"
    r"|(?<!\w)[A-Za-z]++(?:_[A-Za-z0-9]++)++|(?<!\w)[a-z]++[A-Z][A-Za-z]*+",
    re.DOTALL,
)
# Lines of code outside of a fence, and equations like `speed = distance / time`: neither has three
# words in a row behind the sign. A short line that ends in a colon is lost with them.
_KEYWORD = (
    r"(?:def|class|for|while|if|elif|else|try|except|with|fn|pub|let|const"
    r"|return|import|from|print)"
)
_CODE_LINE = re.compile(
    rf"^[ \t]*+(?:{_KEYWORD}"
    r"\b[^\n=()\[\]{}<>;]*+[=()\[\]{}<>;][^\n]*(?<=[;:{})\]])[ \t]*"
    rf"|{_KEYWORD}(?: [\w.]++){{0,3}}:|(?:return|import)(?: [\w.]++)?"
    r"|[^\W\d]\w*+(?:\[[^\]\n]*+\])?[ \t]*+[-+*/]?="
    r"(?![^\n]*?\b[^\W\d_]{2,}+[ \t]++[^\W\d_]{2,}+[ \t]++[^\W\d_]{2,}+)[^\n]*"
    r")$",
    re.MULTILINE,
)
_SENTENCE_END = re.compile(r"[\n。！？]+|(?<=[.!?…])\s+")
# A sentence of a word or two can be in any language.
_MIN_CHARACTERS = 40
# py3langid is right for 0.79 of the beginnings of MGSM's sentences with 5 to 9 letters, for 0.94 of
# those with 10 to 14, for 0.98 with 15 to 19, for 0.997 with 20 to 24, and for all from 30 on.
_MIN_LETTERS = 20
# A character of Chinese, Japanese or Korean says as much as several letters, and its script names
# the language.
_LETTERS_IN_CHARACTER = 5


def _check_options(language: str) -> None:
    if language in _BY_SCRIPT:
        return
    known = sorted(set(_identifier(None).labels).union(_BY_SCRIPT))
    if language not in known:
        expected = f"an ISO 639-1 code: {', '.join(known)}"
        refuse("language", "language", language, expected, did_you_mean(str(language), known))


@reward_settings(batched=False, in_process=False, imports=("py3langid",), check=_check_options)
def language(
    completions: list[Completion], *, language: str = "en", **columns: Any
) -> list[float | None]:
    """Return the share of the completion's letters that stand in text of the wanted language.

    Args:
        completions: texts, or lists of messages; thinking and answer are judged together.
        language: ISO 639-1 code ("en", "de", "zh", ...).

    Returns:
        One reward per completion, from 0.0 to 1.0; None where too little is left to judge: fewer
        than 20 letters, or 4 characters of Chinese, Japanese or Korean (`So $x = 3$.` could be in
        any language).

    Raises:
        RewardSpecError: the language is not known, or py3langid is not installed.

    >>> language(["First we add the apples of both girls.", "So $x = 3$.", "sin(x) + cos(y)"])
    [1.0, None, None]
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
    """Return the share of letters in the wanted language; None if there are too few."""
    letters: Counter[str] = Counter()
    # Every other piece between fences is code; the last one too if its fence was never closed.
    prose = "\n".join(text.split("```")[::2])
    prose = _NOT_LANGUAGE.sub(" ", _CODE_LINE.sub("", prose))
    few = ""
    for sentence in _sentences(prose):
        rest = _count_by_script(sentence, letters)
        if len(_LETTER.findall(rest)) < _MIN_LETTERS:
            few += rest + " "
        else:
            _count_alphabetic(rest, wanted, letters)
    # The few letters of several sentences may be enough together.
    if wanted in _BY_SCRIPT or len(_LETTER.findall(few)) >= _MIN_LETTERS:
        _count_alphabetic(few, wanted, letters)
    total = letters.total()
    by_script = sum(map(letters.__getitem__, _BY_SCRIPT))
    if total + by_script * (_LETTERS_IN_CHARACTER - 1) < _MIN_LETTERS:
        return None
    return letters[wanted] / total


def _sentences(prose: str) -> list[str]:
    """Return the sentences; one that is too short to judge is joined with the next.

    The last one is joined with the one before it.
    """
    sentences: list[str] = []
    held = ""
    for sentence in _SENTENCE_END.split(prose):
        held += sentence.strip() + " "
        if len(held) > _MIN_CHARACTERS:
            sentences.append(held)
            held = ""
    if sentences:
        sentences[-1] += held
        return sentences
    return [held]


def _count_by_script(sentence: str, letters: Counter[str]) -> str:
    """Count the letters whose script names their language; return the sentence without them."""
    rest, han_or_kana = _HAN_OR_KANA.subn(" ", sentence)
    letters["ja" if _KANA.search(sentence) else "zh"] += han_or_kana
    rest, hangul = _HANGUL.subn(" ", rest)
    letters["ko"] += hangul
    return rest


def _count_alphabetic(text: str, wanted: str, letters: Counter[str]) -> None:
    """Count the letters of a text under the one language that it is taken for."""
    count = len(_LETTER.findall(text))
    if not count:
        return
    if wanted in _BY_SCRIPT:
        # These letters are not of the wanted language's script, so they are foreign, and no
        # matter of which language.
        letters[""] += count
    else:
        code, _ = _identifier(wanted).classify(text)
        letters[code] += count


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
