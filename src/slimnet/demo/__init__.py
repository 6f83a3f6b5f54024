# SPDX-License-Identifier: Apache-2.0
"""The demo: real programs between two hosts, three ways, compared.

Run by ``testbed/demo``; ``python -m slimnet.demo --help`` says what it can do.

- :mod:`~slimnet.demo.mode`: the three ways, and a fresh pair of hosts for each.
- :mod:`~slimnet.demo.side`: where a program runs, and how it is started there.
- :mod:`~slimnet.demo.workload`, ``workloads/``: what runs.
- :mod:`~slimnet.demo.setting`: how long, how often, on which processors.
- :mod:`~slimnet.demo.schedule`: in which order.
- :mod:`~slimnet.demo.sample`: one measurement.
- :mod:`~slimnet.demo.profile`: what slimnet's BPF programs take.
- :mod:`~slimnet.demo.report`: medians, ratios, targets; then
  :mod:`~slimnet.demo.table`, :mod:`~slimnet.demo.picture` and
  :mod:`~slimnet.demo.page` show it.
"""
