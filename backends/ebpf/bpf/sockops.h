/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The life of a TCP socket: the SYN's option, the same-host flow record, the
 * listener's entry and the child's name.
 */
#ifndef SLIMNET_SOCKOPS_H
#define SLIMNET_SOCKOPS_H

#include "connect.h"
#include "siphash.h"

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

/* Whether anything is left to do for this socket once it is established. */
static __always_inline int
slim_sockops_follow(const struct slim_control *control, const struct slim_socket *socket)
{
	if (control->observe & SLIM_OBSERVE_CLOSED ||
	    socket->flags & (SLIM_SOCKET_SOURCE_BOUND | SLIM_SOCKET_SAME_HOST |
			     SLIM_SOCKET_ANY_PORT))
		return BPF_SOCK_OPS_STATE_CB_FLAG;
	return 0;
}

/* Right before the SYN: the source port is known now. */
static __always_inline void
slim_sockops_connect(struct bpf_sock_ops *ctx, const struct slim_state *state,
		     struct slim_socket *socket)
{
	int follow = slim_sockops_follow(state->control, socket);

	if (socket->flags & SLIM_SOCKET_SAME_HOST) {
		struct slim_tuple tuple = {};
		struct slim_flow flow = {};

		slim_sockops_tuple(ctx, state->control, true, &tuple);
		flow.time = bpf_ktime_get_ns();
		flow.generation = socket->generation;
		slim_copy(flow.source, socket->local);
		slim_copy(flow.destination, socket->peer);
		flow.source_port = socket->local_port ?: tuple.source_port;
		flow.destination_port = socket->peer_port;
		flow.source_endpoint = socket->endpoint;
		flow.destination_endpoint = socket->peer_endpoint;
		flow.inner = socket->dialled;
		flow.rule = socket->rule;
		flow.flags = socket->flow_flags;
		if (bpf_map_update_elem(&slim_flow, &tuple, &flow, BPF_ANY))
			slim_count(SLIM_REASON_FLOW_FULL);
	} else if (socket->flags & SLIM_SOCKET_WIRE) {
		follow |= BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
	}
	if (follow)
		slim_sockops_flags(ctx, follow);
}

static __always_inline void
slim_sockops_write(struct bpf_sock_ops *ctx, const struct slim_state *state,
		   const struct slim_socket *socket)
{
	const struct slim_control *control = state->control;
	struct slim_option option = {
		.kind = SLIM_OPTION_KIND,
		.length = SLIM_OPTION_LENGTH,
		.port = socket->peer_port,
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
	option.tag = slim_tag(control,
			      socket->flags & SLIM_SOCKET_SOURCE_BOUND ?
				      control->underlay[3] : SLIM_CTX(ctx, local_ip4),
			      SLIM_CTX(ctx, remote_ip4), source_port, header->seq, &option);
	bpf_store_hdr_opt(ctx, &option, sizeof(option), 0);
}

static __always_inline void
slim_sockops_active(struct bpf_sock_ops *ctx, const struct slim_state *state,
		    struct slim_socket *socket)
{
	slim_sockops_flags(ctx, slim_sockops_follow(state->control, socket));
	socket->flags |= SLIM_SOCKET_ESTABLISHED;
	socket->opened = bpf_ktime_get_ns();
	if (state->control->observe & SLIM_OBSERVE_OPENED)
		slim_event_socket(ctx, socket, SLIM_EVENT_OPENED, SLIM_REASON_NONE);
}

/* A socket that may not be: the agent destroys it. */
static __always_inline void
slim_sockops_destroy(struct bpf_sock_ops *ctx, const struct slim_socket *socket, __u32 reason)
{
	slim_count(reason);
	slim_event_socket(ctx, socket, SLIM_EVENT_DESTROY, reason);
}

static __always_inline void
slim_sockops_passive(struct bpf_sock_ops *ctx, struct slim_state *state, struct bpf_sock *sk)
{
	const struct slim_endpoint *subject, *peer;
	struct slim_tuple tuple = {};
	struct slim_socket *socket;
	struct slim_verdict verdict;
	struct slim_flow *flow;

	socket = bpf_sk_storage_get(&slim_socket, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket) {
		slim_count(SLIM_REASON_NO_FLOW);
		return;
	}
	slim_sockops_tuple(ctx, state->control, false, &tuple);
	flow = bpf_map_lookup_elem(&slim_flow, &tuple);
	socket->flags = SLIM_SOCKET_ACCEPTED | SLIM_SOCKET_ESTABLISHED;
	socket->opened = bpf_ktime_get_ns();
	if (!flow) {
		slim_sockops_destroy(ctx, socket, SLIM_REASON_NO_FLOW);
		return;
	}
	slim_copy(socket->local, flow->destination);
	slim_copy(socket->peer, flow->source);
	socket->local_port = flow->destination_port;
	socket->peer_port = flow->source_port;
	socket->endpoint = flow->destination_endpoint;
	socket->peer_endpoint = flow->source_endpoint;
	socket->rule = flow->rule;
	socket->generation = flow->generation;
	socket->flow_flags = flow->flags;
	bpf_map_delete_elem(&slim_flow, &tuple);

	/* Tables that came during the handshake are asked again. */
	if (socket->generation != state->active >> 1) {
		subject = slim_endpoint_get(state, socket->endpoint);
		peer = slim_endpoint_get(state, socket->peer_endpoint);
		if (!subject || !peer) {
			slim_sockops_destroy(ctx, socket, SLIM_REASON_GENERATION);
			return;
		}
		struct slim_query query = {
			.subject = subject->identity,
			.peer = peer->identity,
			.direction = SLIM_INGRESS,
			.protocol = IPPROTO_TCP,
			.port = socket->local_port,
			.self = socket->endpoint == socket->peer_endpoint,
		};

		verdict = slim_decide(state, &query);
		if (verdict.action != SLIM_ALLOW) {
			slim_sockops_destroy(ctx, socket, SLIM_REASON_GENERATION);
			return;
		}
		socket->rule = verdict.rule;
		socket->generation = state->active >> 1;
	}
	if (state->control->observe & SLIM_OBSERVE_CLOSED)
		slim_sockops_flags(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	if (state->control->observe & SLIM_OBSERVE_OPENED)
		slim_event_socket(ctx, socket, SLIM_EVENT_OPENED, SLIM_REASON_NONE);
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

static __always_inline void
slim_sockops_listen(struct bpf_sock_ops *ctx, const struct slim_state *state,
		    struct bpf_sock *sk, struct slim_local *local)
{
	struct slim_listener_key key = {};
	struct slim_usage *usage;
	struct slim_socket *socket;
	__be16 port;

	if (!local->endpoint)
		return;
	socket = bpf_sk_storage_get(&slim_socket, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket)
		return;
	port = bpf_htons((__u16)ctx->local_port);
	if (socket->flags & SLIM_SOCKET_BOUND && port != bpf_htons(SLIM_INNER_PORT))
		socket->flags = 0;	/* left by a bind that failed */
	if (socket->flags & SLIM_SOCKET_HELD && socket->flags & SLIM_SOCKET_ANY_PORT &&
	    socket->bound_port != port)
		slim_unhold(socket);
	if (!(socket->flags & (SLIM_SOCKET_BOUND | SLIM_SOCKET_HELD))) {
		/* listen() without bind(), or again: the kernel chose a port of the host. */
		if (!(socket->flags & SLIM_SOCKET_ANY_PORT)) {
			socket->endpoint = local->endpoint;
			socket->index = local->index;
			socket->local_port = 0;
			if (!(socket->flags & SLIM_SOCKET_LOOPBACK))
				socket->flags |= SLIM_SOCKET_WILDCARD;
			if (ctx->family == AF_INET6)
				socket->flags |= slim_is_v6only(sk) ? SLIM_SOCKET_V6ONLY :
								      SLIM_SOCKET_DUAL;
			socket->flags |= SLIM_SOCKET_ANY_PORT;
		}
		/* It passed no bind hook, and listen(2) cannot be refused here. */
		usage = slim_usage_get(local->index);
		if (!usage || slim_usage_held(usage) >= state->control->held_limit)
			slim_sockops_destroy(ctx, socket, SLIM_REASON_PORT_LIMIT);
		slim_hold(socket, port);
	}
	if (socket->flags & SLIM_SOCKET_WILDCARD)
		slim_sockops_wildcard(ctx, socket);
	if (socket->flags & SLIM_SOCKET_ANY_PORT) {
		slim_shield_take(socket);
		slim_sockops_flags(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	}
	socket->flags |= SLIM_SOCKET_LISTENER;
	slim_held_key(socket, &key);
	bpf_sock_hash_update(ctx, &slim_listener, &key, BPF_ANY);
}

static __always_inline void
slim_sockops_state(struct bpf_sock_ops *ctx, const struct slim_state *state,
		   struct slim_socket *socket)
{
	__u32 old = ctx->args[0], new = ctx->args[1];

	if (new != BPF_TCP_CLOSE)
		return;
	if (socket->flags & SLIM_SOCKET_SAME_HOST) {
		/* No capability outlives the connect that it was made for. */
		struct slim_tuple tuple = {};

		slim_sockops_tuple(ctx, state->control, true, &tuple);
		bpf_map_delete_elem(&slim_flow, &tuple);
	}
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
		struct slim_usage *usage = slim_usage_get(socket->index);

		if (usage)
			slim_usage_wait(usage);
	}
	if (socket->flags & SLIM_SOCKET_SHIELDED)
		slim_shield_leave(socket);
	/* The kernel takes a port back that it chose itself. */
	if (socket->flags & SLIM_SOCKET_ANY_PORT && socket->flags & SLIM_SOCKET_HELD)
		slim_unhold(socket);
	if (state->control->observe & SLIM_OBSERVE_CLOSED &&
	    socket->flags & SLIM_SOCKET_ESTABLISHED)
		slim_event_socket(ctx, socket, SLIM_EVENT_CLOSED, SLIM_REASON_NONE);
}

static __always_inline int slim_sockops_run(struct bpf_sock_ops *ctx)
{
	struct slim_socket *socket;
	struct slim_state state;
	struct bpf_sock *sk;

	switch (ctx->op) {
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		if (ctx->skb_tcp_flags & 0x02)
			bpf_reserve_hdr_opt(ctx, SLIM_OPTION_LENGTH, 0);
		return 1;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
	case BPF_SOCK_OPS_STATE_CB:
		break;
	default:
		return 1;
	}

	sk = ctx->sk;
	if (!sk || !slim_state_get(&state))
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
		slim_sockops_connect(ctx, &state, socket);
		break;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		slim_sockops_write(ctx, &state, socket);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		slim_sockops_active(ctx, &state, socket);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		slim_sockops_state(ctx, &state, socket);
		break;
	}
	return 1;
}

#endif /* SLIMNET_SOCKOPS_H */
