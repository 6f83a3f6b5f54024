# SPDX-License-Identifier: Apache-2.0
"""The mount namespace of an endpoint's processes.

The host's files stay (slimnet is no container runtime and has no images), but
what leads out of an endpoint is gone: cgroupfs, bpffs and every other kernel
file system are unmounted, ``/proc`` is the PID namespace's own, ``/sys`` is
new and read-only, ``/dev`` holds what a container's holds, and ``/run``, where
the agent's and every other daemon's sockets are, is new and empty.
"""
# pathlib would be start-up time:
# ruff: noqa: PTH101,PTH102,PTH103,PTH108,PTH110,PTH112,PTH120,PTH123,PTH211

from __future__ import annotations

import os
import stat

from slimnet.linux import libc
from slimnet.linux.mounts import in_sight
from slimnet.linux.resolvers import RESOLV_CONF, resolv_conf

__all__ = ["FORBIDDEN", "arrange", "put_console"]

#: File systems that an endpoint must not see at all.
FORBIDDEN = frozenset(
    (
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "cpuset",
        "debugfs",
        "efivarfs",
        "fusectl",
        "nsfs",
        "pstore",
        "resctrl",
        "securityfs",
        "selinuxfs",
        "tracefs",
    )
)
#: Replaced by instances of the endpoint's own.
_REPLACED = frozenset(("binfmt_misc", "devpts", "devtmpfs", "mqueue", "proc", "sysfs"))

# What container runtimes keep from a container in /proc.
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_MASKED = (
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
)

_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_INERT = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC


def arrange(
    *, files: dict[str, str], hostname: str, hidden: list[str], terminal: str | None
) -> None:
    """Make the calling process's mount namespace, which must be a new one, an
    endpoint's. The process must be the first of its PID namespace.

    Args:
        files: path to the file or directory that is to be seen there, as /etc/hosts the live
            hosts file.
        hostname: to be seen in /etc/hostname.
        hidden: directories and files that shall not be in sight.
        terminal: the caller's terminal, to be seen as /dev/console.

    Raises:
        OSError: a mount failed; nothing of the caller's namespace changed.
    """
    libc.mount("none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
    covered = {}  # what is seen below /run, which is to be another
    names = _resolv_conf(files.get(RESOLV_CONF))
    for seen, file in files.items():
        if seen == RESOLV_CONF:
            continue  # often a link into /run, which is to be another
        if seen == "/etc/hosts" and not os.path.exists(seen):
            continue  # a minimal machine has none, and a resolver
        if _is_below(seen, "/run"):
            covered[seen] = os.open(file, os.O_PATH | os.O_CLOEXEC)
        else:
            _bind(file, os.path.realpath(seen), read_only=True)
    console = libc.open_tree(terminal) if terminal else None

    existing = [path for path in hidden if os.path.lexists(path)]
    directories = _directories("/run")
    _take_away()
    libc.mount("proc", "/proc", "proc", _INERT)
    libc.mount("sysfs", "/sys", "sysfs", _INERT | libc.MS_RDONLY)
    _dev(console)
    _mask_proc()
    _tmpfs("/run", "mode=755")
    for name, mode, owner, group in directories:
        path = f"/run/{name}"
        os.mkdir(path)
        os.chown(path, owner, group)
        os.chmod(path, mode)
    for path in existing:
        _hide(path)
    for seen, descriptor in covered.items():
        _uncover(descriptor, seen)
    _text(RESOLV_CONF, names)
    _text("/etc/hostname", f"{hostname}\n")
    if left := [each.point for each in in_sight(*FORBIDDEN)]:
        raise OSError(f"cannot take away {', '.join(left)}")


def _resolv_conf(file: str | None) -> str:
    """What names its resolver, or the host's that it can reach."""
    if file is None:
        return resolv_conf()
    with open(file) as text:
        return text.read()


def _take_away() -> None:
    """Unmount what an endpoint must not see, wherever it is. What is mounted
    below goes along, so that this is a few calls and not dozens: each waits
    for an RCU grace period. What is below /run will be covered."""
    kinds = FORBIDDEN | _REPLACED
    while found := [each.point for each in in_sight(*kinds) if not _is_below(each.point, "/run")]:
        # /proc comes last: the list is from there.
        top = min(found, key=lambda point: (_is_below(point, "/proc"), point.count("/"), point))
        libc.umount(top)
        if top == "/proc":
            return


def _is_below(point: str, directory: str) -> bool:
    return point == directory or point.startswith(f"{directory}/")


def _bind(source: str, target: str, *, read_only: bool = False) -> None:
    libc.mount(source, target, flags=libc.MS_BIND)
    if read_only:
        libc.mount("none", target, flags=libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY)


def _uncover(descriptor: int, seen: str) -> None:
    """Show what was opened before /run was another one."""
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.makedirs(seen, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(seen), exist_ok=True)
        open(seen, "a").close()
    _bind(f"/proc/self/fd/{descriptor}", seen, read_only=True)
    os.close(descriptor)


def _tmpfs(target: str, options: str, flags: int = libc.MS_NOSUID | libc.MS_NODEV) -> None:
    libc.mount("tmpfs", target, "tmpfs", flags, options)


def _hide(path: str) -> None:
    if not os.path.lexists(path):
        return  # something above it was hidden
    if os.path.isdir(path):
        _tmpfs(path, "mode=555,size=0,nr_inodes=1", _INERT | libc.MS_RDONLY)
    else:
        _bind("/dev/null", path)


def _mask_proc() -> None:
    for name in _READ_ONLY:
        path = f"/proc/{name}"
        if os.path.exists(path):
            _bind(path, path, read_only=True)
    for name in _MASKED:
        path = f"/proc/{name}"
        if os.path.isdir(path):
            _tmpfs(path, "size=0", _INERT | libc.MS_RDONLY)
        elif os.path.exists(path):
            _bind("/dev/null", path)


def _dev(console: int | None) -> None:
    _tmpfs("/dev", "mode=755,size=64k", libc.MS_NOSUID)
    for name, (major, minor) in _DEVICES.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR, os.makedev(major, minor))
        os.chmod(f"/dev/{name}", 0o666)  # noqa: S103  # as everywhere
    for name, target in _LINKS.items():
        os.symlink(target, f"/dev/{name}")
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"/dev/{name}")
    libc.mount(
        "devpts",
        "/dev/pts",
        "devpts",
        libc.MS_NOSUID | libc.MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=620,gid=5",
    )
    _tmpfs("/dev/shm", "mode=1777")  # noqa: S108  # a mount point
    try:  # noqa: SIM105  # contextlib is start-up time too
        libc.mount("mqueue", "/dev/mqueue", "mqueue", _INERT)
    except OSError:
        pass  # a kernel without POSIX message queues
    if console is not None:
        put_console(console)


def put_console(tree: int) -> None:
    """Show a terminal as /dev/console of the calling process's mount namespace.

    Args:
        tree: of :func:`slimnet.linux.libc.open_tree`; closed.
    """
    if not os.path.lexists("/dev/console"):
        os.close(os.open("/dev/console", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    libc.move_mount(tree, "/dev/console")
    os.close(tree)


def _directories(path: str) -> list[tuple[str, int, int, int]]:
    """Name, mode, owner and group of the directories in ``path``: programs
    expect theirs in /run (/run/postgresql), made at boot."""
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and entry.name != "slimnet":
                status = entry.stat(follow_symlinks=False)
                mode = stat.S_IMODE(status.st_mode)
                found.append((entry.name, mode, status.st_uid, status.st_gid))
    return found


def _text(path: str, text: str) -> None:
    """Let ``path`` hold ``text`` in this namespace only."""
    path = os.path.realpath(path)
    if path.startswith("/run/"):  # new and ours
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "w").close()
    elif not os.path.exists(path):
        return
    source = "/run/.slimnet"
    with open(source, "w") as file:
        file.write(text)
    os.chmod(source, 0o644)
    _bind(source, path)
    os.unlink(source)
