/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What user space is told.
 */
#ifndef SLIMNET_EBPF_EVENT_H
#define SLIMNET_EBPF_EVENT_H

#include "state.h"

#include <slimnet/account.h>

static __always_inline struct slim_event *
slim_event_start(__u32 kind, __u32 reason, __u32 rule, __u32 direction, __u32 protocol)
{
	struct slim_event *event = bpf_ringbuf_reserve(&slim_event, sizeof(*event), 0);

	if (!event)
		return NULL;
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->kind = kind;
	event->reason = reason;
	event->rule = rule;
	event->direction = direction;
	event->protocol = protocol;
	return event;
}

/*
 * The event of a refusal, unless there have been too many: `index` is the inner
 * index of the endpoint that it is put down to, 0 for nobody known. Refusals are
 * what anybody can make as fast as a processor goes; each endpoint has a number
 * of them a second told, for each reason, so that none can hide another's. No
 * lock: of two that come at once, one more may be told than should be.
 */
static __always_inline struct slim_event *
slim_event_refused(__u32 index, __u32 reason, __u32 rule, __u32 direction, __u32 protocol)
{
	__u32 key = (index * 2 + (direction & 1)) * SLIM_REASON_COUNT + reason;
	struct slim_refusal *refusal = bpf_map_lookup_elem(&slim_refusal, &key);
	__u32 second = bpf_ktime_get_ns() >> 30, omitted;
	struct slim_event *event = NULL;

	if (!refusal)
		return NULL;
	if (*(volatile __u32 *)&refusal->second != second) {
		refusal->second = second;
		refusal->told = 0;
	}
	if (*(volatile __u32 *)&refusal->told < SLIM_REFUSALS_TOLD) {
		__sync_fetch_and_add(&refusal->told, 1);
		event = slim_event_start(SLIM_EVENT_REFUSED, reason, rule, direction, protocol);
	}
	if (!event) {
		__sync_fetch_and_add(&refusal->omitted, 1);
		return NULL;
	}
	omitted = *(volatile __u32 *)&refusal->omitted;
	if (omitted)
		event->omitted = __sync_lock_test_and_set(&refusal->omitted, 0);
	return event;
}

/* What an endpoint asks for, and why it is refused. */
struct slim_call {
	__u32 reason;
	__u32 rule;
	__u32 peer;
	__u8 protocol;
	__u8 direction;		/* whose policy refused */
	__be16 port;
};

/* For the verifier, which knows structures by their size, and arrays not. */
struct slim_words {
	__be32 address[4];
};

slim_verified_once int
slim_refuse_words(const struct slim_local *local, const struct slim_words *destination,
		  const struct slim_call *call)
{
	const struct slim_account one = { .refused = 1 };
	struct slim_event *event;
	__u32 endpoint, peer;

	if (!local || !destination || !call)
		return 0;
	endpoint = call->direction == SLIM_EGRESS ? local->endpoint : call->peer;
	peer = call->direction == SLIM_EGRESS ? call->peer : local->endpoint;
	slim_count(call->reason);
	if (slim_is_policy(call->reason))
		slim_account_add(endpoint, call->rule, call->direction, &one);
	event = slim_event_refused(local->index, call->reason, call->rule, call->direction,
				   call->protocol);
	if (!event)
		return 0;
	event->endpoint = endpoint;
	event->peer_endpoint = peer;
	slim_copy(event->source, local->address);
	slim_copy(event->destination, destination->address);
	event->destination_port = call->port;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Counts a refusal, in general and for whose policy it was, and tells it. */
static __always_inline int
slim_refuse(const struct slim_local *local, const __be32 *destination,
	    const struct slim_call *call)
{
	return slim_refuse_words(local, (const struct slim_words *)destination, call);
}

/*
 * Opened and closed connections, for whoever observes; and those that may not be. `over` is as
 * of slim_account_received().
 */
static __always_inline void
slim_event_socket(struct bpf_sock_ops *ctx, const struct slim_socket *socket, __u32 kind,
		  __u32 reason, bool over)
{
	__u32 direction = socket->flags & SLIM_SOCKET_ACCEPTED ? SLIM_INGRESS : SLIM_EGRESS;
	__be16 port = socket->local_port ?: bpf_htons((__u16)ctx->local_port);
	struct slim_event *event;

	event = kind == SLIM_EVENT_REFUSED ?
			slim_event_refused(socket->index, reason, socket->rule, direction,
					   IPPROTO_TCP) :
			slim_event_start(kind, reason, socket->rule, direction, IPPROTO_TCP);
	if (!event)
		return;
	event->endpoint = socket->endpoint;
	event->peer_endpoint = socket->peer_endpoint;
	if (direction == SLIM_EGRESS) {
		slim_copy(event->source, socket->local);
		slim_copy(event->destination, socket->peer);
		event->source_port = port;
		event->destination_port = socket->peer_port;
	} else {
		slim_copy(event->source, socket->peer);
		slim_copy(event->destination, socket->local);
		event->source_port = socket->peer_port;
		event->destination_port = port;
	}
	if (kind == SLIM_EVENT_CLOSED) {
		event->sent = slim_account_sent(ctx->bytes_acked, ctx->args[0],
						direction == SLIM_EGRESS);
		event->received = slim_account_received(ctx->bytes_received, over);
		event->duration = event->time - socket->opened;
	}
	bpf_ringbuf_submit(event, 0);
}

#endif /* SLIMNET_EBPF_EVENT_H */
