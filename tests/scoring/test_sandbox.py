"""Hostile code gains nothing: it reads no secret, reaches nobody, and ends in time.

What bubblewrap prevents is tested where bubblewrap works; what resource limits alone prevent is tested everywhere.
"""

# ruff: noqa: E501  (samples of code stand on one line each)

import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from grpo_hf.errors import RewardSpecError
from grpo_hf.scoring import sandbox
from grpo_hf.scoring.sandbox import Limits, run_sandboxed

needs_bubblewrap = pytest.mark.skipif(
    bool(sandbox._bubblewrap_fault()), reason=sandbox._bubblewrap_fault()
)
LEVELS = [pytest.param("required", marks=needs_bubblewrap), "limits"]
both_levels = pytest.mark.parametrize("level", LEVELS)
QUICK = Limits(seconds=10, memory=256 << 20, processes=12, disk=8 << 20, output=100_000)


def run(code, level, *args, limits=QUICK, **options):
    command = [sys.executable, "-I", "-c", code, *map(str, args)]
    return run_sandboxed(command, limits=limits, level=level, **options)


def brief(seconds):
    return Limits(seconds, QUICK.memory, QUICK.processes, QUICK.disk, QUICK.output)


def leftovers(marker):
    """Processes with `marker` on their command line, this one aside."""
    others = (p for p in psutil.process_iter(["cmdline", "pid"]) if p.info["pid"] != os.getpid())
    return [p for p in others if any(marker in part for part in p.info["cmdline"] or [])]


@both_levels
def test_runs_a_program(level):
    code = "import os, sys; print(open('a/b.txt').read(), sys.stdin.read(), os.environ['X']); sys.exit(3)"
    done = run(code, level, files={"a/b.txt": "file"}, stdin="é", environment={"X": "42"})
    assert (done.returncode, done.stdout, done.stderr, done.reason) == (
        3,
        "file é 42\n",
        "",
        "exited",
    )


@both_levels
def test_large_input_and_output_do_not_block(level):
    limits = Limits(seconds=10, output=1 << 20)
    done = run(
        "import sys; sys.stdout.write(sys.stdin.read())", level, stdin="x" * 900_000, limits=limits
    )
    assert (done.reason, len(done.stdout)) == ("exited", 900_000)
    assert run("print(1)", level, stdin="x" * 900_000).stdout == "1\n"


@both_levels
def test_ends_at_the_time_limit(level):
    start = time.monotonic()
    for code in (
        "while True: pass",
        "import time; time.sleep(60)",
        "import os, time; os.close(1); os.close(2); time.sleep(60)",
    ):
        assert run(code, level, limits=brief(0.7)).reason == "timed out"
    assert time.monotonic() - start < 8


@both_levels
def test_output_is_capped_while_it_is_read(level):
    before = psutil.Process().memory_info().rss
    done = run("for _ in range(1024): print('x' * (1 << 20))", level)
    assert done.reason == "too much output"
    assert len(done.stdout) < QUICK.output + 2 * sandbox._READ_SIZE
    assert psutil.Process().memory_info().rss - before < 50 << 20


@both_levels
def test_memory_is_capped(level):
    done = run("x = bytearray(10 << 30); print('got it')", level)
    assert done.stdout == ""
    assert "MemoryError" in done.stderr


@both_levels
def test_files_are_capped(level):
    done = run("open('big', 'wb').write(b'x' * (64 << 20)); print('written')", level)
    assert "written" not in done.stdout


@needs_bubblewrap
def test_many_files_are_capped_together():
    code = "for n in range(64): open(f'{n}', 'wb').write(b'x' * (1 << 20))\nprint('written')"
    assert "No space left" in run(code, "required").stderr


@both_levels
def test_no_environment_is_passed_on(level, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = run(
        "import os; print(dict(os.environ), [open(f'/proc/{p}/environ').read() for p in ('self',)])",
        level,
    )
    assert done.returncode == 0
    assert "hf_secret" not in done.stdout


@needs_bubblewrap
def test_no_process_shows_our_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code = """
import glob
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        print(open(path).read())
    except OSError:
        pass
"""
    assert "hf_secret" not in run(code, "required").stdout


@needs_bubblewrap
def test_reads_no_file_of_ours(tmp_path):
    secret = tmp_path / "token"
    secret.write_text("hf_secret")
    secret.chmod(0o644)
    code = "import sys\nfor path in sys.argv[1:]:\n    try: print(open(path).read())\n    except OSError as e: print(type(e).__name__)"
    done = run(
        code,
        "required",
        secret,
        "/etc/passwd",
        "/etc/shadow",
        __file__,
        "/proc/1/root" + str(secret),
    )
    assert set(done.stdout.split()) <= {"FileNotFoundError", "PermissionError"}
    home = run("import os; print(*os.listdir(os.path.expanduser('~')))", "required").stdout.split()
    inside = Path(sandbox._INSIDE)
    prefixes = [Path(prefix) for prefix in (sys.prefix, sys.base_prefix)]
    ours = [
        prefix.relative_to(inside).parts[0] for prefix in prefixes if prefix.is_relative_to(inside)
    ]
    assert set(home) <= set(ours)  # an environment that lies there is where it was


@needs_bubblewrap
def test_writes_nothing_outside(tmp_path):
    tmp_path.chmod(0o777)
    code = """
import os, sys
for folder in [sys.argv[1], "/", "/usr", "/dev", "/dev/shm", "/etc", "/var/tmp", sys.prefix, "/proc/sys/kernel"]:
    try:
        open(os.path.join(folder, "mine"), "w")
        print("wrote to", folder)
    except OSError:
        pass
open(sys.argv[2], "w")
"""
    mine = Path(sandbox._INSIDE) / tmp_path.name  # a name that nobody has outside
    done = run(code, "required", tmp_path, mine)
    assert (done.returncode, done.stdout) == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert not mine.exists()


@needs_bubblewrap
def test_files_of_the_run_are_read_only():
    code = "import os\nfor do in (lambda: open('judge', 'w'), lambda: os.remove('judge'), lambda: os.rename('judge', 'x')):\n"
    code += "    try: do(); print('changed')\n    except OSError: pass"
    assert run(code, "required", files={"judge": "1"}).stdout == ""


@needs_bubblewrap
def test_reaches_no_listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        code = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 3); print('connected')"
        assert "connected" in run(code, "limits", port).stdout, (
            "the limits level does not promise it, and the test can tell"
        )
        server.accept()[0].close()
        assert "connected" not in run(code, "required", port).stdout
        with pytest.raises(TimeoutError):
            server.accept()


@needs_bubblewrap
def test_cannot_signal_its_parent():
    me, victim = os.getpid(), subprocess.Popen(["sleep", "60"])
    code = """
import os, signal, sys
for pid in [-1, os.getppid(), *map(int, sys.argv[1:])]:
    for what in (signal.SIGTERM, signal.SIGKILL):
        try: os.kill(pid, what)
        except OSError: pass
print("still here")
"""
    run(code, "required", me, os.getppid(), victim.pid)
    assert victim.poll() is None
    victim.kill()
    victim.wait()


@needs_bubblewrap
def test_has_no_rights():
    status = run("print(open('/proc/self/status').read())", "required").stdout
    rights = {
        line.split()[0]: line.split()[1]
        for line in status.splitlines()
        if line.startswith(("Cap", "NoNew", "Uid"))
    }
    assert (
        rights["CapEff:"] == rights["CapPrm:"] == rights["CapInh:"] == rights["CapAmb:"] == "0" * 16
    )
    assert rights["NoNewPrivs:"] == "1"
    assert rights["Uid:"] != "0"


FORKS = """
import os, sys, time
marker, made = sys.argv[1], 0
try:
    while True:
        if os.fork() == 0:
            os.setsid()
            while True:
                try: os.fork()
                except OSError: time.sleep(0.01)
        made += 1
except OSError:
    print("refused after", made, flush=True)
time.sleep(60)
"""


def fork_bomb(level, program=sys.executable):
    """Run one, count its processes while it runs, and those that are left."""
    marker = f"bomb-{os.getpid()}-{level}"
    with ThreadPoolExecutor(1) as pool:
        bomb = pool.submit(
            run_sandboxed, [program, "-I", "-c", FORKS, marker], limits=brief(1.5), level=level
        )
        most = 0
        while not bomb.done():
            most = max(most, len(leftovers(marker)))
    time.sleep(0.2)
    return bomb.result(), most, len(leftovers(marker))


@needs_bubblewrap
def test_fork_bomb_is_bounded_and_ends():
    done, most, left = fork_bomb("required")
    assert done.reason == "timed out"
    assert int(done.stdout.split()[2]) < QUICK.processes
    # Seen from outside, bwrap's own two processes and those that wait to be reaped are counted too.
    assert 2 <= most < 2 * QUICK.processes
    assert left == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run code as another user")
def test_fork_bomb_of_another_user_is_bounded_and_ends():
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None or not sandbox._strangers_can_read((python,)):
        pytest.skip("no Python that every user can run")
    done, most, left = fork_bomb("limits", python)
    assert done.reason == "timed out"
    assert 2 <= most < 2 * QUICK.processes
    assert left == 0


@both_levels
def test_what_is_left_behind_is_ended(level):
    marker = f"left-{os.getpid()}-{level}"
    code = "import os, time\nif os.fork() == 0: time.sleep(60)\nprint('done')"
    start = time.monotonic()
    done = run(code, level, marker)
    assert (done.stdout, done.reason) == ("done\n", "exited")
    assert time.monotonic() - start < 5
    time.sleep(0.2)
    assert leftovers(marker) == []


@needs_bubblewrap
def test_a_daemon_is_ended_too():
    marker = f"daemon-{os.getpid()}"
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\nprint('done')"
    assert run(code, "required", marker).stdout == "done\n"
    time.sleep(0.2)
    assert leftovers(marker) == []


@both_levels
def test_ends_with_a_caller_that_is_killed(level, tmp_path):
    marker = f"orphan-{os.getpid()}-{level}"
    code = "from grpo_hf.scoring.sandbox import *; import sys\n"
    code += f"run_sandboxed([sys.executable, '-c', 'import time; time.sleep(30)', {marker!r}], level={level!r}, limits=Limits(30))"
    caller = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    deadline = time.monotonic() + 20
    while not any(
        p.pid != caller.pid and "sleep" in " ".join(p.info["cmdline"]) for p in leftovers(marker)
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    caller.kill()
    caller.wait()
    deadline = time.monotonic() + 5
    while leftovers(marker):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_without_bubblewrap_it_warns_once(monkeypatch):
    monkeypatch.setattr(sandbox, "_bubblewrap_fault", lambda: "bwrap is not installed")
    sandbox._warn.cache_clear()
    with pytest.warns(
        UserWarning, match=r"resource limits only.*CAN read files.*apt-get install bubblewrap"
    ) as caught:
        assert run("print(1)", "auto").stdout == "1\n"
        assert run("print(1)", "auto").stdout == "1\n"
    assert len(caught) == 1


def test_required_is_an_error_without_bubblewrap(monkeypatch):
    monkeypatch.setattr(sandbox, "_bubblewrap_fault", lambda: "bwrap is not installed")
    with pytest.raises(
        RewardSpecError, match=r"bwrap is not installed.*apt-get install bubblewrap"
    ):
        run("print(1)", "required")


def test_a_broken_bubblewrap_is_no_bubblewrap(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sandbox._bubblewrap_fault.cache_clear()
    try:
        assert "No permissions to create new namespace" in sandbox._bubblewrap_fault()
    finally:
        sandbox._bubblewrap_fault.cache_clear()


def test_unknown_level_names_the_known_ones():
    with pytest.raises(
        RewardSpecError,
        match=r"'requierd' is not known. Did you mean 'required'\?.*auto, required, limits",
    ):
        run("print(1)", "requierd")
