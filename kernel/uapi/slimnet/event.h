/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a data path tells: events, and who sent how much. */
#ifndef SLIMNET_EVENT_H
#define SLIMNET_EVENT_H

#include <linux/types.h>

enum slim_event_kind {
	SLIM_EVENT_OPENED = 1,
	SLIM_EVENT_REFUSED = 2,
	SLIM_EVENT_CLOSED = 3,
};

struct slim_event {
	__u64 time;			/* bpf_ktime_get_ns() */
	__u32 kind;			/* enum slim_event_kind */
	__u32 reason;			/* enum slim_reason */
	__u32 rule;
	__u32 direction;		/* enum slim_direction */
	__u32 endpoint;			/* the local one */
	__u32 peer_endpoint;
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
	__u32 protocol;
	__u64 sent;			/* bytes; CLOSED only */
	__u64 received;
	__u64 duration;			/* ns; CLOSED only */
	__u32 omitted;			/* REFUSED: like it, and not told, since the event before */
	__u32 pad;
};

/* Who sent how much by which rule. A rule of 0: none was needed. */
struct slim_account_key {
	__u32 endpoint;			/* the local one */
	__u32 rule;
	__u32 direction;		/* enum slim_direction */
};

struct slim_account {
	__u64 connections;		/* that ended */
	__u64 refused;
	__u64 sent;			/* bytes, of connections that ended */
	__u64 received;
};

#endif /* SLIMNET_EVENT_H */
