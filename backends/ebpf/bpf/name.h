/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * getsockname(2), getpeername(2) and the address that accept(2) returns: what
 * a container would see.
 *
 * The kernel's own answer leaves here in two cases only: the wildcard, and the
 * peer of a connection from or to outside of the overlay. All else is written
 * from what the hooks know of the socket, and what they do not know is zero.
 */
#ifndef SLIMNET_NAME_H
#define SLIMNET_NAME_H

#include "bind.h"

static __always_inline void
slim_name_write(struct bpf_sock_addr *ctx, bool v6, const __be32 *address)
{
	if (v6) {
		ctx->user_ip6[0] = address[0];
		ctx->user_ip6[1] = address[1];
		ctx->user_ip6[2] = address[2];
		ctx->user_ip6[3] = address[3];
	} else if (slim_is_mapped(address)) {
		ctx->user_ip4 = address[3];
	} else {
		/* ::1 and :: on an AF_INET socket */
		ctx->user_ip4 = address[3] ? bpf_htonl(0x7f000001) : 0;
	}
}

/* As the kernel has it. */
static __always_inline void
slim_name_read(struct bpf_sock_addr *ctx, bool v6, __be32 *address)
{
	if (!v6) {
		slim_map_v4(address, SLIM_CTX(ctx, user_ip4));
		return;
	}
	address[0] = SLIM_CTX(ctx, user_ip6[0]);
	address[1] = SLIM_CTX(ctx, user_ip6[1]);
	address[2] = SLIM_CTX(ctx, user_ip6[2]);
	address[3] = SLIM_CTX(ctx, user_ip6[3]);
}

/*
 * Is a UDP socket connected to nowhere (connect.h) that has `kernel` as its peer?
 * Then `name` is what was dialled; connect() to the wildcard is a connect to loopback.
 */
static __always_inline bool
slim_name_nowhere(const __be32 *kernel, struct slim_nowhere *name)
{
	const __u32 inner = slim_inner_of(kernel[3]);
	const struct slim_nowhere *nowhere;
	struct slim_state state;

	if (!slim_state_get(&state) || !slim_in_range(state.control, kernel))
		return false;
	nowhere = bpf_map_lookup_elem(&slim_nowhere, &inner);
	if (nowhere)
		*name = *nowhere;
	if (nowhere && slim_is_any(name->destination))
		name->destination[3] = slim_is_mapped(kernel) ? bpf_htonl(0x7f000001) :
								bpf_htonl(1);
	return true;
}

/* The port of a wire, or of inner addresses: no endpoint's socket is at one. */
static __always_inline bool slim_is_reserved(__be16 port)
{
	return slim_is_wire_port(port) || port == bpf_htons(SLIM_INNER_PORT);
}

static __always_inline int slim_name_own(struct bpf_sock_addr *ctx, bool v6)
{
	const bool stream = ctx->protocol == IPPROTO_TCP;
	__be16 port = (__be16)SLIM_CTX(ctx, user_port);
	struct slim_socket *socket = NULL;
	const struct slim_local *local;
	__be32 address[4] = {}, kernel[4];
	struct slim_nowhere nowhere = {};
	bool any;

	slim_name_read(ctx, v6, kernel);
	any = slim_is_any(kernel);
	if (stream)
		socket = bpf_sk_storage_get(&slim_socket, ctx->sk, NULL, 0);
	if (socket && socket->local_port && port)
		port = socket->local_port;
	else if (stream && slim_is_reserved(port))
		port = 0;	/* a closed child's, or one's without a flow record: a wire port */
	if (!socket) {
		if (any)
			return SLIM_HOOK_ALLOW;
		/*
		 * Nothing is kept of this socket: connected UDP, or a connect that failed. With
		 * a port it is at the endpoint's own address, or at the loopback that it dialled.
		 */
		local = bpf_get_local_storage(&slim_cgroup, 0);
		if (port)
			slim_copy(address, local->address);
		if (!stream && slim_is_loopback(kernel))
			return SLIM_HOOK_ALLOW;
		if (!stream && slim_name_nowhere(kernel, &nowhere) &&
		    slim_is_loopback(nowhere.destination))
			slim_map_v4(address, bpf_htonl(0x7f000001));
	} else if (!port && !(socket->flags & SLIM_SOCKET_ANY_PORT)) {
		/* Unbound: the address that the kernel has is left of an earlier connect. */
	} else if (!(socket->flags & SLIM_SOCKET_WILDCARD) ||
		   (port && !(any && !socket->local_port))) {
		slim_copy(address, socket->local);
	}
	slim_name_write(ctx, v6, address);
	if (stream)
		ctx->user_port = port;
	return SLIM_HOOK_ALLOW;
}

static __always_inline int slim_name_peer(struct bpf_sock_addr *ctx, bool v6)
{
	struct slim_socket *socket;

	if (ctx->protocol != IPPROTO_TCP) {
		struct slim_nowhere nowhere = {};
		__be32 kernel[4];

		slim_name_read(ctx, v6, kernel);
		if (!slim_name_nowhere(kernel, &nowhere))
			return SLIM_HOOK_ALLOW;		/* connected to the outside */
		slim_name_write(ctx, v6, nowhere.destination);
		ctx->user_port = nowhere.port;
		return SLIM_HOOK_ALLOW;
	}
	socket = bpf_sk_storage_get(&slim_socket, ctx->sk, NULL, 0);
	if (socket && socket->flags & (SLIM_SOCKET_OUTSIDE | SLIM_SOCKET_PUBLISHED))
		return SLIM_HOOK_ALLOW;
	if (socket) {
		slim_name_write(ctx, v6, socket->peer);
		ctx->user_port = socket->peer_port;
	} else {
		const __be32 any[4] = {};

		slim_name_write(ctx, v6, any);
		ctx->user_port = 0;
	}
	return SLIM_HOOK_ALLOW;
}

#endif /* SLIMNET_NAME_H */
