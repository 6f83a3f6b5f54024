# SPDX-License-Identifier: Apache-2.0
"""Real programs between two hosts, and on one."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from lab import PATIENCE

INET6 = socket.AF_INET6

pytestmark = pytest.mark.container


def needs(*programs):
    """What set-up installs; ``None`` or the marks of a test that lacks it."""
    path = "/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    missing = [name for name in programs if shutil.which(name, path=path) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def until(holds, timeout=20.0):
    """Wait for a condition."""
    end = time.monotonic() + timeout * PATIENCE
    while True:
        try:
            if holds():
                return
        except (OSError, RuntimeError):
            pass
        assert time.monotonic() < end, "never came"
        time.sleep(0.05)


def talk(target, *, family=socket.AF_INET, lines):
    """Send lines, the last of which has the far end close; read until then."""
    with socket.socket(family) as sock:
        sock.settimeout(60)
        sock.connect(target)
        sock.sendall("".join(line + "\r\n" for line in lines).encode())
        text = ""
        try:
            while data := sock.recv(65536):
                text += data.decode()
        except TimeoutError:
            pass
    return text


def everywhere(server):
    """The ways to dial it: IPv4, and v4-mapped from an IPv6 socket."""
    return [(socket.AF_INET, server.address), (INET6, f"::ffff:{server.address}")]


@needs("memcached")
def test_memcached(lab, ends):
    client, server = ends
    server.spawn(["memcached", "-u", "nobody", "-p", "11211", "-U", "0", "-l", server.address])
    until(lambda: client.connect(server.address, 11211).close() is None)
    for family, address in everywhere(server):
        answer = client.call(
            talk,
            (address, 11211),
            family=family,
            lines=["set k 0 0 5", "value", "get k", "quit"],
        )
        assert "STORED" in answer
        assert "VALUE k 0 5\r\nvalue\r\nEND" in answer


@needs("memcached")
def test_memcached_on_all_addresses(ends):
    """Its default: a dual-stack or two wildcard listeners."""
    client, server = ends
    server.spawn(["memcached", "-u", "nobody", "-p", "11211", "-U", "0"])
    until(lambda: client.connect(server.address, 11211).close() is None)
    assert "VERSION" in client.call(talk, (server.address, 11211), lines=["version", "quit"])
    assert "VERSION" in server.call(talk, ("127.0.0.1", 11211), lines=["version", "quit"])


@needs("redis-server", "redis-cli")
def test_redis_and_its_replica(lab, ends):
    """A replica binds its source to port 0 and then connects; the master lists
    it by its overlay address."""
    client, master = ends
    replica = lab.endpoint(0)
    options = ["--save", "", "--appendonly", "no", "--protected-mode", "no", "--daemonize", "no"]
    master.spawn(["redis-server", *options, "--port", "6379", "--dir", lab.directory])
    until(lambda: client.connect(master.address, 6379).close() is None)
    replica.spawn(
        ["redis-server", *options, "--port", "6379", "--dir", lab.directory]
        + ["--bind", replica.address, "127.0.0.1", "--replicaof", master.address, "6379"]
        + ["--dbfilename", "replica.rdb", "--repl-diskless-sync-delay", "0"]
    )
    for family, address in everywhere(master):
        text = client.call(
            talk, (address, 6379), family=family, lines=["SET k value", "GET k", "QUIT"]
        )
        assert text == "+OK\r\n$5\r\nvalue\r\n+OK\r\n"
    until(lambda: "master_link_status:up" in replica.run(["redis-cli", "info", "replication"]))
    assert client.run(["redis-cli", "-h", replica.address, "get", "k"]).strip() == "value"
    online = f"ip={replica.address},port=6379,state=online"
    until(lambda: online in client.run(["redis-cli", "-h", master.address, "info", "replication"]))
    listed = client.run(["redis-cli", "-h", master.address, "client", "list"])
    assert f"addr={replica.address}:" in listed
    assert f"laddr={master.address}:6379" in listed
    # The master goes and comes back: the replica finds it again.
    client.run(["redis-cli", "-h", master.address, "client", "kill", "type", "replica"])
    until(lambda: "master_link_status:up" in replica.run(["redis-cli", "info", "replication"]))


@needs("redis-benchmark", "redis-server")
def test_redis_under_load(lab, ends):
    client, server = ends
    server.spawn(["redis-server", "--save", "", "--protected-mode", "no", "--dir", lab.directory])
    until(lambda: client.connect(server.address, 6379).close() is None)
    output = client.run(
        ["redis-benchmark", "-h", server.address, "-t", "set,get", "-n", "5000", "-c", "50", "-q"]
    )
    assert "SET" in output
    assert "GET" in output
    # A connection for each request.
    output = client.run(
        ["redis-benchmark", "-h", server.address, "-t", "ping", "-n", "2000", "-k", "0", "-q"]
    )
    assert "PING" in output


NGINX = """
daemon off;
user nobody nogroup;
worker_processes 2;
error_log stderr;
pid {directory}/{name}.pid;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {directory}/{name}.body;
    proxy_temp_path {directory}/{name}.proxy;
    fastcgi_temp_path {directory}/{name}.fastcgi;
    uwsgi_temp_path {directory}/{name}.uwsgi;
    scgi_temp_path {directory}/{name}.scgi;
    server {{
        {listen}
        location / {{ return 200 "$remote_addr $remote_port $server_addr $server_port\\n"; }}
        location /far {{ proxy_pass http://{upstream}:8080/; }}
    }}
}}
"""


def nginx(lab, endpoint, listen, upstream="127.0.0.1"):
    name = f"nginx-{endpoint.record.name}"
    path = lab.directory / f"{name}.conf"
    path.write_text(
        NGINX.format(directory=lab.directory, name=name, listen=listen, upstream=upstream)
    )
    program = endpoint.spawn(["/usr/sbin/nginx", "-c", path, "-p", lab.directory, "-e", "stderr"])
    time.sleep(0.1)
    assert program.running(), program.output()
    return program


LISTEN = {
    "wildcard": "listen 80;",
    "address": "listen {address}:80;",
    "v6only": "listen [::]:80 ipv6only=on;\n listen 80;",
    "dual stack": "listen [::]:80 ipv6only=off;",
    "reuseport": "listen 80 reuseport backlog=64;",
    "fast open, deferred": "listen 80 fastopen=16 deferred;",
}


@pytest.mark.parametrize("listen", LISTEN)
@needs("nginx")
def test_nginx(lab, ends, listen):
    client, server = ends
    program = nginx(lab, server, LISTEN[listen].format(address=server.address))
    until(lambda: client.connect(server.address, 80).close() is None or not program.running())
    for family, address in everywhere(server):
        for _ in range(5):
            names = client.call(http, (address, 80), family, "/")
            (own, port), (remote, remote_port, local, local_port) = names
            assert (remote, remote_port) == (own, str(port))
            assert (local, local_port) == (server.address, "80")


def http(target, family, path):
    """One request on a connection of its own: our name, and the server's words."""
    with socket.socket(family) as sock:
        sock.settimeout(60)
        sock.connect(target)
        own = sock.getsockname()
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        text = b""
        while data := sock.recv(65536):
            text += data
    words = text.split(b"\r\n\r\n")[1].decode().replace("::ffff:", "").split()
    return (own[0].replace("::ffff:", ""), own[1]), words


@needs("nginx")
def test_nginx_as_a_proxy_and_reload(lab, ends):
    """It connects upstream by itself; a reload keeps the listening socket."""
    client, front = ends
    back = lab.endpoint(1)
    nginx(lab, back, "listen 8080;")
    program = nginx(lab, front, "listen 80;", upstream=back.address)
    until(lambda: client.connect(front.address, 80).close() is None)
    until(lambda: front.connect(back.address, 8080).close() is None)
    _, words = client.call(http, (front.address, 80), socket.AF_INET, "/far")
    assert words[0] == front.address
    assert words[2:] == [back.address, "8080"]
    program.kill(1)  # SIGHUP: new workers inherit the listener
    for _ in range(20):
        _, words = client.call(http, (front.address, 80), socket.AF_INET, "/")
        assert words[0] == client.address
        time.sleep(0.02)


@needs("nginx", "wrk")
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_nginx_under_load(lab, ends, connection):
    client, server = ends
    nginx(lab, server, "listen 80;")
    until(lambda: client.connect(server.address, 80).close() is None)
    output = client.run(
        ["wrk", "-t1", "-c20", "-d2", "-H", f"Connection: {connection}"]
        + [f"http://{server.address}/"]
    )
    assert "Requests/sec" in output
    assert "Socket errors" not in output
    assert "Non-2xx" not in output


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An initialized PostgreSQL cluster that tests copy."""
    binaries = Path("/usr/lib/postgresql/15/bin")
    if not binaries.exists():
        pytest.skip("not installed: postgresql")
    directory = tmp_path_factory.mktemp("postgres")
    for path in (directory, *directory.parents):
        if path == Path(tempfile.gettempdir()):
            break
        path.chmod(0o755)
    shutil.chown(directory, "postgres")
    subprocess.run(
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        + [binaries / "initdb", "-D", directory / "data", "-A", "trust", "-N", "--locale=C"],
        check=True,
        capture_output=True,
        cwd=directory,
    )
    hba = directory / "data" / "pg_hba.conf"
    hba.write_text(
        "local all all trust\n"
        "host all all 10.77.0.0/16 trust\n"
        "host all all 127.0.0.1/32 trust\n"
        "host all all ::1/128 trust\n"
    )
    return binaries, directory


@pytest.mark.parametrize("listen", ["*", "0.0.0.0", "::", "own"])
def test_postgresql(lab, ends, database, listen):
    """pgbench; the access rules are by overlay address; ``*`` is two sockets,
    one of them v6-only."""
    client, server = ends
    binaries, directory = database
    data = lab.directory / f"postgres-{server.record.name}"
    shutil.copytree(directory / "data", data)
    subprocess.run(["chown", "-R", "postgres:", data], check=True)
    data.chmod(0o700)
    where = server.address if listen == "own" else listen
    program = server.spawn(
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        + [binaries / "postgres", "-D", data, "-c", f"listen_addresses={where}"]
        + ["-c", f"unix_socket_directories={lab.directory}", "-c", "fsync=off"]
    )
    try:
        program.ready("ready to accept connections")
        if listen == "::":
            with pytest.raises(ConnectionRefusedError):
                client.connect(server.address, 5432)
            assert server.run(["psql", "-h", "::1", "-U", "postgres", "-Atc", "select 7"]) == "7\n"
            return
        query = "select inet_client_addr(), inet_client_port() > 0, inet_server_addr()"
        for _, address in everywhere(server)[:1]:
            row = client.run(["psql", "-h", address, "-U", "postgres", "-Atc", query])
            assert row.strip() == f"{client.address}|t|{server.address}"
        client.run(["pgbench", "-h", server.address, "-U", "postgres", "-i", "-q", "postgres"])
        output = client.run(
            ["pgbench", "-h", server.address, "-U", "postgres", "-c", "4", "-t", "50", "postgres"]
        )
        assert "number of transactions actually processed: 200/200" in output
        output = client.run(
            ["pgbench", "-C", "-S", "-h", server.address, "-U", "postgres", "-c", "4", "-t", "25"]
            + ["postgres"]
        )
        assert "number of transactions actually processed: 100/100" in output
    finally:
        program.kill(3)
        program.wait()
        shutil.rmtree(data)


@needs("iperf3")
def test_iperf3(ends):
    client, server = ends
    program = server.spawn(["iperf3", "-s", "-1", "--forceflush"])
    program.ready("Server listening")
    output = client.run(["iperf3", "-c", server.address, "-t", "1", "-P", "4"])
    assert f"connected to {server.address} port 5201" in output
    assert "iperf Done" in output


def test_python_http_server_and_urllib(ends):
    """A forking, dual-stack server of the standard library."""
    client, server = ends
    program = server.spawn(
        [sys.executable, "-u", "-m", "http.server", "8000", "--directory", Path(__file__).parent]
    )
    program.ready("Serving HTTP")
    assert client.call(_fetch, f"http://{server.address}:8000/conftest.py").startswith("# SPDX")
    until(lambda: f"{client.address} - - " in program.output())


def _fetch(url):
    import urllib.request

    return urllib.request.urlopen(url, timeout=10).read().decode()


def test_ones_own_address_by_a_datagram_socket(lab, ends):
    """As programs find it that would tell others where they are."""
    client, server = ends
    sock = client.socket(kind=socket.SOCK_DGRAM)
    for target in (server.address, lab.outside.address, server.address):
        sock.connect((target, 9))
        assert sock.getsockname()[0] == client.address
        assert sock.getpeername() == (target, 9)
        client.disconnect(sock)
