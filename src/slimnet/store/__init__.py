# SPDX-License-Identifier: Apache-2.0
"""Stores: where desired state lives. The contract is :class:`slimnet.abc.Store`;
:func:`slimnet.plugins.open_store` opens one by its URL."""
