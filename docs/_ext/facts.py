# SPDX-License-Identifier: Apache-2.0
"""Facts that the pages take from the code, and checks that none is missing.

``reason``        one reason of the contract: its number and meaning come from the header
``reason-table``  all of them
``confkey``       one key of the configuration: its default comes from the code
``manifest``      the fields of one kind of manifest, from the schema that the parser checks
                  against; without an argument, all kinds
``store-keys``    the keys of the store, as the code makes them
``routes``        what the agent's API offers, from the table that it is served from
``news``          the news fragments
``fact``          (role) a constant of the contract

A reason or a key without an entry is a warning, and so is a public name without one.
"""

from __future__ import annotations

import enum
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import click
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.std import GenericObject
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

from slimnet import contract
from slimnet.agent import failure
from slimnet.agent.fields import RequestField, fields
from slimnet.agent.routes import ROUTES
from slimnet.cluster.keys import KEYS
from slimnet.config import Config, _Check
from slimnet.exceptions import SlimnetError
from slimnet.model import Reason
from slimnet.policy.language.manifest import KINDS, METADATA
from slimnet.policy.language.schema import Schema, paths
from slimnet.policy.language.selectorspec import SELECTOR
from slimnet_ebpf import contract as private

_LOG = logging.getLogger(__name__)
_ROOT = Path(__file__).parents[2]
_HEADER = _ROOT / "kernel" / "uapi" / "slimnet" / "reason.h"

#: Whose ``__all__`` the API pages have to document.
_PUBLIC = (
    "slimnet",
    "slimnet.abc",
    "slimnet.exceptions",
    "slimnet.model",
    "slimnet.policy",
    "slimnet.tables",
    "slimnet.testbed",
    "slimnet.testing",
    "slimnet_ebpf",
    "slimnet_etcd",
    "slimnet_kmod",
    "slimnet_noop",
)


def _meanings() -> dict[str, str]:
    """Reason to the comment beside it in the header."""
    found = re.findall(r"SLIM_REASON_(\w+) = \d+,[ \t]*(?:/\* (.*?) \*/)?", _HEADER.read_text())
    return dict(found)


def _spoken(name: str) -> str:
    return name.lower().replace("_", " ")


def _keys() -> dict[str, object]:
    """Key of the configuration to its default."""
    config = Config()
    homes = {
        "engines.without_agent": config.without_agent,
        "log.level": config.level,
        "underlay.address": None,
        "underlay.interface": None,
    }
    keys = {key: homes[key] if key in homes else getattr(config, key) for key in _Check._KEYS}  # noqa: SLF001  # what it checks against
    keys["labels.<key>"] = None
    try:
        from slimnet.fallback import PORT  # noqa: PLC0415
        from slimnet_ebpf.options import Options  # noqa: PLC0415  # may be absent
        from slimnet_etcd._settings import OPTIONS  # noqa: PLC0415  # may be absent
        from slimnet_kmod.options import KmodOptions  # noqa: PLC0415
        from slimnet_preload.options import PreloadOptions  # noqa: PLC0415
    except ImportError:
        _LOG.warning("a plugin of ours is not installed: their options are not checked")
        return keys
    keys |= {f"backend.ebpf.{key}": value for key, value in _options(Options())}
    keys |= {f"backend.kmod.{key}": value for key, value in _options(KmodOptions())}
    keys["backend.noop.port"] = PORT
    keys |= {f"backend.preload.{key}": value for key, value in _options(PreloadOptions())}
    keys |= {f"store.etcd.{key}": default for key, default in OPTIONS.items()}
    return keys


def _options(options: Any) -> Iterator[tuple[str, object]]:
    for attribute in type(options).__attrs_attrs__:
        yield attribute.name, getattr(options, attribute.name)


class _Fact(GenericObject):
    """An entry whose first paragraph is known to the code."""

    def known(self) -> str:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        known = self.known()
        if known:
            line = StringList([known, ""], source=self.get_source_info()[0])
            self.content = line + self.content
        return super().run()


class ReasonEntry(_Fact):
    """``.. reason:: host_deny``"""

    def known(self) -> str:
        name = self.arguments[0].strip().upper()
        if name not in Reason.__members__:
            _LOG.warning(
                "no reason %r in the contract", self.arguments[0], location=self.get_location()
            )
            return ""
        meaning = _meanings().get(name) or "no reason"
        return f"*Number {Reason[name].value}: {meaning}.*"

    def handle_signature(self, sig: str, signode: addnodes.desc_signature) -> str:
        signode += addnodes.desc_name(sig, _spoken(sig))
        return sig


class KeyEntry(_Fact):
    """``.. confkey:: lease``"""

    def known(self) -> str:
        key = self.arguments[0].strip()
        keys = _keys()
        if key not in keys:
            _LOG.warning("no key %r in the configuration", key, location=self.get_location())
            return ""
        default = keys[key]
        if key == "host":
            return "Default: the machine's host name, up to its first dot."
        return "" if default is None else f"Default: ``{default}``"


class ReasonTable(Directive):
    """Number, name and meaning of every reason, from the header."""

    def run(self) -> list[nodes.Node]:
        meanings = _meanings()
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 10 30 60", "",
                 "   * - Number", "     - Name", "     - Meaning"]  # fmt: skip
        for reason in Reason:
            name = reason.name.lower()
            lines += [f"   * - {reason.value}", f"     - :reason:`{name}`",
                      f"     - {meanings.get(reason.name) or 'no reason'}"]  # fmt: skip
        holder = nodes.container()
        self.state.nested_parse(StringList([*lines, ""], source=str(_HEADER)), 0, holder)
        return holder.children


class Manifest(Directive):
    """The fields of a kind, of ``metadata``, or of a ``selector``; or what kinds there are."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        if not self.arguments:
            head, rows = ("``kind``", "``apiVersion``"), [
                (f"``{name}``", f"``{kind.version}``") for name, kind in KINDS.items()
            ]  # fmt: skip
        else:
            head, rows = ("Field", "Meaning"), list(self._fields(self.arguments[0]))
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 42 58", ""]
        for one, other in (head, *rows):
            lines += [f"   * - {one}", f"     - {other}"]
        holder = nodes.container()
        self.state.nested_parse(StringList([*lines, ""], source="slimnet.policy"), 0, holder)
        return holder.children

    @staticmethod
    def _fields(name: str) -> Iterator[tuple[str, str]]:
        others: dict[str, tuple[Schema, str]] = {
            "metadata": (METADATA, "metadata"),
            "selector": (SELECTOR, ""),
        }
        schema, above = others[name] if name in others else (KINDS[name].schema, "spec")
        told = {id(SELECTOR): "a selector"}
        for path, field in paths(schema, above, told):
            meaning = f"refused: {field.meaning}" if field.refused else field.meaning
            alike = told.get(id(field.below))
            if alike is None and field.below is not None:
                told[id(field.below)] = f"as ``{path}``"
            yield f"``{path}``", f"{meaning} ({alike})" if alike else meaning


class StoreKeys(Directive):
    """Every pattern of keys, and what is there."""

    def run(self) -> list[nodes.Node]:
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 45 55", ""]
        lines += ["   * - Key", "     - What"]
        for key in KEYS:
            lines += [f"   * - ``{key.pattern}``", f"     - {key.meaning}"]
        holder = nodes.container()
        self.state.nested_parse(StringList([*lines, ""], source="slimnet.cluster.keys"), 0, holder)
        return holder.children


class RouteList(Directive):
    """Every route of the agent's API, with its fields, and the status of each error."""

    def run(self) -> list[nodes.Node]:
        lines = []
        for route in ROUTES:
            lines += [f"``{route.method} {route.pattern}``"]
            lines += [f"   {' '.join((route.handle.__doc__ or '').split())}", ""]
            named = route.match(route.method, route.pattern.split("/")[1:]) or {}
            rows = [
                (f"``{name}``", f"{field.kind.wanted}: {field.meaning} ({_default(field)})")
                for name, field in fields(route.request).items()
                if name not in named
            ]
            for one, other in rows:
                lines += [f"   - {one}: {other}"]
            lines += [""]
        lines += [".. list-table::", "   :header-rows: 1", "   :widths: 15 85", ""]
        lines += ["   * - Status", "     - Error"]
        for kind, status in (*failure.STATUS, (SlimnetError, 500)):
            lines += [f"   * - {status}", f"     - :exc:`slimnet.{kind.__name__}`"]
        holder = nodes.container()
        self.state.nested_parse(StringList([*lines, ""], source="slimnet.agent.routes"), 0, holder)
        return holder.children


def _default(field: RequestField) -> str:
    if field.is_required:
        return "required"
    return "optional" if field.default is None else f"by default ``{json.dumps(field.default)}``"


class News(Directive):
    """The news fragments of changelog.d, kind by kind."""

    def run(self) -> list[nodes.Node]:
        lines = []
        for path in sorted((_ROOT / "changelog.d").glob("[0-9+]*.md")):
            text = " ".join(path.read_text().split())
            lines.append("- " + re.sub(r"`([^`]+)`", r"``\1``", text))
        holder = nodes.container()
        self.state.nested_parse(StringList(lines, source="changelog.d"), 0, holder)
        return holder.children


def _fact_role(
    _name: str, raw: str, text: str, line: int, inliner: Any, *_rest: Any, **_more: Any
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    value = getattr(contract, text, getattr(private, text, None))
    if value is None:
        message = inliner.reporter.warning(f"the contract has no {text}", line=line)
        return [inliner.problematic(raw, raw, message)], [message]
    return [nodes.Text(f"{value:,}" if value >= 10000 else str(value))], []


def _load(dotted: str) -> object | None:
    """What a dotted name stands for, or None."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            value = getattr(value, part, None)
        return value
    return None


def _alias(app: Sphinx, env: BuildEnvironment, node: Any, contnode: nodes.Node) -> Any:
    """A name that is documented under another: ``slimnet.Probe`` is ``slimnet.model.Probe``.
    One that exists and is not documented is not for users: no link. Any other is a mistake."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains["py"]
    target = node["reftarget"]
    last = target.rpartition(".")[2]
    near = [
        name
        for name in domain.objects
        if name.rpartition(".")[2] == last and name.startswith("slimnet")
    ]
    module = node.get("py:module")
    owner = module and _load(f"{module}.{node.get('py:class')}")
    module = getattr(owner, "__module__", module)  # where it is written
    exists = False
    for spelling in filter(None, (target, module and f"{module}.{target}", f"slimnet.{target}")):
        wanted = _load(spelling) if spelling.startswith("slimnet") else None
        exists = exists or wanted is not None
        found = [name for name in near if wanted is not None and _load(name) is wanted]
        if found:
            docname = domain.objects[found[0]].docname
            ref = nodes.reference("", "", internal=True)
            ref["refuri"] = (
                app.builder.get_relative_uri(node.get("refdoc", docname), docname)
                + "#" + domain.objects[found[0]].node_id
            )  # fmt: skip
            ref += contnode
            return ref
    return contnode if exists else None


def _keep_members(
    _app: Sphinx,
    _what: str,
    name: str,
    thing: object,
    skip: bool,  # noqa: FBT001  # Sphinx calls it
    _options: Any,
) -> bool | None:
    """Members of an enum speak for themselves."""
    if isinstance(thing, enum.Enum) and not name.startswith("_"):
        return False
    return skip


def _defaults(_app: Sphinx, _domain: str, _kind: str, content: addnodes.desc_content) -> None:
    """The mark of attrs for a default that is made by a call says nothing to readers."""
    for node in list(content.parent.findall(nodes.inline)):
        if "default_value" in node["classes"] and node.astext() == "NOTHING":
            node.replace_self(nodes.inline("", "...", classes=["default_value"]))


def _epilog(_app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """A command's epilog: what is behind a line that ends in a colon stands as it is."""
    lines.clear()
    for part in re.findall(r"(?:.+\n?)+", (context.command.epilog or "").replace("\b\n", "\n")):
        first, *rest = part.splitlines()
        words = re.sub(r"`([^`]+)`", r"``\1``", first)
        if rest and rest[0].startswith("  "):
            lines += [words, "", ".. code-block:: text", "", *(f"   {each}" for each in rest), ""]
        else:
            lines += [words, *(re.sub(r"`([^`]+)`", r"``\1``", each) for each in rest), ""]


def _attributes(
    _app: Sphinx, what: str, _name: str, thing: object, _options: Any, lines: list[str]
) -> None:
    """``Attributes:`` of an attrs class get their types from the class."""
    if what != "class" or not attrs.has(thing):  # type: ignore[arg-type]
        return
    types = {each.name: each.type for each in attrs.fields(thing)}  # type: ignore[arg-type]
    inside = False
    for number, line in enumerate(lines):
        if line and not line.startswith(" "):
            inside = line == "Attributes:"
        found = re.match(r"    (\w+): ", line) if inside else None
        if found and types.get(found[1]):
            lines[number] = line.replace(":", f" (``{types[found[1]]}``):", 1)


def _complete(_app: Sphinx, env: BuildEnvironment) -> None:
    """Nothing that users meet is without an entry."""
    there = {(kind, name) for kind, name in env.domains["std"].objects}
    page = (Path(env.srcdir) / "reference" / "policy.rst").read_text()
    for kind in KINDS:
        if f".. manifest:: {kind}\n" not in page:
            _LOG.warning("kind %s has no table (docs/reference/policy.rst)", kind)
    for reason in Reason:
        if ("reason", reason.name.lower()) not in there:
            _LOG.warning("reason %s has no entry (docs/troubleshooting.rst)", reason.name.lower())
    for key in _keys():
        if ("confkey", key) not in there:
            _LOG.warning("key %s has no entry (docs/reference/configuration.rst)", key)
    documented = env.domains["py"].objects
    known = [_load(name) for name in documented]
    for module in _PUBLIC:
        home = importlib.import_module(module)
        for name in home.__all__:
            thing = getattr(home, name)
            if f"{module}.{name}" not in documented and not any(each is thing for each in known):
                _LOG.warning("public name %s.%s has no entry (docs/reference/api)", module, name)


def setup(app: Sphinx) -> dict[str, object]:
    """Called by Sphinx."""
    for name, kind in (("reason", ReasonEntry), ("confkey", KeyEntry)):
        app.add_object_type(name, name, indextemplate=f"pair: %s; {name}", objname=name)
        app.add_directive_to_domain("std", name, kind, override=True)
    app.add_directive("reason-table", ReasonTable)
    app.add_directive("manifest", Manifest)
    app.add_directive("store-keys", StoreKeys)
    app.add_directive("routes", RouteList)
    app.add_directive("news", News)
    app.add_role("fact", _fact_role)
    app.connect("missing-reference", _alias)
    app.connect("autodoc-skip-member", _keep_members)
    app.connect("object-description-transform", _defaults)
    app.connect("sphinx-click-process-epilog", _epilog)
    app.connect("autodoc-process-docstring", _attributes, priority=400)  # before napoleon
    app.connect("env-check-consistency", _complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
