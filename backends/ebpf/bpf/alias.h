/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Under which port a connection of an endpoint goes in the overlay, so that no two
 * live ones have one name: source and destination, addresses and ports.
 *
 * It is the source port that the kernel chose. But the kernel knows connections by
 * wire port, or by inner source address, and an endpoint takes the next of those now
 * and then (slim_dial_turn()); so the kernel may give a source port again that a live
 * connection to the same destination has. That one goes by another port, its alias:
 * getsockname(2) answers it, and so does getpeername(2) at the other end. The SYN
 * says it (wire.h); no packet bears it.
 *
 * Behind a service a connection has two names, the listener's and the client's own:
 * one is by the endpoint that was chosen, the other by the address that was dialled.
 *
 * The name of a connection that this end closed first lingers, as TIME_WAIT would:
 * the listener may not have closed its end yet. For a minute, and for less, by and
 * by down to nothing, only where no other port is found.
 */
#ifndef SLIMNET_ALIAS_H
#define SLIMNET_ALIAS_H

#include "share.h"

enum slim_alias {
	SLIM_ALIAS_TRIES = 24,		/* ports that are drawn */
	SLIM_ALIAS_HURRY = 6,		/* each of so many with half the patience, then a second */
	SLIM_ALIAS_LAST = 16,		/* the others of any port, and without patience */
	SLIM_ALIAS_FIRST = 1024,
	SLIM_ALIAS_LINGER = 64,		/* seconds */
	SLIM_NAME_DIALLED_BIT = 60,
};

/* In about a second, and further from 0 than a name lingers. */
static __always_inline __u32 slim_name_now(void)
{
	return (__u32)(bpf_ktime_get_coarse_ns() >> 30) + SLIM_ALIAS_LINGER;
}

/* As the listener sees it. The source's address and index, the other end's port and id. */
static __always_inline __u64 slim_name_met(const struct slim_socket *socket)
{
	return (__u64)slim_inner(socket->flow_flags & SLIM_FLOW_LOOPBACK, socket->index,
				 socket->target_port) << 32 | socket->peer_endpoint;
}

/* As the client of a service sees it. */
static __always_inline __u64 slim_name_dialled(const struct slim_socket *socket)
{
	return 1ULL << SLIM_NAME_DIALLED_BIT |
	       (__u64)slim_inner(false, socket->index, socket->peer_port) << 32 | socket->peer[3];
}

/*
 * Takes a name that nobody has, nor had less than `patience` seconds ago. An endpoint
 * takes no more of the names with one port than it leaves (as in share.h).
 *
 * The loop has one branch, since the verifier follows each as often as it goes around.
 */
slim_verified_once int slim_name_take(__u32 port, __u64 name, __u32 patience)
{
	struct slim_names *names = bpf_map_lookup_elem(&slim_name, &port);
	__u64 index = slim_inner_index((__u32)(name >> 32));
	__s64 since = (__s64)(__u64)slim_name_now() - patience;
	__u64 way = SLIM_NAME_WAYS, mine = 0, busy = 0;
	int taken = 0;

	if (!names)
		return 0;
	bpf_spin_lock(&names->lock);
	for (int i = 0; i < SLIM_NAME_WAYS; i++) {
		/* All ones where another has this way, or had it just now. */
		__u64 has = (since - (__s64)(__u64)names->since[i]) >> 63;
		__u64 other = names->name[i];
		__u64 stranger = slim_inner_index((__u32)(other >> 32)) ^ index;

		barrier_var(has);
		barrier_var(stranger);
		if (!((other ^ name) | ~has))
			goto out;
		busy += has & 1;
		mine += has & (stranger - 1) >> 63;
		way = (way & has) | (i & ~has);
	}
	if (way >= SLIM_NAME_WAYS || mine + busy >= SLIM_NAME_WAYS)
		goto out;
	names->name[way] = name;
	names->since[way] = SLIM_NAME_LIVES;
	taken = 1;
out:
	bpf_spin_unlock(&names->lock);
	return taken;
}

slim_verified_once int slim_name_leave(__u32 port, __u64 name, __u32 lingers)
{
	struct slim_names *names = bpf_map_lookup_elem(&slim_name, &port);
	__u32 now = lingers ? slim_name_now() : 0;

	if (!names)
		return 0;
	bpf_spin_lock(&names->lock);
	for (int i = 0; i < SLIM_NAME_WAYS; i++) {
		if (names->name[i] != name || names->since[i] != SLIM_NAME_LIVES)
			continue;
		names->since[i] = now;
		break;
	}
	bpf_spin_unlock(&names->lock);
	return 0;
}

/* Takes both names that the connection has with this port, or none. */
slim_verified_once int
slim_alias_take(const struct slim_socket *socket, __u32 port, __u32 patience)
{
	if (!socket || !slim_name_take(port, slim_name_met(socket), patience))
		return 0;
	if (!(socket->flags & SLIM_SOCKET_SERVICE) ||
	    slim_name_take(port, slim_name_dialled(socket), patience))
		return 1;
	slim_name_leave(port, slim_name_met(socket), 0);
	return 0;
}

/* The port is known by what bind(2) did: it is what it is. */
static __always_inline bool slim_alias_is_fixed(const struct slim_socket *socket)
{
	return socket->flags & (SLIM_SOCKET_BOUND | SLIM_SOCKET_ANY_PORT);
}

static __always_inline __u32 slim_alias_port(const struct slim_socket *socket, __u32 port)
{
	return socket->local_port ? bpf_ntohs(socket->local_port) : port;
}

/* Is there a live connection already by the name that this one is going to have? */
slim_verified_once int slim_alias_clashes(const struct slim_socket *socket, __u32 port)
{
	const struct slim_names *names;
	__u64 met, dialled;

	if (!socket || !slim_alias_is_fixed(socket))
		return 0;
	port = slim_alias_port(socket, port);
	names = bpf_map_lookup_elem(&slim_name, &port);
	if (!names)
		return 0;
	met = slim_name_met(socket);
	dialled = socket->flags & SLIM_SOCKET_SERVICE ? slim_name_dialled(socket) : met;
	for (__u32 i = 0; i < SLIM_NAME_WAYS; i++) {
		if (names->since[i] == SLIM_NAME_LIVES &&
		    (names->name[i] == met || names->name[i] == dialled))
			return 1;
	}
	return 0;
}

struct slim_alias_search {
	struct slim_socket *socket;
	bool found;
};

/* A port, by chance: where the kernel takes source ports from, or wherever one may be. */
static __always_inline __u16 slim_alias_draw(bool high)
{
	__u16 port = bpf_get_prandom_u32();

	if (high)
		return port | 0x8000;
	return port < SLIM_ALIAS_FIRST ? port + SLIM_ALIAS_FIRST : port;
}

static long slim_alias_try(__u32 i, void *context)
{
	struct slim_alias_search *search = context;
	__u32 alias = slim_alias_draw(i < SLIM_ALIAS_LAST);
	__u32 patience = i < SLIM_ALIAS_HURRY ? SLIM_ALIAS_LINGER >> i : i < SLIM_ALIAS_LAST;

	if (!slim_alias_take(search->socket, alias, patience))
		return 0;
	search->socket->local_port = bpf_htons((__u16)alias);
	search->found = true;
	return 1;
}

/*
 * The connection gets its name: `port` is the kernel's. False: it has none, for
 * every port that was tried is taken.
 */
static __always_inline bool slim_alias_give(struct slim_socket *socket, __u32 port)
{
	struct slim_alias_search search = { .socket = socket };
	bool fixed = slim_alias_is_fixed(socket);

	if (!slim_alias_take(socket, slim_alias_port(socket, port),
			     fixed ? 0 : SLIM_ALIAS_LINGER)) {
		if (!fixed)
			bpf_loop(SLIM_ALIAS_TRIES, slim_alias_try, &search, 0);
		if (!search.found)
			return false;
	}
	socket->counted |= SLIM_COUNTED_NAME;
	return true;
}

static __always_inline void slim_alias_leave(struct slim_socket *socket, bool lingers)
{
	__u32 port = slim_alias_port(socket, socket->host_port);

	if (!(socket->counted & SLIM_COUNTED_NAME))
		return;
	socket->counted &= ~SLIM_COUNTED_NAME;
	slim_name_leave(port, slim_name_met(socket), lingers);
	if (socket->flags & SLIM_SOCKET_SERVICE)
		slim_name_leave(port, slim_name_dialled(socket), lingers);
}

#endif /* SLIMNET_ALIAS_H */
