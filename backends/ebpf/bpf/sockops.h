/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The life of a TCP socket: the SYN's option, the same-host flow record, the
 * listener's entry and the child's name.
 */
#ifndef SLIMNET_SOCKOPS_H
#define SLIMNET_SOCKOPS_H

#include "connect.h"
#include "limit.h"

/* Of the kernel's net/tcp.h. */
#define TCPHDR_SYN 0x02
#define TCPHDR_RST 0x04

static __always_inline void
slim_sockops_tuple(struct bpf_sock_ops *ctx, const struct slim_control *control, bool outgoing,
		   struct slim_tuple *tuple)
{
	__be16 local_port = bpf_htons((__u16)ctx->local_port);
	__be16 remote_port = (__be16)(bpf_ntohl(ctx->remote_port));
	__be32 local[4], remote[4];

	remote_port = bpf_htons(remote_port);
	if (ctx->family == AF_INET6 &&
	    (SLIM_CTX(ctx, remote_ip6[0]) == control->range6[0] ||
	     SLIM_CTX(ctx, local_ip6[0]) == control->range6[0])) {
		local[0] = SLIM_CTX(ctx, local_ip6[0]);
		local[1] = SLIM_CTX(ctx, local_ip6[1]);
		local[2] = SLIM_CTX(ctx, local_ip6[2]);
		local[3] = SLIM_CTX(ctx, local_ip6[3]);
		remote[0] = SLIM_CTX(ctx, remote_ip6[0]);
		remote[1] = SLIM_CTX(ctx, remote_ip6[1]);
		remote[2] = SLIM_CTX(ctx, remote_ip6[2]);
		remote[3] = SLIM_CTX(ctx, remote_ip6[3]);
	} else {
		slim_map_v4(local, SLIM_CTX(ctx, local_ip4));
		slim_map_v4(remote, SLIM_CTX(ctx, remote_ip4));
	}
	if (outgoing) {
		slim_copy(tuple->source, local);
		slim_copy(tuple->destination, remote);
		tuple->source_port = local_port;
		tuple->destination_port = remote_port;
	} else {
		slim_copy(tuple->source, remote);
		slim_copy(tuple->destination, local);
		tuple->source_port = remote_port;
		tuple->destination_port = local_port;
	}
}

static __always_inline void slim_sockops_flags(struct bpf_sock_ops *ctx, int flags)
{
	bpf_sock_ops_cb_flags_set(ctx, flags);
}

/* Has the agent announce a connection to a host that speaks wire announce, or withdraw it. */
static __noinline int
slim_sockops_tell(struct bpf_sock_ops *ctx, const struct slim_socket *socket, __u32 kind)
{
	struct slim_state state;
	struct slim_told *told;

	if (!socket || !slim_state_get(&state))
		return 0;
	told = bpf_ringbuf_reserve(&slim_told, sizeof(*told), 0);
	if (!told)
		return 0;
	slim_copy(told->tuple.source, state.control->underlay);
	slim_copy(told->tuple.destination, socket->underlay);
	told->tuple.source_port = bpf_htons(socket->host_port);
	told->tuple.destination_port = socket->underlay_port;
	told->source_endpoint = socket->endpoint;
	told->destination_endpoint = socket->peer_endpoint;
	told->source_port = socket->local_port ?: bpf_htons(socket->host_port);
	told->port = socket->target_port;
	told->kind = kind;
	told->reason = 0;
	told->rule = 0;
	bpf_ringbuf_submit(told, 0);
	return 0;
}

/* TCP_CONNECT_CB, right before the SYN: only now is the source port known. */
static __always_inline void
slim_sockops_connect(struct bpf_sock_ops *ctx, const struct slim_state *state,
		     struct slim_socket *socket)
{
	int follow = BPF_SOCK_OPS_STATE_CB_FLAG;

	if (ctx->local_port != SLIM_INNER_PORT) {
		slim_port_take(socket, (__u16)ctx->local_port);
		socket->counted |= SLIM_COUNTED_FOLLOWED;
	}
	if (socket->flags & SLIM_SOCKET_SAME_HOST) {
		struct slim_tuple tuple = {};
		struct slim_flow flow = {};

		slim_limit_segments(ctx, socket);
		slim_sockops_tuple(ctx, state->control, true, &tuple);
		flow.time = bpf_ktime_get_ns();
		flow.generation = socket->generation;
		slim_copy(flow.source, socket->local);
		slim_copy(flow.destination, socket->peer);
		if (socket->flags & SLIM_SOCKET_SERVICE) {
			struct slim_endpoint *peer =
				slim_endpoint_get(state, socket->peer_endpoint);

			if (peer)
				slim_copy(flow.destination, peer->address);
		}
		flow.source_port = socket->local_port ?: tuple.source_port;
		flow.destination_port = socket->target_port;
		flow.source_endpoint = socket->endpoint;
		flow.destination_endpoint = socket->peer_endpoint;
		flow.inner = socket->dialled;
		flow.charged = slim_inner(false, socket->index, 0);
		flow.rule = socket->peer_rule;
		flow.flags = socket->flow_flags;
		if (slim_flow_put(&tuple, &flow))
			slim_count(SLIM_REASON_FLOW_FULL);
		else
			socket->flow_flags |= SLIM_FLOW_MINE;
	} else if (socket->flags & SLIM_SOCKET_ANNOUNCED) {
		slim_sockops_tell(ctx, socket, SLIM_TOLD_CONNECTS);
	} else if (socket->flags & SLIM_SOCKET_WIRE) {
		follow |= BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
	}
	slim_sockops_flags(ctx, follow);
}

static __always_inline void
slim_sockops_write(struct bpf_sock_ops *ctx, const struct slim_state *state,
		   const struct slim_socket *socket)
{
	const struct slim_control *control = state->control;
	__u32 length = SLIM_OPTION_LENGTH;
	struct slim_option option = {
		.kind = SLIM_OPTION_KIND,
		.length = SLIM_OPTION_LENGTH,
		.port = socket->target_port,
		.destination = bpf_htonl(socket->peer_endpoint),
		.source = bpf_htonl(socket->endpoint),
	};
	struct tcphdr *header = ctx->skb_data;
	__be16 source_port;

	if ((void *)(header + 1) > ctx->skb_data_end)
		return;
	if (!header->syn)
		return;
	source_port = socket->flags & SLIM_SOCKET_SOURCE_BOUND ? socket->bound_port :
								 header->source;
	if (socket->local_port && socket->local_port != source_port) {
		option.length = SLIM_OPTION_NAMED;
		option.name = socket->local_port;
		length = SLIM_OPTION_NAMED;
	}
	option.tag = slim_tag(slim_keys_signing(&control->keys),
			      socket->flags & SLIM_SOCKET_SOURCE_BOUND ?
				      control->underlay[3] : SLIM_CTX(ctx, local_ip4),
			      SLIM_CTX(ctx, remote_ip4), source_port, header->seq, &option);
	bpf_store_hdr_opt(ctx, &option, length, 0);
}

/*
 * A socket is dead from here on, whether there is an agent or not. Bound to an
 * interface that does not exist, the kernel's look-up gives it none of its peer's
 * packets (inet_sk_bound_dev_eq()), so that these are answered with a reset, and
 * there is no route for what its owner still writes. With keepalives that cannot
 * leave, an idle connection ends by itself in two seconds. Where the sysctl
 * tcp_l3mdev_accept has bound it already, the kernel may refuse the first step;
 * then it lives until the agent looks.
 */
slim_verified_once int slim_sockops_kill(struct bpf_sock_ops *ctx)
{
	int nowhere = SLIM_NOWHERE, one = 1, second = 1000;

	bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTOIFINDEX, &nowhere, sizeof(nowhere));
	if (ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB)
		return 0;
	bpf_setsockopt(ctx, IPPROTO_TCP, TCP_KEEPIDLE, &one, sizeof(one));
	bpf_setsockopt(ctx, IPPROTO_TCP, TCP_KEEPINTVL, &one, sizeof(one));
	bpf_setsockopt(ctx, IPPROTO_TCP, TCP_KEEPCNT, &one, sizeof(one));
	bpf_setsockopt(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT, &second, sizeof(second));
	bpf_setsockopt(ctx, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	slim_sockops_flags(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
	return 0;
}

/* A socket that may not be: dead, and the agent is asked to destroy it. */
static __always_inline void
slim_sockops_doom(struct bpf_sock_ops *ctx, struct slim_socket *socket, __u32 reason)
{
	slim_sockops_kill(ctx);
	socket->flags |= SLIM_SOCKET_DOOMED;
	slim_count(reason);
	slim_event_socket(ctx, socket, SLIM_EVENT_REFUSED, reason, false);
	bpf_ringbuf_output(&slim_doom, &reason, sizeof(reason), 0);
}

/*
 * The end of a doomed connection is the one packet of it that leaves: its peer
 * may be waiting without ever sending anything that would be answered. The
 * kernel wants CAP_NET_RAW of the current process, which the agent has; where
 * it is a timer that ends the connection, that is whoever it has interrupted.
 */
static __always_inline void slim_sockops_reset(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct slim_socket *socket;
	int anywhere = 0;

	socket = sk ? bpf_sk_storage_get(&slim_socket, sk, NULL, 0) : NULL;
	if (socket && socket->flags & SLIM_SOCKET_DOOMED)
		bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTOIFINDEX, &anywhere, sizeof(anywhere));
}

/*
 * Tables that came during the handshake are asked again, by each end for its
 * own policy. Answers whether the connection may be.
 */
static __noinline int slim_sockops_again(struct slim_state *state, struct slim_socket *socket)
{
	const struct slim_local *local = bpf_get_local_storage(&slim_cgroup, 0);
	struct slim_target peer = {};
	struct slim_endpoint *me;
	struct slim_verdict verdict;
	__u8 direction;

	if (!state || !socket)
		return 0;
	direction = socket->flags & SLIM_SOCKET_ACCEPTED ? SLIM_INGRESS : SLIM_EGRESS;
	me = slim_endpoint_get(state, socket->endpoint);
	if (!me)
		return 0;
	peer.endpoint = socket->peer_endpoint;
	peer.port = socket->target_port;
	if (peer.endpoint) {
		peer.peer = slim_endpoint_get(state, peer.endpoint);
		if (!peer.peer)
			return 0;
		peer.identity = peer.peer->identity;
	} else {
		slim_target_range(state, local->vni, socket->peer, &peer);
		if (peer.flags & SLIM_CIDR_OVERLAY)
			return 0;
	}
	verdict = slim_target_decide(state, socket->endpoint, me->identity, &peer, direction,
				     IPPROTO_TCP);
	if (verdict.action != SLIM_ALLOW)
		return 0;
	socket->rule = verdict.rule;
	socket->generation = state->active >> 1;
	return 1;
}

static __always_inline void
slim_sockops_pace(struct bpf_sock_ops *ctx, struct slim_socket *socket)
{
	__u32 index = socket->index, pace = slim_pace(index);
	const struct slim_limit *limit;

	if (!pace || slim_limit_is_free(socket))
		return;
	slim_limit_tell(ctx, socket, pace, pace);
	limit = bpf_map_lookup_elem(&slim_limit, &index);
	if (limit && limit->rate)
		slim_sockops_flags(ctx, SLIM_CALLS_SHARED);
}

/* A connection is there, at either end. */
static __always_inline void
slim_sockops_open(struct bpf_sock_ops *ctx, struct slim_state *state, struct slim_socket *socket)
{
	slim_sockops_flags(ctx, SLIM_CALLS);
	socket->opened = bpf_ktime_get_ns();
	socket->flags |= SLIM_SOCKET_ESTABLISHED;
	if (socket->generation != state->active >> 1 && !slim_sockops_again(state, socket)) {
		slim_sockops_doom(ctx, socket, SLIM_REASON_GENERATION);
		return;
	}
	slim_sockops_pace(ctx, socket);
	if (state->control->observe & SLIM_OBSERVE_OPENED)
		slim_event_socket(ctx, socket, SLIM_EVENT_OPENED, SLIM_REASON_NONE, false);
}

/*
 * A child of a published port: no flow record, since whoever may fill the table
 * of those must have a tag. Its own addresses say whose it is.
 */
static __always_inline bool
slim_sockops_published(struct slim_state *state, const struct slim_tuple *tuple,
		       const struct slim_local *local, struct slim_socket *socket)
{
	struct slim_publish *published;
	struct slim_endpoint *me;

	published = slim_publish_get(state, tuple->destination[3], tuple->destination_port);
	if (!published || published->endpoint != local->endpoint)
		return false;
	me = slim_endpoint_get(state, published->endpoint);
	if (!me)
		return false;
	socket->flags |= SLIM_SOCKET_PUBLISHED;
	slim_copy(socket->local, me->address);
	slim_copy(socket->peer, tuple->source);
	socket->local_port = published->port;
	socket->target_port = published->port;
	socket->peer_port = tuple->source_port;
	socket->endpoint = published->endpoint;
	/*
	 * socket->generation stays 0, so the policy is asked again when the connection is
	 * established, and that answer names the rule.
	 */
	return true;
}

static __always_inline void
slim_sockops_passive(struct bpf_sock_ops *ctx, struct slim_state *state, struct bpf_sock *sk)
{
	const struct slim_local *local = bpf_get_local_storage(&slim_cgroup, 0);
	struct slim_tuple tuple = {};
	struct slim_socket *socket;
	struct slim_flow *flow;

	socket = bpf_sk_storage_get(&slim_socket, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket) {
		slim_count(SLIM_REASON_NO_FLOW);
		slim_sockops_kill(ctx);
		return;
	}
	/*
	 * Not accepted but connected, and passive only since its SYN met itself
	 * (simultaneous open, RFC 9293 section 3.5): its names are those of its connect.
	 */
	if (socket->flags & (SLIM_SOCKET_SAME_HOST | SLIM_SOCKET_WIRE | SLIM_SOCKET_OUTSIDE)) {
		slim_sockops_open(ctx, state, socket);
		return;
	}
	slim_sockops_tuple(ctx, state->control, false, &tuple);
	flow = bpf_map_lookup_elem(&slim_flow, &tuple);
	socket->flags = SLIM_SOCKET_ACCEPTED;
	socket->index = local->index;
	if (flow) {
		slim_copy(socket->local, flow->destination);
		slim_copy(socket->peer, flow->source);
		socket->local_port = flow->destination_port;
		socket->target_port = flow->destination_port;
		socket->peer_port = flow->source_port;
		socket->endpoint = flow->destination_endpoint;
		socket->peer_endpoint = flow->source_endpoint;
		socket->rule = flow->rule;
		socket->generation = flow->generation;
		socket->flow_flags = flow->flags;
		slim_flow_drop(&tuple);
	} else if (!slim_sockops_published(state, &tuple, local, socket)) {
		socket->flags |= SLIM_SOCKET_ESTABLISHED;
		socket->opened = bpf_ktime_get_ns();
		slim_sockops_doom(ctx, socket, SLIM_REASON_NO_FLOW);
		return;
	}
	slim_sockops_open(ctx, state, socket);
}

static __always_inline void
slim_sockops_wildcard(struct bpf_sock_ops *ctx, struct slim_socket *socket)
{
	if (slim_is_any(socket->local))
		return;
	if (ctx->family == AF_INET)
		slim_map_v4(socket->local, 0);
	else
		__builtin_memset(socket->local, 0, sizeof(socket->local));
}

/*
 * By what the kernel's socket hears: IPV6_V6ONLY may change while a socket has
 * no port, and our bind hook asked before bind(2) took the lock again.
 */
static __always_inline void
slim_sockops_shield(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct slim_socket *socket)
{
	const __be32 local[4] = {
		SLIM_CTX(ctx, local_ip6[0]),
		SLIM_CTX(ctx, local_ip6[1]),
		SLIM_CTX(ctx, local_ip6[2]),
	};
	bool v6 = ctx->family == AF_INET6;

	slim_shield_take(socket, !v6 || !slim_is_v6only(sk), v6 && !slim_is_mapped(local));
}

/* Is there room for one more listener of this endpoint? It is kept until the last close. */
static __always_inline bool slim_sockops_may_listen(struct slim_socket *socket)
{
	struct slim_share share;

	if (socket->counted & SLIM_COUNTED_LISTENER)
		return true;
	if (!slim_share_get(socket->index, &share) ||
	    !slim_share_room(&share, listeners, SLIM_LISTENER_ROOM))
		return false;
	slim_share_take(&share, listeners);
	socket->counted |= SLIM_COUNTED_LISTENER;
	return true;
}

static __always_inline void
slim_sockops_listen(struct bpf_sock_ops *ctx, const struct slim_state *state,
		    struct bpf_sock *sk, struct slim_local *local)
{
	struct slim_listener_key key = {};
	struct slim_share share;
	struct slim_socket *socket;
	struct slim_call call = {
		.reason = SLIM_REASON_PORT_LIMIT,
		.protocol = IPPROTO_TCP,
		.direction = SLIM_EGRESS,
	};
	__be16 port;

	socket = bpf_sk_storage_get(&slim_socket, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket)
		return;
	slim_bound_let_go(state->control, socket);
	slim_socket_forget(socket);
	port = bpf_htons((__u16)ctx->local_port);
	if (socket->flags & SLIM_SOCKET_BOUND && port != bpf_htons(SLIM_INNER_PORT))
		socket->flags = 0;	/* the bind hook's, of a bind(2) that then failed */
	if (socket->flags & SLIM_SOCKET_HELD && socket->flags & SLIM_SOCKET_ANY_PORT &&
	    socket->bound_port != port)
		slim_unhold(socket);
	if (!(socket->flags & (SLIM_SOCKET_BOUND | SLIM_SOCKET_HELD))) {
		/*
		 * listen(2) without bind(2), or again after a disconnect: the kernel chose
		 * a port of the host, and no bind hook ran.
		 */
		if (!(socket->flags & SLIM_SOCKET_ANY_PORT)) {
			socket->endpoint = local->endpoint;
			socket->index = local->index;
			socket->local_port = 0;
			if (!(socket->flags & SLIM_SOCKET_LOOPBACK))
				socket->flags |= SLIM_SOCKET_WILDCARD | SLIM_SOCKET_DUAL;
			socket->flags |= SLIM_SOCKET_ANY_PORT;
		}
		/* IPV6_V6ONLY may have changed while it had no port. */
		if (socket->flags & SLIM_SOCKET_WILDCARD &&
		    socket->flags & (SLIM_SOCKET_V6ONLY | SLIM_SOCKET_DUAL)) {
			socket->flags &= ~(SLIM_SOCKET_V6ONLY | SLIM_SOCKET_DUAL);
			if (ctx->family == AF_INET6)
				socket->flags |= slim_is_v6only(sk) ? SLIM_SOCKET_V6ONLY :
								      SLIM_SOCKET_DUAL;
		}
		/*
		 * The bind hook would have refused it for want of a share. A sock_ops
		 * program cannot refuse listen(2), so the listener is destroyed instead.
		 */
		if (!slim_share_get(socket->index, &share) ||
		    !slim_port_may_hold(&share, state->control) ||
		    !slim_share_room(&share, places, SLIM_HELD_ROOM))
			slim_sockops_doom(ctx, socket, SLIM_REASON_PORT_LIMIT);
		socket->bound_port = port;	/* for the shield, with a share or without */
		slim_hold(socket, port);
	}
	if (socket->flags & SLIM_SOCKET_WILDCARD)
		slim_sockops_wildcard(ctx, socket);
	if (socket->flags & SLIM_SOCKET_ANY_PORT) {
		slim_port_take(socket, (__u16)ctx->local_port);
		socket->counted |= SLIM_COUNTED_FOLLOWED;
		slim_sockops_shield(ctx, sk, socket);
		slim_sockops_flags(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	}
	/* A listener of an ended endpoint: shielded above, and the agent destroys it. */
	if (!local->endpoint && !(socket->flags & SLIM_SOCKET_DOOMED))
		slim_sockops_doom(ctx, socket, SLIM_REASON_NO_TABLES);
	if (socket->flags & SLIM_SOCKET_DOOMED)
		return;
	/*
	 * These two do not go into the SOCKHASH: the listener is there, and no SYN finds
	 * it. It would not be safe there (slim_is_original()), or is over the endpoint's
	 * share of listeners.
	 */
	if (!slim_is_original(sk))
		return;
	if (!slim_sockops_may_listen(socket)) {
		call.port = socket->local_port ?: port;
		slim_refuse(local, socket->local, &call);
		return;
	}
	slim_held_key(socket, &key);
	bpf_sock_hash_update(ctx, &slim_listener, &key, BPF_ANY);
}

static __always_inline void
slim_sockops_account(struct bpf_sock_ops *ctx, const struct slim_socket *socket, __u32 state,
		     bool over)
{
	__u32 direction = socket->flags & SLIM_SOCKET_ACCEPTED ? SLIM_INGRESS : SLIM_EGRESS;
	const struct slim_account one = {
		.connections = 1,
		.sent = slim_account_sent(ctx->bytes_acked, state, direction == SLIM_EGRESS),
		.received = slim_account_received(ctx->bytes_received, over),
	};

	slim_account_add(socket->endpoint, socket->rule, direction, &one);
}

/* Has the other end closed too? Then its socket is no more, or does not outlive this call. */
static __always_inline bool slim_sockops_is_over(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct tcp_sock *tcp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;

	return tcp && tcp->inet_conn.icsk_inet.sk.__sk_common.skc_flags & 1UL << SLIM_SOCK_DONE;
}

static __always_inline void
slim_sockops_state(struct bpf_sock_ops *ctx, const struct slim_state *state,
		   struct slim_socket *socket)
{
	const bool over = slim_sockops_is_over(ctx);
	__u32 old = ctx->args[0];

	if (socket->flow_flags & SLIM_FLOW_MINE) {
		/*
		 * No capability outlives the connect that it was made for. One that
		 * the kernel refused (EADDRNOTAVAIL) made none: the record on its
		 * tuple is that of the connection which is in its way.
		 */
		struct slim_tuple tuple = {};

		slim_sockops_tuple(ctx, state->control, true, &tuple);
		slim_flow_drop(&tuple);
		socket->flow_flags &= ~SLIM_FLOW_MINE;
	}
	if (socket->flags & SLIM_SOCKET_ANNOUNCED) {
		slim_sockops_tell(ctx, socket, SLIM_TOLD_CLOSED);
		socket->flags &= ~SLIM_SOCKET_ANNOUNCED;
	}
	slim_alias_leave(socket, old != BPF_TCP_SYN_SENT && !over);
	if (old == BPF_TCP_SYN_SENT && socket->flags & SLIM_SOCKET_WILDCARD) {
		/* A failed connect gives the wildcard back, as tcp_disconnect() does. */
		slim_sockops_wildcard(ctx, socket);
	}
	if (socket->flags & SLIM_SOCKET_SOURCE_BOUND) {
		if (old == BPF_TCP_SYN_SENT)
			slim_bound_delete(state->control, socket);
		else
			slim_bound_close(state->control, socket,
					 old == BPF_TCP_FIN_WAIT2 || old == BPF_TCP_CLOSING);
		socket->flags &= ~SLIM_SOCKET_SOURCE_BOUND;
	}
	if (socket->flags & SLIM_SOCKET_ANY_PORT &&
	    (old == BPF_TCP_FIN_WAIT2 || old == BPF_TCP_CLOSING)) {
		struct slim_share share;

		if (slim_share_get(socket->index, &share)) {
			slim_usage_wait(share.mine);
			slim_usage_wait(share.all);
		}
	}
	if (socket->flags & SLIM_SOCKET_SHIELDED)
		slim_shield_leave(socket);
	/*
	 * On disconnect the kernel keeps a port that bind(2) asked for
	 * (SOCK_BINDPORT_LOCK) and takes back one that it chose: no longer held.
	 */
	if (socket->flags & SLIM_SOCKET_ANY_PORT && socket->flags & SLIM_SOCKET_HELD)
		slim_unhold(socket);
	slim_port_leave(socket);
	if (!(socket->flags & SLIM_SOCKET_ESTABLISHED))
		return;
	slim_sockops_account(ctx, socket, old, over);
	if (state->control->observe & SLIM_OBSERVE_CLOSED)
		slim_event_socket(ctx, socket, SLIM_EVENT_CLOSED, SLIM_REASON_NONE, over);
}

static __always_inline int slim_sockops_run(struct bpf_sock_ops *ctx)
{
	struct slim_socket *socket;
	struct slim_state state;
	struct bpf_sock *sk;

	switch (ctx->op) {
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		if (ctx->skb_tcp_flags & TCPHDR_SYN) {
			/* Beside what asks for a Fast Open cookie there is room for no name. */
			if (bpf_reserve_hdr_opt(ctx, SLIM_OPTION_NAMED, 0))
				bpf_reserve_hdr_opt(ctx, SLIM_OPTION_LENGTH, 0);
		} else if (ctx->skb_tcp_flags & TCPHDR_RST) {
			slim_sockops_reset(ctx);
		} else if (ctx->skb_len) {
			slim_limit_turn(ctx);
		}
		return 1;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] != BPF_TCP_CLOSE)
			return 1;
		break;
	default:
		return 1;
	}

	sk = ctx->sk;
	if (!sk || !slim_state_get(&state))
		return 1;
	/*
	 * Sockets of another network namespace inside the endpoint are none of ours. Only
	 * these two calls have to look: the others start from slim_socket, and no hook
	 * makes that for such a socket.
	 */
	if ((ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB ||
	     ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) && slim_is_elsewhere(ctx))
		return 1;
	if (ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB) {
		slim_sockops_listen(ctx, &state, sk, bpf_get_local_storage(&slim_cgroup, 0));
		return 1;
	}
	if (ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		slim_sockops_passive(ctx, &state, sk);
		return 1;
	}
	socket = bpf_sk_storage_get(&slim_socket, sk, NULL, 0);
	if (!socket)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		if (socket->flags & (SLIM_SOCKET_SAME_HOST | SLIM_SOCKET_WIRE) &&
		    !slim_alias_give(socket, ctx->local_port))
			slim_sockops_doom(ctx, socket, SLIM_REASON_PORT_LIMIT);
		slim_sockops_connect(ctx, &state, socket);
		break;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		slim_sockops_write(ctx, &state, socket);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		slim_sockops_open(ctx, &state, socket);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		slim_sockops_state(ctx, &state, socket);
		break;
	}
	return 1;
}

#endif /* SLIMNET_SOCKOPS_H */
