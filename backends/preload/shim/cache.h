/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the router said of a socket, by its descriptor.
 *
 * Only a memory: each entry has the cookie of the socket that it is about, and counts
 * only while the descriptor is that socket's. So nothing has to be done when one is
 * closed, duplicated, passed on or inherited, in whatever way; and what is not here
 * the router knows.
 */
#ifndef SLIMNET_SHIM_CACHE_H
#define SLIMNET_SHIM_CACHE_H

#include <stdint.h>

#include <preload/shim.h>

enum cached_is {
	CACHED_BOUND = 1,	/* `local` is known */
	CACHED_CONNECTED,	/* or about to be: all three names are */
	CACHED_OUTSIDE,		/* the same, and what the kernel says of its peer is right */
	CACHED_DATAGRAM,	/* may send to `peer`, until `until`; connected: `local` is known */
	CACHED_NOWHERE,		/* the same of one that may not, and is connected all the same */
};

struct cached {
	uint64_t cookie;
	uint64_t until;		/* ns of CLOCK_MONOTONIC */
	uint16_t is;		/* enum cached_is */
	uint16_t pending;	/* its connect(2) did not wait for the end */
	struct slim_shim_name local, peer, underlay;
	uint32_t family;	/* that its names have, if not the socket's own; or 0 */
};

/* 1: found. */
int cache_get(int fd, uint64_t cookie, struct cached *cached);
/* Is there an entry of a connection that was not waited for? Of whichever socket. */
int cache_pending(int fd);
void cache_put(int fd, const struct cached *cached);
void cache_drop(int fd);

#endif
