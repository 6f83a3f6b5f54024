/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Hosts that speak wire `announce` (slimnet/announce.h): where they have their
 * listeners, and what the agent is to tell them.
 */
#ifndef SLIMNET_REMOTE_H
#define SLIMNET_REMOTE_H

#include "state.h"

/* Where such a host has the port that is dialled: 0 and `at`, or a positive errno. */
slim_verified_once int slim_remote_find(const struct slim_remote_key *asked, struct slim_remote *at)
{
	struct slim_remote_key key = {};
	const struct slim_remote *found;

	if (!asked || !at)
		return EHOSTUNREACH;
	slim_copy(key.host, asked->host);
	if (!bpf_map_lookup_elem(&slim_remote, &key))
		return EHOSTUNREACH;
	key.endpoint = asked->endpoint;
	key.port = asked->port;
	found = bpf_map_lookup_elem(&slim_remote, &key);
	if (!found)
		return ECONNREFUSED;
	at->port = found->port;
	return 0;
}

/*
 * Whose policy it is that refused lives where it is not heard of: its host tells it. 0
 * where that is not so.
 */
static __noinline int slim_remote_refused(const struct slim_way *way, __u32 client)
{
	const struct slim_endpoint *peer;
	struct slim_told *told;

	if (!way)
		return 0;
	peer = way->target.peer;
	if (!peer || !(peer->flags & SLIM_ENDPOINT_JUDGED))
		return 0;
	told = bpf_ringbuf_reserve(&slim_told, sizeof(*told), 0);
	if (!told)
		return 0;
	__builtin_memset(told, 0, sizeof(*told));
	slim_copy(told->tuple.destination, peer->host);
	told->source_endpoint = client;
	told->destination_endpoint = way->target.endpoint;
	told->port = way->target.port;
	told->kind = SLIM_TOLD_REFUSED;
	told->reason = way->reason;
	told->rule = way->rule;
	bpf_ringbuf_submit(told, 0);
	return 1;
}

#endif /* SLIMNET_REMOTE_H */
