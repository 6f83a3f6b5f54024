# SPDX-License-Identifier: Apache-2.0
"""Whatever is in a file: documents, or PolicyError, and nothing else.

Some seconds by default; ``SLIMNET_FUZZ=100000 pytest tests/policy/test_fuzz_parser.py``
is a long run.
"""

import json
import os
import re

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_manifest import EVERY

from slimnet.exceptions import PolicyError
from slimnet.policy import Document, load, parse
from slimnet.policy.language.manifest import KINDS
from slimnet.policy.language.schema import paths

EXAMPLES = int(os.environ.get("SLIMNET_FUZZ", "300"))
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

FIELDS = sorted(
    {re.split(r"[.\[]", path.removesuffix("[]"))[-1] for kind in KINDS.values()
     for path, _ in paths(kind.schema)}
    | {"apiVersion", "kind", "metadata", "spec", "items", "name", "namespace", "annotations"}
)  # fmt: skip
WORDS = sorted(set(re.findall(r"[-\w./]+", "".join(EVERY)))) + [
    "None", "nan", ".inf", "1e400", "0x10", "0o7", "1_000", "~", "2026-01-01", "=", "<<",
    "slimnet.io/network", "::ffff:1.2.3.4/128", "10.0.0.0/8", "256.1.1.1", "1E99999999", "9" * 400,
]  # fmt: skip
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(WORDS)
)
ANYTHING = st.recursive(
    SCALAR,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
#: What YAML gives a meaning to.
PIECE = st.text(max_size=6) | st.sampled_from(
    ("&a", "*a", "!!python/object:os.system", "!!binary x", "!!set", "!!omap", "<<: *a", "\t",
     "? ", "%YAML 9.9\n", "---\n", "...\n", "\x00", "\ufeff", "\u2028", "|2\n", ">-\n", "{",
     "[", "'", '"', "@", "`", "#", ": ", "- ", "\ud800")
)  # fmt: skip


def taken_or_refused(source):
    """Documents that survive the store, or one line that says why not."""
    try:
        found = load(source, network="prod")
    except PolicyError as error:
        assert str(error).isprintable()
        return
    for document in found:
        assert Document.from_json(json.loads(json.dumps(document.to_json()))) == document


def places(value, here=()):
    yield here
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*here, key))


@fuzz
@given(st.data())
def test_anything_anywhere(data):
    """A manifest with some of its values replaced, or taken out, or under another name."""
    document = yaml.safe_load(data.draw(st.sampled_from(EVERY)))
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from([place for place in places(document) if place]))
        inner = document
        for key in above:
            inner = inner[key]
        what = data.draw(st.sampled_from(("replace", "remove", "rename")))
        if what == "replace" or isinstance(inner, list):
            inner[last] = data.draw(ANYTHING)
        elif what == "remove":
            del inner[last]
        else:
            inner[data.draw(st.sampled_from(FIELDS) | st.text(max_size=4))] = inner.pop(last)
    taken_or_refused(json.dumps(document))


@fuzz
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), PIECE), max_size=4), st.data())
def test_any_text(edits, data):
    """A text, or manifests, with parts cut out and put in."""
    text = data.draw(st.text(max_size=40) | st.sampled_from((*EVERY, "---\n".join(EVERY))))
    for place, length, piece in edits:
        start = int(place * len(text))
        text = text[:start] + piece + text[start + length :]
    taken_or_refused(f"---\n{text}")


@fuzz
@given(
    st.binary(max_size=60) | st.sampled_from([text.encode() for text in EVERY]),
    st.integers(0, 400),
    st.binary(max_size=4),
    st.sampled_from(("x.yaml", "x.toml", "x")),
)
def test_any_file(tmp_path_factory, text, place, piece, name):
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(text[:place] + piece + text[place + len(piece) :])
    taken_or_refused(file)


@fuzz
@given(
    st.recursive(
        st.integers() | st.booleans() | st.text('ab."\\\n', max_size=5) | st.sampled_from(WORDS),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from((*FIELDS, "document", "policy")), inner, max_size=4)
        ),
        max_leaves=15,
    )
)
def test_any_toml(tmp_path_factory, value):
    table = value if isinstance(value, dict) else {"policy": value}
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text("".join(f"{json.dumps(key)} = {toml(item)}\n" for key, item in table.items()))
    taken_or_refused(file)


def toml(value):
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


@fuzz
@given(
    ANYTHING
    | st.builds(
        lambda **record: record,
        file=ANYTHING,
        path=ANYTHING,
        manifest=ANYTHING,
        lines=ANYTHING | st.dictionaries(st.text(max_size=4), st.integers(-1, 3), max_size=3),
    )
)
def test_any_request(value):
    """What a client sends may be anything."""
    try:
        parse([value])
    except PolicyError as error:
        assert str(error).isprintable()


@fuzz
@given(st.data())
def test_any_record(data):
    """What the store holds may be anything: a document, or PolicyError."""
    (document,) = load(data.draw(st.sampled_from(EVERY)))
    record = json.loads(json.dumps(document.to_json()))
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from([place for place in places(record) if place]))
        inner = record
        for key in above:
            inner = inner[key]
        inner[last] = data.draw(ANYTHING)
    try:
        assert isinstance(Document.from_json(record), Document)
    except PolicyError as error:
        assert str(error)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000,
        "spec: " + "[" * 100 + "]" * 100,
        "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*{p}, *{p}]\n" for n, p in enumerate(
            ["a", *(f"b{n}" for n in range(40))])),
        EVERY[2].replace("{app: web}", "{" + ", ".join(f"a{n}: x" for n in range(5_000)) + "}"),
        EVERY[0].replace("[client, tester]", "[" + "x, " * 20_000 + "x]"),
        "---\n" * 20_000,
        "x" * 5_000_000,
        "key: " + "9" * 5000,
        "? [a]\n: b",
        "a: " * 300_000,
        "a: {" + "".join(f"<<: {{a{n}: x}}, " for n in range(20_000)) + "}",
        "a: &a {x: x}\n" + "".join(f"b{n}: &b{n} {{<<: [*{p}, *{p}]}}\n" for n, p in enumerate(
            ["a", *(f"b{n}" for n in range(40))])),
        "a: b" + "\t" * 300_000,
        "\t" * 300_000 + "a: b",
    ],
    ids=["lists", "tables", "dashes", "closed", "laughs", "labels", "values", "documents", "long",
         "number", "complex", "colons", "merges", "merged laughs", "tabs", "tabs in front"],
)  # fmt: skip
def test_deep_wide_and_long(text):
    taken_or_refused(f"---\n{text}")
