/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a router knows that its successor must: endpoints, their ports, where the
 * tables are, and connections. It is a mapped file, so that it outlives a router
 * that is killed at any instruction, and does not outlive the boot.
 *
 * A record counts from its `used` on, which is written last.
 */
#ifndef SLIMNET_ROUTER_STATE_H
#define SLIMNET_ROUTER_STATE_H

#include <stddef.h>
#include <stdint.h>

#include <preload/control.h>
#include <preload/shim.h>
#include <slimnet/wire.h>

#define STATE_PORTS 16384
#define STATE_FLOWS 131072
#define PATH_ROOM 108		/* of struct sockaddr_un */

struct state_endpoint {
	uint32_t used;
	uint32_t id, vni, uid;
	__be32 address[4];
	char path[PATH_ROOM];
};

/* A port of an endpoint, and the port of this host that its sockets are bound to. */
struct state_port {
	uint32_t used;
	uint32_t endpoint;
	__be16 port;
	__be16 underlay;
	uint16_t explicit;	/* named by the application, not drawn for it */
	uint16_t asked;		/* how often it was given out, up to 2 */
};

enum flow_used {
	FLOW_FREE = 0,
	FLOW_ANNOUNCED,		/* may come: nobody accepted it yet */
	FLOW_OPEN,
};

/* A connection. The tuple is its opener's: underlay names. */
struct flow {
	uint32_t used;			/* enum flow_used */
	/*
	 * enum slim_way_kind. OUTSIDE: no tuple, but a cookie; with `server_here` of a client
	 * outside that came to a published port, and then the tuple is that one's.
	 */
	uint32_t kind;
	struct slim_tuple tuple;
	uint32_t client, server;	/* endpoint ids; 0: outside */
	uint8_t client_here, server_here;
	uint8_t missed;			/* in so many sweeps */
	uint8_t reported;		/* an event said that it opened, by direction (bits) */
	__be16 port;			/* overlay port of the server, as policy is asked */
	uint8_t came;			/* its client called connect(2): it waits for no processor */
	uint8_t unclosed;		/* policy forbids it, and it lives: nothing could close it */
	struct slim_shim_name client_name;	/* overlay: how the client sees itself, and is seen */
	struct slim_shim_name dialled;		/* how the client sees the server */
	struct slim_shim_name server_name;	/* how the server sees itself */
	uint64_t token;
	uint64_t cookie;		/* of the client's socket, if it is here */
	uint64_t since;			/* ms of CLOCK_MONOTONIC */
	uint64_t opened;		/* ns of CLOCK_REALTIME */
	uint32_t reason, rule;		/* of the client's policy, if it is here */
	uint32_t peer_reason, peer_rule;	/* of the server's */
	uint32_t next;			/* in its hash chain; index + 1 */
	uint32_t by;			/* number of the shim's connection that asked for it */
};

struct state {
	uint32_t magic, version;
	char boot[40];			/* of /proc/sys/kernel/random/boot_id */
	__be32 host[4];
	char tables[256];		/* path; empty before the first */
	uint32_t observed;
	uint32_t pad;
	struct state_endpoint endpoints[SLIM_CONTROL_ENDPOINTS];
	struct state_port ports[STATE_PORTS];
	struct flow flows[STATE_FLOWS];
};

/* The one of this process. */
extern struct state *state;

/*
 * Maps the file, which is made if there is none, and emptied if it is of another boot,
 * version or host. 0, or -1 with errno: EWOULDBLOCK if another router has it.
 */
int state_open(const char *path, const __be32 *host);

/* Connections. A tuple has one at the most. */
struct flow *flow_find(const struct slim_tuple *tuple);
/* One of a client here by the same names, as the client or as the server sees them. */
struct flow *flow_twin(const struct flow *like);
/* A new one under a tuple that has none; NULL: no room. `used` is still FLOW_FREE. */
struct flow *flow_new(const struct slim_tuple *tuple);
void flow_commit(struct flow *flow, enum flow_used used);
void flow_drop(struct flow *flow);
uint32_t flow_count(void);
void flow_each(void (*one)(struct flow *flow, void *data), void *data);

/* Ports. */
struct state_port *port_find(uint32_t endpoint, __be16 port);
struct state_port *port_of(__be16 underlay);
/* A new one; neither end may have one yet. NULL: no room. */
struct state_port *port_new(uint32_t endpoint, __be16 port, __be16 underlay);
void port_move(struct state_port *port, __be16 underlay);
void port_drop(struct state_port *port);
uint32_t port_count(uint32_t endpoint);
void port_each(void (*one)(struct state_port *port, void *data), void *data);

#endif
