# SPDX-License-Identifier: Apache-2.0
"""What a runtime of the Open Container Initiative tells a hook of a container.

A hook reads the container's state on its standard input
(https://github.com/opencontainers/runtime-spec, ``runtime.md``, "State"); what is asked of
slimnet is among its annotations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from slimnet.engines.container import HostPort, name_of
from slimnet.engines.hook import Hook, host_port
from slimnet.exceptions import InvalidValue

__all__ = ["ContainerState"]

_PREFIX = "slimnet.io/"
#: What may be asked for.
_WORDS = ("network", "namespace", "name", "address", "labels", "publish")


@attrs.frozen
class ContainerState:
    """A container's state, checked.

    Attributes:
        id: the runtime's, of the container.
        status: ``creating`` in a hook createRuntime, ``stopped`` in poststop.
        pid: of the container's process.
        bundle: the directory that the container is made from.
        annotations: the container's.
    """

    id: str
    status: str
    pid: int
    bundle: Path
    annotations: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> ContainerState:
        """The state that is written in JSON.

        Raises:
            InvalidValue: it is none.
        """
        try:
            found = json.loads(text)
        except ValueError as error:
            raise InvalidValue("standard input", f"a container's state ({error})", text) from None
        if not isinstance(found, dict):
            raise InvalidValue("standard input", "a container's state, an object", text)
        return cls(
            _need(found, "id", str),
            _need(found, "status", str),
            found.get("pid") or 0,
            Path(_need(found, "bundle", str)),
            found.get("annotations") or {},
        )

    def _asked(self, word: str) -> str | None:
        return self.annotations.get(_PREFIX + word)

    def _listed(self, word: str) -> list[str]:
        return [each for each in (self._asked(word) or "").split(",") if each]

    @property
    def labels(self) -> dict[str, str]:
        """Those that are asked for."""
        pairs = [each.partition("=") for each in self._listed("labels")]
        if not all(equals for _, equals, _ in pairs):
            text = str(self._asked("labels"))
            raise InvalidValue(f"{_PREFIX}labels", "KEY=VALUE, with commas between", text)
        return {key: value for key, _, value in pairs}

    @property
    def published(self) -> list[HostPort]:
        """Ports of the host that are asked for."""
        return [host_port(each, f"{_PREFIX}publish") for each in self._listed("publish")]

    def root(self) -> Path:
        """The root file system, as the container's process sees it before it is its root.

        Raises:
            OSError: the bundle has no configuration.
        """
        return Path(self.bundle, self.config()["root"]["path"])

    def config(self) -> dict[str, Any]:
        """What the container is made from.

        Raises:
            OSError: the bundle has no configuration.
        """
        found: dict[str, Any] = json.loads((self.bundle / "config.json").read_text())
        return found

    def take(self, agent: str | None) -> list[str]:
        """Do what is to be done in this state.

        Returns:
            What is left to the agent, in words.

        Raises:
            SlimnetError: it cannot be done.
            OSError: the same.
        """
        hook = Hook("oci", str(self.bundle), agent)
        if self.status == "stopped":
            return hook.stop()
        if self.status != "creating":
            raise InvalidValue("hook", "createRuntime or poststop", f"state {self.status}")
        for key in self.annotations:
            if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) not in _WORDS:
                raise InvalidValue("annotations", f"{_PREFIX} and one of {', '.join(_WORDS)}", key)
        network = self._asked("network")
        if network is None:
            return []
        hook.start(
            self.pid,
            self.root(),
            network,
            self._asked("name") or name_of("", self.id),
            self._asked("namespace") or "default",
            address=self._asked("address"),
            labels=self.labels,
            published=self.published,
            config=self.config(),
        )
        return []


def _need(found: Mapping[str, Any], key: str, kind: type) -> Any:
    value = found.get(key)
    if not isinstance(value, kind) or not value:
        raise InvalidValue(f"state.{key}", "a text", value)
    return value
