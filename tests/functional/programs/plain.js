// SPDX-License-Identifier: Apache-2.0
// The same client and server as plain.c, on libuv's dual-stack sockets.
"use strict";
const net = require("net");

const words = (address, port) => `${address.replace(/^::ffff:/, "")} ${port}`;
const [what, ...args] = process.argv.slice(2);

if (what === "server") {
  net
    .createServer((sock) => {
      sock.on("error", () => {});
      sock.end(
        words(sock.remoteAddress, sock.remotePort) + " " + words(sock.localAddress, sock.localPort) + "\n"
      );
    })
    .listen(Number(args[0]), () => console.log("ready"));
} else {
  const [address, port, count] = args;
  const next = (left) => {
    if (left === 0) return;
    let own;
    let text = "";
    const sock = net.connect(Number(port), address, () => {
      own = words(sock.localAddress, sock.localPort);
    });
    sock.on("data", (data) => (text += data));
    sock.on("end", () => process.stdout.write(`${own} ${text}`));
    sock.on("close", () => next(left - 1));
  };
  next(Number(count));
}
