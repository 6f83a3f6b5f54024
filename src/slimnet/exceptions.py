# SPDX-License-Identifier: Apache-2.0
"""Every error that slimnet raises on purpose.

::

    SlimnetError (Exception)
    ├── InvalidValue (also ValueError)      a field, argument or file is wrong
    │   ├── ConfigError                     ... in the configuration file
    │   └── PolicyError                     ... in a policy document
    ├── NotFound (also LookupError)         a name that nothing has
    ├── AlreadyExists                       a name or address that something has
    ├── InUse                               removal refused: processes or endpoints remain
    ├── Conflict                            the store changed in between; try again
    ├── CapabilityMissing (also OSError)    root, BPF, cgroup v2, BTF ... is not there
    ├── BackendError                        a data path refused or failed
    │   ├── BackendUnavailable              its probe says no
    │   ├── AbiMismatch                     running data path of another ABI
    │   ├── ForeignDataPath                 ... of another backend, or another store
    │   └── CannotEnforce                   a mandatory policy it cannot enforce
    ├── StoreUnreachable (also ConnectionError)
    └── AgentUnreachable (also ConnectionError)

The message is one line: which field, what was wanted, what came. ``__cause__``
holds what was raised below, if anything.
"""

__all__ = [
    "AbiMismatch",
    "AgentUnreachable",
    "AlreadyExists",
    "BackendError",
    "BackendUnavailable",
    "CannotEnforce",
    "CapabilityMissing",
    "ConfigError",
    "Conflict",
    "ForeignDataPath",
    "InUse",
    "InvalidValue",
    "NotFollowed",
    "NotFound",
    "PolicyError",
    "SlimnetError",
    "StoreUnreachable",
]


class SlimnetError(Exception):
    """The root of all errors that slimnet raises on purpose."""


class InvalidValue(SlimnetError, ValueError):
    """A field, an argument or a file holds what it must not.

    Args:
        field: which one, in the words of whoever wrote it (``networks.prod.cidr``).
        wanted: what would do.
        got: what came.
    """

    def __init__(self, field: str, wanted: str, got: object) -> None:
        self.field = field
        self.wanted = wanted
        self.got = got
        super().__init__(field, wanted, got)

    def __str__(self) -> str:
        got = "nothing" if self.got is None else repr(self.got)
        return f"{self.field}: wanted {self.wanted}, got {got}"


class ConfigError(InvalidValue):
    """The configuration file is wrong."""


class PolicyError(InvalidValue):
    """A policy document is wrong; nothing of its file was applied."""


class NotFound(SlimnetError, LookupError):
    """Nothing has that name."""


class NotFollowed(SlimnetError):
    """Some hosts have not put in force in time what the store holds."""


class AlreadyExists(SlimnetError):
    """Something else has that name or address."""


class InUse(SlimnetError):
    """Not removed, because something still lives in it."""


class Conflict(SlimnetError):
    """The store changed between read and write."""


class CapabilityMissing(SlimnetError, OSError):
    """The machine or the caller lacks something; the message says what to do."""


class BackendError(SlimnetError):
    """A data path refused or failed."""


class BackendUnavailable(BackendError):
    """A backend's probe says that it cannot run here."""


class AbiMismatch(BackendError):
    """A running data path was built from another contract; nothing was changed."""


class ForeignDataPath(BackendError):
    """The running data path is another backend's, or serves another store; nothing was changed."""


class CannotEnforce(BackendError):
    """A mandatory policy on a backend that cannot hold it against a hostile process."""


class AgentUnreachable(SlimnetError, ConnectionError):
    """No agent answers on the socket."""


class StoreUnreachable(SlimnetError, ConnectionError):
    """The store does not answer; the data path stays as it was."""
