/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The two ends of a router's way out, for connections that are carried (carry.h).
 */
#ifndef SLIMNET_ARRIVE_H
#define SLIMNET_ARRIVE_H

#include <linux/if_packet.h>

#include "carry.h"
#include "steer.h"

/* A SYN of a socket of this host to an endpoint that is reached through its router. */
slim_verified_once int
slim_arrive_syn(struct __sk_buff *skb, const struct slim_segment *segment)
{
	struct slim_admitted admitted = {};
	struct slim_option option = {};
	struct slim_state state;
	struct slim_syn syn = {};

	if (!segment || !slim_is_wire_port(segment->key.destination_port))
		return 0;
	slim_map_v4(syn.tuple.source, segment->key.source);
	slim_map_v4(syn.tuple.destination, segment->key.destination);
	syn.tuple.source_port = segment->key.source_port;
	syn.tuple.destination_port = segment->key.destination_port;
	syn.sequence = segment->sequence;
	if (slim_syn_option(skb, SLIM_TCP_OFFSET + sizeof(struct tcphdr),
			    segment->doff * 4 - sizeof(struct tcphdr), &option) <= 0)
		return 0;
	if (!slim_state_get(&state) || !state.active)
		return 0;
	if (slim_syn_near(&state, &syn, &option, &admitted)) {
		slim_syn_refused(&syn, admitted.source ? &option : NULL, &admitted);
		return 0;
	}
	if (slim_carry_admit(&syn, &option, &admitted) <= 0)
		return 0;
	slim_count(admitted.reason);
	return 1;
}

/* The router's end: from the underlay, or from a socket of this host, to the endpoint. */
static __always_inline int slim_arrive_run(struct __sk_buff *skb)
{
	struct slim_segment segment = {};
	struct slim_carried *carried;
	__u32 device;

	if (!slim_segment_load(skb, &segment)) {
		int into = slim_is_icmp(skb) ? slim_carry_icmp(skb, 1) : 0;

		if (into < 0)
			return TC_ACT_SHOT;
		return into ? bpf_redirect_peer(into, 0) : SLIM_TC_NEXT;
	}
	if (segment.syn && !segment.ack && slim_steer_is_near(segment.key.destination) &&
	    !slim_arrive_syn(skb, &segment))
		return SLIM_TC_NEXT;	/* the router resets it */
	carried = bpf_map_lookup_elem(&slim_carried, &segment.key);
	if (!carried)
		return SLIM_TC_NEXT;
	if (carried->flags & SLIM_CARRIED_REVOKED && !segment.rst)
		return TC_ACT_SHOT;
	slim_carried_note(skb, &segment, carried);
	if (segment.syn && !segment.ack &&
	    slim_carry_blank(skb, segment.doff * 4 - sizeof(struct tcphdr)))
		return TC_ACT_SHOT;
	device = carried->device;
	if (slim_carried_write(skb, carried, &segment.key, carried->macs))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(device, 0);
}

/*
 * To whom packets for another host go: bpf_redirect_neigh() without a next hop asks the routes
 * for each packet anew.
 */
#define SLIM_HOP_BITS 6
#define SLIM_HOP_LASTS (SLIM_SECOND / 10)

static struct slim_hop {
	__u64 hop;	/* the next hop, and above it the host: read and written in one */
	__u64 asked;
} slim_hops[1 << SLIM_HOP_BITS];

/* 0: none that is an IPv4 address on the underlay interface, or this host does not forward there. */
static __noinline __be32
slim_hop_ask(struct __sk_buff *skb, __u32 ifindex, __be32 source, __be32 destination)
{
	struct bpf_fib_lookup route = {
		.family = AF_INET,
		.l4_protocol = IPPROTO_TCP,
		.ifindex = ifindex,
		.ipv4_src = source,
		.ipv4_dst = destination,
	};

	if (bpf_fib_lookup(skb, &route, sizeof(route),
			   BPF_FIB_LOOKUP_OUTPUT | BPF_FIB_LOOKUP_SKIP_NEIGH))
		return 0;
	return route.family == AF_INET && route.ifindex == ifindex ? route.ipv4_dst : 0;
}

static __always_inline __be32
slim_hop_to(struct __sk_buff *skb, __u32 ifindex, __be32 source, __be32 destination)
{
	/* Fibonacci hashing: the bits that differ between neighbours come to the top. */
	__u32 at = bpf_ntohl(destination) * 0x9e3779b1U >> (32 - SLIM_HOP_BITS);
	const __u64 now = bpf_ktime_get_coarse_ns();
	struct slim_hop *hop = &slim_hops[at];
	const __u64 held = *(volatile __u64 *)&hop->hop;
	__be32 next;

	if (held >> 32 == destination && now - hop->asked < SLIM_HOP_LASTS)
		return held;
	next = slim_hop_ask(skb, ifindex, source, destination);
	*(volatile __u64 *)&hop->hop = (__u64)destination << 32 | next;
	hop->asked = now;
	return next;
}

/* The host's end: out by the underlay, or to a socket of this host. */
static __always_inline int slim_portal_run(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct slim_control *control;
	const struct iphdr *ip = data + ETH_HLEN;
	__u32 zero = 0;

	control = bpf_map_lookup_elem(&slim_control, &zero);
	if (!control)
		return SLIM_TC_NEXT;
	/* The router masquerades whatever it sends itself: only what was rewritten has this source. */
	if (skb->protocol == bpf_htons(ETH_P_IP) && (void *)(ip + 1) <= end &&
	    ip->saddr == control->underlay[3]) {
		const __u32 ifindex = control->ifindex;
		struct bpf_redir_neigh next = { .nh_family = AF_INET };

		next.ipv4_nh = slim_hop_to(skb, ifindex, ip->saddr, ip->daddr);
		return next.ipv4_nh ? bpf_redirect_neigh(ifindex, &next, sizeof(next), 0) :
				      bpf_redirect_neigh(ifindex, NULL, 0, 0);
	}
	/*
	 * Sent by a device (slim_pass_on()), it still has the Ethernet address that the
	 * endpoint wrote, and counts as another machine's.
	 */
	if (skb->pkt_type != PACKET_HOST && bpf_skb_change_type(skb, PACKET_HOST))
		return TC_ACT_SHOT;
	return slim_ingress(skb, true);
}

#endif /* SLIMNET_ARRIVE_H */
