/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The tables in force: a file of preload/control.h, mapped, and an index over it.
 * Also the environment of the core's headers: slim_way(), slim_answer() and the
 * rest are compiled in tables.c and called from here.
 */
#ifndef SLIMNET_ROUTER_TABLES_H
#define SLIMNET_ROUTER_TABLES_H

#include <stddef.h>
#include <stdint.h>

#include <preload/control.h>
#include <preload/shim.h>

struct tables;

/*
 * NULL, with a line in `text` and errno set, for a file that is not right. `bytes` is
 * kept, and freed by tables_close(): with munmap() if `mapped`.
 */
struct tables *tables_read(const void *bytes, size_t size, int mapped, char *text, size_t room);
struct tables *tables_open(const char *path, char *text, size_t room);
void tables_close(struct tables *tables);

uint64_t tables_generation(const struct tables *tables);
const struct slim_endpoint *tables_endpoint(const struct tables *tables, uint32_t id);
/* NULL: no such host, or it does not speak this wire. */
const struct slim_file_host *tables_host(const struct tables *tables, const __be32 *address);
size_t tables_hosts(const struct tables *tables);
/* Its key and right behind it struct slim_file_host. */
const __be32 *tables_host_at(const struct tables *tables, size_t index);
size_t tables_published_count(const struct tables *tables);
/* Its value comes right behind it: struct slim_publish. */
const struct slim_publish_key *tables_published_at(const struct tables *tables, size_t index);
/* What became of a question to the policy: see slim_way() for the fields. */
struct answer {
	uint32_t kind;			/* enum slim_way_kind */
	uint32_t reason, error, rule, peer_rule, peer_reason, direction;
	uint32_t endpoint;		/* the target */
	uint32_t service;
	__be16 port;			/* overlay port of the target */
	__be32 host[4];			/* of the target's host */
	uint32_t later;			/* of a datagram that is refused: its socket may connect */
};

/* enum slim_way_source, which only the core can be included for. */
enum source {
	SOURCE_ANY = 0,
	SOURCE_PORT = 1,
	SOURCE_LOOPBACK = 2,
};

/* May `client` connect to `name`? */
void tables_way(const struct tables *tables, uint32_t vni, uint32_t client,
		const struct slim_shim_name *name, int stream, enum source source,
		struct answer *answer);
/* May `client` come in to a port of `server`, which lives here? 0, or an errno; answer->reason. */
int tables_admit(const struct tables *tables, uint32_t client, uint32_t server, __be16 port,
		 struct answer *answer);
/* The same for a client at `address`, outside of the overlay. */
int tables_admit_from(const struct tables *tables, const __be32 *address, uint32_t server,
		      __be16 port, struct answer *answer);
/* May a live connection of `client` to `server` go on, as `client`'s egress policy says? */
int tables_leave(const struct tables *tables, uint32_t client, uint32_t server, __be16 port,
		 struct answer *answer);
void tables_ask(const struct tables *tables, struct slim_question *question);

#endif
