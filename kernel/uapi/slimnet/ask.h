/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * slim_answer(): what would a data path do with this flow? Counts and keeps nothing.
 *
 * Compiled unchanged into every data path, over the look-ups of target.h; of
 * slim_affinity_store() the environment makes a no-op meanwhile. The answer has
 * two parts: what the policy of the asked end says, and for a flow that is
 * dialled (SLIM_EGRESS) what becomes of its connect(2) or sendto(2), by the
 * function that those ask (way.h).
 */
#ifndef SLIMNET_ASK_H
#define SLIMNET_ASK_H

#include "way.h"

static __always_inline void slim_ask_refuse(struct slim_question *question, __u32 reason)
{
	question->verdict = (struct slim_verdict){ .action = SLIM_DENY, .reason = reason };
	question->way = SLIM_WAY_REFUSED;
	question->way_reason = reason;
	question->way_error = EACCES;
	question->way_direction = SLIM_EGRESS;
}

static __always_inline void
slim_ask_way(void *env, const struct slim_inner_range *range, __u16 first_port,
	     const struct slim_dialled *dialled, struct slim_question *question)
{
	struct slim_way way = {};

	/* socket(2) of another refuses it already. */
	if (!dialled->stream && question->protocol != IPPROTO_UDP)
		slim_way_refuse(&way, SLIM_REASON_PROTOCOL, EPROTONOSUPPORT);
	else
		slim_way(env, range, first_port, dialled, &way);
	question->way = way.kind;
	question->way_reason = way.reason;
	question->way_error = (__u32)way.error;
	question->way_direction = way.direction;
}

/* `now`: ns of a clock that never steps. `range` and `first_port` as for slim_way(). */
static __always_inline void
slim_answer(void *env, const struct slim_inner_range *range, __u16 first_port, __u64 now,
	    struct slim_question *question)
{
	const _Bool egress = question->direction == SLIM_EGRESS;
	struct slim_dialled dialled = {
		.aim = {
			.now = now,
			.vni = question->vni,
			.port = question->port,
			.protocol = question->protocol,
			.dialled = egress,
			.random = question->random,
		},
		.stream = question->protocol == IPPROTO_TCP,
		.source = SLIM_SOURCE_ANY,
	};
	struct slim_target target = {};
	const struct slim_endpoint *subject;
	struct slim_address_key own = { .vni = question->vni };
	__u32 reason;

	slim_copy(own.address, egress ? question->source : question->destination);
	slim_copy(dialled.aim.address, egress ? question->destination : question->source);
	dialled.aim.client = slim_address_lookup(env, &own);
	subject = slim_endpoint_lookup(env, dialled.aim.client);
	if (!subject) {
		slim_ask_refuse(question, SLIM_REASON_NO_ENDPOINT);
		return;
	}
	question->subject = subject->identity;
	reason = slim_target_find(env, &dialled.aim, &target);
	question->peer = target.identity;
	question->endpoint = target.endpoint;
	question->service = target.service;
	question->target_port = target.port;
	slim_copy(question->target, question->destination);
	if (target.peer) {
		slim_copy(question->host, target.peer->host);
		if (egress)
			slim_copy(question->target, target.peer->address);
	}
	question->verdict = (struct slim_verdict){ .action = SLIM_DENY, .reason = reason };
	if (!reason)
		question->verdict = slim_target_decide(env, dialled.aim.client, subject->identity,
						       &target, (__u8)question->direction,
						       question->protocol);
	if (egress)
		slim_ask_way(env, range, first_port, &dialled, question);
}

#endif /* SLIMNET_ASK_H */
