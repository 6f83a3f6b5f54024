/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * slim_way(): what becomes of a connect, or of a datagram?
 *
 * Compiled unchanged into every data path, over the look-ups of target.h, and
 * asked by `explain` too (ask.h): what connect(2) does and what explain says
 * cannot differ. The data path carries the answer out: it finds the listener,
 * takes the source port, rewrites.
 *
 * The order:
 *  1. Before the first tables, and from an endpoint that they do not know:
 *     nothing.
 *  2. Inner addresses are no destinations.
 *  3. Loopback in all its forms is the endpoint's own; its resolver is there too.
 *  4. What is not carried: IPv6, and datagrams to many.
 *  5. An overlay address: the endpoint that has it, behind a service too. Its
 *     host must be reached by a wire; egress policy decides, and ingress policy as
 *     well on this host and for one whose host cannot refuse a SYN.
 *  6. Any other address leaves through the host, if egress policy allows it.
 */
#ifndef SLIMNET_WAY_H
#define SLIMNET_WAY_H

#include "inner.h"
#include "resolver.h"
#include "target.h"
#include "wire.h"

/* What a socket's bind means for where it may connect to. */
enum slim_way_source {
	SLIM_SOURCE_ANY = 0,
	SLIM_SOURCE_PORT = 1,		/* bound to an explicit port */
	SLIM_SOURCE_LOOPBACK = 2,	/* bound to the endpoint's loopback */
};

/* A connect(2), or a sendto(2) of a datagram. */
struct slim_dialled {
	struct slim_aim aim;		/* the destination as dialled; `client` calls */
	__u8 stream;			/* a connection, no datagram */
	__u8 source;			/* enum slim_way_source */
};

struct slim_way {
	__u32 kind;			/* enum slim_way_kind */
	__u32 reason;			/* REFUSED: why; else the egress policy's */
	int error;			/* REFUSED: a positive errno */
	__u32 direction;		/* REFUSED by policy: whose */
	__u32 rule;			/* of the caller's policy; REFUSED: of whose that was */
	__u32 peer_rule;		/* of the listener's policy, where it was asked */
	__u32 peer_reason;		/* likewise */
	__u32 identity;			/* the caller's */
	struct slim_target target;
};

static __always_inline int slim_way_refuse(struct slim_way *way, __u32 reason, int error)
{
	way->kind = SLIM_WAY_REFUSED;
	way->reason = reason;
	way->error = error;
	return error;
}

static __always_inline int
slim_way_ingress(void *env, const struct slim_dialled *dialled, struct slim_way *way)
{
	const struct slim_target opener = {
		.endpoint = dialled->aim.client,
		.identity = way->identity,
		.port = way->target.port,
	};
	struct slim_verdict verdict =
		slim_target_decide(env, way->target.endpoint, way->target.identity, &opener,
				   SLIM_INGRESS, dialled->aim.protocol);

	if (verdict.action != SLIM_ALLOW) {
		way->direction = SLIM_INGRESS;
		way->rule = verdict.rule;
		return slim_way_refuse(way, verdict.reason, ECONNREFUSED);
	}
	way->kind = SLIM_WAY_SAME_HOST;
	way->peer_rule = verdict.rule;
	way->peer_reason = verdict.reason;
	return 0;
}

/*
 * 0, or a positive errno; `*way` is zero before. `range` and `first_port` say
 * where the inner addresses and the wire ports of this cluster are.
 */
static __always_inline int
slim_way(void *env, const struct slim_inner_range *range, __u16 first_port,
	 const struct slim_dialled *dialled, struct slim_way *way)
{
	const _Bool stream = dialled->stream;
	const struct slim_aim *aim = &dialled->aim;
	const struct slim_endpoint *me;
	struct slim_verdict verdict;
	__u32 reason;

	way->direction = SLIM_EGRESS;
	me = slim_endpoint_lookup(env, aim->client);
	if (!me)
		return slim_way_refuse(way, SLIM_REASON_NO_TABLES, EACCES);
	way->identity = me->identity;
	if (slim_inner_has(range, aim->address))
		return slim_way_refuse(way, SLIM_REASON_INNER_ADDRESS, EACCES);

	if (slim_is_any(aim->address) || slim_is_loopback(aim->address)) {
		if (dialled->source == SLIM_SOURCE_ANY &&
		    slim_is_resolver(aim->address, aim->port, aim->client)) {
			way->target.identity = me->identity;
			way->target.port = aim->port;
			way->kind = SLIM_WAY_OUTSIDE;
			way->reason = SLIM_REASON_SELF;
			return 0;
		}
		if (!stream)
			return slim_way_refuse(way, SLIM_REASON_DATAGRAM, ENETUNREACH);
		way->target.endpoint = aim->client;
		way->target.identity = me->identity;
		way->target.port = aim->port;
		way->kind = SLIM_WAY_SELF;
		way->reason = SLIM_REASON_SELF;
		return 0;
	}

	/* Policy knows hosts and ranges by IPv4 so far: nothing leaves by IPv6. */
	if (!slim_is_mapped(aim->address))
		return slim_way_refuse(way, SLIM_REASON_FAMILY, ENETUNREACH);
	/* Broadcast and multicast would reach hosts that policy denies. */
	if (!stream && slim_is_multicast(aim->address))
		return slim_way_refuse(way, SLIM_REASON_DATAGRAM, ENETUNREACH);

	reason = slim_target_find(env, aim, &way->target);
	if (reason == SLIM_REASON_NO_BACKEND || reason == SLIM_REASON_NO_SERVICE_PORT)
		return slim_way_refuse(way, stream ? reason : SLIM_REASON_DATAGRAM,
				       stream ? ECONNREFUSED : ENETUNREACH);
	if (reason)
		return slim_way_refuse(way, reason, stream ? EHOSTUNREACH : ENETUNREACH);
	if (way->target.peer && !stream)
		return slim_way_refuse(way, SLIM_REASON_DATAGRAM, ENETUNREACH);
	if (!stream && way->target.flags & SLIM_CIDR_BROADCAST)
		return slim_way_refuse(way, SLIM_REASON_DATAGRAM, ENETUNREACH);
	if (!way->target.peer && stream && way->target.flags & SLIM_CIDR_HOST &&
	    slim_wire_has(first_port, aim->port))
		return slim_way_refuse(way, SLIM_REASON_WIRE_PORT, EACCES);

	verdict = slim_target_decide(env, aim->client, me->identity, &way->target, SLIM_EGRESS,
				     aim->protocol);
	way->rule = verdict.rule;
	if (verdict.action != SLIM_ALLOW)
		return slim_way_refuse(way, verdict.reason, EACCES);
	way->reason = verdict.reason;

	if (dialled->source == SLIM_SOURCE_LOOPBACK && way->target.endpoint != aim->client)
		return slim_way_refuse(way, SLIM_REASON_FOREIGN_ADDRESS, EINVAL);
	if (!way->target.peer) {
		if (dialled->source == SLIM_SOURCE_PORT)
			return slim_way_refuse(way, SLIM_REASON_BOUND_OUTSIDE, EADDRNOTAVAIL);
		way->kind = SLIM_WAY_OUTSIDE;
		return 0;
	}
	if (way->target.peer->flags & SLIM_ENDPOINT_LOCAL)
		return slim_way_ingress(env, dialled, way);
	if (!(way->target.peer->flags & (SLIM_ENDPOINT_WIRE_SYN | SLIM_ENDPOINT_WIRE_ANNOUNCE)))
		return slim_way_refuse(way, SLIM_REASON_UNREACHABLE, EHOSTUNREACH);
	if (way->target.peer->flags & SLIM_ENDPOINT_JUDGED && slim_way_ingress(env, dialled, way))
		return way->error;
	way->kind = SLIM_WAY_WIRE;
	return 0;
}

/*
 * slim_way() refused a datagram: is it the send that fails, and not the connect(2)
 * of its socket before that? A connect carries nothing, and programs learn by it
 * whether there is a way at all (AI_ADDRCONFIG of musl asks 127.0.0.1) and which
 * address is theirs. What still fails there: whatever is refused before the first
 * tables, what no destination is or cannot be one from where the socket is, and
 * IPv6, where the error is the answer to the question.
 */
static __always_inline _Bool slim_way_is_refused_later(const struct slim_way *way)
{
	return way->reason != SLIM_REASON_NO_TABLES && way->reason != SLIM_REASON_FAMILY &&
	       way->reason != SLIM_REASON_INNER_ADDRESS &&
	       way->reason != SLIM_REASON_FOREIGN_ADDRESS;
}

#endif /* SLIMNET_WAY_H */
