// SPDX-License-Identifier: Apache-2.0
// The same as names.c, by libuv's getaddrinfo(3), c-ares and libuv's datagrams.
"use strict";
const dgram = require("dgram");
const dns = require("dns").promises;

const [name, address, port] = process.argv.slice(2);

const ask = (connects) =>
  new Promise((resolve, reject) => {
    const sock = dgram.createSocket({ type: "udp4", reuseAddr: true });
    sock.on("error", reject);
    sock.on("message", (data) => {
      sock.close();
      resolve(data.toString());
    });
    if (connects) {
      sock.connect(Number(port), address, () => sock.send("question"));
    } else {
      sock.bind(0, () => {
        sock.setBroadcast(true);
        sock.send("question", Number(port), address);
      });
    }
  });

(async () => {
  console.log((await dns.lookup(name, { hints: require("dns").ADDRCONFIG })).address);
  console.log((await dns.resolve4(name))[0]);
  console.log(await ask(true));
  console.log(await ask(false));
})().catch((error) => {
  console.log(error);
  process.exit(1);
});
