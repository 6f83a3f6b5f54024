/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the endpoints of a host share: room in tables, and ports of the host.
 *
 * Dynamic thresholds (Choudhury and Hahne, IEEE/ACM Transactions on Networking
 * 6(2), 1998, with alpha = 1): an endpoint may take one more only while it holds
 * less than what is free. So one that takes all it can get has half, two have a
 * third each, n of them have 1/(n + 1) each, and as much stays free for whoever
 * comes. No number has to be chosen, and the shares add up for any number.
 *
 * Each count is kept for the endpoint, by its index, and for all together at
 * index 0, which is nobody's. A count that was lost (an index given to another
 * endpoint, two processors at once, a sum that came in between) is at worst a smaller
 * count; below zero it counts as none. What all hold together is summed up anew by each
 * sweep that looks at every place.
 */
#ifndef SLIMNET_SHARE_H
#define SLIMNET_SHARE_H

#include "state.h"

#define SLIM_HELD_ALPHA 8

struct slim_share {
	struct slim_usage *mine;
	struct slim_usage *all;
};

static __always_inline struct slim_usage *slim_usage_get(__u32 index)
{
	return bpf_map_lookup_elem(&slim_local, &index);
}

static __always_inline bool slim_share_get(__u32 index, struct slim_share *share)
{
	share->mine = index ? slim_usage_get(index) : NULL;
	share->all = slim_usage_get(0);
	return share->mine && share->all;
}

/* Two processors that both found one may each have taken it off. */
static __always_inline __u32 slim_share_held(__u32 count)
{
	return (__s32)count > 0 ? count : 0;
}

/* How much of `room` an endpoint that holds `mine` may still take, while all hold `all`. */
static __always_inline __u32 slim_share_left(__u32 mine, __u32 all, __u32 room)
{
	__u32 left;

	mine = slim_share_held(mine);
	all = slim_share_held(all);
	left = all < room ? room - all : 0;
	return mine < left ? left - mine : 0;
}

static __always_inline void slim_share_less(__u32 *count)
{
	if (*(volatile __s32 *)count > 0)
		__sync_fetch_and_add(count, -1);
}

/* `what`: a field of struct slim_usage. */
#define slim_share_room(share, what, room) \
	slim_share_left((share)->mine->what, (share)->all->what, room)

#define slim_share_take(share, what)					\
	({								\
		__sync_fetch_and_add(&(share)->mine->what, 1);		\
		__sync_fetch_and_add(&(share)->all->what, 1);		\
	})

#define slim_share_give_back(share, what)				\
	({								\
		slim_share_less(&(share)->mine->what);			\
		slim_share_less(&(share)->all->what);			\
	})

static long
slim_share_sum(void *map, const void *key, void *value, void *context)
{
	const struct slim_usage *usage = value;
	struct slim_usage *sum = context;

	if (!*(const __u32 *)key)
		return 0;
	sum->held += slim_share_held(usage->held);
	sum->flows += slim_share_held(usage->flows);
	sum->bound += slim_share_held(usage->bound);
	sum->places += slim_share_held(usage->places);
	sum->listeners += slim_share_held(usage->listeners);
	sum->datagrams += slim_share_held(usage->datagrams);
	return 0;
}

static long
slim_share_sum_carried(void *map, const void *key, void *value, void *context)
{
	const struct slim_device *device = value;
	struct slim_usage *sum = context;

	sum->carried += slim_share_held(device->carried);
	return 0;
}

/*
 * Puts the sums over all endpoints at index 0 right. All but `ports`: a port that
 * two endpoints share is one port of the host, and a sum would count it twice. And
 * but `waiting`: TIME_WAIT outlives the endpoint.
 */
static __always_inline void slim_share_sum_up(void)
{
	struct slim_usage sum = {}, *all = slim_usage_get(0);

	bpf_for_each_map_elem(&slim_local, slim_share_sum, &sum, 0);
	bpf_for_each_map_elem(&slim_device, slim_share_sum_carried, &sum, 0);
	if (!all)
		return;
	all->held = sum.held;
	all->flows = sum.flows;
	all->bound = sum.bound;
	all->places = sum.places;
	all->listeners = sum.listeners;
	all->datagrams = sum.datagrams;
	all->carried = sum.carried;
}

/*
 * The ports of the host that sockets of endpoints are on. Connections to
 * different destinations share one, so distinct ports are counted: whoever is
 * alone on one is found in the array; who joins another endpoint there is
 * counted in a hash, so that nobody is charged for what others hold.
 */

/* May the endpoint be on one more? Of its own frame, since connect has none to spare. */
slim_verified_once int slim_port_may(__u32 index, __u32 room)
{
	struct slim_share share;

	return slim_share_get(index, &share) && slim_share_room(&share, ports, room);
}

static __always_inline __u32 slim_half_minute(void)
{
	return bpf_ktime_get_ns() / 30000000000ULL;
}

/* Sockets on bind(0) whose port TIME_WAIT keeps, for a minute; counted for up to half of one more. */
static __always_inline __u32 slim_usage_waiting(const struct slim_usage *usage)
{
	__u32 passed = slim_half_minute() - usage->epoch, waiting = 0, age;

	for (age = 0; age < SLIM_WAITING; age++)
		waiting += passed < SLIM_WAITING - age ? usage->waiting[age] : 0;
	return waiting;
}

static __always_inline void slim_usage_wait(struct slim_usage *usage)
{
	__u32 now = slim_half_minute(), passed = now - usage->epoch;

	if (passed) {
		usage->waiting[2] = passed == 1 ? usage->waiting[1] :
				    passed == 2 ? usage->waiting[0] : 0;
		usage->waiting[1] = passed == 1 ? usage->waiting[0] : 0;
		usage->waiting[0] = 0;
		usage->epoch = now;
	}
	__sync_fetch_and_add(&usage->waiting[0], 1);
}

/* By bind(0), also where the socket is in TIME_WAIT by now: no connect() shares such a port. */
static __always_inline __u32 slim_usage_held(const struct slim_usage *usage)
{
	return slim_share_held(usage->held) + slim_usage_waiting(usage);
}

/*
 * May the endpoint be on one more by bind(0)? The kernel gives every other port to
 * bind(0) first, and the ones between to connect(). Endpoints share that half. One that
 * binds and connects, again and again, leaves nothing but TIME_WAIT, which is over in a
 * minute: so it may have eight times of what it leaves free (alpha = 8), two such ones
 * 8/17 each, and nobody who binds has to search long.
 */
static __always_inline bool
slim_port_may_hold(const struct slim_share *share, const struct slim_control *control)
{
	__u32 half = control->port_room / 3 * 2;	/* of the ports, of which 3/4 are the room */
	__u32 mine = slim_usage_held(share->mine), all = slim_usage_held(share->all);

	return mine < control->held_limit && all < half &&
	       mine < (half - all) * SLIM_HELD_ALPHA &&
	       slim_share_room(share, ports, control->port_room);
}

static __always_inline __u32 slim_joined_key(const struct slim_socket *socket)
{
	return socket->index << 16 | socket->host_port;
}

/* One more socket of the endpoint on this port. Answers whether it is the first. */
static __always_inline bool slim_port_join(const struct slim_socket *socket)
{
	__u32 key = slim_joined_key(socket), one = 1, *sockets;

	sockets = bpf_map_lookup_elem(&slim_joined, &key);
	if (sockets)
		return !__sync_fetch_and_add(sockets, 1);
	bpf_map_update_elem(&slim_joined, &key, &one, BPF_NOEXIST);
	return true;
}

/* Answers whether it was the endpoint's last socket there. */
static __always_inline bool slim_port_part(const struct slim_socket *socket)
{
	__u32 key = slim_joined_key(socket), *sockets;

	sockets = bpf_map_lookup_elem(&slim_joined, &key);
	if (!sockets)
		return true;
	if (__sync_fetch_and_add(sockets, -1) != 1)
		return false;
	bpf_map_delete_elem(&slim_joined, &key);
	return true;
}

static __always_inline void slim_port_leave(struct slim_socket *socket)
{
	__u32 counted = socket->counted, key = socket->host_port;
	struct slim_share share;
	struct slim_port *port;
	bool last;

	if (!(counted & SLIM_COUNTED_PORT))
		return;
	socket->counted &= ~(SLIM_COUNTED_PORT | SLIM_COUNTED_JOINED | SLIM_COUNTED_FOLLOWED);
	port = bpf_map_lookup_elem(&slim_port, &key);
	if (!port || !slim_share_get(socket->index, &share))
		return;
	if (counted & SLIM_COUNTED_JOINED)
		last = slim_port_part(socket);
	else
		last = (__u32)__sync_fetch_and_add(&port->owner, -1) == 1;
	if (last)
		slim_share_less(&share.mine->ports);
	if (__sync_fetch_and_add(&port->sockets, -1) == 1)
		slim_share_less(&share.all->ports);
}

/* The socket is on a port of the host. Counted once, until slim_port_leave(). */
static __always_inline void slim_port_take(struct slim_socket *socket, __u16 number)
{
	__u64 owner, mine = (__u64)socket->index << 32;
	struct slim_share share;
	struct slim_port *port;
	__u32 key = number;
	bool first;

	if (socket->counted & SLIM_COUNTED_PORT) {
		if (socket->host_port == number)
			return;
		/*
		 * It is counted for a port that it no longer has: a connect that found no
		 * route gives its port back, and no hook runs then.
		 */
		slim_port_leave(socket);
	}
	port = bpf_map_lookup_elem(&slim_port, &key);
	if (!port || !slim_share_get(socket->index, &share))
		return;
	socket->host_port = number;
	socket->counted |= SLIM_COUNTED_PORT;
	if (!__sync_fetch_and_add(&port->sockets, 1))
		__sync_fetch_and_add(&share.all->ports, 1);
	/* The lower half of `owner` counts the sockets of the endpoint in the upper. */
	owner = *(volatile __u64 *)&port->owner;
	if ((!(__u32)owner || owner >> 32 == socket->index) &&
	    __sync_val_compare_and_swap(&port->owner, owner, mine | ((__u32)owner + 1)) == owner) {
		first = !(__u32)owner;
	} else {
		socket->counted |= SLIM_COUNTED_JOINED;
		first = slim_port_join(socket);
	}
	if (first)
		__sync_fetch_and_add(&share.mine->ports, 1);
}

#endif /* SLIMNET_SHARE_H */
