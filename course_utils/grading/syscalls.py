"""Calls of Linux that no student's code needs, forbidden by a filter of the system's kernel (seccomp).

They reach what namespaces leave in reach: the keys of the user who grades, the memory of other processes, mounts, new
namespaces with rights of their own, and memory that belongs to no process and that no limit counts.
"""

import ctypes
import errno
import os
import struct
import sys

from course_utils.grading.linux import call

FORBIDDEN: dict[str, tuple[int, int]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
"""Each with its number on x86-64 and on 64-bit Arm."""

UNKNOWN: dict[str, tuple[int, int]] = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "clone3": (435, 435),
}
"""Calls that an older system would not know, which is what libraries are told: they then do without."""

CLONE = (56, 220)
NAMESPACES = 0x7E020000
"""Flags of `clone` that ask for a new namespace."""

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _JUMP_EQUAL, _JUMP_FROM, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_PR_SET_SECCOMP, _FILTER = 22, 2


def forbid_calls() -> None:
    """Forbid the calls to this process and to all that it starts, for good.

    It has to have given up the right to gain rights (`PR_SET_NO_NEW_PRIVS`).

    Raises:
        OSError: the system has no such filters, or its processor is not known here.
    """
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no calls can be forbidden on {sys.platform} and {machine}")
    program = _program(*_MACHINES[machine])
    code = ctypes.create_string_buffer(program)
    told = ctypes.create_string_buffer(struct.pack("@HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
    call("prctl", _PR_SET_SECCOMP, _FILTER, ctypes.byref(told), 0, 0)


def _program(column: int, architecture: int) -> bytes:
    """The filter: instructions for the system's kernel, which sees the number of a call and its first argument."""
    refuse, unknown = _ERROR | errno.EPERM, _ERROR | errno.ENOSYS
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, refuse),  # calls of another architecture have other numbers
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_FROM, 0, 1, 0x40000000),  # as have those of x32
        (_RETURN, 0, 0, unknown),
    ]
    for calls, answer in ((FORBIDDEN, refuse), (UNKNOWN, unknown)):
        for numbers in calls.values():
            steps += [(_JUMP_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, answer)]
    steps += [
        (_JUMP_EQUAL, 0, 3, CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_SET, 0, 1, NAMESPACES),
        (_RETURN, 0, 0, refuse),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
