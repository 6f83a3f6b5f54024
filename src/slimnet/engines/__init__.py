# SPDX-License-Identifier: Apache-2.0
"""Container engines: their containers are endpoints, by the engine's own words.

- :mod:`~slimnet.engines.container`: what all have in common: a container's network namespace
  becomes an endpoint's, and what was made for it is written down until it goes.
- :mod:`~slimnet.engines.cni`: the Container Network Interface, for containerd, Podman,
  CRI-O and Kubernetes.
- :mod:`~slimnet.engines.docker`: Docker's network driver and IPAM driver.
- :mod:`~slimnet.engines.hook`: a program that an engine runs when a container starts and when
  it has ended, for LXC and the runtimes of OCI.
- :mod:`~slimnet.engines.oci`: what the latter tell it.
"""
