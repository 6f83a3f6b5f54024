# SPDX-License-Identifier: Apache-2.0
"""The fallback overlay (design, section 5): an ordinary routed VXLAN."""
