"""Every error that grpo-hf raises on purpose.

    GrpoError
    ├── ConfigError (ValueError)            a setting is unknown, or settings contradict each other
    ├── DataError (ValueError)              a dataset is missing, empty or lacks a column
    ├── ModelError (ValueError)             a model, tokenizer or adapter cannot be used as asked
    │   ├── NotPackableError                a model cannot forward packed rows
    │   └── NotGroupableError               a model cannot be sampled by groups
    ├── ReferenceDriftError (RuntimeError)  the reference is not what it has to be
    ├── SeamMovedError (RuntimeError)       another library changed a name that is relied on
    ├── RewardError (Exception)
    │   ├── RewardNotFound (LookupError)    a reward spec names nothing
    │   ├── RewardSpecError (ValueError)    a reward was found but cannot be used as asked
    │   ├── RewardOutputError (ValueError)  a reward did not return a list of rewards
    │   └── RewardFailuresError (RuntimeError)  a reward fails too often to train a model
    ├── NotFiniteError (ArithmeticError)    a loss, gradient, log-probability or weight became NaN
    ├── RolloutError (ValueError)           a rollout function returned no completion, or no tokens
    ├── EngineError (RuntimeError)          vLLM does not start, or does not answer
    ├── OutputExistsError (FileExistsError) the output folder holds a run already
    ├── SaveError (OSError)                 a disk failed while weights were saved
    └── HubUnreachable (ConnectionError)    the Hub was needed and did not answer

Each is also a standard-library exception, so callers can catch what they already catch. Each
message says what came, what was expected and what to do. Programs print the message and leave with
exit code 2 (`exit_on_error`).
"""

import difflib
from collections.abc import Iterable
from pathlib import PurePath


class GrpoError(Exception):
    """Base of everything that grpo-hf raises on purpose."""


class ConfigError(GrpoError, ValueError):
    """A setting is unknown, or settings contradict each other."""


class DataError(GrpoError, ValueError):
    """A dataset is missing, empty or lacks a column."""


class ModelError(GrpoError, ValueError):
    """A model, tokenizer or adapter cannot be used as asked."""


class NotPackableError(ModelError):
    """A model cannot forward packed rows.

    The trainer catches this error, says so once and takes TRL's path.
    """


class NotPlannableError(ModelError):
    """The memory of a run cannot be foretold.

    A run says so and goes on; `grpo-hf plan` ends with it.
    """


class NotGroupableError(ModelError):
    """A model cannot be sampled by groups.

    The trainer catches this error, says so once and samples as TRL does.
    """


class ReferenceDriftError(GrpoError, RuntimeError):
    """The reference, or the frozen base under it, is not what it has to be."""


class SeamMovedError(GrpoError, RuntimeError):
    """Another library has changed a name that grpo-hf relies on; trl_seam.py has all of them."""


class RewardError(GrpoError):
    """Base of the errors about rewards."""


class RewardNotFound(RewardError, LookupError):
    """A reward spec names nothing that is installed, registered or on disk."""


class RewardSpecError(RewardError, ValueError):
    """A reward was found, but not with this signature or these options."""


class RewardOutputError(RewardError, ValueError):
    """A reward returned something that is not one number or None per completion."""


class RewardFailuresError(RewardError, RuntimeError):
    """A reward failed on more completions than a run allows."""


class PeerEndedError(GrpoError, RuntimeError):
    """Another process of the run has ended, and this one cannot go on."""


class NotFiniteError(GrpoError, ArithmeticError):
    """A loss, gradient, log-probability or weight is NaN or infinite."""


class RolloutError(GrpoError, ValueError):
    """A rollout function returned an empty completion, or ids that are no tokens."""


class EngineError(GrpoError, RuntimeError):
    """vLLM does not start, does not answer, or does not compute what the policy computes."""


class OutputExistsError(GrpoError, FileExistsError):
    """The output folder holds a run already."""


class SaveError(GrpoError, OSError):
    """A disk failed while weights were saved."""


# No subclass of ModelError or DataError: the name may be right, and a second try may succeed.
class HubUnreachable(GrpoError, ConnectionError):
    """The Hub was needed and did not answer."""


def did_you_mean(name: str, known: Iterable[str], before: str = "") -> str:
    """Return a sentence that names the closest known spelling, or an empty string.

    The sentence starts with a space, so that it can follow another one.

    Args:
        before: what is typed before a name, and is shown with it.

    >>> did_you_mean("acuracy", ["accuracy", "overlong"])
    " Did you mean 'accuracy'?"
    >>> did_you_mean("zzz", ["accuracy"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    if not close:
        # A caller puts the result into its message, and needs no case for "nothing is close".
        return ""
    return f" Did you mean '{before}{close[0]}'?"


def did_you_mean_path(place: PurePath, siblings: Iterable[str]) -> str:
    """Return what `did_you_mean` does for a file or folder, as it would be typed.

    An ending that both names have would make any two of them look alike.

    Args:
        siblings: names in the same folder.

    >>> did_you_mean_path(PurePath("nothere.jsonl"), ["zh.jsonl"])
    ''
    >>> did_you_mean_path(PurePath("data/train.json"), ["train.jsonl"])
    " Did you mean 'data/train.jsonl'?"
    """
    near = []
    for sibling in siblings:
        if difflib.get_close_matches(place.stem, [PurePath(sibling).stem]):
            near.append(sibling)
    before = str(place)[: -len(place.name)] if place.name else ""
    return did_you_mean(place.name, near, before)
