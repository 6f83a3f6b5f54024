// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What becomes of connections after they are made: those that new tables forbid are
 * closed, those that are gone are forgotten, and one that was announced and whose
 * socket is gone is taken back before somebody else turns up in its place.
 */
#include "router.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <slimnet/announce.h>
#include <slimnet/address.h>

#include "diag.h"
#include "loop.h"

#define SWEEP_MS 1000
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

static struct timer sweeping;
static uint32_t unclosed;	/* flows that are */

static void closed(const struct flow *flow, uint32_t reason)
{
	struct slim_event event = {
		.kind = SLIM_EVENT_CLOSED,
		.reason = reason,
		.source_port = flow->client_name.port,
		.protocol = IPPROTO_TCP,
		.duration = now_ns() - flow->opened,
	};

	slim_copy(event.source, flow->client_name.address);
	if (flow->client_here && flow->reported & 1) {
		event.direction = SLIM_EGRESS;
		event.endpoint = flow->client;
		event.peer_endpoint = flow->server;
		event.rule = flow->rule;
		slim_copy(event.destination, flow->dialled.address);
		event.destination_port = flow->dialled.port;
		if (!reason)
			event.reason = flow->reason;
		tell(&event);
	}
	if (flow->server_here && flow->reported & 2) {
		event.direction = SLIM_INGRESS;
		event.endpoint = flow->server;
		event.peer_endpoint = flow->client;
		event.rule = flow->peer_rule;
		slim_copy(event.destination, flow->server_name.address);
		event.destination_port = flow->server_name.port;
		if (!reason)
			event.reason = flow->peer_reason;
		tell(&event);
	}
}

static void withdraw(struct flow *flow)
{
	if (flow->kind == SLIM_WAY_WIRE && flow->client_here)
		link_withdraw(flow);
}

struct flow *flows_new(const struct slim_tuple *tuple)
{
	struct flow *flow = flow_new(tuple);

	if (flow)
		return flow;
	flows_sweep();
	return flow_new(tuple);
}

void flows_end(struct flow *flow)
{
	withdraw(flow);
	closed(flow, SLIM_REASON_NONE);
	flow_drop(flow);
}

void flows_check(struct flow *flow)
{
	struct diag socket;

	if (!flow->client_here || flow->kind == SLIM_WAY_OUTSIDE)
		return;
	if (!diag_find(&flow->tuple, &socket) && socket.cookie == flow->cookie &&
	    socket.state != DIAG_TIME_WAIT)
		return;
	flows_end(flow);
}

/* The tuple as the acceptor's socket has it. */
static struct slim_tuple turned(const struct slim_tuple *tuple)
{
	struct slim_tuple back = {
		.source_port = tuple->destination_port,
		.destination_port = tuple->source_port,
	};

	slim_copy(back.source, tuple->destination);
	slim_copy(back.destination, tuple->source);
	return back;
}

struct flow *flows_of(const struct diag *socket, int *egress)
{
	const struct slim_tuple back = turned(&socket->tuple);
	struct slim_tuple outside = {};
	struct flow *flow = flow_find(&socket->tuple);

	*egress = 1;
	if (flow && flow->client_here && flow->cookie == socket->cookie)
		return flow;
	flow = flow_find(&back);
	if (flow && flow->server_here) {
		*egress = 0;
		return flow;
	}
	memcpy(outside.source, &socket->cookie, sizeof(socket->cookie));
	slim_copy(outside.destination, socket->tuple.destination);
	outside.destination_port = socket->tuple.destination_port;
	return flow_find(&outside);
}

static void see(const struct diag *socket, void *data)
{
	int egress;
	struct flow *flow = flows_of(socket, &egress);

	(void)data;
	if (!flow)
		return;
	flow->missed = 0;
	flow->came = 1;
}

int flows_is_to_come(struct flow *flow)
{
	struct diag socket;

	if (flow->used != FLOW_ANNOUNCED || flow->came)
		return 0;
	flow->came = !diag_find(&flow->tuple, &socket) && socket.state == DIAG_TIME_WAIT;
	return !flow->came;
}

static void age(struct flow *flow, void *data)
{
	(void)data;
	if (flow->missed < 255)
		flow->missed++;
}

static void forget(struct flow *flow, void *data)
{
	const uint64_t age = loop_now() - flow->since;

	(void)data;
	if (flow->missed < 2)
		return;
	if (flow->client_here || flow->used == FLOW_OPEN) {
		/*
		 * Nobody has its socket: not the client's, or, accepted, not the server's. One that
		 * is about to connect may have to wait for a processor; if it ends instead, the
		 * router is told (router_ask_first() of the shim).
		 */
		if (flow->client_here && flow->kind != SLIM_WAY_OUTSIDE &&
		    (age < SWEEP_MS || (age < SLIM_ANNOUNCE_ANNOUNCED_MS && flows_is_to_come(flow))))
			return;
		flows_end(flow);
	} else if (age > SLIM_ANNOUNCE_ANNOUNCED_MS) {
		flow_drop(flow);	/* it never came */
	}
}

void flows_sweep(void)
{
	if (!flow_count())
		return;
	flow_each(age, NULL);
	if (diag_each(FLOWS_LIVE, see, NULL))
		return;		/* not known: nothing is forgotten */
	flow_each(forget, NULL);
}

static void count_unclosed(struct flow *flow, void *data)
{
	(void)data;
	unclosed += flow->unclosed;
}

/* Whoever has them may be within reach by now, or they have ended. */
static void try_again(void)
{
	if (flows_revokes()) {
		flows_revoke();
	} else {
		unclosed = 0;
		flow_each(count_unclosed, NULL);
	}
}

static void sweep(struct timer *timer)
{
	flows_sweep();
	if (unclosed)
		try_again();
	endpoint_sweep();
	published_sweep();
	loop_set(timer, SWEEP_MS, sweep);
}

void flows_start(void)
{
	loop_set(&sweeping, SWEEP_MS, sweep);
}

/* Revocation: the sockets that are to be closed, and how. */

struct doomed {
	struct diag *sockets;
	size_t count, room;
	int failed;	/* no memory, or no list of sockets */
};

/* Only policy ends what lives: that tables lost its other end (a lease ran out) is none. */
static int denies(const struct answer *why)
{
	return why->reason == SLIM_REASON_RULE_DENY || why->reason == SLIM_REASON_DEFAULT_DENY ||
	       why->reason == SLIM_REASON_HOST_DENY;
}

static int allowed(const struct flow *flow, struct answer *why)
{
	*why = (struct answer){ .direction = SLIM_EGRESS };
	if (flow->kind == SLIM_WAY_SELF)
		return tables_endpoint(tables, flow->client) != NULL;
	if (flow->kind == SLIM_WAY_OUTSIDE && flow->server_here)
		return !tables_admit_from(tables, flow->tuple.source, flow->server, flow->port,
					  why) || !denies(why);
	if (flow->kind == SLIM_WAY_OUTSIDE) {
		const struct slim_endpoint *me = tables_endpoint(tables, flow->client);
		struct slim_shim_name name = flow->dialled;

		if (!me)
			return 0;
		tables_way(tables, me->vni, flow->client, &name, 1, SOURCE_ANY, why);
		return why->kind == SLIM_WAY_OUTSIDE;
	}
	if (flow->client_here &&
	    tables_leave(tables, flow->client, flow->server, flow->port, why) && denies(why))
		return 0;
	return !flow->server_here ||
	       !tables_admit(tables, flow->client, flow->server, flow->port, why) || !denies(why);
}

static void condemn(const struct diag *socket, void *data)
{
	struct doomed *doomed = data;
	struct answer why;
	int egress;
	struct flow *flow = flows_of(socket, &egress);

	if (!flow || allowed(flow, &why))
		return;
	flow->unclosed = 1;
	if (doomed->count == doomed->room) {
		size_t room = doomed->room ? 2 * doomed->room : 64;
		struct diag *more = realloc(doomed->sockets, room * sizeof(*more));

		if (!more) {
			doomed->failed = 1;
			return;
		}
		doomed->sockets = more;
		doomed->room = room;
	}
	doomed->sockets[doomed->count++] = *socket;
}

/* Ends a connection that somebody else has, as a reset would. */
static int hang_up(int pid, int number, unsigned int inode)
{
	const struct sockaddr none = { .sa_family = AF_UNSPEC };
	int process = (int)syscall(SYS_pidfd_open, pid, 0), copy, done = -1;
	struct stat about;

	if (process < 0)
		return -1;
	copy = (int)syscall(SYS_pidfd_getfd, process, number, 0);
	close(process);
	if (copy < 0)
		return -1;
	/* The number may be another file's by now. */
	if (!fstat(copy, &about) && S_ISSOCK(about.st_mode) && about.st_ino == inode) {
		/* tcp_disconnect(): RST to the peer; ECONNRESET here, EPIPE to who waits. */
		done = connect(copy, &none, sizeof(none));
		/* Not where somebody waits, say some kernels, such as 5.10.223; then it ends. */
		if (done && errno == EBUSY)
			done = shutdown(copy, SHUT_RDWR);
	}
	close(copy);
	return done;
}

/* Looks through the descriptors of one process. Answers how many it closed. */
static void search(const char *pid, const struct doomed *doomed, uint8_t *done)
{
	char path[64], link[64];
	const struct dirent *entry;
	DIR *directory;

	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	directory = opendir(path);
	if (!directory)
		return;
	while ((entry = readdir(directory))) {
		unsigned int inode;
		size_t index;
		ssize_t size = readlinkat(dirfd(directory), entry->d_name, link, sizeof(link) - 1);

		if (size <= 0)
			continue;
		link[size] = 0;
		if (sscanf(link, "socket:[%u]", &inode) != 1)
			continue;
		for (index = 0; index < doomed->count; index++)
			if (doomed->sockets[index].inode == inode && !done[index] &&
			    !hang_up(atoi(pid), atoi(entry->d_name), inode))
				done[index] = 1;
	}
	closedir(directory);
}

static void search_all(const struct doomed *doomed, uint8_t *done)
{
	const struct dirent *entry;
	DIR *directory = opendir("/proc");

	if (!directory)
		return;
	while ((entry = readdir(directory)))
		if (entry->d_name[0] > '0' && entry->d_name[0] <= '9')
			search(entry->d_name, doomed, done);
	closedir(directory);
}

static void tell_revoked(const struct flow *flow, const struct answer *why)
{
	const int egress = why->direction == SLIM_EGRESS;
	const struct slim_shim_name *to = egress && flow->kind == SLIM_WAY_OUTSIDE ?
					  &flow->dialled : &flow->server_name;
	struct slim_event event = {
		.kind = SLIM_EVENT_REFUSED,
		.reason = SLIM_REASON_REVOKED,
		.rule = why->rule,
		.direction = why->direction,
		.endpoint = egress ? flow->client : flow->server,
		.peer_endpoint = egress ? flow->server : flow->client,
		.source_port = flow->client_name.port,
		.destination_port = to->port,
		.protocol = IPPROTO_TCP,
	};

	slim_copy(event.source, flow->client_name.address);
	slim_copy(event.destination, to->address);
	count(0, (int)why->direction, SLIM_REASON_REVOKED);
	tell(&event);
}

static void forbid(struct flow *flow, void *data)
{
	struct answer why;

	(void)data;
	if (flow->unclosed) {
		unclosed++;
		return;
	}
	if (allowed(flow, &why))
		return;
	tell_revoked(flow, &why);
	withdraw(flow);
	closed(flow, SLIM_REASON_REVOKED);
	flow_drop(flow);
}

static void forgive(struct flow *flow, void *data)
{
	(void)data;
	flow->unclosed = 0;
}

/* One of its sockets was closed, which ends the other. */
static void was_closed(const struct diag *socket)
{
	int egress;
	struct flow *flow = flows_of(socket, &egress);

	if (flow)
		flow->unclosed = 0;
}

int flows_revokes(void)
{
	return !geteuid() || syscall(SYS_pidfd_getfd, -1, 0, 0) >= 0 || errno != ENOSYS;
}

void flows_trouble(char *text, size_t room)
{
	text[0] = 0;
	if (unclosed)
		snprintf(text, room, "connections that policy forbids live on: %u%s", unclosed,
			 flows_revokes() ? "" : " (closing them needs Linux 5.6, or root)");
}

void flows_revoke(void)
{
	struct doomed doomed = {};
	const uint32_t before = unclosed;
	uint8_t *done = NULL;
	size_t index, left = 0;

	unclosed = 0;
	if (!flow_count())
		return;
	flow_each(forgive, NULL);
	if (diag_each(FLOWS_LIVE, condemn, &doomed))
		doomed.failed = 1;
	if (doomed.count)
		done = calloc(doomed.count, 1);
	if (done) {
		for (index = 0; index < doomed.count; index++) {
			done[index] = !diag_destroy(&doomed.sockets[index]);
			left += !done[index];
		}
		if (left)
			search_all(&doomed, done);
		for (index = 0; index < doomed.count; index++)
			if (done[index])
				was_closed(&doomed.sockets[index]);
	}
	free(done);
	free(doomed.sockets);
	flow_each(forbid, NULL);
	if (unclosed && unclosed != before)
		say("%u connections that the tables forbid could not be closed", unclosed);
	if (doomed.failed)
		say("not all connections that the tables forbid could be found");
}
