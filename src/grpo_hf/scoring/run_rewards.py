"""The rewards of a run: loaded from what the user names, and put into the process that scores.

TRL keeps what the user gave, in `reward_funcs`; what scores in its place is found by it here.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

from ..errors import RewardSpecError
from ..quieting import say_none_once
from .registry import load_reward
from .reward import Reward
from .scored_reward import STAYS, UNDEFINED, ScoredReward
from .signature import require_columns
from .worker_client import CannotTravelError, RewardProcess, pack

# `org/name`, as the Hub calls a model.
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
# Characters of an option's value in a name.
_LONGEST_VALUE = 24


class RunRewards:
    """What a trainer was given as rewards, and what scores in its place.

    Args:
        given: by the column of each reward; None where there are none.
        entries: what scores, by the same column; reward models are themselves.
        process: the one that scores, if any.
    """

    def __init__(
        self,
        given: list[Any] | None,
        entries: list[Any] | None,
        process: RewardProcess | None,
    ) -> None:
        self.process = process
        # A list of our own: TRL puts the reward models that it loads into the one it is given.
        self._given = list(given or [])
        self._entries = entries or []
        say_none_once()

    def entries_for(self, functions: Sequence[Any]) -> list[Any]:
        """Return what scores in the place of each of a trainer's `reward_funcs`.

        What this library has not loaded, such as a reward that TRL found in an environment, or one
        that a program has put there since, is called by TRL itself.
        """
        entries = []
        for function in functions:
            entries.append(self._entry_for(function))
        return entries

    def _entry_for(self, function: Any) -> Any:
        for given, entry in zip(self._given, self._entries, strict=True):
            if given is function:
                return entry
        return function


def scored_rewards(reward_funcs: Any) -> list[Any] | None:
    """Load every entry of `reward_funcs` for the trainer.

    Reward models (modules, model folders, `org/name`) pass through for TRL to load.
    """
    if reward_funcs is None:
        return None
    entries = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    loaded = {}
    for place, entry in enumerate(entries):
        if not _is_reward_model(entry):
            loaded[place] = load_reward(entry)
    apart = dict(zip(loaded, told_apart(list(loaded.values())), strict=True))
    rewards = []
    for place, entry in enumerate(entries):
        if place not in loaded:
            rewards.append(entry)
        else:
            # TRL goes by the name of a function that a program hands over.
            by_trl = callable(entry)
            rewards.append(ScoredReward(loaded[place] if by_trl else apart[place]))
    return rewards


def told_apart(rewards: Sequence[Reward]) -> list[Reward]:
    """Return rewards of which namesakes with different options have names of their own.

    One function with two limits becomes `concise-limit-50` and `concise-limit-200`, in metrics and
    tables: characters that no logger objects to.
    """
    namesakes: dict[str, list[Reward]] = {}
    for reward in rewards:
        namesakes.setdefault(reward.name, []).append(reward)
    return [_named_by_options(reward, namesakes[reward.name]) for reward in rewards]


def _named_by_options(reward: Reward, namesakes: Sequence[Reward]) -> Reward:
    """Return a reward whose name has the options in which it differs from its namesakes."""
    parts = [reward.name]
    for option in reward.known_options:
        values = []
        for other in namesakes:
            values.append(repr({**other.known_options, **other.options}.get(option)))
        if len(set(values)) > 1:
            own = {**reward.known_options, **reward.options}[option]
            parts += [option, str(own)[:_LONGEST_VALUE]]
    if len(parts) == 1:
        return reward
    return replace(reward, name=re.sub(r"[^\w.-]+", "_", "-".join(parts)))


def callables_of(given: Any, entries: Sequence[Any]) -> list[Any]:
    """Return what a trainer's `reward_funcs` hold: what the user gave, and for a name its reward.

    Args:
        given: the trainer's argument.
        entries: what `scored_rewards` made of it, and perhaps a process reward.
    """
    originals = given if isinstance(given, list) else [given]
    functions = []
    for column, entry in enumerate(entries):
        original = originals[column] if column < len(originals) else None
        is_loaded = isinstance(entry, ScoredReward) and not callable(original)
        functions.append(entry.reward if is_loaded else original)
    return functions


def isolate(
    rewards: Sequence[Any] | None, *, workers: int | None, timeout: float | None
) -> RewardProcess | None:
    """Start a process for the rewards that may leave this one; say which of the others stay.

    Args:
        workers: how many completions are scored at a time. With 0 all rewards stay in this process;
            with `None` there are as many workers as this process has cores.
        timeout: seconds for a completion, where a reward has no setting of its own; None: see
            `Patience`.
    """
    packed = []
    unusable = _why_no_locks()
    for reward in rewards or ():
        if not isinstance(reward, ScoredReward):
            continue
        reward.limit(timeout)
        if workers == 0 or reward.reward.settings.in_process:
            continue
        # What the author says is believed.
        if reward.reward.settings.in_process is None and reward.references.changeable:
            is_mistake = bool(reward.references.undefined)
            reward.stay(reward.references.changeable, UNDEFINED if is_mistake else STAYS)
            continue
        if unusable:
            reward.stay(unusable)
            continue
        # Pickled here already: whether a reward can travel is known before the process exists.
        try:
            packed.append((reward, pack(reward.reward)))
        except CannotTravelError as error:
            reward.stay(f"it cannot be sent to another ({error})")
    if not packed:
        return None
    pickled_rewards = []
    for _, pickled in packed:
        pickled_rewards.append(pickled)
    process = RewardProcess(pickled_rewards, workers or _cores_of_process())
    # A class or module may be known in this process only, as what a notebook defines.
    unloadable = process.unloadable()
    for index, (reward, _) in enumerate(packed):
        if index in unloadable:
            reward.stay(f"another cannot load it ({unloadable[index]})")
        else:
            reward.isolate(process, index)
    return process


def _why_no_locks() -> str:
    """Return why processes cannot share locks, or an empty text; Linux has them in /dev/shm."""
    try:
        get_context().Lock()
    except OSError as error:
        return (
            "/dev/shm, where worker processes keep their locks, cannot be used "
            f"({error.strerror or error}); free or mount it, or say --reward_workers 0"
        )
    return ""


def _cores_of_process() -> int:
    """Return this process's share of the cores that it may run on."""
    # A container or a batch system may give a process fewer cores than the machine has. Only Linux
    # can tell.
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    # Launchers set LOCAL_WORLD_SIZE to the number of training processes on this machine.
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def check_columns(rewards: Any, dataset: Any) -> None:
    """Check that a dataset has the columns that rewards read; a stream may not say, and passes.

    Raises:
        DataError: see `require_columns`.
    """
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        functions = []
        for entry in rewards or ():
            if isinstance(entry, ScoredReward):
                functions.append(entry.reward)
        require_columns(functions, columns, "the dataset", "dataset.rename_column(..., '{}')")


def refuse_namesakes(rewards: Sequence[Reward]) -> None:
    """Refuse two rewards of one name in a recipe: metrics and the final table go by name.

    Raises:
        RewardSpecError: names both.
    """
    specs: dict[str, str] = {}
    for reward in rewards:
        if reward.name in specs:
            raise RewardSpecError(
                f"two rewards are called {reward.name!r}: {specs[reward.name]} and {reward.spec}, "
                "and their metrics could not be told apart. Rename one function, or give it "
                "another name with @register_reward."
            )
        specs[reward.name] = reward.spec


def _is_reward_model(entry: Any) -> bool:
    if isinstance(entry, str):
        # `rewards/mine.py` looks like `org/name`, too.
        is_file = entry.startswith(".") or entry.endswith(".py")
        is_folder = os.path.isfile(os.path.join(entry, "config.json"))
        return is_folder or (not is_file and bool(_HUB_NAME.match(entry)))
    # A torch module, told without importing torch.
    return hasattr(entry, "parameters") and hasattr(entry, "forward")
