/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The records of handshakes and of source-bound connections: each endpoint has
 * a share of either table, so that none can take the table from all others on
 * its host; and what nobody came back for is swept out.
 *
 * A share is counted here alone. A count that was lost (an index given to
 * another endpoint) is at worst a smaller count, never one below zero.
 */
#ifndef SLIMNET_FLOW_H
#define SLIMNET_FLOW_H

#include "state.h"

#define SLIM_HANDSHAKE (SLIM_HANDSHAKE_SECONDS * SLIM_SECOND)
#define SLIM_BOUND_LINGER (SLIM_LINGER_SECONDS * SLIM_SECOND)

static __always_inline void slim_share_give_back(__u32 *count)
{
	if (*(volatile __u32 *)count)
		__sync_fetch_and_add(count, -1);
}

static __always_inline struct slim_usage *slim_usage_of(__u32 inner)
{
	__u32 index = inner >> 16 & 0x7ff;	/* 11 bits */

	return bpf_map_lookup_elem(&slim_local, &index);
}

static __always_inline void slim_flow_drop(const struct slim_tuple *tuple)
{
	struct slim_flow *flow = bpf_map_lookup_elem(&slim_flow, tuple);
	struct slim_usage *usage;
	__u32 inner;

	if (!flow)
		return;
	inner = flow->inner;
	if (bpf_map_delete_elem(&slim_flow, tuple))
		return;
	usage = slim_usage_of(inner);
	if (usage)
		slim_share_give_back(&usage->flows);
}

/* 0, or no room: in the table, or in the share of the endpoint that listens. */
static __always_inline int
slim_flow_put(const struct slim_tuple *tuple, const struct slim_flow *flow)
{
	struct slim_usage *usage = slim_usage_of(flow->inner);

	if (!usage)
		return -1;
	/* A SYN that was sent again has a place already. */
	if (usage->flows >= SLIM_FLOW_SHARE)
		slim_flow_drop(tuple);
	if (usage->flows >= SLIM_FLOW_SHARE)
		return -1;
	if (bpf_map_update_elem(&slim_flow, tuple, flow, BPF_NOEXIST)) {
		slim_flow_drop(tuple);
		if (bpf_map_update_elem(&slim_flow, tuple, flow, BPF_NOEXIST))
			return -1;
	}
	__sync_fetch_and_add(&usage->flows, 1);
	return 0;
}

/* Of the three records of a connection the one that names its inner address is counted. */
static __always_inline void
slim_bound_drop(const struct slim_tuple *tuple, __be32 address)
{
	struct slim_usage *usage;

	if (bpf_map_delete_elem(&slim_bound, tuple) || !slim_in_range_v4(address))
		return;
	usage = slim_usage_of(bpf_ntohl(address));
	if (usage)
		slim_share_give_back(&usage->bound);
}

/* Handshakes that never ended. */
static long
slim_sweep_flow(void *map, const void *key, void *value, void *context)
{
	const struct slim_flow *flow = value;
	struct slim_tuple tuple;

	if (bpf_ktime_get_ns() - flow->time < SLIM_HANDSHAKE)
		return 0;
	__builtin_memcpy(&tuple, key, sizeof(tuple));
	slim_flow_drop(&tuple);
	return 0;
}

/* Source-bound connections that nobody can be confused by any more. */
static long
slim_sweep_bound(void *map, const void *key, void *value, void *context)
{
	const struct slim_bound *bound = value;
	struct slim_tuple tuple;
	__be32 address;

	if (!bound->closed || bpf_ktime_get_ns() - bound->closed < SLIM_BOUND_LINGER)
		return 0;
	__builtin_memcpy(&tuple, key, sizeof(tuple));
	address = bound->address;
	slim_bound_drop(&tuple, address);
	return 0;
}

/* Run by BPF_PROG_TEST_RUN, every now and then. */
static __always_inline int slim_sweep_run(void)
{
	bpf_for_each_map_elem(&slim_flow, slim_sweep_flow, NULL, 0);
	bpf_for_each_map_elem(&slim_bound, slim_sweep_bound, NULL, 0);
	return 0;
}

#endif /* SLIMNET_FLOW_H */
