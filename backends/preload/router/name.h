/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Names of sockets: as system calls have them, and as addresses are everywhere else here. */
#ifndef SLIMNET_ROUTER_NAME_H
#define SLIMNET_ROUTER_NAME_H

#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include <slimnet/address.h>

union name {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* Of the sockets that an address is for. */
static inline int name_family(const __be32 *address)
{
	return slim_is_mapped(address) ? AF_INET : AF_INET6;
}

/* For a socket of `family`; its size. */
static inline socklen_t name_make(union name *name, int family, const __be32 *address, __be16 port)
{
	memset(name, 0, sizeof(*name));
	if (family == AF_INET) {
		name->v4.sin_family = AF_INET;
		name->v4.sin_addr.s_addr = address[3];
		name->v4.sin_port = port;
		return sizeof(name->v4);
	}
	name->v6.sin6_family = AF_INET6;
	memcpy(&name->v6.sin6_addr, address, sizeof(name->v6.sin6_addr));
	name->v6.sin6_port = port;
	return sizeof(name->v6);
}

/* 0, or -1: it is no address of IP. */
static inline int name_read(const union name *name, __be32 *address, __be16 *port)
{
	if (name->any.sa_family == AF_INET) {
		slim_map_v4(address, name->v4.sin_addr.s_addr);
		*port = name->v4.sin_port;
	} else if (name->any.sa_family == AF_INET6) {
		memcpy(address, &name->v6.sin6_addr, sizeof(name->v6.sin6_addr));
		*port = name->v6.sin6_port;
	} else {
		return -1;
	}
	return 0;
}

#endif
