# SPDX-License-Identifier: Apache-2.0
"""Reading policies: Kubernetes' manifests, unchanged.

A file is taken whole or refused whole. The extensions to Kubernetes' schema are the
annotation ``slimnet.io/network``, which names a NetworkPolicy's network, and ``spec.mandatory``.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slimnet.exceptions import PolicyError
from slimnet.policy import clusterspec, namespacespec
from slimnet.policy.document import ClusterNetworkPolicy, NetworkPolicy, Policy, Source
from slimnet.policy.node import Node, documents

__all__ = ["load", "restore"]

NETWORK_ANNOTATION = "slimnet.io/network"

_KINDS = {
    "NetworkPolicy": "networking.k8s.io/v1",
    "ClusterNetworkPolicy": "policy.networking.k8s.io/v1alpha2",
}
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def load(source: str | os.PathLike[str], *, network: str = "default") -> list[Policy]:
    """The policies of a file or a text.

    Args:
        source: a path (any :class:`os.PathLike`, or a string of one line that
            is not JSON), or the text itself. A file that ends in ``.toml`` is
            TOML, with one policy or an array ``policy``; everything else is
            YAML or JSON.
        network: the network of a NetworkPolicy that does not name one with the
            annotation ``slimnet.io/network``.

    Raises:
        PolicyError: the text is wrong somewhere; nothing of it holds.
        OSError: the file cannot be read.
    """
    file, text = _read(source)
    policies: list[Policy] = []
    places: dict[tuple[str, str, str], Node] = {}
    roots = _toml(text, file) if file.endswith(".toml") else documents(text, file)
    for root in roots:
        for document in _flatten(root):
            policy = _policy(document, network)
            key = (
                getattr(policy, "network", ""),
                getattr(policy, "namespace", ""),
                f"{type(policy).__name__}/{policy.name}",
            )
            if key in places:
                document.get("metadata").get("name").fail("each policy once in a file")
            places[key] = document
            policies.append(policy)
    return policies


def restore(value: Mapping[str, Any]) -> Policy:
    """The policy that gave this with ``to_json``.

    Raises:
        PolicyError: it is not that.
    """
    if not isinstance(value, Mapping):
        raise PolicyError("policy", "what Policy.to_json() gives", value)
    file, manifest, lines = value.get("file", ""), value.get("manifest"), value.get("lines", {})
    if not isinstance(manifest, dict) or not isinstance(file, str) or not isinstance(lines, dict):
        raise PolicyError("policy", "what Policy.to_json() gives", value)
    return _policy(Node.of(manifest, file), "default", Source(file, lines))


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


def _toml(text: str, file: str) -> Iterator[Node]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(file, "TOML", str(error)) from error
    for item in table["policy"] if isinstance(table.get("policy"), list) else [table]:
        yield Node.of(item, file)


def _flatten(root: Node) -> Iterator[Node]:
    """A document, or the entries of a List of them."""
    kind = root.get("kind").value
    if isinstance(kind, str) and kind.endswith("List") and kind[:-4] in {"", *_KINDS}:
        root.fields({"apiVersion", "kind", "metadata", "items"})
        for item in root.get("items").items():
            item.table()
            yield item
    else:
        yield root


def _policy(root: Node, network: str, source: Source | None = None) -> Policy:
    root.fields({"apiVersion", "kind", "metadata", "spec", "status"})
    kind = root.need("kind").choice(tuple(_KINDS))
    root.need("apiVersion").choice((_KINDS[kind],))
    metadata = root.need("metadata")
    name = metadata.need("name").text(
        "a name of lower-case letters, digits, '-' and '.' (RFC 1123)", _NAME.fullmatch
    )
    if source is None:
        source = Source(root.file, _lines(root))
    common: dict[str, Any] = {"name": name, "source": source}
    if kind == "NetworkPolicy":
        namespace = metadata.get("namespace")
        network = _network(metadata, network)
        policy: Policy = NetworkPolicy(
            network=network,
            namespace="default" if namespace.absent else _label(namespace),
            manifest=_manifest(root, network),
            **common,
            **namespacespec.read(root.need("spec")),
        )
    else:
        if not metadata.get("namespace").absent:
            metadata.get("namespace").fail("nothing, since a ClusterNetworkPolicy has none")
        policy = ClusterNetworkPolicy(
            manifest=_manifest(root, None), **common, **clusterspec.read(root.need("spec"))
        )
    return policy


def _label(node: Node) -> str:
    return node.text("lower-case letters, digits and '-', at most 63 (RFC 1123)", _LABEL.fullmatch)


def _network(metadata: Node, network: str) -> str:
    annotations = metadata.get("annotations")
    named = annotations if annotations.absent else annotations.get(NETWORK_ANNOTATION)
    return network if named.absent else _label(named)


def _manifest(root: Node, network: str | None) -> dict[str, Any]:
    """The document as it is kept: what decides, and the network that it was applied to."""
    metadata = {
        key: root.get("metadata").get(key).plain()
        for key in ("name", "namespace", "labels", "annotations")
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


def _lines(root: Node) -> dict[str, int]:
    lines = {"": root.line}
    spec = root.get("spec")
    for direction in ("ingress", "egress") if isinstance(spec.value, dict) else ():
        rules = spec.get(direction)
        for index, rule in enumerate(rules.value if isinstance(rules.value, list) else ()):
            lines[f"{direction}[{index}]"] = rule.line
    return {path: line for path, line in lines.items() if line}
