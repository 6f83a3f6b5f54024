# SPDX-License-Identifier: Apache-2.0
"""For tests: of slimnet, of its backends, of what uses it.

- :class:`Underlay`: hosts on one network, out of network namespaces.
"""

from slimnet.testing._underlay import Underlay, UnderlayHost

__all__ = ["Underlay", "UnderlayHost"]
