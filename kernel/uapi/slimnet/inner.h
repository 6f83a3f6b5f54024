/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Inner addresses: where sockets of endpoints sit in the underlay's network
 * namespace, so that they collide with nothing. The port is in the address.
 *
 *   range (4 bits) | loopback (1 bit) | the endpoint's index (11 bits) | port (16 bits)
 *
 * The lower 28 bits on their own are an "inner": a number in host order.
 */
#ifndef SLIMNET_INNER_H
#define SLIMNET_INNER_H

#include "address.h"

enum slim_inner_bits {
	SLIM_INNER_PORT_BITS = 16,
	SLIM_INNER_INDEX_BITS = 11,
	SLIM_INNER_LOOPBACK_BIT = 27,
};

enum slim_inner_place {
	SLIM_INNER_PORT = 473,		/* below 512: out of reach of every local user and rresvport() */
	SLIM_INDEX_MAX = 2046,		/* 11 bits; 0 is nobody, 2047 would end in the broadcast address */
};

#define SLIM_INNER_LOOPBACK (1U << SLIM_INNER_LOOPBACK_BIT)
#define SLIM_INNER_PORT_MASK ((1U << SLIM_INNER_PORT_BITS) - 1)
#define SLIM_INNER_INDEX_MASK ((1U << SLIM_INNER_INDEX_BITS) - 1)

/* Which addresses of the host they are. */
struct slim_inner_range {
	__be32 v4;			/* a /4 */
	__be32 v6[2];			/* a /64 */
};

static __always_inline __u32 slim_inner(_Bool loopback, __u32 index, __be16 port)
{
	return (loopback ? SLIM_INNER_LOOPBACK : 0) | index << SLIM_INNER_PORT_BITS |
	       slim_be16toh(port);
}

/* The index of the endpoint that an inner, or an inner IPv4 address in host order, is of. */
static __always_inline __u32 slim_inner_index(__u32 inner)
{
	return inner >> SLIM_INNER_PORT_BITS & SLIM_INNER_INDEX_MASK;
}

static __always_inline __be32 slim_inner_to_v4(const struct slim_inner_range *range, __u32 inner)
{
	return range->v4 | slim_htobe32(inner);
}

static __always_inline _Bool slim_inner_has_v4(__be32 range, __be32 v4)
{
	return (v4 & slim_htobe32(0xf0000000)) == range;
}

static __always_inline _Bool
slim_inner_has(const struct slim_inner_range *range, const __be32 *address)
{
	if (slim_is_mapped(address))
		return slim_inner_has_v4(range->v4, address[3]);
	return address[0] == range->v6[0] && address[1] == range->v6[1];
}

#endif /* SLIMNET_INNER_H */
