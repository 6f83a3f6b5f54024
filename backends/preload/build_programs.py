# SPDX-License-Identifier: Apache-2.0
"""Builds the router and the shim before a wheel or an editable install takes them in."""

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProgramsBuildHook(BuildHookInterface[Any]):
    """Runs ``make``, which needs a C compiler."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the programs, unless this is a source distribution; the wheel is this machine's,
        for any Python."""
        del version
        if self.target_name == "wheel":
            subprocess.run(["make", "--silent"], cwd=Path(self.root), check=True)
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
