# SPDX-License-Identifier: Apache-2.0
"""What one backend keeps in an instance's directory is nothing to the others."""

import pytest

from slimnet.plugins import backend_class, backend_names
from slimnet.testing._stage import CAST, NETWORK, Stage

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.module] if name == "kmod" else [])
        for name in backend_names()
    ],
)
def test_no_other_backend_finds_an_instance(name):
    with Stage(backend_class(name), {}, None) as stage:
        stage.open(0).attach(CAST["client"], NETWORK)
        context = stage.context(0)
        with stage.on(0):
            found = {
                each: backend_class(each).find(context.instance, context.state)
                for each in backend_names()
            }
    assert [each for each, there in found.items() if there is not None] == [name]
