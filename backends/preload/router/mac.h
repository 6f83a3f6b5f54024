/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Keys and tags of a link (slimnet/announce.h). */
#ifndef SLIMNET_ROUTER_MAC_H
#define SLIMNET_ROUTER_MAC_H

#include <stddef.h>
#include <stdint.h>

#include <slimnet/announce.h>

/* SipHash-2-4 of `size` bytes (Aumasson, Bernstein, INDOCRYPT 2012). */
uint64_t mac_siphash(const uint64_t key[2], const void *bytes, size_t size);

/* The key of one direction of a link: `from_opener`, or to it. */
void mac_link_key(const uint64_t cluster[2], const struct slim_hello *opener,
		  const struct slim_hello *acceptor, int from_opener, uint64_t key[2]);

/* The tag of the frame that is the `number`-th of its direction. */
__le64 mac_frame(const uint64_t key[2], uint64_t number, const struct slim_frame *frame);

#endif
