# SPDX-License-Identifier: Apache-2.0
"""Wait for a child as a good parent does: signals go down, its status comes up.

The same loop serves the three processes above a command: the caller, the one
that stays outside the PID namespace, and its init.
"""

from __future__ import annotations

import os
import signal

__all__ = ["RELAYED", "block", "status_of", "wait"]

#: What is passed on when another process sent it. Not the faults of a process
#: itself, and not SIGPIPE, which Python's own writes cause.
RELAYED: frozenset[int] = frozenset(
    (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGTERM,
        signal.SIGCONT,
        signal.SIGTSTP,
        signal.SIGURG,
        signal.SIGVTALRM,
        signal.SIGPROF,
        signal.SIGWINCH,
        signal.SIGIO,
        signal.SIGPWR,
        *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
    )
)

_LOOK = os.WNOHANG | os.WUNTRACED

#: Seconds between looks at the child where a signal may not come, and where it must.
_UNSURE = 0.05
_SURE = 3600.0


def block() -> set[int]:
    """Hold the relayed signals and SIGCHLD back until :func:`wait` takes them;
    returns the mask before. Children started now inherit this, so that not
    one signal is lost between their start and their :func:`wait`."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, RELAYED | {signal.SIGCHLD}))


def status_of(waited: int) -> int:
    """The exit status that a shell gives: 128 + n for a death by signal n."""
    code = os.waitstatus_to_exitcode(waited)
    return code if code >= 0 else 128 - code


def wait(
    child: int,
    *,
    reap: bool = False,
    suspend: bool = False,
    ours: bool = True,
    alone: bool = True,
) -> int:
    """Wait for ``child``, passing on every signal that comes, and return its
    exit status. Call :func:`block` before the child is started.

    What the terminal sends reaches the command by itself, being in the
    foreground process group or leading its own: only what a process sent is
    passed on (siginfo's code tells).

    Args:
        child: its process id.
        reap: also take in every other child that dies, as an init does.
        suspend: stop with the child when SIGTSTP is passed on, as a shell's job does.
        ours: the child is a process of this package, which passes no signal on while it is
            stopped; False: it is the command itself.
        alone: this thread is the process's only one. A signal is the process's: the kernel
            gives it to any thread that does not block it, and there an ignored one, as
            SIGCHLD is, is lost (signal(7)).
    """
    watched = RELAYED | {signal.SIGCHLD}
    pause = _SURE if alone else _UNSURE
    while True:
        received = signal.sigtimedwait(watched, pause)
        if received is None or received.si_signo == signal.SIGCHLD:
            status = _take(child, reap=reap, look=_LOOK if ours else os.WNOHANG)
            if status is not None:
                return status
        elif received.si_code <= 0:  # SI_USER, SI_QUEUE, SI_TKILL: not the kernel
            try:
                os.kill(child, received.si_signo)
            except ProcessLookupError:
                continue  # the child has ended, and SIGCHLD comes next
            if suspend and received.si_signo == signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)
        elif received.si_signo == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)  # the terminal's stop, held back above


def _take(child: int, *, reap: bool, look: int) -> int | None:
    found = None
    while True:
        try:
            # As init (reap) no stopped process is looked at: job control is the command's own.
            # One that is a process of ours is continued at once.
            pid, waited = os.waitpid(*((-1, os.WNOHANG) if reap else (child, look)))
        except ChildProcessError:
            return found
        if pid == child and os.WIFSTOPPED(waited):
            os.kill(child, signal.SIGCONT)
        elif pid == child:
            found = status_of(waited)
        if pid == 0 or not reap:
            return found
