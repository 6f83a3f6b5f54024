/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What leaves a datagram socket is decided where it leaves.
 *
 * connect(2) and sendto(2) are asked before (connect.h), and what they answer is
 * for the caller to hear. But nobody asks them of what a connected socket sends,
 * and udp_sendmsg() reads its peer, its port and its route one after the other
 * and without a lock. While another thread connects it anew, or to AF_UNSPEC, for
 * which there is no hook at all, it sends to the address of one connect with the
 * port of another, by the route of a third: to an allowed address by the route to
 * nowhere, which is the host's loopback and ends at any service on 0.0.0.0; to
 * the address 0 of a socket that is not connected, which is 127.0.0.1.
 *
 * So each datagram is looked at once more as it is: to this host only what is for
 * one of its addresses, or for nowhere (steer.h refuses that); and all by policy.
 * For TCP, which connects under the socket's lock, it is a comparison for each
 * packet that the kernel makes, up to 64 KiB; no other program runs per packet
 * where there is no limit.
 */
#ifndef SLIMNET_GUARD_H
#define SLIMNET_GUARD_H

#include "limit.h"

#include <slimnet/way.h>

#define SLIM_IPV6_DESTINATION 24
#define SLIM_IPV4_WORDS 5		/* of a header without options */

/* The head of a datagram; cgroup_skb programs see packets from there on. */
struct slim_datagram {
	struct iphdr ip;
	__be16 source_port;
	__be16 port;
};

/*
 * Whom it is for, as policy is asked. An endpoint's datagram has no IP options: a source
 * route would say who else it is for.
 */
static __always_inline __u32 slim_guard_aim(struct __sk_buff *skb, struct slim_aim *aim)
{
	struct slim_datagram head;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return bpf_skb_load_bytes(skb, SLIM_IPV6_DESTINATION, aim->address,
					  sizeof(aim->address)) ?
			       SLIM_REASON_MALFORMED : SLIM_REASON_NONE;
	if (bpf_skb_load_bytes(skb, 0, &head, sizeof(head)))
		return SLIM_REASON_MALFORMED;
	slim_map_v4(aim->address, head.ip.daddr);
	aim->port = head.port;
	return head.ip.ihl == SLIM_IPV4_WORDS ? SLIM_REASON_NONE : SLIM_REASON_OPTION;
}

/* Is it for this host, and not only on the way there? Loopback is nobody's, but for resolvers. */
static __always_inline bool slim_guard_is_own(const struct slim_aim *aim)
{
	struct slim_cidr_key key = { .prefixlen = 32 + 128 };
	const __u32 *own;

	if (slim_is_resolver(aim->address, aim->port, aim->client))
		return true;
	slim_copy(key.address, aim->address);
	own = bpf_map_lookup_elem(&slim_own, &key);
	return own && *own == SLIM_OWN_LOCAL;
}

static __always_inline int slim_guard_datagram(struct __sk_buff *skb)
{
	const struct slim_local *local = bpf_get_local_storage(&slim_cgroup, 0);
	struct slim_dialled dialled = {
		.aim = {
			.vni = local->vni,
			.client = local->endpoint,
			.protocol = IPPROTO_UDP,
		},
	};
	struct slim_call call = { .protocol = IPPROTO_UDP, .direction = SLIM_EGRESS };
	struct slim_way way = {};
	struct slim_inner_range range;
	struct slim_socket *socket;
	struct slim_state state;
	struct bpf_sock *sk;
	bool inside;

	sk = skb->sk;
	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	if (!sk || sk->protocol != IPPROTO_UDP)
		return SLIM_SEND;
	socket = bpf_sk_storage_get(&slim_socket, sk, NULL, 0);
	if (socket && socket->flags & SLIM_SOCKET_ELSEWHERE)
		return SLIM_SEND;

	call.reason = slim_guard_aim(skb, &dialled.aim);
	if (!call.reason) {
		inside = skb->ifindex == SLIM_LOOPBACK_IFINDEX;
		if (!slim_state_get(&state)) {
			call.reason = SLIM_REASON_NO_TABLES;
		} else if (inside && slim_in_range(state.control, dialled.aim.address)) {
			return SLIM_SEND;
		} else if (inside && !slim_guard_is_own(&dialled.aim)) {
			call.reason = SLIM_REASON_DATAGRAM;
		} else {
			range = slim_inner_range(state.control);
			if (!slim_way(&state, &range, slim_fixed.wire_port, &dialled, &way))
				return SLIM_SEND;
			call.reason = way.reason;
			call.rule = way.rule;
			call.peer = way.target.endpoint;
		}
	}
	call.port = dialled.aim.port;
	slim_refuse(local, dialled.aim.address, &call);
	return SLIM_DROP;
}

static __always_inline int slim_guard_run(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if ((void *)(ip + 1) <= end && ip->protocol != IPPROTO_UDP)
			return SLIM_SEND;
	} else if (data + SLIM_IPV6_LENGTH <= end &&
		   ((__u8 *)data)[SLIM_IPV6_NEXT] == IPPROTO_TCP) {
		return SLIM_SEND;
	}
	return slim_guard_datagram(skb);
}

#endif /* SLIMNET_GUARD_H */
