# SPDX-License-Identifier: Apache-2.0
"""What the code as a whole keeps to: one word for one thing, and no way up from below."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "src", *sorted(ROOT.glob("backends/*/src")), *sorted(ROOT.glob("stores/*/src")))
POLICY = ROOT / "src" / "slimnet" / "policy"

#: What the modules of each wing of the policy engine may import of it; the values on the
#: ground import no wing.
WINGS = {
    "": set(),
    "language": {"language"},
    "compile": {"compile"},
    "explain": {"explain", "compile"},
}


def modules():
    for source in SOURCES:
        for file in sorted(source.rglob("*.py")):
            yield file.relative_to(source), ast.parse(file.read_text())


def exported(tree):
    """The names in ``__all__`` of a module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_no_two_public_classes_share_a_name():
    """Whoever reads a name in a message, a page or another module knows which it is.
    A module with an underscore is public in what its package exports of it."""
    trees = list(modules())
    public = {str(path.parent): exported(tree) for path, tree in trees if path.stem == "__init__"}
    found = defaultdict(list)
    for path, tree in trees:
        hidden = path.stem.startswith("_") and path.stem != "__init__"
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            if not hidden or node.name in public.get(str(path.parent), ()):
                found[node.name].append(str(path))
    assert len(found) > 100
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_the_policy_engine_has_no_circle():
    """Documents to values, values to tables, and what both mean: no wing imports one that it
    is imported by, the values import none, and nobody hides an import in a function."""
    wings = {path.name for path in POLICY.iterdir() if (path / "__init__.py").exists()}
    assert wings == set(WINGS) - {""}
    for path in sorted(POLICY.rglob("*.py")):
        if path == POLICY / "__init__.py":
            continue
        wing = path.relative_to(POLICY).parts[0] if path.parent != POLICY else ""
        tree = ast.parse(path.read_text())
        inner = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert [node for node in inner if node not in tree.body] == [], path
        names = [node.module or "" for node in inner if isinstance(node, ast.ImportFrom)]
        assert "slimnet.policy" not in names, path
        used = {name.split(".")[2] for name in names if name.startswith("slimnet.policy.")}
        assert used & wings <= WINGS[wing], path
