# SPDX-License-Identifier: Apache-2.0
"""Several hosts on one machine, to try slimnet and to test it.

::

    from slimnet.testbed import Testbed

    with Testbed("trial", hosts=2) as testbed:
        with testbed.hosts[0].node() as node:
            node.create_network("prod", "10.1.0.0/16")

Each host is a network namespace on one switched underlay, with an agent in it;
all of them share one store. The machine's own network namespace is not
touched, and testbeds of different names do not meet.
"""

from slimnet.testbed.bed import Testbed
from slimnet.testbed.host import TestbedHost

__all__ = ["Testbed", "TestbedHost"]
