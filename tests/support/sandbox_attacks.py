"""Runs every attack in every tier of the sandbox that works here, and prints the table of the docs.

    python tests/support/sandbox_attacks.py          # a table in Markdown
    python tests/support/sandbox_attacks.py --json   # {tier: {attack: what it got, or ""}}
    ... --only TIER --quick                          # one tier, without what takes a second

It starts itself again as the first process of a PID namespace, so that an attack which escapes ends
nothing but the attacks; where there is no such namespace it refuses to run.
"""

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from grpo_hf.scoring import sandbox, sandbox_tiers

_MARK, _SEGMENT = "grpo-hf-attack-mark", 0x67727068
# What each attack's code may use: `told` names things outside; it prints what it got.
PREAMBLE = """
import ctypes, json, mmap, os, signal, socket, struct, sys, time
told = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def got(what): print("GOT", what, flush=True)
def attempt(what, action):
    try: action()
    except (OSError, ValueError, MemoryError, AttributeError): return
    got(what)
"""
ATTACKS = {
    "be root": "if 0 in os.getresuid(): got('user id 0')",
    "hold a right of root": """
for line in open('/proc/self/status') if os.path.exists('/proc/self/status') else ():
    if line.startswith('CapEff') and int(line.split()[1], 16): got(line.strip())
    if line.startswith('NoNewPrivs') and line.split()[1] != '1': got(line.strip())
if libc.prctl(39, 0, 0, 0, 0) != 1: got('setuid programs give rights')""",
    "read /etc/shadow": "attempt('it', lambda: open('/etc/shadow').read())",
    "read a file of mode 0600": "attempt('it', lambda: open(told['secret']).read())",
    "read a user's file of mode 0644": "attempt('it', lambda: open(told['public']).read())",
    "read the caller's environment": """
for pid in {told['caller'], told['victim'], os.getppid()}:
    try: text = open(f'/proc/{pid}/environ').read()
    except OSError: continue
    if 'hf_secret' in text: got('the token')""",
    "find an open file of the caller": """
for number in range(3, 256):
    attempt(f'descriptor {number}', lambda: os.fstat(number))""",
    "write outside its folder": """
for folder in told['writable']:
    attempt(folder, lambda: open(os.path.join(folder, told['name']), 'w'))
for folder in ('/tmp', '/var/tmp', '/dev/shm'):
    attempt('', lambda: open(os.path.join(folder, told['name']), 'w'))""",
    "write Python's library": "attempt('it', lambda: os.close(os.open(os.__file__, os.O_WRONLY)))",
    "change the mode of a file outside": """
attempt('it', lambda: os.chmod(told['public'], 0o666))
attempt('its time', lambda: os.utime(told['public']))""",
    "reach a TCP listener": """
attempt('it', lambda: socket.create_connection(('127.0.0.1', told['port']), 1))""",
    "send a UDP packet": """
def send():
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.sendto(b'x', ('127.0.0.1', told['udp']))
attempt('', send)""",
    "reach a Unix socket": """
def reach(address):
    with socket.socket(socket.AF_UNIX) as s: s.connect(address)
attempt('in a folder', lambda: reach(told['socket']))
attempt('abstract', lambda: reach(told['abstract']))""",
    "send from a socket pair": """
def send():
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b'x', told['datagrams'])
attempt('', send)""",
    "end a process": "attempt('', lambda: os.kill(told['victim'], 9))",
    "end all processes (kill -9 -1)": "attempt('', lambda: os.kill(-1, 9))",
    "slow or limit a process": """
import resource
attempt('limits', lambda: resource.prlimit(told['victim'], resource.RLIMIT_NOFILE, (8, 8)))
attempt('priority', lambda: os.setpriority(os.PRIO_PROCESS, told['victim'], 19))""",
    "trace a process": "if libc.ptrace(16, told['victim'], None, None) == 0: got('it')",
    "fork without limit": """
made = 0
try:
    for made in range(1, 60):
        if os.fork() == 0: time.sleep(30); os._exit(0)
except OSError: made -= 1
if made > 12: got(f'{made} processes')
signal.pause()""",
    "leave a daemon": """
if os.fork() == 0:
    os.setsid()
    for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0: time.sleep(30)
    os._exit(0)
os.wait()""",
    "leave daemons that fork on": """
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        while True:
            try:
                if os.fork(): os._exit(0)
            except OSError: pass
time.sleep(0.2)""",
    "write one large file": """
with open('large', 'wb') as file:
    for n in range(64): file.write(bytes(1 << 20)); file.flush()
got('64 MiB')""",
    "write many files": """
for n in range(96): open(f'f{n}', 'wb').write(bytes(1 << 20)); time.sleep(0.003)
got('96 MiB')""",
    "write files without a name": """
held = []
for n in range(96):
    held.append(open(f'f{n}', 'wb', buffering=0)); os.unlink(f'f{n}')
    held[-1].write(bytes(1 << 20)); time.sleep(0.003)
got('96 MiB')""",
    "make 50,000 empty files": """
for n in range(50_000): os.close(os.open(f'f{n}', os.O_CREAT | os.O_WRONLY))
got('50,000 files')""",
    "take memory": "attempt('1 GiB', lambda: bytearray(1 << 30))",
    "take memory that is no process's": """
def take():
    for _ in range(10): os.write(os.memfd_create('x'), bytes(24 << 20))
attempt('it', take)""",
    "print without end": "while True: print('x' * 4096)",
    "leave a shared segment": f"libc.shmget({_SEGMENT}, 4096, 0o1666)",
    "make a namespace": "if libc.unshare(0x10000000) == 0: got('it')",
    "leave by chroot": "attempt('it', lambda: os.chroot('.'))",
    "use io_uring": """
if libc.syscall(425, 8, ctypes.create_string_buffer(256)) >= 0: got('it')""",
    "use the kernel's keys": "if libc.syscall(250, 0, -3, 1, 0, 0) >= 0: got('a keyring')",
    "open the terminal": "attempt('it', lambda: open('/dev/tty'))",
    "change the judge's file": """
attempt('written', lambda: open('judge', 'w'))
attempt('renamed', lambda: os.rename('judge', 'other'))
attempt('removed', lambda: os.remove('judge'))""",
}
SLOW = {"fork without limit", "make 50,000 empty files"}
QUICK = sandbox.Limits(seconds=4, memory=256 << 20, processes=12, disk=32 << 20, output=100_000)
SHORT = sandbox.Limits(seconds=1, memory=256 << 20, processes=12, disk=32 << 20, output=100_000)


class Outside:
    """What an attack could reach, and a look at it afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o777)
        self.public = folder / "public"
        self.public.touch(0o644)
        secret = folder / "secret"
        secret.write_text("hf_secret")
        secret.chmod(0o600)
        self.before = self.public.stat()
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        abstract = f"\0{folder.name}"
        self.listening = [self._listen(str(folder / "socket")), self._listen(abstract)]
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagrams.bind(str(folder / "datagrams"))
        for name in ("socket", "datagrams"):
            (folder / name).chmod(0o777)
        self.victim = subprocess.Popen(["sleep", "300"])
        self.told = {
            "name": f"{folder.name}.attack",
            "secret": str(secret),
            "public": str(self.public),
            "caller": os.getpid(),
            "victim": self.victim.pid,
            "writable": [str(folder), "/usr", "/etc", "/proc/sys/kernel", sys.prefix],
            "port": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "socket": str(folder / "socket"),
            "abstract": abstract,
            "datagrams": str(folder / "datagrams"),
        }

    @staticmethod
    def _listen(address: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen()
        return listener

    def harm(self) -> str:
        """Say what an attack did out here, and repair it."""
        time.sleep(0.02)
        if self.victim.poll() is not None:
            self.victim = subprocess.Popen(["sleep", "300"])
            self.told["victim"] = self.victim.pid
            return "a process was ended"
        if self._shared_segment_is_left():
            return "a segment was left"
        for listener in (self.udp, self.datagrams):
            listener.setblocking(False)
            with suppress(BlockingIOError):
                listener.recv(16)
                return "a packet arrived"
        left = [path for path in self._marked_files() if path.exists()]
        for path in left:
            path.unlink()
        if left:
            return f"{left[0]} was written"
        running = marked_processes()
        for process in running:
            os.kill(process, 9)
        return f"{len(running)} processes were left" if running else ""

    @staticmethod
    def _shared_segment_is_left() -> bool:
        libc = ctypes.CDLL(None)
        segment = libc.shmget(_SEGMENT, 0, 0)
        return segment >= 0 and libc.shmctl(segment, 0, None) == 0  # 0: removes it

    def close(self) -> None:
        """Take away what was set up."""
        self.victim.kill()
        self.victim.wait()
        for one in (self.tcp, self.udp, self.datagrams, *self.listening):
            one.close()

    def _marked_files(self) -> list[Path]:
        names = ("/var/tmp", "/dev/shm", "/tmp", "/usr", "/etc", sys.prefix)
        folders = [self.folder, *map(Path, names)]
        return [folder / f"{self.folder.name}.attack" for folder in folders]


def marked_processes() -> list[int]:
    """Return the processes out here that carry the mark of an attack."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes()
            state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if _MARK.encode() in words and state != "Z" and int(name) != os.getpid():
            found.append(int(name))
    return found


def result_of(attack: str, tier: str, outside: Outside) -> str:
    """Run one attack in one tier, and return what it got; nothing if the tier held."""
    limits = SHORT if attack in ("fork without limit", "print without end") else QUICK
    told = json.dumps(outside.told)
    command = [sys.executable, "-I", "-S", "-c", PREAMBLE + ATTACKS[attack], told, _MARK]
    done = sandbox.run_sandboxed(command, files={"judge": "1"}, limits=limits, level=tier)
    lines = [line[4:] for line in done.stdout.splitlines() if line.startswith("GOT")]
    harm = outside.harm()
    # A signal to a number that means another process inside is no success; its victim tells.
    return harm or ", ".join(filter(None, lines))


def all_results(tiers: list[str], attacks: list[str]) -> dict[str, dict[str, str]]:
    """Return what each of the attacks got in each of the tiers."""
    results: dict[str, dict[str, str]] = {}
    for tier in tiers:
        with tempfile.TemporaryDirectory(prefix="grpo-hf-outside-") as folder:
            outside = Outside(Path(folder))
            results[tier] = {}
            for attack in attacks:
                results[tier][attack] = result_of(attack, tier, outside)
            outside.close()
    return results


def table(results: dict[str, dict[str, str]]) -> str:
    """Return the results as Markdown."""
    rows = [["attack", *results], ["---"] * (len(results) + 1)]
    for attack in ATTACKS:
        rows.append(
            [attack, *("**succeeds**" if one[attack] else "held" for one in results.values())]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def in_own_processes() -> None:
    """Go on as the first process of a namespace, so that nobody else can be harmed."""
    if os.getpid() == 1:
        return
    program = shutil.which("unshare")
    if program is None:
        raise SystemExit("attacks run in a PID namespace only, and unshare is not installed")
    options = ["--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid() != 0:
        options += ["--user", "--map-current-user"]
    os.execv(program, [program, *options, sys.executable, *sys.argv])


def main() -> None:
    in_own_processes()
    os.environ["HF_TOKEN"] = "hf_secret"
    tiers = ["none"]
    for tier in reversed(sandbox_tiers.TIERS):
        if not sandbox_tiers.fault(tier, sandbox._attempt):
            tiers.insert(0, tier)
    if "--only" in sys.argv:
        tiers = [sys.argv[sys.argv.index("--only") + 1]]
    attacks = [attack for attack in ATTACKS if "--quick" not in sys.argv or attack not in SLOW]
    results = all_results(tiers, attacks)
    print(json.dumps(results) if "--json" in sys.argv else table(results))


if __name__ == "__main__":
    main()
