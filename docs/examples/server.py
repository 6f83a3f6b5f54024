"""Say who was asked, and by whom."""

import socket

server = socket.create_server(("", 8080))
print("listening", flush=True)
while True:
    connection, peer = server.accept()
    connection.sendall(f"{socket.gethostname()} to {peer[0]}\n".encode())
    connection.close()
