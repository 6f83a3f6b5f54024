/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who is at an address? An endpoint, an endpoint behind a service, or a range
 * that policy knows. What becomes of a connect (way.h), whether a SYN may come
 * in (admit.h) and what a question is answered (ask.h) all start from this.
 *
 * Compiled unchanged into every data path. The including file supplies the
 * look-ups in the tables in force, for its environment:
 *
 *   __u32 slim_address_lookup(void *env, const struct slim_address_key *key);
 *	the id of the endpoint that has it, SLIM_ADDRESS_SERVICE, or 0
 *   const struct slim_endpoint *slim_endpoint_lookup(void *env, __u32 id);
 *   const struct slim_service *slim_service_lookup(void *env,
 *						    const struct slim_service_key *key);
 *   const struct slim_cidr *slim_cidr_lookup(void *env, __u32 vni, const __be32 *address);
 *	the longest match
 *
 * and those of service.h and decide.h.
 */
#ifndef SLIMNET_TARGET_H
#define SLIMNET_TARGET_H

#include "address.h"
#include "decide.h"
#include "service.h"

struct slim_target {
	const struct slim_endpoint *peer;	/* NULL: a range */
	__u32 endpoint;			/* its id */
	__u32 identity;
	__u32 flags;			/* of the range: enum slim_cidr_flag */
	__u32 service;			/* the id of the one that was resolved, or 0 */
	__be16 port;			/* as policy is asked */
	__u16 pad;
};

/* What an address is looked up by. */
struct slim_aim {
	__u64 now;			/* ns of a clock that never steps */
	__u32 vni;
	__u32 client;			/* endpoint */
	__be32 address[4];
	__be16 port;
	__u8 protocol;
	__u8 dialled;			/* a destination: a service's leads to its endpoints */
	__u32 random;
};

#ifndef slim_target_outline
#define slim_target_outline static inline
#endif

/*
 * The endpoint behind a service's port: 0, or the reason why there is none. In
 * BPF a function that the verifier goes through once, not at each call.
 */
slim_target_outline __u32
slim_target_service(void *env, const struct slim_aim *aim, struct slim_target *target)
{
	const struct slim_backend *backend;
	const struct slim_service *service;
	struct slim_service_key key;

	if (!env || !aim || !target)
		return SLIM_REASON_NO_SERVICE_PORT;
	key = (struct slim_service_key){
		.vni = aim->vni,
		.address = { aim->address[0], aim->address[1], aim->address[2], aim->address[3] },
		.port = aim->port,
		.protocol = aim->protocol,
	};
	service = slim_service_lookup(env, &key);
	if (!service)
		return SLIM_REASON_NO_SERVICE_PORT;
	target->service = service->id;
	backend = slim_service_pick(env, service, aim->client, aim->now, aim->random);
	if (!backend)
		return SLIM_REASON_NO_BACKEND;
	target->endpoint = backend->endpoint;
	target->port = backend->port;
	return SLIM_REASON_NONE;
}

/* No endpoint's address: the range that policy knows it by. */
static __always_inline void
slim_target_range(void *env, __u32 vni, const __be32 *address, struct slim_target *target)
{
	const struct slim_cidr *cidr = slim_cidr_lookup(env, vni, address);

	target->identity = cidr ? cidr->identity : SLIM_IDENTITY_WORLD;
	target->flags = cidr ? cidr->flags : 0;
}

/* 0, or the reason why nobody is there. */
static __always_inline __u32
slim_target_find(void *env, const struct slim_aim *aim, struct slim_target *target)
{
	const struct slim_address_key key = {
		.vni = aim->vni,
		.address = { aim->address[0], aim->address[1], aim->address[2], aim->address[3] },
	};
	__u32 reason;

	target->port = aim->port;
	target->endpoint = slim_address_lookup(env, &key);
	if (target->endpoint == SLIM_ADDRESS_SERVICE) {
		target->endpoint = 0;
		if (!aim->dialled)
			return SLIM_REASON_NO_ENDPOINT;
		reason = slim_target_service(env, aim, target);
		if (reason)
			return reason;
	}
	if (target->endpoint) {
		target->peer = slim_endpoint_lookup(env, target->endpoint);
		if (!target->peer)
			return SLIM_REASON_NO_ENDPOINT;
		target->identity = target->peer->identity;
		return SLIM_REASON_NONE;
	}
	slim_target_range(env, aim->vni, aim->address, target);
	return target->flags & SLIM_CIDR_OVERLAY ? SLIM_REASON_NO_ENDPOINT : SLIM_REASON_NONE;
}

/* One end's policy on the other. */
static __always_inline struct slim_verdict
slim_target_decide(void *env, __u32 endpoint, __u32 identity, const struct slim_target *target,
		   __u8 direction, __u8 protocol)
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

	return slim_decide(env, &query);
}

#endif /* SLIMNET_TARGET_H */
