/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Wire `syn`: the TCP option that says in a SYN who calls whom, its tag, and
 * the ports of a host that such SYNs go to.
 *
 * The option, in bytes (RFC 9293, section 3.2, and RFC 3692 for the kind):
 *
 *    0  kind 253
 *    1  length 16
 *    2  the port that is dialled                network order
 *    4  id of the endpoint that is called       network order
 *    8  id of the endpoint that calls           network order
 *   12  tag: the first four bytes of SipHash-2-4 of what is below
 *   16  name: the port that the caller has in the overlay  network order
 *
 * The name is left out, and the length is 16, where that is the SYN's own source
 * port. The tag covers
 *
 *          0  underlay destination of the SYN
 *          4  underlay source
 *          8  the option's port
 *         10  source port of the SYN
 *         12  sequence number of the SYN
 *         16  the option's calling endpoint
 *         20  the option's called endpoint      all as they are on the wire
 *         24  the option's name, if it is there
 *
 * The tag covers the sequence number, so that an option that was read off the
 * wire is of no use for another SYN.
 */
#ifndef SLIMNET_WIRE_H
#define SLIMNET_WIRE_H

#include "siphash.h"

/* Of all that follows and of the tag: hosts of two versions have no wire in common. */
enum slim_wire {
	SLIM_WIRE_VERSION = 2,
	SLIM_OPTION_KIND = 253,		/* RFC 3692 experiment; 254 is read by Linux itself */
	SLIM_OPTION_LENGTH = 16,
	SLIM_OPTION_NAMED = 18,		/* its length with a name */
	SLIM_WIRE_PORTS = 64,		/* a power of two */
	SLIM_WIRE_TURN = 8192,		/* the most connects of an endpoint before the next wire port */
	SLIM_BOUND_PORTS = 32,		/* a power of two; right behind, for source-bound sockets */
};

#define SLIM_TCP_OPTIONS_MAX 40		/* data offset is 4 bits of 32-bit words */
#define SLIM_TCP_OPTION_END 0
#define SLIM_TCP_OPTION_NOP 1
#define SLIM_TCP_OPTION_FAST_OPEN 34	/* RFC 7413 */

/* A connection's addresses and ports. */
struct slim_tuple {
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
};

struct slim_option {
	__u8 kind;
	__u8 length;
	__be16 port;
	__be32 destination;
	__be32 source;
	__le32 tag;
	__be16 name;			/* SLIM_OPTION_NAMED only */
	__u16 pad;			/* behind the option */
} __attribute__((packed));

_Static_assert(__builtin_offsetof(struct slim_option, name) == SLIM_OPTION_LENGTH, "without a name");
_Static_assert(__builtin_offsetof(struct slim_option, pad) == SLIM_OPTION_NAMED, "with a name");

/* The port that the caller of this SYN has in the overlay. */
static __always_inline __be16
slim_option_name(const struct slim_option *option, __be16 source_port)
{
	return option->length == SLIM_OPTION_NAMED ? option->name : source_port;
}

/* The tag of an option in a SYN from `source`:`source_port` to `destination`. */
static __always_inline __le32
slim_tag(const __u64 *key, __be32 source, __be32 destination, __be16 source_port,
	 __be32 sequence, const struct slim_option *option)
{
	__u64 a = (__u64)slim_bytes32(source) << 32 | slim_bytes32(destination);
	__u64 b = (__u64)slim_bytes32(sequence) << 32 | (__u32)slim_bytes16(source_port) << 16 |
		  slim_bytes16(option->port);
	__u64 c = (__u64)slim_bytes32(option->destination) << 32 | slim_bytes32(option->source);
	__u64 last = (__u64)option->length + 8;

	last <<= 56;
	if (option->length == SLIM_OPTION_NAMED)
		last |= slim_bytes16(option->name);
	return slim_htole32(slim_siphash(key, a, b, c, last));
}

/*
 * Looks for the option among a SYN's options: `length` bytes of the
 * SLIM_TCP_OPTIONS_MAX at `bytes`, the others zero.
 *
 * 1: found; 0: not there; -1: not there, but a Fast Open cookie is, which may
 * have taken its room.
 */
static __always_inline int
slim_option_find(const __u8 *bytes, __u32 length, struct slim_option *option)
{
	__u32 at = 0;
	int missing = 0;

	/* One option takes at least two bytes, or it is padding of one. */
	for (int i = 0; i <= SLIM_TCP_OPTIONS_MAX - SLIM_OPTION_LENGTH; i++) {
		__u8 kind, size;

		if (at > SLIM_TCP_OPTIONS_MAX - SLIM_OPTION_LENGTH)
			return missing;
		kind = bytes[at];
		if (kind == SLIM_TCP_OPTION_END)
			return missing;
		if (kind == SLIM_TCP_OPTION_NOP) {
			at++;
			continue;
		}
		size = bytes[at + 1];
		if (kind == SLIM_OPTION_KIND && size == SLIM_OPTION_LENGTH) {
			if (at + SLIM_OPTION_LENGTH > length)
				return missing;
			__builtin_memcpy(option, bytes + at, SLIM_OPTION_LENGTH);
			return 1;
		}
		if (kind == SLIM_OPTION_KIND && size == SLIM_OPTION_NAMED) {
			if (at + SLIM_OPTION_NAMED > length)
				return missing;
			/* Of two bounds clang keeps the one by `length`, BPF's verifier the other. */
			__asm__ volatile("" : "+r"(at));
			if (at > SLIM_TCP_OPTIONS_MAX - SLIM_OPTION_NAMED)
				return missing;
			__builtin_memcpy(option, bytes + at, SLIM_OPTION_NAMED);
			return 1;
		}
		if (kind == SLIM_TCP_OPTION_FAST_OPEN && size > 2)
			missing = -1;
		if (size < 2)
			return missing;
		at += size;
	}
	return missing;
}

/* Is `port` one of the wire ports of a host whose first one is `first`? */
static __always_inline _Bool slim_wire_has(__u16 first, __be16 port)
{
	return (__u16)(slim_be16toh(port) - first) < SLIM_WIRE_PORTS + SLIM_BOUND_PORTS;
}

/* Is it one of those for source-bound connections? */
static __always_inline _Bool slim_wire_has_bound(__u16 first, __be16 port)
{
	return (__u16)(slim_be16toh(port) - first - SLIM_WIRE_PORTS) < SLIM_BOUND_PORTS;
}

#endif /* SLIMNET_WIRE_H */
