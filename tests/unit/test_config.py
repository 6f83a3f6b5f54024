# SPDX-License-Identifier: Apache-2.0
"""The configuration: what it says, and what it says when it is wrong."""

import os

import pytest
from netaddr import IPAddress

from slimnet import ConfigError, load_config
from slimnet.config import Config


@pytest.fixture
def write(tmp_path):
    def write(text, name="slimnet.toml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_everything(write):
    path = write(
        """
        instance = "one"
        host = "alpha"
        store = "sqlite:///tmp/store.db"
        key_file = "/tmp/key"
        lease = 3
        [underlay]
        address = "192.0.2.1"
        interface = "eth0"
        [log]
        level = "debug"
        [labels]
        zone = "a"
        "example.com/rack" = "7"
        [backend]
        name = "noop"
        [backend.noop]
        port = 4800
        """
    )
    config = load_config(path)
    assert config.path == path
    assert (config.instance, config.host, config.backend) == ("one", "alpha", "noop")
    assert config.store == "sqlite:///tmp/store.db"
    assert str(config.key_file) == "/tmp/key"
    assert config.lease == 3.0
    assert config.underlay.address == IPAddress("192.0.2.1")
    assert config.underlay.interface == "eth0"
    assert config.level == "debug"
    assert dict(config.labels) == {"zone": "a", "example.com/rack": "7"}
    assert {name: dict(table) for name, table in config.options.items()} == {"noop": {"port": 4800}}
    assert str(config.socket) == "/run/slimnet/one/agent.sock"


def test_nothing_is_the_defaults(write):
    path = write("")
    assert load_config(path) == Config(path=path)
    assert load_config(path).backend == "auto"


def test_backend_as_text(write):
    assert load_config(write('backend = "ebpf"')).backend == "ebpf"


def test_named_file_has_to_be_there(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.toml: wanted a readable file"):
        load_config(tmp_path / "nowhere.toml")


def test_file_from_the_environment(write, monkeypatch):
    monkeypatch.setenv("SLIMNET_CONFIG", str(write('host = "beta"')))
    assert load_config().host == "beta"


def test_conf_d_is_merged_in_order(write):
    path = write('host = "a"\nlease = 5\n[backend.noop]\nport = 1')
    write('host = "b"\n[backend.noop]\nport = 2', "conf.d/10-first.toml")
    write('host = "c"\n[underlay]\ninterface = "eth9"', "conf.d/20-second.toml")
    write('host = "z"', "conf.d/README")
    config = load_config(path)
    assert (config.host, config.lease, config.underlay.interface) == ("c", 5.0, "eth9")
    assert config.options["noop"]["port"] == 2


def test_error_names_the_file_that_is_wrong(write):
    path = write('host = "a"')
    write("lease = 0", "conf.d/10-lease.toml")
    with pytest.raises(ConfigError, match=r"10-lease\.toml: lease: wanted seconds"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = [", "wanted TOML"),
        ('bakend = "ebpf"', "bakend: wanted one of: .*did you mean 'backend'"),
        ("[underlay]\nadress = 1", "underlay.adress: .*did you mean 'underlay.address'"),
        ('backend = "epbf"', "backend: wanted one of: auto, .*did you mean 'ebpf'.*got 'epbf'"),
        ("backend = 3", "backend: wanted one of: auto"),
        ("[backend.epbf]\nx = 1", "backend.epbf: wanted one of: .*did you mean 'ebpf'"),
        ("[backend]\nebpf = 3", "backend.ebpf: wanted a table of options, got 3"),
        ('instance = "testbed"', "instance: wanted another name than 'testbed', got 'testbed'"),
        ('instance = "a/b"', "instance: wanted lower-case letters.*got 'a/b'"),
        ('host = ""', "host: wanted lower-case"),
        ('host = "Alpha"', "host: wanted lower-case"),
        ("host = 7", "host: wanted lower-case"),
        ('store = "sqlit:///x"', "store: wanted a URL.*did you mean 'sqlite://'"),
        ('store = "/var/lib/x"', "store: wanted a URL"),
        ('key_file = "key"', "key_file: wanted an absolute path, got 'key'"),
        ("lease = true", "lease: wanted seconds, 1 to 3600, got True"),
        ("lease = 0.5", "lease: wanted seconds"),
        ('[underlay]\naddress = "eth0"', "underlay.address: wanted this host's IP address"),
        ('[underlay]\naddress = "127.0.0.1"', "underlay.address: wanted"),
        ("[underlay]\naddress = 3", "underlay.address: wanted"),
        ('[underlay]\ninterface = ""', "underlay.interface: wanted an interface's name"),
        ('underlay = "eth0"', "underlay: wanted a table"),
        ('[log]\nlevel = "inf"', "log.level: wanted one of: .*did you mean 'info'"),
        (
            '[engines]\nwithout_agent = "latr"',
            "engines.without_agent: wanted .*did you mean 'later'",
        ),
        ("engines = 1", "engines: wanted a table"),
        ("[labels]\nzone = 1", "labels.zone: wanted a Kubernetes label, got 1"),
        ('[labels]\n"-" = "a"', "labels.-: wanted a Kubernetes label"),
    ],
)
def test_wrong(write, text, said):
    """One line that names file, field, what was wanted and what came."""
    path = write(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_what_is_found_wrong_later_is_located_too(write):
    """A value that is wrong on this host only: by the file that has it, else the main one."""
    path = write("host = 'a'\n[underlay]\ninterface = 'eth0'\n[backend.noop]\nport = 5")
    more = write("[underlay]\naddress = '192.0.2.1'", "conf.d/10-more.toml")
    config = load_config(path)
    for field, file in (
        ("underlay.address", more),
        ("underlay.interface", path),
        ("underlay", path),
        ("backend.noop.port", path),
        ("key_file", path),
    ):
        located = config.located(ConfigError(field, "another", "x"))
        assert str(located) == f"{file}: {field}: wanted another, got 'x'"
    assert str(Config().located(ConfigError("key_file", "x", "y"))).startswith("key_file: wanted")
    assert config == load_config(path)


def test_not_utf8(tmp_path):
    (tmp_path / "slimnet.toml").write_bytes(b"host = '\xff'")
    with pytest.raises(ConfigError, match="wanted TOML"):
        load_config(tmp_path / "slimnet.toml")


def test_a_directory(tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path}: wanted a readable file"):
        load_config(os.fspath(tmp_path))
