/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which port of the host a port of an endpoint has. */
#ifndef SLIMNET_ROUTER_PORTS_H
#define SLIMNET_ROUTER_PORTS_H

#include <stdint.h>

#include <linux/types.h>

/* Host order; of the host. */
void ports_range(uint16_t first, uint16_t last);

/*
 * For a bind to `*port` (0: any, which is then set) of an endpoint. `taken` is 0, or
 * the port that this answered before and that somebody else has. `*fresh`: nobody
 * has been told this one before. 0, or a positive errno.
 */
int ports_take(uint32_t endpoint, __be16 *port, __be16 *underlay, __be16 taken, int *fresh);

#endif
