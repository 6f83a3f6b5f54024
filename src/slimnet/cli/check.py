# SPDX-License-Identifier: Apache-2.0
"""``slimnet check`` and ``slimnet backends``."""

from __future__ import annotations

from typing import Any

import click

from slimnet.cli.output import output_option, show

__all__ = ["backends", "check"]


@click.command(
    epilog="""\b
Exit status: 0 when some backend can run here, 1 when none can.""",
)
@output_option
def check(output: str) -> int:
    """Say which backends work here, and what to do.

    Then what the machine itself lacks or leaves open. Nothing is changed.
    """
    from slimnet.cli.machine import findings  # noqa: PLC0415  # attrs, when it runs

    plugins = _probed()
    machine = list(findings())
    able = any(each["answer"] == "yes" for each in plugins)
    if output != "table":
        show([{"works": able, "backends": plugins, "machine": machine}], {}, output)
        return 0 if able else 1
    columns = {"BACKEND": "backend", "WORKS": "answer", "BECAUSE": "reason", "TO DO": "remedy"}
    show(plugins, columns, output)
    click.echo()
    columns = {"MACHINE": "subject", "FINE": "answer", "FOUND": "reason", "TO DO": "remedy"}
    show(machine, columns, output)
    return 0 if able else 1


@click.command()
@output_option
def backends(output: str) -> None:
    """List the installed backends.

    What each of them can do, and whether it works here. ENFORCING: policy on
    connections holds against a hostile process in an endpoint.
    """
    from slimnet.exceptions import SlimnetError  # noqa: PLC0415  # the library, when it runs
    from slimnet.plugins import backend_class  # noqa: PLC0415

    rows = []
    for probed in _probed():
        row: dict[str, Any] = {"backend": probed["backend"], "works": probed["answer"]}
        try:
            kind = backend_class(probed["backend"])
            row |= {
                "enforcing": probed["capabilities"].enforcing,
                "wires": sorted(map(str, probed["capabilities"].wires)),
                "preference": kind.preference,
                "summary": (kind.__doc__ or "").partition("\n")[0],
            }
        except SlimnetError as error:
            row["summary"] = str(error)
        rows.append(row)
    columns = {
        "BACKEND": "backend",
        "WORKS": "works",
        "ENFORCING": "enforcing",
        "WIRES": "wires",
        "PREFERENCE": "preference",
        "WHAT IT IS": "summary",
    }
    show(rows, columns, output)


def _probed() -> list[dict[str, Any]]:
    from slimnet.plugins import backend_names, probe  # noqa: PLC0415  # stevedore, when it runs

    found = []
    for name in backend_names():
        answer = probe(name)
        found.append(
            {
                "backend": name,
                "answer": answer.answer.value,
                "reason": answer.reason,
                "remedy": answer.remedy,
                "capabilities": answer.capabilities,
            }
        )
    return found
