/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a SYN to a listener: tc ingress checks the option and writes the flow
 * record, sk_lookup reads it and assigns the listener. And the shield: without
 * a flow record nothing reaches a socket of an endpoint, but through a port of
 * the host that is published as its own.
 *
 * tc never assigns (bpf_sk_assign would skip the kernel's TIME_WAIT handling),
 * and lets nothing through to a wire port that it did not parse.
 */
#ifndef SLIMNET_STEER_H
#define SLIMNET_STEER_H

#include "bind.h"
#include "carry.h"
#include "flow.h"

/* Loads the SYN's options and looks for ours among them; see slim_option_find(). */
slim_verified_once int
slim_syn_option(struct __sk_buff *skb, __u32 offset, __u32 length, struct slim_option *option)
{
	__u8 bytes[SLIM_TCP_OPTIONS_MAX] = {};

	if (!option || length < SLIM_OPTION_LENGTH)
		return 0;
	/*
	 * Without this clang merges the two comparisons into one on a copy of `length`,
	 * and the verifier of Linux 6.1 then knows no bounds of `length` itself.
	 */
	barrier_var(length);
	if (length > sizeof(bytes))
		return 0;
	if (bpf_skb_load_bytes(skb, offset, bytes, length))
		return 0;
	return slim_option_find(bytes, length, option);
}

static __always_inline void
slim_syn_refused(const struct slim_syn *syn, const struct slim_option *option,
		 const struct slim_admitted *admitted)
{
	const struct slim_endpoint *source = admitted->source, *destination = admitted->destination;
	const struct slim_account one = { .refused = 1 };
	struct slim_event *event;

	slim_count(admitted->reason);
	if (option && slim_is_policy(admitted->reason))
		slim_account_add(admitted->destination_id, admitted->rule, SLIM_INGRESS, &one);
	event = slim_event_refused(destination ? destination->index : 0, admitted->reason,
				   admitted->rule, SLIM_INGRESS, IPPROTO_TCP);
	if (!event)
		return;
	slim_copy(event->source, source ? source->address : syn->tuple.source);
	slim_copy(event->destination,
		  destination ? destination->address : syn->tuple.destination);
	event->source_port = syn->tuple.source_port;
	event->destination_port = syn->tuple.destination_port;
	if (option) {
		event->endpoint = admitted->destination_id;
		event->peer_endpoint = admitted->source_id;
		event->destination_port = option->port;
	}
	bpf_ringbuf_submit(event, 0);
}

/*
 * Does the kernel drop a SYN to this listener for want of room (sk_acceptq_is_full()
 * in tcp_conn_request())? Then it needs no record, which nobody would remove. Of a
 * reuseport group another member may have room.
 */
static __always_inline bool slim_is_full(struct bpf_sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct sock *listener;

	if (!tcp)
		return false;
	listener = &tcp->inet_conn.icsk_inet.sk;
	return listener->sk_ack_backlog > listener->sk_max_ack_backlog &&
	       !BPF_CORE_READ_BITFIELD(&listener->__sk_common, skc_reuseport);
}

/*
 * Does the endpoint listen at this inner address? 1: yes; -1: yes, and its accept
 * queue is full; 0: no. A listener that is no longer in the SOCKHASH, since the member
 * of its reuseport group that was in there has closed, is put back.
 */
slim_verified_once int
slim_listener_repair(struct __sk_buff *skb, __u32 inner, __u32 endpoint)
{
	struct slim_listener_key key = { .inner = inner };
	struct slim_socket *socket;
	struct bpf_sock *sk;
	int found = 0;

	sk = bpf_map_lookup_elem(&slim_listener, &key);
	if (sk) {
		socket = bpf_sk_storage_get(&slim_socket, sk, NULL, 0);
		if (socket && slim_listens_at(&key, sk, socket))
			found = slim_is_full(sk) ? -1 : 1;
		bpf_sk_release(sk);
		if (found)
			return found;
	}
	struct bpf_sock_tuple tuple = {
		.ipv4.daddr = slim_inner_v4(inner),
		.ipv4.dport = bpf_htons(SLIM_INNER_PORT),
	};

	sk = bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	socket = bpf_sk_storage_get(&slim_socket, sk, NULL, 0);
	if (socket && socket->endpoint == endpoint && socket->inner == inner &&
	    slim_is_original(sk) && socket->counted & SLIM_COUNTED_LISTENER)
		found = !bpf_map_update_elem(&slim_listener, &key, sk, BPF_ANY);
	bpf_sk_release(sk);
	return found;
}

/* slim_admit() for a SYN that the other end of a router's way out stands for this host in. */
static __noinline int
slim_syn_near(struct slim_state *state, const struct slim_syn *syn,
	      const struct slim_option *option, struct slim_admitted *admitted)
{
	if (!state || !syn || !option || !admitted || !state->control)
		return SLIM_ADMIT_LATER;
	admitted->source = NULL;
	admitted->destination = NULL;
	admitted->rule = 0;
	admitted->source_id = slim_be32toh(option->source);
	admitted->destination_id = slim_be32toh(option->destination);
	if (!slim_tag_is_good(state->control->keys.key[0], &syn->tuple, syn->sequence, option) &&
	    !slim_tag_is_good(state->control->keys.key[1], &syn->tuple, syn->sequence, option)) {
		admitted->reason = SLIM_REASON_SYN_TAG;
		return SLIM_ADMIT_FORGED;
	}
	return slim_admit_from(state, state->control->underlay, option->port, admitted);
}

/*
 * Writes the flow record of a SYN that is admitted; or of one that is announced, of which the
 * option has no kind. A frame of its own, for the stack.
 */
static __noinline int
slim_syn_flow(const struct slim_state *state, const struct slim_syn *syn,
	      const struct slim_option *option, const struct slim_admitted *admitted)
{
	struct slim_flow flow = {};

	if (!state || !syn || !option || !admitted || !admitted->source || !admitted->destination)
		return -1;
	flow.inner = slim_inner(false, admitted->destination->index, option->port);
	flow.charged = flow.inner;
	flow.time = bpf_ktime_get_ns();
	flow.generation = state->active >> 1;
	slim_copy(flow.source, admitted->source->address);
	slim_copy(flow.destination, admitted->destination->address);
	flow.source_port = slim_option_name(option, syn->tuple.source_port);
	flow.destination_port = option->port;
	flow.source_endpoint = admitted->source_id;
	flow.destination_endpoint = admitted->destination_id;
	flow.rule = admitted->rule;
	flow.flags = option->kind ? 0 : SLIM_FLOW_ANNOUNCED;
	return slim_flow_put(&syn->tuple, &flow);
}

/*
 * A SYN to a wire port. SLIM_TC_NEXT lets it go on to sk_lookup, which answers
 * with the host's RST unless there is a flow record.
 */
static __noinline int
slim_syn_admit(struct __sk_buff *skb, const struct slim_syn *syn, const bool portal)
{
	struct slim_state opened, *state = &opened;
	struct slim_admitted admitted = {};
	struct slim_option option = {};
	int found;

	if (!syn || !slim_state_get(state))
		return TC_ACT_SHOT;
	found = slim_syn_option(skb, syn->options, syn->length, &option);
	if (found < 0) {
		/*
		 * No room for our option beside a Fast Open cookie, which the client's host
		 * has cached from elsewhere. Dropped: it sends the SYN again without.
		 */
		slim_count(SLIM_REASON_SYN_NO_OPTION);
		return TC_ACT_SHOT;
	}
	if (!found) {
		const struct slim_flow *announced = bpf_map_lookup_elem(&slim_flow, &syn->tuple);
		__u32 through = portal ? 0 : slim_carried_announced(&syn->tuple);

		if (through)
			return bpf_redirect_peer(through, 0);
		if (announced && announced->flags & SLIM_FLOW_ANNOUNCED)
			return SLIM_TC_NEXT;
		admitted.reason = SLIM_REASON_SYN_NO_OPTION;
		goto forged;
	}
	switch (portal ? slim_syn_near(state, syn, &option, &admitted) :
			 slim_admit(state, &state->control->keys, &syn->tuple, syn->sequence,
				    &option, &admitted)) {
	case SLIM_ADMIT_YES:
		break;
	case SLIM_ADMIT_FORGED:
		goto forged;
	case SLIM_ADMIT_LATER:
		slim_flow_drop(&syn->tuple);
		slim_syn_refused(syn, &option, &admitted);
		return TC_ACT_SHOT;
	case SLIM_ADMIT_NO:
		goto refuse;
	}
	if (!admitted.source || !admitted.destination)
		return TC_ACT_SHOT;	/* cannot be; the verifier of Linux 6.1 does not see it */
	if (!portal && !admitted.destination->index) {
		found = slim_carry_admit(syn, &option, &admitted);
		if (found > 0) {
			slim_count(admitted.reason);
			return bpf_redirect_peer(found, 0);
		}
		if (found < 0) {
			slim_count(SLIM_REASON_FLOW_FULL);
			return TC_ACT_SHOT;
		}
	}
	found = slim_listener_repair(skb, slim_inner(false, admitted.destination->index,
						     option.port), admitted.destination_id);
	if (!found) {
		admitted.reason = SLIM_REASON_SYN_NO_LISTENER;
		goto refuse;
	}
	slim_count(admitted.reason);
	if (found < 0 || slim_syn_flow(state, syn, &option, &admitted)) {
		slim_count(SLIM_REASON_FLOW_FULL);
		return TC_ACT_SHOT;
	}
	return SLIM_TC_NEXT;

refuse:
	slim_flow_drop(&syn->tuple);
	slim_syn_refused(syn, admitted.source ? &option : NULL, &admitted);
	return SLIM_TC_NEXT;

forged:
	/* The event names no source: without a valid tag, anybody may have written it. */
	slim_syn_refused(syn, NULL, &admitted);
	/*
	 * A flow record on this tuple is another SYN's. Dropped then: let through, sk_lookup
	 * would give it that one's listener; refused, the reset would end that handshake.
	 */
	return bpf_map_lookup_elem(&slim_flow, &syn->tuple) ? TC_ACT_SHOT : SLIM_TC_NEXT;
}

/* What slim_syn_admit() does with a SYN's option, before there is a SYN. */
static __noinline int slim_announced_admit(struct __sk_buff *skb, struct slim_announcement *one)
{
	struct slim_admitted admitted = {};
	struct slim_option option = {};
	struct slim_state state;
	struct slim_syn syn = {};
	int found;

	if (!one || !slim_state_get(&state) || !state.active)
		return TC_ACT_SHOT;
	admitted.source_id = one->source_endpoint;
	admitted.destination_id = one->destination_endpoint;
	one->error = ECONNREFUSED;
	syn.tuple = one->tuple;
	option.length = SLIM_OPTION_NAMED;
	option.port = one->port;
	option.name = one->source_port;
	switch (slim_admit_from(&state, one->tuple.source, one->port, &admitted)) {
	case SLIM_ADMIT_YES:
		break;
	case SLIM_ADMIT_LATER:
		one->later = 1;
		one->error = EHOSTUNREACH;
		goto answer;
	default:
		slim_syn_refused(&syn, admitted.source ? &option : NULL, &admitted);
		goto answer;
	}
	if (!admitted.source || !admitted.destination)
		return TC_ACT_SHOT;	/* cannot be, as in slim_syn_admit() */
	if (!admitted.destination->index) {
		found = slim_carry_admit(&syn, &option, &admitted);
		if (found > 0)
			goto admitted;
		if (found < 0)
			goto full;
	}
	found = slim_listener_repair(skb, slim_inner(false, admitted.destination->index,
						     one->port), one->destination_endpoint);
	if (!found) {
		admitted.reason = SLIM_REASON_SYN_NO_LISTENER;
		slim_syn_refused(&syn, &option, &admitted);
		goto answer;
	}
	/* A full accept queue is the kernel's to answer, which drops the SYN: it comes again. */
	if (slim_syn_flow(&state, &syn, &option, &admitted))
		goto full;
admitted:
	slim_count(admitted.reason);
	one->error = 0;
	goto answer;
full:
	admitted.reason = SLIM_REASON_FLOW_FULL;
	one->error = ENOBUFS;
	slim_count(admitted.reason);
answer:
	one->reason = admitted.reason;
	one->rule = admitted.rule;
	return TC_ACT_OK;
}

/* That connection does not come: its record goes. */
static __noinline int slim_announced_withdraw(const struct slim_announcement *one)
{
	const struct slim_flow *held;

	if (!one)
		return 0;
	held = bpf_map_lookup_elem(&slim_flow, &one->tuple);
	if (held && held->flags & SLIM_FLOW_ANNOUNCED)
		slim_flow_drop(&one->tuple);
	slim_carry_withdraw(&one->tuple);
	return 0;
}

/*
 * A connection of which another host's router has told the agent (announce.h), or one that
 * does not come after all. Run by BPF_PROG_TEST_RUN, in the underlay namespace and on its
 * interface.
 */
static __always_inline int slim_announced_run(struct __sk_buff *skb)
{
	struct slim_announcement *asked = (void *)(long)skb->data, one;
	int answer = TC_ACT_OK;

	if ((void *)(asked + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	one = *asked;
	if (one.withdrawn)
		slim_announced_withdraw(&one);
	else
		answer = slim_announced_admit(skb, &one);
	/* The packet may have moved, as far as the verifier knows. */
	bpf_skb_store_bytes(skb, 0, &one, sizeof(one), 0);
	return answer;
}

/* Does the endpoint's policy let in who comes to its published port? 0, or the reason why not. */
static __noinline int
slim_publish_decide(struct slim_state *state, const struct slim_publish *published,
		    const struct slim_tuple *syn, __u32 *rule)
{
	const struct slim_endpoint *endpoint;
	struct slim_target client = {};
	struct slim_verdict verdict;
	__be32 address[4];

	if (!state || !published || !syn || !rule)
		return SLIM_REASON_NO_TABLES;
	endpoint = slim_endpoint_get(state, published->endpoint);
	if (!endpoint)
		return SLIM_REASON_NO_ENDPOINT;
	client.port = published->port;
	slim_copy(address, syn->source);
	slim_target_range(state, endpoint->vni, address, &client);
	verdict = slim_target_decide(state, published->endpoint, endpoint->identity, &client,
				     SLIM_INGRESS, IPPROTO_TCP);
	*rule = verdict.rule;
	if (verdict.action == SLIM_ALLOW)
		slim_count(verdict.reason);
	return verdict.action == SLIM_ALLOW ? 0 : (int)verdict.reason;
}

static __noinline int
slim_publish_refused(const struct slim_publish *published, const struct slim_endpoint *endpoint,
		     const struct slim_tuple *syn, __u32 reason, __u32 rule)
{
	struct slim_call call = {
		.protocol = IPPROTO_TCP,
		.direction = SLIM_INGRESS,
		.reason = reason,
		.rule = rule,
	};
	struct slim_local outside = {};

	if (!published || !endpoint || !syn)
		return 0;
	call.port = published->port;
	call.peer = published->endpoint;
	slim_copy(outside.address, syn->source);
	return slim_refuse(&outside, endpoint->address, &call);
}

/*
 * A published port of an endpoint with a namespace of its own: carried there if that one's
 * policy lets the client in. Refused, the host answers: nobody listens there.
 */
static __always_inline int
slim_publish_carry(struct __sk_buff *skb, struct slim_state *state,
		   const struct slim_publish *published, const struct slim_endpoint *endpoint,
		   const struct slim_tuple *syn)
{
	__u32 rule = 0;
	int answer;

	if (!state->control || syn->destination[3] != state->control->underlay[3])
		return SLIM_TC_NEXT;
	answer = slim_publish_decide(state, published, syn, &rule);
	if (answer) {
		slim_publish_refused(published, endpoint, syn, answer, rule);
		return SLIM_TC_NEXT;
	}
	answer = slim_carry_publish(syn, published, rule);
	if (answer < 0) {
		slim_count(SLIM_REASON_FLOW_FULL);
		return TC_ACT_SHOT;
	}
	return answer ? slim_pass_on(skb, answer) : SLIM_TC_NEXT;
}

/*
 * A SYN to any other port. If that is a published one, only here can its
 * listener be put back into the SOCKHASH.
 */
static __noinline int
slim_syn_published(struct __sk_buff *skb, const struct slim_tuple *syn)
{
	struct slim_state opened, *state = &opened;
	struct slim_publish *published;
	struct slim_endpoint *endpoint;

	if (!syn || !slim_state_get(state))
		return SLIM_TC_NEXT;
	published = slim_publish_get(state, syn->destination[3], syn->destination_port);
	if (!published)
		return SLIM_TC_NEXT;
	endpoint = slim_endpoint_get(state, published->endpoint);
	if (!endpoint)
		return SLIM_TC_NEXT;
	if (!endpoint->index)
		return slim_publish_carry(skb, state, published, endpoint, syn);
	slim_listener_repair(skb, slim_inner(false, endpoint->index, published->port),
				     published->endpoint);
	return SLIM_TC_NEXT;
}

/*
 * Writes another address and port into a TCP packet without IP options:
 * `source` says which side of it.
 */
static __always_inline int
slim_rewrite(struct __sk_buff *skb, bool source, __be32 from, __be32 to, __be16 from_port,
	     __be16 to_port)
{
	__u32 check = SLIM_TCP_OFFSET + offsetof(struct tcphdr, check);
	__u32 address = ETH_HLEN + (source ? offsetof(struct iphdr, saddr) :
					     offsetof(struct iphdr, daddr));
	__u32 port = SLIM_TCP_OFFSET + (source ? offsetof(struct tcphdr, source) :
						 offsetof(struct tcphdr, dest));

	if (bpf_l4_csum_replace(skb, check, from, to, BPF_F_PSEUDO_HDR | sizeof(to)) ||
	    bpf_l4_csum_replace(skb, check, from_port, to_port, sizeof(to_port)) ||
	    bpf_l3_csum_replace(skb, SLIM_CHECK_OFFSET, from, to, sizeof(to)) ||
	    bpf_skb_store_bytes(skb, address, &to, sizeof(to), 0) ||
	    bpf_skb_store_bytes(skb, port, &to_port, sizeof(to_port), 0))
		return TC_ACT_SHOT;
	return SLIM_TC_NEXT;
}

/*
 * An ICMP error about a source-bound connection quotes the packet as it left;
 * the socket knows it by its inner address. Without this, path-MTU discovery
 * is blind (RFC 1191).
 */
static __noinline int slim_icmp_error(struct __sk_buff *skb)
{
	struct {
		struct slim_icmp icmp;
		struct iphdr ip;
		__be16 source;
		__be16 destination;
	} __attribute__((packed)) quote;
	const __u32 offset = SLIM_TCP_OFFSET;
	const __u32 check = offset + offsetof(struct slim_icmp, checksum);
	struct slim_bound *bound;
	struct slim_tuple key = {};
	__be32 outer, address;
	__be16 port;

	if (bpf_skb_load_bytes(skb, offset, &quote, sizeof(quote)))
		return SLIM_TC_NEXT;
	if (quote.icmp.type != ICMP_DEST_UNREACH && quote.icmp.type != ICMP_TIME_EXCEEDED &&
	    quote.icmp.type != ICMP_PARAMETERPROB)
		return SLIM_TC_NEXT;
	if (quote.ip.ihl != 5 || quote.ip.protocol != IPPROTO_TCP)
		return SLIM_TC_NEXT;
	slim_map_v4(key.source, quote.ip.daddr);
	key.source_port = quote.destination;
	slim_map_v4(key.destination, quote.ip.saddr);
	key.destination_port = quote.source;
	bound = bpf_map_lookup_elem(&slim_bound, &key);
	if (!bound)
		return SLIM_TC_NEXT;
	address = bound->address;
	port = bound->port;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, daddr), &outer,
			       sizeof(outer)))
		return TC_ACT_SHOT;
	if (bpf_l4_csum_replace(skb, check, quote.ip.saddr, address, sizeof(address)) ||
	    bpf_l4_csum_replace(skb, check, quote.source, port, sizeof(port)) ||
	    bpf_skb_store_bytes(skb, offset + sizeof(struct slim_icmp) +
				offsetof(struct iphdr, saddr), &address, sizeof(address), 0) ||
	    bpf_skb_store_bytes(skb, offset + sizeof(struct slim_icmp) + sizeof(struct iphdr),
				&port, sizeof(port), 0) ||
	    bpf_l3_csum_replace(skb, SLIM_CHECK_OFFSET, outer, address, sizeof(address)) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, daddr), &address,
				sizeof(address), 0))
		return TC_ACT_SHOT;
	return SLIM_TC_NEXT;
}

/*
 * A tag behind a tag. Where the outer one has VLAN id 0 (802.1p: a priority
 * alone), the kernel takes the inner one off behind tc and delivers what is in
 * it, so tc would never see the packet (__netif_receive_skb_core()). With
 * another id it is for a VLAN device, which is no underlay.
 */
static __always_inline int slim_vlan_again(struct __sk_buff *skb)
{
	if (skb->protocol != bpf_htons(ETH_P_8021Q) && skb->protocol != bpf_htons(ETH_P_8021AD))
		return SLIM_TC_NEXT;
	if (skb->vlan_tci & VLAN_ID_MASK)
		return SLIM_TC_NEXT;
	slim_count(SLIM_REASON_MALFORMED);
	return TC_ACT_SHOT;
}

/*
 * The device by which a packet of a carried connection goes on; 0: it is none. Where
 * there is no such endpoint nobody pays for the look-up.
 */
static __always_inline __u32
slim_ingress_carried(const struct iphdr *ip, const struct tcphdr *tcp)
{
	const bool wire = slim_is_bound_port(tcp->source) || slim_is_wire_port(tcp->dest);
	struct slim_carried_key key = {
		.source = ip->saddr,
		.destination = ip->daddr,
		.source_port = tcp->source,
		.destination_port = tcp->dest,
	};
	const struct slim_carried *carried;
	const struct slim_control *control;
	__u32 zero = 0;

	control = bpf_map_lookup_elem(&slim_control, &zero);
	if (!control || !(wire ? control->apart : control->elsewhere) || (tcp->syn && !tcp->ack))
		return 0;
	carried = bpf_map_lookup_elem(&slim_carried, &key);
	return carried ? carried->through : 0;
}

/* `portal`: what comes from a router's way out, where `near` stands for this host. */
static __always_inline int slim_ingress(struct __sk_buff *skb, const bool portal)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct slim_syn syn;
	struct tcphdr *tcp;
	struct iphdr *ip;
	__u16 fragment;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return slim_vlan_again(skb);
	if (data + SLIM_TCP_OFFSET + sizeof(*tcp) > end) {
		if (bpf_skb_pull_data(skb, SLIM_TCP_OFFSET + sizeof(*tcp))) {
			/* Too short for a TCP header. Anything else may be that short. */
			data = (void *)(long)skb->data;
			end = (void *)(long)skb->data_end;
			ip = data + ETH_HLEN;
			if ((void *)(ip + 1) > end)
				return SLIM_TC_NEXT;
			if (ip->protocol != IPPROTO_TCP ||
			    bpf_ntohs(ip->frag_off) & IP_FRAGMENT_OFFSET)
				return SLIM_TC_NEXT;
			slim_count(SLIM_REASON_MALFORMED);
			return TC_ACT_SHOT;
		}
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (data + SLIM_TCP_OFFSET + sizeof(*tcp) > end)
			return SLIM_TC_NEXT;
	}
	ip = data + ETH_HLEN;
	if (slim_in_range_v4(ip->daddr) ||
	    slim_in_range_v4(ip->saddr)) {
		slim_count(SLIM_REASON_RESERVED_RANGE);
		return TC_ACT_SHOT;
	}
	if (ip->protocol == IPPROTO_ICMP && ip->ihl == 5) {
		int through = portal ? 0 : slim_carry_icmp(skb, 0);

		return through > 0 ? bpf_redirect_peer(through, 0) : slim_icmp_error(skb);
	}
	if (ip->protocol != IPPROTO_TCP)
		return SLIM_TC_NEXT;

	fragment = bpf_ntohs(ip->frag_off);
	if (ip->ihl != 5 || fragment & (IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET)) {
		__be16 port = 0;

		if (fragment & IP_FRAGMENT_OFFSET)
			return SLIM_TC_NEXT;	/* useless, since its first fragment is dropped */
		if (bpf_skb_load_bytes(skb, ETH_HLEN + ip->ihl * 4 + 2, &port, sizeof(port)) ||
		    !slim_is_wire_port(port))
			return SLIM_TC_NEXT;
		slim_count(SLIM_REASON_MALFORMED);
		return TC_ACT_SHOT;
	}

	tcp = (void *)(ip + 1);
	if (!portal) {
		__u32 through = slim_ingress_carried(ip, tcp);

		if (through)
			return bpf_redirect_peer(through, 0);
	}
	if (slim_is_bound_port(tcp->source)) {
		struct slim_bound *bound;

		slim_map_v4(syn.tuple.source, ip->saddr);
		slim_map_v4(syn.tuple.destination, ip->daddr);
		syn.tuple.source_port = tcp->source;
		syn.tuple.destination_port = tcp->dest;
		bound = bpf_map_lookup_elem(&slim_bound, &syn.tuple);
		if (bound)
			return slim_rewrite(skb, false, ip->daddr, bound->address, tcp->dest,
					    bound->port);
	}
	if (!slim_is_wire_port(tcp->dest)) {
		if (!tcp->syn || tcp->ack)
			return SLIM_TC_NEXT;
		slim_map_v4(syn.tuple.source, ip->saddr);
		slim_map_v4(syn.tuple.destination, ip->daddr);
		syn.tuple.source_port = tcp->source;
		syn.tuple.destination_port = tcp->dest;
		return slim_syn_published(skb, &syn.tuple);
	}
	if (tcp->doff < 5) {
		slim_count(SLIM_REASON_MALFORMED);
		return TC_ACT_SHOT;
	}
	if (!tcp->syn || tcp->ack)
		return SLIM_TC_NEXT;
	slim_map_v4(syn.tuple.source, ip->saddr);
	slim_map_v4(syn.tuple.destination, ip->daddr);
	syn.tuple.source_port = tcp->source;
	syn.tuple.destination_port = tcp->dest;
	syn.sequence = tcp->seq;
	syn.options = SLIM_TCP_OFFSET + sizeof(*tcp);
	syn.length = tcp->doff * 4 - sizeof(*tcp);
	return slim_syn_admit(skb, &syn, portal);
}

/* Inner addresses do not leave the host; source-bound connections leave with the host's. */
static __always_inline int slim_egress(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct slim_tuple key = {};
	struct slim_bound *bound;
	struct tcphdr *tcp;
	struct iphdr *ip;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return SLIM_TC_NEXT;
	if (data + SLIM_TCP_OFFSET > end)
		return SLIM_TC_NEXT;
	ip = data + ETH_HLEN;
	if (!slim_in_range_v4(ip->saddr))
		return SLIM_TC_NEXT;
	if (ip->protocol == IPPROTO_TCP && ip->ihl == 5) {
		if (data + SLIM_TCP_OFFSET + sizeof(*tcp) > end) {
			if (bpf_skb_pull_data(skb, SLIM_TCP_OFFSET + sizeof(*tcp)))
				return TC_ACT_SHOT;
			data = (void *)(long)skb->data;
			end = (void *)(long)skb->data_end;
			if (data + SLIM_TCP_OFFSET + sizeof(*tcp) > end)
				return TC_ACT_SHOT;
			ip = data + ETH_HLEN;
		}
		tcp = (void *)(ip + 1);
		slim_map_v4(key.source, ip->saddr);
		slim_map_v4(key.destination, ip->daddr);
		key.source_port = tcp->source;
		key.destination_port = tcp->dest;
		bound = bpf_map_lookup_elem(&slim_bound, &key);
		if (bound)
			return slim_rewrite(skb, true, ip->saddr, bound->address, tcp->source,
					    bound->port);
	}
	slim_count(SLIM_REASON_RESERVED_RANGE);
	return TC_ACT_SHOT;
}

/*
 * Is a packet looked up for? SOCK_DESTROY of sock_diag(7) looks sockets up too, and
 * must find them: without an interface, or with the one of doomed sockets.
 */
static __always_inline bool slim_steer_is_packet(const struct bpf_sk_lookup *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex;

	return ifindex && ifindex != SLIM_NOWHERE;
}

static __always_inline int slim_steer_shielded(const struct bpf_sk_lookup *ctx)
{
	if (slim_steer_is_packet(ctx))
		slim_count(SLIM_REASON_SHIELD);
	return SK_DROP;
}

/* A datagram to an inner address: of a socket that is connected to nowhere (connect.h). */
static __always_inline int slim_steer_nowhere(const struct bpf_sk_lookup *ctx, __be32 last)
{
	__u32 inner = slim_inner_of(last);
	const struct slim_nowhere *nowhere = bpf_map_lookup_elem(&slim_nowhere, &inner);
	struct slim_local local = {};
	struct slim_call call = {
		.protocol = IPPROTO_UDP,
		.direction = SLIM_EGRESS,
	};

	if (!nowhere || ctx->local_port != SLIM_INNER_PORT || !slim_steer_is_packet(ctx))
		return slim_steer_shielded(ctx);
	local.endpoint = nowhere->endpoint;
	local.index = nowhere->index;
	slim_copy(local.address, nowhere->source);
	call.reason = nowhere->reason;
	call.rule = nowhere->rule;
	call.peer = nowhere->peer;
	call.port = nowhere->port;
	slim_refuse(&local, nowhere->destination, &call);
	return SK_DROP;
}

/*
 * Gives the SYN to what is in the SOCKHASH, and gives that back. A socket that
 * listened and now connects somewhere would take the SYN for a simultaneous
 * open of the peer that it connects to.
 */
static __always_inline int
slim_steer_assign(struct bpf_sk_lookup *ctx, struct bpf_sock *sk)
{
	int error = -1;

	/*
	 * At an inner address the kernel spreads SYNs over the endpoint's reuseport group.
	 * On a port of the host, a process of the same user may have joined that group
	 * from outside of the endpoint, so the SYN goes to this very socket.
	 */
	if (sk->state == BPF_TCP_LISTEN)
		error = bpf_sk_assign(ctx, sk, sk->src_port == SLIM_INNER_PORT ?
						       0 : BPF_SK_LOOKUP_F_NO_REUSEPORT);
	bpf_sk_release(sk);
	return error ? slim_steer_shielded(ctx) : SK_PASS;
}

/*
 * To a published port, from anywhere: its endpoint's listener, if that one's
 * policy lets the client in. Nothing is written down for the handshake, so that
 * a flood of SYNs fills no table of ours.
 */
static __always_inline int
slim_steer_published(struct bpf_sk_lookup *ctx, struct slim_state *state,
		     const struct slim_publish *published)
{
	struct slim_target client = { .port = published->port };
	struct slim_listener_key key = {};
	struct slim_verdict verdict;
	struct slim_endpoint *endpoint;
	struct slim_call call = {
		.protocol = IPPROTO_TCP,
		.direction = SLIM_INGRESS,
		.port = published->port,
		.peer = published->endpoint,
	};
	struct slim_local outside = {};
	__be32 address[4];
	struct bpf_sock *sk;

	endpoint = slim_endpoint_get(state, published->endpoint);
	if (!endpoint || !endpoint->index)
		return slim_steer_shielded(ctx);
	slim_map_v4(address, SLIM_CTX(ctx, remote_ip4));
	slim_copy(outside.address, address);
	outside.index = endpoint->index;	/* whose policy it is */
	slim_target_range(state, endpoint->vni, address, &client);
	verdict = slim_target_decide(state, published->endpoint, endpoint->identity, &client,
				     SLIM_INGRESS, IPPROTO_TCP);
	call.reason = verdict.reason;
	call.rule = verdict.rule;
	if (verdict.action == SLIM_ALLOW) {
		key.inner = slim_inner(false, endpoint->index, published->port);
		sk = bpf_map_lookup_elem(&slim_listener, &key);
		if (sk) {
			slim_count(verdict.reason);
			return slim_steer_assign(ctx, sk);
		}
		call.reason = SLIM_REASON_SYN_NO_LISTENER;
	}
	slim_refuse(&outside, endpoint->address, &call);
	return SK_DROP;
}

/* A router's address towards its host: of 0.0.0.0/8, to which nothing on a network belongs. */
static __always_inline bool slim_steer_is_near(__be32 address)
{
	return address && !(address & bpf_htonl(0xff000000));
}

/* Asked by the kernel at every look-up of a listener in the underlay namespace. */
static __always_inline int slim_steer(struct bpf_sk_lookup *ctx)
{
	struct slim_listener_key key = {};
	struct slim_tuple tuple = {};
	struct slim_state state;
	struct slim_flow *flow;
	struct bpf_sock *sk;
	__u32 port = ctx->local_port;
	struct slim_shield *shield;
	bool inner, wire;

	if (!slim_state_get(&state))
		return SK_DROP;
	/* sock_diag(7) looks up a listener to destroy it: not shielded from that. */
	if (!ctx->remote_port && !slim_steer_is_packet(ctx))
		return SK_PASS;
	if (ctx->family == AF_INET) {
		/* slim_find_listener() asks for a listener, with 0.0.0.0:0 as the peer. */
		if (!ctx->remote_ip4 && !ctx->remote_port)
			return SK_PASS;
		inner = slim_in_range_v4(ctx->local_ip4);
		wire = ctx->local_ip4 == state.control->underlay[3] &&
		       slim_is_wire_port(bpf_htons(port));
	} else {
		inner = ctx->local_ip6[0] == state.control->range6[0] &&
			ctx->local_ip6[1] == state.control->range6[1];
		wire = false;
	}
	if (ctx->protocol != IPPROTO_TCP) {
		if (!inner)
			return SK_PASS;
		return slim_steer_nowhere(ctx, ctx->family == AF_INET ?
					       SLIM_CTX(ctx, local_ip4) :
					       SLIM_CTX(ctx, local_ip6[3]));
	}
	if (!inner && !wire) {
		struct slim_publish *published =
			ctx->family == AF_INET ?
			slim_publish_get(&state, SLIM_CTX(ctx, local_ip4), bpf_htons(port)) : NULL;

		if (published)
			return slim_steer_is_packet(ctx) ?
				       slim_steer_published(ctx, &state, published) : SK_DROP;
		shield = bpf_map_lookup_elem(&slim_shield, &port);
		if (shield && (ctx->family == AF_INET ? shield->v4 : shield->v6))
			return slim_steer_shielded(ctx);
		return SK_PASS;
	}
	if (ctx->ingress_ifindex != (inner ? SLIM_LOOPBACK_IFINDEX : state.control->ifindex) &&
	    !(wire && slim_steer_is_near(SLIM_CTX(ctx, remote_ip4))))
		return slim_steer_shielded(ctx);

	if (ctx->family == AF_INET) {
		slim_map_v4(tuple.source, SLIM_CTX(ctx, remote_ip4));
		slim_map_v4(tuple.destination, SLIM_CTX(ctx, local_ip4));
	} else {
		tuple.source[0] = SLIM_CTX(ctx, remote_ip6[0]);
		tuple.source[1] = SLIM_CTX(ctx, remote_ip6[1]);
		tuple.source[2] = SLIM_CTX(ctx, remote_ip6[2]);
		tuple.source[3] = SLIM_CTX(ctx, remote_ip6[3]);
		tuple.destination[0] = SLIM_CTX(ctx, local_ip6[0]);
		tuple.destination[1] = SLIM_CTX(ctx, local_ip6[1]);
		tuple.destination[2] = SLIM_CTX(ctx, local_ip6[2]);
		tuple.destination[3] = SLIM_CTX(ctx, local_ip6[3]);
	}
	tuple.source_port = ctx->remote_port;
	tuple.destination_port = bpf_htons(port);
	flow = bpf_map_lookup_elem(&slim_flow, &tuple);
	/* Signed: another processor's clock, by which it was written, may be a little ahead. */
	if (!flow || (__s64)(bpf_ktime_get_ns() - flow->time) > (__s64)SLIM_HANDSHAKE)
		return slim_steer_shielded(ctx);
	if (flow->flags & SLIM_FLOW_DIRECT && inner)
		return SK_PASS;
	key.inner = flow->inner;
	key.v6only = !!(flow->flags & SLIM_FLOW_V6ONLY);
	sk = bpf_map_lookup_elem(&slim_listener, &key);
	return sk ? slim_steer_assign(ctx, sk) : slim_steer_shielded(ctx);
}

#endif /* SLIMNET_STEER_H */
