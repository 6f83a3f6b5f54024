# SPDX-License-Identifier: Apache-2.0
"""The same server as plain.c, four workers; run again with an inherited
listener (``exec``) when FD is given: ``prefork.py PORT [FD]``."""

import os
import socket
import sys

port = int(sys.argv[1])
if len(sys.argv) == 2:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", port))
    listener.listen(128)
    listener.set_inheritable(True)
    os.execv(sys.executable, [sys.executable, __file__, str(port), str(listener.fileno())])

listener = socket.socket(fileno=int(sys.argv[2]))
for _ in range(4):
    if os.fork() == 0:
        while True:
            sock, peer = listener.accept()
            # A child of the worker answers on the socket that it inherits.
            if os.fork() == 0:
                own = sock.getsockname()
                sock.sendall(f"{peer[0]} {peer[1]} {own[0]} {own[1]}\n".encode())
                os._exit(0)
            sock.close()
            os.waitpid(-1, 0)
print("ready", flush=True)
os.wait()
