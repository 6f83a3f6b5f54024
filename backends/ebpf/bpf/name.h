/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * getsockname(2), getpeername(2) and the address that accept(2) returns: what
 * a container would see. No underlay or inner address ever leaves here.
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

static __always_inline bool slim_name_is_any(struct bpf_sock_addr *ctx, bool v6)
{
	if (!v6)
		return !ctx->user_ip4;
	return !ctx->user_ip6[0] && !ctx->user_ip6[1] && !ctx->user_ip6[3] &&
	       (!ctx->user_ip6[2] || ctx->user_ip6[2] == bpf_htonl(0xffff));
}

static __always_inline int slim_name_own(struct bpf_sock_addr *ctx, bool v6)
{
	struct slim_socket *socket = NULL;
	struct slim_local *local;

	if (ctx->protocol == IPPROTO_TCP)
		socket = bpf_sk_storage_get(&slim_socket, ctx->sk, NULL, 0);
	if (socket) {
		/* Neither bound nor connected, or no longer: the kernel says so. */
		if (!ctx->user_port && !(socket->flags & SLIM_SOCKET_ANY_PORT))
			return SLIM_HOOK_ALLOW;
		if (slim_name_is_any(ctx, v6) && !socket->local_port &&
		    socket->flags & SLIM_SOCKET_WILDCARD)
			return SLIM_HOOK_ALLOW;
		slim_name_write(ctx, v6, socket->local);
		if (socket->local_port && ctx->user_port)
			ctx->user_port = socket->local_port;
		return SLIM_HOOK_ALLOW;
	}
	if (slim_name_is_any(ctx, v6))
		return SLIM_HOOK_ALLOW;
	/* Connected to the outside: the kernel says the host's address. */
	local = bpf_get_local_storage(&slim_cgroup, 0);
	slim_name_write(ctx, v6, local->address);
	return SLIM_HOOK_ALLOW;
}

static __always_inline int slim_name_peer(struct bpf_sock_addr *ctx, bool v6)
{
	struct slim_socket *socket = NULL;

	if (ctx->protocol == IPPROTO_TCP)
		socket = bpf_sk_storage_get(&slim_socket, ctx->sk, NULL, 0);
	if (socket && socket->peer_endpoint) {
		slim_name_write(ctx, v6, socket->peer);
		ctx->user_port = socket->peer_port;
	}
	return SLIM_HOOK_ALLOW;
}

#endif /* SLIMNET_NAME_H */
