/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the parts of the router have in common: one of each a process. */
#ifndef SLIMNET_ROUTER_ROUTER_H
#define SLIMNET_ROUTER_ROUTER_H

#include <stdint.h>

#include "state.h"
#include "tables.h"

/* The tables in force; NULL before the first. */
extern struct tables *tables;

/* One line to stderr. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

uint64_t now_ns(void);	/* of CLOCK_REALTIME */

/* endpoint.c: the sockets of endpoints, and their processes' questions */
int endpoint_open(const struct state_endpoint *record);	/* 0, or -1 with errno */
int endpoint_start(void);	/* those of the state file */
void endpoint_close(uint32_t id);
const struct state_endpoint *endpoint_record(uint32_t id);
/* A RESOLVE that a link was asked is answered; `error` 0 or a positive errno. */
void endpoint_resolved(uint64_t question, int error, uint32_t reason, uint32_t rule,
		       __be16 underlay_port);
/* The connection with `token` may come, or `error` and so on. */
void endpoint_answered(uint64_t token, int error, uint32_t reason, uint32_t rule);
/* One of the hosts that link_listener() told knows it. */
void endpoint_listened(uint64_t question);
/* There is a link to a host now: what waits for it asks; or there is none any more. */
void endpoint_reachable(const __be32 *host);
void endpoint_unreachable(const __be32 *host);
/* A connection that is waited for was announced. */
void endpoint_announced(const struct slim_tuple *tuple);
/* It will not be, if nobody did; `question`: link_probe()'s, or 0 where the other end says none. */
void endpoint_probed(const struct slim_tuple *tuple, uint64_t question);
/* The underlay port of a listener of `endpoint`; 0: there is none now. */
__be16 endpoint_listener(uint32_t endpoint, __be16 port);
/* Ends of processes, dead listeners. */
void endpoint_sweep(void);

/* flows.c: what becomes of connections */
struct diag;
/* All states of a socket but LISTEN, CLOSE, and TIME_WAIT, in which there is none any more. */
#define FLOWS_LIVE (0x1ffeu & ~(1u << 6 | 1u << 7 | 1u << 10))
/* Whose socket it is, and whether it opened the connection; NULL: nobody's. */
struct flow *flows_of(const struct diag *socket, int *egress);
void flows_start(void);
/* New tables are in force: closes what they forbid. What it cannot close it tries again. */
void flows_revoke(void);
/* Could it close connections of this user's processes? */
int flows_revokes(void);
/* One line for the agent: what could not be closed and lives; empty: nothing. */
void flows_trouble(char *text, size_t room);
/* Forgets what is gone. Called by itself every second. */
void flows_sweep(void);
/* As flow_new(); where there is no room, what is gone is forgotten first. */
struct flow *flows_new(const struct slim_tuple *tuple);
/* It is over, and told so. */
void flows_end(struct flow *flow);
/* Is it yet to be connected, for all that is known? */
int flows_is_to_come(struct flow *flow);
/* The client connects it no more: it is over if its socket is gone. */
void flows_check(struct flow *flow);

/* published.c: ports of this host that are endpoints' */
/* The tables changed. */
void published_tables(void);
/* Tries again what was not to be had. */
void published_sweep(void);
/* Nobody of the endpoint is there any more. */
void published_forget(uint32_t endpoint);
/*
 * `endpoint` accepted a connection with this tuple. 0: it is none of ours. 1: it stands for
 * a client's, and `*client` is the client's socket, which is the caller's from now on, or -1
 * where that one may not come in any more; `*flow` is yet to be committed.
 */
int published_accepted(const struct slim_tuple *tuple, uint32_t endpoint, int v4, int *client,
		       struct flow **flow, struct answer *why);
/* One line about ports that others have; empty where there are none. */
void published_trouble(char *text, size_t room);

/* link.c: other hosts */
/* Of the two keys, which may be the same, the first makes new links. */
int link_start(const struct slim_shim_name *listen, const uint8_t both[2][16]);
/* Others from now on; links by the first of them follow those by another. */
void link_keys(const uint8_t both[2][16]);
/* main.c: reads a file of them. 0, or -1 and errno. */
int read_keys(const char *path, uint8_t both[2][16]);
/* The tables changed. */
void link_tables(void);
/*
 * 0: `underlay_port` is known, *port; 1: asked, endpoint_resolved(question) comes; else
 * a positive errno, and `reason`.
 */
int link_resolve(const __be32 *host, uint32_t client, uint32_t server, __be16 port,
		 uint64_t question, __be16 *underlay_port, uint32_t *reason);
/*
 * Whether the other host says of each announcement if it may come: endpoint_answered() comes
 * then, and no SYN may be sent before.
 */
int link_answers(const __be32 *host);
void link_announce(const struct flow *flow);
void link_withdraw(const struct flow *flow);
/*
 * Asks the host that `tuple` comes from, over each of its links: while the key changes there are
 * two, and it may have been announced over either. endpoint_probed() comes as often as it answers.
 */
uint32_t link_probe(const struct slim_tuple *tuple, uint64_t question);
/*
 * Tells the hosts that want to know where a port is, or that it is `gone`. How many they are:
 * endpoint_listened(question) comes for each.
 */
uint32_t link_listener(const struct state_port *port, uint64_t question, int gone);
/* Tells all who resolved `server` (0: anything) here to ask again. */
void link_forget(uint32_t server);
uint32_t link_count(void);
uint64_t link_token(void);

/* control.c: the agent */
int control_start(const char *path);
void count(int allowed, int direction, uint32_t reason);
/* `event->time` is filled in. OPENED and CLOSED are told only if somebody asked for them. */
void tell(struct slim_event *event);

#endif
