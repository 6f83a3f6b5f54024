// SPDX-License-Identifier: GPL-2.0-only
/*
 * Wire `syn` (wire.h): our option goes into the SYN on its way out, and a SYN to a
 * wire port is decided on its way in, before any socket exists. What it may do is
 * one flow record, by which the kernel's look-up of a listener finds the endpoint's:
 * for the SYN, for one that meets TIME_WAIT, and for the last ACK of a handshake
 * with SYN cookies, which has no option.
 */
#include <linux/ip.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <linux/slab.h>
#include <net/inet_hashtables.h>
#include <net/ip.h>
#include <net/tcp.h>

#include "slimnet.h"

/* No SYN of Linux's default retry schedule is older. */
#define SLIM_HANDSHAKE (130 * HZ)

const struct rhashtable_params slim_flow_params = {
	.head_offset = offsetof(struct slim_flow, node),
	.key_offset = offsetof(struct slim_flow, key),
	.key_len = sizeof(struct slim_flow_key),
	.min_size = SLIM_TABLE_MIN,
	.automatic_shrinking = true,
};

/* Out */

/*
 * The options of a SYN with ours behind them, in `to`; 0: no room. Where there is
 * none, padding goes, and the cookie of Fast Open: the data that comes with it is
 * sent again.
 */
static u32 slim_options(u8 *to, const u8 *from, u32 length, const struct slim_option *option)
{
	u32 at = 0, put = 0, size;

	if (length + option->length <= SLIM_TCP_OPTIONS_MAX) {
		memcpy(to, from, length);
		put = length;
	} else {
		while (at < length && from[at] != SLIM_TCP_OPTION_END) {
			if (from[at] == SLIM_TCP_OPTION_NOP) {
				at++;
				continue;
			}
			size = at + 1 < length ? from[at + 1] : 0;
			if (size < 2 || at + size > length)
				return 0;
			if (from[at] != SLIM_TCP_OPTION_FAST_OPEN) {
				memcpy(to + put, from + at, size);
				put += size;
			}
			at += size;
		}
		if (put + option->length > SLIM_TCP_OPTIONS_MAX)
			return 0;
	}
	memcpy(to + put, option, option->length);
	put += option->length;
	while (put % 4)
		to[put++] = SLIM_TCP_OPTION_NOP;
	return put;
}

/* 0, or an error: then the SYN must not go out. */
static int slim_say(struct sk_buff *skb, struct slim_socket *socket)
{
	const u32 header = ip_hdrlen(skb);
	struct tcphdr *tcp = (struct tcphdr *)(skb->data + header);
	struct slim_option option = {
		.kind = SLIM_OPTION_KIND,
		.length = SLIM_OPTION_LENGTH,
		.port = socket->target_port,
		.destination = htonl(socket->peer_endpoint),
		.source = htonl(socket->place->endpoint),
	};
	u8 options[SLIM_TCP_OPTIONS_MAX + 4];
	u32 old, new;
	struct iphdr *ip;
	int more;

	if (!pskb_may_pull(skb, header + sizeof(*tcp)))
		return -EINVAL;
	tcp = (struct tcphdr *)(skb->data + header);
	old = tcp->doff * 4 - sizeof(*tcp);
	if (tcp->doff < 5 || !pskb_may_pull(skb, header + sizeof(*tcp) + old))
		return -EINVAL;
	tcp = (struct tcphdr *)(skb->data + header);
	if (!slim_alias_give(socket, ntohs(tcp->source)))
		return -EADDRNOTAVAIL;
	if (socket->local_port && socket->local_port != tcp->source) {
		option.length = SLIM_OPTION_NAMED;
		option.name = socket->local_port;
	}
	option.tag = slim_tag(slim_keys_signing(&socket->place->host->keys), ip_hdr(skb)->saddr,
			      ip_hdr(skb)->daddr, tcp->source, tcp->seq, &option);
	new = slim_options(options, (u8 *)(tcp + 1), old, &option);
	if (!new)
		return -EMSGSIZE;
	more = new - old;
	if (skb_cow_head(skb, max(more, 0)))
		return -ENOMEM;
	if (more >= 0) {
		skb_push(skb, more);
		memmove(skb->data, skb->data + more, header + sizeof(*tcp));
	} else {
		memmove(skb->data - more, skb->data, header + sizeof(*tcp));
		skb_pull(skb, -more);
	}
	skb_reset_network_header(skb);
	skb_set_transport_header(skb, header);
	ip = ip_hdr(skb);
	tcp = tcp_hdr(skb);
	memcpy(tcp + 1, options, new);
	tcp->doff = (sizeof(*tcp) + new) / 4;
	ip->tot_len = htons(skb->len);
	ip_send_check(ip);
	tcp->check = ~tcp_v4_check(skb->len - header, ip->saddr, ip->daddr, 0);
	skb->ip_summed = CHECKSUM_PARTIAL;
	skb->csum_start = skb_transport_header(skb) - skb->head;
	skb->csum_offset = offsetof(struct tcphdr, check);
	return 0;
}

static unsigned int slim_wire_out(void *data, struct sk_buff *skb,
				  const struct nf_hook_state *state)
{
	struct slim_socket *socket;
	struct sock *sk = skb->sk;

	if (!sk || READ_ONCE(sk->sk_state) != TCP_SYN_SENT || !sk_fullsock(sk) ||
	    ip_hdr(skb)->protocol != IPPROTO_TCP)
		return NF_ACCEPT;
	socket = slim_socket_find(sk);
	if (!socket)
		return NF_ACCEPT;
	return slim_say(skb, socket) ? NF_DROP : NF_ACCEPT;
}

/* In */

static struct slim_flow *slim_flow_find(struct slim_host *host, const struct slim_flow_key *key)
{
	return rhashtable_lookup_fast(&host->flows, key, slim_flow_params);
}

/* Takes a record out; it is the caller's. Under rcu_read_lock(). */
struct slim_flow *slim_flow_take(struct slim_host *host, const struct slim_flow_key *key)
{
	struct slim_flow *flow = slim_flow_find(host, key);

	if (!flow || rhashtable_remove_fast(&host->flows, &flow->node, slim_flow_params))
		return NULL;
	if (time_after(jiffies, flow->time + SLIM_HANDSHAKE)) {
		slim_flow_free(host, flow);
		return NULL;
	}
	return flow;
}

void slim_flow_free(struct slim_host *host, struct slim_flow *flow)
{
	atomic_dec(&flow->place->flows);
	atomic_dec(&host->flow_count);
	slim_place_put(flow->place);
	kfree_rcu(flow, rcu);
}

static void slim_flow_drop(struct slim_host *host, const struct slim_flow_key *key)
{
	struct slim_flow *flow = slim_flow_take(host, key);

	if (flow)
		slim_flow_free(host, flow);
}

/* An endpoint's listener at a port, without a reference. Under rcu_read_lock(). */
struct sock *slim_listener(struct slim_host *host, u32 index, __be16 port)
{
	return __inet_lookup_listener(host->net, host->net->ipv4.tcp_death_row.hashinfo, NULL, 0,
				      0, 0, slim_inner_to_v4(&host->range,
							     slim_inner(false, index, port)),
				      SLIM_INNER_PORT, 0, 0);
}

static void slim_syn_refused(struct slim_host *host, struct slim_place *place,
			     const struct slim_flow_key *key, const struct slim_option *option,
			     const struct slim_syn *syn, u32 reason)
{
	struct slim_event event = {
		.kind = SLIM_EVENT_REFUSED,
		.reason = reason,
		.rule = syn->rule,
		.direction = SLIM_INGRESS,
		.endpoint = place ? place->endpoint : 0,
		.peer_endpoint = syn->known ? syn->source_endpoint : 0,
		.source_port = slim_option_name(option, key->source_port),
		.destination_port = option->port,
		.protocol = IPPROTO_TCP,
	};

	slim_map_v4(event.source, key->source);
	if (syn->known)
		slim_copy(event.source, syn->source);
	if (place)
		slim_copy(event.destination, place->address);
	slim_refused(host, place, &event);
}

/* Writes the record. A second SYN of the same tuple replaces that of the first. */
static bool slim_flow_write(struct slim_host *host, struct slim_place *place,
			    const struct slim_flow_key *key, const struct slim_option *option,
			    const struct slim_syn *syn)
{
	struct slim_flow *flow;

	slim_flow_drop(host, key);
	if (atomic_read(&host->flow_count) >= SLIM_FLOWS_MAX ||
	    atomic_read(&place->flows) >= SLIM_PLACE_FLOWS_MAX)
		return false;
	flow = kzalloc(sizeof(*flow), GFP_ATOMIC);
	if (!flow || !refcount_inc_not_zero(&place->refs)) {
		kfree(flow);
		return false;
	}
	flow->key = *key;
	flow->place = place;
	flow->generation = syn->generation;
	flow->time = jiffies;
	flow->source_endpoint = syn->source_endpoint;
	flow->rule = syn->rule;
	flow->reason = syn->reason;
	flow->port = option->port;
	flow->name = slim_option_name(option, key->source_port);
	slim_copy(flow->source, syn->source);
	slim_copy(flow->destination, place->address);
	if (key->source != host->underlay)
		flow->flags |= SLIM_SOCKET_WIRE;
	atomic_inc(&host->flow_count);
	atomic_inc(&place->flows);
	if (rhashtable_insert_fast(&host->flows, &flow->node, slim_flow_params)) {
		slim_flow_free(host, flow);
		return false;
	}
	return true;
}

static unsigned int slim_wire_syn(struct slim_host *host, const struct iphdr *ip,
				  const struct tcphdr *tcp, const u8 *options, u32 length)
{
	const struct slim_flow_key key = {
		.source = ip->saddr,
		.destination = ip->daddr,
		.source_port = tcp->source,
		.destination_port = tcp->dest,
	};
	struct slim_tuple tuple = { .source_port = tcp->source, .destination_port = tcp->dest };
	struct slim_place *place;
	struct slim_option option;
	struct slim_syn syn;
	int error;

	if (slim_option_find(options, length, &option) != 1) {
		slim_count(host, SLIM_REASON_SYN_NO_OPTION);
		/* Nobody's word: what a valid SYN may do, this one may not. */
		return slim_flow_find(host, &key) ? NF_DROP : NF_ACCEPT;
	}
	slim_map_v4(tuple.source, ip->saddr);
	slim_map_v4(tuple.destination, ip->daddr);
	error = slim_host_syn(host, &tuple, tcp->seq, &option, &syn);
	if (error == -EBADMSG) {
		slim_count(host, syn.reason);
		return slim_flow_find(host, &key) ? NF_DROP : NF_ACCEPT;
	}
	if (error == -EAGAIN) {
		slim_count(host, syn.reason);
		return NF_DROP;
	}
	place = slim_place_find(host, syn.destination_endpoint);
	if (error) {
		slim_flow_drop(host, &key);
		slim_syn_refused(host, place, &key, &option, &syn, syn.reason);
		return NF_ACCEPT;
	}
	if (!place) {
		slim_count(host, SLIM_REASON_SYN_UNKNOWN);
		return NF_DROP;
	}
	if (!slim_listener(host, place->index, option.port)) {
		slim_flow_drop(host, &key);
		slim_syn_refused(host, place, &key, &option, &syn, SLIM_REASON_SYN_NO_LISTENER);
		return NF_ACCEPT;
	}
	if (!slim_flow_write(host, place, &key, &option, &syn)) {
		slim_count(host, SLIM_REASON_FLOW_FULL);
		return NF_DROP;
	}
	slim_count(host, syn.reason);
	return NF_ACCEPT;
}

/*
 * Last of all that look at what comes in, so that a firewall of the host has let
 * pass what is decided here.
 */
static unsigned int slim_wire_in(void *data, struct sk_buff *skb, const struct nf_hook_state *state)
{
	const struct iphdr *ip = ip_hdr(skb);
	u8 options[SLIM_TCP_OPTIONS_MAX];
	struct slim_host *host;
	struct tcphdr *tcp, header;
	u32 length;

	if (ip->protocol != IPPROTO_TCP)
		return NF_ACCEPT;
	host = rcu_dereference(slim_net(state->net)->host);
	if (!host || ip->daddr != host->underlay)
		return NF_ACCEPT;
	tcp = skb_header_pointer(skb, ip_hdrlen(skb), sizeof(header), &header);
	if (!tcp || !slim_wire_has(host->wire_port, tcp->dest))
		return NF_ACCEPT;
	if (ip->ihl != 5) {
		slim_count(host, SLIM_REASON_MALFORMED);
		return NF_DROP;
	}
	if (!tcp->syn || tcp->ack)
		return NF_ACCEPT;
	header = *tcp;
	if (header.doff < 5)
		return NF_DROP;
	length = header.doff * 4 - sizeof(header);
	memset(options, 0, sizeof(options));
	if (length && skb_copy_bits(skb, ip_hdrlen(skb) + sizeof(header), options, length))
		return NF_DROP;
	return slim_wire_syn(host, ip, &header, options, length);
}

/* Stands in for __inet_lookup_listener(). Its callers hold rcu_read_lock(). */
struct sock *slim_inet_lookup_listener(struct net *net, struct inet_hashinfo *hashinfo,
				       struct sk_buff *skb, int doff, const __be32 saddr,
				       const __be16 sport, const __be32 daddr,
				       const unsigned short hnum, const int dif, const int sdif)
{
	struct slim_host *host = rcu_dereference(slim_net(net)->host);
	const struct slim_flow_key key = {
		.source = saddr,
		.destination = daddr,
		.source_port = sport,
		.destination_port = htons(hnum),
	};
	struct slim_flow *flow;
	__be32 inner;

	if (!host || hashinfo != net->ipv4.tcp_death_row.hashinfo)
		goto plain;
	/* An inner address is reached by a record only. */
	if (hnum == SLIM_INNER_PORT && slim_inner_has_v4(host->range.v4, daddr)) {
		slim_count(host, SLIM_REASON_SHIELD);
		return NULL;
	}
	if (daddr != host->underlay || !slim_wire_has(host->wire_port, htons(hnum)))
		goto plain;
	flow = slim_flow_find(host, &key);
	if (!flow || time_after(jiffies, flow->time + SLIM_HANDSHAKE))
		return NULL;
	inner = slim_inner_to_v4(&host->range, slim_inner(false, flow->place->index, flow->port));
	return __inet_lookup_listener(net, hashinfo, skb, doff, saddr, sport, inner,
				      SLIM_INNER_PORT, dif, sdif);
plain:
	return __inet_lookup_listener(net, hashinfo, skb, doff, saddr, sport, daddr, hnum, dif,
				      sdif);
}

/* Records that nobody needs any more */

enum slim_flow_why {
	SLIM_FLOW_OLD,
	SLIM_FLOW_FORBIDDEN,
	SLIM_FLOW_ALL,
};

static bool slim_flow_goes(struct slim_host *host, struct slim_flow *flow,
			   const struct slim_place *place, enum slim_flow_why why)
{
	u32 forbids;

	if (why == SLIM_FLOW_OLD)
		return time_after(jiffies, flow->time + SLIM_HANDSHAKE);
	if (why == SLIM_FLOW_ALL)
		return !place || flow->place == place;
	return !slim_host_still(host, flow->place->endpoint, flow->source_endpoint, flow->port,
				SLIM_INGRESS, &flow->generation, &flow->rule, &forbids);
}

static void slim_flows_walk(struct slim_host *host, const struct slim_place *place,
			    enum slim_flow_why why)
{
	struct rhashtable_iter iter;
	struct slim_flow *flow;

	rhashtable_walk_enter(&host->flows, &iter);
	rhashtable_walk_start(&iter);
	while ((flow = rhashtable_walk_next(&iter))) {
		/* -EAGAIN: the table was resized, and starts again. */
		if (IS_ERR(flow))
			continue;
		if (slim_flow_goes(host, flow, place, why) &&
		    !rhashtable_remove_fast(&host->flows, &flow->node, slim_flow_params))
			slim_flow_free(host, flow);
	}
	rhashtable_walk_stop(&iter);
	rhashtable_walk_exit(&iter);
}

void slim_flows_forbid(struct slim_host *host)
{
	slim_flows_walk(host, NULL, SLIM_FLOW_FORBIDDEN);
}

/* All of an endpoint, or of the host. */
void slim_flows_drop(struct slim_host *host, const struct slim_place *place)
{
	slim_flows_walk(host, place, SLIM_FLOW_ALL);
}

void slim_flows_sweep(struct work_struct *work)
{
	struct slim_host *host = container_of(to_delayed_work(work), struct slim_host, sweep);

	slim_flows_walk(host, NULL, SLIM_FLOW_OLD);
	slim_aliases_sweep(host, false);
	schedule_delayed_work(&host->sweep, 10 * HZ);
}

static const struct nf_hook_ops slim_wire_hooks[] = {
	{
		.hook = slim_wire_in,
		.pf = NFPROTO_IPV4,
		.hooknum = NF_INET_LOCAL_IN,
		.priority = NF_IP_PRI_LAST,
	},
	{
		.hook = slim_wire_out,
		.pf = NFPROTO_IPV4,
		.hooknum = NF_INET_LOCAL_OUT,
		.priority = NF_IP_PRI_FIRST,
	},
};

int slim_wire_register(struct net *net)
{
	return nf_register_net_hooks(net, slim_wire_hooks, ARRAY_SIZE(slim_wire_hooks));
}

void slim_wire_unregister(struct net *net)
{
	nf_unregister_net_hooks(net, slim_wire_hooks, ARRAY_SIZE(slim_wire_hooks));
}
