/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The records of handshakes and of source-bound connections, and who is charged
 * for them (share.h); what nobody came back for goes out in
 * sweep.h.
 */
#ifndef SLIMNET_FLOW_H
#define SLIMNET_FLOW_H

#include "share.h"

#define SLIM_HANDSHAKE (SLIM_HANDSHAKE_SECONDS * SLIM_SECOND)
#define SLIM_BOUND_LINGER (SLIM_LINGER_SECONDS * SLIM_SECOND)

static __always_inline void slim_opening_less(__u32 inner)
{
	__u32 *opening = bpf_map_lookup_elem(&slim_opening, &inner);

	if (opening)
		slim_share_less(opening);
}

static __always_inline void slim_flow_drop(const struct slim_tuple *tuple)
{
	struct slim_flow *flow = bpf_map_lookup_elem(&slim_flow, tuple);
	struct slim_share share;
	__u32 charged;

	if (!flow)
		return;
	charged = flow->charged;
	if (bpf_map_delete_elem(&slim_flow, tuple))
		return;
	slim_opening_less(charged);
	if (slim_share_get(slim_inner_index(charged), &share))
		slim_share_give_back(&share, flows);
}

/*
 * An endpoint's share is shared by its ports in the same way, so that one whose
 * listener does not accept leaves something to the others.
 */
static __always_inline bool
slim_flow_may(const struct slim_share *share, const __u32 *opening)
{
	return slim_share_held(*opening) < slim_share_room(share, flows, SLIM_FLOW_ROOM);
}

/*
 * Writes a flow record. 0, or negative where there is no room: in the table, or in
 * the share of whoever the record is charged to. For a SYN from the wire that is
 * the listener's port. On one host it is the endpoint that connects, since its
 * socket decides how long the record stays: charged to the listener, one endpoint
 * could shut a neighbour's port.
 */
static __always_inline int
slim_flow_put(const struct slim_tuple *tuple, const struct slim_flow *flow)
{
	__u32 charged = flow->charged, none = 0, *opening;
	struct slim_share share;

	if (!slim_share_get(slim_inner_index(charged), &share))
		return -1;
	opening = bpf_map_lookup_elem(&slim_opening, &charged);
	if (!opening) {
		bpf_map_update_elem(&slim_opening, &charged, &none, BPF_NOEXIST);
		opening = bpf_map_lookup_elem(&slim_opening, &charged);
		if (!opening)
			return -1;
	}
	if (!slim_flow_may(&share, opening)) {
		/* A SYN that was sent again has a place already. */
		slim_flow_drop(tuple);
		if (!slim_flow_may(&share, opening))
			return -1;
	}
	if (bpf_map_update_elem(&slim_flow, tuple, flow, BPF_NOEXIST)) {
		slim_flow_drop(tuple);
		if (bpf_map_update_elem(&slim_flow, tuple, flow, BPF_NOEXIST))
			return -1;
	}
	__sync_fetch_and_add(opening, 1);
	slim_share_take(&share, flows);
	return 0;
}

/* __noinline: a frame of its own, for the 512 bytes of connect's BPF stack are full. */
static __noinline int slim_bound_may(__u32 index)
{
	struct slim_share share;

	return slim_share_get(index, &share) && slim_share_room(&share, bound, SLIM_BOUND_ROOM);
}

static __noinline int slim_bound_add(__u32 index)
{
	struct slim_share share;

	if (slim_share_get(index, &share))
		slim_share_take(&share, bound);
	return 0;
}

/*
 * A source-bound connection has three records. The one that its replies are found by,
 * whose value is the inner address, is the one that counts in the endpoint's share.
 */
static __always_inline void
slim_bound_drop(const struct slim_tuple *tuple, __be32 address)
{
	struct slim_share share;

	if (bpf_map_delete_elem(&slim_bound, tuple) || !slim_in_range_v4(address))
		return;
	if (slim_share_get(slim_inner_index(bpf_ntohl(address)), &share))
		slim_share_give_back(&share, bound);
}

#endif /* SLIMNET_FLOW_H */
