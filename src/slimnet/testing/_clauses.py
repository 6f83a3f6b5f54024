# SPDX-License-Identifier: Apache-2.0
"""The clauses: each takes a stage that nothing has happened on."""

from slimnet.testing import _clauses_features, _clauses_life, _clauses_policy
from slimnet.testing._expectations import CLAUSES

__all__ = ["CLAUSES"]

# Importing them is what puts them on the list.
del _clauses_features, _clauses_life, _clauses_policy
