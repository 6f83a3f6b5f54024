/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps, and the few look-ups that every program starts with.
 */
#ifndef SLIMNET_STATE_H
#define SLIMNET_STATE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/tcp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "contract.h"

/*
 * A function that the verifier goes through once: a global one, of which it knows at each
 * call no more than the types. Through a static one it goes again on every path that
 * leads there, which is most of what a start of the agent takes. Such a function has a context,
 * numbers, and pointers to structures that hold no pointers (Linux 5.13); each of these may be
 * NULL, and before Linux 6.2 none can be the key or the value of a map's: those are copies.
 */
#define slim_verified_once __noinline

#define AF_INET 2
#define AF_INET6 10

#define SLIM_LOOPBACK_IFINDEX 1

/* From the kernel's errno.h; asm/errno.h has the same numbers on all of Linux but MIPS, SPARC, PA-RISC. */
#define EPERM 1
#define EACCES 13
#define EINVAL 22
#define EPROTONOSUPPORT 93
#define EOPNOTSUPP 95
#define EADDRINUSE 98
#define EADDRNOTAVAIL 99
#define ENETUNREACH 101
#define ENOBUFS 105
#define ECONNREFUSED 111
#define EHOSTUNREACH 113

/*
 * key_size and value_size where other maps have __type(): clang leaves the types of an
 * inner map undefined in the BTF.
 */
#define PAIR_OF(inner_type, name, key_type, value_type, inner_flags)	\
	struct name##_inner {						\
		__uint(type, inner_type);				\
		__uint(max_entries, 1024);				\
		__uint(map_flags, inner_flags);				\
		__uint(key_size, sizeof(key_type));			\
		__uint(value_size, sizeof(value_type));			\
	};								\
	struct {							\
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);		\
		__uint(max_entries, 2);					\
		__type(key, __u32);					\
		__array(values, struct name##_inner);			\
	} name SEC(".maps")

PAIR_OF(BPF_MAP_TYPE_HASH, slim_address, struct slim_address_key, __u32, BPF_F_NO_PREALLOC);
PAIR_OF(BPF_MAP_TYPE_HASH, slim_endpoint, __u32, struct slim_endpoint, BPF_F_NO_PREALLOC);
PAIR_OF(BPF_MAP_TYPE_HASH, slim_service, struct slim_service_key, struct slim_service,
	BPF_F_NO_PREALLOC);
PAIR_OF(BPF_MAP_TYPE_HASH, slim_publish, struct slim_publish_key, struct slim_publish,
	BPF_F_NO_PREALLOC);
PAIR_OF(BPF_MAP_TYPE_LPM_TRIE, slim_cidr, struct slim_cidr_key, struct slim_cidr,
	BPF_F_NO_PREALLOC);
PAIR_OF(BPF_MAP_TYPE_LPM_TRIE, slim_policy, struct slim_policy_key, struct slim_policy,
	BPF_F_NO_PREALLOC);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct slim_control);
} slim_control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} slim_active SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);
	__type(value, struct slim_local);
} slim_cgroup SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLIM_INDEX_MAX + 1);
	__type(key, __u32);
	__type(value, struct slim_usage);
} slim_local SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLIM_INDEX_MAX + 1);
	__type(key, __u32);
	__type(value, struct slim_limit);
} slim_limit SEC(".maps");

/* LRU: a client whose entry is evicted may be given another endpoint; nothing else is lost. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct slim_affinity_key);
	__type(value, struct slim_affinity);
} slim_affinity SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slim_account_key);
	__type(value, struct slim_account);
} slim_account SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct slim_socket);
} slim_socket SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, SLIM_LISTENER_ROOM);
	__type(key, struct slim_listener_key);
	__type(value, __u64);
} slim_listener SEC(".maps");

/*
 * Not LRU: a record that sk_lookup saw must still be there when the child is
 * established, or the child would have no name. Preallocated, because every
 * connection makes and removes one.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLIM_FLOW_ROOM);
	__type(key, struct slim_tuple);
	__type(value, struct slim_flow);
} slim_flow SEC(".maps");

/*
 * LRU: a port whose count is evicted starts at 0 again, and so may have more handshakes
 * under way than its part of the endpoint's share; the endpoint's own share still holds.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u32);
} slim_opening SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLIM_BOUND_ROOM * SLIM_BOUND_RECORDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slim_tuple);
	__type(value, struct slim_bound);
} slim_bound SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLIM_HELD_ROOM);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slim_listener_key);
	__type(value, struct slim_held);
} slim_held SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct slim_shield);
} slim_shield SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct slim_port);
} slim_port SEC(".maps");

/* When this is full, an endpoint pays for each socket on a shared port, not once a port. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u32);
} slim_joined SEC(".maps");

/*
 * What the host's routes deliver to itself (RTN_LOCAL), whether an interface has
 * the address or not. The tables say it of every host; this one knows it first.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slim_cidr_key);
	__type(value, __u32);
} slim_own SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLIM_REASON_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} slim_counter SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} slim_event SEC(".maps");

/*
 * Apart from slim_event, which refusals fill. Each entry says: look at all
 * sockets. When it is full that has been said, so none is ever lost.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} slim_doom SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slim_remote_key);
	__type(value, struct slim_remote);
} slim_remote SEC(".maps");

/* When it is full nobody reads it: the other host refuses what it does not hear of. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} slim_told SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, (SLIM_INDEX_MAX + 1) * 2 * SLIM_REASON_COUNT);
	__type(key, __u32);
	__type(value, struct slim_refusal);
} slim_refusal SEC(".maps");

/*
 * LRU: a socket whose record is evicted is connected to 0.0.0.0 by its name, and
 * what it sends is refused as before, but told without its destination.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct slim_nowhere);
} slim_nowhere SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} slim_apart SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct slim_device);
} slim_device SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct slim_police);
} slim_police SEC(".maps");

/* Not LRU, for the reason of slim_flow: a live connection loses its way with its record. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLIM_CARRIED_ROOM * SLIM_CARRIED_RECORDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slim_carried_key);
	__type(value, struct slim_carried);
} slim_carried SEC(".maps");

/*
 * Those that are closed and whose records linger, by what their endpoint sends, in the order in
 * which they were closed: where there is no room they make some.
 */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, SLIM_CARRIED_ROOM);
	__type(value, struct slim_carried_key);
} slim_over SEC(".maps");

/* The names of live connections with one source port, and those that linger (alias.h). */
struct slim_names {
	struct bpf_spin_lock lock;
	__u32 since[SLIM_NAME_WAYS];	/* closed, in about a second; 0: long ago, or never used */
	__u64 name[SLIM_NAME_WAYS];
};

#define SLIM_NAME_LIVES 0xffffffffU

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct slim_names);
} slim_name SEC(".maps");

/* The active generation; the slot is its lowest bit. */
struct slim_state {
	struct slim_control *control;
	__u64 active;
	__u32 slot;
	__u32 asking;		/* a question only: nothing is to be kept of it */
};

static __always_inline bool slim_state_get(struct slim_state *state)
{
	__u32 zero = 0;
	__u64 *active = bpf_map_lookup_elem(&slim_active, &zero);

	state->control = bpf_map_lookup_elem(&slim_control, &zero);
	if (!active || !state->control)
		return false;
	state->active = *(volatile __u64 *)active;
	state->slot = state->active & 1;
	state->asking = 0;
	return true;
}

static __always_inline struct slim_endpoint *
slim_endpoint_get(const struct slim_state *state, __u32 id)
{
	__u32 slot = state->slot;
	void *table = bpf_map_lookup_elem(&slim_endpoint, &slot);

	return table ? bpf_map_lookup_elem(table, &id) : NULL;
}

/* The look-ups of the core (target.h), in the tables in force. */

static __always_inline const struct slim_endpoint *slim_endpoint_lookup(void *env, __u32 id)
{
	return slim_endpoint_get(env, id);
}

static __always_inline __u32 slim_address_lookup(void *env, const struct slim_address_key *key)
{
	const struct slim_state *state = env;
	__u32 slot = state->slot, *id;
	void *table = bpf_map_lookup_elem(&slim_address, &slot);

	if (!table)
		return 0;
	id = bpf_map_lookup_elem(table, key);
	return id ? *id : 0;
}

static __always_inline const struct slim_service *
slim_service_lookup(void *env, const struct slim_service_key *key)
{
	const struct slim_state *state = env;
	__u32 slot = state->slot;
	void *table = bpf_map_lookup_elem(&slim_service, &slot);

	return table ? bpf_map_lookup_elem(table, key) : NULL;
}

const volatile struct slim_cidr slim_broadcast = {
	.identity = SLIM_IDENTITY_WORLD,
	.flags = SLIM_CIDR_BROADCAST,
};

static __always_inline const struct slim_cidr *
slim_cidr_lookup(void *env, __u32 vni, const __be32 *address)
{
	const struct slim_state *state = env;
	struct slim_cidr_key key = {
		.prefixlen = 32 + 128,
		.vni = bpf_htonl(vni),
		.address = { address[0], address[1], address[2], address[3] },
	};
	__u32 slot = state->slot;
	void *table = bpf_map_lookup_elem(&slim_cidr, &slot);
	struct slim_cidr *found = table ? bpf_map_lookup_elem(table, &key) : NULL;
	__u32 *own;

	if (found && found->flags & SLIM_CIDR_HOST)
		return found;
	key.vni = 0;
	own = bpf_map_lookup_elem(&slim_own, &key);
	if (!table || !own)
		return found;
	if (*own == SLIM_OWN_BROADCAST)
		return (const struct slim_cidr *)&slim_broadcast;
	/* Newer than the tables: policy knows the host by its underlay address. */
	key.vni = bpf_htonl(vni);
	slim_copy(key.address, state->control->underlay);
	return bpf_map_lookup_elem(table, &key);
}

static __always_inline const struct slim_policy *
slim_policy_lookup(void *env, const struct slim_policy_key *key)
{
	const struct slim_state *state = env;
	__u32 slot = state->slot;
	void *table = bpf_map_lookup_elem(&slim_policy, &slot);

	return table ? bpf_map_lookup_elem(table, key) : NULL;
}

static __always_inline struct slim_affinity *
slim_affinity_lookup(void *env, const struct slim_affinity_key *key)
{
	return bpf_map_lookup_elem(&slim_affinity, key);
}

static __always_inline void
slim_affinity_store(void *env, const struct slim_affinity_key *key,
		    const struct slim_affinity *value)
{
	const struct slim_state *state = env;

	if (!state->asking)
		bpf_map_update_elem(&slim_affinity, key, value, BPF_ANY);
}

#define slim_service_outline __noinline
#define slim_target_outline static __noinline
#include <slimnet/admit.h>
#include <slimnet/ask.h>

/* Whose is this port of the host? */
static __always_inline struct slim_publish *
slim_publish_get(const struct slim_state *state, __be32 address, __be16 port)
{
	struct slim_publish_key key = { .port = port, .protocol = IPPROTO_TCP };
	__u32 slot = state->slot;
	void *table = bpf_map_lookup_elem(&slim_publish, &slot);
	struct slim_publish *found;

	if (!table)
		return NULL;
	key.address[2] = bpf_htonl(0xffff);
	key.address[3] = address;
	found = bpf_map_lookup_elem(table, &key);
	if (found)
		return found;
	key.address[2] = 0;
	key.address[3] = 0;
	return bpf_map_lookup_elem(table, &key);
}

static __always_inline void slim_count(__u32 reason)
{
	__u64 *counter = bpf_map_lookup_elem(&slim_counter, &reason);

	if (counter)
		(*counter)++;
}

/* Whether it was policy that refused: then the rule has it on its account. */
static __always_inline bool slim_is_policy(__u32 reason)
{
	return reason == SLIM_REASON_RULE_DENY || reason == SLIM_REASON_DEFAULT_DENY ||
	       reason == SLIM_REASON_HOST_DENY;
}

/* Adds to what an endpoint did by one rule. */
static __always_inline void
slim_account_add(__u32 endpoint, __u32 rule, __u32 direction, const struct slim_account *more)
{
	struct slim_account_key key = {
		.endpoint = endpoint,
		.rule = rule,
		.direction = direction,
	};
	struct slim_account *account = bpf_map_lookup_elem(&slim_account, &key);

	if (!account) {
		struct slim_account none = {};

		bpf_map_update_elem(&slim_account, &key, &none, BPF_NOEXIST);
		account = bpf_map_lookup_elem(&slim_account, &key);
		if (!account)
			return;
	}
	if (more->connections)
		__sync_fetch_and_add(&account->connections, more->connections);
	if (more->refused)
		__sync_fetch_and_add(&account->refused, more->refused);
	if (more->sent)
		__sync_fetch_and_add(&account->sent, more->sent);
	if (more->received)
		__sync_fetch_and_add(&account->received, more->received);
}

/*
 * A context field, by an access of its own: clang merges two branches' loads
 * into one at a computed offset, and the verifier refuses that.
 */
#define SLIM_CTX(ctx, field)						\
	({								\
		__u64 value_;						\
									\
		asm volatile("%0 = *(u32 *)(%1 + %2)"			\
			     : "=r"(value_)				\
			     : "r"(ctx), "i"(offsetof(typeof(*(ctx)), field)));	\
		(__u32)value_;						\
	})

#define SLIM_CTX_SK(ctx)						\
	({								\
		struct bpf_sock *sk_;					\
									\
		asm volatile("%0 = *(u64 *)(%1 + %2)"			\
			     : "=r"(sk_)				\
			     : "r"(ctx), "i"(offsetof(typeof(*(ctx)), sk)));	\
		sk_;							\
	})

/*
 * Written by the loader before it loads: what every packet is compared with
 * costs no look-up. slim_control says the same to whoever adopts the data path.
 */
const volatile struct {
	__be32 range;
	__u16 wire_port;
	__u16 vxlan_port;
	__u8 casts;			/* this kernel has bpf_cast_to_kern_ctx() */
	__u8 pad[3];
	__u32 reset;			/* mark of a packet that a router answers with a reset */
} slim_fixed = { .range = bpf_htonl(0xf0000000), .wire_port = 4790, .vxlan_port = 4789 };

/*
 * A socket of another network namespace than the host's, which a process of an
 * endpoint may make for itself (unshare(1), bubblewrap, Chrome): it has ports
 * and addresses of its own, reaches nothing but that namespace, and is none of
 * ours. What holds that is the kernel: to connect it with anything, or to enter
 * one that somebody else connected, takes CAP_NET_ADMIN or CAP_SYS_ADMIN over
 * the other namespace.
 */
static __always_inline bool slim_elsewhere(__u64 cookie)
{
	__u32 zero = 0;
	const struct slim_control *control = bpf_map_lookup_elem(&slim_control, &zero);

	return control && control->netns && control->netns != cookie;
}

#define slim_is_elsewhere(ctx) slim_elsewhere(bpf_get_netns_cookie(ctx))

static __always_inline __be32 slim_inner_v4(__u32 inner)
{
	return slim_fixed.range | bpf_htonl(inner);
}

static __always_inline bool slim_in_range_v4(__be32 v4)
{
	return slim_inner_has_v4(slim_fixed.range, v4);
}

static __always_inline struct slim_inner_range
slim_inner_range(const struct slim_control *control)
{
	return (struct slim_inner_range){
		.v4 = slim_fixed.range,
		.v6 = { control->range6[0], control->range6[1] },
	};
}

static __always_inline bool
slim_in_range(const struct slim_control *control, const __be32 *address)
{
	const struct slim_inner_range range = slim_inner_range(control);

	return slim_inner_has(&range, address);
}

/* Of an address in the inner range, either family's: the inner. */
static __always_inline __u32 slim_inner_of(__be32 last)
{
	return bpf_ntohl(last) & (SLIM_INNER_LOOPBACK | (SLIM_INNER_LOOPBACK - 1));
}

static __always_inline bool slim_is_wire_port(__be16 port)
{
	return slim_wire_has(slim_fixed.wire_port, port);
}

static __always_inline bool slim_is_bound_port(__be16 port)
{
	return slim_wire_has_bound(slim_fixed.wire_port, port);
}

#endif /* SLIMNET_STATE_H */
