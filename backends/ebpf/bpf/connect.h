/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * connect(2) and sendto(2): what becomes of it is way.h's to say; here it is
 * carried out. A connection on this host goes straight to the listener's inner
 * address, one to another host through one of its wire ports, and one to
 * outside of every overlay as the host's own would.
 *
 * Each connect first forgets what an earlier one on this socket decided. The
 * SYN's option and the flow record are made only from what this hook left in
 * the socket's storage for *this* connect (design 4.4).
 */
#ifndef SLIMNET_CONNECT_H
#define SLIMNET_CONNECT_H

#include "alias.h"
#include "bind.h"
#include "flow.h"
#include "remote.h"

/* One connect, from the question to the rewritten destination. */
struct slim_dial {
	struct slim_state state;
	struct slim_local *local;
	struct bpf_sock *sk;
	struct slim_socket *socket;	/* NULL: none yet */
	struct slim_dialled dialled;
	struct slim_way way;
	__u32 v6;			/* an AF_INET6 socket */
	__be32 to[4];			/* as rewritten */
	__be16 to_port;
	__u16 rewrite;
};

/*
 * The keys of a source-bound connection: as it leaves, and as replies arrive.
 * A third names it in the overlay, where no two live ones may be the same.
 */
static __always_inline void
slim_bound_overlay_key(const struct slim_socket *socket, struct slim_tuple *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->source[0] = socket->endpoint;
	key->source_port = socket->bound_port;
	slim_copy(key->destination, socket->peer);
	key->destination_port = socket->peer_port;
}

static __always_inline void
slim_bound_keys(const struct slim_control *control, const struct slim_socket *socket,
		struct slim_tuple *out, struct slim_tuple *in)
{
	__builtin_memset(out, 0, sizeof(*out));
	__builtin_memset(in, 0, sizeof(*in));
	slim_map_v4(out->source,
		    slim_inner_v4(slim_inner(socket->flags & SLIM_SOCKET_LOOPBACK,
						      socket->index, socket->bound_port)));
	out->source_port = bpf_htons(SLIM_INNER_PORT);
	slim_copy(out->destination, socket->underlay);
	out->destination_port = socket->underlay_port;
	slim_copy(in->source, socket->underlay);
	in->source_port = socket->underlay_port;
	slim_copy(in->destination, control->underlay);
	in->destination_port = socket->bound_port;
}

static __always_inline void
slim_bound_delete(const struct slim_control *control, const struct slim_socket *socket)
{
	struct slim_tuple out, in;

	slim_bound_keys(control, socket, &out, &in);
	slim_bound_drop(&in, out.source[3]);
	bpf_map_delete_elem(&slim_bound, &out);
	slim_bound_overlay_key(socket, &out);
	bpf_map_delete_elem(&slim_bound, &out);
}

/*
 * The records stay for as long as TIME_WAIT may (SLIM_LINGER_SECONDS). Without them
 * another endpoint could take the same source port, and its SYN would meet this
 * connection's TIME_WAIT at the peer.
 */
static __always_inline void
slim_bound_close(const struct slim_control *control, const struct slim_socket *socket,
		 bool waiting)
{
	struct slim_tuple out, in;
	struct slim_bound *bound;
	__u64 now = bpf_ktime_get_ns();

	slim_bound_keys(control, socket, &out, &in);
	bound = bpf_map_lookup_elem(&slim_bound, &out);
	if (bound)
		bound->closed = now;
	bound = bpf_map_lookup_elem(&slim_bound, &in);
	if (bound) {
		bound->waiting = waiting;
		bound->closed = now;
	}
	slim_bound_overlay_key(socket, &out);
	bpf_map_delete_elem(&slim_bound, &out);
}

/*
 * For a source-bound connection of which no TCP_CLOSE callback will come: its socket
 * connects or listens again, was closed before its SYN left, or found no route.
 */
slim_verified_once int
slim_bound_let_go(const struct slim_control *control, struct slim_socket *socket)
{
	if (!control || !socket)
		return 0;
	if (!(socket->flags & SLIM_SOCKET_SOURCE_BOUND))
		return 0;
	if (socket->flags & SLIM_SOCKET_ESTABLISHED)
		slim_bound_close(control, socket, true);
	else
		slim_bound_delete(control, socket);
	socket->flags &= ~SLIM_SOCKET_SOURCE_BOUND;
	return 0;
}

/*
 * May the record of a closed connection make room? Its own endpoint's may as
 * soon as this host is out of TIME_WAIT: the peer takes a SYN of the same
 * source that is newer (RFC 6191). For another endpoint's SYN it is not, since
 * sequence numbers and timestamps are made from the inner address.
 */
static __always_inline bool
slim_bound_is_free(const struct slim_bound *old, __be32 inner, __u64 now)
{
	if (!old->closed)
		return false;
	/* Signed: it may have been closed after `now`. */
	return (old->address == inner && !old->waiting) ||
	       (__s64)(now - old->closed) > (__s64)SLIM_BOUND_LINGER;
}

/* Takes the `turn`th of the source-bound wire ports to `socket->underlay`, if it is free. */
slim_verified_once int
slim_bound_try(const struct slim_control *control, struct slim_socket *socket, __u32 turn)
{
	struct slim_bound to_inner = {}, to_underlay = {};
	struct slim_tuple out, in;
	struct slim_bound *old;

	if (!control || !socket)
		return -1;
	/* Endpoints start at different ports, and so mostly find the first one free. */
	socket->underlay_port = bpf_htons(slim_fixed.wire_port + SLIM_WIRE_PORTS +
					  ((socket->index + turn) & (SLIM_BOUND_PORTS - 1)));
	slim_bound_keys(control, socket, &out, &in);
	to_inner.address = out.source[3];
	to_inner.port = out.source_port;
	to_underlay.address = control->underlay[3];
	to_underlay.port = socket->bound_port;
	old = bpf_map_lookup_elem(&slim_bound, &in);
	if (old && slim_bound_is_free(old, out.source[3], bpf_ktime_get_ns())) {
		out.source[3] = old->address;
		bpf_map_delete_elem(&slim_bound, &out);
		slim_bound_drop(&in, out.source[3]);
		out.source[3] = to_inner.address;
	}
	if (bpf_map_update_elem(&slim_bound, &in, &to_inner, BPF_NOEXIST))
		return 0;
	if (!bpf_map_update_elem(&slim_bound, &out, &to_underlay, BPF_ANY)) {
		slim_bound_add(socket->index);
		return 1;
	}
	bpf_map_delete_elem(&slim_bound, &in);
	return -1;
}

/* Takes the connection's name in the overlay, or gives it back; not 0: it is another's. */
slim_verified_once int slim_bound_name(const struct slim_socket *socket, __u32 takes)
{
	struct slim_bound bound = {};
	struct slim_tuple key;

	if (!socket)
		return -1;
	slim_bound_overlay_key(socket, &key);
	return takes ? bpf_map_update_elem(&slim_bound, &key, &bound, BPF_NOEXIST) :
		       bpf_map_delete_elem(&slim_bound, &key);
}

/* Takes any of them. No frame to speak of, for connect's stack is full. */
slim_verified_once int
slim_bound_take(const struct slim_control *control, struct slim_socket *socket)
{
	int taken = 0;

	if (!control || !socket || !slim_bound_may(socket->index) || slim_bound_name(socket, true))
		return -1;
	for (int i = 0; i < SLIM_BOUND_PORTS && !taken; i++)
		taken = slim_bound_try(control, socket, i);
	if (taken > 0) {
		socket->flags |= SLIM_SOCKET_SOURCE_BOUND;
		return 0;
	}
	slim_bound_name(socket, false);
	return -1;
}

/* What listens at an inner address. */
struct slim_found {
	__u32 inner;
	__u32 v6only;		/* as in struct slim_listener_key */
	__u32 found;
	__u32 flags;		/* enum slim_socket_flag */
	__u32 family;
	__u32 direct;		/* the kernel's own look-up finds it */
};

static __always_inline void
slim_found_fill(struct slim_found *found, const struct slim_listener_key *key,
		struct bpf_sock *sk, __u32 endpoint, __u32 direct)
{
	struct slim_socket *socket = bpf_sk_storage_get(&slim_socket, sk, NULL, 0);

	if (!socket || socket->endpoint != endpoint || !slim_listens_at(key, sk, socket))
		return;
	found->found = 1;
	found->flags = socket->flags;
	found->family = sk->family;
	found->direct = direct;
}

/*
 * The listener of one endpoint at one inner address. The SOCKHASH forgets a
 * reuseport group when the member that it holds closes; then the kernel's own
 * look-up still finds the others.
 */
slim_verified_once int
slim_find_listener(struct bpf_sock_addr *ctx, __u32 inner, __u32 v6only, __u32 endpoint,
		   struct slim_found *found)
{
	struct slim_listener_key key = { .inner = inner, .v6only = v6only };
	struct bpf_sock *sk;

	if (!found)
		return 0;
	found->inner = inner;
	found->v6only = v6only;
	found->found = 0;
	found->flags = 0;
	found->family = 0;
	found->direct = 0;
	sk = bpf_map_lookup_elem(&slim_listener, &key);
	if (sk) {
		slim_found_fill(found, &key, sk, endpoint, 0);
		bpf_sk_release(sk);
		if (found->found)
			return 1;
	}
	if (v6only)
		return 0;
	{
		struct bpf_sock_tuple tuple = {
			.ipv4.daddr = slim_inner_v4(inner),
			.ipv4.dport = bpf_htons(SLIM_INNER_PORT),
		};

		sk = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
		if (sk) {
			slim_found_fill(found, &key, sk, endpoint, 1);
			bpf_sk_release(sk);
		}
	}
	return found->found;
}

/* How an endpoint is reached on its own host. */
enum slim_reach {
	SLIM_REACH_LOOPBACK = 1,	/* by its loopback */
	SLIM_REACH_V6 = 2,		/* by ::1 */
};

/*
 * Who answers for an endpoint at `inner`, which is not of its loopback. ::1 reaches
 * AF_INET6 listeners only, as it does on any host.
 */
slim_verified_once int
slim_dial_listener(struct bpf_sock_addr *ctx, __u32 inner, __u32 endpoint, __u32 reach,
		   struct slim_found *found)
{
	const __u32 own_loopback = inner | SLIM_INNER_LOOPBACK;

	if (!found)
		return 0;
	if (reach & SLIM_REACH_V6) {
		if (slim_find_listener(ctx, own_loopback, 1, endpoint, found))
			return 1;
		if (slim_find_listener(ctx, inner, 1, endpoint, found) &&
		    found->flags & SLIM_SOCKET_WILDCARD)
			return 1;
		return slim_find_listener(ctx, inner, 0, endpoint, found) &&
		       found->flags & SLIM_SOCKET_WILDCARD && found->family == AF_INET6;
	}
	if (!(reach & SLIM_REACH_LOOPBACK))
		return slim_find_listener(ctx, inner, 0, endpoint, found);
	if (slim_find_listener(ctx, own_loopback, 0, endpoint, found))
		return 1;
	return slim_find_listener(ctx, inner, 0, endpoint, found) &&
	       found->flags & SLIM_SOCKET_WILDCARD;
}

static __always_inline int slim_dial_refuse(struct slim_dial *dial, __u32 reason, int error)
{
	return slim_way_refuse(&dial->way, reason, error);
}

/* The socket's storage, as this connect wants it. */
static __always_inline struct slim_socket *
slim_dial_socket(struct slim_dial *dial, const __be32 *local)
{
	struct slim_socket *socket = dial->socket;

	if (!socket) {
		socket = bpf_sk_storage_get(&slim_socket, dial->sk, NULL,
					    BPF_SK_STORAGE_GET_F_CREATE);
		if (!socket)
			return NULL;
		socket->endpoint = dial->local->endpoint;
		socket->index = dial->local->index;
		socket->flags = SLIM_SOCKET_WILDCARD;
	}
	if (socket->flags & SLIM_SOCKET_WILDCARD)
		slim_copy(socket->local, local);
	slim_copy(socket->peer, dial->dialled.aim.address);
	socket->peer_port = dial->dialled.aim.port;
	socket->target_port = dial->way.target.port;
	socket->peer_endpoint = dial->way.target.endpoint;
	socket->rule = dial->way.rule;
	socket->peer_rule = dial->way.peer_rule;
	if (dial->way.target.service)
		socket->flags |= SLIM_SOCKET_SERVICE;
	socket->generation = dial->state.active >> 1;
	return socket;
}

/* Binds to `source`, or for 0 to whatever the route says, and to no port. */
static __always_inline int
slim_dial_source(struct bpf_sock_addr *ctx, const struct slim_dial *dial, __be32 source)
{
	if (dial->v6) {
		struct slim_name6 name = { .family = AF_INET6 };

		if (source)
			slim_map_v4(name.address, source);
		return bpf_bind(ctx, (struct sockaddr *)&name, sizeof(name));
	} else {
		struct sockaddr_in name = {
			.sin_family = AF_INET,
			.sin_addr.s_addr = source,
		};

		return bpf_bind(ctx, (struct sockaddr *)&name, sizeof(name));
	}
}

/*
 * Take off the inner source address that an earlier connect of this socket bound on
 * its way to an endpoint of this host: tcp_disconnect() keeps a bound address
 * (SOCK_BINDADDR_LOCK), and to another host it would be no source.
 */
static __always_inline void
slim_dial_unbind(struct bpf_sock_addr *ctx, const struct slim_dial *dial)
{
	struct bpf_sock *sk = dial->sk;

	if (dial->socket && !sk->src_port && slim_in_range_v4(sk->src_ip4))
		slim_dial_source(ctx, dial, 0);
}

/*
 * The way to another host is one of its wire ports, and on this host one of many inner
 * source addresses. The kernel gives live sockets on one way different source ports; to
 * be found at once there must be some that neither live nor wait (TIME_WAIT). So an
 * endpoint takes the next way after a turn of connects, unless they took so long that
 * those who waited are gone.
 */
slim_verified_once int
slim_dial_turn(const struct slim_control *control, __u32 index, __u64 time)
{
	struct slim_usage *usage = slim_usage_get(index);
	__u32 now = (__u32)(time >> 30), turn;

	if (!control || !usage)
		return 0;
	turn = control->wire_turn ?: SLIM_WIRE_TURN;
	if (usage->connects >= turn) {
		usage->turn++;
		usage->connects = 0;
		usage->turned = now;
	} else if (now - usage->turned > SLIM_LINGER_SECONDS && usage->connects < turn / 2) {
		usage->connects = 0;
		usage->turned = now;
	}
	usage->connects++;
	return usage->turn;
}


/* Has the kernel's socket connect to an inner address, in the one form or the other. */
static __always_inline void
slim_dial_inner(struct slim_dial *dial, const struct slim_control *control, bool six, __u32 inner)
{
	if (six) {
		dial->to[0] = control->range6[0];
		dial->to[1] = control->range6[1];
		dial->to[2] = 0;
		dial->to[3] = bpf_htonl(inner);
	} else {
		slim_map_v4(dial->to, slim_inner_v4(inner));
	}
	dial->to_port = bpf_htons(SLIM_INNER_PORT);
	dial->rewrite = 1;
}

/* To a listener on this host: over loopback, inner address to inner address. */
static __always_inline int
slim_dial_same_host(struct bpf_sock_addr *ctx, struct slim_dial *dial, __u32 index,
		    bool loopback)
{
	struct slim_control *control = dial->state.control;
	struct slim_socket *socket;
	struct slim_found found;
	__be32 *local = dial->to;	/* until that is written: the verifier counts the stack */
	bool v6 = loopback && !slim_is_mapped(dial->dialled.aim.address);
	bool six = false;	/* by the IPv6 form of the inner address */

	if (!slim_dial_listener(ctx, slim_inner(false, index, dial->way.target.port),
				dial->way.target.endpoint,
				(loopback ? SLIM_REACH_LOOPBACK : 0) | (v6 ? SLIM_REACH_V6 : 0),
				&found))
		return slim_dial_refuse(dial, SLIM_REASON_SYN_NO_LISTENER, ECONNREFUSED);

	if (v6) {
		dial->dialled.aim.address[0] = 0;
		dial->dialled.aim.address[1] = 0;
		dial->dialled.aim.address[2] = 0;
	}
	if (loopback && slim_is_any(dial->dialled.aim.address)) {
		/* connect() to the wildcard is a connect to loopback */
		dial->dialled.aim.address[3] = v6 ? bpf_htonl(1) : bpf_htonl(0x7f000001);
	}
	if (loopback)
		slim_copy(local, dial->dialled.aim.address);
	else
		slim_copy(local, dial->local->address);
	if (loopback && !v6)
		local[3] = bpf_htonl(0x7f000001);

	/*
	 * sk_lookup gives the listener either form, unless IPV6_V6ONLY is set on it. So the
	 * client's socket decides where it can have one form only: that of the inner address
	 * that it is bound to, or IPv6 with IPV6_V6ONLY. For that one a member of a reuseport
	 * group that the SOCKHASH has forgotten is out of reach.
	 */
	if (v6) {
		six = found.v6only ? !(dial->socket && dial->socket->flags & SLIM_SOCKET_BOUND) :
			       slim_is_v6only(dial->sk);
		if (six && found.direct)
			return slim_dial_refuse(dial, SLIM_REASON_SYN_NO_LISTENER, ECONNREFUSED);
	}

	/*
	 * Bind the source to an inner address of the endpoint. Not of the IPv6 form: none of
	 * that range can be bound. There the kernel picks ::1, which serves as well, since
	 * the names are in the flow record.
	 */
	if (!six && !(dial->socket && slim_alias_is_fixed(dial->socket))) {
		__u16 turn = slim_dial_turn(control, dial->local->index, dial->dialled.aim.now) &
			     (SLIM_WIRE_PORTS - 1);
		__be32 source = slim_inner_v4(slim_inner(false, dial->local->index,
							 bpf_htons(turn)));

		if (slim_dial_source(ctx, dial, source))
			return slim_dial_refuse(dial, SLIM_REASON_FOREIGN_ADDRESS, EADDRNOTAVAIL);
	}
	socket = slim_dial_socket(dial, local);
	if (!socket)
		return slim_dial_refuse(dial, SLIM_REASON_FLOW_FULL, EADDRNOTAVAIL);
	socket->dialled = found.inner;
	socket->flow_flags = SLIM_FLOW_SAME_HOST | (loopback ? SLIM_FLOW_LOOPBACK : 0) |
			     (found.v6only ? SLIM_FLOW_V6ONLY : 0) |
			     (found.direct ? SLIM_FLOW_DIRECT : 0);
	if (slim_alias_clashes(socket, dial->sk->src_port))
		return slim_dial_refuse(dial, SLIM_REASON_BOUND_FULL, EADDRNOTAVAIL);
	socket->flags |= SLIM_SOCKET_SAME_HOST;

	slim_dial_inner(dial, control, six, found.inner);
	return 0;
}

/* As slim_remote_find(). A frame of its own, for the stack. */
slim_verified_once int slim_dial_remote(struct slim_socket *socket)
{
	struct slim_remote_key key = {};
	struct slim_remote at = {};
	int error;

	if (!socket)
		return EHOSTUNREACH;
	slim_copy(key.host, socket->underlay);
	key.endpoint = socket->peer_endpoint;
	key.port = socket->target_port;
	error = slim_remote_find(&key, &at);
	if (!error)
		socket->underlay_port = at.port;
	return error;
}

/*
 * An endpoint of this host with a network namespace of its own is behind its router: 0, or
 * negative where there is none. A frame of its own, for the stack.
 */
slim_verified_once int slim_dial_near(struct slim_socket *socket)
{
	const struct slim_device *device;
	const __u32 *number;
	__u32 key;

	if (!socket)
		return -1;
	key = socket->peer_endpoint;
	number = bpf_map_lookup_elem(&slim_apart, &key);
	if (!number)
		return -1;
	key = *number;
	device = bpf_map_lookup_elem(&slim_device, &key);
	if (!device)
		return -1;
	slim_map_v4(socket->underlay, device->near);
	return 0;
}

/*
 * Which port of `socket->underlay` leads to an endpoint with these flags: one of the wire
 * ports, or, where its host speaks wire announce, what that has told of. There no packet
 * is rewritten, so none leaves with a bound port. Answers 0 or the reason why none does.
 * That of a bound socket is slim_bound_take()'s to say.
 */
slim_verified_once int
slim_dial_underlay_port(const struct slim_control *control, struct slim_socket *socket,
			__u32 flags, __u64 now)
{
	int error;

	if (!control || !socket)
		return SLIM_REASON_NO_TABLES;
	if (flags & SLIM_ENDPOINT_LOCAL && slim_dial_near(socket))
		return SLIM_REASON_SYN_NO_LISTENER;
	if (!(flags & SLIM_ENDPOINT_WIRE_SYN)) {
		error = slim_dial_remote(socket);
		if (error)
			return error == ECONNREFUSED ? SLIM_REASON_SYN_NO_LISTENER :
						       SLIM_REASON_UNREACHABLE;
		if (socket->flags & SLIM_SOCKET_BOUND)
			return SLIM_REASON_BOUND_FULL;
		socket->flags |= SLIM_SOCKET_ANNOUNCED;
	} else if (!(socket->flags & SLIM_SOCKET_BOUND)) {
		__u32 turn = socket->peer_endpoint + bpf_ntohs(socket->target_port) +
			     slim_dial_turn(control, socket->index, now);

		socket->underlay_port =
			bpf_htons(slim_fixed.wire_port + (turn & (SLIM_WIRE_PORTS - 1)));
	}
	socket->flags |= SLIM_SOCKET_WIRE;
	return SLIM_REASON_NONE;
}

/* To another host, or behind a router of this one. */
static __always_inline int
slim_dial_wire(struct bpf_sock_addr *ctx, struct slim_dial *dial,
	       const struct slim_endpoint *peer)
{
	struct slim_socket *socket;
	__u32 reason;

	socket = slim_dial_socket(dial, dial->local->address);
	if (!socket)
		return slim_dial_refuse(dial, SLIM_REASON_FLOW_FULL, EADDRNOTAVAIL);
	if (slim_alias_clashes(socket, dial->sk->src_port))
		return slim_dial_refuse(dial, SLIM_REASON_BOUND_FULL, EADDRNOTAVAIL);
	slim_copy(socket->underlay, peer->host);
	reason = slim_dial_underlay_port(dial->state.control, socket, peer->flags,
					 dial->dialled.aim.now);
	if (!reason && socket->flags & SLIM_SOCKET_BOUND &&
	    slim_bound_take(dial->state.control, socket))
		reason = SLIM_REASON_BOUND_FULL;
	if (reason) {
		/* Its host has told of no such listener: it is heard of there. */
		if (reason == SLIM_REASON_SYN_NO_LISTENER && !(peer->flags & SLIM_ENDPOINT_LOCAL))
			dial->way.direction = SLIM_INGRESS;
		return slim_dial_refuse(dial, reason,
					reason == SLIM_REASON_SYN_NO_LISTENER ? ECONNREFUSED :
					reason == SLIM_REASON_BOUND_FULL ? EADDRNOTAVAIL :
									   EHOSTUNREACH);
	}
	if (!(socket->flags & SLIM_SOCKET_BOUND))
		slim_dial_unbind(ctx, dial);
	slim_copy(dial->to, socket->underlay);
	dial->to_port = socket->underlay_port;
	dial->rewrite = 1;
	return 0;
}

/* To an address outside of every overlay: as the host itself would. */
static __always_inline int
slim_dial_outside(struct bpf_sock_addr *ctx, struct slim_dial *dial)
{
	struct slim_socket *socket = dial->socket;

	slim_dial_unbind(ctx, dial);
	socket = slim_dial_socket(dial, dial->local->address);
	if (!socket)
		return slim_dial_refuse(dial, SLIM_REASON_FLOW_FULL, EADDRNOTAVAIL);
	socket->flags |= SLIM_SOCKET_OUTSIDE;
	return 0;
}

/*
 * An earlier connect on this socket is over: nothing that it decided may
 * serve this one.
 */
slim_verified_once int
slim_dial_forget(const struct slim_control *control, struct slim_socket *socket, __u32 port)
{
	if (!socket)
		return 0;
	if (!port) {
		/*
		 * The socket has no port, so what is kept of a bind is out of date: the
		 * bind failed behind its hook, or the port went with an earlier connection.
		 */
		if (socket->flags & (SLIM_SOCKET_BOUND | SLIM_SOCKET_ACCEPTED))
			socket->flags = SLIM_SOCKET_WILDCARD;
		socket->flags &= ~SLIM_SOCKET_ANY_PORT;
		socket->local_port = 0;
	}
	slim_bound_let_go(control, socket);
	slim_socket_forget(socket);
	return 0;
}

/*
 * The kernel is going to take a port of the host for this connect, whatever its
 * destination is. What is left when endpoints have all they get is the host's.
 */
static __always_inline int slim_dial_port(struct slim_dial *dial)
{
	if (dial->sk->src_port ||
	    slim_port_may(dial->local->index, dial->state.control->port_room))
		return 0;
	return slim_dial_refuse(dial, SLIM_REASON_PORT_LIMIT, EADDRNOTAVAIL);
}

static __always_inline __u8 slim_dial_source_kind(const struct slim_socket *socket)
{
	if (socket && socket->flags & SLIM_SOCKET_LOOPBACK)
		return SLIM_SOURCE_LOOPBACK;
	return socket && socket->flags & SLIM_SOCKET_BOUND ? SLIM_SOURCE_PORT : SLIM_SOURCE_ANY;
}

/* Asks what becomes of it (way.h), and carries that out. */
static __always_inline int
slim_dial(struct bpf_sock_addr *ctx, struct slim_dial *dial, const bool connects)
{
	struct slim_way *way = &dial->way;
	struct slim_inner_range range;
	int error;

	if (!slim_state_get(&dial->state) || !dial->local->endpoint)
		return slim_dial_refuse(dial, SLIM_REASON_NO_TABLES, EACCES);
	if (dial->socket)
		slim_dial_forget(dial->state.control, dial->socket, dial->sk->src_port);
	dial->dialled.source = slim_dial_source_kind(dial->socket);
	dial->dialled.aim.now = bpf_ktime_get_ns();
	dial->dialled.aim.vni = dial->local->vni;
	dial->dialled.aim.client = dial->local->endpoint;
	dial->dialled.aim.dialled = 1;
	dial->dialled.aim.random = bpf_get_prandom_u32();
	range = slim_inner_range(dial->state.control);
	error = slim_way(&dial->state, &range, slim_fixed.wire_port, &dial->dialled, way);
	if (error)
		return error;
	/*
	 * What says there whose a packet is, is the packet: from the host's address, which this
	 * socket has, it would be any endpoint's of this host (RFC 7348, section 7).
	 */
	if (!dial->dialled.stream && way->target.flags & SLIM_CIDR_HOST &&
	    dial->dialled.aim.port == bpf_htons(slim_fixed.vxlan_port))
		return slim_dial_refuse(dial, SLIM_REASON_WIRE_PORT, EACCES);
	if (!connects || !dial->dialled.stream) {
		/*
		 * Since it was connected to nowhere it has an inner address as its source, which
		 * stays until connect(2) to AF_UNSPEC, as 127.0.0.1 does on any host: EINVAL there.
		 */
		if (connects && slim_in_range_v4(dial->sk->src_ip4))
			return slim_dial_refuse(dial, SLIM_REASON_FOREIGN_ADDRESS, EINVAL);
		slim_count(way->reason);
		return 0;
	}
	error = slim_dial_port(dial);
	if (error)
		return error;
	slim_count(way->reason);
	if (way->kind == SLIM_WAY_SELF)
		return slim_dial_same_host(ctx, dial, dial->local->index, true);
	if (!way->target.peer)
		return slim_dial_outside(ctx, dial);
	if (way->kind == SLIM_WAY_WIRE)
		return slim_dial_wire(ctx, dial, way->target.peer);
	slim_count(way->peer_reason);
	if (!way->target.peer->index)
		return slim_dial_wire(ctx, dial, way->target.peer);
	return slim_dial_same_host(ctx, dial, way->target.peer->index, false);
}

/*
 * A datagram socket connects where it may send nothing (way.h). No hook sees what
 * a connected one sends, so the kernel's socket gets an inner address as its peer
 * that nobody listens at: sk_lookup refuses what is sent, tells it, and the kernel
 * answers with an ICMP error, ECONNREFUSED. The address has in place of a port
 * what tells the endpoint's sockets apart.
 */
static __noinline int
slim_dial_nowhere(struct bpf_sock_addr *ctx, struct slim_dial *dial)
{
	const struct slim_control *control = dial->state.control;
	const __u32 inner = slim_inner(true, dial->local->index,
				       (__be16)bpf_get_socket_cookie(ctx));
	struct slim_nowhere nowhere = {
		.endpoint = dial->local->endpoint,
		.index = dial->local->index,
		.peer = dial->way.target.endpoint,
		.reason = dial->way.reason,
		.rule = dial->way.rule,
		.port = dial->dialled.aim.port,
		.error = (__u16)dial->way.error,
	};

	slim_copy(nowhere.source, dial->local->address);
	slim_copy(nowhere.destination, dial->dialled.aim.address);
	/* There are tables, or it were not refused later; the verifier of Linux 6.1 does not see it. */
	if (!control || bpf_map_update_elem(&slim_nowhere, &inner, &nowhere, BPF_ANY))
		return dial->way.error;
	slim_dial_inner(dial, control, dial->v6 && !slim_is_mapped(dial->dialled.aim.address), inner);
	return 0;
}

/*
 * Is it what a socket sends that is connected to nowhere? An AF_INET6 one with an IPv4
 * peer sends by udp_sendmsg() to an address, so that the hook is asked after all.
 */
static __always_inline bool slim_dial_goes_nowhere(struct slim_dial *dial)
{
	const __u32 inner = slim_inner_of(dial->dialled.aim.address[3]);
	const struct slim_nowhere *nowhere;

	if (dial->dialled.aim.port != bpf_htons(SLIM_INNER_PORT) ||
	    !slim_in_range_v4(dial->dialled.aim.address[3]))
		return false;
	nowhere = bpf_map_lookup_elem(&slim_nowhere, &inner);
	if (!nowhere || nowhere->endpoint != dial->local->endpoint)
		return false;
	slim_copy(dial->dialled.aim.address, nowhere->destination);
	dial->dialled.aim.port = nowhere->port;
	dial->way.target.endpoint = nowhere->peer;
	dial->way.rule = nowhere->rule;
	slim_dial_refuse(dial, nowhere->reason, nowhere->error);
	return true;
}

/* The kernel's own types, as in bind.h. */
struct ipcm_cookie {
	__be32 addr;
	int oif;
} __attribute__((preserve_access_index));
struct bpf_sock_addr_kern {
	void *t_ctx;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *object) __ksym __weak;	/* Linux 6.2 */

/*
 * Does this datagram's control data (ip(7), IP_PKTINFO) name a device? That is
 * another way than the route's. The hook's context does not say, but udp_sendmsg()
 * runs it on the address in its struct ipcm_cookie, which does. What else control
 * data may bring is seen as it leaves (guard.h).
 */
static __always_inline bool slim_dial_leads_around(struct bpf_sock_addr *ctx)
{
	struct bpf_sock_addr_kern *kernel;
	struct ipcm_cookie *cookie;

	/* Set by the loader: libbpf before 1.2 cannot ask for a kfunc's address. */
	if (!slim_fixed.casts)
		return false;
	kernel = bpf_cast_to_kern_ctx(ctx);
	cookie = kernel->t_ctx - bpf_core_field_offset(struct ipcm_cookie, addr);
	return BPF_CORE_READ(cookie, oif);
}

static __always_inline int slim_dial_refused(const struct slim_dial *dial)
{
	const struct slim_call call = {
		.reason = dial->way.reason,
		.rule = dial->way.rule,
		.peer = dial->way.target.endpoint,
		.protocol = dial->dialled.aim.protocol,
		.direction = (__u8)dial->way.direction,
		.port = dial->dialled.aim.port,
	};

	if (dial->way.direction != SLIM_INGRESS ||
	    !slim_remote_refused(&dial->way, dial->local->endpoint))
		slim_refuse(dial->local, dial->dialled.aim.address, &call);
	return slim_errno(dial->way.error);
}

/* `connects` is false for sendto(2), which only ever carries datagrams. */
static __always_inline int
slim_dial_hook(struct bpf_sock_addr *ctx, const bool v6, const bool connects)
{
	struct slim_dial dial = {
		.local = bpf_get_local_storage(&slim_cgroup, 0),
		.sk = SLIM_CTX_SK(ctx),
		.dialled.aim.port = (__be16)ctx->user_port,
		.dialled.aim.protocol = (__u8)ctx->protocol,
		.way.direction = SLIM_EGRESS,
		.v6 = v6,
	};
	__be32 *address = dial.dialled.aim.address;
	int error;

	if (v6) {
		address[0] = ctx->user_ip6[0];
		address[1] = ctx->user_ip6[1];
		address[2] = ctx->user_ip6[2];
		address[3] = ctx->user_ip6[3];
	} else {
		slim_map_v4(address, ctx->user_ip4);
	}
	if (!dial.sk)
		return slim_errno(EINVAL);
	if (!connects) {
		if (!v6 && slim_dial_leads_around(ctx)) {
			slim_dial_refuse(&dial, SLIM_REASON_OPTION, EPERM);
			return slim_dial_refused(&dial);
		}
		/* IP_PKTINFO named a source: the route chooses it, as for everybody. */
		if (v6) {
			ctx->msg_src_ip6[0] = 0;
			ctx->msg_src_ip6[1] = 0;
			ctx->msg_src_ip6[2] = 0;
			ctx->msg_src_ip6[3] = 0;
		} else {
			ctx->msg_src_ip4 = 0;
		}
		/*
		 * sendmsg(2) without an address, on a connected socket and with control data:
		 * the hook runs for the data; where it goes was decided at connect.
		 */
		if (!dial.dialled.aim.port)
			return SLIM_HOOK_ALLOW;
		if (!v6 && slim_dial_goes_nowhere(&dial))
			return slim_dial_refused(&dial);
	}
	if (connects && dial.dialled.aim.protocol == IPPROTO_TCP) {
		dial.dialled.stream = 1;
		dial.socket = bpf_sk_storage_get(&slim_socket, dial.sk, NULL, 0);
	}
	error = slim_dial(ctx, &dial, connects);
	if (error && connects && !dial.dialled.stream && slim_way_is_refused_later(&dial.way))
		error = slim_dial_nowhere(ctx, &dial);
	if (error) {
		/* Whatever else is in the way, it cannot get there. */
		if (v6 && slim_is_mapped(address) && slim_is_v6only(dial.sk))
			slim_dial_refuse(&dial, SLIM_REASON_FAMILY, ENETUNREACH);
		return slim_dial_refused(&dial);
	}
	if (!dial.rewrite)
		return SLIM_HOOK_ALLOW;
	if (v6) {
		ctx->user_ip6[0] = dial.to[0];
		ctx->user_ip6[1] = dial.to[1];
		ctx->user_ip6[2] = dial.to[2];
		ctx->user_ip6[3] = dial.to[3];
	} else {
		ctx->user_ip4 = dial.to[3];
	}
	ctx->user_port = dial.to_port;
	return SLIM_HOOK_ALLOW;
}

/* close(2) of the last descriptor. */
static __always_inline int slim_release(struct bpf_sock *sk)
{
	struct slim_socket *socket;
	struct slim_state state;

	if (sk->protocol == IPPROTO_UDP) {
		slim_datagram_close();
		return SLIM_HOOK_ALLOW;
	}
	socket = bpf_sk_storage_get(&slim_socket, sk, NULL, 0);
	if (!socket)
		return SLIM_HOOK_ALLOW;
	slim_uncount(socket);
	/* A connect that found no route had no SYN, and will have no TCP_CLOSE. */
	if (socket->flags & SLIM_SOCKET_SOURCE_BOUND &&
	    !(socket->flags & SLIM_SOCKET_ESTABLISHED) && slim_state_get(&state))
		slim_bound_let_go(state.control, socket);
	return SLIM_HOOK_ALLOW;
}

#endif /* SLIMNET_CONNECT_H */
