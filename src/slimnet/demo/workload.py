# SPDX-License-Identifier: Apache-2.0
"""What the demo runs: a real server, a real client, and how to read the result."""

from __future__ import annotations

import abc
import signal
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import field, frozen

from slimnet.demo.setting import Setting

__all__ = ["ANY", "USER", "Reading", "Workload"]

#: Whom servers run as: most refuse to be root, and none needs to be.
USER = "nobody"

#: Servers listen on every address of their (throw-away) host.
ANY = "0.0.0.0"  # noqa: S104


@frozen
class Reading:
    """What a client said.

    Attributes:
        value: in the workload's unit.
        operations: how many operations that were, for processor time per operation.
        detail: more of what it said.
    """

    value: float
    operations: float
    detail: Mapping[str, Any] = field(factory=dict)


class Workload(abc.ABC):
    """One row of the report."""

    #: What ``--only`` calls it.
    name: str
    #: What ``--only`` calls all that need the same to be fetched from elsewhere; such ones
    #: run only when they are named.
    group: ClassVar[str] = ""
    #: What the report calls it.
    title: str
    #: Of the value.
    unit: ClassVar[str]
    #: What processor time is counted by.
    operation: ClassVar[str]
    #: True for rates, False for times.
    higher_is_better: ClassVar[bool] = True
    #: The ratio to host mode that slimnet is to reach: at least for rates, at most for times.
    target: ClassVar[float]
    #: The same for host mode's processor time per operation by slimnet's; None: not counted.
    cpu_target: ClassVar[float | None] = 0.97
    #: The executables that it needs, each with the Debian package that has it.
    needs: ClassVar[Mapping[str, str]] = {}
    port: int
    #: Arguments more for a server that has to know what the client dials, ``{address}``.
    told: ClassVar[Sequence[str]] = ()
    #: How the server is asked to end.
    stop: ClassVar[signal.Signals] = signal.SIGTERM

    def prepare(self, setting: Setting) -> None:
        """Make the files that it needs, once per run of the demo."""

    @abc.abstractmethod
    def server(self, setting: Setting) -> Sequence[str]:
        """The server's command line; in the foreground, listening on ``port``,
        as the user :data:`USER`."""

    def ready(self, setting: Setting, address: str) -> Sequence[str]:
        """A command line that ends once the server answers the client's host."""
        return [str(setting.programs / "load"), "wait", address, str(self.port)]

    @abc.abstractmethod
    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """The client's command line; ends by itself."""

    @abc.abstractmethod
    def read(self, output: str) -> Reading:
        """Understand the client's output.

        Raises:
            ValueError: it is not what the client usually prints.
        """

    def limit(self, setting: Setting) -> float:
        """Seconds after which the client must have ended."""
        return 30.0 + 4 * setting.seconds
