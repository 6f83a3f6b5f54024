// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Addresses of this host, asked of getifaddrs(3), which every user may. */
#include "own.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <stddef.h>
#include <time.h>

#include "name.h"

static __be32 host[4];
static struct ifaddrs *devices;
static time_t read_at = -1;

void own_set(const __be32 *address)
{
	slim_copy(host, address);
}

const __be32 *own_host(void)
{
	return host;
}

static _Bool is(const struct sockaddr *name, const __be32 *address)
{
	__be32 found[4];
	__be16 port;

	return name && !name_read((const union name *)(const void *)name, found, &port) &&
	       slim_same(found, address);
}

enum own own_find(const __be32 *address)
{
	const struct ifaddrs *device;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (read_at != now.tv_sec) {
		struct ifaddrs *fresh;

		if (!getifaddrs(&fresh)) {
			if (devices)
				freeifaddrs(devices);
			devices = fresh;
			read_at = now.tv_sec;
		}
	}
	if (slim_same(address, host))
		return OWN_ADDRESS;
	for (device = devices; device; device = device->ifa_next) {
		if (is(device->ifa_addr, address))
			return OWN_ADDRESS;
		if (device->ifa_flags & IFF_BROADCAST && is(device->ifa_broadaddr, address))
			return OWN_BROADCAST;
	}
	return OWN_NOT;
}
