/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What endpoints may send.
 *
 * Each connection is paced by the kernel itself (socket(7), SO_MAX_PACING_RATE),
 * on every interface and without a qdisc; what waits is in the socket's own
 * buffer, so nothing is lost. A limit for each connection is told once, when it is
 * established (sockops.h), and again to those that live when limits change:
 * slim_repace goes through the sockets of the namespace.
 *
 * For all connections of an endpoint together, sock_ops is asked before each
 * segment with payload (slim_limit_turn) and tells the kernel the pace at which
 * the connection's next one comes when the endpoint has caught up
 * (slimnet/rate.h). slim_rate counts what leaves, and holds back what runs far
 * ahead. It is attached only to the cgroups of endpoints that have such a limit,
 * and only their connections have the call: for all others not one instruction
 * runs per packet.
 */
#ifndef SLIMNET_LIMIT_H
#define SLIMNET_LIMIT_H

#include "bind.h"

#include <slimnet/rate.h>

#include <linux/ip.h>

/*
 * What a cgroup_skb/egress program answers. Dropped is EPERM. Held back is
 * NET_XMIT_DROP, with the bit for congestion (include/linux/bpf-cgroup.h): TCP
 * keeps a segment that it gets that for, and sends it again.
 */
#define SLIM_DROP 0
#define SLIM_SEND 1
#define SLIM_HOLD_BACK 2

/* Of enum bpf's TCP options: what sock_ops is called for, also outside of it (Linux 6.12). */
#define SLIM_TCP_BPF_SOCK_OPS_CB_FLAGS 1008

/* The calls of a connection that shares its endpoint's rate, and of another. */
#define SLIM_CALLS_SHARED \
	(BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG)
#define SLIM_CALLS BPF_SOCK_OPS_STATE_CB_FLAG

#define SLIM_TCP_BPF_SNDCWND_CLAMP 1002
#define SLIM_NO_WINDOW 0x7fffffff
#define SLIM_TCP_MAXSEG 2

/* Within one endpoint nothing is limited, as on a container's own loopback. */
static __always_inline bool slim_limit_is_free(const struct slim_socket *socket)
{
	return socket->flow_flags & SLIM_FLOW_LOOPBACK ||
	       (socket->endpoint && socket->peer_endpoint == socket->endpoint);
}

/*
 * Tells the kernel how to pace a connection; SLIM_NO_PACE: as the application
 * likes. What that asked for stays, if it is less: `most` is what its own
 * setsockopt(2) was cut to. `sk`: a socket, or a context that stands for one.
 */
static __always_inline void
slim_limit_tell(void *sk, struct slim_socket *socket, __u32 pace, __u32 most)
{
	const bool limited = pace != SLIM_NO_PACE;
	__u32 has = 0, own;

	if (bpf_getsockopt(sk, SOL_SOCKET, SO_MAX_PACING_RATE, &has, sizeof(has)))
		return;
	own = slim_rate_own(socket->own_pace, socket->pace, has);
	if (has != socket->pace && has == most)
		own = SLIM_NO_PACE;
	if (pace > own)
		pace = own;
	if (pace != has &&
	    bpf_setsockopt(sk, SOL_SOCKET, SO_MAX_PACING_RATE, &pace, sizeof(pace)))
		return;
	socket->own_pace = own;
	socket->pace = limited ? pace : 0;
}

/*
 * The kernel forgets with it how far slow start should go (snd_ssthresh), so it is
 * told seldom.
 */
static __always_inline void
slim_limit_window(void *sk, struct slim_socket *socket, __u32 window)
{
	if (window > socket->window / 2 && window / 2 <= socket->window)
		return;
	if (!bpf_setsockopt(sk, IPPROTO_TCP, SLIM_TCP_BPF_SNDCWND_CLAMP, &window, sizeof(window)))
		socket->window = window;
}

/* Before the SYN of a connection on this host, of which either end may have a limit. */
static __always_inline void
slim_limit_segments(struct bpf_sock_ops *ctx, const struct slim_socket *socket)
{
	__u32 mine = slim_pace(socket->index);
	__u32 theirs = slim_pace(slim_inner_index(socket->dialled));
	int mss = SLIM_RATE_MSS;

	if (((mine && mine < SLIM_RATE_SMALL) || (theirs && theirs < SLIM_RATE_SMALL)) &&
	    !slim_limit_is_free(socket))
		bpf_setsockopt(ctx, IPPROTO_TCP, SLIM_TCP_MAXSEG, &mss, sizeof(mss));
}

/* Before a segment of a connection that shares its endpoint's rate: when may the next come? */
static __noinline int slim_limit_turn(struct bpf_sock_ops *ctx)
{
	const struct slim_limit *limit;
	struct slim_socket *socket;
	struct slim_usage *usage;
	struct bpf_sock *sk = ctx->sk;
	__u32 index, pace;

	socket = sk ? bpf_sk_storage_get(&slim_socket, sk, NULL, 0) : NULL;
	if (!socket || !(socket->flags & SLIM_SOCKET_ESTABLISHED) ||
	    socket->flags & SLIM_SOCKET_DOOMED || slim_limit_is_free(socket))
		return 0;
	index = socket->index;
	limit = bpf_map_lookup_elem(&slim_limit, &index);
	usage = slim_usage_get(index);
	if (!limit || !limit->rate || !usage)
		return 0;
	pace = slim_rate_pace(ctx->skb_len, *(volatile __u64 *)&usage->next, bpf_ktime_get_ns(),
			      limit->rate);
	if (limit->connection_rate && limit->connection_rate < pace)
		pace = limit->connection_rate;
	slim_limit_tell(ctx, socket, pace, slim_pace(index));
	slim_limit_window(ctx, socket, slim_rate_window(socket->pace, ctx->srtt_us >> 3,
							ctx->mss_cache));
	return 0;
}

#define SLIM_IPV6_LENGTH 40		/* linux/ipv6.h would bring libc's headers along */
#define SLIM_IPV6_NEXT 6

/* However far ahead its endpoint is: never held back. */
#define SLIM_LIMIT_NEVER 0xffffffffffULL

/*
 * Only the first segments of a connection may be held back. For the later ones a
 * timer of the pacing may be what sends them, and nothing in the kernel sends
 * those again that are refused to that (tcp_tsq_write()): with nothing on the way
 * the connection would stand still for good. What was held back counts as one.
 */
static __always_inline __u64 slim_limit_segment(struct __sk_buff *skb, struct bpf_sock *sk)
{
	struct bpf_tcp_sock *tcp = bpf_tcp_sock(sk);

	return tcp && tcp->data_segs_out < SLIM_RATE_FIRST + skb->gso_segs ? SLIM_RATE_SEGMENT :
									     SLIM_LIMIT_NEVER;
}

/*
 * How far ahead its endpoint may be for a packet of TCP; 0: it only acknowledges,
 * and is free. Locally made packets have their headers in the linear part.
 */
static __always_inline __u64 slim_limit_ahead(struct __sk_buff *skb, struct bpf_sock *sk)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 length = SLIM_IPV6_LENGTH;
	struct tcphdr *tcp;

	if (data + SLIM_IPV6_LENGTH > end)
		return slim_limit_segment(skb, sk);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		length = ((struct iphdr *)data)->ihl * 4;
	else if (((__u8 *)data)[SLIM_IPV6_NEXT] != IPPROTO_TCP)
		return slim_limit_segment(skb, sk);
	tcp = data + length;
	if ((void *)(tcp + 1) > end || skb->len > length + tcp->doff * 4)
		return slim_limit_segment(skb, sk);
	if (tcp->syn)
		return SLIM_RATE_SYN;
	return tcp->fin || tcp->rst ? SLIM_LIMIT_NEVER : 0;
}

static __always_inline int slim_limit_run(struct __sk_buff *skb)
{
	const struct slim_local *local = bpf_get_local_storage(&slim_cgroup, 0);
	__u32 index = local->index;
	const struct slim_limit *limit = bpf_map_lookup_elem(&slim_limit, &index);
	struct slim_usage *usage = slim_usage_get(index);
	__u64 ahead = SLIM_RATE_DATAGRAM;
	struct bpf_sock *sk = skb->sk;
	struct slim_socket *socket;
	__u64 now, next, from;

	if (!limit || !limit->rate || !usage)
		return SLIM_SEND;
	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	if (sk && sk->protocol == IPPROTO_TCP) {
		socket = bpf_sk_storage_get(&slim_socket, sk, NULL, 0);
		if (socket && slim_limit_is_free(socket))
			return SLIM_SEND;
		ahead = slim_limit_ahead(skb, sk);
		if (!ahead)
			return SLIM_SEND;
	} else if (skb->ifindex == SLIM_LOOPBACK_IFINDEX) {
		return SLIM_SEND;
	}
	now = bpf_ktime_get_ns();
	next = *(volatile __u64 *)&usage->next;
	if (slim_rate_holds(next, now, ahead)) {
		slim_count(SLIM_REASON_RATE);
		return SLIM_HOLD_BACK;
	}
	from = slim_rate_from(next, now);
	if (from != next)
		__sync_val_compare_and_swap(&usage->next, next, from);
	__sync_fetch_and_add(&usage->next, slim_rate_cost(skb->len, limit->rate));
	return SLIM_SEND;
}

static __always_inline int slim_repace_run(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;
	const struct slim_limit *limit;
	struct slim_socket *socket;
	struct tcp_sock *sk;
	__u32 index, pace;
	int calls;

	sk = common ? bpf_skc_to_tcp_sock(common) : NULL;
	if (!sk)
		return 0;
	socket = bpf_sk_storage_get(&slim_socket, sk, NULL, 0);
	if (!socket || !(socket->flags & SLIM_SOCKET_ESTABLISHED) ||
	    socket->flags & SLIM_SOCKET_DOOMED || slim_limit_is_free(socket))
		return 0;
	index = socket->index;
	limit = bpf_map_lookup_elem(&slim_limit, &index);
	if (!limit)
		return 0;
	/* An older kernel refuses this: there, such a connection keeps the pace of now. */
	calls = limit->rate ? SLIM_CALLS_SHARED : SLIM_CALLS;
	bpf_setsockopt(sk, IPPROTO_TCP, SLIM_TCP_BPF_SOCK_OPS_CB_FLAGS, &calls, sizeof(calls));
	pace = slim_pace(index) ?: SLIM_NO_PACE;
	slim_limit_tell(sk, socket, pace, pace);
	if (!limit->rate && socket->window)
		slim_limit_window(sk, socket, SLIM_NO_WINDOW);
	return 0;
}

#endif /* SLIMNET_LIMIT_H */
