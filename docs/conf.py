# SPDX-License-Identifier: Apache-2.0
"""The documentation: ``tox -e docs`` builds it into docs/_build/html."""

import sys
import tomllib
import warnings
from pathlib import Path

import sphinx_click.ext
from sphinx.ext.autodoc.mock import mock

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_ext"))

import inventory  # noqa: E402  # behind the path that it is found on

# sphinx-click 6 takes the function from where Sphinx 9 has the module.
sphinx_click.ext.mock = mock
warnings.filterwarnings("ignore", module="sphinx_autodoc_typehints")

project = "slimnet"
author = "the slimnet authors"
copyright = author
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx_autodoc_typehints",
    "sphinx_click",
    "facts",
    "sources",
]
exclude_patterns = ["_build", "_ext"]
myst_heading_anchors = 3  # links within the README, a part of which is a page
nitpicky = True
nitpick_ignore_regex = [
    # Libraries of which no inventory is here; nothing of the network is needed.
    ("py:.*", r"(attrs?|click|netaddr|pyroute2|stevedore)\..*"),
]

html_theme = "furo"
html_title = f"slimnet {release}"
html_static_path = ["_static"]
html_css_files = ["slimnet.css"]
html_show_sphinx = False
html_show_copyright = False
smartquotes = False
pygments_style = "default"
pygments_dark_style = "monokai"

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
typehints_document_rtype_none = False
always_use_bars_union = True
# A name that is imported for annotations only, since importing it takes time.
suppress_warnings = ["sphinx_autodoc_typehints.forward_reference"]

# Written from a list in docs/_ext, so that a build needs no network.
intersphinx_mapping = {"python": (inventory.PYTHON, str(inventory.write(HERE / "_build")))}

doctest_global_setup = f"""
import os
os.chdir({str(HERE)!r})
"""
