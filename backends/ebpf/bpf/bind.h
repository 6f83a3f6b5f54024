/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * bind(2), and the life of what it holds of the host.
 *
 * An explicit port goes to an inner address, where it collides with nothing.
 * Port 0 is left to the host at 0.0.0.0 (design 4.5): such sockets mostly
 * connect, and then need no rewriting. If one listens, it stands behind the
 * shield.
 */
#ifndef SLIMNET_BIND_H
#define SLIMNET_BIND_H

#include "event.h"
#include "share.h"

/* The kernel's own types, as far as we read them; offsets come from its BTF. */
struct proto;
struct sock_common {
	struct proto *skc_prot;
	unsigned char skc_reuseport : 1;
	unsigned char skc_ipv6only : 1;
	unsigned long skc_flags;
} __attribute__((preserve_access_index));
struct sock {
	struct sock_common __sk_common;
	struct proto *sk_prot_creator;
	void *sk_user_data;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
} __attribute__((preserve_access_index));
struct inet_sock {
	struct sock sk;
} __attribute__((preserve_access_index));
struct inet_connection_sock {
	struct inet_sock icsk_inet;
} __attribute__((preserve_access_index));
struct tcp_sock {
	struct inet_connection_sock inet_conn;
} __attribute__((preserve_access_index));
struct tcp6_sock {
	struct tcp_sock tcp;
} __attribute__((preserve_access_index));
struct bpf_iter__tcp {
	struct sock_common *sk_common;
} __attribute__((preserve_access_index));

/* struct sockaddr_in6, which comes with libc's headers. */
struct slim_name6 {
	__u16 family;
	__be16 port;
	__be32 flow;
	__be32 address[4];
	__u32 scope;
};

#define SLIM_HOOK_REFUSE 0
#define SLIM_HOOK_ALLOW 1
#define SLIM_BIND_ALLOW 3	/* and no CAP_NET_BIND_SERVICE is wanted */

static __always_inline int slim_errno(int error)
{
	bpf_set_retval(-error);
	return SLIM_HOOK_REFUSE;
}

static __always_inline bool slim_is_v6only(struct bpf_sock *sk)
{
	struct tcp6_sock *tcp6 = bpf_skc_to_tcp6_sock(sk);

	return tcp6 &&
	       BPF_CORE_READ_BITFIELD(&tcp6->tcp.inet_conn.icsk_inet.sk.__sk_common,
				      skc_ipv6only);
}

/* Of sk_user_data: it is the sockmap's state (include/net/sock.h, SK_USER_DATA_PSOCK). */
#define SLIM_USER_DATA_PSOCK 4

/*
 * May this listener go into the SOCKHASH? A socket in there runs with the
 * sockmap's struct proto, and the children that it accepts note that one as the
 * proto they were created with (sk_prot_creator). Once such a child is put into
 * a SOCKHASH itself, tcp_bpf_clone() gives *its* children the sockmap's proto
 * without the sockmap's state, and close(2) on one of them never frees it
 * (the WARN in sock_map_close()). A socket that runs with the proto that it was
 * created with is no such child, and neither is one that is in there already.
 */
static __always_inline bool slim_is_original(struct bpf_sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct sock *self;

	if (!tcp)
		return false;
	self = &tcp->inet_conn.icsk_inet.sk;
	return self->__sk_common.skc_prot == self->sk_prot_creator ||
	       (unsigned long)self->sk_user_data & SLIM_USER_DATA_PSOCK;
}

#define SLIM_SOCK_DONE 1	/* of enum sock_flags: the peer's FIN has come */

#define SLIM_SOCKET_SHIELDED (SLIM_SOCKET_SHIELDED_V4 | SLIM_SOCKET_SHIELDED_V6)

/* What a socket is by its bind; all else in its flags is about one connection. */
#define SLIM_BIND_FLAGS								\
	(SLIM_SOCKET_BOUND | SLIM_SOCKET_ANY_PORT | SLIM_SOCKET_WILDCARD |	\
	 SLIM_SOCKET_LOOPBACK | SLIM_SOCKET_V6ONLY | SLIM_SOCKET_DUAL |		\
	 SLIM_SOCKET_REUSE_ADDRESS | SLIM_SOCKET_REUSE_PORT |			\
	 SLIM_SOCKET_HELD | SLIM_SOCKET_SHIELDED)

/*
 * The connection that a socket had, dialled or accepted, is over, and it begins
 * anew: nothing that was decided or learned for that one may serve the next.
 */
static __always_inline void slim_socket_forget(struct slim_socket *socket)
{
	socket->flags &= SLIM_BIND_FLAGS;
	socket->flow_flags = 0;
	socket->peer_endpoint = 0;
	socket->peer_port = 0;
	socket->target_port = 0;
	socket->rule = 0;
	socket->peer_rule = 0;
	socket->dialled = 0;
	socket->underlay_port = 0;
	socket->generation = 0;
	socket->opened = 0;
	__builtin_memset(socket->peer, 0, sizeof(socket->peer));
}

/*
 * Is it what `key` says? The kernel leaves a socket in the SOCKHASH until it is
 * closed: disconnected, connected or listening on another port.
 */
static __always_inline bool slim_listens_at(const struct slim_listener_key *key,
					    const struct bpf_sock *sk,
					    const struct slim_socket *socket)
{
	return sk->state == BPF_TCP_LISTEN && socket->inner == key->inner &&
	       !!(socket->flags & SLIM_SOCKET_V6ONLY) == key->v6only;
}

static __always_inline void slim_held_key(const struct slim_socket *socket,
					  struct slim_listener_key *key)
{
	key->inner = socket->inner;
	key->v6only = !!(socket->flags & SLIM_SOCKET_V6ONLY);
}

static __always_inline void slim_shield_add(const struct slim_socket *socket, int count)
{
	__u32 index = bpf_ntohs(socket->bound_port);
	struct slim_shield *shield = bpf_map_lookup_elem(&slim_shield, &index);

	if (!shield)
		return;
	if (socket->flags & SLIM_SOCKET_SHIELDED_V4)
		__sync_fetch_and_add(&shield->v4, count);
	if (socket->flags & SLIM_SOCKET_SHIELDED_V6)
		__sync_fetch_and_add(&shield->v6, count);
}

/*
 * A listener on a port of the host: nobody reaches it there. Only listeners,
 * because any other socket may share its port with a service of the host; and
 * only by what the kernel's socket hears, for the port was chosen by that: a
 * v6-only listener may have the number of a service of the host by IPv4, and
 * one that is bound to a mapped address of one by IPv6.
 */
static __always_inline void slim_shield_take(struct slim_socket *socket, bool v4, bool v6)
{
	socket->flags |= (v4 ? SLIM_SOCKET_SHIELDED_V4 : 0) | (v6 ? SLIM_SOCKET_SHIELDED_V6 : 0);
	slim_shield_add(socket, 1);
}

static __always_inline void slim_shield_leave(struct slim_socket *socket)
{
	slim_shield_add(socket, -1);
	socket->flags &= ~SLIM_SOCKET_SHIELDED;
}

/*
 * A socket has its port: `port` is the kernel's. bind(0), or a listen() without
 * bind(), took one of the host, which is counted. False: it could not be
 * written down, so that nobody would know of a conflict.
 */
static __always_inline bool slim_hold(struct slim_socket *socket, __be16 port)
{
	__u32 flags = socket->flags;
	const struct slim_held one = {
		.sockets = 1,
		.host = !!(flags & SLIM_SOCKET_ANY_PORT),
		.reuse_address = !!(flags & SLIM_SOCKET_REUSE_ADDRESS),
		.reuse_port = !!(flags & SLIM_SOCKET_REUSE_PORT),
		.dual = !!(flags & SLIM_SOCKET_DUAL),
	};
	struct slim_listener_key key = {};
	struct slim_share share;
	struct slim_held *held;

	if (!slim_share_get(socket->index, &share))
		return false;
	if (flags & SLIM_SOCKET_ANY_PORT) {
		socket->bound_port = port;
		socket->inner = slim_inner(flags & SLIM_SOCKET_LOOPBACK, socket->index,
					   socket->local_port ?: port);
	}
	slim_held_key(socket, &key);
	held = bpf_map_lookup_elem(&slim_held, &key);
	if (held) {
		__sync_fetch_and_add(&held->sockets, one.sockets);
		__sync_fetch_and_add(&held->host, one.host);
		__sync_fetch_and_add(&held->reuse_address, one.reuse_address);
		__sync_fetch_and_add(&held->reuse_port, one.reuse_port);
		__sync_fetch_and_add(&held->dual, one.dual);
	} else {
		if (!slim_share_room(&share, places, SLIM_HELD_ROOM) ||
		    bpf_map_update_elem(&slim_held, &key, &one, BPF_ANY))
			return false;
		slim_share_take(&share, places);
	}
	if (flags & SLIM_SOCKET_ANY_PORT)
		slim_share_take(&share, held);
	socket->flags |= SLIM_SOCKET_HELD;
	return true;
}

static __always_inline void slim_unhold(struct slim_socket *socket)
{
	__u32 flags = socket->flags;
	struct slim_listener_key key = {};
	struct slim_share share;
	struct slim_held *held;

	slim_held_key(socket, &key);
	socket->flags &= ~SLIM_SOCKET_HELD;
	if (!slim_share_get(socket->index, &share))
		return;
	held = bpf_map_lookup_elem(&slim_held, &key);
	if (held) {
		if (flags & SLIM_SOCKET_ANY_PORT)
			__sync_fetch_and_add(&held->host, -1);
		if (flags & SLIM_SOCKET_REUSE_ADDRESS)
			__sync_fetch_and_add(&held->reuse_address, -1);
		if (flags & SLIM_SOCKET_REUSE_PORT)
			__sync_fetch_and_add(&held->reuse_port, -1);
		if (flags & SLIM_SOCKET_DUAL)
			__sync_fetch_and_add(&held->dual, -1);
		if (__sync_fetch_and_add(&held->sockets, -1) == 1 &&
		    !bpf_map_delete_elem(&slim_held, &key))
			slim_share_give_back(&share, places);
	}
	if (flags & SLIM_SOCKET_ANY_PORT)
		slim_share_give_back(&share, held);
}

static __always_inline void slim_listener_leave(struct slim_socket *socket)
{
	struct slim_share share;

	if (!(socket->counted & SLIM_COUNTED_LISTENER))
		return;
	socket->counted &= ~SLIM_COUNTED_LISTENER;
	if (slim_share_get(socket->index, &share))
		slim_share_give_back(&share, listeners);
}

/* Whatever the socket is counted in, but the port of a connection: STATE_CB says when that ends. */
slim_verified_once int slim_uncount(struct slim_socket *socket)
{
	if (!socket)
		return 0;
	if (socket->flags & SLIM_SOCKET_HELD)
		slim_unhold(socket);
	if (!(socket->counted & SLIM_COUNTED_FOLLOWED))
		slim_port_leave(socket);
	slim_listener_leave(socket);
	return 0;
}

#define SOL_SOCKET 1
#define SO_REUSEADDR 2
#define SO_KEEPALIVE 9
#define SO_REUSEPORT 15
#define SO_MAX_PACING_RATE 47
#define SO_BINDTOIFINDEX 62

/* What the kernel is to pace each connection of an endpoint at, in bytes a second; 0: nothing. */
static __always_inline __u32 slim_pace(__u32 index)
{
	const struct slim_limit *limit = bpf_map_lookup_elem(&slim_limit, &index);
	__u64 rate;

	if (!limit)
		return 0;
	rate = limit->connection_rate ?: limit->rate;
	if (limit->rate && limit->rate < rate)
		rate = limit->rate;
	/* All ones would be no limit. */
	return rate < 0xffffffff ? rate : 0xfffffffe;
}

slim_verified_once int slim_reuse_flags(struct bpf_sock_addr *ctx)
{
	int address = 0, port = 0;

	bpf_getsockopt(ctx, SOL_SOCKET, SO_REUSEADDR, &address, sizeof(address));
	bpf_getsockopt(ctx, SOL_SOCKET, SO_REUSEPORT, &port, sizeof(port));
	return (address ? SLIM_SOCKET_REUSE_ADDRESS : 0) | (port ? SLIM_SOCKET_REUSE_PORT : 0);
}

/* Would a socket with `flags` be in the way of those that are bound at `key`? */
slim_verified_once int slim_is_taken(const struct slim_listener_key *key, __u32 flags)
{
	struct slim_listener_key place;
	struct slim_held *held;
	struct bpf_sock *sk;
	int listens;

	if (!key)
		return 1;
	place = *key;
	held = bpf_map_lookup_elem(&slim_held, &place);
	if (!held || !held->sockets)
		return 0;
	if (flags & SLIM_SOCKET_REUSE_PORT && held->reuse_port == held->sockets)
		return 0;
	if (!(flags & SLIM_SOCKET_REUSE_ADDRESS) || held->reuse_address != held->sockets)
		return 1;
	sk = bpf_map_lookup_elem(&slim_listener, &place);
	if (!sk)
		return 0;
	listens = sk->state == BPF_TCP_LISTEN;
	bpf_sk_release(sk);
	return listens;
}

/*
 * The kernel sees a conflict between two sockets on one inner address. Not so
 * between the wildcard and loopback, which are two; nor with sockets that sit
 * on a port of the host.
 */
slim_verified_once int slim_bind_conflicts(__u32 index, __u32 host_port, __u32 flags)
{
	const __be16 port = bpf_htons((__u16)host_port);
	const bool v6only = flags & SLIM_SOCKET_V6ONLY;
	const bool loopback = flags & SLIM_SOCKET_LOOPBACK;
	struct slim_listener_key family = { .inner = slim_inner(false, index, port) };
	struct slim_listener_key same = {
		.inner = slim_inner(loopback, index, port),
		.v6only = v6only,
	};
	struct slim_listener_key other = {
		.inner = slim_inner(!loopback, index, port),
		.v6only = v6only,
	};
	struct slim_held *held = bpf_map_lookup_elem(&slim_held, &same);

	if (held && (v6only || held->host) && slim_is_taken(&same, flags))
		return true;
	if (flags & (SLIM_SOCKET_WILDCARD | SLIM_SOCKET_LOOPBACK) && slim_is_taken(&other, flags))
		return true;
	/* :: of both families against :: or ::1 of one, in either order. */
	if (v6only) {
		held = bpf_map_lookup_elem(&slim_held, &family);
		return held && held->dual && slim_is_taken(&family, flags);
	}
	if (!(flags & SLIM_SOCKET_DUAL))
		return false;
	family.v6only = 1;
	if (slim_is_taken(&family, flags))
		return true;
	family.inner |= SLIM_INNER_LOOPBACK;
	return slim_is_taken(&family, flags);
}

/* Is there room for one more such socket of the endpoint? */
slim_verified_once int
slim_bind_may(__u32 index, __u32 flags, const struct slim_control *control)
{
	struct slim_share share;

	return control && slim_share_get(index, &share) &&
	       slim_share_room(&share, places, SLIM_HELD_ROOM) &&
	       slim_share_room(&share, listeners, SLIM_LISTENER_ROOM) &&
	       (!(flags & SLIM_SOCKET_ANY_PORT) || slim_port_may_hold(&share, control));
}

/*
 * Where a socket that asks for `address`:`port` (mapped or IPv6) is to sit.
 * On success `*to` and `*to_port` say it. Answers 0 or a positive errno, and
 * then `*reason`.
 */
static __always_inline int
slim_bind(struct bpf_sock_addr *ctx, struct slim_local *local, const __be32 *address,
	  bool v6, __be32 *to, __be16 *to_port, __u32 *reason)
{
	__be16 port = (__be16)ctx->user_port;
	struct slim_socket *socket;
	struct slim_state state;
	bool any, loopback;
	__u32 flags;

	*reason = SLIM_REASON_NO_TABLES;
	if (!slim_state_get(&state) || !local->endpoint)
		return EACCES;
	if (!ctx->sk)
		return EINVAL;
	if (ctx->sk->src_port) {
		/* Bound already: the kernel will say so, and the storage must stay. */
		*reason = SLIM_REASON_NONE;
		return EINVAL;
	}

	any = slim_is_any(address);
	loopback = slim_is_loopback(address);
	if (!any && !loopback && !slim_same(address, local->address)) {
		*reason = slim_in_range(state.control, address) ? SLIM_REASON_INNER_ADDRESS :
								  SLIM_REASON_FOREIGN_ADDRESS;
		return EADDRNOTAVAIL;
	}

	/* A port of the host, unless something better is found. */
	if (v6 && !slim_is_mapped(address))
		__builtin_memset(to, 0, 16);
	else
		slim_map_v4(to, 0);
	*to_port = 0;

	if (ctx->protocol != IPPROTO_TCP) {
		if (port || loopback) {
			*reason = SLIM_REASON_DATAGRAM;
			return EOPNOTSUPP;
		}
		return 0;
	}

	flags = any ? SLIM_SOCKET_WILDCARD : loopback ? SLIM_SOCKET_LOOPBACK : 0;
	if (v6 && !slim_is_mapped(address))
		flags |= loopback || slim_is_v6only(ctx->sk) ? SLIM_SOCKET_V6ONLY :
							       SLIM_SOCKET_DUAL;
	flags |= port && !(flags & SLIM_SOCKET_V6ONLY) ? SLIM_SOCKET_BOUND :
							 SLIM_SOCKET_ANY_PORT;
	flags |= slim_reuse_flags(ctx);
	if (port && slim_bind_conflicts(local->index, bpf_ntohs(port), flags)) {
		*reason = SLIM_REASON_PORT_IN_USE;
		return EADDRINUSE;
	}
	if (!slim_bind_may(local->index, flags, state.control)) {
		*reason = SLIM_REASON_PORT_LIMIT;
		return EADDRINUSE;
	}

	socket = bpf_sk_storage_get(&slim_socket, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket)
		return EADDRNOTAVAIL;
	slim_uncount(socket);
	__builtin_memset(socket, 0, sizeof(*socket));
	socket->endpoint = local->endpoint;
	socket->index = local->index;
	slim_copy(socket->local, address);
	socket->local_port = port;
	socket->flags = flags;
	if (flags & SLIM_SOCKET_BOUND) {
		socket->bound_port = port;
		socket->inner = slim_inner(loopback, local->index, port);
		slim_map_v4(to, slim_inner_v4(socket->inner));
		*to_port = bpf_htons(SLIM_INNER_PORT);
	}
	return 0;
}

static __always_inline int slim_bind_hook(struct bpf_sock_addr *ctx, bool v6)
{
	struct slim_local *local = bpf_get_local_storage(&slim_cgroup, 0);
	struct slim_call call = {
		.protocol = (__u8)ctx->protocol,
		.direction = SLIM_EGRESS,
		.port = (__be16)ctx->user_port,
	};
	__be32 address[4], to[4];
	__be16 to_port;
	int error;

	if (v6) {
		address[0] = ctx->user_ip6[0];
		address[1] = ctx->user_ip6[1];
		address[2] = ctx->user_ip6[2];
		address[3] = ctx->user_ip6[3];
	} else {
		slim_map_v4(address, ctx->user_ip4);
	}
	error = slim_bind(ctx, local, address, v6, to, &to_port, &call.reason);
	if (error) {
		if (call.reason)
			slim_refuse(local, address, &call);
		return slim_errno(error);
	}
	if (v6) {
		ctx->user_ip6[0] = to[0];
		ctx->user_ip6[1] = to[1];
		ctx->user_ip6[2] = to[2];
		ctx->user_ip6[3] = to[3];
	} else {
		ctx->user_ip4 = to[3];
	}
	ctx->user_port = to_port;
	return SLIM_BIND_ALLOW;
}

/*
 * UDP. The kernel gives a socket its port in bind(0), connect(2) and sendto(2),
 * and in the last one, inet_autobind(), before any hook is asked. So it is the
 * sockets that are counted: none has more than one port.
 */
static __always_inline bool slim_datagram_open(void)
{
	const struct slim_local *local = bpf_get_local_storage(&slim_cgroup, 0);
	struct slim_share share;
	struct slim_state state;

	/* Before it is ready an endpoint is refused whatever it asks for. */
	if (!local->index)
		return true;
	if (!slim_state_get(&state) || !slim_share_get(local->index, &share) ||
	    slim_share_held(share.mine->datagrams) >= state.control->held_limit ||
	    !slim_share_room(&share, datagrams, state.control->port_room))
		return false;
	slim_share_take(&share, datagrams);
	return true;
}

static __always_inline void slim_datagram_close(void)
{
	const struct slim_local *local = bpf_get_local_storage(&slim_cgroup, 0);
	struct slim_share share;

	if (slim_share_get(local->index, &share))
		slim_share_give_back(&share, datagrams);
}

/* `at` is the kernel's address, of which the last word is enough. */
static __always_inline int slim_post_bind(struct bpf_sock *sk, __be32 at)
{
	struct slim_socket *socket;

	if (sk->protocol != IPPROTO_TCP || !sk->src_port)
		return SLIM_HOOK_ALLOW;
	socket = bpf_sk_storage_get(&slim_socket, sk, NULL, 0);
	/*
	 * bind(2) takes the socket's lock once for the hook above and once for
	 * itself. Where another thread's bind or connect came in between, the
	 * storage tells of that one, and this one has not been.
	 */
	if (!socket || at != (socket->flags & SLIM_SOCKET_BOUND ?
			      slim_inner_v4(socket->inner) : 0))
		return slim_errno(EINVAL);
	if (socket->flags & SLIM_SOCKET_HELD)
		return SLIM_HOOK_ALLOW;
	/* The endpoint's address itself conflicts with what the kernel sees. */
	if (!(socket->flags &
	      (SLIM_SOCKET_ANY_PORT | SLIM_SOCKET_WILDCARD | SLIM_SOCKET_LOOPBACK)))
		return SLIM_HOOK_ALLOW;
	if (!slim_hold(socket, bpf_htons((__u16)sk->src_port))) {
		slim_count(SLIM_REASON_PORT_LIMIT);
		return slim_errno(EADDRINUSE);
	}
	if (socket->flags & SLIM_SOCKET_ANY_PORT)
		slim_port_take(socket, (__u16)sk->src_port);
	return SLIM_HOOK_ALLOW;
}

#endif /* SLIMNET_BIND_H */
