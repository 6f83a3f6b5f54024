// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Finds a port of the host for a port of an endpoint, by trying it. */
#include "ports.h"

#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "router.h"

#define SHARE 4096	/* ports of one endpoint */

static uint16_t first = 20000, last = 31999, turn;

void ports_range(uint16_t from, uint16_t to)
{
	first = from;
	last = to;
}

/* Could a socket be bound to it, on every address of both families? */
static int is_free(uint16_t port)
{
	const struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	const struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), free;

	if (fd >= 0) {
		free = !bind(fd, (const struct sockaddr *)&v6, sizeof(v6));
	} else {
		fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		free = fd < 0 || !bind(fd, (const struct sockaddr *)&v4, sizeof(v4));
	}
	if (fd >= 0)
		close(fd);
	return free;
}

static __be16 pick(void)
{
	uint32_t tries, count = (uint32_t)last - first + 1;

	for (tries = 0; tries < count; tries++) {
		uint16_t port = (uint16_t)(first + (turn++ % count));

		if (!port_of(htons(port)) && is_free(port))
			return htons(port);
	}
	return 0;
}

/* One that no socket has any more is given back. */
static void collect(struct state_port *port, void *data)
{
	if (port->endpoint == *(const uint32_t *)data && is_free(ntohs(port->underlay))) {
		link_listener(port, 0, 1);
		port_drop(port);
	}
}

int ports_take(uint32_t endpoint, __be16 *port, __be16 *underlay, __be16 taken, int *fresh)
{
	struct state_port *known = *port ? port_find(endpoint, *port) : NULL;
	const int any = !*port;
	__be16 new;

	if (known && taken && known->underlay == taken && known->asked == 1) {
		/* It was told to this one only: who has it is no socket of the endpoint. */
		new = pick();
		if (!new)
			return EADDRINUSE;
		port_move(known, new);
		*underlay = new;
		*fresh = 1;
		return 0;
	}
	if (known) {
		if (taken)
			return EADDRINUSE;
		if (known->asked < 2)
			known->asked++;
		*underlay = known->underlay;
		return 0;
	}
	if (port_count(endpoint) >= SHARE)
		port_each(collect, &endpoint);
	if (port_count(endpoint) >= SHARE)
		return EADDRINUSE;
	new = pick();
	while (any && new && port_find(endpoint, new))
		new = pick();
	if (!new)
		return EADDRINUSE;
	if (any)
		*port = new;
	known = port_new(endpoint, *port, new);
	if (!known)
		return ENOBUFS;
	known->asked = 1;
	known->explicit = !any;
	*underlay = new;
	*fresh = 1;
	return 0;
}
