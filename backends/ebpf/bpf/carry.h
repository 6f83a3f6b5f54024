/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Placement `netns`: connections of endpoints that keep a network namespace of
 * their own. Their packets are not wrapped, but have their addresses and ports
 * rewritten at the router's end of the endpoint's link.
 *
 *	endpoint         router of the network                 host
 *	eth0 ---- ep (slim_device) ==> uplink0 ---- sl (slim_portal) ==> underlay
 *	eth0 <=== ep     uplink0 (slim_arrive) <=== sl   underlay (slim_ingress)
 *
 * ==> is slim_pass_on() or bpf_redirect_neigh(): no queue and no stack. slim_device and
 * slim_portal are programs of the other end's where the two ends are a netkit, and else at
 * tc ingress, behind the queue that a veth has between its ends.
 *
 * The records say what becomes of a packet, one for each way; they are written by a
 * SYN alone, after the same slim_way() and slim_admit() that sockets of the host
 * are put to. Whatever has no record goes on to the router, which decides it by
 * the same tables.
 *
 * With an endpoint in placement `host` of this host it speaks wire `syn` too, over
 * the router's way out: its address towards the host stands for the endpoint's host.
 *
 * With hosts of wire `announce` the records are the same. On the way in the agent has them
 * written before there is a SYN; on the way out it is told of them right before the SYN.
 */
#ifndef SLIMNET_CARRY_H
#define SLIMNET_CARRY_H

#include "alias.h"
#include "event.h"
#include "flow.h"
#include "packet.h"
#include "remote.h"

#include <slimnet/rate.h>

#define SLIM_CARRIED_TRIES 32		/* ports that are drawn for a name */
#define SLIM_CARRIED_HIGH 8		/* the first of them where the kernel takes source ports from */
#define SLIM_CARRIED_MAKE 1024		/* closed connections that are looked at for their room */
#define SLIM_CARRIED_LINGER (SLIM_LINGER_SECONDS * SLIM_SECOND)
#define SLIM_CARRIED_IDLE (SLIM_IDLE_SECONDS * SLIM_SECOND)

#define SLIM_CARRY_CHECK (SLIM_TCP_OFFSET + offsetof(struct tcphdr, check))
#define SLIM_FLAGS_OFFSET (SLIM_TCP_OFFSET + 12)	/* data offset and flags, RFC 9293 3.1 */

/* The record of the other way of a connection. */
static __always_inline void
slim_carried_other(const struct slim_carried *carried, struct slim_carried_key *other)
{
	other->device = carried->back;
	other->source = carried->destination;
	other->destination = carried->source;
	other->source_port = carried->destination_port;
	other->destination_port = carried->source_port;
}

static __always_inline bool slim_carried_is_older(__u64 time, __u64 age)
{
	/* Signed, as in sweep.h. */
	return (__s64)(bpf_ktime_get_ns() - time) > (__s64)age;
}

/* `out` and `in`: the records of a connection as it leaves the endpoint, and as it comes in. */
slim_verified_once int slim_carried_tell(const struct slim_carried *out, const struct slim_carried *in, __u32 kind)
{
	struct slim_event *event;
	__u32 direction;

	if (!out || !in)
		return 0;
	direction = out->flags & SLIM_CARRIED_ACCEPTED ? SLIM_INGRESS : SLIM_EGRESS;
	event = slim_event_start(kind, SLIM_REASON_NONE, out->rule, direction, IPPROTO_TCP);
	if (!event)
		return 0;
	event->endpoint = out->endpoint;
	event->peer_endpoint = out->peer;
	/* What is written into what comes in is what the endpoint sees. */
	if (direction == SLIM_EGRESS) {
		slim_map_v4(event->source, in->destination);
		slim_map_v4(event->destination, in->source);
		event->source_port = in->destination_port;
		event->destination_port = in->source_port;
	} else {
		slim_map_v4(event->source, in->source);
		slim_map_v4(event->destination, in->destination);
		event->source_port = in->source_port;
		event->destination_port = in->destination_port;
	}
	if (kind == SLIM_EVENT_CLOSED) {
		event->sent = out->bytes;
		event->received = in->bytes;
		event->duration = event->time - out->opened;
	}
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Established: from here on it is on account, and told if somebody observes. */
static __noinline int
slim_carried_opens(struct slim_carried *out, const struct slim_carried *in)
{
	const struct slim_control *control;
	__u32 zero = 0;

	if (!out || !in)
		return 0;
	if (out->flags & (SLIM_CARRIED_OPENED | SLIM_CARRIED_CLOSED))
		return 0;
	out->flags |= SLIM_CARRIED_OPENED;
	out->opened = bpf_ktime_get_ns();
	control = bpf_map_lookup_elem(&slim_control, &zero);
	if (control && control->observe & SLIM_OBSERVE_OPENED)
		slim_carried_tell(out, in, SLIM_EVENT_OPENED);
	return 0;
}

/* Has the agent announce a connection to a host that speaks wire announce, or withdraw it. */
slim_verified_once int
slim_carried_announce(const struct slim_carried *out, __be16 source_port, __u32 kind)
{
	struct slim_told *told;

	if (!out)
		return 0;
	told = bpf_ringbuf_reserve(&slim_told, sizeof(*told), 0);
	if (!told)
		return 0;
	slim_map_v4(told->tuple.source, out->source);
	slim_map_v4(told->tuple.destination, out->destination);
	told->tuple.source_port = out->source_port;
	told->tuple.destination_port = out->destination_port;
	told->source_endpoint = out->endpoint;
	told->destination_endpoint = out->peer;
	told->source_port = source_port;
	told->port = out->port;
	told->kind = kind;
	told->reason = 0;
	told->rule = 0;
	bpf_ringbuf_submit(told, 0);
	return 0;
}

/* Over: what it sent and received is put on account. */
slim_verified_once int
slim_carried_closes(struct slim_carried *out, const struct slim_carried *in)
{
	const struct slim_control *control;
	struct slim_account done = { .connections = 1 };
	__u32 zero = 0;

	if (!out || !in)
		return 0;
	if ((out->flags & (SLIM_CARRIED_ANNOUNCED | SLIM_CARRIED_ACCEPTED)) ==
	    SLIM_CARRIED_ANNOUNCED) {
		out->flags &= ~SLIM_CARRIED_ANNOUNCED;
		slim_carried_announce(out, 0, SLIM_TOLD_CLOSED);
	}
	if (out->flags & SLIM_CARRIED_CLOSED || !(out->flags & SLIM_CARRIED_OPENED))
		return 0;
	out->flags |= SLIM_CARRIED_CLOSED;
	done.sent = out->bytes;
	done.received = in->bytes;
	slim_account_add(out->endpoint, out->rule,
			 out->flags & SLIM_CARRIED_ACCEPTED ? SLIM_INGRESS : SLIM_EGRESS,
			 &done);
	control = bpf_map_lookup_elem(&slim_control, &zero);
	if (control && control->observe & SLIM_OBSERVE_CLOSED)
		slim_carried_tell(out, in, SLIM_EVENT_CLOSED);
	return 0;
}

/* One record goes; that of what an endpoint sends counts in its share. */
slim_verified_once int slim_carried_delete(const struct slim_carried_key *which)
{
	struct slim_usage *all = slim_usage_get(0);
	struct slim_carried_key key;
	struct slim_device *device;
	__u32 number;

	if (!which)
		return 0;
	key = *which;
	if (bpf_map_delete_elem(&slim_carried, &key) || !key.device)
		return 0;
	number = key.device;
	device = bpf_map_lookup_elem(&slim_device, &number);
	if (device)
		slim_share_less(&device->carried);
	if (all)
		slim_share_less(&all->carried);
	return 0;
}

/* The key of the record that a connection's name has, where that is not its own record. */
static __always_inline void
slim_carried_name_key(const struct slim_carried_key *out, const struct slim_carried *carried,
		      struct slim_carried_key *name)
{
	name->device = out->device ^ SLIM_CARRIED_NAME;
	name->source = 0;
	name->destination = carried->peer;
	name->source_port = carried->name;
	name->destination_port = carried->port;
}

slim_verified_once int
slim_carried_unname(const struct slim_carried_key *out, const struct slim_carried *carried)
{
	struct slim_carried_key name;

	if (!out || !carried || !out->device || !carried->name)
		return 0;
	slim_carried_name_key(out, carried, &name);
	bpf_map_delete_elem(&slim_carried, &name);
	return 0;
}

/* All records of a connection that is on account already. */
slim_verified_once int
slim_carried_remove(const struct slim_carried_key *key, const struct slim_carried_key *other)
{
	struct slim_carried_key which;

	if (!key || !other)
		return 0;
	which = *key;
	slim_carried_unname(key, bpf_map_lookup_elem(&slim_carried, &which));
	which = *other;
	slim_carried_unname(other, bpf_map_lookup_elem(&slim_carried, &which));
	slim_carried_delete(key);
	slim_carried_delete(other);
	return 0;
}

/* Both records go, and that of the name. */
slim_verified_once int
slim_carried_drop(const struct slim_carried_key *key, const struct slim_carried_key *other)
{
	struct slim_carried *one, *two;
	struct slim_carried_key which;

	if (!key || !other)
		return 0;
	which = *key;
	one = bpf_map_lookup_elem(&slim_carried, &which);
	which = *other;
	two = bpf_map_lookup_elem(&slim_carried, &which);
	if (key->device)
		slim_carried_closes(one, two);
	if (other->device)
		slim_carried_closes(two, one);
	return slim_carried_remove(key, other);
}

/* The same, of the connection whose record has this key, if one has. */
slim_verified_once int slim_carried_drop_of(const struct slim_carried_key *key)
{
	const struct slim_carried *carried;
	struct slim_carried_key which, other;

	if (!key)
		return 0;
	which = *key;
	carried = bpf_map_lookup_elem(&slim_carried, &which);
	if (!carried)
		return 0;
	slim_carried_other(carried, &other);
	return slim_carried_drop(&which, &other);
}

enum slim_carried_life {
	SLIM_CARRIED_LIVES = -1,	/* or did, less than `age` ago */
	SLIM_CARRIED_NONE = 0,
	SLIM_CARRIED_OVER = 1,
};

/*
 * Of whom is the record with this key? A connection is over when both ends have said so: until
 * then the one that has not may send for as long as it likes.
 */
slim_verified_once int slim_carried_life(const struct slim_carried_key *key, __u64 age)
{
	const struct slim_carried *carried, *back;
	struct slim_carried_key which, other;
	__u64 used;

	if (!key)
		return SLIM_CARRIED_NONE;
	which = *key;
	carried = bpf_map_lookup_elem(&slim_carried, &which);
	if (!carried)
		return SLIM_CARRIED_NONE;
	used = carried->used;
	slim_carried_other(carried, &other);
	back = bpf_map_lookup_elem(&slim_carried, &other);
	if (back && (__s64)(back->used - used) > 0)
		used = back->used;
	if (!(carried->flags & (back ? back->flags : SLIM_CARRIED_FINAL) & SLIM_CARRIED_FINAL) ||
	    !slim_carried_is_older(used, age))
		return SLIM_CARRIED_LIVES;
	return SLIM_CARRIED_OVER;
}

/* Takes one that is closed out of the tables. Ends where there is room, or no other. */
static long slim_carried_make(__u32 i, void *context)
{
	struct slim_usage *all = slim_usage_get(0);
	struct slim_device *device = bpf_map_lookup_elem(&slim_device, context);
	const struct slim_carried *carried;
	struct slim_carried_key key, other;

	if (!all || !device ||
	    slim_share_left(device->carried, all->carried, SLIM_CARRIED_ROOM) ||
	    bpf_map_pop_elem(&slim_over, &key))
		return 1;
	/* It may be gone, or a live one have that name by now. */
	if (slim_carried_life(&key, 0) != SLIM_CARRIED_OVER)
		return 0;
	carried = bpf_map_lookup_elem(&slim_carried, &key);
	if (!carried)
		return 0;
	slim_carried_other(carried, &other);
	slim_carried_remove(&key, &other);
	return 0;
}

/*
 * Makes room for one more connection of an endpoint, if it has none: what was closed longest
 * ago, of whichever endpoint, goes before its minute is over, as a TIME_WAIT of the kernel's
 * does where there are tcp_max_tw_buckets of them.
 */
slim_verified_once int slim_carried_make_room(__u32 number)
{
	return bpf_loop(SLIM_CARRIED_MAKE, slim_carried_make, &number, 0);
}

/* A connection to be carried, as both records are made from it. */
struct slim_carriage {
	struct slim_carried_key out;	/* as the endpoint sends */
	struct slim_carried_key in;	/* as it comes from the underlay */
	struct slim_carried value;
	struct slim_carried_key other;	/* of an older connection */
	__u32 portal;
	__u32 uplink;
	__u32 peer_rule;		/* of the other end's policy, on this host */
	__be32 address;			/* the other end's own */
	struct slim_dialled dialled;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct slim_carriage);
} slim_carriage SEC(".maps");

/* All zero. What receives and what sends has softirqs off: one at a time on a processor. */
static __always_inline struct slim_carriage *slim_carriage_new(void)
{
	__u32 zero = 0;
	struct slim_carriage *carriage = bpf_map_lookup_elem(&slim_carriage, &zero);

	if (carriage)
		__builtin_memset(carriage, 0, sizeof(*carriage));
	return carriage;
}

static __always_inline void
slim_carriage_device(struct slim_carriage *carriage, __u32 number,
		     const struct slim_device *device)
{
	carriage->out.device = number;
	carriage->out.source = device->address;
	carriage->value.device = number;
	carriage->value.endpoint = device->endpoint;
	carriage->portal = device->portal;
	carriage->uplink = device->uplink;
	__builtin_memcpy(carriage->value.macs, device->macs, sizeof(device->macs));
}

/*
 * Writes both records; negative where there is no room, or the underlay's tuple is
 * another connection's.
 */
static __noinline int slim_carriage_put(struct slim_carriage *carriage)
{
	struct slim_usage *all = slim_usage_get(0);
	struct slim_carried *old;
	struct slim_device *device;
	__u32 number;

	if (!carriage || !all)
		return -1;
	number = carriage->out.device;
	device = bpf_map_lookup_elem(&slim_device, &number);
	if (!device)
		return -1;
	carriage->value.opened = bpf_ktime_get_ns();
	carriage->value.used = carriage->value.opened;
	old = bpf_map_lookup_elem(&slim_carried, &carriage->out);
	if (old) {
		/* Another connection by that name: it may go on, if it does. */
		if (!(old->flags & SLIM_CARRIED_FINAL) &&
		    !slim_carried_is_older(old->used, SLIM_HANDSHAKE) &&
		    (old->back || old->destination != carriage->in.source ||
		     old->destination_port != carriage->in.source_port))
			return -1;
		/* Not slim_carried_drop_of(), for Linux 6.1: with its frame the stack is too deep. */
		slim_carried_other(old, &carriage->other);
		slim_carried_drop(&carriage->out, &carriage->other);
	}
	if (!slim_share_left(device->carried, all->carried, SLIM_CARRIED_ROOM))
		return -1;
	carriage->value.back = number;
	carriage->value.through = carriage->portal;
	carriage->value.source = carriage->out.destination;
	carriage->value.source_port = carriage->out.destination_port;
	carriage->value.destination = carriage->out.source;
	carriage->value.destination_port = carriage->out.source_port;
	if (bpf_map_update_elem(&slim_carried, &carriage->in, &carriage->value, BPF_NOEXIST))
		return -1;
	carriage->value.back = 0;
	carriage->value.through = carriage->uplink;
	carriage->value.source = carriage->in.destination;
	carriage->value.source_port = carriage->in.destination_port;
	carriage->value.destination = carriage->in.source;
	carriage->value.destination_port = carriage->in.source_port;
	if (bpf_map_update_elem(&slim_carried, &carriage->out, &carriage->value, BPF_NOEXIST)) {
		bpf_map_delete_elem(&slim_carried, &carriage->in);
		return -1;
	}
	__sync_fetch_and_add(&device->carried, 1);
	__sync_fetch_and_add(&all->carried, 1);
	return 0;
}

/* Is that tuple a source-bound socket's? */
slim_verified_once int slim_carriage_clashes(const struct slim_carried_key *in)
{
	struct slim_tuple tuple = {};

	if (!in)
		return 1;
	slim_map_v4(tuple.source, in->source);
	slim_map_v4(tuple.destination, in->destination);
	tuple.source_port = in->source_port;
	tuple.destination_port = in->destination_port;
	return !!bpf_map_lookup_elem(&slim_bound, &tuple);
}

/*
 * Takes what tells this connection from others between the two hosts, and writes the
 * records: a free port at the other end, to which no socket of either host goes. Over wire
 * announce that one is given, and it is the port at this end, which the kernel gives to no
 * socket.
 */
static __noinline int
slim_carriage_take(const struct slim_control *control, struct slim_carriage *carriage)
{
	__u32 start = bpf_get_prandom_u32();

	if (!control || !carriage)
		return -1;
	for (int i = 0; i < SLIM_BOUND_PORTS; i++) {
		int life;

		if (carriage->value.flags & SLIM_CARRIED_ANNOUNCED)
			carriage->in.destination_port =
				bpf_htons(control->source_port +
					  (start + i) % (control->source_ports ?: 1));
		else
			carriage->in.source_port =
				bpf_htons(slim_fixed.wire_port + SLIM_WIRE_PORTS +
					  ((carriage->out.device + i) & (SLIM_BOUND_PORTS - 1)));
		life = slim_carried_life(&carriage->in, SLIM_CARRIED_LINGER);
		if (life == SLIM_CARRIED_LIVES)
			continue;
		if (life == SLIM_CARRIED_OVER)
			slim_carried_drop_of(&carriage->in);
		if (slim_carriage_clashes(&carriage->in))
			continue;
		if (!slim_carriage_put(carriage))
			return 0;
	}
	return -1;
}

/*
 * By which port is this connection known to the peer, where no two live ones may be the
 * same? By its own; but one that dialled a service and one that did not may have the same.
 * `preferred` is what it had, for a SYN that is sent again. Negative: none was found.
 */
static __noinline int
slim_carriage_name(struct slim_carriage *carriage, __be32 address, __be16 preferred)
{
	const bool service = carriage && address != carriage->out.destination;

	if (!carriage)
		return -1;
	carriage->value.name = preferred ?: carriage->out.source_port;
	for (int i = 0; i < SLIM_CARRIED_TRIES; i++) {
		const bool own = carriage->value.name == carriage->out.source_port;

		carriage->other = carriage->out;
		carriage->other.destination = address;
		carriage->other.destination_port = carriage->value.port;
		carriage->other.source_port = carriage->value.name;
		if ((!service && own) ||
		    slim_carried_life(&carriage->other, SLIM_CARRIED_LINGER) != SLIM_CARRIED_LIVES) {
			const struct slim_carried *old;

			slim_carried_name_key(&carriage->out, &carriage->value, &carriage->other);
			old = bpf_map_lookup_elem(&slim_carried, &carriage->other);
			if (!old && !service && own) {
				carriage->value.name = 0;
				return 0;
			}
			if (!old && !bpf_map_update_elem(&slim_carried, &carriage->other,
							 &carriage->value, BPF_NOEXIST))
				return 0;
		}
		carriage->value.name = bpf_htons(slim_alias_draw(i < SLIM_CARRIED_HIGH));
	}
	carriage->value.name = 0;
	return -1;
}

/* A ones' complement sum of 32 bits (RFC 1071), of less than 65,536 words of that size. */
static __always_inline __u32 slim_sum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (__u32)((sum & 0xffffffff) + (sum >> 32));
}

/*
 * Writes the record's addresses and ports into a TCP packet without IP options; and `macs`, if
 * there are to be those. Of each packet, so with no more calls than it takes: only the kernel
 * knows whether TCP's checksum is whole, or the pseudo header's as long as a device is to
 * complete it.
 */
static __always_inline int
slim_carried_write(struct __sk_buff *skb, const struct slim_carried *carried,
		   const struct slim_carried_key *key, const __u8 *macs)
{
	const __u32 ports = slim_sum_fold((__u64)(__u16)~key->source_port + carried->source_port +
					  (__u16)~key->destination_port +
					  carried->destination_port);
	const __u32 addresses = slim_sum_fold((__u64)(__u32)~key->source + carried->source +
					      (__u32)~key->destination + carried->destination);
	void *data, *end;
	struct tcphdr *tcp;
	struct iphdr *ip;
	__u32 sum;

	if (bpf_l4_csum_replace(skb, SLIM_CARRY_CHECK, 0, addresses, BPF_F_PSEUDO_HDR) ||
	    bpf_l4_csum_replace(skb, SLIM_CARRY_CHECK, 0, ports, 0))
		return -1;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + SLIM_TCP_OFFSET + sizeof(*tcp) > end)
		return -1;
	ip = data + ETH_HLEN;
	tcp = (void *)(ip + 1);
	sum = (__u16)~ip->check + (addresses & 0xffff) + (addresses >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~((sum & 0xffff) + (sum >> 16));
	ip->saddr = carried->source;
	ip->daddr = carried->destination;
	tcp->source = carried->source_port;
	tcp->dest = carried->destination_port;
	if (macs)
		__builtin_memcpy(data, macs, sizeof(carried->macs));
	return 0;
}

/* A TCP packet without IP options and fragments, whole up to the TCP header. */
struct slim_segment {
	struct slim_carried_key key;
	__be32 sequence;
	__u16 total;		/* bytes of the IP packet */
	__u8 doff;
	__u8 syn;
	__u8 ack;
	__u8 fin;
	__u8 rst;
	__u8 pad;
};

static __always_inline bool slim_segment_load(struct __sk_buff *skb, struct slim_segment *segment)
{
	void *data, *end;
	struct tcphdr *tcp;
	struct iphdr *ip;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return false;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + SLIM_TCP_OFFSET + sizeof(*tcp) > end) {
		if (bpf_skb_pull_data(skb, SLIM_TCP_OFFSET + sizeof(*tcp)))
			return false;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (data + SLIM_TCP_OFFSET + sizeof(*tcp) > end)
			return false;
	}
	ip = data + ETH_HLEN;
	if (ip->protocol != IPPROTO_TCP || ip->ihl != 5 || ip->version != 4 ||
	    bpf_ntohs(ip->frag_off) & (IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET))
		return false;
	tcp = (void *)(ip + 1);
	if (tcp->doff < 5)
		return false;
	segment->key.source = ip->saddr;
	segment->key.destination = ip->daddr;
	segment->key.source_port = tcp->source;
	segment->key.destination_port = tcp->dest;
	segment->sequence = tcp->seq;
	segment->total = bpf_ntohs(ip->tot_len);
	segment->doff = tcp->doff;
	segment->syn = tcp->syn;
	segment->ack = tcp->ack;
	segment->fin = tcp->fin;
	segment->rst = tcp->rst;
	return true;
}

/* The last of those that are closed; where there are too many, the first goes. */
static __always_inline void slim_carried_queue(const struct slim_carried_key *out)
{
	struct slim_carried_key key = *out;

	bpf_map_push_elem(&slim_over, &key, BPF_EXIST);
}

/* What becomes of the connection with the first packet, or the last, of one way. */
static __noinline int
slim_carried_turn(const struct slim_segment *segment, struct slim_carried *carried)
{
	const bool out = segment && segment->key.device;
	const bool near = out && carried && carried->back;
	struct slim_carried_key other;
	struct slim_carried *back;

	if (!segment || !carried)
		return 0;
	slim_carried_other(carried, &other);
	back = bpf_map_lookup_elem(&slim_carried, &other);
	if (!back)
		return 0;
	if (segment->rst || segment->fin) {
		const bool over = carried->flags & back->flags & SLIM_CARRIED_FINAL;

		carried->flags |= SLIM_CARRIED_FINAL;
		carried->used = bpf_ktime_get_ns();
		if (segment->rst) {
			back->flags |= SLIM_CARRIED_FINAL;
			back->used = carried->used;
		}
		if (back->flags & SLIM_CARRIED_FINAL) {
			slim_carried_closes(out ? carried : back, out ? back : carried);
			if (near)
				slim_carried_closes(back, carried);
			if (!over)
				slim_carried_queue(out ? &segment->key : &other);
		}
		return 0;
	}
	carried->flags |= SLIM_CARRIED_ANSWERED;
	/* The opener's first packet but the SYN is the end of the handshake. */
	if (out == !(carried->flags & SLIM_CARRIED_ACCEPTED)) {
		slim_carried_opens(out ? carried : back, out ? back : carried);
		if (near)
			slim_carried_opens(back, carried);
	}
	return 0;
}

/* What a packet says of its connection. */
static __always_inline void
slim_carried_note(struct __sk_buff *skb, const struct slim_segment *segment,
		  struct slim_carried *carried)
{
	/* An IPv4 packet of more than 64 KB (BIG TCP) says 0. A short frame is padded. */
	const __u32 packet = segment->total ?: skb->len - ETH_HLEN;
	const __u32 headers = sizeof(struct iphdr) + segment->doff * 4;
	__u64 now;

	if (packet > headers)
		__sync_fetch_and_add(&carried->bytes, packet - headers);
	if (segment->fin || segment->rst ||
	    (!(carried->flags & SLIM_CARRIED_ANSWERED) && segment->ack)) {
		slim_carried_turn(segment, carried);
		return;
	}
	now = bpf_ktime_get_coarse_ns();
	if (!(carried->flags & SLIM_CARRIED_FINAL) && now - carried->used > SLIM_SECOND)
		carried->used = now;
}

/* Appends the option to a SYN, which has no payload and room for it. */
static __always_inline int
slim_segment_append(struct __sk_buff *skb, const struct slim_segment *segment,
		    struct slim_option *option)
{
	/* With a name, and padding to the next 32 bits. */
	const bool named = option->length == SLIM_OPTION_NAMED;
	const __u32 length = named ? sizeof(*option) : SLIM_OPTION_LENGTH;
	const __u16 tcp = segment->total - sizeof(struct iphdr);
	__be16 total = bpf_htons(segment->total), longer = bpf_htons(segment->total + length);
	__be16 flags, flagged;
	__s64 sum;

	if (bpf_skb_change_tail(skb, ETH_HLEN + segment->total + length, 0) ||
	    bpf_skb_load_bytes(skb, SLIM_FLAGS_OFFSET, &flags, sizeof(flags)))
		return -1;
	flagged = bpf_htons(bpf_ntohs(flags) + (length / 4 << 12));
	if (named) {
		sum = bpf_csum_diff(NULL, 0, (__be32 *)option, sizeof(*option), 0);
		if (bpf_skb_store_bytes(skb, ETH_HLEN + segment->total, option, sizeof(*option), 0))
			return -1;
	} else {
		sum = bpf_csum_diff(NULL, 0, (__be32 *)option, SLIM_OPTION_LENGTH, 0);
		if (bpf_skb_store_bytes(skb, ETH_HLEN + segment->total, option,
					SLIM_OPTION_LENGTH, 0))
			return -1;
	}
	if (bpf_skb_store_bytes(skb, SLIM_FLAGS_OFFSET, &flagged, sizeof(flagged), 0) ||
	    bpf_l4_csum_replace(skb, SLIM_CARRY_CHECK, 0, sum, 0) ||
	    bpf_l4_csum_replace(skb, SLIM_CARRY_CHECK, flags, flagged, sizeof(flagged)) ||
	    bpf_l4_csum_replace(skb, SLIM_CARRY_CHECK, bpf_htons(tcp), bpf_htons(tcp + length),
				BPF_F_PSEUDO_HDR | sizeof(__be16)) ||
	    bpf_l3_csum_replace(skb, SLIM_CHECK_OFFSET, total, longer, sizeof(longer)) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, tot_len), &longer,
				sizeof(longer), 0))
		return -1;
	return 0;
}

/* A SYN of an endpoint: the question, and what comes of it. */
struct slim_opening {
	struct slim_state state;
	struct slim_way way;
	struct slim_carriage *carriage;
};

static __noinline int slim_opening_refused(const struct slim_opening *opening, __u32 client)
{
	const struct slim_account one = { .refused = 1 };

	if (!opening)
		return 0;
	slim_account_add(opening->way.direction == SLIM_EGRESS ? client :
								 opening->way.target.endpoint,
			 opening->way.rule, opening->way.direction, &one);
	return 0;
}

/* What comes of a SYN, besides a positive errno. */
enum slim_opened {
	SLIM_OPENED_CARRIED = 0,
	SLIM_OPENED_ROUTED = -1,	/* it is the router's to carry or to refuse */
};

/* Refused by the policy of an endpoint in placement `host` of this host, which no router knows. */
static __noinline int
slim_opening_denied(const struct slim_opening *opening, const struct slim_device *device)
{
	struct slim_local local = {};
	struct slim_call call = {
		.protocol = IPPROTO_TCP,
		.direction = SLIM_INGRESS,
	};
	__be32 dialled[4];

	if (!opening || !device || !opening->carriage || !opening->way.target.peer)
		return SLIM_OPENED_ROUTED;
	local.endpoint = device->endpoint;
	local.index = opening->way.target.peer->index;
	slim_map_v4(local.address, device->address);
	call.reason = opening->way.reason;
	call.rule = opening->way.rule;
	call.peer = opening->way.target.endpoint;
	call.port = opening->carriage->dialled.aim.port;
	slim_copy(dialled, opening->carriage->dialled.aim.address);
	slim_refuse(&local, dialled, &call);
	return opening->way.error;
}

/*
 * A host of wire announce: by what it has told of its listeners. Where there is none it is
 * refused, and the other end hears of it.
 */
static __noinline int
slim_opening_announce(struct slim_opening *opening, struct slim_carriage *carriage, __u32 client)
{
	struct slim_remote_key key = {};
	struct slim_remote at = {};
	int error;

	if (!opening || !carriage || !opening->way.target.peer)
		return SLIM_OPENED_ROUTED;
	slim_copy(key.host, opening->way.target.peer->host);
	key.endpoint = opening->way.target.endpoint;
	key.port = opening->way.target.port;
	error = slim_remote_find(&key, &at);
	if (error != ECONNREFUSED) {
		carriage->in.source_port = at.port;
		carriage->value.flags = SLIM_CARRIED_ANNOUNCED;
		return error ? SLIM_OPENED_ROUTED : SLIM_OPENED_CARRIED;
	}
	slim_way_refuse(&opening->way, SLIM_REASON_SYN_NO_LISTENER, error);
	slim_remote_refused(&opening->way, client);
	return error;
}

/* Asks slim_way(): the host that the SYN goes to. */
static __always_inline int
slim_opening_ask(struct slim_opening *opening, const struct slim_device *device)
{
	const struct slim_endpoint *peer;
	struct slim_inner_range range;

	struct slim_carriage *carriage = opening->carriage;

	range = slim_inner_range(opening->state.control);
	if (slim_way(&opening->state, &range, slim_fixed.wire_port, &carriage->dialled,
		     &opening->way)) {
		peer = opening->way.target.peer;
		if (opening->way.direction == SLIM_INGRESS && peer && peer->index)
			return slim_opening_denied(opening, device);
		if (opening->way.direction == SLIM_INGRESS &&
		    slim_remote_refused(&opening->way, device->endpoint))
			return opening->way.error;
		/* The router refuses it and tells that; on account it is here. */
		if (slim_is_policy(opening->way.reason))
			slim_opening_refused(opening, device->endpoint);
		return SLIM_OPENED_ROUTED;
	}
	peer = opening->way.target.peer;
	if (!peer)
		return SLIM_OPENED_ROUTED;
	carriage->value.peer = opening->way.target.endpoint;
	carriage->value.port = opening->way.target.port;
	carriage->value.rule = opening->way.rule;
	carriage->address = peer->address[3];
	carriage->in.source = peer->host[3];
	if (opening->way.kind == SLIM_WAY_WIRE) {
		carriage->in.destination = opening->state.control->underlay[3];
		if (!(peer->flags & SLIM_ENDPOINT_WIRE_SYN)) {
			int error = slim_opening_announce(opening, carriage, device->endpoint);

			if (error)
				return error;
			slim_count(opening->way.peer_reason);
		}
	} else if (opening->way.kind == SLIM_WAY_SAME_HOST && peer->index) {
		slim_count(opening->way.peer_reason);
		carriage->in.destination = device->near;
	} else if (opening->way.kind == SLIM_WAY_SAME_HOST &&
		   opening->way.target.endpoint != device->endpoint) {
		__u32 endpoint = opening->way.target.endpoint;
		const __u32 *number = bpf_map_lookup_elem(&slim_apart, &endpoint);

		if (!number)
			return SLIM_OPENED_ROUTED;
		slim_count(opening->way.peer_reason);
		carriage->in.device = *number;
		carriage->in.source = peer->address[3];
		carriage->peer_rule = opening->way.peer_rule;
	} else {
		return SLIM_OPENED_ROUTED;
	}
	slim_count(opening->way.reason);
	return SLIM_OPENED_CARRIED;
}

/* The question to slim_way(). A frame of its own, for the stack. */
static __noinline int
slim_opening_make(const struct slim_device *device, const struct slim_segment *segment)
{
	struct slim_opening opening = {};
	struct slim_carriage *carriage;

	if (!device || !segment || !slim_state_get(&opening.state) || !opening.state.active)
		return SLIM_OPENED_ROUTED;
	carriage = slim_carriage_new();
	if (!carriage || !opening.state.control)
		return SLIM_OPENED_ROUTED;
	opening.carriage = carriage;
	carriage->dialled.stream = 1;
	carriage->dialled.aim.now = bpf_ktime_get_ns();
	carriage->dialled.aim.vni = device->vni;
	carriage->dialled.aim.client = device->endpoint;
	slim_map_v4(carriage->dialled.aim.address, segment->key.destination);
	carriage->dialled.aim.port = segment->key.destination_port;
	carriage->dialled.aim.protocol = IPPROTO_TCP;
	carriage->dialled.aim.dialled = 1;
	/* The same for a SYN that is sent again: a service leads it to the same endpoint. */
	carriage->dialled.aim.random = segment->sequence;
	return slim_opening_ask(&opening, device);
}

/*
 * From one such endpoint to another of this host: from device to device. What the one
 * sends is what comes in at the other, so each way has one record and no third.
 */
static __noinline int slim_carriage_near(struct slim_carriage *carriage)
{
	struct slim_usage *all = slim_usage_get(0);
	struct slim_device *mine, *theirs;
	__u32 number, client;
	bool named = false;

	if (!carriage || !all)
		return -1;
	number = carriage->out.device;
	mine = bpf_map_lookup_elem(&slim_device, &number);
	number = carriage->in.device;
	theirs = bpf_map_lookup_elem(&slim_device, &number);
	if (!mine || !theirs)
		return -1;
	slim_carried_drop_of(&carriage->out);
	if (!slim_share_left(mine->carried, all->carried, SLIM_CARRIED_ROOM))
		return -1;
	carriage->value.opened = bpf_ktime_get_ns();
	carriage->value.used = carriage->value.opened;
	/* What the called one sends: from whom was dialled, to who called. */
	client = carriage->value.peer;
	carriage->value.flags = SLIM_CARRIED_ACCEPTED;
	carriage->value.endpoint = client;
	carriage->value.peer = mine->endpoint;
	number = carriage->value.rule;
	carriage->value.rule = carriage->peer_rule;
	carriage->peer_rule = number;
	carriage->value.device = carriage->in.device;
	carriage->value.back = carriage->out.device;
	carriage->value.through = carriage->out.device;
	carriage->value.source = carriage->out.destination;
	carriage->value.source_port = carriage->out.destination_port;
	carriage->value.destination = carriage->out.source;
	carriage->value.destination_port = carriage->out.source_port;
	__builtin_memcpy(carriage->value.macs, mine->macs, sizeof(mine->macs));
	carriage->in.destination = carriage->out.source;
	carriage->in.destination_port = carriage->out.source_port;
	carriage->in.source_port = carriage->value.port;
	for (int i = 0; i < SLIM_CARRIED_TRIES && !named; i++) {
		/* Another live one by that name, as by a service and without: it gets another. */
		if (i)
			carriage->in.destination_port =
				bpf_htons(slim_alias_draw(i < SLIM_CARRIED_HIGH));
		if (slim_carried_life(&carriage->in, SLIM_CARRIED_LINGER) == SLIM_CARRIED_OVER)
			slim_carried_drop_of(&carriage->in);
		named = !bpf_map_update_elem(&slim_carried, &carriage->in, &carriage->value,
					     BPF_NOEXIST);
	}
	if (!named)
		return -1;
	carriage->value.flags = 0;
	carriage->value.endpoint = mine->endpoint;
	carriage->value.peer = client;
	carriage->value.rule = carriage->peer_rule;
	carriage->value.device = carriage->out.device;
	carriage->value.back = carriage->in.device;
	carriage->value.through = carriage->in.device;
	carriage->value.source = carriage->in.destination;
	carriage->value.source_port = carriage->in.destination_port;
	carriage->value.destination = carriage->in.source;
	carriage->value.destination_port = carriage->in.source_port;
	__builtin_memcpy(carriage->value.macs, theirs->macs, sizeof(theirs->macs));
	if (bpf_map_update_elem(&slim_carried, &carriage->out, &carriage->value, BPF_NOEXIST)) {
		bpf_map_delete_elem(&slim_carried, &carriage->in);
		return -1;
	}
	__sync_fetch_and_add(&mine->carried, 1);
	__sync_fetch_and_add(&theirs->carried, 1);
	__sync_fetch_and_add(&all->carried, 2);
	return 0;
}

/* A packet between two of them: rewritten, and the device by which it goes on. */
static __always_inline int
slim_carried_across(struct __sk_buff *skb, const struct slim_carried *carried,
		    const struct slim_carried_key *key)
{
	if (slim_carried_write(skb, carried, key, carried->macs))
		return TC_ACT_SHOT;
	return slim_pass_on(skb, carried->through);
}

static __always_inline int
slim_device_open(struct __sk_buff *skb, const struct slim_device *device,
		 struct slim_segment *segment)
{
	struct slim_option option = {
		.kind = SLIM_OPTION_KIND,
		.length = SLIM_OPTION_LENGTH,
	};
	const struct slim_control *control;
	struct slim_carriage *carriage;
	struct slim_carried *old;
	__u32 zero = 0, uplink;
	bool announced, again;
	__be16 name;
	int error;

	error = slim_opening_make(device, segment);
	if (error) {
		/* An endpoint cannot mark a packet: on its way to another namespace it is scrubbed. */
		if (error > 0)
			skb->mark = slim_fixed.reset;
		return SLIM_TC_NEXT;
	}
	carriage = bpf_map_lookup_elem(&slim_carriage, &zero);
	control = bpf_map_lookup_elem(&slim_control, &zero);
	if (!carriage || !control)
		return TC_ACT_SHOT;
	slim_carried_make_room(segment->key.device);
	if (carriage->in.device) {
		slim_carriage_device(carriage, segment->key.device, device);
		carriage->out = segment->key;
		if (slim_carriage_near(carriage)) {
			slim_count(SLIM_REASON_BOUND_FULL);
			return TC_ACT_SHOT;
		}
		return slim_carried_across(skb, &carriage->value, &carriage->out);
	}
	if (segment->total != sizeof(struct iphdr) + segment->doff * 4 ||
	    segment->doff * 4 + sizeof(option) > 60) {
		/* Data or a cookie of Fast Open: it is sent again without. */
		slim_count(SLIM_REASON_SYN_NO_OPTION);
		return TC_ACT_SHOT;
	}
	slim_carriage_device(carriage, segment->key.device, device);
	carriage->out = segment->key;
	carriage->in.destination_port = segment->key.source_port;
	announced = carriage->value.flags & SLIM_CARRIED_ANNOUNCED;
	old = bpf_map_lookup_elem(&slim_carried, &segment->key);
	again = old && old->destination == carriage->in.source &&
		old->source == carriage->in.destination && old->peer == carriage->value.peer &&
		(!announced || old->destination_port == carriage->in.source_port);
	if (again && announced && !(old->flags & SLIM_CARRIED_FINAL) &&
	    !slim_carried_is_older(old->opened, SLIM_HANDSHAKE)) {
		/* Sent again, and announced: another announcement would be another connection's. */
		uplink = carriage->uplink;
		return slim_carried_write(skb, old, &segment->key, NULL) ?
			       TC_ACT_SHOT : slim_pass_on(skb, uplink);
	}
	if (again) {
		/* Sent again, or one that is closed: what the peer has of it is its own to judge. */
		carriage->in.source_port = old->destination_port;
		carriage->in.destination_port = old->source_port;
		name = old->name;
		slim_carried_drop_of(&carriage->out);
		error = slim_carriage_name(carriage, carriage->address, name) ||
			slim_carriage_put(carriage);
	} else {
		slim_carried_drop_of(&carriage->out);
		error = slim_carriage_name(carriage, carriage->address, 0) ||
			slim_carriage_take(control, carriage);
	}
	if (error) {
		slim_carried_unname(&carriage->out, &carriage->value);
		slim_count(SLIM_REASON_BOUND_FULL);
		return TC_ACT_SHOT;
	}
	uplink = carriage->uplink;
	name = carriage->value.name ?: segment->key.source_port;
	if (announced) {
		slim_carried_announce(&carriage->value, name, SLIM_TOLD_CONNECTS);
		return slim_carried_write(skb, &carriage->value, &carriage->out, NULL) ?
			       TC_ACT_SHOT : slim_pass_on(skb, uplink);
	}
	option.port = carriage->value.port;
	option.destination = bpf_htonl(carriage->value.peer);
	option.source = bpf_htonl(device->endpoint);
	if (name != carriage->in.destination_port) {
		option.length = SLIM_OPTION_NAMED;
		option.name = name;
		option.pad = SLIM_TCP_OPTION_NOP << 8 | SLIM_TCP_OPTION_NOP;
	}
	option.tag = slim_tag(slim_keys_signing(&control->keys),
			      carriage->in.destination, carriage->in.source,
			      carriage->in.destination_port, segment->sequence, &option);
	if (slim_segment_append(skb, segment, &option) ||
	    slim_carried_write(skb, &carriage->value, &carriage->out, NULL))
		return TC_ACT_SHOT;
	return slim_pass_on(skb, uplink);
}

/* Is it over a rate? Else it is on account. */
static __always_inline bool slim_police_holds(__u64 *next, __u64 rate, __u32 length)
{
	__u64 now = bpf_ktime_get_ns(), then = *(volatile __u64 *)next, from;

	if (!rate)
		return false;
	if (slim_rate_holds(then, now, SLIM_RATE_DATAGRAM))
		return true;
	from = slim_rate_from(then, now);
	if (from != then)
		__sync_val_compare_and_swap(next, then, from);
	__sync_fetch_and_add(next, slim_rate_cost(length, rate));
	return false;
}

/* No queue is here that could hold a packet back, so what is over a limit is dropped. */
slim_verified_once int
slim_police_run(struct __sk_buff *skb, struct slim_carried *carried)
{
	__u32 number = skb->ifindex;
	struct slim_police *police = bpf_map_lookup_elem(&slim_police, &number);

	/* Nothing but headers: it acknowledges, and is free. */
	if (!police || skb->len <= SLIM_TCP_OFFSET + 60)
		return 0;
	if ((carried && slim_police_holds(&carried->next, police->connection_rate, skb->len)) ||
	    slim_police_holds(&police->next, police->rate, skb->len)) {
		slim_count(SLIM_REASON_RATE);
		return 1;
	}
	return 0;
}

static __always_inline bool slim_is_policed(void)
{
	__u32 zero = 0;
	const struct slim_control *control = bpf_map_lookup_elem(&slim_control, &zero);

	return control && control->policed;
}

/* The router's end of an endpoint's link: what the endpoint sends. */
static __always_inline int slim_device_run(struct __sk_buff *skb)
{
	struct slim_segment segment = {};
	struct slim_carried *carried;
	struct slim_device *device;

	if (!slim_segment_load(skb, &segment))
		return slim_is_policed() && slim_police_run(skb, NULL) ? TC_ACT_SHOT : SLIM_TC_NEXT;
	segment.key.device = skb->ifindex;
	if (segment.syn && !segment.ack) {
		device = bpf_map_lookup_elem(&slim_device, &segment.key.device);
		/* With another's address the router drops it (RFC 3704). */
		if (!device || device->address != segment.key.source)
			return SLIM_TC_NEXT;
		return slim_device_open(skb, device, &segment);
	}
	carried = bpf_map_lookup_elem(&slim_carried, &segment.key);
	if (slim_is_policed() && slim_police_run(skb, carried))
		return TC_ACT_SHOT;
	if (!carried)
		return SLIM_TC_NEXT;
	if (carried->flags & SLIM_CARRIED_REVOKED && !segment.rst)
		return TC_ACT_SHOT;
	slim_carried_note(skb, &segment, carried);
	if (carried->back)
		return slim_carried_across(skb, carried, &segment.key);
	if (slim_carried_write(skb, carried, &segment.key, NULL))
		return TC_ACT_SHOT;
	return slim_pass_on(skb, carried->through);
}

/*
 * A SYN that is admitted, for an endpoint with a namespace of its own: writes its records;
 * or one that is announced, of which the option has no kind. The number of the device by
 * which it goes on, 0 where there is no such endpoint, or negative where there is no room.
 */
static __noinline int
slim_carry_admit(const struct slim_syn *syn, const struct slim_option *option,
		 const struct slim_admitted *admitted)
{
	struct slim_carriage *carriage;
	struct slim_device *device;
	__u32 *number, key;

	if (!syn || !option || !admitted)
		return -1;
	key = admitted->destination_id;
	number = bpf_map_lookup_elem(&slim_apart, &key);
	if (!number)
		return 0;
	key = *number;
	device = bpf_map_lookup_elem(&slim_device, &key);
	if (!device || !admitted->source)
		return 0;
	carriage = slim_carriage_new();
	if (!carriage)
		return -1;
	slim_carried_make_room(key);
	slim_carriage_device(carriage, key, device);
	carriage->in.source = syn->tuple.source[3];
	carriage->in.destination = syn->tuple.destination[3];
	carriage->in.source_port = syn->tuple.source_port;
	carriage->in.destination_port = syn->tuple.destination_port;
	carriage->out.source_port = option->port;
	carriage->out.destination = admitted->source->address[3];
	carriage->out.destination_port = slim_option_name(option, syn->tuple.source_port);
	carriage->value.peer = admitted->source_id;
	carriage->value.rule = admitted->rule;
	carriage->value.port = option->port;
	carriage->value.flags = SLIM_CARRIED_ACCEPTED;
	if (!option->kind)
		carriage->value.flags |= SLIM_CARRIED_ANNOUNCED;
	/* The SYN is sent again, or comes after a connection that is closed. */
	slim_carried_drop_of(&carriage->in);
	return slim_carriage_put(carriage) ? -1 : (int)carriage->portal;
}

/* The record of what comes in from the underlay by this tuple, if it was announced. */
static __always_inline struct slim_carried *
slim_carried_of(const struct slim_tuple *tuple, struct slim_carried_key *key)
{
	struct slim_carried *carried;

	key->source = tuple->source[3];
	key->destination = tuple->destination[3];
	key->source_port = tuple->source_port;
	key->destination_port = tuple->destination_port;
	carried = bpf_map_lookup_elem(&slim_carried, key);
	return carried && carried->flags & SLIM_CARRIED_ANNOUNCED ? carried : NULL;
}

/* The device by which a SYN goes on that was announced; 0: it was not. */
slim_verified_once int slim_carried_announced(const struct slim_tuple *syn)
{
	struct slim_carried_key key = {};
	const struct slim_carried *carried;

	if (!syn)
		return 0;
	carried = slim_carried_of(syn, &key);
	return carried && !(carried->flags & SLIM_CARRIED_FINAL) ? carried->through : 0;
}

/* It does not come after all: unless it did. */
slim_verified_once int slim_carry_withdraw(const struct slim_tuple *syn)
{
	struct slim_carried_key key = {}, other;
	const struct slim_carried *carried;

	if (!syn)
		return 0;
	carried = slim_carried_of(syn, &key);
	if (!carried || carried->flags & SLIM_CARRIED_ANSWERED)
		return 0;
	slim_carried_other(carried, &other);
	slim_carried_drop(&key, &other);
	return 0;
}

/* As slim_carry_admit(), for one to a published port, from outside of every overlay. */
static __noinline int
slim_carry_publish(const struct slim_tuple *syn, const struct slim_publish *published,
		   __u32 rule)
{
	struct slim_carriage *carriage;
	struct slim_device *device;
	__u32 *number, key;

	if (!syn || !published)
		return -1;
	key = published->endpoint;
	number = bpf_map_lookup_elem(&slim_apart, &key);
	if (!number)
		return 0;
	key = *number;
	device = bpf_map_lookup_elem(&slim_device, &key);
	carriage = slim_carriage_new();
	if (!device || !carriage)
		return 0;
	slim_carried_make_room(key);
	slim_carriage_device(carriage, key, device);
	carriage->in.source = syn->source[3];
	carriage->in.destination = syn->destination[3];
	carriage->in.source_port = syn->source_port;
	carriage->in.destination_port = syn->destination_port;
	carriage->out.source_port = published->port;
	carriage->out.destination = syn->source[3];
	carriage->out.destination_port = syn->source_port;
	carriage->value.rule = rule;
	carriage->value.port = published->port;
	carriage->value.flags = SLIM_CARRIED_ACCEPTED | SLIM_CARRIED_PUBLISHED;
	slim_carried_drop_of(&carriage->in);
	return slim_carriage_put(carriage) ? -1 : (int)carriage->portal;
}

/*
 * An ICMP error about a connection that is carried quotes the packet as it left (RFC 792):
 * the device by which it goes on, 0 where it is about none. On the way `into` the endpoint
 * it is rewritten: it quotes what the endpoint has sent, and comes from whom it was for.
 */
static __noinline int slim_carry_icmp(struct __sk_buff *skb, int into)
{
	struct {
		struct slim_icmp icmp;
		struct iphdr ip;
		__be16 ports[2];
	} __attribute__((packed)) quote;
	const __u32 offset = SLIM_TCP_OFFSET;
	const __u32 check = offset + offsetof(struct slim_icmp, checksum);
	const __u32 quoted = offset + sizeof(struct slim_icmp);
	struct slim_carried_key key = {};
	const struct slim_carried *carried;
	__be32 outer[2], from[3], to[3];
	__u32 device;
	__s64 sum;

	if (bpf_skb_load_bytes(skb, offset, &quote, sizeof(quote)))
		return 0;
	if (quote.icmp.type != ICMP_DEST_UNREACH && quote.icmp.type != ICMP_TIME_EXCEEDED &&
	    quote.icmp.type != ICMP_PARAMETERPROB)
		return 0;
	if (quote.ip.ihl != 5 || quote.ip.protocol != IPPROTO_TCP)
		return 0;
	key.source = quote.ip.daddr;
	key.destination = quote.ip.saddr;
	key.source_port = quote.ports[1];
	key.destination_port = quote.ports[0];
	carried = bpf_map_lookup_elem(&slim_carried, &key);
	if (!carried)
		return 0;
	if (!into)
		return carried->through;
	device = carried->device;
	from[0] = quote.ip.saddr;
	from[1] = quote.ip.daddr;
	__builtin_memcpy(&from[2], quote.ports, sizeof(quote.ports));
	to[0] = carried->destination;
	to[1] = carried->source;
	quote.ports[0] = carried->destination_port;
	quote.ports[1] = carried->source_port;
	__builtin_memcpy(&to[2], quote.ports, sizeof(quote.ports));
	sum = bpf_csum_diff(from, sizeof(from), to, sizeof(to), 0);
	if (bpf_l4_csum_replace(skb, check, 0, sum, 0) ||
	    bpf_skb_store_bytes(skb, quoted + offsetof(struct iphdr, saddr), to, 8, 0) ||
	    bpf_skb_store_bytes(skb, quoted + sizeof(struct iphdr), &to[2], 4, 0) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, saddr), outer, sizeof(outer)))
		return -1;
	from[0] = to[1];
	from[1] = to[0];
	sum = bpf_csum_diff(outer, sizeof(outer), from, sizeof(outer), 0);
	if (bpf_l3_csum_replace(skb, SLIM_CHECK_OFFSET, 0, sum, 0) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, saddr), from, 8, 0))
		return -1;
	return device;
}

/* Is it ICMP, without IP options? */
static __always_inline bool slim_is_icmp(struct __sk_buff *skb)
{
	void *data, *end;
	const struct iphdr *ip;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return false;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + SLIM_TCP_OFFSET > end)
		return false;
	ip = data + ETH_HLEN;
	return ip->protocol == IPPROTO_ICMP && ip->ihl == 5;
}

/* In place of our option, padding: nothing in the endpoint sees it. */
slim_verified_once int slim_carry_blank(struct __sk_buff *skb, __u32 length)
{
	__u8 before[SLIM_TCP_OPTIONS_MAX] = {}, after[SLIM_TCP_OPTIONS_MAX] = {};
	const __u32 offset = SLIM_TCP_OFFSET + sizeof(struct tcphdr);
	__u8 blank[SLIM_OPTION_NAMED];
	__u32 at = 0, found = 0;
	__s64 sum;

	if (length < SLIM_OPTION_LENGTH)
		return 0;
	barrier_var(length);
	if (length > sizeof(before))
		return 0;
	if (bpf_skb_load_bytes(skb, offset, before, length))
		return -1;
	/* As in slim_option_find(). */
	for (int i = 0; i <= SLIM_TCP_OPTIONS_MAX - SLIM_OPTION_LENGTH; i++) {
		__u8 kind, size;

		if (at > SLIM_TCP_OPTIONS_MAX - SLIM_OPTION_LENGTH)
			break;
		kind = before[at];
		if (kind == SLIM_TCP_OPTION_END)
			break;
		if (kind == SLIM_TCP_OPTION_NOP) {
			at++;
			continue;
		}
		size = before[at + 1];
		if (size < 2)
			break;
		if (kind == SLIM_OPTION_KIND) {
			found = size;
			break;
		}
		at += size;
	}
	__builtin_memset(blank, SLIM_TCP_OPTION_NOP, sizeof(blank));
	if (found == SLIM_OPTION_LENGTH) {
		if (bpf_skb_store_bytes(skb, offset + at, blank, SLIM_OPTION_LENGTH, 0))
			return -1;
	} else if (found == SLIM_OPTION_NAMED) {
		if (bpf_skb_store_bytes(skb, offset + at, blank, SLIM_OPTION_NAMED, 0))
			return -1;
	} else {
		return 0;
	}
	/* Both whole: the option may begin at an odd byte. */
	if (bpf_skb_load_bytes(skb, offset, after, length))
		return -1;
	sum = bpf_csum_diff((__be32 *)before, sizeof(before), (__be32 *)after, sizeof(after), 0);
	return bpf_l4_csum_replace(skb, SLIM_CARRY_CHECK, 0, sum, 0) ? -1 : 0;
}

#endif /* SLIMNET_CARRY_H */
