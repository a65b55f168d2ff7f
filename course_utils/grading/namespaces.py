"""Namespaces of Linux: a process that sees its own file system, and no process, network or name but its own.

`leave` is called outside, `enter` by the first process inside.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from course_utils.grading.linux import call

HOME = "/home/student"
"""Of whoever is inside, in the file system in memory."""

SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/alternatives",
)
DEVICES = ("null", "zero", "full", "random", "urandom")

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = -100, 0x8000, 1, 2
_SYS_MOUNT_SETATTR = 442  # the same on every architecture; glibc knows it since 2.36


def leave() -> None:
    """Have what this process forks have new namespaces; whoever is not root gets one of users for that."""
    user, group = os.getuid(), os.getgid()
    if user != 0:
        call("unshare", _CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny", "ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", "ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", "ascii")
    call("unshare", _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS)


def enter(scratch: str, *, writable: bool, shown: Iterable[str], hidden: Iterable[str], disk: int) -> str:
    """Replace the file system by one in memory.

    Args:
        scratch: a folder that is there as it is outside.
        writable: whether what is written there stays outside.
        shown: files and folders that may be read.
        hidden: folders in those shown that are empty here.
        disk: bytes that may be written elsewhere than in `scratch`.

    Returns:
        The home folder in it.
    """
    root = f"{scratch}/.root"
    os.makedirs(root, exist_ok=True)
    call("unshare", _CLONE_NEWNS)
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)  # what is mounted from here on stays in here
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={disk},mode=755")
    for path in SYSTEM:
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.exists(path):
            _show(path, root)
    # An outer folder before those in it: the inner would vanish beneath the outer.
    for path in sorted(shown, key=len):
        _show(path, root)
    for path in filter(os.path.isdir, hidden):
        _mount("tmpfs", root + path, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=4k,mode=555")
    for name in DEVICES:
        _show(f"/dev/{name}", root, read_only=False)
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    for path, mode in {"/dev/shm": 0o1777, "/tmp": 0o1777, HOME: 0o700, "/proc": 0o555}.items():
        os.makedirs(root + path, exist_ok=True)
        os.chmod(root + path, mode)
    _show(scratch, root, read_only=not writable)
    _mount("proc", f"{root}/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    os.chdir(root)
    call("pivot_root", b".", b".")  # the old root now lies on top of the new one: take it away
    call("umount2", b".", _MNT_DETACH)
    os.chdir("/")
    return HOME


def _show(path: str, root: str, *, read_only: bool = True) -> None:
    """Make `path` visible below `root`."""
    target = root + path
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(target).touch()
    _mount(path, target, None, _MS_BIND | (_MS_REC if read_only else 0))
    if read_only:
        attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
        arguments = (_AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
        call("syscall", ctypes.c_long(_SYS_MOUNT_SETATTR), *arguments)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    names = [None if name is None else os.fsencode(name) for name in (source, target, kind)]
    call("mount", *names, ctypes.c_ulong(flags), None if options is None else options.encode())
