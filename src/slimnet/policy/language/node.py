# SPDX-License-Identifier: Apache-2.0
"""A document's values, each with the place where it was written.

Every accessor says what it wants; what is not that raises
:class:`~slimnet.PolicyError` with file, line, field, what was wanted and what came.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Never

import yaml
from attrs import frozen

from slimnet.exceptions import PolicyError
from slimnet.policy.language.schema import Schema

__all__ = ["ManifestNode", "documents"]

# A policy is small; what is not has come to eat the agent's memory.
_TEXT_MAX = 4 * 2**20
_DEPTH_MAX = 32
_NODES_MAX = 200_000
_WORD = re.compile(r"[-\w./]+")
_BREAKS = "\r\n\x85\u2028\u2029"
# The head of a block scalar behind its first character, where a tab comes next.
_BEFORE_TAB = re.compile(r"(?:([+-])?([1-9])?|([1-9])([+-]))(?=\t)")
# YAML's merge key (https://yaml.org/type/merge.html), as PyYAML's resolver calls it.
_MERGE = "tag:yaml.org,2002:merge"
# What a message shows of a wrong value.
_GOT_MAX = 120


def place(file: str, line: int, path: str = "") -> str:
    """How messages name a field: ``web.yaml:12: spec.ingress``, with what is known of that."""
    where = f"{file}:{line}" if file and line else file or (f"line {line}" if line else "")
    return ": ".join(filter(None, (where, path))) or "document"


def _below(path: str, key: str) -> str:
    """The path of a field; a key that is no plain word is quoted."""
    word = key if _WORD.fullmatch(key) else repr(key[:_GOT_MAX])
    return f"{path}.{word}" if path else word


@frozen
class ManifestNode:
    """One value of a document.

    Attributes:
        value: a str, int, float, bool or ``None``, or a list or a dict of such nodes.
        path: the field's name from the document's top (``spec.ingress[0].from``).
        line: from 1; 0 where nobody knows.
        file: the file's name, or empty.
    """

    value: Any
    path: str = ""
    line: int = 0
    file: str = ""

    def fail(self, wanted: str, got: object = None) -> Never:
        """Refuse this value."""
        value = self.plain() if got is None else got
        if len(repr(value)) > _GOT_MAX:
            value = f"{repr(value)[:_GOT_MAX]}..."
        raise PolicyError(place(self.file, self.line, self.path), wanted, value)

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def lines(self) -> dict[str, int]:
        """Path to line of this node and of those below that begin on another line than
        the one that they are in."""
        return dict(self._lines(0))

    def _lines(self, above: int) -> Iterator[tuple[str, int]]:
        if self.line != above:
            yield self.path, self.line
        inner = self.value.values() if isinstance(self.value, dict) else self.value
        for node in inner if isinstance(self.value, (dict, list)) else ():
            yield from node._lines(self.line)  # noqa: SLF001  # of this class

    @classmethod
    def of(
        cls,
        value: Any,
        file: str = "",
        path: str = "",
        lines: Mapping[str, int] | None = None,
        above: int = 0,
    ) -> ManifestNode:
        """Plain JSON values as nodes.

        Args:
            value: with what is in it.
            file: the file's name, or empty.
            path: its own.
            lines: what :meth:`lines` gave, if it came from a text.
            above: the line of what it is in.
        """
        line = lines.get(path, above) if lines else 0
        if isinstance(value, Mapping):
            value = {
                str(key): cls.of(item, file, _below(path, str(key)), lines, line)
                for key, item in value.items()
            }
        elif isinstance(value, (list, tuple)):
            value = [
                cls.of(item, file, f"{path}[{index}]", lines, line)
                for index, item in enumerate(value)
            ]
        elif isinstance(value, float) and not math.isfinite(value):
            raise PolicyError(place(file, line, path), "a finite number", value)
        return cls(value, path, line, file)

    @property
    def absent(self) -> bool:
        """Not written, or written as null, which Kubernetes takes for the same."""
        return self.value is None

    @property
    def blank(self) -> bool:
        """Absent, or an empty text: where Kubernetes keeps a text, it takes both for none."""
        return self.absent or self.value == ""

    def fields(self, known: Schema) -> ManifestNode:
        """This table, which may hold these fields only."""
        taken = sorted(key for key, field in known.items() if not field.refused)
        for key, node in self.table().items():
            if key in taken:
                continue
            if key not in known:
                close = difflib.get_close_matches(key, taken, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                node.fail(f"one of the fields {', '.join(taken)}{hint}", key)
            # A template's `loadBalancerIP: ""` asks for nothing.
            if not node.absent and node.plain() not in ("", 0, [], {}):
                node.fail(f"no such field: {known[key].meaning}")
        return self

    def table(self) -> dict[str, ManifestNode]:
        """The fields by name."""
        if not isinstance(self.value, dict):
            self.fail("a table of fields")
        return self.value

    def get(self, key: str) -> ManifestNode:
        """One field of a table; absent when it is not written."""
        node = self.table().get(key)
        path = _below(self.path, key)
        return ManifestNode(None, path, self.line, self.file) if node is None else node

    def need(self, key: str) -> ManifestNode:
        """One field of a table that must be written."""
        node = self.get(key)
        if node.absent:
            node.fail("a value, since this field is required", "nothing")
        return node

    def items(self, *, least: int = 0, most: int | None = None) -> list[ManifestNode]:
        """The entries of a list."""
        if not isinstance(self.value, list):
            self.fail("a list")
        if len(self.value) < least:
            self.fail(f"a list of at least {least}")
        if most is not None and len(self.value) > most:
            self.fail(f"a list of at most {most}", f"{len(self.value)} entries")
        return self.value

    def only(self, known: Schema) -> tuple[str, ManifestNode]:
        """The one field of a table that must have exactly one of these."""
        taken = sorted(key for key, field in known.items() if not field.refused)
        written = [
            (key, node)
            for key, node in self.fields(known).table().items()
            if key in taken and not node.absent
        ]
        if len(written) != 1:
            self.fail(
                f"exactly one of {', '.join(taken)}",
                " and ".join(sorted(key for key, _ in written)) or "none of them",
            )
        return written[0]

    def text(self, wanted: str, holds: Callable[[str], object]) -> str:
        """A string for which ``holds`` is true."""
        if not isinstance(self.value, str) or not holds(self.value):
            self.fail(wanted)
        return self.value

    def choice(self, choices: Collection[str], hint: str | None = None) -> str:
        """One of these strings; ``hint`` says what else a wrong one may want, and stands in
        place of the nearest of them."""
        if not isinstance(self.value, str) or self.value not in choices:
            if hint is None:
                close = difflib.get_close_matches(str(self.value), choices, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}?" if close else ""
            hint = f" ({hint})" if hint else ""
            self.fail(f"one of {', '.join(choices)}{hint}")
        return self.value

    def number(self, least: int, most: int, what: str) -> int:
        """A whole number within bounds."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            self.fail(f"{what}, {least} to {most}")
        if not least <= self.value <= most:
            self.fail(f"{what}, {least} to {most}")
        return self.value

    def truth(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            self.fail("true or false")
        return self.value


class _Loader(yaml.SafeLoader):
    """PyYAML's loader, taking what Kubernetes' own library takes as well: tabs wherever they
    indent nothing (YAML 1.2.2, section 6.1), JSON texts one behind the other, and an anchor
    that is set again."""

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        while self.peek() == "\t":
            length = self._blanks()
            indents = self.allow_simple_key and not self.flow_level
            if indents and self.peek(length) not in f"\0#{_BREAKS}":
                return  # which the scanner refuses
            self.forward(length)
            super().scan_to_next_token()

    def scan_plain_spaces(self, indent: int, start_mark: yaml.Mark) -> list[str] | None:
        length = self._blanks()
        spaces = self.prefix(length)
        self.forward(length)
        if self.peek() in _BREAKS:
            return super().scan_plain_spaces(indent, start_mark)
        return [spaces] if spaces else []

    def scan_block_scalar_indicators(self, start_mark: yaml.Mark) -> tuple[bool | None, int | None]:
        found = _BEFORE_TAB.match(self.prefix(3))
        if found is None:
            return super().scan_block_scalar_indicators(start_mark)
        first, indent, indent_first, second = found.groups()
        chomping, indent = first or second, indent or indent_first
        self.forward(found.end())
        return chomping == "+" if chomping else None, int(indent) if indent else None

    def scan_block_scalar_ignored_line(self, start_mark: yaml.Mark) -> None:
        self.forward(self._blanks())
        super().scan_block_scalar_ignored_line(start_mark)

    def _blanks(self) -> int:
        length = 0
        while self.peek(length) in " \t":
            length += 1
        return length

    def parse_document_start(self) -> Any:
        if self.check_token(yaml.FlowMappingStartToken):
            return self.parse_implicit_document_start()  # type: ignore[no-untyped-call]
        return super().parse_document_start()  # type: ignore[no-untyped-call]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if not self.check_event(yaml.AliasEvent):
            self.anchors.pop(self.peek_event().anchor, None)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


def documents(text: str, file: str = "") -> Iterator[ManifestNode]:
    """The documents of a YAML (or JSON) text; empty ones are passed over.

    Raises:
        PolicyError: it is not YAML, or is not made like a policy at all.
    """
    if len(text) > _TEXT_MAX:
        raise PolicyError(place(file, 0), f"at most {_TEXT_MAX} characters", len(text))
    if (odd := yaml.reader.Reader.NON_PRINTABLE.search(text)) is not None:
        raise PolicyError(place(file, 0), "printable characters", odd.group())
    loader = _Loader(text)
    count = [0]
    try:
        while loader.check_node():
            root = loader.get_node()
            if root is None:
                break
            node = _convert(loader, root, "", file, 0, count)
            if not node.absent:
                yield node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = place(file, mark.line + 1 if mark else 0)
        raise PolicyError(where, "YAML", error.problem or str(error)) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise PolicyError(place(file, 0), "YAML", type(error).__name__) from error
    finally:
        loader.dispose()


def _convert(
    loader: yaml.SafeLoader, root: yaml.Node, path: str, file: str, depth: int, count: list[int]
) -> ManifestNode:
    line = root.start_mark.line + 1
    here = ManifestNode(None, path, line, file)
    count[0] += 1
    if depth > _DEPTH_MAX or count[0] > _NODES_MAX:
        here.fail("a document of reasonable size", "one nested or repeated without end")
    if isinstance(root, yaml.SequenceNode):
        items = [
            _convert(loader, item, f"{path}[{index}]", file, depth + 1, count)
            for index, item in enumerate(root.value)
        ]
        return ManifestNode(items, path, line, file)
    if isinstance(root, yaml.MappingNode):
        table: dict[str, ManifestNode] = {}
        merged: dict[str, ManifestNode] = {}
        for key_node, value_node in root.value:
            key = getattr(key_node, "value", None)
            at = ManifestNode(None, path, key_node.start_mark.line + 1, file)
            if key_node.tag == _MERGE:
                many = isinstance(value_node, yaml.SequenceNode)
                sources = [
                    _convert(loader, each, path, file, depth + 1, count)
                    for each in (value_node.value if many else [value_node])
                ]
                at = ManifestNode(None, _below(path, "<<"), at.line, file)
                merged |= _merge(at, sources, ChainMap(table, merged))
                continue
            if not isinstance(key, str):
                at.fail("a field's name", "a list or a table")
            try:
                key = _whole(key)
            except UnicodeError:
                at.fail("a field's name", key)
            below = _below(path, key)
            if key in table:
                ManifestNode(None, below, at.line, file).fail("each field once", "a second one")
            found = _convert(loader, value_node, below, file, depth + 1, count)
            # A field stands where its name stands: its value may begin lines below.
            table[key] = ManifestNode(found.value, below, at.line, file)
        return ManifestNode({**merged, **table}, path, line, file)
    try:
        value = loader.construct_object(root)
        if isinstance(value, str):
            value = _whole(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(value)  # JSON has no such number (RFC 8259, section 6)
    except (ValueError, OverflowError) as error:
        raise PolicyError(place(file, line, path), "a plain value", root.value) from error
    if not isinstance(value, (str, int, float, bool)) and value is not None:
        value = root.value  # a date or a binary: nothing of ours is one
    return ManifestNode(value, path, line, file)


def _merge(
    at: ManifestNode, sources: Iterable[ManifestNode], before: Mapping[str, ManifestNode]
) -> dict[str, ManifestNode]:
    """The fields that a merge key brings.

    Args:
        at: the key.
        sources: the tables; of those that have a field, the first gives it.
        before: the fields in front of the key. YAML lets them stay, Kubernetes' own library
            replaces them: what would make a difference is refused.
    """
    brought: dict[str, ManifestNode] = {}
    for source in sources:
        if not isinstance(source.value, dict):
            at.fail("a table, or a list of tables", source.plain())
        brought = {**source.value, **brought}
    for key, node in brought.items():
        if key in before and before[key].plain() != node.plain():
            at.fail(f"<< in front of {key}: behind it, Kubernetes replaces what YAML keeps", key)
    return brought


def _whole(text: str) -> str:
    """A text with the halves of characters put together: JSON writes those beyond 16 bits
    as two (RFC 8259, section 7), which YAML takes for two.

    Raises:
        UnicodeError: a half is alone.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16")
