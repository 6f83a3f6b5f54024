# SPDX-License-Identifier: Apache-2.0
"""What slimnet knows of Linux and not of itself: each fact in one place.

- :mod:`~slimnet.linux.cgroup`: control groups, version 2
- :mod:`~slimnet.linux.libc`: system calls that Python 3.11 has no function for
- :mod:`~slimnet.linux.mounts`: the mount table
- :mod:`~slimnet.linux.netns`: network namespaces
- :mod:`~slimnet.linux.process`: which process is meant
- :mod:`~slimnet.linux.sock_diag`: the sockets of a network namespace
- :mod:`~slimnet.linux.sysctl`: settings of the kernel

One idea of errors: what the kernel refuses is its :class:`OSError`, with the kernel's
number; what the machine lacks is :class:`~slimnet.exceptions.CapabilityMissing`, which
is an :class:`OSError` too. What is gone is an answer (``None``, ``False``) and no error.

``libc`` and ``mounts`` import nothing but the standard library, and not much of that:
the processes of the sandbox do, and every import there is start-up time.
"""
