"""Do to real runs what breaks runs, and write what became of them as a table.

    python tests/support/faults.py             # prints the table of docs/reliability.md
    python tests/support/faults.py --write     # puts it there
    python tests/support/faults.py rank Hub    # those alone whose names hold a word

Every run is a process of its own, in a PID namespace, so that a signal can reach nobody else.
"""

import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: made by tests/support/faults.py -->", "<!-- end of faults -->"
PATIENCE = 300
# Of what is quoted.
LONGEST = 150
REPO = "tester/demo"
KEPT = ("adapter_model.safetensors", "evaluation.jsonl", "metrics.jsonl", "README.md")
SIGNALS = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT")
PHASES = ("rollout", "scoring", "update", "save")

if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))

import psutil  # noqa: E402
from support.fakehub import FakeHub  # noqa: E402
from support.launched import Launched  # noqa: E402
from support.processes import SCRIPTS, started, written_in  # noqa: E402
from support.sandbox_attacks import in_own_processes  # noqa: E402
from support.tears import TEARS  # noqa: E402

from grpo_hf.demo.tiny_model import tiny_model, tiny_tokenizer  # noqa: E402
from grpo_hf.durability import whole_checkpoints  # noqa: E402
from grpo_hf.durability.resume import checkpoint_for  # noqa: E402
from grpo_hf.errors import ConfigError  # noqa: E402


@dataclass(frozen=True)
class Fault:
    """What is done to a run.

    Args:
        done: what is done, in words.
        outcome: does it in an empty folder, and returns what happened.
    """

    name: str
    done: str
    outcome: Callable[[Path], str]


class Run:
    """A run of a script in forks of a process that has imported the libraries."""

    def __init__(self, place: Path, script: str, *arguments: object, processes: int = 1) -> None:
        self.place, self.folder = place, place / "run"
        self._output = Path(tempfile.mkdtemp(dir=place))
        self.processes: list[ForkServerProcess] = started(
            processes, self._output, model(), self.folder, *arguments, script=SCRIPTS / script
        )

    def wait_for(self, file: Path, words: str) -> None:
        """Wait until a file begins with some words."""
        limit = time.monotonic() + PATIENCE
        while not (file.is_file() and file.read_text().startswith(words)):
            if time.monotonic() > limit or self.processes[0].exitcode is not None:
                raise SystemExit(f"{file} never began with {words!r}: {self.said()}")
            time.sleep(0.01)

    def send(self, number: int) -> None:
        for process in self.processes:
            os.kill(process.pid or 0, number)

    def said(self) -> str:
        return written_in(self._output)

    def ended(self, words: str = "", *, checkpoint: bool = True) -> str:
        """Wait for the end, and describe it: the exit code, the checkpoint, what was said.

        Args:
            words: what the line has that was said of the fault.
            checkpoint: whether it matters which one is left.
        """
        for process in self.processes:
            process.join(PATIENCE)
        facts = [f"exit code {self.processes[0].exitcode}"]
        if checkpoint:
            facts.append(self._checkpoint())
        if words:
            facts.append(sentence(self.said(), words, self.place))
        if "Traceback" in self.said():
            facts.append("a traceback")
        return "; ".join(facts)

    def _checkpoint(self) -> str:
        # What lies on a disk that the process alone sees it says itself.
        for line in self.said().splitlines():
            if line.startswith("on its disk: "):
                return line.removeprefix("on its disk: ")
        return newest_in(self.folder)


def newest_in(folder: Path) -> str:
    """Return which checkpoint of a run's folder is the newest whole one."""
    newest = whole_checkpoints.find(folder).newest if folder.is_dir() else None
    return f"{newest.name} is whole" if newest else "no checkpoint"


def model() -> Path:
    """Return a folder with a small model, which is made once."""
    folder = Path(tempfile.gettempdir()) / f"grpo-hf-faults-{os.getpid()}"
    if not folder.exists():
        tokenizer = tiny_tokenizer()
        atexit.register(shutil.rmtree, folder)
        tiny_model(tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def sentence(said: str, words: str, place: Path) -> str:
    """Return the first sentence of the line that has some words, less what differs each time."""
    lines = [line for line in said.splitlines() if words in line]
    if not lines:
        return f"**nothing is said of {words!r}**"
    found = lines[0].replace(f"{place}/", "").removeprefix("[RANK 0] ")
    found = re.split(r"(?<=[a-z0-9)'])[.] (?=[A-Z])", found, maxsplit=1)[0].rstrip(".")
    found = re.sub(r"pid \d+", "pid N", found)
    found = re.sub(r"127\.0\.0\.1:\d+", "HUB", found)
    if len(found) > LONGEST:
        found = found[max(0, found.find(words)) :]
    if len(found) > LONGEST:
        found = f"{found[:LONGEST].rpartition(' ')[0]} …"
    # Characters that mean something in a table.
    return f"*{found.replace('|', '/').replace('*', '×')}*"


def trained(
    place: Path, words: str = "", processes: int = 1, *, checkpoint: bool = True, **asked: Any
) -> str:
    """Train as `faulty_training.py` is asked to, and describe how it ended."""
    run = Run(place, "faulty_training.py", json.dumps(asked), processes=processes)
    return run.ended(words, checkpoint=checkpoint)


def gone_on(place: Path, words: str, processes: int = 1, **asked: Any) -> str:
    """Train three steps, and go on with something that is not as it was."""
    first: dict[str, Any] = {"settings": {"max_steps": 3} | asked.pop("first", {})}
    trained(place, **first)
    return trained(place, words, processes, checkpoint=False, resume="auto", **asked)


def torn(place: Path) -> str:
    """Tear each file of the newest checkpoint in each way, and go on from one of them."""
    trained(place, settings={"max_steps": 3})
    fell_back = refused = 0
    for number, (tear, name) in enumerate(TEARS):
        run = place / f"torn-{number}"
        shutil.copytree(place / "run", run)
        tear(run / "checkpoint-3" / name)
        fell_back += checkpoint_for(run, "auto") == run / "checkpoint-2"
        try:
            checkpoint_for(run, str(run / "checkpoint-3"))
        except ConfigError as error:
            refused += f"{run / 'checkpoint-2'}" in str(error)
        shutil.rmtree(run)
    (place / "run/checkpoint-3/optimizer.pt").unlink()
    end = trained(place, "checkpoint-3 is not whole", resume="auto")
    count = len(TEARS)
    return (
        f"`auto` takes checkpoint-2 in {fell_back} of {count}; {refused} of {count} are refused by "
        f"name, with checkpoint-2 named; a run without its optimizer.pt: {end}"
    )


def killed_before_a_save(place: Path) -> str:
    asked = {"settings": {"save_steps": 100, "max_steps": 200}}
    first = Run(place, "faulty_training.py", json.dumps(asked))
    first.wait_for(first.folder / "metrics.jsonl", "{")
    first.send(signal.SIGKILL)
    left = first.ended()
    return f"{left}; the same command with `auto`: {trained(place, resume='auto')}"


def second_run(place: Path) -> str:
    first = Run(place, "leaving_training.py")
    first.wait_for(Path(f"{first.folder}.phase"), "scoring")
    second = trained(place, "error: ", checkpoint=False, resume="auto")
    first.send(signal.SIGKILL)
    first.ended()
    return second


def signalled(place: Path, name: str) -> str:
    """Send a signal in each phase of a run."""
    ends = []
    for phase in PHASES:
        folder = place / phase
        folder.mkdir()
        run = Run(folder, "leaving_training.py")
        run.wait_for(Path(f"{run.folder}.phase"), f"{phase} {3 if phase == 'save' else 1}")
        run.send(getattr(signal, name))
        ends.append(f"{phase}: {run.ended()}")
        if "left after step" not in run.said():
            ends.append("**it does not say where it is**")
    codes = {end.split("exit code ")[1].split(";")[0] for end in ends}
    if len(codes) > 1:
        return "; ".join(ends)
    short = [end.replace(f"exit code {min(codes)}; ", "") for end in ends]
    return f"exit code {min(codes)}; {'; '.join(short)}"


def two_interrupts(place: Path) -> str:
    run = Run(place, "leaving_training.py")
    run.wait_for(Path(f"{run.folder}.phase"), "update 1")
    run.send(signal.SIGINT)
    time.sleep(0.6)
    run.send(signal.SIGINT)
    return f"{run.ended()}; {'a' if 'Traceback' in run.said() else 'no'} traceback"


def launched(place: Path, processes: int, victim: str) -> str:
    """Kill a process of a run that `accelerate launch` has started."""
    run = Launched(processes, model(), place / "run")
    run.wait_for("rollout", 4)
    if victim == "launcher":
        run.launcher.send_signal(signal.SIGKILL)
    else:
        next(each for each in run.trainers() if each.environ().get("RANK") == "1").kill()
    run.seconds_to_end()
    words = "error: process 1" if victim == "rank" else "SIGTERM: left after step"
    left = [each for each in run.family if psutil.pid_exists(each.pid) and each.is_running()]
    alive = sum(each.status() != psutil.STATUS_ZOMBIE for each in left)
    facts = [f"{alive} processes left", newest_in(place / "run")]
    return "; ".join([*facts, sentence(run.said, words, place)])


def command(place: Path, *arguments: object, before: str = "", **environment: str) -> Any:
    """Run `grpo-hf` as a program."""
    code = f"import sys\nfrom grpo_hf.cli import main\n{before}\nmain(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd=place,
    )


def torn_metrics(place: Path) -> str:
    trained(place)
    with (place / "run/metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 5, "rew')
    done = command(place, "plot", place / "run", place / "rewards.svg")
    drawn = "drawn" if (place / "rewards.svg").is_file() else "**not drawn**"
    words = "run/metrics.jsonl has torn lines"
    return f"exit code {done.returncode}; {drawn}; {sentence(done.stderr, words, place)}"


def hub_away(place: Path) -> str:
    """Train a recipe whose Hub refuses connections at the end, and push the run later."""
    rows = [json.dumps({"prompt": f"say {number}"}) for number in range(16)]
    (place / "data.jsonl").write_text("\n".join(rows))
    (place / "mine.py").write_text(
        "def lengths(completions, **columns):\n    return [float(len(str(c))) for c in completions]"
    )
    settings = {
        "model_name_or_path": str(model()),
        "lora_target_modules": "all-linear",
        "dataset_path": str(place / "data.jsonl"),
        "rewards": ["./mine.py:lengths"],
        "output_dir": str(place / "run"),
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "max_completion_length": 4,
        "max_steps": 1,
        "save_strategy": "no",
        "eval_rows": 2,
        "use_cpu": True,
        "report_to": "none",
        "reward_workers": 0,
        "push_to_hub": True,
        "hub_model_id": REPO,
    }
    # A recipe is YAML, and JSON is YAML.
    (place / "recipe.yaml").write_text(json.dumps(settings))
    short = "from grpo_hf.reporting import pushing\npushing._WAITS = (0.1, 0.1, 0.1)"
    with FakeHub(place / "home") as hub:
        hub.failures = [503] * 20
        done = command(place, "train", "recipe.yaml", before=short, **hub.environment())
        tries = 1 + done.stdout.count("trying again") + done.stderr.count("trying again")
        on_disk = sum((place / "run" / name).is_file() for name in KEPT)
        end = (
            f"exit code {done.returncode} after {tries} tries; {on_disk} of {len(KEPT)} files there"
        )
        words = sentence(done.stderr, "error: ", place)
        hub.failures = []
        later = command(place, "push", place / "run", REPO, **hub.environment())
        files = hub.files(REPO)
        paths = sum(str(place).encode() in content for content in files.values())
        samples = sorted({"credit.jsonl", "evaluation.jsonl"} & set(files))
        private = "private" if hub.repos["model", REPO].private else "**public**"
    return (
        f"{end}; {words}; `grpo-hf push`: exit code {later.returncode}, {len(files)} files, "
        f"{private}, {paths} with a path of the machine, samples: {samples or 'none'}"
    )


def faults() -> list[Fault]:
    """Return all faults, in the order of the table."""
    listed = [
        ("torn checkpoint", f"the newest of three torn in {len(TEARS)} ways", torn),
        (
            "weights alone",
            "`save_only_model`, then `auto`",
            partial(gone_on, words="error: ", first={"save_only_model": True}),
        ),
        (
            "other processes",
            "one process, then `auto` on two",
            partial(gone_on, words="error: ", processes=2),
        ),
        *(
            (f"other {what}", f"`auto` with {text}", partial(gone_on, words="error: ", **asked))
            for what, text, asked in (
                ("batch", "batches of 4 after 8", {"settings": {"per_device_train_batch_size": 4}}),
                ("group size", "groups of 8 after 4", {"settings": {"num_generations": 8}}),
                ("seed", "seed 7 after 42", {"settings": {"seed": 7}}),
                ("data", "24 rows after 16", {"rows": 24}),
            )
        ),
        ("killed early", "SIGKILL before the first save", killed_before_a_save),
        ("second run", "a second run into a live folder", second_run),
        *(
            (name.replace("SIGINT", "Ctrl-C"), "in each phase of a step", signalled_by(name))
            for name in SIGNALS
        ),
        ("second Ctrl-C", "0.6 s after the first", two_interrupts),
        (
            "dead launcher",
            "SIGKILL to `accelerate launch`",
            partial(launched, processes=1, victim="launcher"),
        ),
        (
            "dead rank",
            "SIGKILL to the second process of two",
            partial(launched, processes=2, victim="rank"),
        ),
        (
            "full disk, logs",
            "filled after step 2, freed after the last",
            partial(
                trained,
                words="metrics.jsonl cannot be written",
                harm="full",
                settings={"save_strategy": "no"},
            ),
        ),
        (
            "full disk, save",
            "filled after step 2, before the save",
            partial(trained, words="error: ", harm="full"),
        ),
        ("torn line", "a line of metrics.jsonl cut, then `grpo-hf plot`", torn_metrics),
        (
            "folder gone",
            "removed after step 2",
            partial(trained, words="run has vanished", harm="vanished"),
        ),
        (
            "folder read-only",
            "its disk mounted read-only after step 2",
            partial(trained, words="error: ", harm="read-only"),
        ),
        (
            "no /dev/shm",
            "read-only, with a worker for rewards",
            partial(
                trained,
                words="/dev/shm, where",
                shared_memory=False,
                settings={"reward_workers": 1},
            ),
        ),
        ("Hub away", "no answer at the end; pushed later", hub_away),
        (
            "NaN, last step",
            "loss NaN in step 4 of 4",
            partial(trained, words="error: ", loss_of_steps=[4]),
        ),
        (
            "NaN, mid-run",
            "loss NaN in step 2 of 4",
            partial(trained, words="error: ", loss_of_steps=[2]),
        ),
        (
            "NaN, skipped",
            "the same with `non_finite: skip`",
            partial(
                trained,
                words="Step 2 is left out",
                loss_of_steps=[2],
                settings={"non_finite": "skip"},
            ),
        ),
        (
            "NaN in the base",
            "one weight of the base NaN",
            partial(trained, words="error: ", broken_base=True),
        ),
        (
            "divergence",
            "learning rate 1e6",
            partial(trained, words="the run diverges", settings={"learning_rate": 1e6}),
        ),
        ("huge rewards", "rewards of 1e20", partial(trained, words="The rewards", reward="huge")),
        (
            "no rewards",
            "None from every reward",
            partial(trained, words="Every reward returned None", reward="unjudged"),
        ),
        (
            "zero rewards",
            "0 from every reward",
            partial(trained, words="earned 0", reward="nothing"),
        ),
        (
            "all clipped",
            "completions that never end",
            partial(trained, words="was cut off"),
        ),
        (
            "no tokens",
            "an empty completion in row 3",
            partial(trained, words="error: ", completion=[]),
        ),
        (
            "unknown id",
            "token id 1,000,000 in row 3",
            partial(trained, words="error: ", completion=[5, 10**6]),
        ),
        (
            "no sandbox",
            "`python_tests` where no tier holds",
            partial(trained, words="error: ", reward="python_tests", sandbox=False),
        ),
    ]
    return [Fault(*each) for each in listed]


def signalled_by(name: str) -> Callable[[Path], str]:
    return partial(signalled, name=name)


def outcome_of(fault: Fault) -> str:
    """Do what a fault is, in a folder of its own, and return what happened."""
    with tempfile.TemporaryDirectory(prefix="grpo-hf-fault-") as folder:
        start = time.monotonic()
        happened = fault.outcome(Path(folder))
    seconds = time.monotonic() - start
    print(f"{seconds:5.1f} s  {fault.name}: {happened}", file=sys.stderr, flush=True)
    return happened


def row(fault: Fault, outcome: str) -> str:
    return f"| {fault.name} | {fault.done} | {outcome} |"


def table(rows: list[str]) -> str:
    return "\n".join(["| fault | done | happened |", "|---|---|---|", *rows])


def rows_of_page() -> dict[str, str]:
    """Return the rows of the table in docs/reliability.md, by the name of the fault."""
    text = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def made_rows(words: list[str]) -> dict[str, str]:
    """Do the faults whose names hold one of the words, or all of them, and return their rows."""
    in_own_processes()
    # Made before several threads ask for it.
    model()
    chosen = []
    for fault in faults():
        if not words or any(word in fault.name for word in words):
            chosen.append(fault)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        happened = threads.map(outcome_of, chosen)
        return {
            fault.name: row(fault, words) for fault, words in zip(chosen, happened, strict=True)
        }


def write(rows: dict[str, str]) -> None:
    """Put rows into the table of the page, where those of other faults stay."""
    there = rows_of_page() | rows
    made = table([there[fault.name] for fault in faults() if fault.name in there])
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    flags = {word for word in sys.argv[1:] if word.startswith("--")}
    done = made_rows([word for word in sys.argv[1:] if word not in flags])
    print(table(list(done.values())))
    if "--write" in flags:
        write(done)
