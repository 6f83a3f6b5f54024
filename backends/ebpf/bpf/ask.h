/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A question to the data path: what would it do with this flow? Run by
 * BPF_PROG_TEST_RUN on a struct slim_question in place of a packet, over the
 * tables in force and with the code that decides. Counts and keeps nothing.
 */
#ifndef SLIMNET_ASK_H
#define SLIMNET_ASK_H

#include "state.h"

static __always_inline int slim_ask_run(struct __sk_buff *skb)
{
	struct slim_question question;
	struct slim_verdict *verdict = &question.verdict;
	struct slim_target target = {};
	const struct slim_endpoint *subject;
	struct slim_aim aim = {};
	struct slim_state state;
	struct slim_address_key own = {};
	__u32 id;
	bool egress;

	if (bpf_skb_load_bytes(skb, 0, &question, sizeof(question)))
		return TC_ACT_SHOT;
	if (!slim_state_get(&state) || !state.active) {
		*verdict = (struct slim_verdict){ SLIM_DENY, SLIM_REASON_NO_TABLES, 0 };
		goto answer;
	}
	state.asking = 1;
	question.generation = state.active >> 1;
	egress = question.direction == SLIM_EGRESS;
	aim.vni = question.vni;
	aim.port = question.port;
	aim.protocol = question.protocol;
	aim.dialled = egress;
	aim.random = question.random;
	aim.now = bpf_ktime_get_ns();
	own.vni = question.vni;
	slim_copy(own.address, egress ? question.source : question.destination);
	slim_copy(aim.address, egress ? question.destination : question.source);
	id = slim_address_lookup(&state, &own);
	subject = id ? slim_endpoint_lookup(&state, id) : NULL;
	if (!subject) {
		*verdict = (struct slim_verdict){ SLIM_DENY, SLIM_REASON_NO_ENDPOINT, 0 };
		goto answer;
	}
	question.subject = subject->identity;
	aim.client = id;
	verdict->rule = 0;
	verdict->action = SLIM_DENY;
	verdict->reason = slim_target_find(&state, &aim, &target);
	question.peer = target.identity;
	question.endpoint = target.endpoint;
	question.service = target.service;
	question.target_port = target.port;
	slim_copy(question.target, question.destination);
	if (target.peer) {
		slim_copy(question.host, target.peer->host);
		if (egress)
			slim_copy(question.target, target.peer->address);
	}
	if (!verdict->reason)
		*verdict = slim_target_decide(&state, id, subject->identity, &target,
					      question.direction, question.protocol);
answer:
	if (bpf_skb_store_bytes(skb, 0, &question, sizeof(question), 0))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

#endif /* SLIMNET_ASK_H */
