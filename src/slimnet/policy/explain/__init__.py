# SPDX-License-Identifier: Apache-2.0
"""What values and tables mean: the oracle, a flow's explanation, warnings.

``slimnet.policy.explain`` is the function; this package's modules are imported by name.
"""
