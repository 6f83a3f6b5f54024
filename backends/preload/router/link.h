/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The parser of a link's bytes, for itself and for its fuzzer. */
#ifndef SLIMNET_ROUTER_LINK_H
#define SLIMNET_ROUTER_LINK_H

#include <stddef.h>
#include <stdint.h>

#define LINK_IN 72	/* bytes of the longest message */

struct link;

/* What came on a link, in pieces of any size. The link may be dead afterwards. */
void link_bytes(struct link *link, const uint8_t *bytes, size_t size);

#endif
