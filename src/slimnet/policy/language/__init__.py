# SPDX-License-Identifier: Apache-2.0
"""Documents to values: manifests are read, checked and become ``slimnet.policy``'s values."""
