# SPDX-License-Identifier: Apache-2.0
"""libbpf.so.1 by ctypes: the prototypes that slimnet uses, and its errors.

Works with libbpf 1.1 (Debian 12) and newer: every option structure starts
with its size, so that a newer library reads our shorter ones. What libbpf
prints goes to this module's logger, at debug level.

Source: libbpf's ``libbpf.h``, ``bpf.h``, ``btf.h``.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import logging
import os
import platform
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

from slimnet.exceptions import BackendError, CapabilityMissing

__all__ = ["BpfError", "check", "library", "possible_cpus", "recent"]

_log = logging.getLogger(__name__)

SONAME = "libbpf.so.1"
_DEBUG = 2  # enum libbpf_print_level

#: libbpf's last words, for the message of an error that follows.
recent: collections.deque[str] = collections.deque(maxlen=8)


class BpfError(BackendError):
    """The kernel or libbpf refused.

    Args:
        errno: the kernel's error number, or libbpf's own (4000 and up).
        what: what was tried.
        log: the verifier's last lines, if it had a say.
    """

    def __init__(self, errno: int, what: str, log: str = "") -> None:
        self.errno = errno
        self.what = what
        self.log = log
        super().__init__(errno, what, log)

    def __str__(self) -> str:
        text = f"{self.what}: {_strerror(self.errno)}"
        return f"{text} ({self.log})" if self.log else text


class OpenOptions(ctypes.Structure):
    """struct bpf_object_open_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", c_bool),
        ("pin_root_path", c_char_p),
        ("removed", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
        ("kernel_log_buf", c_void_p),
        ("kernel_log_size", c_size_t),
        ("kernel_log_level", c_uint32),
    )


class MapOptions(ctypes.Structure):
    """struct bpf_map_create_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
        ("numa_node", c_uint32),
        ("map_ifindex", c_uint32),
    )


class AttachOptions(ctypes.Structure):
    """struct bpf_prog_attach_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("flags", c_uint32),
        ("replace_prog_fd", c_int),
    )


class TcHook(ctypes.Structure):
    """struct bpf_tc_hook."""

    _fields_ = (
        ("sz", c_size_t),
        ("ifindex", c_int),
        ("attach_point", c_int),
        ("parent", c_uint32),
    )


class TcOptions(ctypes.Structure):
    """struct bpf_tc_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
    )


class TestRunOptions(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_char_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_char_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


PrintFunction = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
SampleFunction = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)

_OBJECT = _PROGRAM = _MAP = _BTF = _RING = c_void_p
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_set_print": (c_void_p, (PrintFunction,)),
    "libbpf_strerror": (c_int, (c_int, c_char_p, c_size_t)),
    "libbpf_version_string": (c_char_p, ()),
    "libbpf_num_possible_cpus": (c_int, ()),
    "bpf_object__open_file": (_OBJECT, (c_char_p, POINTER(OpenOptions))),
    "bpf_object__load": (c_int, (_OBJECT,)),
    "bpf_object__close": (None, (_OBJECT,)),
    "bpf_object__btf": (_BTF, (_OBJECT,)),
    "bpf_object__next_program": (_PROGRAM, (_OBJECT, _PROGRAM)),
    "bpf_object__next_map": (_MAP, (_OBJECT, _MAP)),
    "bpf_object__find_map_by_name": (_MAP, (_OBJECT, c_char_p)),
    "bpf_program__name": (c_char_p, (_PROGRAM,)),
    "bpf_program__type": (c_int, (_PROGRAM,)),
    "bpf_program__expected_attach_type": (c_int, (_PROGRAM,)),
    "bpf_program__fd": (c_int, (_PROGRAM,)),
    "bpf_program__set_autoload": (c_int, (_PROGRAM, c_bool)),
    "bpf_map__name": (c_char_p, (_MAP,)),
    "bpf_map__fd": (c_int, (_MAP,)),
    "bpf_map__type": (c_int, (_MAP,)),
    "bpf_map__key_size": (c_uint32, (_MAP,)),
    "bpf_map__value_size": (c_uint32, (_MAP,)),
    "bpf_map__map_flags": (c_uint32, (_MAP,)),
    "bpf_map__max_entries": (c_uint32, (_MAP,)),
    "bpf_map__btf_key_type_id": (c_uint32, (_MAP,)),
    "bpf_map__btf_value_type_id": (c_uint32, (_MAP,)),
    "bpf_map__inner_map": (_MAP, (_MAP,)),
    "bpf_map__reuse_fd": (c_int, (_MAP, c_int)),
    "bpf_map__initial_value": (c_void_p, (_MAP, POINTER(c_size_t))),
    "btf__type_cnt": (c_uint32, (_BTF,)),
    "btf__type_by_id": (c_void_p, (_BTF, c_uint32)),
    "btf__name_by_offset": (c_char_p, (_BTF, c_uint32)),
    "btf__load_from_kernel_by_id": (_BTF, (c_uint32,)),
    "btf__free": (None, (_BTF,)),
    "bpf_map_create": (
        c_int,
        (c_int, c_char_p, c_uint32, c_uint32, c_uint32, POINTER(MapOptions)),
    ),
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
    "bpf_map_lookup_batch": (
        c_int,
        (c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p),
    ),
    "bpf_map_update_batch": (c_int, (c_int, c_void_p, c_void_p, POINTER(c_uint32), c_void_p)),
    "bpf_map_delete_batch": (c_int, (c_int, c_void_p, POINTER(c_uint32), c_void_p)),
    "bpf_map_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_prog_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_obj_pin": (c_int, (c_int, c_char_p)),
    "bpf_obj_get": (c_int, (c_char_p,)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, POINTER(c_uint32))),
    "bpf_link_create": (c_int, (c_int, c_int, c_int, c_void_p)),
    "bpf_link_detach": (c_int, (c_int,)),
    "bpf_link_update": (c_int, (c_int, c_int, c_void_p)),
    "bpf_prog_attach": (c_int, (c_int, c_int, c_int, c_uint32)),
    "bpf_prog_attach_opts": (c_int, (c_int, c_int, c_int, POINTER(AttachOptions))),
    "bpf_prog_detach2": (c_int, (c_int, c_int, c_int)),
    "bpf_iter_create": (c_int, (c_int,)),
    "bpf_prog_test_run_opts": (c_int, (c_int, POINTER(TestRunOptions))),
    "bpf_prog_query": (
        c_int,
        (c_int, c_int, c_uint32, POINTER(c_uint32), c_void_p, POINTER(c_uint32)),
    ),
    "bpf_tc_hook_create": (c_int, (POINTER(TcHook),)),
    "bpf_tc_hook_destroy": (c_int, (POINTER(TcHook),)),
    "bpf_tc_attach": (c_int, (POINTER(TcHook), POINTER(TcOptions))),
    "bpf_tc_detach": (c_int, (POINTER(TcHook), POINTER(TcOptions))),
    "bpf_tc_query": (c_int, (POINTER(TcHook), POINTER(TcOptions))),
    "ring_buffer__new": (_RING, (c_int, SampleFunction, c_void_p, c_void_p)),
    "ring_buffer__add": (c_int, (_RING, c_int, SampleFunction, c_void_p)),
    "ring_buffer__consume": (c_int, (_RING,)),
    "ring_buffer__epoll_fd": (c_int, (_RING,)),
    "ring_buffer__free": (None, (_RING,)),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The library, loaded once.

    Raises:
        CapabilityMissing: it is not installed, or older than 1.0.
    """
    try:
        lib = ctypes.CDLL(SONAME, use_errno=True)
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(lib, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise CapabilityMissing(
            f"{SONAME} (libbpf 1.0 or newer) cannot be loaded: install Debian's libbpf1"
        ) from error
    lib.libbpf_set_print(_on_print)
    return lib


def check(result: int | None, what: str, log: str = "") -> int:
    """``result``, unless it is a negative error number or a null pointer.

    Raises:
        BpfError: it is.
    """
    if result is None:
        raise BpfError(ctypes.get_errno(), what, log)
    if result < 0:
        raise BpfError(-result, what, log)
    return result


@functools.cache
def possible_cpus() -> int:
    """How many values a per-CPU map holds for one key."""
    return check(library().libbpf_num_possible_cpus(), "count the CPUs")


def _strerror(number: int) -> str:
    if number < 4000:
        return os.strerror(number)
    text = ctypes.create_string_buffer(128)
    library().libbpf_strerror(number, text, len(text))
    return text.value.decode()


# A va_list is passed as a pointer on these two; elsewhere libbpf stays silent.
_VA_LIST_IS_POINTER = platform.machine() in ("x86_64", "aarch64")


def _print(level: int, form: bytes, arguments: int) -> int:
    # Thousands of lines a load, which nobody reads unless asked for.
    wanted = level < _DEBUG or _log.isEnabledFor(logging.DEBUG)
    if _VA_LIST_IS_POINTER and wanted:
        text = ctypes.create_string_buffer(512)
        ctypes.CDLL(None).vsnprintf(text, c_size_t(len(text)), form, c_void_p(arguments))
        line = text.value.decode(errors="replace").strip()
        recent.append(line)
        _log.debug("%s", line)
    return 0


_on_print = PrintFunction(_print)  # libbpf calls it as long as the process lives
