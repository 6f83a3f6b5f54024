# SPDX-License-Identifier: Apache-2.0
"""What [store.etcd] may say; nobody is asked for it."""

import pytest

from slimnet.config import load_config
from slimnet.exceptions import ConfigError
from slimnet.plugins import open_store
from slimnet_etcd import EtcdStore
from slimnet_etcd._settings import Settings

ONE = {"endpoints": ["192.0.2.1:2379"]}


def test_url_alone():
    read = Settings.read("etcd://192.0.2.1:2379,[2001:db8::1]:1,store.example:9/a/b", {})
    assert read.endpoints == ("192.0.2.1:2379", "[2001:db8::1]:1", "store.example:9")
    assert read.prefix == "a/b/"
    assert read.url == "etcd://192.0.2.1:2379,[2001:db8::1]:1,store.example:9/a/b"


def test_table_alone():
    read = Settings.read("etcd://", {**ONE, "prefix": "/cluster/", "timeout": 2})
    assert (read.endpoints, read.prefix, read.timeout) == (("192.0.2.1:2379",), "/cluster/", 2.0)
    assert Settings.read("etcd://", ONE).prefix == "slimnet/"


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("etcd:", {}, "store: wanted etcd://"),
        ("etcd://", {}, "store.etcd.endpoints: wanted a list of host:port, got nothing"),
        ("etcd://", {"endpoints": []}, "store.etcd.endpoints: wanted a list of host:port"),
        ("etcd://", {"endpoints": "a:1"}, "store.etcd.endpoints: wanted a list of host:port"),
        ("etcd://", {"endpoints": ["a:1", 2]}, "store.etcd.endpoints: .* got 2"),
        ("etcd://", {"endpoints": ["http://a:1"]}, "store.etcd.endpoints: .* got 'http://a:1'"),
        ("etcd://", {"endpoints": ["a:0"]}, "store.etcd.endpoints: .* got 'a:0'"),
        ("etcd://", {"endpoints": ["a:65536"]}, "store.etcd.endpoints: .* got 'a:65536'"),
        ("etcd://", {"endpoints": ["a"]}, "store.etcd.endpoints: .* got 'a'"),
        ("etcd://a:1,b", {}, "store: wanted a list of host:port, got 'b'"),
        ("etcd://a:1", ONE, "store.etcd.endpoints: wanted nothing, for the store's URL has them"),
        ("etcd://a:1/p", {"prefix": "q"}, "store.etcd.prefix: wanted nothing, for the store's URL"),
        ("etcd://", {**ONE, "prefix": ""}, "store.etcd.prefix: wanted a prefix of keys"),
        ("etcd://", {**ONE, "prefix": 3}, "store.etcd.prefix: wanted a prefix of keys"),
        ("etcd://", {**ONE, "prefix": "a\0b"}, "store.etcd.prefix: wanted a prefix of keys"),
        ("etcd://", {**ONE, "prefixes": "a"}, "store.etcd.prefixes: .* did you mean 'prefix'"),
        ("etcd://", {**ONE, "timeout": 0}, "store.etcd.timeout: wanted seconds, 0.5 to 60, got 0"),
        ("etcd://", {**ONE, "timeout": True}, "store.etcd.timeout: wanted seconds"),
        ("etcd://", {**ONE, "user": ""}, "store.etcd.user: wanted a user's name"),
        ("etcd://", {**ONE, "user": "u"}, "store.etcd.password_file: wanted a file"),
        ("etcd://", {**ONE, "password_file": "/x"}, "store.etcd.user: wanted a user's name"),
        ("etcd://", {**ONE, "ca": "ca.pem"}, "store.etcd.ca: wanted a file's absolute path"),
        ("etcd://", {**ONE, "ca": "/none"}, "store.etcd.ca: wanted a readable file .No such file"),
        ("etcd://", {**ONE, "ca": "/"}, "store.etcd.ca: wanted a readable file .Is a directory"),
        ("etcd://", {**ONE, "ca": "/etc/hostname"}, "store.etcd.ca: wanted certificates in PEM"),
        ("etcd://", {**ONE, "cert": "/etc/hostname"}, "store.etcd.ca: wanted the authority's"),
    ],
)
def test_wrong(url, options, said):
    """One line that names the field."""
    with pytest.raises(ConfigError, match=f"^{said}") as caught:
        EtcdStore.open(url, options)
    assert "\n" not in str(caught.value)


def test_wrong_certificates(authority):
    one, other = authority("one"), authority("other")
    (cert, key), (_, foreign) = one.sign("client"), other.sign("client")
    base = {**ONE, "ca": one.ca, "cert": cert, "key": key}
    assert Settings.read("etcd://", base).cert
    for changed, said in (
        ({"key": foreign}, "store.etcd.key: wanted the certificate's private key in PEM"),
        ({"key": one.ca}, "store.etcd.key: wanted the certificate's private key in PEM"),
        ({"cert": key}, "store.etcd.cert: wanted a certificate in PEM"),
        ({"key": None}, "store.etcd.key: wanted a file's absolute path"),
    ):
        with pytest.raises(ConfigError, match=f"^{said}"):
            Settings.read("etcd://", {**base, **changed})
    for missing in ("cert", "key"):
        rest = {name: value for name, value in base.items() if name != missing}
        with pytest.raises(ConfigError, match=f"^store.etcd.{missing}: wanted a file"):
            Settings.read("etcd://", rest)


def test_password_in_no_message(tmp_path):
    file = tmp_path / "password"
    for content, said in ((b"\n", "a password in it"), (b"\xff", "text in UTF-8")):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=f"^store.etcd.password_file: wanted {said}"):
            Settings.read("etcd://", {**ONE, "user": "u", "password_file": str(file)})
    file.write_text("secret\n")
    read = Settings.read("etcd://", {**ONE, "user": "u", "password_file": str(file)})
    assert read.password == "secret"
    assert "secret" not in repr(read)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ('[store.etcd]\nendpoints = ["127.0.0.1:1"]', "etcd://"),
        ('store.url = "etcd://127.0.0.1:1/p"\n[store.etcd]\ntimeout = 0.5', "etcd://127.0.0.1:1/p"),
        ('store.etcd.endpoints = ["127.0.0.1:1"]\nstore.url = "etcd://"', "etcd://"),
        ('store = "etcd://127.0.0.1:1"', "etcd://127.0.0.1:1"),
    ],
)
def test_configuration(tmp_path, text, url):
    """Each way to write it leads to the same server, where nobody is."""
    file = tmp_path / "slimnet.toml"
    file.write_text(text)
    config = load_config(file)
    assert config.store == url
    with pytest.raises(ConnectionError, match="store etcd://127.0.0.1:1/.*refused$"):
        open_store(config.store, config.store_options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[store.etc]\na = 1", "store.etc: wanted one of: etcd, sqlite; did you mean 'etcd'"),
        ('store.url = "etc://x"', "store: wanted a URL, one of: etcd://, sqlite://"),
        ("store.etcd = 3", "store.etcd: wanted a table of options, got 3"),
        ("store.url = 3", "store: wanted a URL"),
    ],
)
def test_wrong_configuration(tmp_path, text, said):
    file = tmp_path / "slimnet.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"slimnet.toml: {said}"):
        load_config(file)


def test_wrong_option_is_located(tmp_path):
    """The file that has it is named, as for every other key."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "slimnet.toml").write_text("")
    part = tmp_path / "conf.d/store.toml"
    part.write_text('[store.etcd]\nendpoints = ["a"]')
    config = load_config(tmp_path / "slimnet.toml")
    with pytest.raises(ConfigError) as caught:
        open_store(config.store, config.store_options)
    assert str(config.located(caught.value)).startswith(f"{part}: store.etcd.endpoints: wanted")


def test_sqlite_takes_no_options(tmp_path):
    with pytest.raises(ConfigError, match="^store.sqlite.mode: wanted no options"):
        open_store(f"sqlite://{tmp_path}/store.db", {"mode": 1})
