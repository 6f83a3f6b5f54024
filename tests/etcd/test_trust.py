# SPDX-License-Identifier: Apache-2.0
"""TLS, users and permissions, with servers that want them."""

import pytest
from servers import etcdctl, own_address

from slimnet.exceptions import ConfigError, StoreUnreachable
from slimnet_etcd import EtcdStore


@pytest.fixture
def secure(serve, authority):
    """A server that wants a certificate of the clients, and what a good client has."""
    ours = authority("ours")
    cert, key = ours.sign("server", f"IP:{own_address()}")
    options = [
        *(f"--cert-file={cert}", f"--key-file={key}"),
        *(f"--trusted-ca-file={ours.ca}", "--client-cert-auth"),
    ]
    server = serve(scheme="https", options=options)
    cert, key = ours.sign("client")
    return server, {"ca": ours.ca, "cert": cert, "key": key}


def refused(server, options):
    with pytest.raises(ConfigError) as caught:
        EtcdStore.open(server.url, {"timeout": 5, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tls_with_certificates(secure):
    server, options = secure
    with EtcdStore.open(server.url, options) as store:
        revision = store.transact(put={"a": b"1"})
        assert store.get("a") == (b"1", revision)
        events, _ = store.watch("a", after=revision - 1, timeout=5)
        assert len(events) == 1


def test_wrong_certificates(secure, authority):
    server, options = secure
    foreign = authority("foreign")
    cert, key = foreign.sign("client")
    said = refused(server, {**options, "ca": foreign.ca})
    assert said.startswith("store.etcd.ca: wanted what signed the certificate (")
    assert said.endswith(repr(foreign.ca))
    said = refused(server, {**options, "cert": cert, "key": key})
    assert said.startswith("store.etcd.cert: wanted a certificate that pleases (")
    assert said.endswith(repr(cert))
    said = refused(server, {"ca": options["ca"]})
    assert said.startswith("store.etcd.cert: wanted a certificate that pleases (")
    assert said.endswith("got nothing")
    said = refused(server, {})
    assert said.startswith("store.etcd.ca: wanted the authority (it speaks TLS) of")


def test_certificate_of_another_server(serve, authority):
    ours = authority("ours")
    cert, key = ours.sign("server", "DNS:elsewhere.example")
    server = serve(scheme="https", options=[f"--cert-file={cert}", f"--key-file={key}"])
    said = refused(server, {"ca": ours.ca})
    assert said.startswith("store.etcd.ca: wanted what signed the certificate (IP address mismatch")


def test_server_without_tls(server, authority):
    said = refused(server, {"ca": authority("ours").ca})
    assert said.startswith("store.etcd.ca: wanted nothing, as TLS is not the language of")


@pytest.fixture
def users(server, tmp_path):
    """A server with users; answers with the options of one, who may use the prefix slimnet/."""
    for words in (
        ("user", "add", "root:root"),
        ("user", "grant-role", "root", "root"),
        ("role", "add", "net"),
        ("role", "grant-permission", "net", "readwrite", "--prefix", "slimnet/"),
        ("user", "add", "net:secret"),
        ("user", "grant-role", "net", "net"),
        ("auth", "enable"),
    ):
        etcdctl(server, *words)
    file = tmp_path / "password"
    file.write_text("secret\n")
    return {"user": "net", "password_file": str(file)}


def test_user_and_password(server, users):
    """A token that the server has forgotten is asked for again."""
    with EtcdStore.open(server.url, users) as store:
        revision = store.transact(put={"a": b"1"})
        assert store.get("a") == (b"1", revision)
        lease = store.lease(60)
        server.kill(0)
        server.start()
        assert store.get("a") == (b"1", revision)
        assert store.transact(put={"b": b"1"}, leases={"b": lease}) > revision
        events, _ = store.watch("", after=revision, timeout=5)
        assert [each.key for each in events] == ["b"]
        store.renew(lease)
        etcdctl(server, "role", "add", "another", options=["--user=root:root"])
        assert store.get("a") == (b"1", revision), "the users have changed since"


def test_wrong_user_password_and_prefix(server, users, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("guess")
    said = refused(server, {**users, "password_file": str(wrong)})
    assert said.startswith("store.etcd.password_file: wanted the password of user net")
    assert "guess" not in said
    said = refused(server, {**users, "user": "nobody"})
    assert said.startswith("store.etcd.password_file: wanted the password of user nobody")
    said = refused(server, {})
    assert said == "store.etcd.user: wanted a user, as the servers know some, got nothing"
    elsewhere = f"etcd://{server.endpoints[0]}/elsewhere"
    with pytest.raises(ConfigError, match="^store.etcd.prefix: wanted a prefix that user net may"):
        EtcdStore.open(elsewhere, users)


def test_user_of_a_server_without(server, tmp_path):
    file = tmp_path / "password"
    file.write_text("x")
    said = refused(server, {"user": "net", "password_file": str(file)})
    assert said == "store.etcd.user: wanted nothing, as the servers know no users, got 'net'"


def test_permission_that_was_taken_away(server, users):
    """Later it is an outage like every other: the data path stays as it was."""
    with EtcdStore.open(server.url, users) as store:
        _, start = store.list("")
        root = ["--user=root:root"]
        etcdctl(server, "role", "revoke-permission", "net", "slimnet/", "slimnet0", options=root)
        for call in (
            lambda: store.get("a"),
            lambda: store.transact(put={"a": b"1"}),
            lambda: store.watch("a", after=start, timeout=0),
        ):
            with pytest.raises(StoreUnreachable, match="permission denied"):
                call()
