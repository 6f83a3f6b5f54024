/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who is at an address? An endpoint, an endpoint behind a service, or a range
 * that policy knows. What connect(2) does and what slim_ask answers both
 * start from this.
 */
#ifndef SLIMNET_TARGET_H
#define SLIMNET_TARGET_H

#include "state.h"

struct slim_target {
	struct slim_endpoint *peer;	/* NULL: a range */
	__u32 endpoint;			/* its id */
	__u32 identity;
	__u32 flags;			/* of the range: enum slim_cidr_flag */
	__u32 service;			/* the id of the one that was resolved, or 0 */
	__be16 port;			/* as policy is asked */
	__u16 pad;
};

/* What an address is looked up by. */
struct slim_aim {
	__u32 vni;
	__u32 client;			/* endpoint */
	__be32 address[4];
	__be16 port;
	__u8 protocol;
	__u8 dialled;			/* a destination: a service's leads to its endpoints */
	__u32 random;
};

/* The endpoint behind a service's port: 0, or the reason why there is none. */
static __noinline __u32
slim_target_service(struct slim_state *state, const struct slim_aim *aim,
		    struct slim_target *target)
{
	const struct slim_backend *backend;
	struct slim_service *service;
	struct slim_service_key key;
	__u32 slot;
	void *table;

	if (!state || !aim || !target)
		return SLIM_REASON_NO_SERVICE_PORT;
	key = (struct slim_service_key){
		.vni = aim->vni,
		.address = { aim->address[0], aim->address[1], aim->address[2], aim->address[3] },
		.port = aim->port,
		.protocol = aim->protocol,
	};
	slot = state->slot;
	table = bpf_map_lookup_elem(&slim_service, &slot);
	service = table ? bpf_map_lookup_elem(table, &key) : NULL;
	if (!service)
		return SLIM_REASON_NO_SERVICE_PORT;
	target->service = service->id;
	backend = slim_service_pick(state, service, aim->client, bpf_ktime_get_ns(), aim->random);
	if (!backend)
		return SLIM_REASON_NO_BACKEND;
	target->endpoint = backend->endpoint;
	target->port = backend->port;
	return SLIM_REASON_NONE;
}

/* No endpoint's address: the range that policy knows it by. */
static __always_inline void
slim_target_range(struct slim_state *state, __u32 vni, const __be32 *address,
		  struct slim_target *target)
{
	const struct slim_cidr *cidr = slim_cidr_get(state, vni, address);

	target->identity = cidr ? cidr->identity : SLIM_IDENTITY_WORLD;
	target->flags = cidr ? cidr->flags : 0;
}

/* 0, or the reason why nobody is there. */
static __always_inline __u32
slim_target_find(struct slim_state *state, const struct slim_aim *aim, struct slim_target *target)
{
	__u32 reason;

	target->port = aim->port;
	target->endpoint = slim_address_get(state, aim->vni, aim->address);
	if (target->endpoint == SLIM_ADDRESS_SERVICE) {
		target->endpoint = 0;
		if (!aim->dialled)
			return SLIM_REASON_NO_ENDPOINT;
		reason = slim_target_service(state, aim, target);
		if (reason)
			return reason;
	}
	if (target->endpoint) {
		target->peer = slim_endpoint_get(state, target->endpoint);
		if (!target->peer)
			return SLIM_REASON_NO_ENDPOINT;
		target->identity = target->peer->identity;
		return SLIM_REASON_NONE;
	}
	slim_target_range(state, aim->vni, aim->address, target);
	return target->flags & SLIM_CIDR_OVERLAY ? SLIM_REASON_NO_ENDPOINT : SLIM_REASON_NONE;
}

/* One end's policy on the other. */
static __always_inline struct slim_verdict
slim_target_decide(struct slim_state *state, __u32 endpoint, __u32 identity,
		   const struct slim_target *target, __u8 direction, __u8 protocol)
{
	struct slim_query query = {
		.subject = identity,
		.peer = target->identity,
		.direction = direction,
		.protocol = protocol,
		.port = target->port,
		.self = endpoint == target->endpoint,
		.host = !!(target->flags & SLIM_CIDR_HOST),
	};

	return slim_decide(state, &query);
}

#endif /* SLIMNET_TARGET_H */
