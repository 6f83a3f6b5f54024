// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The eBPF data path of slimnet: section entry points over the workers.
 *
 *  bind.h     bind(2), and what it holds of the host
 *  connect.h  connect(2), sendto(2): place, decide, translate
 *  name.h     getsockname(2), getpeername(2), accept(2)
 *  option.h   socket(2), setsockopt(2), getsockopt(2): what is refused
 *  sockops.h  the SYN's option, the listener's entry, the child's name
 *  steer.h    tc and sk_lookup: from a SYN to its listener; the shield; published ports
 *  carry.h    connections of endpoints with a network namespace of their own
 *  arrive.h   how their packets get in there
 *  packet.h   what tc programs know of packets
 *  target.h   who is at an address: an endpoint, behind a service too, or a range
 *  alias.h    by which port a connection is known in the overlay
 *  flow.h     the records of handshakes, and each endpoint's share of them
 *  remote.h   listeners of hosts that speak wire announce, and what they are told
 *  sweep.h    which of them go: abandoned, or denied by new tables
 *  limit.h    what an endpoint may send
 *  guard.h    what datagrams may leave
 *  dead.h     what is left of an endpoint that is no more
 *  ask.h      what would be decided
 */
#include "state.h"
#include "bind.h"
#include "connect.h"
#include "name.h"
#include "option.h"
#include "sockops.h"
#include "steer.h"
#include "arrive.h"
#include "sweep.h"
#include "limit.h"
#include "guard.h"
#include "dead.h"
#include "ask.h"

#include "fingerprint.h"

#include <slimnet/fingerprint.h>

/* What this object was built from; the loader refuses another. */
const volatile struct {
	__u64 version;
	__u64 fingerprint;
	__u64 own;			/* of what only this data path keeps: contract.h here */
} slim_abi_stamp = { SLIM_ABI_VERSION, SLIM_FINGERPRINT, SLIM_EBPF_FINGERPRINT };

SEC("cgroup/sock_create")
int slim_sock_create(struct bpf_sock *sk)
{
	if (slim_is_elsewhere(sk))
		return slim_create_elsewhere(sk);
	return slim_create(sk);
}

SEC("cgroup/bind4")
int slim_bind4(struct bpf_sock_addr *ctx)
{
	if (slim_is_elsewhere(ctx))
		return SLIM_HOOK_ALLOW;
	return slim_bind_hook(ctx, false);
}

SEC("cgroup/bind6")
int slim_bind6(struct bpf_sock_addr *ctx)
{
	if (slim_is_elsewhere(ctx))
		return SLIM_HOOK_ALLOW;
	return slim_bind_hook(ctx, true);
}

SEC("cgroup/post_bind4")
int slim_post_bind4(struct bpf_sock *sk)
{
	if (slim_is_elsewhere(sk))
		return SLIM_HOOK_ALLOW;
	return slim_post_bind(sk, sk->src_ip4);
}

SEC("cgroup/post_bind6")
int slim_post_bind6(struct bpf_sock *sk)
{
	if (slim_is_elsewhere(sk))
		return SLIM_HOOK_ALLOW;
	return slim_post_bind(sk, sk->src_ip6[3]);
}

SEC("cgroup/sock_release")
int slim_sock_release(struct bpf_sock *sk)
{
	if (slim_is_elsewhere(sk))
		return SLIM_HOOK_ALLOW;
	return slim_release(sk);
}

SEC("cgroup/connect4")
int slim_connect4(struct bpf_sock_addr *ctx)
{
	if (slim_is_elsewhere(ctx))
		return SLIM_HOOK_ALLOW;
	return slim_dial_hook(ctx, false, true);
}

SEC("cgroup/connect6")
int slim_connect6(struct bpf_sock_addr *ctx)
{
	if (slim_is_elsewhere(ctx))
		return SLIM_HOOK_ALLOW;
	return slim_dial_hook(ctx, true, true);
}

SEC("cgroup/sendmsg4")
int slim_sendmsg4(struct bpf_sock_addr *ctx)
{
	if (slim_is_elsewhere(ctx))
		return SLIM_HOOK_ALLOW;
	return slim_dial_hook(ctx, false, false);
}

SEC("cgroup/sendmsg6")
int slim_sendmsg6(struct bpf_sock_addr *ctx)
{
	if (slim_is_elsewhere(ctx))
		return SLIM_HOOK_ALLOW;
	return slim_dial_hook(ctx, true, false);
}

SEC("cgroup/getsockname4")
int slim_getsockname4(struct bpf_sock_addr *ctx)
{
	if (slim_is_elsewhere(ctx))
		return SLIM_HOOK_ALLOW;
	return slim_name_own(ctx, false);
}

SEC("cgroup/getsockname6")
int slim_getsockname6(struct bpf_sock_addr *ctx)
{
	if (slim_is_elsewhere(ctx))
		return SLIM_HOOK_ALLOW;
	return slim_name_own(ctx, true);
}

SEC("cgroup/getpeername4")
int slim_getpeername4(struct bpf_sock_addr *ctx)
{
	if (slim_is_elsewhere(ctx))
		return SLIM_HOOK_ALLOW;
	return slim_name_peer(ctx, false);
}

SEC("cgroup/getpeername6")
int slim_getpeername6(struct bpf_sock_addr *ctx)
{
	if (slim_is_elsewhere(ctx))
		return SLIM_HOOK_ALLOW;
	return slim_name_peer(ctx, true);
}

SEC("cgroup/setsockopt")
int slim_setsockopt(struct bpf_sockopt *ctx)
{
	if (slim_is_elsewhere(ctx))
		return SLIM_HOOK_ALLOW;
	return slim_option_set(ctx);
}

SEC("cgroup/getsockopt")
int slim_getsockopt(struct bpf_sockopt *ctx)
{
	if (slim_is_elsewhere(ctx))
		return SLIM_HOOK_ALLOW;
	return slim_option_get(ctx);
}

SEC("sockops")
int slim_sockops(struct bpf_sock_ops *ctx)
{
	return slim_sockops_run(ctx);
}

SEC("sk_lookup")
int slim_lookup(struct bpf_sk_lookup *ctx)
{
	return slim_steer(ctx);
}

SEC("tc")
int slim_tc_ingress(struct __sk_buff *skb)
{
	return slim_ingress(skb, false);
}

SEC("tc")
int slim_tc_egress(struct __sk_buff *skb)
{
	return slim_egress(skb);
}

SEC("tc")
int slim_device_tc(struct __sk_buff *skb)
{
	return slim_device_run(skb);
}

SEC("tc")
int slim_arrive_tc(struct __sk_buff *skb)
{
	return slim_arrive_run(skb);
}

SEC("tc")
int slim_portal_tc(struct __sk_buff *skb)
{
	return slim_portal_run(skb);
}

SEC("cgroup_skb/egress")
int slim_rate(struct __sk_buff *skb)
{
	return slim_limit_run(skb);
}

SEC("cgroup_skb/egress")
int slim_guard(struct __sk_buff *skb)
{
	return slim_guard_run(skb);
}

SEC("cgroup/skb")
int slim_silence(struct __sk_buff *skb)
{
	return slim_silence_run();
}

SEC("iter/tcp")
int slim_repace(struct bpf_iter__tcp *ctx)
{
	return slim_repace_run(ctx);
}

SEC("tc")
int slim_ask(struct __sk_buff *skb)
{
	return slim_ask_run(skb);
}

SEC("tc")
int slim_announced(struct __sk_buff *skb)
{
	return slim_announced_run(skb);
}

SEC("tc")
int slim_sweep(struct __sk_buff *skb)
{
	return slim_sweep_run(skb);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
