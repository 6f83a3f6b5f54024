/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where an endpoint asks for names: an address on loopback that is its alone, so
 * that who asks is known by where the question comes in. In a network namespace of
 * its own it is that namespace's loopback, else the host's.
 *
 *   127.128.0.0/9 | the low bits of the endpoint's id
 *
 * No two endpoints of a host have these in common: ids are drawn so.
 */
#ifndef SLIMNET_RESOLVER_H
#define SLIMNET_RESOLVER_H

#include "address.h"

enum slim_resolver_place {
	SLIM_RESOLVER_NETWORK = 0x7f800000,
	SLIM_RESOLVER_MASK = 0x7fffff,	/* of an id */
	SLIM_RESOLVER_PORT = 53,
};

static __always_inline _Bool
slim_is_resolver(const __be32 *address, __be16 port, __u32 endpoint)
{
	return slim_be16toh(port) == SLIM_RESOLVER_PORT && slim_is_mapped(address) &&
	       address[3] == slim_htobe32(SLIM_RESOLVER_NETWORK |
					  (endpoint & SLIM_RESOLVER_MASK));
}

#endif /* SLIMNET_RESOLVER_H */
