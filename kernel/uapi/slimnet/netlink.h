/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How the kernel module is driven: the generic netlink family "slimnet"
 * (Documentation/userspace-api/netlink/intro.rst). This page is its manual.
 *
 * Who may: every request but nothing less than CAP_NET_ADMIN in the initial user
 * namespace (else EPERM); likewise who joins the group of events.
 *
 * Instances: a host is a network namespace, the one that the request's socket is
 * in; each has at most one data path. SLIM_CMD_START makes it, or adopts the one
 * that runs there. The socket that did so *holds* it until that socket is closed:
 * to any other every request marked H below is EBUSY, and changes nothing. The
 * data path outlives whoever holds it.
 *
 * A bad request is refused whole and changes nothing. The extended
 * acknowledgement has a sentence, and the offset of the attribute that is wrong
 * (NLMSGERR_ATTR_OFFS) or the number of the one that is missing
 * (NLMSGERR_ATTR_MISS_TYPE, Linux 6.1). Validation is strict: an attribute that
 * the command does not have, a length that is not the attribute's, trailing
 * bytes: EINVAL or ERANGE.
 *
 * Numbers are in host order unless a comment says otherwise; an attribute of
 * binary type is exactly as long as its struct.
 */
#ifndef SLIMNET_NETLINK_H
#define SLIMNET_NETLINK_H

#include "event.h"
#include "tables.h"

#define SLIM_NL_FAMILY "slimnet"
#define SLIM_NL_GROUP_EVENTS "events"

/* Raised when a command or an attribute changes its meaning; new ones do not raise it. */
enum slim_nl_version {
	SLIM_NL_VERSION = 1,
};

/*
 * Commands, and the attributes of the request -> those of the answer. [ ]: may be
 * absent. H: only who holds the data path. D: a dump (NLM_F_DUMP), one message a
 * record. One without answer is acknowledged (NLM_F_ACK) once it is done.
 */
enum slim_nl_command {
	SLIM_CMD_UNSPEC = 0,

	/*
	 * none -> ABI_VERSION, FINGERPRINT, NL_VERSION, MODULE_VERSION, FEATURES; where a data
	 * path runs also INSTANCE, CLUSTER, UNDERLAY, WIRE_PORT, RANGE, OBSERVE, GENERATION
	 * (0: no tables yet), ENDPOINTS, SOCKETS, HELD and COUNTERS.
	 */
	SLIM_CMD_INFO = 1,

	/*
	 * ABI_VERSION, FINGERPRINT, INSTANCE, UNDERLAY, WIRE_PORT, RANGE, KEY, [KEY_OTHER],
	 * [CLUSTER], [OBSERVE] -> none. Starts or adopts, and holds. EBUSY: somebody else holds it.
	 * EPROTONOSUPPORT: ABI_VERSION or FINGERPRINT is not the module's. EEXIST: one runs
	 * here that differs in the attribute named (INSTANCE, UNDERLAY, WIRE_PORT, RANGE).
	 * The keys, CLUSTER and OBSERVE are taken over from the request. Whoever holds it may
	 * send it again.
	 */
	SLIM_CMD_START = 2,

	/*
	 * H. [FORCE] -> none. Ends the data path of this namespace. EBUSY while endpoints are
	 * attached or sockets of endpoints live in it; with FORCE these connections are
	 * closed (ECONNRESET) and the endpoints detached first. After it the host is as before.
	 */
	SLIM_CMD_TEARDOWN = 3,

	/* H. OBSERVE -> none. */
	SLIM_CMD_OBSERVE = 4,

	/*
	 * Tables are put in force in three steps, out of sight of the data path until the
	 * last: BEGIN, as many PUT as are needed, COMMIT. There is one set being prepared;
	 * BEGIN throws away what was there, and so does the socket's close.
	 *
	 * BEGIN: H. GENERATION, [BASE] -> none. Without BASE the new tables are empty, with it
	 * they are a copy of those in force. ESTALE: the generation in force is not BASE.
	 */
	SLIM_CMD_TABLES_BEGIN = 5,

	/*
	 * H. TABLE, [GONE], [RECORDS] -> none. GONE: keys to take out (one that is not there is
	 * no error), RECORDS: keys with their values to set, each one behind the other without
	 * padding, in the layout of tables.h (enum slim_nl_table). EINVAL: no whole number of
	 * records, or a record that is none. ENOENT: no BEGIN. A netlink attribute has room for
	 * 65,531 bytes: seven services.
	 */
	SLIM_CMD_TABLES_PUT = 6,

	/*
	 * H. GENERATION (as in BEGIN; else EINVAL) -> none. Answers when the tables are in
	 * force, nobody reads the old ones, and live connections that the new ones forbid are
	 * closed (ECONNRESET).
	 */
	SLIM_CMD_TABLES_COMMIT = 7,

	/*
	 * H. ENDPOINT, NETNS_FD, VNI, ADDRESS -> INDEX. The endpoint is the namespace. Until tables
	 * that know the endpoint are in force every connect by IPv4 in it is EACCES, loopback
	 * included. The same again answers the same. EEXIST: ENDPOINT is attached with another namespace, VNI or
	 * address, or the namespace is another endpoint's. EBADF: no descriptor of a namespace.
	 * EINVAL: of no network namespace, or the host's own. ENOSPC: SLIM_INDEX_MAX are
	 * attached.
	 */
	SLIM_CMD_ATTACH = 8,

	/*
	 * H. ENDPOINT -> none. Its connections and listeners are closed, and its namespace is
	 * like any other again. One that is not attached is no error.
	 */
	SLIM_CMD_DETACH = 9,

	/* D. none -> ENDPOINT, INDEX, VNI, ADDRESS, NETNS_INODE, NETNS_COOKIE, SOCKETS. */
	SLIM_CMD_ENDPOINTS = 10,

	/* D. none -> CONNECTION. Those that are established or being so, in any order. */
	SLIM_CMD_CONNECTIONS = 11,

	/*
	 * D. none -> ACCOUNT_KEY, ACCOUNT: those of one key add up. One for each connection that
	 * lives, then those of what ended, kept for as long as the endpoint is attached.
	 */
	SLIM_CMD_ACCOUNTS = 12,

	/* QUESTION -> QUESTION, answered (ask.h). ENOENT: no tables yet. Counts nothing. */
	SLIM_CMD_ASK = 13,

	/* To the group: EVENT, one or more. Nobody is told who joined too late. */
	SLIM_CMD_EVENT = 14,
};

enum slim_nl_attribute {
	SLIM_ATTR_UNSPEC = 0,
	SLIM_ATTR_PAD = 1,
	SLIM_ATTR_ABI_VERSION = 2,	/* u32: SLIM_ABI_VERSION */
	SLIM_ATTR_FINGERPRINT = 3,	/* u64: SLIM_FINGERPRINT */
	SLIM_ATTR_NL_VERSION = 4,	/* u32: SLIM_NL_VERSION */
	SLIM_ATTR_MODULE_VERSION = 5,	/* string */
	SLIM_ATTR_FEATURES = 6,		/* u32: enum slim_nl_feature */
	SLIM_ATTR_INSTANCE = 7,		/* string, 1 to 63 bytes */
	SLIM_ATTR_CLUSTER = 8,		/* string, 0 to 63 bytes */
	SLIM_ATTR_UNDERLAY = 9,		/* 16 bytes: the host's underlay address, v4-mapped */
	SLIM_ATTR_WIRE_PORT = 10,	/* u16: the first of SLIM_WIRE_PORTS + SLIM_BOUND_PORTS */
	SLIM_ATTR_RANGE = 11,		/* 4 bytes, network order: the inner range, a /4 */
	SLIM_ATTR_KEY = 12,		/* 16 bytes: the cluster's, as in its file; signs */
	SLIM_ATTR_OBSERVE = 13,		/* u32: enum slim_nl_observe; absent in START: as it was */
	SLIM_ATTR_GENERATION = 14,	/* u64, not 0 */
	SLIM_ATTR_BASE = 15,		/* u64 */
	SLIM_ATTR_TABLE = 16,		/* u32: enum slim_nl_table */
	SLIM_ATTR_RECORDS = 17,		/* bytes */
	SLIM_ATTR_GONE = 18,		/* bytes */
	SLIM_ATTR_ENDPOINT = 19,	/* u32, 1 to 0x7ffffffe */
	SLIM_ATTR_NETNS_FD = 20,	/* u32: a descriptor of the requesting process */
	SLIM_ATTR_VNI = 21,		/* u32, 24 bits */
	SLIM_ATTR_ADDRESS = 22,		/* 16 bytes: overlay */
	SLIM_ATTR_INDEX = 23,		/* u32: 1 to SLIM_INDEX_MAX */
	SLIM_ATTR_NETNS_INODE = 24,	/* u32: st_ino of the namespace's file */
	SLIM_ATTR_NETNS_COOKIE = 25,	/* u64: SO_NETNS_COOKIE in it */
	SLIM_ATTR_ENDPOINTS = 26,	/* u32: how many are attached */
	SLIM_ATTR_SOCKETS = 27,		/* u32: sockets that are in the underlay namespace */
	SLIM_ATTR_HELD = 28,		/* flag: somebody holds the data path */
	SLIM_ATTR_FORCE = 29,		/* flag */
	SLIM_ATTR_COUNTERS = 30,	/* u64[SLIM_REASON_COUNT]: how often each enum slim_reason */
	SLIM_ATTR_CONNECTION = 31,	/* struct slim_nl_connection */
	SLIM_ATTR_ACCOUNT_KEY = 32,	/* struct slim_account_key */
	SLIM_ATTR_ACCOUNT = 33,		/* struct slim_account */
	SLIM_ATTR_QUESTION = 34,	/* struct slim_question */
	SLIM_ATTR_EVENT = 35,		/* struct slim_event */
	SLIM_ATTR_KEY_OTHER = 36,	/* 16 bytes: good as well, while the key rotates */
	SLIM_ATTR_COUNT = 37,
};

/* What this build and this kernel can do besides; none so far. */
enum slim_nl_feature {
	SLIM_NL_FEATURE_NONE = 0,
};

/* What is worth an event. Refusals always are. */
enum slim_nl_observe {
	SLIM_NL_OBSERVE_OPENED = 1,
	SLIM_NL_OBSERVE_CLOSED = 2,
};

/* Which table, and its records: key, then value. */
enum slim_nl_table {
	SLIM_NL_ADDRESSES = 0,	/* struct slim_address_key, u32: endpoint */
	SLIM_NL_ENDPOINTS = 1,	/* u32: endpoint, struct slim_endpoint (index is ignored) */
	SLIM_NL_CIDRS = 2,	/* struct slim_cidr_key, struct slim_cidr */
	SLIM_NL_POLICY = 3,	/* struct slim_policy_key, struct slim_policy */
	SLIM_NL_SERVICES = 4,	/* struct slim_service_key, struct slim_service */
	SLIM_NL_TABLES = 5,
};

enum slim_nl_connection_flag {
	SLIM_NL_ACCEPTED = 1,		/* else it was opened here */
	SLIM_NL_WIRE = 2,		/* to another host; else both ends are on this one */
	SLIM_NL_SERVICE = 4,		/* a service was dialled: `peer` is its address */
};

struct slim_nl_connection {
	__u64 opened;			/* ns, CLOCK_MONOTONIC */
	__u64 cookie;			/* SO_COOKIE; 0: nobody has asked for it yet */
	__u64 generation;		/* of the tables that it was last decided by */
	__u32 endpoint;			/* the local one */
	__u32 peer_endpoint;
	__be32 local[4];		/* overlay */
	__be32 peer[4];
	__be16 local_port;
	__be16 peer_port;
	__u32 state;			/* the kernel's TCP state (include/net/tcp_states.h) */
	__u32 flags;			/* enum slim_nl_connection_flag */
	__u32 rule;			/* of the local endpoint's policy */
};

#endif /* SLIMNET_NETLINK_H */
