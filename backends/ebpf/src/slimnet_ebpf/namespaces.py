# SPDX-License-Identifier: Apache-2.0
"""Placement ``netns``: endpoints that keep a network namespace of their own.

The fallback overlay gives them device, address, route and policy. It is there from the
first of them on, for what it costs a host (a table, nft at each change of tables) is not
for those to pay who have none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from slimnet import fallback
from slimnet.abc import Context
from slimnet.exceptions import BackendError, BackendUnavailable
from slimnet.fallback import Beneath, DevicePair, Fallback, Plug
from slimnet.linux.netns import Netns
from slimnet.model import Connection, Endpoint, Event, Network, Status
from slimnet.place import Life, Place
from slimnet.tables import Tables
from slimnet_ebpf.carrier import Carrier

__all__ = ["Namespaces", "beneath", "refuse_another"]


def beneath(instance: str, state: Path) -> Beneath:
    """Where their fallback overlay is."""
    return Beneath("ebpf", instance, state)


def refuse_another(context: Context, port: int) -> None:
    """Whether what there is of the fallback overlay can be adopted; nothing is changed.

    Args:
        context: the backend's.
        port: UDP port of VXLAN.

    Raises:
        AbiMismatch: it is of another layout.
    """
    there = beneath(context.instance, context.state)
    if there.find() is not None:
        Fallback(there.context(context), port, wraps=False).close()


class Namespaces:
    """Those of one instance; made in the host's network namespace.

    Args:
        context: the backend's.
        host: the host's network namespace.
        port: UDP port of VXLAN.
        pair: says which devices they get; asked when there is need.
        carrier: of their connections.
        on_change: called with what of struct slim_control is about them.
    """

    def __init__(
        self,
        context: Context,
        host: Netns,
        port: int,
        pair: Callable[[], DevicePair],
        carrier: Carrier,
        on_change: Callable[..., None],
    ) -> None:
        self._carrier = carrier
        self._on_change = on_change
        self._plugs: dict[int, Plug] = {}
        self._where: dict[int, Path] = {}
        self._host = host
        self._beneath = beneath(context.instance, context.state)
        self._context = self._beneath.context(context)
        self._port = port
        self._pair = pair
        self._tables: Tables | None = None
        self._announces = False
        self._overlay: Fallback | None = None
        if self._beneath.find() is not None:
            self._overlay = self._adopt()
            self._connect(self._overlay)

    def place(self, name: str, given: Place) -> Place:
        """See :func:`slimnet.fallback.place`."""
        return fallback.place(
            self._context, Path(f"/proc/{os.getpid()}/fd/{self._host.fd}"), name, given
        )

    def life(self, name: str, place: Place) -> Life:
        """See :func:`slimnet.fallback.life`."""
        return fallback.life(self._context, name, place)

    def attach(self, endpoint: Endpoint, network: Network) -> Place:
        """See :meth:`slimnet.fallback.Fallback.attach`."""
        overlay = self._open()
        fresh = endpoint.id not in overlay.attached()
        place = overlay.attach(endpoint, network)
        try:
            self._connect(overlay)
        except BaseException:
            if fresh:
                overlay.detach(endpoint.id)
            raise
        return place

    def detach(self, endpoint: int) -> None:
        """See :meth:`slimnet.fallback.Fallback.detach`."""
        if self._overlay is not None:
            self._overlay.detach(endpoint)
            self._connect(self._overlay)

    def _connect(self, overlay: Fallback) -> None:
        """Put the programs on the devices of those that are there, and take those out of the
        maps that are not."""
        plugged = overlay.plugged()
        plugs = {endpoint: plug for endpoint, (_, _, plug) in plugged.items()}
        if plugs == self._plugs:
            return
        for endpoint, (record, router, plug) in plugged.items():
            if self._plugs.get(endpoint) != plug:
                self._carrier.add(record, router, plug)
        self._carrier.keep(plugs)
        self._plugs = plugs
        self._where = {endpoint: record.netns for endpoint, (record, *_) in plugged.items()}
        self._tell()

    def renew(self) -> None:
        """Put our programs on the devices, in place of another load's."""
        self._carrier.waits = False
        self._plugs = {}
        if self._overlay is not None:
            self._connect(self._overlay)

    def _tell(self) -> None:
        limits = self._tables.limits if self._tables is not None else {}
        published = self._tables.published.values() if self._tables is not None else ()
        self._on_change(
            apart=len(self._plugs),
            policed=self._carrier.limit(limits, self._plugs),
            elsewhere=int(
                bool(self._plugs)
                and (self._announces or any(each.endpoint in self._plugs for each in published))
            ),
        )

    def __bool__(self) -> bool:
        """Whether there is a fallback overlay."""
        return self._overlay is not None

    def attached(self) -> frozenset[int]:
        """The ids of those that there is a record of."""
        return self._overlay.attached() if self._overlay is not None else frozenset()

    def where(self, endpoint: int) -> Path | None:
        """An endpoint's network namespace."""
        return self._where.get(endpoint)

    def install(self, tables: Tables, *, announces: bool) -> None:
        """See :meth:`slimnet.fallback.Fallback.install`.

        Args:
            tables: the new ones.
            announces: there are hosts that connections from here are announced to.
        """
        if self._overlay is not None:
            self._overlay.install(tables)
        self._tables, self._announces = tables, announces
        if self._overlay is not None:
            self._tell()

    def status(self) -> Status | None:
        """Of the fallback overlay; ``None``: there is none."""
        return self._overlay.status() if self._overlay is not None else None

    def connections(self) -> list[Connection]:
        """See :meth:`slimnet.fallback.Fallback.connections`."""
        return self._overlay.connections() if self._overlay is not None else []

    def events(self) -> list[Event]:
        """The refusals since the last call."""
        return self._overlay.events(0) if self._overlay is not None else []

    def tend(self) -> None:
        """See :meth:`slimnet.fallback.Fallback.tend`."""
        if self._overlay is not None:
            self._overlay.tend()
            self._connect(self._overlay)

    def close(self) -> None:
        """Whatever is there stays as it is."""
        if self._overlay is not None:
            self._overlay.close()

    def teardown(self) -> None:
        """See :meth:`slimnet.fallback.Fallback.teardown`."""
        if self._overlay is not None:
            self._overlay.teardown()
            self._overlay = None
        self._beneath.forget()

    def _open(self) -> Fallback:
        """The fallback overlay, made if it is not there."""
        if self._overlay is None:
            found = fallback.probe()
            if not found:
                raise BackendUnavailable(f"endpoint.netns: {found.advice}")
            with self._host.entered():
                made = self._adopt()
            try:
                if self._tables is not None:
                    made.install(self._tables)
            except BackendError:
                made.close()
                raise
            self._overlay = made
        return self._overlay

    def _adopt(self) -> Fallback:
        """The fallback overlay, with what there is of it."""
        return Fallback(
            *(self._context, self._port),
            wraps=False,
            serves=True,
            publishes=True,
            pair=self._pair(),
        )
