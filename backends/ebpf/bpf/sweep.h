/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What goes out of the tables of handshakes and of source-bound connections:
 * that which nobody came back for, and that which new tables deny. Run by
 * BPF_PROG_TEST_RUN, every now and then and at each change of the tables, in the
 * underlay namespace and on its interface.
 */
#ifndef SLIMNET_SWEEP_H
#define SLIMNET_SWEEP_H

#include "carry.h"
#include "event.h"
#include "flow.h"

#define SLIM_ANSWER (SLIM_ANSWER_SECONDS * SLIM_SECOND)

struct slim_sweep {
	struct slim_state state;
	struct __sk_buff *skb;
};

/* Signed: what was written while we looked is not very old but younger than now. */
static __always_inline bool slim_sweep_is_older(__u64 time, __s64 age)
{
	return (__s64)(bpf_ktime_get_ns() - time) >= age;
}

/* The state of the socket that gets the packets from one end to the other; 0: there is none. */
static __noinline int
slim_sweep_find(struct __sk_buff *skb, const struct slim_tuple *flow, int backwards)
{
	struct bpf_sock_tuple tuple = {};
	const __be32 *from, *to;
	struct bpf_sock *sk;
	int state;

	if (!flow)
		return 0;
	from = backwards ? flow->destination : flow->source;
	to = backwards ? flow->source : flow->destination;
	if (slim_is_mapped(from)) {
		tuple.ipv4.saddr = from[3];
		tuple.ipv4.daddr = to[3];
		tuple.ipv4.sport = backwards ? flow->destination_port : flow->source_port;
		tuple.ipv4.dport = backwards ? flow->source_port : flow->destination_port;
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		slim_copy(tuple.ipv6.saddr, from);
		slim_copy(tuple.ipv6.daddr, to);
		tuple.ipv6.sport = backwards ? flow->destination_port : flow->source_port;
		tuple.ipv6.dport = backwards ? flow->source_port : flow->destination_port;
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return 0;
	state = sk->state;
	bpf_sk_release(sk);
	return state;
}

/*
 * Is a handshake of some age still under way? Over the wire as long as there is a
 * request socket: a SYN that found no room in the listener's queue has none, and
 * gets a new record when it is sent again, while one whose accept is deferred
 * (TCP_DEFER_ACCEPT) keeps its for as long as the listener says. On this host the
 * client's socket says so: its SYN is sent again without a word to us.
 */
static __always_inline bool
slim_sweep_lives(struct __sk_buff *skb, const struct slim_tuple *tuple, __u32 flags)
{
	int state = slim_sweep_find(skb, tuple, !!(flags & SLIM_FLOW_SAME_HOST));

	if (flags & SLIM_FLOW_SAME_HOST)
		return state && state != BPF_TCP_LISTEN && state != BPF_TCP_TIME_WAIT;
	return state == BPF_TCP_NEW_SYN_RECV;
}

/*
 * Newer tables than those that admitted a handshake: do they deny it? A peer that
 * they do not know any more is no reason, as it is none for a live connection.
 *
 * Nothing is written into the record: its place may be another's by now, of which
 * nothing was decided. Whoever is established by it asks once more (sockops.h).
 */
static __noinline int slim_sweep_denies(struct slim_state *state, const struct slim_tuple *tuple,
					const struct slim_flow *flow)
{
	const struct slim_account one = { .refused = 1 };
	struct slim_target opener = {};
	struct slim_endpoint *source, *destination;
	struct slim_verdict verdict;
	struct slim_event *event;

	if (!state || !tuple || !flow || flow->generation == state->active >> 1)
		return 0;
	source = slim_endpoint_get(state, flow->source_endpoint);
	destination = slim_endpoint_get(state, flow->destination_endpoint);
	if (!source || !destination)
		return 0;
	opener.endpoint = flow->source_endpoint;
	opener.identity = source->identity;
	opener.port = flow->destination_port;
	verdict = slim_target_decide(state, flow->destination_endpoint, destination->identity,
				     &opener, SLIM_INGRESS, IPPROTO_TCP);
	/* Of two records, where the place was given away while they were read, it says nothing. */
	if (verdict.action == SLIM_ALLOW || bpf_map_lookup_elem(&slim_flow, tuple) != flow)
		return 0;
	slim_count(SLIM_REASON_GENERATION);
	slim_account_add(flow->destination_endpoint, verdict.rule, SLIM_INGRESS, &one);
	event = slim_event_refused(destination->index, SLIM_REASON_GENERATION, verdict.rule,
				   SLIM_INGRESS, IPPROTO_TCP);
	if (event) {
		event->endpoint = flow->destination_endpoint;
		event->peer_endpoint = flow->source_endpoint;
		slim_copy(event->source, flow->source);
		slim_copy(event->destination, flow->destination);
		event->source_port = flow->source_port;
		event->destination_port = flow->destination_port;
		bpf_ringbuf_submit(event, 0);
	}
	return 1;
}

static long slim_sweep_flow(void *map, const void *key, void *value, void *context)
{
	struct slim_sweep *sweep = context;
	const struct slim_flow *flow = value;
	struct slim_tuple tuple;

	__builtin_memcpy(&tuple, key, sizeof(tuple));
	/* Of one that was announced the SYN may be sent again without a word to us. */
	if (!slim_sweep_denies(&sweep->state, &tuple, flow) &&
	    (!slim_sweep_is_older(flow->time, flow->flags & SLIM_FLOW_ANNOUNCED ?
						      SLIM_HANDSHAKE : SLIM_ANSWER) ||
	     slim_sweep_lives(sweep->skb, &tuple, flow->flags)))
		return 0;
	slim_flow_drop(&tuple);
	return 0;
}

/* Source-bound connections that nobody can be confused by any more. */
static long slim_sweep_bound(void *map, const void *key, void *value, void *context)
{
	const struct slim_bound *bound = value;
	struct slim_tuple tuple;
	__be32 address;

	if (!bound->closed || !slim_sweep_is_older(bound->closed, SLIM_BOUND_LINGER))
		return 0;
	__builtin_memcpy(&tuple, key, sizeof(tuple));
	address = bound->address;
	slim_bound_drop(&tuple, address);
	return 0;
}

/*
 * Carried connections: closed both ways, for as long as TIME_WAIT lasts; of which no
 * packet but the SYN was seen, for as long as a handshake may take; and idle ones. Of the
 * two records the one of the way out is looked at.
 */
static long slim_sweep_carried(void *map, const void *key, void *value, void *context)
{
	const struct slim_carried *carried = value, *back;
	struct slim_carried_key mine, other;
	__u64 used = carried->used;
	__u32 both;

	__builtin_memcpy(&mine, key, sizeof(mine));
	/* That of a name goes with the connection's. */
	if (carried->name && mine.destination == carried->peer && !mine.source)
		return 0;
	slim_carried_other(carried, &other);
	back = bpf_map_lookup_elem(&slim_carried, &other);
	if (!back) {
		/* Of half of a connection, which is being made or removed. */
		if (slim_sweep_is_older(used, SLIM_CARRIED_LINGER))
			slim_carried_drop(&mine, &other);
		return 0;
	}
	if (!mine.device)
		return 0;
	if (back->used > used)
		used = back->used;
	both = carried->flags & back->flags;
	if (slim_sweep_is_older(used, both & SLIM_CARRIED_FINAL ? SLIM_CARRIED_LINGER :
				      both & SLIM_CARRIED_ANSWERED ? SLIM_CARRIED_IDLE :
								     SLIM_HANDSHAKE))
		slim_carried_drop(&mine, &other);
	return 0;
}

/* Ends at the first that is closed still: those before it are gone, or live again. */
static long slim_sweep_closed(__u32 i, void *context)
{
	struct slim_carried_key key;

	return bpf_map_peek_elem(&slim_over, &key) ||
	       slim_carried_life(&key, 0) == SLIM_CARRIED_OVER ||
	       bpf_map_pop_elem(&slim_over, &key);
}

/*
 * A whole sweep looks at every place of three large tables, which takes milliseconds
 * and the processor's caches; most of the time there is nothing in them. So one that
 * comes every now and then goes by the counts: a table of which nobody holds a record
 * is left out. A count that was lost is put right by the next whole sweep. One for new
 * tables looks at every place of the handshakes': they decide of nothing else here.
 */
static __always_inline int slim_sweep_run(struct __sk_buff *skb)
{
	const bool whole = skb->mark == SLIM_SWEEP_WHOLE;
	const bool flows = skb->mark != SLIM_SWEEP_COUNTED;
	struct slim_sweep sweep = { .skb = skb };
	const struct slim_usage *all = slim_usage_get(0);

	if (flows)
		slim_share_sum_up();
	if ((flows || (all && all->flows)) && slim_state_get(&sweep.state))
		bpf_for_each_map_elem(&slim_flow, slim_sweep_flow, &sweep, 0);
	if (whole && all && all->carried)
		bpf_for_each_map_elem(&slim_carried, slim_sweep_carried, NULL, 0);
	if (flows)
		bpf_loop(SLIM_CARRIED_ROOM, slim_sweep_closed, NULL, 0);
	if (whole || (all && all->bound))
		bpf_for_each_map_elem(&slim_bound, slim_sweep_bound, NULL, 0);
	return 0;
}

#endif /* SLIMNET_SWEEP_H */
