# SPDX-License-Identifier: Apache-2.0
"""Values to tables: :class:`slimnet.policy.State` becomes :class:`slimnet.tables.Tables`.

``slimnet.policy.compile`` is the function; this package's modules are imported by name.
"""
