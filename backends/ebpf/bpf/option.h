/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Socket creation and socket options: what an endpoint may not have.
 */
#ifndef SLIMNET_OPTION_H
#define SLIMNET_OPTION_H

#include "bind.h"

#include <slimnet/sockopt.h>

/* Of linux/netfilter_ipv4.h and of newer kernels' linux/in.h. */
#define SO_ORIGINAL_DST 80
#define IP_PROTOCOL 52

#define SOCK_STREAM 1
#define SOCK_DGRAM 2

#define SLIM_OPTION_BUFFER 4096	/* what a sockopt program is given at the most */

/*
 * TCP and UDP, where there is an endpoint (dead.h). Everything else is a way around
 * (MPTCP, UDP-Lite, raw, ping, SCTP, ...).
 */
static __always_inline int slim_create(struct bpf_sock *sk)
{
	const struct slim_local *local = bpf_get_local_storage(&slim_cgroup, 0);

	if (!local->endpoint) {
		slim_count(SLIM_REASON_NO_TABLES);
		return slim_errno(EACCES);
	}
	if (sk->type == SOCK_STREAM && sk->protocol == IPPROTO_TCP)
		return SLIM_HOOK_ALLOW;
	if (sk->type == SOCK_DGRAM && sk->protocol == IPPROTO_UDP) {
		if (slim_datagram_open())
			return SLIM_HOOK_ALLOW;
		slim_count(SLIM_REASON_PORT_LIMIT);
		return slim_errno(ENOBUFS);
	}
	slim_count(SLIM_REASON_PROTOCOL);
	return slim_errno(EPROTONOSUPPORT);
}

/* A datagram's program is told no network namespace (guard.h), so its socket says it. */
static __always_inline int slim_create_elsewhere(struct bpf_sock *sk)
{
	struct slim_socket *socket;

	if (sk->type != SOCK_DGRAM)
		return SLIM_HOOK_ALLOW;
	socket = bpf_sk_storage_get(&slim_socket, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket)
		return slim_errno(ENOBUFS);
	socket->flags = SLIM_SOCKET_ELSEWHERE;
	return SLIM_HOOK_ALLOW;
}

/* Sockets of other families name nothing of the underlay (netlink's have filters, say). */
static __always_inline bool slim_option_is_inet(const struct bpf_sockopt *ctx)
{
	const struct bpf_sock *sk = ctx->sk;

	return sk && (sk->family == AF_INET || sk->family == AF_INET6);
}

static __always_inline bool slim_option_is_ulp(const struct bpf_sockopt *ctx)
{
	return ctx->level == SLIM_SOL_TCP && ctx->optname == TCP_ULP;
}

/* TCP_ULP: "tls" is the application's own business; "smc" leaves TCP, and so our hooks. */
static __always_inline bool slim_option_leaves_tcp(const struct bpf_sockopt *ctx)
{
	const char *value = ctx->optval;

	return (void *)(value + sizeof("tls")) > ctx->optval_end || value[0] != 't' ||
	       value[1] != 'l' || value[2] != 's' || (value[3] && ctx->optlen > 3);
}

/*
 * Swallowed as well: with these a UDP socket's bind(0) may be given the port of
 * a socket of the host that has them, and then hears and answers for it.
 */
static __always_inline bool slim_option_joins(const struct bpf_sockopt *ctx)
{
	return ctx->level == SOL_SOCKET &&
	       (ctx->optname == SO_REUSEADDR || ctx->optname == SO_REUSEPORT) &&
	       ctx->sk->protocol == IPPROTO_UDP;
}

/*
 * No application lifts what its endpoint is held to. Answers how long the value
 * is that the kernel must take from us; 0: it may take the caller's.
 */
static __always_inline __s32 slim_option_pace(struct bpf_sockopt *ctx)
{
	const struct slim_local *local = bpf_get_local_storage(&slim_cgroup, 0);
	__u32 pace = slim_pace(local->index);
	void *value = ctx->optval, *end = ctx->optval_end;

	if (!pace)
		return 0;
	if (value + sizeof(__u64) <= end) {
		if (*(__u64 *)value > pace)
			*(__u64 *)value = pace;
		return sizeof(__u64);
	}
	if (value + sizeof(__u32) <= end) {
		if (*(__u32 *)value > pace)
			*(__u32 *)value = pace;
		return sizeof(__u32);
	}
	return 0;
}

/*
 * The kernel hands a program the first page of a longer value, and takes the
 * caller's own buffer only where the program sets the length to 0 (struct
 * bpf_sockopt); then another thread may have written there since. So what was
 * looked at or changed here has a length of ours. For all else the caller's own
 * is taken, which saves the kernel a buffer for each call.
 */
static __always_inline int slim_option_set(struct bpf_sockopt *ctx)
{
	__s32 length = SLIM_CTX(ctx, optlen), ours = 0;

	if (slim_option_is_inet(ctx)) {
		if (slim_option_forbidden(ctx->level, ctx->optname) ||
		    (slim_option_is_ulp(ctx) && slim_option_leaves_tcp(ctx))) {
			slim_count(SLIM_REASON_OPTION);
			return slim_errno(EPERM);
		}
		if (slim_option_swallowed(ctx->level, ctx->optname) || slim_option_joins(ctx)) {
			ctx->optlen = -1;	/* the kernel does nothing */
			return SLIM_HOOK_ALLOW;
		}
		if (slim_option_is_ulp(ctx))
			ours = 3;
	}
	if (ctx->level == SOL_SOCKET && ctx->optname == SO_MAX_PACING_RATE)
		ours = slim_option_pace(ctx);
	if (!ours || length > SLIM_OPTION_BUFFER)
		ctx->optlen = ours;
	return SLIM_HOOK_ALLOW;
}

#define SLIM_IP_OPTIONS 40	/* bytes at the most, RFC 791 section 3.1 */

/*
 * An accepted socket has the IP options of its SYN, and in a record of the route
 * the host has written its own address. Zeros in their place are options that
 * say nothing (RFC 791, "End of Option List").
 */
static __always_inline int slim_option_no_options(struct bpf_sockopt *ctx)
{
	__u8 *value = ctx->optval;

	for (int i = 0; i < SLIM_IP_OPTIONS; i++) {
		if ((void *)(value + i + 1) > ctx->optval_end)
			break;
		value[i] = 0;
	}
	return SLIM_HOOK_ALLOW;
}

/* IP_PROTOCOL is the port of a socket that is not raw: the real one, which has another name. */
static __always_inline int slim_option_port(struct bpf_sockopt *ctx)
{
	struct slim_socket *socket = bpf_sk_storage_get(&slim_socket, ctx->sk, NULL, 0);
	__u32 *value = ctx->optval;

	if (!socket || !socket->local_port)
		return SLIM_HOOK_ALLOW;
	if ((void *)(value + 1) > ctx->optval_end)
		return slim_errno(EPERM);
	*value = bpf_ntohs(socket->local_port);
	return SLIM_HOOK_ALLOW;
}

/*
 * Connection tracking has told the underlay's addresses (SO_ORIGINAL_DST), and
 * they are in the caller's buffer by now: an error would leave them there. So
 * the answer is written over: nothing translates this connection's destination,
 * which is the name of the end that was dialled.
 */
static __always_inline int slim_option_destination(struct bpf_sockopt *ctx)
{
	struct slim_socket *socket = bpf_sk_storage_get(&slim_socket, ctx->sk, NULL, 0);
	const __be32 none[4] = {}, *address = none;
	__be16 port = 0;

	if (ctx->retval < 0)
		return SLIM_HOOK_ALLOW;		/* the kernel told nothing */
	if (socket) {
		const bool accepted = socket->flags & SLIM_SOCKET_ACCEPTED;

		address = accepted ? socket->local : socket->peer;
		port = accepted ? socket->local_port : socket->peer_port;
	}
	if (ctx->level == SLIM_SOL_IP) {
		struct sockaddr_in *name = ctx->optval;

		if ((void *)(name + 1) > ctx->optval_end)
			return slim_errno(EPERM);
		name->sin_port = port;
		name->sin_addr.s_addr = address[3];
	} else {
		struct slim_name6 *name = ctx->optval;

		if ((void *)(name + 1) > ctx->optval_end)
			return slim_errno(EPERM);
		name->port = port;
		slim_copy(name->address, address);
	}
	return SLIM_HOOK_ALLOW;
}

/* What the application asked for, or what its endpoint has at most: not the pace of this turn. */
static __always_inline void slim_option_own_pace(struct bpf_sockopt *ctx)
{
	struct slim_socket *socket = bpf_sk_storage_get(&slim_socket, ctx->sk, NULL, 0);
	void *value = ctx->optval, *end = ctx->optval_end;
	__u32 own;

	if (!socket || !socket->pace)
		return;
	own = slim_pace(socket->index);
	if (!own || socket->own_pace < own)
		own = socket->own_pace;
	if (ctx->optlen >= (__s32)sizeof(__u64) && value + sizeof(__u64) <= end)
		*(__u64 *)value = own;
	else if (value + sizeof(__u32) <= end)
		*(__u32 *)value = own;
}

static __always_inline int slim_option_get(struct bpf_sockopt *ctx)
{
	if (ctx->level == SOL_SOCKET && ctx->optname == SO_MAX_PACING_RATE) {
		slim_option_own_pace(ctx);
		return SLIM_HOOK_ALLOW;
	}
	if (slim_option_is_inet(ctx)) {
		if (ctx->optname == SO_ORIGINAL_DST &&
		    (ctx->level == SLIM_SOL_IP || ctx->level == SLIM_SOL_IPV6))
			return slim_option_destination(ctx);
		if (ctx->level == SLIM_SOL_IP && ctx->optname == IP_OPTIONS)
			return slim_option_no_options(ctx);
		if (ctx->level == SLIM_SOL_IP && ctx->optname == IP_PROTOCOL)
			return slim_option_port(ctx);
		if (slim_option_reveals(ctx->level, ctx->optname)) {
			slim_count(SLIM_REASON_OPTION);
			return slim_errno(EPERM);
		}
	}
	ctx->optlen = 0;	/* the kernel's answer stays, and is not copied once more */
	return SLIM_HOOK_ALLOW;
}

#endif /* SLIMNET_OPTION_H */
