# SPDX-License-Identifier: Apache-2.0
"""Builds the BPF objects before a wheel or an editable install takes them in."""

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BpfBuildHook(BuildHookInterface[Any]):
    """Runs ``make``, which needs clang, llvm-strip and libbpf's headers."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the objects, unless this is a source distribution."""
        del version, build_data
        if self.target_name == "wheel":
            subprocess.run(["make", "--silent"], cwd=Path(self.root), check=True)
