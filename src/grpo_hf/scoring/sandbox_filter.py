"""Compiles the seccomp filter of the sandbox: which system calls the kernel refuses.

The filter refuses what opens a way around the rest (namespaces and mounts, tracing, io_uring,
handles of files, keys of the kernel), memory that no limit counts, and, where there is no network
namespace, sockets. A refused call fails as one without the right to it, so most programs go on.
"""

import errno
import os
import platform
import struct
import sys
from functools import cache

# Numbers on x86-64 and on ARM64; a call that ARM64 lacks is -1.
_REFUSED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "ioprio_set": (251, 30),
}
# A network or a System V segment of one's own harms nobody; those of the machine do.
_REFUSED_WITHOUT_NAMESPACES = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
# Landlock leaves these open, and a user may do them to what is his own wherever it lies.
_REFUSED_AS_THE_SAME_USER = {
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "lchown": (94, -1),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setpriority": (141, 140),
    "inotify_add_watch": (254, 27),
}
# Their first argument is a process, and 0 is the caller.
_OWN_PROCESS_ONLY = {
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
}
_CLONE, _CLONE3, _SOCKETPAIR = (56, 220), (435, 435), (53, 199)
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_SOCK_STREAM = 1

_LOAD, _AND, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _MACHINE, _FIRST, _SECOND = 0, 4, 16, 24  # offsets in the data that a filter sees


@cache
def seccomp_filter(namespaces: bool, same_user: bool = False) -> bytes:
    """Return the filter in the kernel's form, or nothing on a machine that it has no numbers for.

    Args:
        namespaces: the program has a network and System V objects of its own.
        same_user: it runs as the user who started it.
    """
    known = _MACHINES.get(platform.machine())
    if known is None or sys.maxsize < 2**32 or os.name != "posix":
        return b""
    column, machine = known
    refused = dict(_REFUSED)
    if not namespaces:
        refused |= _REFUSED_WITHOUT_NAMESPACES
    if same_user:
        refused |= _REFUSED_AS_THE_SAME_USER
    eperm = _ERROR | errno.EPERM
    code = [_step(_LOAD, _MACHINE), _step(_JUMP_EQUAL, machine, 1, 0), _step(_RETURN, _KILL)]
    code += [_step(_LOAD, _NUMBER)]
    if column == 0:  # calls of the x32 interface have numbers of their own
        code += [_step(_JUMP_AT_LEAST, 0x40000000, 0, 1), _step(_RETURN, eperm)]
    for numbers in refused.values():
        if numbers[column] >= 0:
            code += [_step(_JUMP_EQUAL, numbers[column], 0, 1), _step(_RETURN, eperm)]
    # Its flags are in memory, where a filter cannot look; without it libraries take clone.
    code += [_step(_JUMP_EQUAL, _CLONE3[column], 0, 1), _step(_RETURN, _ERROR | errno.ENOSYS)]
    code += _unless(_CLONE[column], _FIRST, _NEW_NAMESPACES, 0)
    if not namespaces:
        # Of connected streams nothing leads out; a datagram socket can be given an address.
        code += _unless(_SOCKETPAIR[column], _SECOND, 0xF, _SOCK_STREAM)
    if same_user:
        for numbers in _OWN_PROCESS_ONLY.values():
            code += _unless(numbers[column], _FIRST, 0xFFFFFFFF, 0)
    return b"".join([*code, _step(_RETURN, _ALLOW)])


def _unless(number: int, argument: int, mask: int, value: int) -> list[bytes]:
    """Refuse call `number` unless its argument, masked, has the value."""
    return [
        _step(_JUMP_EQUAL, number, 0, 5),
        _step(_LOAD, argument),
        _step(_AND, mask),
        _step(_JUMP_EQUAL, value, 0, 1),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _ERROR | errno.EPERM),
    ]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
