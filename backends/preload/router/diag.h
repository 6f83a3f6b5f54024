/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel's own list of TCP sockets (sock_diag(7)), which every user may read. */
#ifndef SLIMNET_ROUTER_DIAG_H
#define SLIMNET_ROUTER_DIAG_H

#include <stdint.h>

#include <slimnet/wire.h>

struct diag {
	struct slim_tuple tuple;	/* as the socket sees it: its own end is the source */
	uint64_t cookie;
	uint32_t inode, uid;
	uint32_t state;			/* include/net/tcp_states.h */
	uint8_t family;
};

enum diag_state {
	DIAG_ESTABLISHED = 1,
	DIAG_SYN_SENT = 2,
	DIAG_SYN_RECEIVED = 3,
	DIAG_TIME_WAIT = 6,
	DIAG_CLOSE = 7,
	DIAG_LISTEN = 10,
	DIAG_NEW_SYN = 12,
};

int diag_open(void);
/* Each TCP socket of the namespace in one of `states` (1 << enum diag_state). 0, or -1. */
int diag_each(uint32_t states, void (*one)(const struct diag *socket, void *data), void *data);
/* The socket with this name at its end and at its peer's; 0: found. */
int diag_find(const struct slim_tuple *tuple, struct diag *socket);
/* Ends it, its owner sees an error. Needs CAP_NET_ADMIN; -1 without it. */
int diag_destroy(const struct diag *socket);

#endif
