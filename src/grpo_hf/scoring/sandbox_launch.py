"""Confine a program, by bubblewrap or with what the kernel offers, and leave nothing of it behind.

`sandbox.py` starts this file as a program with a plan (JSON) as its argument. It is a program of
its own because code between fork and exec must not run in a trainer with threads, and it imports
the standard library alone because it runs without site-packages.

The program that the model wrote is a child of this one. This one has stayed outside, so it can end
all that the child leaves: in namespaces by ending their first process, else as the parent that
the kernel gives every orphan to.
"""

import ctypes
import json
import os
import resource
import signal
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

# From Linux's headers; Python has no names for them.
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_SUBREAPER = 1, 24, 38, 36
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 32, 4096, 16384, 1 << 18
MS_RDONLY, MNT_DETACH, AT_RECURSIVE = 1, 2, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
# The same numbers on every architecture, as these are newer than the common table.
SYS_MOUNT_SETATTR, SYS_CREATE_RULESET, SYS_ADD_RULE, SYS_RESTRICT_SELF = 442, 444, 445, 446
DEVICES = ("null", "zero", "full", "random", "urandom")
INSIDE = "/tmp"  # the writable folder of namespaces
LOOK = 0.02  # seconds between two looks at the disk
MOST_FILES = 20_000  # a tree of more is over every limit on disk

libc = ctypes.CDLL(None, use_errno=True)


class FilterProgram(ctypes.Structure):
    """A compiled seccomp filter, as the kernel takes it."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def call(name: str, *args: Any) -> int:
    """Call a function of the C library, and raise what it reports."""
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = int(getattr(libc, name)(*wide))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{args[:1]}: {os.strerror(number)}")
    return result


def main() -> None:
    """Run the plan's command, write how it ended to the plan's `status`, and end what it left."""
    plan = json.loads(sys.argv[1])
    os.set_inheritable(plan["status"], False)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    call("prctl", PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != plan["parent"]:
        return
    report: dict[str, Any] = {}
    try:
        if plan["tier"] == "namespaces":
            report = in_namespaces(plan)
        else:
            call("prctl", PR_SET_SUBREAPER, 1, 0, 0, 0)
            bubblewrap = plan["tier"] == "bubblewrap"
            child = os.fork() if bubblewrap else fork_command(plan)
            if child == 0:
                execute(plan["command"])
            try:
                report = wait_for(child) if bubblewrap else watch(child, plan)
            finally:
                end_all(plan["user"])
    except OSError as error:
        report = {"fault": str(error)}
    if report:
        os.write(plan["status"], json.dumps(report).encode() + b"\n")


def fork_command(plan: dict[str, Any]) -> int:
    """Start the command in a child, confined, and return the child's number."""
    child = os.fork()
    if child:
        return child
    try:
        if plan["tier"] == "landlock":
            rules = landlock_rules(plan)
        elif plan["tier"] == "jail":
            os.chroot(plan["root"])
        os.chdir(plan["folder"])
        give_up_rights(plan)
        if plan["tier"] == "landlock":
            call("syscall", SYS_RESTRICT_SELF, rules, 0)
        if plan["filter"]:
            install_filter(bytes.fromhex(plan["filter"]))
    except OSError as error:
        os.write(plan["status"], json.dumps({"fault": str(error)}).encode() + b"\n")
        os._exit(126)
    execute(plan["command"])


def execute(command: list[str]) -> NoReturn:
    """Become the command, with the signals as every program expects them."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and a program inherits that
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127)


def give_up_rights(plan: dict[str, Any]) -> None:
    """Take on the limits and, for good, the user that owns nothing."""
    for name, most in plan["limits"].items():
        resource.setrlimit(getattr(resource, name), (most, most))
    user = plan["user"]
    if plan["tier"] != "none" or user is not None:
        # Every program starts without capabilities, whoever owns it.
        for capability in range(64):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if os.geteuid() == 0 and plan["tier"] != "none":
        raise OSError("the program would run as root")
    # The change of user has cleared it.
    call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def install_filter(code: bytes) -> None:
    """Let the kernel refuse the system calls that no solution of a task needs."""
    program = FilterProgram(len(code) // 8, code)
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


def landlock_rules(plan: dict[str, Any]) -> int:
    """Return a ruleset that reads programs and `readable`, and writes the folder alone."""
    version = call("syscall", SYS_CREATE_RULESET, None, 0, 1)
    rights = 16 if version >= 5 else min(version, 3) + 12
    everything = (1 << rights) - 1
    # Files, then TCP (from version 4), then signals and abstract sockets (from version 6).
    asked = (everything, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    attributes = (ctypes.c_uint64 * 3)(*asked)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = call("syscall", SYS_CREATE_RULESET, ctypes.byref(attributes), size, 0)
    devices = (1 << 6) | (1 << 11)
    run_and_read = 0b1101
    for path in plan["readable"]:
        allow(ruleset, path, run_and_read)
    allow(ruleset, plan["folder"], everything & ~devices)
    for device in DEVICES:
        allow(ruleset, f"/dev/{device}", 0b110 | everything & (1 << 14))
    return ruleset


def allow(ruleset: int, path: str, rights: int) -> None:
    """Add a rule for what is at and below `path`, if that is there."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        rights &= 0b111 | (1 << 14)
    rule = ctypes.create_string_buffer(
        rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder), 12
    )
    call("syscall", SYS_ADD_RULE, ruleset, 1, rule, 0)
    os.close(place)


def in_namespaces(plan: dict[str, Any]) -> dict[str, Any]:
    """Run the command among processes, mounts, sockets and a network of its own."""
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        call("unshare", flags)
    else:
        call("unshare", flags | CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"65534 {user} 1")
        Path("/proc/self/gid_map").write_text(f"65534 {group} 1")
    first = os.fork()
    if first == 0:
        be_first_process(plan)
    if not wait_for(first):
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    return {}


def wait_for(child: int) -> dict[str, Any]:
    """Wait until the child ends and report it, or until the caller wants an end or is gone."""
    while True:
        # Seconds: a bound in case the signal of the child's end came before this wait.
        got = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, 1)
        if got is not None and got.si_signo == signal.SIGTERM:
            return {}
        status = reap(child)
        if status is not None:
            return {"returncode": os.waitstatus_to_exitcode(status)}


def be_first_process(plan: dict[str, Any]) -> NoReturn:
    """Make the root folder, start the command, and take in orphans until it ends."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    try:
        make_root(plan)
        child = fork_command({**plan, "folder": INSIDE})
        report: dict[str, Any] = {}
        while not report:
            pid, status = os.waitpid(-1, 0)
            if pid == child:
                report = {"returncode": os.waitstatus_to_exitcode(status)}
    except OSError as error:
        report = {"fault": str(error)}
    os.write(plan["status"], json.dumps(report).encode() + b"\n")
    os._exit(0)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount `source` at `target`."""
    texts = [os.fsencode(text) for text in (source, target, kind)]
    call("mount", *texts, flags, os.fsencode(options))


def bind(source: str, target: str, read_only: bool = True) -> None:
    """Show what is at `source` at `target`, too, if it is there."""
    if not os.path.exists(source):
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            Path(target).touch()
    mount(os.path.realpath(source), target, "", MS_BIND | MS_REC)
    if read_only:
        rights = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        attributes = (ctypes.c_uint64 * 4)(rights, 0, 0, 0)
        place = os.fsencode(target)
        call("syscall", SYS_MOUNT_SETATTR, -100, place, AT_RECURSIVE, ctypes.byref(attributes), 32)


def make_root(plan: dict[str, Any]) -> None:
    """Put together a file system of what may be read and one folder in memory, and enter it."""
    os.umask(0o022)
    root = plan["root"]
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    os.makedirs(root + INSIDE)
    options = f"mode=1777,size={plan['disk']},nr_inodes={MOST_FILES}"
    mount("tmpfs", root + INSIDE, "tmpfs", MS_NOSUID | MS_NODEV, options)
    shown: list[str] = []
    for path in plan["readable"]:
        if not any(path == one or path.startswith(f"{one}/") for one in shown):
            bind(path, root + path)
            shown.append(path)
    for name in plan["files"]:
        bind(f"{plan['folder']}/{name}", f"{root}{INSIDE}/{name}")
    for device in DEVICES:
        bind(f"/dev/{device}", f"{root}/dev/{device}", read_only=False)
    os.makedirs(f"{root}/proc")
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV)
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    mount("none", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def watch(child: int, plan: dict[str, Any]) -> dict[str, Any]:
    """Wait until the child ends, the disk is used up, or the caller wants an end or is gone."""
    folder = (plan["root"] if plan["tier"] == "jail" else "") + plan["folder"]
    free = os.statvfs(folder).f_bavail
    while True:
        got = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, LOOK)
        if got is not None and got.si_signo == signal.SIGTERM:
            return {}
        status = reap(child)
        if status is not None:
            return {"returncode": os.waitstatus_to_exitcode(status)}
        used = disk_used(folder) + disk_without_names(folder)
        # A file that is mapped and neither open nor in a folder is in no list of ours; the file
        # system's own count is the last bar.
        if used > plan["disk"] or os.statvfs(folder).f_bavail < free // 2:
            return {"reason": "too much disk"}


def reap(child: int) -> int | None:
    """Take in all processes that have ended; return the child's status if it is among them."""
    status = None
    with suppress(ChildProcessError):
        while True:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                status = ended
    return status


def disk_used(folder: str) -> float:
    """Return the bytes of all files below `folder`, infinitely many for too many files."""
    used, files, folders = 0, 0, [folder]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                files += 1
                if files > MOST_FILES:
                    return float("inf")
                with suppress(OSError):
                    used += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return used


def disk_without_names(folder: str) -> int:
    """Return the bytes of files that were removed from the folder's file system and are open.

    Files of a process that this one may not look at (root without CAP_SYS_PTRACE) do not count.
    """
    device = os.stat(folder).st_dev
    sizes = {}
    for process in descendants():
        with suppress(OSError):
            for entry in os.scandir(f"/proc/{process}/fd"):
                with suppress(OSError):
                    file = entry.stat()
                    if file.st_nlink == 0 and file.st_dev == device:
                        sizes[file.st_ino] = file.st_blocks * 512
    return sum(sizes.values())


def end_all(user: int | None) -> None:
    """End every process below this one, however it was started, and wait for it."""
    while True:
        if user is not None:
            end_all_of(user)
        for process in descendants():
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def end_all_of(user: int) -> None:
    """End all processes of a user at one stroke, so that none of them has time to fork."""
    helper = os.fork()
    if helper == 0:
        os.setresuid(user, user, user)
        with suppress(OSError):
            os.kill(-1, signal.SIGKILL)
        os._exit(0)
    os.waitpid(helper, 0)


def descendants() -> list[int]:
    """Return the numbers of the processes below this one."""
    found = [os.getpid()]
    for process in found:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{process}/task"):
                children = Path(f"/proc/{process}/task/{thread}/children").read_text()
                found.extend(map(int, children.split()))
    return found[1:]


if __name__ == "__main__":
    main()
