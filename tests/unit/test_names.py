# SPDX-License-Identifier: Apache-2.0
"""One grammar for names, wherever one is said."""

import pytest

from slimnet.exceptions import InvalidValue
from slimnet.model import Endpoint
from slimnet.names import find, is_label


def endpoint(name, namespace="default", network="prod", address="10.1.0.1"):
    return Endpoint(network=network, name=name, namespace=namespace, address=address, host="h1")


WEB, SHOP = endpoint("web"), endpoint("web", "shop", address="10.1.0.2")
CART, TILL = endpoint("cart", "shop"), endpoint("cart", "till")
DB, OTHER = endpoint("db", network="lab"), endpoint("db", "prod", network="lab")
EVERY = [WEB, SHOP, CART, TILL, DB, OTHER]


@pytest.mark.parametrize(
    ("text", "network", "found"),
    [
        ("web", None, WEB),
        ("web", "prod", WEB),
        ("web", "lab", None),
        ("default/web", None, WEB),
        ("shop/web", None, SHOP),
        ("shop/web", "prod", SHOP),
        ("prod/shop/web", None, SHOP),
        ("prod/default/web", "lab", None),
        ("db", None, DB),
        ("lab/default/db", None, DB),
        ("prod/db", None, OTHER),
        ("10.1.0.2", None, SHOP),
        ("shop/10.1.0.2", None, SHOP),
        ("10.9.9.9", None, None),
        ("10.0.0.0/8", None, None),
        ("nobody", None, None),
    ],
)
def test_who_is_named(text, network, found):
    assert find(EVERY, text, network) is found


def test_what_lists_show_is_a_name():
    """``network/name`` is short for namespace ``default``; a namespace of that name goes first."""
    assert find([WEB, DB], "lab/db") is DB
    assert find([WEB, DB, endpoint("db", "lab")], "lab/db") == endpoint("db", "lab")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cart", "one of prod/shop/cart, prod/till/cart"),
        ("prod/cart", "one of prod/shop/cart, prod/till/cart"),
        ("10.1.0.1", "one of prod/default/web, prod/shop/cart"),
        ("lab/db", "one of lab/default/db, lab/prod/db"),
    ],
)
def test_several_are_named_so(text, wanted):
    with pytest.raises(InvalidValue, match=f"--to: wanted {wanted}"):
        find(EVERY, text, field="--to")


@pytest.mark.parametrize("text", ["", "/", "/web", "web/", "prod//web", "a/b/c/web"])
def test_no_name_at_all(text):
    with pytest.raises(InvalidValue, match=r"wanted \[\[network/\]namespace/\]name or an address"):
        find(EVERY, text)


@pytest.mark.parametrize(
    ("key", "value", "holds"),
    [
        ("app", "web", True),
        ("app", "", True),
        ("example.org/app", "A_1.b-C", True),
        ("a" * 63, "b" * 63, True),
        ("a" * 64, "", False),
        ("app", "b" * 64, False),
        ("", "web", False),
        ("a b", "web", False),
        ("-", "web", False),
        ("Example.org/app", "web", False),
        ("/app", "web", False),
        ("app", "web-", False),
        ("app", "web\n", False),
        ("app", 1, False),
        (1, "web", False),
    ],
)
def test_labels_are_kubernetes(key, value, holds):
    """Labels and Selectors, Syntax and character set."""
    assert is_label(key, value) == holds
