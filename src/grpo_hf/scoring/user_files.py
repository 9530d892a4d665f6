"""Files of a user's functions, rewards and tools, as modules of this process."""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from ..errors import RewardNotFound, RewardSpecError, did_you_mean_path

# How the names of the modules begin that are made of files.
_MODULE = "grpo_hf_file"


class _FromSource(SourceFileLoader):
    """Compiles a file each time, and leaves no `__pycache__` in a user's folder.

    Python's cache knows a source by its size and by its time in whole seconds, so of a file that is
    changed by a program, or copied with its time, it may run the one before.
    """

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def import_file(file: Path, kind: str = "reward") -> ModuleType:
    """Import a file as a module, once per process, under a name on which all processes agree.

    Raises:
        RewardNotFound: there is no such file.
        RewardSpecError: it cannot be imported.
    """
    path = file.resolve()
    if not path.is_file():
        raise RewardNotFound(f"there is no {kind} file {path}.{_file_hint(path)}")
    # hash() of a text differs from process to process.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    name = "_".join([_MODULE, re.sub(r"\W", "_", path.stem), digest])
    if name in sys.modules:
        return sys.modules[name]
    loader = _FromSource(name, str(path))
    module_spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    # There is one for every path with a loader.
    assert module_spec is not None
    module = importlib.util.module_from_spec(module_spec)
    # Before the module runs: dataclasses and pickle look it up by its name.
    sys.modules[name] = module
    with importing(f"{kind} {path}", name):
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def _file_hint(path: Path) -> str:
    """Return where the file may be meant to be, as a sentence or nothing."""
    here = Path(path.name).resolve()
    if here.is_file():
        return (
            f" In a recipe it is relative to the recipe, as a flag to the current folder; the one "
            f"in the current folder is {here}."
        )
    return did_you_mean_path(path, [sibling.name for sibling in path.parent.glob("*.py")])


def file_modules() -> list[str]:
    """Return the files that rewards of this process come from.

    Another process imports them before it unpickles a reward.
    """
    files = []
    for name, module in list(sys.modules.items()):
        if name.startswith(_MODULE):
            files.append(str(module.__file__))
    return files


@contextmanager
def importing(what: str, module: str) -> Iterator[None]:
    """Turn whatever the import of a user's module raises into an error that names it.

    Args:
        what: is imported, as the error calls it.
        module: its name.

    Raises:
        RewardNotFound: there is no such module.
        RewardSpecError: it is there, and cannot be imported.
    """
    try:
        yield
    # The module is the user's, and its import may raise anything, or call sys.exit().
    except (Exception, SystemExit) as error:
        message = f"{what} cannot be imported: {type(error).__name__}: {error}."
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        # A module that is there and lacks one of its own imports was found; it is broken.
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            hint = " Install its package; a file is named as './my_rewards.py:my_function'."
            raise RewardNotFound(message + hint) from error
        raise RewardSpecError(message) from error
