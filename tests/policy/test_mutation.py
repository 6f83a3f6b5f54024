# SPDX-License-Identifier: Apache-2.0
"""Small breaks of decide.h: each must be caught by the comparison with the oracle."""

import shutil

import pytest
from decide import KERNEL, Library
from hypothesis import HealthCheck, Phase, given, settings
from test_oracle import check_world
from worlds import worlds

MUTATIONS = {
    "an endpoint does not reach itself": ("if (query->self)", "if (0)"),
    "every host is reached": ("if (query->host &&", "if (0 &&"),
    "everybody is a host": ("if (query->host &&", "if (1 &&"),
    "hosts are guarded for ingress": (
        "query->host && query->direction == SLIM_EGRESS",
        "query->host",
    ),
    "any peer is never asked": ("key.peer = SLIM_IDENTITY_ANY;", ";"),
    "ports are not compared": (
        ".prefixlen = SLIM_PREFIX_PORT",
        ".prefixlen = SLIM_PREFIX_ANY_PORT",
    ),
    "the other direction": (".direction = query->direction", ".direction = !query->direction"),
    "one protocol for all": (".protocol = query->protocol", ".protocol = 6"),
    "the port's bytes swapped": (".port = query->port", ".port = __builtin_bswap16(query->port)"),
    "subject and peer swapped": (
        ".subject = slim_htobe32(query->subject)",
        ".subject = slim_htobe32(query->peer)",
    ),
    "identities in host order": (
        "#define slim_htobe32(x) ((slim_force __be32)__builtin_bswap32(x))",
        "#define slim_htobe32(x) (x)",
    ),
    "denied where nothing is said": (
        "{ SLIM_ALLOW, SLIM_REASON_DEFAULT_ALLOW, 0 }",
        "{ SLIM_DENY, SLIM_REASON_DEFAULT_ALLOW, 0 }",
    ),
    "always allowed": ("{ entry->action, entry->reason", "{ SLIM_ALLOW, entry->reason"),
    "the rule forgotten": ("entry->reason, entry->rule", "entry->reason, 0"),
    "hosts are asked before names": (
        "	entry = slim_policy_lookup(env, &key);\n	if (!entry) {",
        "	entry = query->host ? NULL : slim_policy_lookup(env, &key);\n	if (!entry) {",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_header_is_caught(mutation, tmp_path, library):
    """A header that decides otherwise does not pass."""
    before, after = MUTATIONS[mutation]
    headers = tmp_path / "uapi"
    shutil.copytree(KERNEL / "uapi", headers)
    header = headers / "slimnet" / "decide.h"
    text = header.read_text()
    assert text.count(before) == 1
    header.write_text(text.replace(before, after))
    broken = Library(tmp_path, headers, "-Wno-error")

    @settings(
        max_examples=400,
        phases=[Phase.generate],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(worlds())
    def agree(world):
        check_world(world, broken, broken=True)

    with pytest.raises(AssertionError):
        agree()
