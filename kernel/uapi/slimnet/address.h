/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Classes of addresses. An address is 16 bytes in network order; IPv4 is held
 * v4-mapped (RFC 4291, section 2.5.5.2).
 */
#ifndef SLIMNET_ADDRESS_H
#define SLIMNET_ADDRESS_H

#include "byteorder.h"

static __always_inline void slim_map_v4(__be32 *to, __be32 v4)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = slim_htobe32(0xffff);
	to[3] = v4;
}

static __always_inline void slim_copy(__be32 *to, const __be32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

static __always_inline _Bool slim_same(const __be32 *a, const __be32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

static __always_inline _Bool slim_is_mapped(const __be32 *address)
{
	return !address[0] && !address[1] && address[2] == slim_htobe32(0xffff);
}

/* 0.0.0.0 and ::, also v4-mapped: as a destination the endpoint itself. */
static __always_inline _Bool slim_is_any(const __be32 *address)
{
	return !address[0] && !address[1] && !address[3] &&
	       (!address[2] || address[2] == slim_htobe32(0xffff));
}

/* 127.0.0.0/8, also v4-mapped, and ::1. */
static __always_inline _Bool slim_is_loopback(const __be32 *address)
{
	if (slim_is_mapped(address))
		return (address[3] & slim_htobe32(0xff000000)) == slim_htobe32(0x7f000000);
	return !address[0] && !address[1] && !address[2] && address[3] == slim_htobe32(1);
}

/* 224.0.0.0/4, and 255.255.255.255; of a v4-mapped address. */
static __always_inline _Bool slim_is_multicast(const __be32 *address)
{
	return (address[3] & slim_htobe32(0xf0000000)) == slim_htobe32(0xe0000000) ||
	       address[3] == slim_htobe32(0xffffffff);
}

#endif /* SLIMNET_ADDRESS_H */
