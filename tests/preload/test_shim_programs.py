# SPDX-License-Identifier: Apache-2.0
"""Programs as Debian ships them, between two hosts: each sees overlay addresses."""

import json
import os
import shutil
import signal
import sys
import textwrap
import time

import pytest

pytestmark = pytest.mark.root


def needs(*names: str) -> None:
    for name in names:
        if not shutil.which(name):
            pytest.skip(f"no {name}")


def until(two, *words: str) -> str:
    """What a client says once the server is there."""
    deadline = time.monotonic() + 20
    while True:
        client = two.popen(2, list(words))
        out, err = client.communicate(timeout=20)
        if not client.returncode:
            return out.decode()
        assert time.monotonic() < deadline, err.decode()
        time.sleep(0.2)


@pytest.mark.parametrize("listen", ["80", "80 reuseport", "[::]:80 ipv6only=off"])
def test_nginx_and_curl(two, tmp_path, listen):
    """Four workers, with one queue and with one each. A dual-stack socket has mapped names."""
    needs("nginx", "curl")
    (tmp_path / "conf").write_text(
        textwrap.dedent(f"""
        worker_processes 4; pid {tmp_path}/pid; daemon off; user root;
        events {{ }}
        http {{
            access_log off;
            server {{ listen {listen}; location / {{ return 200 "$remote_addr $server_addr "; }} }}
        }}
        """)
    )
    two.popen(1, ["nginx", "-c", str(tmp_path / "conf"), "-e", "stderr"])
    until(two, "curl", "-sS", "http://10.1.0.1/")
    urls = ["http://10.1.0.1/"] * 20
    said = two.run(2, "curl", "-sS", "-H", "Connection: close", *urls)
    said = said.replace("::ffff:", "").split()
    assert said == ["10.1.0.2", "10.1.0.1"] * 20


def test_nginx_is_upgraded(two, tmp_path):
    """USR2 starts a new binary with the old one's listener, and QUIT ends the old one: it is
    the endpoint's all the time, and each knows who connects."""
    needs("nginx", "curl")
    old, new = tmp_path / "pid.oldbin", tmp_path / "pid"
    (tmp_path / "conf").write_text(
        textwrap.dedent(f"""
        worker_processes 2; pid {new}; user root;
        events {{ }}
        http {{
            access_log off;
            server {{ listen 80; location / {{ return 200 "$remote_addr $server_addr $pid "; }} }}
        }}
        """)
    )
    try:
        # By its path, for nginx looks for its own binary nowhere else.
        two.run(1, shutil.which("nginx"), "-c", tmp_path / "conf", "-e", tmp_path / "log")
        curl = ("curl", "-sS", "-H", "Connection: close")
        urls = ["http://10.1.0.1/"] * 10
        before = two.run(2, *curl, *urls).split()
        assert before[:2] == ["10.1.0.2", "10.1.0.1"]
        os.kill(int(new.read_text()), signal.SIGUSR2)
        appears(old)
        appears(new)
        both = two.run(2, *curl, *urls * 10).split()
        os.kill(int(old.read_text()), signal.SIGQUIT)
        ends(old)
        after = two.run(2, *curl, *urls).split()
        for said in (before, both, after):
            assert set(zip(said[::3], said[1::3], strict=True)) == {("10.1.0.2", "10.1.0.1")}
        assert not {*before[2::3]} & {*after[2::3]}
    finally:
        for path in (old, new):
            if path.exists():
                os.kill(int(path.read_text()), signal.SIGTERM)
        ends(old)
        ends(new)


def ends(path):
    """Whose file this is: it removes it at last."""
    until = time.monotonic() + 20
    while path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.02)


def appears(path):
    """With something in it."""
    until = time.monotonic() + 20
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < until, path
        time.sleep(0.02)


def test_socket_activation(two):
    """As systemd does it: another program has bound the socket, and this one gets it as number
    3, in an environment that says nothing of the endpoint."""
    needs("systemd-socket-activate")
    server = """
    import os, socket
    assert "LD_PRELOAD" in os.environ and os.environ["LISTEN_FDS"] == "1"
    plug = socket.socket(fileno=3)
    while True:
        sock, peer = plug.accept()
        names = peer[0], sock.getpeername()[0], sock.getsockname()[:2], plug.getsockname()[1]
        sock.sendall(repr(names).encode())
        sock.close()
    """
    activate = ["systemd-socket-activate", "-l", "80", sys.executable, "-c"]
    process = two.popen(1, [*activate, textwrap.dedent(server)])
    assert b"Listening on" in process.stderr.readline()
    client = """
    import socket
    for _ in range(20):
        with socket.create_connection(("10.1.0.1", 80), 20) as sock:
            print(sock.recv(1000).decode().replace("::ffff:", ""))
    """
    said = two.run(2, sys.executable, "-c", textwrap.dedent(client)).splitlines()
    assert said == [repr(("10.1.0.2", "10.1.0.2", ("10.1.0.1", 80), 80))] * 20


def test_redis(two):
    needs("redis-server", "redis-cli", "redis-benchmark")
    options = ["--save", "", "--protected-mode", "no", "--io-threads", "2", "--bind", "0.0.0.0"]
    two.popen(1, ["redis-server", *options])
    said = until(two, "redis-cli", "-h", "10.1.0.1", "client", "list")
    assert "addr=10.1.0.2:" in said
    assert "laddr=10.1.0.1:6379" in said
    two.run(2, "redis-benchmark", "-h", "10.1.0.1", "-n", "2000", "-c", "20", "-t", "get", "-q")


def test_memcached(two):
    """With threads of its own, which share the listener."""
    needs("memcached")
    two.popen(1, ["memcached", "-u", "root", "-t", "4", "-l", "0.0.0.0"])
    client = """
    import socket
    for number in range(100):
        with socket.create_connection(("10.1.0.1", 11211), 10) as sock:
            sock.sendall(b"set k%d 0 0 2\\r\\nhi\\r\\nget k%d\\r\\n" % (number, number))
            said = b""
            while not said.endswith(b"END\\r\\n"):
                said += sock.recv(100)
            assert said == b"STORED\\r\\nVALUE k%d 0 2\\r\\nhi\\r\\nEND\\r\\n" % number
            assert sock.getsockname()[0] == "10.1.0.2"
    print("right")
    """
    assert until(two, sys.executable, "-c", textwrap.dedent(client)) == "right\n"


def test_iperf3(two):
    """Its connections say the overlay's addresses, both ways."""
    needs("iperf3")
    for options in ([], ["-R"]):
        # It says its first line when it listens. A client that writes JSON ends with 0 whatever
        # happens, and what came in last is not always in its sum.
        server = two.serve(1, "iperf3", "-s", "-1", "--forceflush")
        said = json.loads(
            two.run(2, "iperf3", "-c", "10.1.0.1", "-n", "10M", "-P", "2", "-J", *options)
        )
        assert "error" not in said
        ends = [(each["local_host"], each["remote_host"]) for each in said["start"]["connected"]]
        assert ends == [("10.1.0.2", "10.1.0.1")] * 2
        assert said["end"]["sum_sent"]["bytes"] >= 10_000_000
        server.wait(20)


def test_node(two):
    needs("node")
    two.popen(
        1,
        [
            *("node", "-e"),
            "require('http').createServer((q, s) => s.end(q.socket.remoteAddress)).listen(80)",
        ],
    )
    client = """
    const call = require('http').get('http://10.1.0.1/', answer => answer.on('data', data => {
        const sock = answer.socket;
        console.log(`${data} ${sock.localAddress} ${sock.remoteAddress}`);
    }));
    call.on('error', () => process.exit(1));
    """
    said = until(two, "node", "-e", client)
    assert said.split() == ["::ffff:10.1.0.2", "10.1.0.2", "10.1.0.1"]


def test_java(two, tmp_path):
    needs("java")
    (tmp_path / "Echo.java").write_text("""
    import java.net.*;
    class Echo {
        public static void main(String[] arguments) throws Exception {
            if (arguments.length == 0) {
                ServerSocket plug = new ServerSocket(80);
                System.out.println("ready");
                Socket one = plug.accept();
                one.getOutputStream().write(one.getRemoteSocketAddress().toString().getBytes());
                one.close();
            } else {
                Socket one = new Socket("10.1.0.1", 80);
                String said = new String(one.getInputStream().readAllBytes());
                System.out.println(said.equals(one.getLocalSocketAddress().toString()));
            }
        }
    }
    """)
    two.serve(1, "java", tmp_path / "Echo.java")
    assert two.run(2, "java", tmp_path / "Echo.java", "client", timeout=60) == "true\n"


def test_asyncio(two):
    """Two hundred connections at once."""
    server = """
    import asyncio
    async def serve(_, writer):
        writer.write(str(writer.get_extra_info("peername")).encode())
        await writer.drain()
        writer.close()
    async def main():
        plug = await asyncio.start_server(serve, None, 80, backlog=300)
        print("ready", flush=True)
        await plug.serve_forever()
    asyncio.run(main())
    """
    client = """
    import asyncio
    async def one():
        reader, writer = await asyncio.open_connection("10.1.0.1", 80)
        return await reader.read() == str(writer.get_extra_info("sockname")).encode()
    async def main():
        print(set(await asyncio.gather(*(one() for _ in range(200)))))
    asyncio.run(main())
    """
    two.serve(1, sys.executable, "-c", textwrap.dedent(server))
    assert two.run(2, sys.executable, "-c", textwrap.dedent(client)) == "{True}\n"
