/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A question to the data path (slimnet/ask.h), run by BPF_PROG_TEST_RUN on a
 * struct slim_question in place of a packet, over the tables in force.
 */
#ifndef SLIMNET_EBPF_ASK_H
#define SLIMNET_EBPF_ASK_H

#include "state.h"

static __always_inline int slim_ask_run(struct __sk_buff *skb)
{
	/* In the packet, for Linux 6.1 counts its bytes to 512 of stack, callees' included. */
	struct slim_question *question = (void *)(long)skb->data;
	struct slim_inner_range range;
	struct slim_state state;

	if ((void *)(question + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	if (slim_state_get(&state) && state.active) {
		state.asking = 1;
		question->generation = state.active >> 1;
		range = slim_inner_range(state.control);
		slim_answer(&state, &range, slim_fixed.wire_port, bpf_ktime_get_ns(), question);
	} else {
		slim_ask_refuse(question, SLIM_REASON_NO_TABLES);
	}
	return TC_ACT_OK;
}

#endif /* SLIMNET_EBPF_ASK_H */
