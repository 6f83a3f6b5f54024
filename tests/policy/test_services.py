# SPDX-License-Identifier: Apache-2.0
"""Services, published ports and limits as records."""

from unittest import mock

from attrs import evolve
from netaddr import IPAddress

from slimnet import contract
from slimnet.model import Endpoint, Host, Network, Protocol
from slimnet.policy import Compiler, Selector, State
from slimnet.policy import compile as compile_tables
from slimnet.policy.compile.number import Numbers
from slimnet.policy.document import EgressLimit, PublishedPort, Service, ServicePort, Weight
from slimnet.policy.selector import Operator, Requirement
from slimnet.tables import LimitRecord, PublishKey, PublishRecord, ServiceKey

ADDRESS = IPAddress("10.1.0.100")
KEY = ServiceKey(1, ADDRESS, 6, 80)


def of(**labels):
    """What ``matchLabels`` of these is."""
    return Selector(
        tuple(Requirement(key, Operator.IN, frozenset({value})) for key, value in labels.items())
    )


def service(**changes):
    fields = {
        "name": "web",
        "network": "default",
        "namespace": "shop",
        "address": ADDRESS,
        "selector": of(app="web"),
        "ports": (ServicePort(Protocol.TCP, 80, 8080),),
    }
    return Service(**{**fields, **changes})


def published(name, **changes):
    fields = {
        "network": "default",
        "namespace": "shop",
        "endpoint": "web-1",
        "address": None,
        "protocol": Protocol.TCP,
        "port": 80,
        "target": 8080,
    }
    return PublishedPort(name=name, **{**fields, **changes})


def limit(name, **changes):
    fields = {"network": "default", "namespace": "shop", "subject": Selector()}
    return EgressLimit(name=name, **{**fields, **changes})


def endpoint(number, **changes):
    fields = {
        "host": f"h{2 - number % 2}",
        "namespace": "shop",
        "identity": 300,
        "labels": {"app": "web"},
        "ports": {"http": ("tcp", 8080)},
    }
    fields |= changes
    return Endpoint("default", f"web-{number}", f"10.1.0.{number}", id=number, **fields)


def state(endpoints=None, **documents):
    return State(
        [Network("default", 1, "10.1.0.0/16")],
        [Host("h1", "192.0.2.1"), Host("h2", "192.0.2.2")],
        [],
        [endpoint(number) for number in range(1, 5)] if endpoints is None else endpoints,
        **documents,
    )


def record(world, key=KEY):
    return compile_tables(world, "h1").services[key]


def ids(found):
    return {identifier for identifier, _ in found.slots}


def test_same_on_every_host_whatever_the_order():
    world = state(services=[service()])
    tables = [
        compile_tables(item, host)
        for host in ("h1", "h2")
        for item in (world, evolve(world, endpoints=world.endpoints[::-1]))
    ]
    assert all(item.services == tables[0].services for item in tables)
    assert tables[0].addresses[1, ADDRESS] == contract.SLIM_ADDRESS_SERVICE
    found = tables[0].services[KEY]
    assert found.size == 4
    assert len(found.slots) == contract.SLIM_SERVICE_SLOTS
    assert set(found.slots) == {(number, 8080) for number in range(1, 5)}


def test_slots_are_by_name():
    """Endpoints that were made anew, with other ids, have the slots that they had."""
    renewed = [evolve(item, id=9 - item.id) for item in state().endpoints]
    slots = []
    for endpoints in (state().endpoints, renewed):
        names = {item.id: item.name for item in endpoints}
        found = record(state(endpoints, services=[service()]))
        slots.append([names[identifier] for identifier, _ in found.slots])
    assert slots[0] == slots[1]


def test_twins():
    """Two ports whose names hash to one number: each has one, and whoever stays alone has the
    first, as if there had never been another."""
    both = tuple(ServicePort(Protocol.TCP, port, 8080) for port in (80, 81))
    alone = {port.port: (port,) for port in both}

    def hash_(self, name, again):
        return self._first + again

    with mock.patch.object(Numbers, "_hash", hash_):
        for left in (80, 81):
            compiler = Compiler("h1")
            tables, _ = compiler.update(state(services=[service(ports=both)]))
            assert len({item.id for item in tables.services.values()}) == 2
            rest = state(services=[service(ports=alone[left])])
            assert compiler.update(rest)[0] == compile_tables(rest, "h1")


def test_id_is_of_the_port():
    """It stays when the endpoints change, and no other port has it."""
    ports = (ServicePort(Protocol.TCP, 80, 8080), ServicePort(Protocol.TCP, 81, 8080))
    found = compile_tables(state(services=[service(ports=ports)]), "h1").services
    assert len({item.id for item in found.values()}) == 2
    assert found[KEY].id == record(state([endpoint(1)], services=[service()])).id


def test_who_serves():
    """Of its namespace, on a host that lives, selected, with a weight, and with the port."""
    endpoints = [
        endpoint(1),
        endpoint(2, namespace="other"),
        endpoint(3, host="h9"),
        endpoint(4, labels={"app": "db"}),
        endpoint(5, labels={"app": "web", "old": "yes"}),
        endpoint(6, ports={"http": ("udp", 8080)}),
        endpoint(7, ports={}),
        endpoint(8, ports={"http": ("tcp", 9090)}),
    ]
    endpoints = [evolve(item, identity=300 + item.id) for item in endpoints]
    found = record(
        state(
            endpoints,
            services=[
                service(
                    ports=(ServicePort(Protocol.TCP, 80, "http"),),
                    weights=(Weight(of(old="yes"), 0),),
                )
            ],
        )
    )
    assert set(found.slots) == {(1, 8080), (8, 9090)}


def test_weights():
    """The first that matches counts, and beside it 1."""
    weights = (Weight(of(tier="big"), 8), Weight(Selector(), 2))
    endpoints = [endpoint(1), endpoint(2, labels={"app": "web", "tier": "big"})]
    endpoints[1] = evolve(endpoints[1], identity=301)
    found = record(state(endpoints, services=[service(weights=weights)]))
    big = sum(identifier == 2 for identifier, _ in found.slots)
    assert abs(big / contract.SLIM_SERVICE_SLOTS - 0.8) < 0.002
    found = record(state(endpoints, services=[service(weights=weights[:1])]))
    big = sum(identifier == 2 for identifier, _ in found.slots)
    assert abs(big / contract.SLIM_SERVICE_SLOTS - 8 / 9) < 0.002


def test_nobody_serves():
    """The port is there all the same: it refuses, where an unknown port says so."""
    found = record(state(services=[service(selector=of(app="none"), affinity=60)]))
    assert (found.size, found.slots, found.affinity) == (0, (), 60)


def test_address_that_it_may_not_have():
    """Outside of the network, an endpoint's, or none yet: no service."""
    for address in ("10.2.0.1", "10.1.0.1", None):
        wanted = service(address=address and IPAddress(address))
        tables = compile_tables(state(services=[wanted]), "h1")
        assert not tables.services
        assert contract.SLIM_ADDRESS_SERVICE not in tables.addresses.values()


def test_endpoint_takes_the_address_and_gives_it_back():
    compiler = Compiler("h1")
    before, _ = compiler.update(state(services=[service()]))
    squatter = evolve(endpoint(9), address=ADDRESS)
    endpoints = [endpoint(number) for number in range(1, 5)]
    tables, change = compiler.update(
        evolve(state([*endpoints, squatter], services=[service()]), revision=2)
    )
    assert tables.addresses[1, ADDRESS] == 9
    assert change.gone_services == {KEY}
    assert not change.gone_addresses
    tables, change = compiler.update(evolve(state(services=[service()]), revision=3))
    assert tables == evolve(before, generation=3)
    assert change.set.addresses == {(1, ADDRESS): contract.SLIM_ADDRESS_SERVICE}


def test_two_services_with_one_port():
    """The first by name has it; the other has what nobody else wants."""
    ports = (ServicePort(Protocol.TCP, 80, 1), ServicePort(Protocol.TCP, 81, 1))
    found = compile_tables(state(services=[service(name="z", ports=ports), service()]), "h1")
    assert {key.port: item.slots[0][1] for key, item in found.services.items()} == {80: 8080, 81: 1}


def test_published_where_its_endpoint_lives():
    world = state(published=[published("a"), published("b", endpoint="web-2", target="http")])
    assert compile_tables(world, "h1").published == {
        PublishKey(None, 6, 80): PublishRecord(1, 8080)
    }
    assert compile_tables(world, "h2").published == {
        PublishKey(None, 6, 80): PublishRecord(2, 8080)
    }


def test_published_without_endpoint_or_target():
    world = state(published=[published("a", endpoint="web-9"), published("b", target="ftp")])
    assert not compile_tables(world, "h1").published


def test_published_port_that_two_want():
    """The first by name has it; all addresses meet each single one."""
    one, two = IPAddress("192.0.2.1"), IPAddress("192.0.2.77")

    def had(*addresses):
        documents = [published(f"p{n}", address=a, target=n) for n, a in enumerate(addresses, 1)]
        found = compile_tables(state(published=documents[::-1]), "h1").published
        return {(key.address, item.port) for key, item in found.items()}

    assert had(one, two) == {(one, 1), (two, 2)}
    assert had(one, one) == {(one, 1)}
    assert had(None, one, None) == {(None, 1)}
    assert had(one, None, two) == {(one, 1), (two, 3)}


def test_published_port_that_changes_hands():
    """Who was beaten has it once the other is gone, and is not called beaten any more."""
    first, second = published("a"), published("b", endpoint="web-3")
    name = ("default", "shop", "b")
    compiler = Compiler("h1")
    everybody = state().endpoints
    for endpoints, documents, holder, beaten in (
        (everybody, [first, second], 1, True),
        (everybody, [second], 3, False),
        (everybody, [first, second], 1, True),
        ([endpoint(1)], [first, second], 1, False),
        (everybody, [first, second], 1, True),
        (everybody, [evolve(first, port=81), second], 3, False),
    ):
        tables, _ = compiler.update(state(endpoints, published=documents))
        assert tables.published[PublishKey(None, 6, 80)].endpoint == holder
        assert (name in compiler.published.beaten) is beaten


def test_limits():
    """Of this host's endpoints only; each lowest number, where 0 is none."""
    labels = [{"app": "web"}, {"app": "web"}, {"app": "db"}]
    endpoints = [
        evolve(endpoint(number, labels=item), host="h1", identity=300 + number)
        for number, item in enumerate(labels, 1)
    ]
    endpoints[1] = evolve(endpoints[1], host="h2")
    documents = [
        limit("a", rate=1000),
        limit("b", subject=of(app="web"), rate=2000, connection_rate=50),
        limit("c", subject=of(app="web"), connection_rate=70),
        limit("d", namespace="other", rate=1),
        limit("e"),
    ]
    found = compile_tables(state(endpoints, limits=documents), "h1").limits
    assert found == {1: LimitRecord(1000, 50), 3: LimitRecord(1000, 0)}
    assert not compile_tables(state(endpoints, limits=documents[-1:]), "h1").limits


def test_limit_that_changes():
    """Whom it selects no more is free again; so is everybody when it goes."""
    endpoints = [evolve(endpoint(number), host="h1") for number in (1, 2)]
    endpoints[1] = evolve(endpoints[1], labels={"app": "db"}, identity=301)
    compiler = Compiler("h1")
    for documents, limited in (
        ([limit("a", rate=1)], {1, 2}),
        ([limit("a", rate=1, subject=of(app="db"))], {2}),
        ([limit("a", rate=1, subject=of(app="web"))], {1}),
        ([limit("b", rate=1, subject=of(app="web"))], {1}),
        ([], set()),
    ):
        tables, _ = compiler.update(state(endpoints, limits=documents))
        assert tables.limits.keys() == limited


def test_one_endpoint_touches_its_services_only():
    """Of a hundred namespaces with a service each, one endpoint changes one record."""
    endpoints = [
        evolve(
            endpoint(number % 250 + 1), id=number, name=f"e{number}", namespace=f"n{number % 100}"
        )
        for number in range(1, 201)
    ]
    endpoints = [
        evolve(
            item, identity=300 + item.id % 100, address=f"10.1.{1 + item.id // 250}.{item.id % 250}"
        )
        for item in endpoints
    ]
    services = [
        service(namespace=f"n{number}", address=IPAddress("10.1.200.0") + number)
        for number in range(100)
    ]
    compiler = Compiler("h1")
    compiler.update(state(endpoints, services=services))
    new = evolve(endpoints[6], id=999, name="new", address="10.1.9.9")
    with_new = evolve(state([*endpoints, new], services=services), revision=2)
    _, change = compiler.update(with_new)
    (key,) = change.set.services
    assert key.address == services[7].address
    assert change.set.services[key].size == 3
    _, change = compiler.update(
        evolve(with_new, services=[*services[:-1], evolve(services[-1], affinity=9)], revision=3)
    )
    (key,) = change.set.services
    assert key.address == services[-1].address
    assert not change.set.addresses
