/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Between the agent and its router, and the file that holds the tables.
 *
 * The control socket is a Unix socket (SOCK_SEQPACKET) of the path --control, for
 * the router's own user and root only. One datagram is one request; each has one
 * answer, but for CONNECTIONS, which has one a connection and one that says END, and
 * EVENTS, after which the router sends events on that connection as they happen, for as long
 * as it is open. Numbers are in host order but those of type __be16/__be32.
 */
#ifndef SLIMNET_PRELOAD_CONTROL_H
#define SLIMNET_PRELOAD_CONTROL_H

#include <slimnet/event.h>
#include <slimnet/reason.h>
#include <slimnet/tables.h>

enum slim_control_version {
	SLIM_CONTROL_VERSION = 1,
};

enum slim_control_call {
	SLIM_CONTROL_STATUS = 1,
	/* Listens at `path` for the endpoint's processes; again with the same changes nothing. */
	SLIM_CONTROL_ATTACH = 2,
	/* Removes `path`, its ports and what is known of its connections. None: no error. */
	SLIM_CONTROL_DETACH = 3,
	/*
	 * Puts the tables of the file `path` in force, and answers when live connections that
	 * they forbid are closed. The file must stay as it is until others are in force, and
	 * be there when the router starts again. What does not fit is refused with a text, and
	 * the old tables stay.
	 */
	SLIM_CONTROL_TABLES = 4,
	SLIM_CONTROL_CONNECTIONS = 5,
	SLIM_CONTROL_ASK = 6,
	SLIM_CONTROL_EVENTS = 7,
	SLIM_CONTROL_OBSERVE = 8,	/* `number` 1: opened and closed connections make events too */
	SLIM_CONTROL_STOP = 9,		/* answered, then the router ends; its state file stays */
	/* Takes the keys of the file `path`, as at the start; other links follow. */
	SLIM_CONTROL_KEYS = 10,
};

struct slim_control_request {
	__u32 version;			/* SLIM_CONTROL_VERSION */
	__u32 call;			/* enum slim_control_call */
	__u32 endpoint;			/* ATTACH, DETACH */
	__u32 vni;			/* ATTACH */
	__u32 uid;			/* ATTACH: the only user whose processes are it; ~0: any */
	__u32 number;			/* OBSERVE */
	__be32 address[4];		/* ATTACH: overlay */
	char path[256];			/* ATTACH (at most 107 bytes), TABLES, KEYS; ends with 0 */
	struct slim_question question;	/* ASK */
};

struct slim_control_answer {
	__u32 version;
	__u32 call;			/* of the request */
	__u32 error;			/* a positive errno, or 0 */
	__u32 pad;
	char text[256];			/* of an error: one line; ends with 0 */
};

#define SLIM_CONTROL_ENDPOINTS 1024	/* the most of one host */

struct slim_control_status {
	struct slim_control_answer answer;
	__u64 generation;		/* 0: no tables yet */
	__u64 refused[2][SLIM_REASON_COUNT];	/* by enum slim_direction and enum slim_reason */
	__u64 allowed[2][SLIM_REASON_COUNT];
	__u32 abi;			/* SLIM_ABI_VERSION that it was built with */
	__u32 shim_version;		/* SLIM_SHIM_VERSION */
	__u32 announce_version;		/* SLIM_ANNOUNCE_VERSION */
	__u32 pid;
	__u32 links;			/* links to other hosts that are up */
	__u32 connections;		/* known */
	__u32 revokes;			/* it can close live connections here: 1 */
	char trouble[256];		/* what it cannot publish or close: one line, or empty */
	__u32 count;			/* of endpoints */
	__u32 endpoints[SLIM_CONTROL_ENDPOINTS];	/* ids; only the first `count` are sent */
};

/* A live connection of a local endpoint. One on the same host is told twice. */
struct slim_control_connection {
	struct slim_control_answer answer;
	__u32 end;			/* 1: no connection; the last datagram */
	__u32 endpoint;
	__u32 peer_endpoint;
	__u32 direction;		/* enum slim_direction */
	__u32 wire;			/* enum slim_way_kind: SAME_HOST, SELF or WIRE */
	__u32 state;			/* of the kernel (include/net/tcp_states.h) */
	__u32 rule;
	__u32 pad;
	__be32 local[4];		/* overlay */
	__be32 peer[4];
	__be16 local_port;
	__be16 peer_port;
	__u32 pad2;
	__u64 opened;			/* ns of CLOCK_REALTIME */
	__u64 cookie;			/* the kernel's (SO_COOKIE); 0: not known */
};

struct slim_control_asked {
	struct slim_control_answer answer;
	struct slim_question question;	/* answered */
};

struct slim_control_event {
	struct slim_control_answer answer;
	__u64 lost;			/* events before this one that found no room */
	struct slim_event event;	/* time: ns of CLOCK_REALTIME */
};

/*
 * The tables' file. Behind the header come the rows of each table, at `offset`, a
 * multiple of 8: `count` of them, each a key and right behind it a value, the
 * bytes that slimnet.encoding makes. A key may not come twice.
 */
enum slim_file_table {
	SLIM_FILE_ADDRESSES,		/* slim_address_key -> __u32 */
	SLIM_FILE_ENDPOINTS,		/* __u32 -> slim_endpoint */
	SLIM_FILE_CIDRS,		/* slim_cidr_key -> slim_cidr */
	SLIM_FILE_POLICY,		/* slim_policy_key -> slim_policy */
	SLIM_FILE_SERVICES,		/* slim_service_key -> slim_service */
	SLIM_FILE_PUBLISHED,		/* slim_publish_key -> slim_publish */
	SLIM_FILE_HOSTS,		/* __be32[4] -> slim_file_host: those that speak `announce` */
	SLIM_FILE_COUNT,
};

enum slim_file {
	SLIM_FILE_MAGIC = 0x736c6d74,	/* "slmt", in host order */
};

struct slim_file_host {
	__be32 control[4];		/* where its router listens */
	__be16 port;
	__u16 pad;
};

struct slim_file_section {
	__u64 offset;
	__u32 count;
	__u16 key_size;
	__u16 value_size;
};

struct slim_file_header {
	__u32 magic;
	__u32 abi;			/* SLIM_ABI_VERSION */
	__u64 generation;		/* at least 1 */
	__u64 size;			/* of the file */
	struct slim_file_section sections[SLIM_FILE_COUNT];
};

_Static_assert(sizeof(struct slim_file_section) == 16, "the same for every compiler");
_Static_assert(sizeof(struct slim_file_header) == 24 + 16 * SLIM_FILE_COUNT, "no padding");

#endif /* SLIMNET_PRELOAD_CONTROL_H */
