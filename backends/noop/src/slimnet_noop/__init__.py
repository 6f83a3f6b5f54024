# SPDX-License-Identifier: Apache-2.0
"""The backend that accelerates nothing, and how to write one.

Each endpoint has a network namespace of its own, and every packet takes the
fallback overlay (:mod:`slimnet.fallback`): the ordinary routed VXLAN that
container networks are today. It is the baseline of every comparison, and the
smallest whole plugin. To write another one:

1. Derive from :class:`slimnet.abc.Backend`, name it in the entry point group
   ``slimnet.backends`` of your distribution, and answer :meth:`~slimnet.abc.Backend.probe`
   without changing anything.
2. Keep the truth in the data path, not in the object. Here it is the host's
   table (generation, layout), the routers (rules, devices) and one small file
   for each endpoint. Another process adopts what runs by reading them.
3. Close before you open: a router is made with rules that refuse everything,
   an endpoint gets its device before anyone knows its namespace.
4. Write down what you are about to make, and last of all that it is whole, so
   that a process killed in between leaves nothing that the next one does not
   find: to make it whole, or to remove it.
5. Run :func:`slimnet.testing.check_backend` on it.
"""

from slimnet_noop._backend import NoopBackend

__all__ = ["NoopBackend"]
