/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The addresses of this host itself, as its devices have them. */
#ifndef SLIMNET_ROUTER_OWN_H
#define SLIMNET_ROUTER_OWN_H

#include <linux/types.h>

enum own {
	OWN_NOT = 0,
	OWN_ADDRESS,
	OWN_BROADCAST,	/* everybody on a link of it */
};

/* `host` is the underlay address that the tables know it by. */
void own_set(const __be32 *host);
const __be32 *own_host(void);
/* Devices change: read again when it is older than a second. */
enum own own_find(const __be32 *address);

#endif
