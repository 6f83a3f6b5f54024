# SPDX-License-Identifier: Apache-2.0
"""``python -m slimnet.cli``: the same as ``slimnet``."""

from slimnet.cli import main

main()
