/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Between the shim in a process and the router of its host: one datagram each way
 * over a Unix socket (SOCK_SEQPACKET) that belongs to one endpoint.
 *
 * Which endpoint a process is of is said by the path that it connected to, never by
 * a message; the router holds SO_PEERCRED against the user that the endpoint is of.
 * A process asks one question at a time on a connection, and may have several
 * connections.
 *
 * Every request and every answer is one of these structs, whole: a datagram of
 * another size or version is answered with EPROTO and the connection ends.
 *
 * A name is an address, v4-mapped where it is IPv4, and a port. "Overlay" is what
 * the application sees, "underlay" what the kernel does. How they belong together:
 * each port of an endpoint has one port of the host, whatever address it is bound
 * to, and the wildcard stands for the wildcard, loopback for loopback, the overlay
 * address for the host's. So the kernel's own rules say which sockets may be bound
 * at once.
 */
#ifndef SLIMNET_PRELOAD_SHIM_H
#define SLIMNET_PRELOAD_SHIM_H

#include <linux/types.h>

enum slim_shim {
	SLIM_SHIM_VERSION = 1,
	SLIM_SHIM_WAIT_MS = 5000,	/* the longest that a shim waits for an answer */
	SLIM_SHIM_CONNECT_MS = 1000,	/* the router's own deadlines, which are shorter */
	SLIM_SHIM_ACCEPT_MS = 3000,
};

enum slim_shim_call {
	/*
	 * `local` is the overlay name to bind to, port 0 for any. Answer: `underlay`, which
	 * the shim binds its socket to, and `local` with the port that it has now. If the
	 * kernel says EADDRINUSE and the answer was FRESH, somebody else of the host has that
	 * port: the shim asks again with RETRY and `underlay` as it was told.
	 */
	SLIM_SHIM_BIND = 1,
	/*
	 * With the socket attached (SCM_RIGHTS), `peer` as it was dialled. The router binds a
	 * socket that has no name yet, tells the peer's router who it is, and answers where
	 * to connect to (`underlay`), and both names; or `error` and `reason`.
	 *
	 * Of a datagram socket: may one be sent to `peer`? With EMPTY nothing is sent yet, and
	 * where it would be refused then (slim_way_is_refused_later()) the answer is NOWHERE.
	 */
	SLIM_SHIM_CONNECT = 2,
	/* A connect failed: `local` and `peer` are the underlay names of its socket. */
	SLIM_SHIM_FAILED = 3,
	/*
	 * A connection was accepted: its underlay names. Answer: its overlay names, or an
	 * error: nobody announced it, or policy forbids it, and the shim resets it.
	 *
	 * A client of a port of the host that is published comes to the router, which connects
	 * to the listener in its stead. With GIVEN the client's own socket is attached
	 * (SCM_RIGHTS), and the shim puts it in the place of the one that was accepted.
	 */
	SLIM_SHIM_ACCEPT = 4,
	/*
	 * What are the overlay names of a socket with these underlay names? A socket
	 * that is not connected has a `peer` of zeros.
	 */
	SLIM_SHIM_NAME = 5,
};

enum slim_shim_flag {
	SLIM_SHIM_DATAGRAM = 1,		/* BIND, CONNECT: no stream; nothing is attached */
	SLIM_SHIM_RETRY = 2,		/* BIND: the port is another's */
	SLIM_SHIM_FRESH = 4,		/* answer of BIND: nobody had the port so far */
	SLIM_SHIM_PLAIN = 8,		/* answer: no connection of the overlay; names are as they are */
	SLIM_SHIM_EMPTY = 16,		/* CONNECT of a datagram socket: nothing is sent yet */
	SLIM_SHIM_NOWHERE = 32,		/* answer: to `underlay`, where what is sent is refused */
	SLIM_SHIM_GIVEN = 64,		/* answer of ACCEPT: another socket is attached */
	SLIM_SHIM_V4 = 128,		/* ACCEPT: the listener is a socket of IPv4 */
};

struct slim_shim_name {
	__be32 address[4];
	__be16 port;
	__u16 pad;
};

struct slim_shim_request {
	__u16 version;			/* SLIM_SHIM_VERSION */
	__u16 call;			/* enum slim_shim_call */
	__u32 flags;			/* enum slim_shim_flag */
	struct slim_shim_name local;
	struct slim_shim_name peer;
	struct slim_shim_name underlay;
};

struct slim_shim_answer {
	__u16 version;
	__u16 call;			/* of the request */
	__u32 flags;			/* enum slim_shim_flag */
	__u32 error;			/* a positive errno, or 0 */
	__u32 reason;			/* enum slim_reason, of a refusal */
	struct slim_shim_name local;	/* overlay */
	struct slim_shim_name peer;	/* overlay */
	struct slim_shim_name underlay;	/* BIND: to bind to; CONNECT: to connect to */
};

_Static_assert(sizeof(struct slim_shim_request) == 68, "the same for every compiler");
_Static_assert(sizeof(struct slim_shim_answer) == 76, "the same for every compiler");

/* What the environment of an endpoint's process says. */
#define SLIM_SHIM_SOCKET "SLIMNET_SOCKET"	/* path of its endpoint's socket */
#define SLIM_SHIM_DISABLE "SLIMNET_DISABLE"	/* "1": the shim does nothing at all */

#endif /* SLIMNET_PRELOAD_SHIM_H */
