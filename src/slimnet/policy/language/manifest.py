# SPDX-License-Identifier: Apache-2.0
"""Reading what users write: Kubernetes' manifests, unchanged, and slimnet's own kinds.

A file is taken whole or refused whole. The extensions to Kubernetes' schema are the
annotation ``slimnet.io/network``, which names the network of what lives in one,
``spec.mandatory`` of policies, and ``spec.weights`` of services.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from slimnet.exceptions import PolicyError
from slimnet.names import NAME, NAME_WANTED, SUBDOMAIN, SUBDOMAIN_WANTED
from slimnet.policy.document import (
    ClusterNetworkPolicy,
    Document,
    EgressLimit,
    NetworkPolicy,
    PublishedPort,
    Service,
    Source,
)
from slimnet.policy.language import (
    clusterspec,
    limitspec,
    namespacespec,
    publishedspec,
    servicespec,
)
from slimnet.policy.language.node import ManifestNode, documents
from slimnet.policy.language.schema import Field, Schema

__all__ = ["KINDS", "METADATA", "DocumentKind", "is_foreign", "load", "parse", "read"]

NETWORK_ANNOTATION = "slimnet.io/network"


_RULE = re.compile(r"(in|e)gress\[")
#: Kind that is no more to what took its place: SIG Network Policy's two became one.
_SUCCESSORS = {
    "AdminNetworkPolicy": "ClusterNetworkPolicy of tier Admin",
    "BaselineAdminNetworkPolicy": "ClusterNetworkPolicy of tier Baseline",
}
#: What is less like a kind is no misspelling of it, but another (ServiceAccount).
_MISSPELT = 0.84


@frozen
class DocumentKind:
    """One kind of document.

    Attributes:
        version: its ``apiVersion``.
        make: what it becomes.
        schema: the fields of its ``spec``.
        read: reads them.
    """

    version: str
    make: type[Document]
    schema: Schema
    read: Callable[[ManifestNode], dict[str, Any]]

    @property
    def namespaced(self) -> bool:
        """Whether it belongs to a namespace of a network; else to the cluster."""
        return self.make is not ClusterNetworkPolicy


#: Every kind, by what its manifests call it.
KINDS: Mapping[str, DocumentKind] = {
    "NetworkPolicy": DocumentKind(
        "networking.k8s.io/v1", NetworkPolicy, namespacespec.SCHEMA, namespacespec.read
    ),
    "ClusterNetworkPolicy": DocumentKind(
        "policy.networking.k8s.io/v1alpha2",
        ClusterNetworkPolicy,
        clusterspec.SCHEMA,
        clusterspec.read,
    ),
    "Service": DocumentKind("v1", Service, servicespec.SCHEMA, servicespec.read),
    "PublishedPort": DocumentKind(
        "slimnet.io/v1alpha1", PublishedPort, publishedspec.SCHEMA, publishedspec.read
    ),
    "EgressLimit": DocumentKind(
        "slimnet.io/v1alpha1", EgressLimit, limitspec.SCHEMA, limitspec.read
    ),
}
#: Of ``metadata``, what is looked at or kept.
METADATA: Schema = {
    "name": Field("unique among those of its kind, in its namespace"),
    "namespace": Field("``default`` by default; a ClusterNetworkPolicy has none"),
    "labels": Field("kept, and not looked at"),
    "annotations": Field(
        "kept; ``slimnet.io/network`` names its network, which is else the one of ``-n``, or the "
        "only one that there is"
    ),
}
_ROOT: Schema = {
    "apiVersion": Field("of the kind"),
    "kind": Field("which"),
    "metadata": Field("who it is", METADATA),
    "spec": Field("what it says"),
    "status": Field("ignored"),
}
_LIST: Schema = {**dict.fromkeys(("apiVersion", "kind", "metadata"), Field("ignored")),
                 "items": Field("documents", many=True)}  # fmt: skip
# What a file of TOML calls an array of documents.
_ARRAYS = ("document", "policy")


def load(
    source: str | os.PathLike[str], *, network: str = "default", ignore_unknown: bool = False
) -> list[Document]:
    """The documents of a file or a text: policies, services, published ports, limits.

    Args:
        source: a path (any :class:`os.PathLike`, or a string of one line that
            is not JSON), or the text itself. A file that ends in ``.toml`` is
            TOML, with one document or an array ``document`` (or ``policy``) of
            them; everything else is YAML or JSON.
        network: the network of what lives in one and does not name it with the
            annotation ``slimnet.io/network``.
        ignore_unknown: pass over documents that are not slimnet's (:func:`is_foreign`).

    Raises:
        PolicyError: the text is wrong somewhere; nothing of it holds.
        OSError: the file cannot be read.
    """
    manifests = read(source)
    if ignore_unknown:
        manifests = [each for each in manifests if not is_foreign(each)]
    return parse(manifests, network=network)


def read(source: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The manifests of a file or a text, as JSON values that ``parse()`` takes: nobody
    has looked yet at what they say.

    Args:
        source: as of :func:`load`.

    Returns:
        Of each its ``manifest``, and where it was written: ``file``, ``path`` in the
        file where it is the entry of a List, and ``lines`` (path of a field to line).

    Raises:
        PolicyError: it is not YAML, JSON or TOML.
        OSError: the file cannot be read.
    """
    file, text = _read(source)
    roots = _toml(text, file) if file.endswith(".toml") else documents(text, file)
    return [
        {"manifest": node.plain(), "file": file, "path": node.path, "lines": node.lines()}
        for root in roots
        for node in _flatten(root)
    ]


def is_foreign(manifest: Mapping[str, Any]) -> bool:
    """Whether it is a document for others than slimnet: of another kind, or of another API
    that has a kind of the same name (Calico's NetworkPolicy). What does not say its kind, or
    misspells it, is not: that is refused.

    Args:
        manifest: as of :func:`read`.
    """
    said = manifest["manifest"] if isinstance(manifest["manifest"], dict) else {}
    kind, version = said.get("kind"), said.get("apiVersion")
    if not isinstance(kind, str) or not isinstance(version, str):
        return False
    near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=_MISSPELT)
    return not near or _group(version) != _group(KINDS[near[0]].version)


def _group(version: str) -> str:
    return version.rpartition("/")[0]


def parse(manifests: Iterable[Mapping[str, Any]], *, network: str = "default") -> list[Document]:
    """The documents that manifests are.

    Args:
        manifests: each as of :func:`~slimnet.policy.language.manifest.read`; ``manifest``
            alone will do.
        network: as of :func:`load`.

    Raises:
        PolicyError: one is wrong somewhere; none of them holds.
    """
    found: dict[tuple[str, ...], Document] = {}
    for manifest in manifests:
        node = _node(manifest)
        document = _document(node, network)
        kind, place = type(document).__name__, getattr(document, "network", "")
        key = (node.file, kind, place, document.title)
        if key in found:
            node.get("metadata").get("name").fail("each document once in a file")
        found[key] = document
    return list(found.values())


def _node(value: Mapping[str, Any]) -> ManifestNode:
    wanted = "a manifest, and where it was written"
    if not isinstance(value, Mapping):
        raise PolicyError("document", wanted, value)
    manifest, lines = value.get("manifest"), value.get("lines", {})
    file, path = value.get("file", ""), value.get("path", "")
    if not isinstance(manifest, dict) or not isinstance(lines, dict):
        raise PolicyError("document", wanted, value)
    if not all(isinstance(name, str) and name.isprintable() for name in (file, path)):
        raise PolicyError("document", wanted, {"file": file, "path": path})
    if not all(type(line) is int and line > 0 for line in lines.values()):
        raise PolicyError("document", wanted, {"file": file, "lines": lines})
    # A document's own lines (Source) name its rules without the "spec." before them.
    rules = {f"spec.{rule}": line for rule, line in lines.items() if _RULE.match(rule)}
    return ManifestNode.of(manifest, file, path, {**rules, **lines})


def _read(source: str | os.PathLike[str]) -> tuple[str, str]:
    if isinstance(source, str) and (
        not source.strip() or "\n" in source or source.lstrip().startswith(("{", "---"))
    ):
        return "", source
    path = Path(source)
    try:
        return path.name, path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise PolicyError(path.name, "UTF-8 text", f"byte {error.start} is not") from error
    except ValueError as error:
        raise PolicyError("policy", "a file's name, or a text", str(source)) from error


def _toml(text: str, file: str) -> Iterator[ManifestNode]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(file, "TOML", str(error)) from error
    arrays = [table[key] for key in _ARRAYS if isinstance(table.get(key), list)]
    if arrays and len(table) > len(arrays):
        odd = next(key for key in table if key not in _ARRAYS)
        raise PolicyError(file, f"nothing beside the array {' or '.join(_ARRAYS)}", odd)
    for item in [item for array in arrays for item in array] if arrays else [table]:
        yield ManifestNode.of(item, file)


def _flatten(root: ManifestNode) -> Iterator[ManifestNode]:
    """A document, or the entries of a List of them."""
    kind = root.get("kind").value
    if isinstance(kind, str) and kind.endswith("List") and kind[:-4] in {"", *KINDS}:
        root.fields(_LIST)
        for item in root.get("items").items():
            item.table()
            yield item
    else:
        yield root


def _document(root: ManifestNode, network: str) -> Document:
    root.fields(_ROOT)
    kind = _kind(root.need("kind"))
    root.need("apiVersion").choice((kind.version,))
    metadata = root.need("metadata")
    name, namespace = metadata.need("name"), metadata.get("namespace")
    fields: dict[str, Any] = {}
    if kind.namespaced:
        network = _network(metadata, network)
        fields = {
            "network": network,
            "namespace": "default" if namespace.blank else _name(namespace),
        }
    elif not namespace.blank:
        namespace.fail("nothing, since a ClusterNetworkPolicy has none")
    return kind.make(
        # A service's name is one that hosts files have.
        name=_name(name)
        if kind.make is Service
        else name.text(SUBDOMAIN_WANTED, SUBDOMAIN.fullmatch),
        source=Source(root.file, _lines(root)),
        manifest=_manifest(root, network if kind.namespaced else None),
        **fields,
        **kind.read(root.need("spec")),
    )


def _kind(node: ManifestNode) -> DocumentKind:
    near = difflib.get_close_matches(str(node.value), KINDS, n=1, cutoff=_MISSPELT)
    hint = f"did you mean {near[0]!r}?" if near else ""
    if (successor := _SUCCESSORS.get(str(node.value))) is not None:
        hint = f"its successor is {successor}"
    return KINDS[node.choice(tuple(KINDS), hint)]


def _name(node: ManifestNode) -> str:
    return node.text(NAME_WANTED, NAME.fullmatch)


def _network(metadata: ManifestNode, network: str) -> str:
    annotations = metadata.get("annotations")
    named = annotations if annotations.absent else annotations.get(NETWORK_ANNOTATION)
    return network if named.absent else _name(named)


def _manifest(root: ManifestNode, network: str | None) -> dict[str, Any]:
    """The document as it is kept: what decides, and the network that it was applied to."""
    metadata = {
        key: root.get("metadata").get(key).plain()
        for key in METADATA
        if not root.get("metadata").get(key).absent
    }
    if network is not None:
        metadata["annotations"] = {**metadata.get("annotations", {}), NETWORK_ANNOTATION: network}
    return {
        "apiVersion": root.get("apiVersion").value,
        "kind": root.get("kind").value,
        "metadata": metadata,
        "spec": root.get("spec").plain(),
    }


def _lines(root: ManifestNode) -> dict[str, int]:
    lines = {"": root.line}
    spec = root.get("spec")
    for direction in ("ingress", "egress") if isinstance(spec.value, dict) else ():
        rules = spec.get(direction)
        for index, rule in enumerate(rules.value if isinstance(rules.value, list) else ()):
            lines[f"{direction}[{index}]"] = rule.line
    return {path: line for path, line in lines.items() if line}
