// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The mapped file by which a router's successor goes on. */
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <slimnet/address.h>

#define MAGIC 0x736c6d73	/* "slms" */
#define VERSION 1
#define CHAINS 131072		/* a power of two */
#define CHUNK 1024		/* flows that the file grows by */

struct state *state;

static uint32_t *chains;		/* first flow of each; index + 1 */
static uint32_t free_flow;		/* the first free one that was used before; index + 1 */
static uint32_t top_flow;		/* all from here on are free */
static uint32_t flows;
static uint32_t room;			/* so many are in blocks that the file has */
static int file = -1;
static uint32_t by_underlay[65536];	/* index of a port + 1 */
static uint32_t by_name[65536];		/* flows by the port that the client goes by; index + 1 */
static uint32_t *name_next;
static uint32_t port_chains[65536];	/* by endpoint and port */
static uint32_t port_next[STATE_PORTS];
static uint32_t top_port;

static int boot_id(char *boot, size_t room)
{
	int file = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t size = file < 0 ? -1 : read(file, boot, room - 1);

	if (file >= 0)
		close(file);
	if (size < 0)
		size = 0;	/* none to be had: every file is as good as another */
	boot[size] = 0;
	return 0;
}

static uint32_t chain(const struct slim_tuple *tuple)
{
	const unsigned char *bytes = (const unsigned char *)tuple;
	uint64_t sum = 14695981039346656037u;
	size_t index;

	for (index = 0; index < sizeof(*tuple); index++)
		sum = (sum ^ bytes[index]) * 1099511628211u;
	return (uint32_t)(sum ^ sum >> 32) & (CHAINS - 1);
}

static uint32_t port_chain(uint32_t endpoint, __be16 port)
{
	return (endpoint * 40503u ^ port) & 65535;
}

static void link_port(uint32_t index)
{
	const struct state_port *port = &state->ports[index];
	uint32_t at = port_chain(port->endpoint, port->port);

	port_next[index] = port_chains[at];
	port_chains[at] = index + 1;
	by_underlay[port->underlay] = index + 1;
}

static void link_flow(struct flow *flow)
{
	uint32_t at = chain(&flow->tuple);

	flow->next = chains[at];
	chains[at] = (uint32_t)(flow - state->flows) + 1;
	flows++;
}

static void link_name(const struct flow *flow)
{
	uint32_t index = (uint32_t)(flow - state->flows);

	name_next[index] = by_name[flow->client_name.port];
	by_name[flow->client_name.port] = index + 1;
}

static void unlink_name(const struct flow *flow)
{
	uint32_t index = (uint32_t)(flow - state->flows);
	uint32_t *link = &by_name[flow->client_name.port];

	while (*link && *link != index + 1)
		link = &name_next[*link - 1];
	if (*link)
		*link = name_next[index];
}

static int same_name(const struct slim_shim_name *one, const struct slim_shim_name *other)
{
	return one->port == other->port && slim_same(one->address, other->address);
}

struct flow *flow_twin(const struct flow *like)
{
	uint32_t index;

	for (index = by_name[like->client_name.port]; index; index = name_next[index - 1]) {
		struct flow *flow = &state->flows[index - 1];

		if (flow->client_here && flow->client == like->client &&
		    flow->kind != SLIM_WAY_OUTSIDE &&
		    same_name(&flow->client_name, &like->client_name) &&
		    (same_name(&flow->dialled, &like->dialled) ||
		     same_name(&flow->server_name, &like->server_name)))
			return flow;
	}
	return NULL;
}

static void index_all(void)
{
	uint32_t index;

	for (index = 0; index < STATE_PORTS; index++)
		if (state->ports[index].used) {
			link_port(index);
			top_port = index + 1;
		}
	for (index = 0; index < room; index++)
		if (state->flows[index].used)
			top_flow = index + 1;
	for (index = 0; index < top_flow; index++) {
		struct flow *flow = &state->flows[index];

		if (flow->used && !flow_find(&flow->tuple)) {
			link_flow(flow);
			link_name(flow);
		} else {
			flow->used = FLOW_FREE;
			flow->next = free_flow;
			free_flow = index + 1;
		}
	}
}

/*
 * The file has as many flows as were needed so far, and blocks for all of them: a hole that
 * is touched on a full disk is a SIGBUS, and so is what is mapped behind its end.
 */
static int reserve(uint32_t count)
{
	const off_t size = (off_t)(offsetof(struct state, flows) +
				   count * sizeof(state->flows[0]));
	int error = posix_fallocate(file, 0, size);

	if (error) {
		errno = error;
		return -1;
	}
	room = count;
	return 0;
}

int state_open(const char *path, const __be32 *host)
{
	char boot[sizeof(state->boot)] = "";
	struct stat about;

	file = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (file < 0)
		return -1;
	if (flock(file, LOCK_EX | LOCK_NB) || fstat(file, &about))
		goto failed;
	boot_id(boot, sizeof(boot));
	state = mmap(NULL, sizeof(*state), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (state == MAP_FAILED)
		goto failed;
	if (about.st_size < (off_t)offsetof(struct state, flows) || state->magic != MAGIC ||
	    state->version != VERSION || strcmp(state->boot, boot) ||
	    !slim_same(state->host, host)) {
		if (ftruncate(file, 0) || reserve(0))
			goto failed;
		memcpy(state->boot, boot, sizeof(boot));
		slim_copy(state->host, host);
		state->version = VERSION;
		state->magic = MAGIC;
	} else {
		room = (uint32_t)(((size_t)about.st_size - offsetof(struct state, flows)) /
				  sizeof(state->flows[0]));
		if (room > STATE_FLOWS)
			room = STATE_FLOWS;
		if (reserve(room))
			goto failed;
	}
	chains = calloc(CHAINS, sizeof(*chains));
	name_next = calloc(STATE_FLOWS, sizeof(*name_next));
	if (!chains || !name_next)
		goto failed;
	index_all();
	/* The file stays open, for its lock. */
	return 0;
failed:
	{
		int error = errno;

		close(file);
		file = -1;
		errno = error;
	}
	return -1;
}

struct flow *flow_find(const struct slim_tuple *tuple)
{
	uint32_t index;

	for (index = chains[chain(tuple)]; index; index = state->flows[index - 1].next) {
		struct flow *flow = &state->flows[index - 1];

		if (!memcmp(&flow->tuple, tuple, sizeof(*tuple)))
			return flow;
	}
	return NULL;
}

struct flow *flow_new(const struct slim_tuple *tuple)
{
	struct flow *flow;

	if (free_flow) {
		flow = &state->flows[free_flow - 1];
		free_flow = flow->next;
	} else if (top_flow < STATE_FLOWS &&
		   (top_flow < room || !reserve(top_flow - top_flow % CHUNK + CHUNK))) {
		flow = &state->flows[top_flow++];
	} else {
		return NULL;
	}
	*flow = (struct flow){ .tuple = *tuple };
	link_flow(flow);
	return flow;
}

void flow_commit(struct flow *flow, enum flow_used used)
{
	if (!flow->used)
		link_name(flow);
	__atomic_store_n(&flow->used, used, __ATOMIC_RELEASE);
}

void flow_drop(struct flow *flow)
{
	uint32_t index = (uint32_t)(flow - state->flows) + 1;
	uint32_t *link = &chains[chain(&flow->tuple)];

	while (*link && *link != index)
		link = &state->flows[*link - 1].next;
	if (*link)
		*link = flow->next;
	unlink_name(flow);
	__atomic_store_n(&flow->used, FLOW_FREE, __ATOMIC_RELEASE);
	flow->next = free_flow;
	free_flow = index;
	flows--;
}

uint32_t flow_count(void)
{
	return flows;
}

void flow_each(void (*one)(struct flow *flow, void *data), void *data)
{
	uint32_t index;

	for (index = 0; index < top_flow; index++)
		if (state->flows[index].used)
			one(&state->flows[index], data);
}

struct state_port *port_find(uint32_t endpoint, __be16 port)
{
	uint32_t index;

	for (index = port_chains[port_chain(endpoint, port)]; index; index = port_next[index - 1]) {
		struct state_port *found = &state->ports[index - 1];

		if (found->endpoint == endpoint && found->port == port)
			return found;
	}
	return NULL;
}

struct state_port *port_of(__be16 underlay)
{
	return by_underlay[underlay] ? &state->ports[by_underlay[underlay] - 1] : NULL;
}

struct state_port *port_new(uint32_t endpoint, __be16 port, __be16 underlay)
{
	struct state_port *new;
	uint32_t index;

	for (index = 0; index < top_port && state->ports[index].used; index++)
		;
	if (index == STATE_PORTS)
		return NULL;
	if (index == top_port)
		top_port++;
	new = &state->ports[index];
	*new = (struct state_port){ .endpoint = endpoint, .port = port, .underlay = underlay };
	link_port(index);
	__atomic_store_n(&new->used, 1, __ATOMIC_RELEASE);
	return new;
}

void port_move(struct state_port *port, __be16 underlay)
{
	by_underlay[port->underlay] = 0;
	port->underlay = underlay;
	by_underlay[underlay] = (uint32_t)(port - state->ports) + 1;
}

void port_drop(struct state_port *port)
{
	uint32_t index = (uint32_t)(port - state->ports) + 1;
	uint32_t *link = &port_chains[port_chain(port->endpoint, port->port)];

	__atomic_store_n(&port->used, 0, __ATOMIC_RELEASE);
	while (*link != index)
		link = &port_next[*link - 1];
	*link = port_next[index - 1];
	by_underlay[port->underlay] = 0;
}

uint32_t port_count(uint32_t endpoint)
{
	uint32_t index, count = 0;

	for (index = 0; index < top_port; index++)
		count += state->ports[index].used && state->ports[index].endpoint == endpoint;
	return count;
}

void port_each(void (*one)(struct state_port *port, void *data), void *data)
{
	uint32_t index;

	for (index = 0; index < top_port; index++)
		if (state->ports[index].used)
			one(&state->ports[index], data);
}
