/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What endpoints may send.
 *
 * Each connection is paced by the kernel itself, which is told when the
 * connection is established (sockops.h), and again for those that live when
 * limits change: slim_repace goes through the sockets of the namespace.
 *
 * For all connections of an endpoint together there is slim_rate, which is
 * attached only to the cgroups of endpoints that have such a limit; for all
 * others not one instruction runs per packet. A packet that is too early
 * (slimnet/rate.h) is held back, not lost: TCP hears of a full queue (NET_XMIT_CN of the kernel's
 * include/linux/bpf-cgroup.h), slows down and sends it again.
 */
#ifndef SLIMNET_LIMIT_H
#define SLIMNET_LIMIT_H

#include "bind.h"

#include <slimnet/rate.h>

/* What a cgroup_skb/egress program answers. */
#define SLIM_SEND 1
#define SLIM_HOLD_BACK 2
#define SLIM_SEND_SLOWER 3

static __always_inline int slim_limit_run(struct __sk_buff *skb)
{
	const struct slim_local *local = bpf_get_local_storage(&slim_cgroup, 0);
	__u32 index = local->index;
	const struct slim_limit *limit = bpf_map_lookup_elem(&slim_limit, &index);
	struct slim_usage *usage = slim_usage_get(index);
	enum slim_rate_answer answer;
	__u64 now, next;

	if (!limit || !limit->rate || !usage)
		return SLIM_SEND;
	now = bpf_ktime_get_ns();
	next = *(volatile __u64 *)&usage->next;
	answer = slim_rate_ask(next, now);
	if (answer == SLIM_RATE_HOLD) {
		slim_count(SLIM_REASON_RATE);
		return SLIM_HOLD_BACK;
	}
	if (next < now)
		__sync_val_compare_and_swap(&usage->next, next, now);
	__sync_fetch_and_add(&usage->next, slim_rate_cost(skb->len, limit->rate));
	return answer == SLIM_RATE_SLOWER ? SLIM_SEND_SLOWER : SLIM_SEND;
}

static __always_inline int slim_repace_run(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;
	struct slim_socket *socket;
	__u32 own = 0, pace;
	struct tcp_sock *sk;

	sk = common ? bpf_skc_to_tcp_sock(common) : NULL;
	if (!sk)
		return 0;
	socket = bpf_sk_storage_get(&slim_socket, sk, NULL, 0);
	if (!socket || !(socket->flags & SLIM_SOCKET_ESTABLISHED))
		return 0;
	if (bpf_getsockopt(sk, SOL_SOCKET, SO_MAX_PACING_RATE, &own, sizeof(own)))
		return 0;
	pace = slim_pace(socket->index) ?: SLIM_NO_PACE;
	if (slim_rate_keeps(own, socket->pace, pace))
		return 0;
	if (!bpf_setsockopt(sk, SOL_SOCKET, SO_MAX_PACING_RATE, &pace, sizeof(pace)))
		socket->pace = pace == SLIM_NO_PACE ? 0 : pace;
	return 0;
}

#endif /* SLIMNET_LIMIT_H */
