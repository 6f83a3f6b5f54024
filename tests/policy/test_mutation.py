# SPDX-License-Identifier: Apache-2.0
"""Small breaks of decide.h and service.h: each must be caught.

Those of decide.h by the comparison with the oracle, those of service.h by that or by the
checks of what it promises (test_pick.py).
"""

import shutil

import pytest
from decide import KERNEL, Library
from hypothesis import HealthCheck, Phase, given, settings
from test_oracle import check_world
from test_pick import CHECKS
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


SERVICE_MUTATIONS = {
    "chance does not choose": ("client, random)]", "client, 0)]"),
    "clients do not choose": ("service ^ random) + client", "service ^ random)"),
    "all services alike": ("slim_service_mix(service ^ random)", "slim_service_mix(random)"),
    "half of the slots": (") >> 32;", ") >> 33;"),
    "affinity is ignored": ("if (!service->affinity)", "if (1)"),
    "affinity for everybody": ("if (!service->affinity)", "if (0)"),
    "somebody where nobody is": ("if (!service->size)", "if (0)"),
    "clients are forgotten": ("	slim_affinity_store(env, &key, &fresh);\n", ""),
    "another endpoint is remembered": (
        "fresh.endpoint = backend->endpoint",
        "fresh.endpoint = service->slots[0].endpoint",
    ),
    "connects do not renew": (
        "	slim_affinity_store(env, &key, &fresh);",
        "	if (!held)\n		slim_affinity_store(env, &key, &fresh);",
    ),
    "clients stay for ever": ("SLIM_SECOND >= now", "SLIM_SECOND >= 0"),
    "clients never stay": ("SLIM_SECOND >= now", "SLIM_SECOND < now"),
    "the clock wraps": (
        "held->time + service->affinity * SLIM_SECOND >= now",
        "now - held->time <= service->affinity * SLIM_SECOND",
    ),
    "the second is short": ("1000000000ULL", "999999999ULL"),
    "nobody is found again": ("if (last < SLIM_SERVICE_SLOTS)", "if (0)"),
    "services share clients": (".service = service->id, .client", ".service = 0, .client"),
    "clients share a place": (".client = client }", ".client = 0 }"),
}


def broken_library(mutation, directory):
    """The library with the one header that says ``before`` saying ``after``."""
    before, after = mutation
    headers = directory / "uapi"
    shutil.copytree(KERNEL / "uapi", headers)
    texts = {header: header.read_text() for header in (headers / "slimnet").iterdir()}
    ((header, text),) = [found for found in texts.items() if before in found[1]]
    assert text.count(before) == 1
    header.write_text(text.replace(before, after))
    return Library(directory, headers, "-Wno-error")


@settings(
    max_examples=400,
    phases=[Phase.generate],
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(worlds())
def agree(library, world):
    check_world(world, library, broken=True)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_decision_is_caught(mutation, tmp_path):
    """A header that decides otherwise does not pass."""
    broken = broken_library(MUTATIONS[mutation], tmp_path)
    with pytest.raises(AssertionError):
        agree(broken)


@pytest.mark.parametrize("mutation", SERVICE_MUTATIONS)
def test_broken_choice_is_caught(mutation, tmp_path):
    """A header that chooses otherwise does not pass."""
    broken = broken_library(SERVICE_MUTATIONS[mutation], tmp_path)
    with pytest.raises(AssertionError):
        for check in CHECKS:
            check(broken)
        agree(broken)
