/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Socket creation and socket options: what an endpoint may not have.
 */
#ifndef SLIMNET_OPTION_H
#define SLIMNET_OPTION_H

#include "bind.h"

#define SOL_IP 0
#define SOL_TCP 6
#define SOL_IPV6 41

#define SO_BROADCAST 6
#define SO_BINDTODEVICE 25
#define SO_MARK 36
#define SO_BINDTOIFINDEX 62
#define SO_ORIGINAL_DST 80
#define IPV6_2292PKTINFO 2
#define IPV6_2292PKTOPTIONS 6
#define IPV6_RECVPKTINFO 49
#define IPV6_RECVORIGDSTADDR 74
#define IPV6_TRANSPARENT 75
#define IPV6_UNICAST_IF 76

#define SOCK_STREAM 1
#define SOCK_DGRAM 2

#define SLIM_OPTION_BUFFER 4096	/* what a sockopt program is given at the most */

/* TCP and UDP. Everything else is a way around (MPTCP, UDP-Lite, raw, ping, SCTP, ...). */
static __always_inline int slim_create(struct bpf_sock *sk)
{
	if (sk->type == SOCK_STREAM && sk->protocol == IPPROTO_TCP)
		return SLIM_HOOK_ALLOW;
	if (sk->type == SOCK_DGRAM && sk->protocol == IPPROTO_UDP)
		return SLIM_HOOK_ALLOW;
	slim_count(SLIM_REASON_PROTOCOL);
	return slim_errno(EPROTONOSUPPORT);
}

static __always_inline bool slim_option_forbidden(__s32 level, __s32 name)
{
	switch (level) {
	case SOL_SOCKET:
		return name == SO_BINDTODEVICE || name == SO_BINDTOIFINDEX || name == SO_MARK ||
		       name == SO_BROADCAST;
	case SOL_IP:
		return name == IP_TRANSPARENT || name == IP_OPTIONS || name == IP_UNICAST_IF;
	case SOL_IPV6:
		return name == IPV6_TRANSPARENT || name == IPV6_UNICAST_IF;
	case SOL_TCP:
		return name == TCP_REPAIR;
	}
	return false;
}

/*
 * Swallowed, so that the kernel does nothing and the caller hears nothing of
 * it. Fast Open: a cached cookie would leave no room for our option in the
 * client's SYN. The others say with each datagram by which address of the host
 * it came in; who asks for that takes it as a hint and does without.
 */
static __always_inline bool slim_option_swallowed(__s32 level, __s32 name)
{
	switch (level) {
	case SOL_TCP:
		return name == TCP_FASTOPEN || name == TCP_FASTOPEN_CONNECT;
	case SOL_IP:
		return name == IP_PKTINFO || name == IP_RECVORIGDSTADDR;
	case SOL_IPV6:
		return name == IPV6_2292PKTINFO || name == IPV6_RECVPKTINFO ||
		       name == IPV6_RECVORIGDSTADDR;
	}
	return false;
}

/* No application lifts what its endpoint is held to. */
static __always_inline void slim_option_pace(struct bpf_sockopt *ctx)
{
	const struct slim_local *local = bpf_get_local_storage(&slim_cgroup, 0);
	__u32 pace = slim_pace(local->index);
	void *value = ctx->optval, *end = ctx->optval_end;

	if (!pace)
		return;
	if (value + sizeof(__u64) <= end) {
		if (*(__u64 *)value > pace)
			*(__u64 *)value = pace;
	} else if (value + sizeof(__u32) <= end) {
		if (*(__u32 *)value > pace)
			*(__u32 *)value = pace;
	}
}

static __always_inline int slim_option_set(struct bpf_sockopt *ctx)
{
	if (slim_option_forbidden(ctx->level, ctx->optname)) {
		slim_count(SLIM_REASON_OPTION);
		return slim_errno(EPERM);
	}
	if (ctx->level == SOL_SOCKET && ctx->optname == SO_MAX_PACING_RATE)
		slim_option_pace(ctx);
	if (slim_option_swallowed(ctx->level, ctx->optname))
		ctx->optlen = -1;	/* the kernel does nothing */
	else if (ctx->optlen > SLIM_OPTION_BUFFER)
		ctx->optlen = 0;	/* the kernel takes what the caller gave */
	return SLIM_HOOK_ALLOW;
}

/* What shows underlay addresses; the first our tag as well. */
static __always_inline bool slim_option_reveals(__s32 level, __s32 name)
{
	switch (level) {
	case SOL_TCP:
		return name == TCP_SAVED_SYN;
	case SOL_IP:
		return name == SO_ORIGINAL_DST || name == IP_PKTOPTIONS;
	case SOL_IPV6:
		return name == SO_ORIGINAL_DST || name == IPV6_2292PKTOPTIONS;
	}
	return false;
}

static __always_inline int slim_option_get(struct bpf_sockopt *ctx)
{
	if (slim_option_reveals(ctx->level, ctx->optname)) {
		slim_count(SLIM_REASON_OPTION);
		return slim_errno(EPERM);
	}
	if (ctx->optlen > SLIM_OPTION_BUFFER)
		ctx->optlen = 0;
	return SLIM_HOOK_ALLOW;
}

#endif /* SLIMNET_OPTION_H */
