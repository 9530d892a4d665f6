"""What of a run leaves the machine: the files that are pushed to the Hub, and the push itself.

Only files that are known go: weights, tokenizer, numbers, recipe and card. Prompts and completions
go where they are asked for. Folders of this machine are cut from what goes.
"""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from ..errors import ConfigError, HubUnreachable
from ..run_files import (
    EVALUATION_FILE,
    EVALUATIONS,
    GAMING_FILE,
    METRICS_FILE,
    OVER_TIME_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    RUN_FILE,
    say,
)
from ..run_folders import ADAPTER_FILE
from .model_card import CARD_FILE, other_weights, refresh_card
from .public_names import without_folders
from .spikes import KL_FILE
from .token_credit import CREDIT_FILE

_WEIGHTS = (
    "*.safetensors",
    "pytorch_model*.bin",
    "adapter_model.bin",
    # PEFT writes an adapter that is not called `default` into a folder of its name.
    "*/adapter_model.*",
)
# What loads them, as a folder's patterns.
_MODEL = (
    *_WEIGHTS,
    "*.safetensors.index.json",
    "*config.json",
    "*/adapter_config.json",
    "modeling_*.py",
    "configuration_*.py",
    "tokenization_*.py",
    "tokenizer*",
    "chat_template*",
    "additional_chat_templates/*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
# What else a reader of the repository needs.
_RECORD = ("README.md", RECIPE_FILE, METRICS_FILE, f"{EVALUATIONS}/*.json", "report/*.png")
# What holds prompts and completions.
_SAMPLES = (
    CREDIT_FILE,
    EVALUATION_FILE,
    OVER_TIME_FILE,
    f"{EVALUATIONS}/*.jsonl",
    GAMING_FILE,
    KL_FILE,
    REPORT_FILE,
    "samples.jsonl",
    "completions/*.parquet",
)
# Seconds before each further attempt.
_WAITS = (5, 30, 120)
# Answers of a server that may be others a moment later; all others of 4xx are refusals.
_PASSING = (408, 409, 412, 425, 429)
# What it means that the Hub does not answer: the last are the errors of the HTTP library that the
# client uses, whichever that is.
UNREACHABLE: tuple[Any, ...] = (OSError, *HfHubHTTPError.__bases__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class PushedFile:
    """A file as it is pushed.

    Args:
        name: its path in the repository.
        content: the file, or its bytes where folders were cut from them.
    """

    name: str
    content: Path | bytes

    @property
    def operation(self) -> CommitOperationAdd:
        """The client's own object for it."""
        content = self.content if isinstance(self.content, bytes) else str(self.content)
        return CommitOperationAdd(self.name, content)

    @property
    def size(self) -> int:
        """How many bytes are pushed."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.stat().st_size


class RunClient(HfApi):
    """A client of the Hub that uploads of a run's folder what `pushed_files` returns.

    Args:
        samples: whether prompts and completions are pushed.
        private: whether a new repository is private; None leaves it to the Hub.
        checkpoint: of a run that has not ended, whose weights are pushed.
    """

    def __init__(
        self, *, samples: bool, private: bool | None, checkpoint: Path | None = None
    ) -> None:
        super().__init__(library_name="grpo_hf")
        self.samples = samples
        self.private = private
        self.checkpoint = checkpoint
        self._listed: list[str] = []

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: str | Path,
        path_in_repo: str | None = None,
        run_as_future: bool = False,
        **settings: Any,
    ) -> Any:
        """Upload files of a folder in one commit; a background upload is not tried again.

        A folder with a place in the repository is a checkpoint, which `hub_strategy` asks for.
        """
        folder = Path(folder_path)
        files = pushed_files(folder, samples=self.samples, checkpoint=self.checkpoint)
        if path_in_repo is not None:
            files = _whole_folder(folder, path_in_repo)
        self.list_once(files, folder, repo_id)
        # Other settings of transformers say which files to leave out.
        kept: dict[str, Any] = {}
        for name in ("commit_message", "token", "revision"):
            kept[name] = settings.get(name)
        operations = [file.operation for file in files]
        if run_as_future:
            future = self.create_commit(repo_id, operations, run_as_future=True, **kept)
            # Nobody asks such a push how it went.
            future.add_done_callback(_say_if_failed)
            return future
        return self.persist(
            lambda: self.create_commit(repo_id, operations, **kept), folder, repo_id
        )

    def list_once(self, files: Sequence[PushedFile], folder: Path, repo_id: str) -> None:
        """Print what is pushed; a run that pushes at each of its checkpoints says it once."""
        names = [file.name for file in files]
        if names != self._listed:
            _list_files(files, folder, repo_id, self.checkpoint)
            self._listed = names

    def license_of(self, repo_id: str, token: str | None = None) -> str | None:
        """Return the licence of a model on the Hub, or None where that is not known."""
        try:
            card = self.model_info(repo_id, token=token).card_data
        except (ValueError, *UNREACHABLE):
            # A card without a licence is no reason to push nothing.
            return None
        found = None if card is None else card.get("license")
        return found if isinstance(found, str) else None

    def persist(self, call: Callable[[], Result], folder: Path, repo_id: str) -> Result:
        """Call the Hub, and again after a wait where it does not answer.

        Raises:
            ConfigError: the Hub refuses, or there is no login.
            HubUnreachable: it did not answer for so long.
        """
        flags = ["--samples"] * self.samples + ["--public"] * (self.private is False)
        command = shlex.join(["grpo-hf", "push", str(folder), repo_id, *flags])
        later = f"All files are in {folder}. Push them later: {command}"
        waits = list(_WAITS)
        while True:
            try:
                return call()
            except (LocalTokenNotFoundError, HFValidationError) as error:
                raise ConfigError(f"{repo_id} cannot be pushed to: {error} {later}") from error
            except (RuntimeError, *UNREACHABLE) as raised:
                reason = _of_the_hub(raised)
                if reason is None:
                    raise
                if _is_refusal(reason):
                    raise ConfigError(
                        f"the Hub refused the push to {repo_id} ({_first_line(reason)}). Log in by "
                        f"`hf auth login` with a token that may write there. {later}"
                    ) from raised
                if not waits or isinstance(reason, OfflineModeIsEnabled):
                    raise HubUnreachable(
                        f"the Hub does not answer ({_first_line(reason)}). {later}"
                    ) from raised
                shown = f"{_first_line(reason)}); trying again in {waits[0]} s"
                say(f"the Hub does not answer ({shown}")
            time.sleep(waits.pop(0))


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None,
    samples: bool,
    token: str | None = None,
    revision: str | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Push a run, after saying which files go, and print the address after.

    Args:
        folder: the output folder of the run.
        private: whether a new repository is private; None leaves it to the Hub.
        samples: whether prompts and completions are pushed.
        checkpoint: of a run that has not ended, whose weights are pushed.

    Raises:
        ConfigError: there is no login, the repository has no possible name, or the Hub refuses.
        HubUnreachable: the Hub does not answer, after several attempts.
    """
    client = RunClient(samples=samples, private=private, checkpoint=checkpoint)
    refresh_card(folder, repo=repo_id)
    # Before anything of it is on its way.
    files = pushed_files(folder, samples=samples, checkpoint=checkpoint)
    client.list_once(files, folder, repo_id)

    def repository() -> tuple[str, bool]:
        made = client.create_repo(repo_id, token=token, private=private, exist_ok=True)
        return made.repo_id, bool(client.model_info(made.repo_id, token=token).private)

    found, is_private = client.persist(repository, folder, repo_id)
    if private and not is_private:
        say(f"note: the repository {found} was there before, and is public.")
    # Its whole name, and the licence of the base, are known on the Hub alone.
    refresh_card(folder, repo=found, find_license=partial(client.license_of, token=token))
    client.upload_folder(
        repo_id=found,
        folder_path=folder,
        commit_message="End of training",
        token=token,
        revision=revision,
    )
    say(f"pushed to {client.endpoint}/{found} ({'private' if is_private else 'public'})")


def holds_weights(folder: Path) -> bool:
    """Whether a push of this folder would push weights."""
    return bool(_names_in(folder, _WEIGHTS))


def pushed_files(
    folder: Path, *, samples: bool, checkpoint: Path | None = None
) -> list[PushedFile]:
    """Return the files of a run's folder that are pushed, by name.

    Args:
        samples: whether prompts and completions are among them.
        checkpoint: of a run that has not ended: its model is pushed in the place of the run's.
    """
    patterns = _RECORD + _MODEL + (_SAMPLES if samples else ())
    found = {name: folder / name for name in _names_in(folder, patterns)}
    if checkpoint is not None:
        found |= {name: checkpoint / name for name in _names_in(checkpoint, _MODEL)}
    return [PushedFile(name, without_folders(file)) for name, file in sorted(found.items())]


def _names_in(folder: Path, patterns: Sequence[str]) -> set[str]:
    names = set()
    for pattern in patterns:
        for file in folder.glob(pattern):
            name = file.relative_to(folder).as_posix()
            # Checkpoints hold the rollout under way, and files that begin so are nobody's results.
            hidden = name.startswith((".", "_")) or "checkpoint-" in name or "partial" in name
            if file.is_file() and not hidden:
                names.add(name)
    return names


def _whole_folder(folder: Path, place: str) -> list[PushedFile]:
    files = []
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            name = f"{place}/{file.relative_to(folder).as_posix()}"
            files.append(PushedFile(name, without_folders(file)))
    return files


def list_files(
    folder: Path, repo_id: str, *, samples: bool, checkpoint: Path | None = None
) -> None:
    """Print what a push of a run would push, and push nothing."""
    files = pushed_files(folder, samples=samples, checkpoint=checkpoint)
    _list_files(files, folder, repo_id, checkpoint, verb="would push")


def _say_if_failed(future: Any) -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None:
        say(
            f"a push during the training did not succeed ({_first_line(error)}). The run goes on, "
            "and pushes again."
        )


def _list_files(
    files: Sequence[PushedFile],
    folder: Path,
    repo_id: str,
    checkpoint: Path | None,
    *,
    verb: str = "pushing",
) -> None:
    """Print what is pushed, and what of the folder is not."""
    say(f"{verb} {len(files)} files of {folder} to {repo_id}:")
    for file in files:
        note = f" ({_what_was_cut(file)})" if isinstance(file.content, bytes) else ""
        say(f"  {file.name}  {file.size:,} bytes{note}")
    pushed = {file.name.partition("/")[0] for file in files}
    if checkpoint is not None:
        pushed.add(checkpoint.name)
    total = sum(file.size for file in files)
    say(f"  in all  {total:,} bytes")
    left = sorted({each.name for each in folder.iterdir()} - pushed - {RUN_FILE, CARD_FILE})
    if left:
        say(f"  not pushed: {', '.join(left)}")
    other = other_weights(folder)
    if other:
        say(f"note: {other}")


def _what_was_cut(file: PushedFile) -> str:
    """Return what became of folders that a file named; of a base that is its name for others."""
    said = "folders of this machine cut"
    if not file.name.endswith(ADAPTER_FILE) or not isinstance(file.content, bytes):
        return said
    return f"{said}; its base is {json.loads(file.content)['base_model_name_or_path']}"


def _of_the_hub(error: BaseException | None) -> Exception | None:
    """Return what the Hub or the network said, or None where it is another error.

    For a large file the client raises a RuntimeError because of it.
    """
    while isinstance(error, RuntimeError) and not isinstance(error, UNREACHABLE):
        error = error.__cause__
    return error if isinstance(error, UNREACHABLE) else None


def _is_refusal(error: Exception) -> bool:
    response = getattr(error, "response", None)
    status = 0 if response is None else response.status_code
    return 400 <= status < 500 and status not in _PASSING


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
