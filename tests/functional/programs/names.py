# SPDX-License-Identifier: Apache-2.0
"""The same as names.c, by asyncio."""

import asyncio
import socket
import sys

NAME, ADDRESS, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])


class Asking(asyncio.DatagramProtocol):
    def __init__(self):
        self.answer = asyncio.get_running_loop().create_future()

    def datagram_received(self, data, _):
        self.answer.set_result(data.decode())

    def error_received(self, exc):
        self.answer.set_exception(exc)


async def main():
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(NAME, 80, flags=socket.AI_ADDRCONFIG, type=socket.SOCK_STREAM)
    print(found[0][4][0])
    for how in (
        {"remote_addr": (ADDRESS, PORT), "allow_broadcast": True},
        {"local_addr": ("0.0.0.0", 0), "allow_broadcast": True, "reuse_port": True},
    ):
        transport, asking = await loop.create_datagram_endpoint(Asking, **how)
        transport.sendto(b"question", None if "remote_addr" in how else (ADDRESS, PORT))
        print(await asyncio.wait_for(asking.answer, 5))
        transport.close()


asyncio.run(main())
