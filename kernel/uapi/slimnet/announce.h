/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Wire `announce`: hosts tell each other who connects.
 *
 * Spoken by the routers of preload and by the agent of an eBPF host ("router" is
 * either here). A router opens one TCP connection (a link) to the control address of each host
 * that it has something to connect to; over it go its questions and announcements,
 * and the other's answers. Two hosts that connect to each other have two links.
 *
 *	opener				acceptor
 *	HELLO (address, nonce)	->
 *				<-	HELLO (address, nonce)
 *	frames			<->	frames
 *
 * HELLO carries no proof. Each end takes a pair of keys out of the cluster's key and
 * both nonces (slim_link_key()), one for each direction, and every frame ends with
 * a tag by that key over its number in its direction and all its bytes: what is
 * forged, repeated, left out or moved to another link ends the link. The opener's
 * first frame is READY, answered by READY. A host is the underlay address that the
 * link comes from; HELLO must say the same, and the tables must have such a host.
 *
 * Connecting, once the answer to RESOLVE is known, costs no round trip: ANNOUNCE is
 * on its way before the SYN. Answers are held until the acceptor says FORGET, which
 * it does when its tables or its listeners change.
 *
 * A host whose kernel decides on SYNs cannot wait for an announcement then, nor ask
 * when somebody connects. It says so in its HELLO (enum slim_hello_flag): it answers
 * each ANNOUNCE, and only then may the SYN come; and it is told of every listener
 * before there is one.
 *
 * Deadlines (ms): a link is READY in LINK_MS or ends; RESOLVE is answered in
 * RESOLVE_MS or counts as unreachable; an accepted connection is announced in
 * SLIM_SHIM_ACCEPT_MS or reset; an announcement is good for ANNOUNCED_MS, which is
 * longer than Linux sends SYNs. PING goes after IDLE_MS of silence, and a link
 * that says nothing for DEAD_MS ends.
 *
 * All numbers are in network order, but the tag (little-endian).
 */
#ifndef SLIMNET_ANNOUNCE_H
#define SLIMNET_ANNOUNCE_H

#include <linux/types.h>

enum slim_announce {
	SLIM_ANNOUNCE_VERSION = 2,
	SLIM_ANNOUNCE_MAGIC = 0x736c6d61,	/* "slma" */
	SLIM_ANNOUNCE_PORT = 4789,		/* TCP; of the control address, by default */
	SLIM_ANNOUNCE_LINK_MS = 1000,
	SLIM_ANNOUNCE_RESOLVE_MS = 800,
	SLIM_ANNOUNCE_ANNOUNCED_MS = 150000,
	SLIM_ANNOUNCE_LISTENER_MS = 300,	/* the longest that a bind waits for hosts to know it */
	SLIM_ANNOUNCE_IDLE_MS = 2000,
	SLIM_ANNOUNCE_DEAD_MS = 6000,
};

enum slim_hello_flag {
	SLIM_HELLO_RECORDS = 1,		/* answers ANNOUNCE with ANNOUNCED; no SYN before that */
	SLIM_HELLO_LISTENERS = 2,	/* wants LISTENER of all that there are, and of changes */
};

struct slim_hello {
	__be32 magic;
	__be16 version;
	__be16 flags;			/* enum slim_hello_flag */
	__be32 host[4];			/* underlay address of who says it */
	__u8 nonce[16];
};

enum slim_announce_kind {
	SLIM_FRAME_READY = 1,
	SLIM_FRAME_PING = 2,		/* the other answers PING with `answer` 1 */
	/*
	 * May `client` connect to `port` of `server`? ANSWER: `underlay_port`, or `error` and
	 * `reason` (of enum slim_reason), `rule`.
	 */
	SLIM_FRAME_RESOLVE = 3,
	SLIM_FRAME_RESOLVED = 4,
	/* From the acceptor: what was resolved for `server` (0: for all) is not known any more. */
	SLIM_FRAME_FORGET = 5,
	/*
	 * A connection of `client` from `source`:`source_port` comes to `underlay_port`.
	 * It sees itself as `client_port`. `token` is never used twice on a link.
	 */
	SLIM_FRAME_ANNOUNCE = 6,
	SLIM_FRAME_WITHDRAW = 7,	/* the one with `token` does not come */
	/*
	 * From the acceptor: a connection from `source`:`source_port` to `underlay_port` is
	 * here, and nobody announced it. The opener answers PROBED with the same `token` (0 from
	 * one that knows none), and as that comes behind what it announced before, it will not
	 * be announced. The token tells it from one that had the same source port before.
	 */
	SLIM_FRAME_PROBE = 8,
	SLIM_FRAME_PROBED = 9,
	/* The one with `token` may come; or it is refused: `error`, `reason`, `rule`. */
	SLIM_FRAME_ANNOUNCED = 10,
	/*
	 * From the acceptor: `port` of `server` is at `underlay_port`; 0: nowhere any more.
	 * The opener answers with `answer` 1 and the same `token` when it will connect there.
	 */
	SLIM_FRAME_LISTENER = 11,
	/*
	 * `client` tried to connect to `port` of `server`, whose policy its own host refused
	 * by: `reason`, `rule`. The acceptor tells it as if it had refused itself.
	 */
	SLIM_FRAME_REFUSED = 12,
};

struct slim_frame {
	__be16 kind;			/* enum slim_announce_kind */
	__be16 answer;
	__be32 id;			/* of a question; its answer has the same */
	__be64 token;
	__be32 client;			/* endpoint ids */
	__be32 server;
	__be32 source[4];
	__be16 source_port;
	__be16 client_port;
	__be16 underlay_port;
	__be16 port;			/* overlay port that is dialled, behind a service */
	__be32 error;
	__be32 reason;
	__be32 rule;
	__be32 pad;
	__le64 tag;
};

_Static_assert(sizeof(struct slim_hello) == 40, "the same for every compiler");
_Static_assert(sizeof(struct slim_frame) == 72, "the same for every compiler");

#endif /* SLIMNET_ANNOUNCE_H */
