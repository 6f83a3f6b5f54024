// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The sockets of endpoints, and what the shims in their processes ask.
 *
 * Whoever is connected to an endpoint's socket is of that endpoint; nothing in a
 * message says so. A socket that is to be connected comes along with the question,
 * so that its addresses and its cookie are the kernel's word.
 */
#include "router.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <slimnet/address.h>
#include <slimnet/announce.h>

#include <preload/rights.h>

#include "diag.h"
#include "fuzzing.h"
#include "loop.h"
#include "name.h"
#include "own.h"
#include "ports.h"

#define PROCESSES 65536		/* connections of shims, of all endpoints */
#define QUEUE 1024
#define SHARED_TRIES 1000	/* ports that are tried for one connect where all are in use */
#define LISTENERS_MS 1000	/* what was seen of listeners is good for so long */

struct endpoint {
	struct watch watch;
	struct endpoint *next;
	struct state_endpoint *record;
	uint32_t processes;
};

enum waits {
	WAITS_NOT = 0,
	WAITS_RESOLVE,		/* CONNECT, for another host's answer */
	WAITS_ACCEPT,		/* ACCEPT, for an announcement */
	WAITS_ANNOUNCED,	/* CONNECT, for another host to take in its announcement */
	WAITS_LISTENED,		/* BIND, for other hosts to know of it */
};

/* One connection of a shim: it has one question at a time. */
struct process {
	struct watch watch;
	struct timer timer;
	struct process *next;		/* of all */
	struct process *before;
	struct endpoint *endpoint;	/* NULL: it was detached */
	uint32_t number;		/* no other one had it lately */
	uint8_t connects;		/* it connected something */
	uint8_t connecting;		/* it has the answer, and asked for nothing since */
	struct slim_tuple connected;	/* what it connected last */
	enum waits waits;
	uint64_t question;
	struct slim_shim_request request;
	uint32_t pending;		/* WAITS_LISTENED: how many hosts; WAITS_ACCEPT: links */
	struct slim_tuple tuple;	/* WAITS_ACCEPT, WAITS_ANNOUNCED */
	struct slim_shim_answer late;	/* WAITS_ANNOUNCED, WAITS_LISTENED: what it is told then */
	int socket;			/* WAITS_RESOLVE: the one that is to be connected */
	struct answer answer;		/* WAITS_RESOLVE: the way */
};

static struct endpoint *endpoints;
static struct process *processes;
static uint32_t process_count, numbers;
static uint64_t questions;

/* Ports of this host with a listener, at `listeners_at`. */
static uint8_t listening[65536 / 8];
static uint64_t listeners_at;

const struct state_endpoint *endpoint_record(uint32_t id)
{
	uint32_t index;

	for (index = 0; index < SLIM_CONTROL_ENDPOINTS; index++)
		if (state->endpoints[index].used && state->endpoints[index].id == id)
			return &state->endpoints[index];
	return NULL;
}

static int64_t uid_of(uint32_t id)
{
	const struct state_endpoint *record = endpoint_record(id);

	return record ? (int64_t)record->uid : -1;
}

static void see_listener(const struct diag *socket, void *data)
{
	const struct state_port *port = port_of(socket->tuple.source_port);
	uint32_t number = ntohs(socket->tuple.source_port);
	int64_t uid;

	(void)data;
	if (!port)
		return;
	/* Another user's is not the endpoint's, whatever port it took. */
	uid = uid_of(port->endpoint);
	if (uid == (int64_t)socket->uid || uid == (int64_t)(uint32_t)~0u)
		listening[number / 8] |= (uint8_t)(1 << number % 8);
}

static void see_listeners(void)
{
	uint8_t old[sizeof(listening)];

	memcpy(old, listening, sizeof(old));
	memset(listening, 0, sizeof(listening));
	if (diag_each(1 << DIAG_LISTEN, see_listener, NULL)) {
		/* No sock_diag here: the port itself says whether somebody has it. */
		memset(listening, 0xff, sizeof(listening));
	}
	listeners_at = loop_now();
	for (size_t index = 0; index < sizeof(old); index++)
		if (old[index] & ~listening[index]) {
			link_forget(0);
			break;
		}
}

__be16 endpoint_listener(uint32_t endpoint, __be16 port)
{
	const struct state_port *found = port_find(endpoint, port);
	uint32_t number;

	if (!found)
		return 0;
	number = ntohs(found->underlay);
	if (loop_now() - listeners_at > LISTENERS_MS || !(listening[number / 8] >> number % 8 & 1))
		see_listeners();
	return listening[number / 8] >> number % 8 & 1 ? found->underlay : 0;
}

static void process_end(struct process *process);

/* `fd` goes along, or is -1. */
static void reply_with(struct process *process, const struct slim_shim_answer *answer, int fd)
{
	struct iovec part = { (void *)(uintptr_t)answer, sizeof(*answer) };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	union slim_rights rights;

	slim_rights_give(&message, &rights, fd);
	process->waits = WAITS_NOT;
	loop_clear(&process->timer);
	if (sendmsg(process->watch.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) != sizeof(*answer))
		process_end(process);
}

static void reply(struct process *process, const struct slim_shim_answer *answer)
{
	reply_with(process, answer, -1);
}

static struct slim_shim_answer blank(const struct process *process)
{
	return (struct slim_shim_answer){
		.version = SLIM_SHIM_VERSION,
		.call = process->request.call,
	};
}

static void fail(struct process *process, int error, uint32_t reason)
{
	struct slim_shim_answer answer = blank(process);

	answer.error = (uint32_t)error;
	answer.reason = reason;
	reply(process, &answer);
}

static void drop_socket(struct process *process)
{
	if (process->socket >= 0)
		close(process->socket);
	process->socket = -1;
}

static void check_own(struct flow *flow, void *data)
{
	if (flow->used == FLOW_ANNOUNCED && flow->client_here &&
	    flow->by == *(const uint32_t *)data)
		flows_check(flow);
}

static void process_end(struct process *process)
{
	if (process->before)
		process->before->next = process->next;
	else
		processes = process->next;
	if (process->next)
		process->next->before = process->before;
	if (process->endpoint)
		process->endpoint->processes--;
	process_count--;
	loop_clear(&process->timer);
	loop_forget(&process->watch);
	drop_socket(process);
	/* What it was about to connect nobody else may turn up as. */
	if (process->connects)
		flow_each(check_own, &process->number);
	loop_free(process);
}

/* Names: what the kernel has against what the application sees. */

static int read_name(int socket, struct slim_shim_name *name, int *family)
{
	union name address = {};
	socklen_t size = sizeof(address);

	if (getsockname(socket, &address.any, &size))
		return -1;
	*name = (struct slim_shim_name){};
	*family = address.any.sa_family;
	if (!name_read(&address, name->address, &name->port))
		return 0;
	errno = EAFNOSUPPORT;
	return -1;
}

static int bind_to(int socket, int family, const struct slim_shim_name *name)
{
	union name address;
	socklen_t size = name_make(&address, family, name->address, name->port);

	return bind(socket, &address.any, size);
}

/* How the application sees an underlay name of one of its own sockets. */
static void own_name(const struct state_endpoint *me, const struct slim_shim_name *underlay,
		     struct slim_shim_name *overlay)
{
	const struct state_port *port = port_of(underlay->port);

	*overlay = *underlay;
	if (port && port->endpoint == me->id) {
		overlay->port = port->port;
	} else {
		/* One that is a name of another socket's goes by what that socket has instead. */
		while ((port = port_find(me->id, overlay->port)))
			overlay->port = port->underlay;
	}
	if (!slim_is_any(underlay->address) && !slim_is_loopback(underlay->address))
		slim_copy(overlay->address, me->address);
}

/* A name that connections of an endpoint to another name may have. */
struct taken {
	uint32_t endpoint;
	struct slim_shim_name name;	/* overlay */
	const struct slim_shim_name *dialled;
	int found;
};

static void see_name(struct flow *flow, void *data)
{
	struct taken *taken = data;
	struct diag socket;

	if (!taken->found && flow->used && flow->client_here &&
	    flow->client == taken->endpoint && flow->kind != SLIM_WAY_OUTSIDE &&
	    !memcmp(&flow->client_name, &taken->name, sizeof(taken->name)) &&
	    !memcmp(&flow->dialled, taken->dialled, sizeof(taken->name)))
		taken->found = !diag_find(&flow->tuple, &socket);
}

/* Does a connection to the same name, and another destination, have it? `underlay` is its own. */
static int is_name_taken(const struct state_endpoint *me, const struct slim_shim_name *underlay,
			 const struct slim_shim_name *dialled)
{
	struct taken taken = { .endpoint = me->id, .dialled = dialled };

	own_name(me, underlay, &taken.name);
	flow_each(see_name, &taken);
	return taken.found;
}

/*
 * Where every port has a connection, or one in TIME_WAIT: a port that has none to where
 * this one goes. Shims let go of ports that are connected (let_go() in shim/shim.c).
 */
static int bind_shared(const struct process *process, int family,
		       const struct slim_shim_name *name, const struct slim_tuple *tuple)
{
	const struct state_endpoint *me = process->endpoint->record;
	static uint32_t turn;
	struct slim_tuple taken = *tuple;
	struct slim_shim_name one = *name;
	struct diag other;
	uint32_t first = 32768, last = 60999, tries;
	FILE *range = fopen("/proc/sys/net/ipv4/ip_local_port_range", "re");

	if (range && fscanf(range, "%u %u", &first, &last) != 2)
		first = 32768, last = 60999;
	if (range)
		fclose(range);
	if (!first || first > last || last > 65535)
		return EADDRINUSE;
	for (tries = 0; tries < SHARED_TRIES && tries <= last - first; tries++) {
		one.port = htons((uint16_t)(first + turn++ % (last - first + 1)));
		taken.source_port = one.port;
		if (!diag_find(&taken, &other) ||
		    (process->answer.service &&
		     is_name_taken(me, &one, &process->request.peer)))
			continue;
		if (!bind_to(process->socket, family, &one))
			return 0;
		if (errno != EADDRINUSE)
			return errno;
	}
	return EADDRINUSE;
}

/*
 * Takes a source port. Nobody else may bind it while the socket lives: an
 * announced connection from it could be another's. Only where no port is left that
 * nobody used in the last minute, one does that has connections to elsewhere, or had.
 */
static int bind_source(const struct process *process, int family,
		       const struct slim_shim_name *name, const struct slim_tuple *tuple)
{
	const int socket = process->socket;
	static const int off, on = 1;
	socklen_t size = sizeof(int);
	int own = 0, late = 0, error;

	getsockopt(socket, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &late, &size);
	if (late)
		setsockopt(socket, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &off, sizeof(off));
	size = sizeof(int);
	getsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &own, &size);
	if (own)
		setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &off, sizeof(off));
	error = bind_to(socket, family, name) ? errno : 0;
	if (error == EADDRINUSE) {
		setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
		error = bind_shared(process, family, name, tuple);
		if (!own)
			setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &off, sizeof(off));
	} else if (own) {
		setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	}
	if (late)
		setsockopt(socket, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on));
	return error;
}

/* BIND */

static struct process *waiting(enum waits waits, uint64_t question)
{
	struct process *process;

	for (process = processes; process; process = process->next)
		if (process->waits == waits && process->question == question)
			break;
	return process;
}

/* A host that does not say so keeps nobody from listening: it will have heard. */
static void listened_late(struct timer *timer)
{
	struct process *process = CONTAINER(timer, struct process, timer);

	reply(process, &process->late);
}

static void do_bind(struct process *process)
{
	const struct state_endpoint *me = process->endpoint->record;
	const struct slim_shim_request *request = &process->request;
	struct slim_shim_answer answer = blank(process);
	int fresh = 0;

	answer.local = request->local;
	answer.underlay = request->local;
	if (slim_same(request->local.address, me->address)) {
		slim_copy(answer.underlay.address, state->host);
	} else if (!slim_is_any(request->local.address) &&
		   !slim_is_loopback(request->local.address)) {
		count(0, SLIM_INGRESS, SLIM_REASON_FOREIGN_ADDRESS);
		fail(process, EADDRNOTAVAIL, SLIM_REASON_FOREIGN_ADDRESS);
		return;
	}
	if (request->flags & SLIM_SHIM_DATAGRAM) {
		/* Datagrams are not carried: a source of its own is all that one may have. */
		if (request->local.port || slim_is_loopback(request->local.address)) {
			count(0, SLIM_INGRESS, SLIM_REASON_DATAGRAM);
			fail(process, EOPNOTSUPP, SLIM_REASON_DATAGRAM);
			return;
		}
		slim_map_v4(answer.underlay.address, 0);
		if (!slim_is_mapped(request->local.address))
			answer.underlay.address[2] = 0;
		reply(process, &answer);
		return;
	}
	answer.error = (uint32_t)ports_take(me->id, &answer.local.port, &answer.underlay.port,
					    request->flags & SLIM_SHIM_RETRY ?
						    request->underlay.port : 0, &fresh);
	if (fresh)
		answer.flags |= SLIM_SHIM_FRESH;
	if (answer.error) {
		answer.reason = SLIM_REASON_PORT_LIMIT;
		count(0, SLIM_INGRESS, answer.reason);
	} else if (fresh) {
		/* Before anybody can listen there, the hosts know it that cannot ask. */
		process->question = ++questions;
		process->pending = link_listener(port_find(me->id, answer.local.port),
						 process->question, 0);
		if (process->pending) {
			process->waits = WAITS_LISTENED;
			process->late = answer;
			loop_set(&process->timer, SLIM_ANNOUNCE_LISTENER_MS, listened_late);
			return;
		}
	}
	reply(process, &answer);
}

void endpoint_listened(uint64_t question)
{
	struct process *process = waiting(WAITS_LISTENED, question);

	if (process && !--process->pending)
		reply(process, &process->late);
}

/* CONNECT */

static void refused(const struct process *process, const struct answer *why)
{
	const struct slim_shim_name *dialled = &process->request.peer;
	struct slim_event event = {
		.kind = SLIM_EVENT_REFUSED,
		.reason = why->reason,
		.rule = why->rule,
		.direction = why->direction,
		.endpoint = process->endpoint->record->id,
		.peer_endpoint = why->endpoint,
		.destination_port = dialled->port,
		.protocol = process->request.flags & SLIM_SHIM_DATAGRAM ? IPPROTO_UDP : IPPROTO_TCP,
	};

	if (why->direction == SLIM_INGRESS && endpoint_record(why->endpoint)) {
		event.endpoint = why->endpoint;
		event.peer_endpoint = process->endpoint->record->id;
	}
	slim_copy(event.source, process->endpoint->record->address);
	slim_copy(event.destination, dialled->address);
	count(0, (int)why->direction, why->reason);
	tell(&event);
}

static void refuse(struct process *process, const struct answer *why)
{
	int error = (int)why->error;
	uint32_t reason = why->reason;

	refused(process, why);
	drop_socket(process);
	fail(process, error, reason);
}

/* The flow of a tuple that another socket had may be in its way only if that one lives. */
static int make_room(const struct slim_tuple *tuple, uint64_t cookie)
{
	struct flow *old = flow_find(tuple);
	struct diag socket;

	if (!old)
		return 0;
	if (old->client_here && old->cookie != cookie && !diag_find(tuple, &socket) &&
	    socket.cookie == old->cookie && socket.state != DIAG_TIME_WAIT)
		return EADDRNOTAVAIL;
	if (old->kind == SLIM_WAY_WIRE && old->client_here && old->used == FLOW_ANNOUNCED)
		link_withdraw(old);
	flow_drop(old);
	return 0;
}

static void opened(struct flow *flow)
{
	struct slim_event event = {
		.kind = SLIM_EVENT_OPENED,
		.reason = flow->reason,
		.rule = flow->rule,
		.direction = SLIM_EGRESS,
		.endpoint = flow->client,
		.peer_endpoint = flow->server,
		.source_port = flow->client_name.port,
		.destination_port = flow->dialled.port,
		.protocol = IPPROTO_TCP,
	};

	slim_copy(event.source, flow->client_name.address);
	slim_copy(event.destination, flow->dialled.address);
	count(1, SLIM_EGRESS, flow->reason);
	tell(&event);
	flow->reported |= 1;
}

/* To outside of every overlay: as it is, and remembered, for a change may forbid it. */
static void go_outside(struct process *process)
{
	struct slim_shim_answer answer = blank(process);
	const struct state_endpoint *me = process->endpoint->record;
	struct slim_tuple tuple = {};
	uint64_t cookie = 0;
	socklen_t size = sizeof(cookie);
	struct flow *flow;

	getsockopt(process->socket, SOL_SOCKET, SO_COOKIE, &cookie, &size);
	drop_socket(process);
	memcpy(tuple.source, &cookie, sizeof(cookie));
	slim_copy(tuple.destination, process->request.peer.address);
	tuple.destination_port = process->request.peer.port;
	flow = flow_find(&tuple);
	if (flow)
		flow_drop(flow);
	flow = flow_new(&tuple);
	if (!flow) {
		fail(process, ENOBUFS, SLIM_REASON_FLOW_FULL);
		return;
	}
	flow->kind = SLIM_WAY_OUTSIDE;
	flow->client = me->id;
	flow->client_here = 1;
	flow->port = process->request.peer.port;
	slim_copy(flow->client_name.address, me->address);
	flow->dialled = process->request.peer;
	flow->server_name = process->request.peer;
	flow->cookie = cookie;
	flow->since = loop_now();
	flow->opened = now_ns();
	flow->reason = process->answer.reason;
	flow->rule = process->answer.rule;
	flow->by = process->number;
	flow_commit(flow, FLOW_OPEN);
	opened(flow);
	answer.flags = SLIM_SHIM_PLAIN;
	answer.underlay = process->request.peer;
	answer.peer = process->request.peer;
	slim_copy(answer.local.address, me->address);
	reply(process, &answer);
}

/* The other host has taken the announcement in, or not. */
static void answered(struct process *process, int error, uint32_t reason, uint32_t rule)
{
	struct flow *flow = flow_find(&process->tuple);
	struct answer why = process->answer;

	loop_clear(&process->timer);
	process->waits = WAITS_NOT;
	/* New tables may have forbidden it meanwhile. */
	if (!error && (!flow || flow->token != process->question))
		error = ECONNREFUSED;
	if (!error) {
		opened(flow);
		reply(process, &process->late);
		return;
	}
	if (flow && flow->token == process->question) {
		link_withdraw(flow);
		flow_drop(flow);
	}
	why.error = (uint32_t)error;
	why.reason = reason;
	why.rule = rule;
	why.direction = reason == SLIM_REASON_UNREACHABLE ? SLIM_EGRESS : SLIM_INGRESS;
	refuse(process, &why);
}

static void answered_late(struct timer *timer)
{
	answered(CONTAINER(timer, struct process, timer), EHOSTUNREACH, SLIM_REASON_UNREACHABLE, 0);
}

void endpoint_answered(uint64_t token, int error, uint32_t reason, uint32_t rule)
{
	struct process *process = waiting(WAITS_ANNOUNCED, token);

	if (process)
		answered(process, error, reason, rule);
}

/* A port that nobody else gets, and that takes nothing from anybody but itself. 0: none. */
static __be16 nowhere(void)
{
	static __be16 port;
	struct sockaddr_in name = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(name);
	int fd;

	if (port)
		return port;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return 0;
	if (bind(fd, (const struct sockaddr *)&name, sizeof(name)) ||
	    getsockname(fd, (struct sockaddr *)&name, &size) ||
	    connect(fd, (const struct sockaddr *)&name, sizeof(name)))
		close(fd);
	else
		port = name.sin_port;	/* and the socket stays open */
	return port;
}

/* A datagram socket connects: nothing is sent by that. */
static void connect_datagram(struct process *process)
{
	const struct slim_shim_name *dialled = &process->request.peer;
	const struct answer *way = &process->answer;
	struct slim_shim_answer answer = blank(process);

	slim_copy(answer.local.address, process->endpoint->record->address);
	answer.peer = *dialled;
	if (way->kind == SLIM_WAY_OUTSIDE) {
		answer.flags = SLIM_SHIM_PLAIN;
		reply(process, &answer);
		return;
	}
	answer.underlay.port = nowhere();
	if (!way->later || !answer.underlay.port) {
		refuse(process, way);
		return;
	}
	answer.flags = SLIM_SHIM_NOWHERE;
	slim_map_v4(answer.underlay.address, htonl(INADDR_LOOPBACK));
	if (slim_is_any(dialled->address) || slim_is_loopback(dialled->address)) {
		if (slim_is_mapped(dialled->address))
			slim_map_v4(answer.local.address, htonl(INADDR_LOOPBACK));
		else
			answer.local = (struct slim_shim_name){ .address[3] = htonl(1) };
		if (slim_is_any(dialled->address))
			slim_copy(answer.peer.address, answer.local.address);
	}
	reply(process, &answer);
}

/* The listener is known: names the socket, remembers and announces the connection. */
static void go(struct process *process, __be16 underlay_port)
{
	const struct state_endpoint *me = process->endpoint->record;
	const struct answer *way = &process->answer;
	const struct slim_shim_name *dialled = &process->request.peer;
	struct slim_shim_answer answer = blank(process);
	struct slim_shim_name name, any;
	struct slim_tuple tuple = {};
	struct flow *flow, fresh;
	uint64_t cookie = 0, token;
	socklen_t size = sizeof(cookie);
	int family, error;

	if (way->kind == SLIM_WAY_SELF) {
		slim_copy(tuple.destination, dialled->address);
		if (slim_is_any(tuple.destination)) {
			/* As the kernel does: the loopback of its family. */
			if (slim_is_mapped(tuple.destination))
				slim_map_v4(tuple.destination, htonl(INADDR_LOOPBACK));
			else
				tuple.destination[3] = htonl(1);
		}
	} else {
		slim_copy(tuple.destination,
			  way->kind == SLIM_WAY_WIRE ? way->host : state->host);
	}
	tuple.destination_port = underlay_port;
	if (read_name(process->socket, &name, &family)) {
		error = errno;
		goto failed;
	}
	slim_copy(tuple.source, way->kind == SLIM_WAY_SELF ? tuple.destination : state->host);
	/*
	 * What getsockname(2) says may be left of an earlier connection, whose port the kernel
	 * took back: only bind(2) tells, which fails with EINVAL where there is one.
	 */
	any = (struct slim_shim_name){};
	slim_copy(any.address, tuple.source);
	error = bind_source(process, family, &any, &tuple);
	if (error && error != EINVAL)
		goto failed;
	if (!error && read_name(process->socket, &name, &family)) {
		error = errno;
		goto failed;
	}
	if (!slim_is_any(name.address))
		slim_copy(tuple.source, name.address);
	tuple.source_port = name.port;
	getsockopt(process->socket, SOL_SOCKET, SO_COOKIE, &cookie, &size);
	drop_socket(process);
	error = make_room(&tuple, cookie);
	if (error)
		goto failed;
	fresh = (struct flow){
		.kind = way->kind,
		.client = me->id,
		.server = way->endpoint,
		.client_here = 1,
		.server_here = way->kind != SLIM_WAY_WIRE,
		.port = way->port,
		.dialled = *dialled,
	};
	slim_copy(name.address, tuple.source);
	own_name(me, &name, &fresh.client_name);
	if (way->kind == SLIM_WAY_SELF) {
		slim_copy(fresh.dialled.address, tuple.destination);
		fresh.server_name = fresh.dialled;
	} else {
		const struct slim_endpoint *server = tables_endpoint(tables, way->endpoint);

		slim_copy(fresh.server_name.address, server->address);
		fresh.server_name.port = way->port;
	}
	/* A bound port may lead to one name by two ways: behind a service, say. */
	flow = flow_twin(&fresh);
	if (flow) {
		flows_check(flow);
		flow = flow_twin(&fresh);
	}
	if (flow) {
		fail(process, EADDRNOTAVAIL, SLIM_REASON_NONE);
		return;
	}
	flow = flows_new(&tuple);
	if (!flow) {
		struct answer full = *way;

		full.reason = SLIM_REASON_FLOW_FULL;
		full.error = ENOBUFS;
		full.direction = SLIM_EGRESS;
		refuse(process, &full);
		return;
	}
	flow->kind = fresh.kind;
	flow->client = fresh.client;
	flow->server = fresh.server;
	flow->client_here = fresh.client_here;
	flow->server_here = fresh.server_here;
	flow->port = fresh.port;
	flow->client_name = fresh.client_name;
	flow->dialled = fresh.dialled;
	flow->server_name = fresh.server_name;
	flow->token = link_token();
	flow->cookie = cookie;
	flow->since = loop_now();
	flow->opened = now_ns();
	flow->reason = way->reason;
	flow->rule = way->rule;
	flow->peer_reason = way->peer_reason;
	flow->peer_rule = way->peer_rule;
	flow->by = process->number;
	process->connects = 1;
	process->connecting = 1;
	process->connected = tuple;
	flow_commit(flow, FLOW_ANNOUNCED);
	answer.local = flow->client_name;
	answer.peer = flow->dialled;
	slim_copy(answer.underlay.address, tuple.destination);
	answer.underlay.port = tuple.destination_port;
	if (way->kind == SLIM_WAY_WIRE && link_answers(way->host)) {
		process->waits = WAITS_ANNOUNCED;
		process->question = flow->token;
		process->tuple = tuple;
		process->late = answer;
		loop_set(&process->timer, SLIM_SHIM_CONNECT_MS, answered_late);
		link_announce(flow);
		return;
	}
	token = flow->token;
	opened(flow);
	reply(process, &answer);
	/*
	 * Behind it, for the other host waits for what comes after the SYN as well, and the
	 * process goes on meanwhile. It may have ended, and its connection with it.
	 */
	flow = way->kind == SLIM_WAY_WIRE ? flow_find(&tuple) : NULL;
	if (flow && flow->token == token)
		link_announce(flow);
	return;
failed:
	drop_socket(process);
	fail(process, error, SLIM_REASON_NONE);
}

static void resolve_late(struct timer *timer)
{
	struct process *process = CONTAINER(timer, struct process, timer);
	struct answer why = process->answer;

	why.reason = SLIM_REASON_UNREACHABLE;
	why.error = EHOSTUNREACH;
	why.direction = SLIM_EGRESS;
	refuse(process, &why);
}

void endpoint_resolved(uint64_t question, int error, uint32_t reason, uint32_t rule,
		       __be16 underlay_port)
{
	struct process *process = waiting(WAITS_RESOLVE, question);

	if (!process)
		return;
	loop_clear(&process->timer);
	process->waits = WAITS_NOT;
	if (error) {
		struct answer why = process->answer;

		why.error = (uint32_t)error;
		why.reason = reason;
		why.rule = rule;
		why.direction = reason == SLIM_REASON_UNREACHABLE ? SLIM_EGRESS : SLIM_INGRESS;
		refuse(process, &why);
	} else {
		go(process, underlay_port);
	}
}

static void ask_again(const __be32 *host, int reachable)
{
	struct process *process, *next;

	for (process = processes; process; process = next) {
		const struct answer *way = &process->answer;
		__be16 port = 0;
		uint32_t reason = SLIM_REASON_UNREACHABLE;
		int error = EHOSTUNREACH;

		next = process->next;
		if (process->waits == WAITS_ANNOUNCED && process->endpoint &&
		    slim_same(way->host, host)) {
			const struct flow *flow = flow_find(&process->tuple);

			if (!reachable)
				answered(process, EHOSTUNREACH, SLIM_REASON_UNREACHABLE, 0);
			else if (flow && flow->token == process->question)
				link_announce(flow);
			continue;
		}
		if (process->waits != WAITS_RESOLVE || !process->endpoint ||
		    !slim_same(way->host, host))
			continue;
		if (reachable)
			error = link_resolve(host, process->endpoint->record->id, way->endpoint,
					     way->port, process->question, &port, &reason);
		if (error != 1)
			endpoint_resolved(process->question, error, reason, 0, port);
	}
}

void endpoint_reachable(const __be32 *host)
{
	ask_again(host, 1);
}

void endpoint_unreachable(const __be32 *host)
{
	ask_again(host, 0);
}

/* What the socket's bind says of where it may go: enum source. */
static int source_of(const struct slim_shim_name *name)
{
	const struct state_port *port = name->port ? port_of(name->port) : NULL;

	if (slim_is_loopback(name->address))
		return SOURCE_LOOPBACK;
	return port && port->explicit ? SOURCE_PORT : SOURCE_ANY;
}

static void do_connect(struct process *process)
{
	const struct state_endpoint *me = process->endpoint->record;
	const int stream = !(process->request.flags & SLIM_SHIM_DATAGRAM);
	struct answer *way = &process->answer;
	struct slim_shim_name name = {};
	__be16 underlay_port = 0;
	uint32_t reason = 0;
	int error;

	if (stream) {
		int family, protocol = 0;
		socklen_t size = sizeof(int);
		struct tcp_info info = {};

		/* A raw socket may have that protocol, and has no TCP_INFO. */
		getsockopt(process->socket, SOL_SOCKET, SO_PROTOCOL, &protocol, &size);
		size = sizeof(info);
		if (process->socket < 0 || protocol != IPPROTO_TCP ||
		    read_name(process->socket, &name, &family) ||
		    getsockopt(process->socket, IPPROTO_TCP, TCP_INFO, &info, &size)) {
			drop_socket(process);
			fail(process, EPROTONOSUPPORT, SLIM_REASON_PROTOCOL);
			return;
		}
		if (info.tcpi_state != TCP_CLOSE) {
			drop_socket(process);
			fail(process, info.tcpi_state == TCP_SYN_SENT ? EALREADY : EISCONN,
			     SLIM_REASON_NONE);
			return;
		}
	}
	tables_way(tables, me->vni, me->id, &process->request.peer, stream, source_of(&name), way);
	if (process->request.flags & SLIM_SHIM_EMPTY && !stream) {
		connect_datagram(process);
		return;
	}
	switch (way->kind) {
	case SLIM_WAY_OUTSIDE:
		if (stream) {
			go_outside(process);
		} else {
			struct slim_shim_answer answer = blank(process);

			answer.flags = SLIM_SHIM_PLAIN;
			reply(process, &answer);
		}
		return;
	case SLIM_WAY_SELF:
	case SLIM_WAY_SAME_HOST:
		underlay_port = endpoint_listener(way->endpoint, way->port);
		error = underlay_port ? 0 : ECONNREFUSED;
		reason = SLIM_REASON_SYN_NO_LISTENER;
		break;
	case SLIM_WAY_WIRE:
		process->question = ++questions;
		error = link_resolve(way->host, me->id, way->endpoint, way->port,
				     process->question, &underlay_port, &reason);
		if (error == 1) {
			process->waits = WAITS_RESOLVE;
			loop_set(&process->timer, SLIM_SHIM_CONNECT_MS, resolve_late);
			return;
		}
		break;
	default:
		refuse(process, way);
		return;
	}
	if (error) {
		way->error = (uint32_t)error;
		way->reason = reason;
		way->rule = 0;
		if (reason != SLIM_REASON_UNREACHABLE)
			way->direction = SLIM_INGRESS;
		refuse(process, way);
		return;
	}
	go(process, underlay_port);
}

/* FAILED: `local` and `peer` as the kernel has them. */
static void do_failed(struct process *process)
{
	struct slim_shim_answer answer = blank(process);
	struct slim_tuple tuple = {
		.source_port = process->request.local.port,
		.destination_port = process->request.peer.port,
	};
	struct flow *flow;

	slim_copy(tuple.source, process->request.local.address);
	slim_copy(tuple.destination, process->request.peer.address);
	flow = flow_find(&tuple);
	if (flow && flow->client_here && flow->client == process->endpoint->record->id &&
	    flow->used == FLOW_ANNOUNCED)
		flows_check(flow);
	reply(process, &answer);
}

/* ACCEPT */

static void stranger(struct process *process, uint32_t reason)
{
	struct slim_event event = {
		.kind = SLIM_EVENT_REFUSED,
		.reason = reason,
		.direction = SLIM_INGRESS,
		.endpoint = process->endpoint->record->id,
		.source_port = process->request.peer.port,
		.protocol = IPPROTO_TCP,
	};
	struct slim_shim_name local;

	own_name(process->endpoint->record, &process->request.local, &local);
	slim_copy(event.source, process->request.peer.address);
	slim_copy(event.destination, local.address);
	event.destination_port = local.port;
	count(0, SLIM_INGRESS, reason);
	tell(&event);
	fail(process, ECONNABORTED, reason);
}

static void accept_late(struct timer *timer)
{
	stranger(CONTAINER(timer, struct process, timer), SLIM_REASON_NO_FLOW);
}

static struct slim_event accepting(uint32_t kind, const struct flow *flow, const struct answer *why)
{
	struct slim_event event = {
		.kind = kind,
		.reason = why->reason,
		.rule = why->rule,
		.direction = SLIM_INGRESS,
		.endpoint = flow->server,
		.peer_endpoint = flow->client,
		.source_port = flow->client_name.port,
		.destination_port = flow->server_name.port,
		.protocol = IPPROTO_TCP,
	};

	slim_copy(event.source, flow->client_name.address);
	slim_copy(event.destination, flow->server_name.address);
	return event;
}

/* Somebody has it, with `client` in its place where that is a socket. */
static void accepted(struct process *process, struct flow *flow, const struct answer *why,
		     int client)
{
	struct slim_event event = accepting(SLIM_EVENT_OPENED, flow, why);
	struct slim_shim_answer answer = blank(process);

	flow->peer_reason = why->reason;
	flow->peer_rule = why->rule;
	flow->reported |= 2;
	flow->missed = 0;
	flow_commit(flow, FLOW_OPEN);
	count(1, SLIM_INGRESS, why->reason);
	tell(&event);
	answer.local = flow->server_name;
	answer.peer = flow->client_name;
	if (client >= 0)
		answer.flags = SLIM_SHIM_GIVEN;
	reply_with(process, &answer, client);
}

/* A client of a published port. 1: it is answered; 0: it is none. */
static int accept_published(struct process *process)
{
	struct flow *flow;
	struct answer why;
	int client;

	if (!published_accepted(&process->tuple, process->endpoint->record->id,
				!!(process->request.flags & SLIM_SHIM_V4), &client, &flow, &why))
		return 0;
	if (client < 0) {
		fail(process, (int)why.error, why.reason);
		return 1;
	}
	accepted(process, flow, &why, client);
	close(client);
	return 1;
}

/* 1: it is answered; 0: there is no announcement. */
static int accept_known(struct process *process)
{
	const struct state_endpoint *me = process->endpoint->record;
	struct flow *flow = flow_find(&process->tuple);
	struct answer why;

	if (!flow || !flow->server_here || flow->server != me->id)
		return 0;
	if (flow->used == FLOW_OPEN && flow->reported & 2)
		return 0;	/* it was for one connection */
	if (tables_admit(tables, flow->client, flow->server, flow->port, &why)) {
		struct slim_event event = accepting(SLIM_EVENT_REFUSED, flow, &why);

		count(0, SLIM_INGRESS, why.reason);
		tell(&event);
		flow_drop(flow);
		fail(process, (int)why.error, why.reason);
		return 1;
	}
	accepted(process, flow, &why, -1);
	return 1;
}

static void accept_waiting(const struct slim_tuple *tuple, int probed, uint64_t question)
{
	struct process *process, *next;

	for (process = processes; process; process = next) {
		next = process->next;
		if (process->waits != WAITS_ACCEPT || !process->endpoint ||
		    (question && process->question != question) ||
		    memcmp(&process->tuple, tuple, sizeof(*tuple)) ||
		    (probed && process->pending && --process->pending))
			continue;
		process->waits = WAITS_NOT;
		loop_clear(&process->timer);
		if (!accept_known(process))
			stranger(process, SLIM_REASON_NO_FLOW);
	}
}

void endpoint_announced(const struct slim_tuple *tuple)
{
	accept_waiting(tuple, 0, 0);
}

void endpoint_probed(const struct slim_tuple *tuple, uint64_t question)
{
	accept_waiting(tuple, 1, question);
}

static void do_accept(struct process *process)
{
	const struct state_endpoint *me = process->endpoint->record;
	const struct slim_shim_request *request = &process->request;
	const struct state_port *port = port_of(request->local.port);

	if (!port || port->endpoint != me->id) {
		/* Of a listener that was the host's before it was the endpoint's. */
		struct slim_shim_answer answer = blank(process);

		answer.flags = SLIM_SHIM_PLAIN;
		reply(process, &answer);
		return;
	}
	process->tuple = (struct slim_tuple){
		.source_port = request->peer.port,
		.destination_port = request->local.port,
	};
	slim_copy(process->tuple.source, request->peer.address);
	slim_copy(process->tuple.destination, request->local.address);
	/* First: the tuple of an announced one that has gone may be a knock's now. */
	if (accept_published(process) || accept_known(process))
		return;
	/* On this host what is announced is announced before it connects. */
	if (own_find(request->peer.address) || slim_is_loopback(request->peer.address) ||
	    !tables_host(tables, request->peer.address)) {
		stranger(process, SLIM_REASON_NO_FLOW);
		return;
	}
	process->waits = WAITS_ACCEPT;
	process->question = ++questions;
	loop_set(&process->timer, SLIM_SHIM_ACCEPT_MS, accept_late);
	process->pending = link_probe(&process->tuple, process->question);
}

/* NAME */

static void do_name(struct process *process)
{
	const struct state_endpoint *me = process->endpoint->record;
	const struct slim_shim_request *request = &process->request;
	struct slim_shim_answer answer = blank(process);
	struct slim_tuple tuple = {
		.source_port = request->local.port,
		.destination_port = request->peer.port,
	};
	const struct flow *flow;

	own_name(me, &request->local, &answer.local);
	answer.peer = request->peer;
	if (request->peer.port) {
		slim_copy(tuple.source, request->local.address);
		slim_copy(tuple.destination, request->peer.address);
		flow = flow_find(&tuple);
		if (flow && flow->client_here && flow->client == me->id) {
			answer.local = flow->client_name;
			answer.peer = flow->dialled;
			reply(process, &answer);
			return;
		}
		slim_copy(tuple.source, request->peer.address);
		slim_copy(tuple.destination, request->local.address);
		tuple.source_port = request->peer.port;
		tuple.destination_port = request->local.port;
		flow = flow_find(&tuple);
		if (flow && flow->server_here && flow->server == me->id) {
			answer.local = flow->server_name;
			answer.peer = flow->client_name;
		} else {
			answer.flags = SLIM_SHIM_PLAIN;
		}
	}
	reply(process, &answer);
}

/* A thread that asks for something else has called connect(2): until then nobody else may ask. */
static void came(struct process *process)
{
	struct flow *flow = process->connecting ? flow_find(&process->connected) : NULL;

	process->connecting = 0;
	if (flow && flow->by == process->number)
		flow->came = 1;
}

/* A process's connection has something to read. */
static void process_ready(struct watch *watch, uint32_t events)
{
	struct process *process = CONTAINER(watch, struct process, watch);
	union slim_rights rights;
	struct slim_shim_request request;
	struct iovec part = { &request, sizeof(request) };
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &rights,
		.msg_controllen = sizeof(rights),
	};
	int socket = -1;
	ssize_t size = recvmsg(watch->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	(void)events;
	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (size > 0)
		socket = slim_rights_take(&message);
	/* A second question while the first is open is no shim of ours. */
	if (size <= 0 || !process->endpoint || process->waits) {
		if (socket >= 0)
			close(socket);
		process_end(process);
		return;
	}
	if (size != sizeof(request) || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ||
	    request.version != SLIM_SHIM_VERSION) {
		struct slim_shim_answer answer = {
			.version = SLIM_SHIM_VERSION,
			.error = EPROTO,
		};

		if (socket >= 0)
			close(socket);
		send(watch->fd, &answer, sizeof(answer), MSG_NOSIGNAL | MSG_DONTWAIT);
		process_end(process);
		return;
	}
	drop_socket(process);
	came(process);
	process->socket = socket;
	process->request = request;
	switch (request.call) {
	case SLIM_SHIM_BIND:
		do_bind(process);
		break;
	case SLIM_SHIM_CONNECT:
		do_connect(process);
		break;
	case SLIM_SHIM_FAILED:
		do_failed(process);
		break;
	case SLIM_SHIM_ACCEPT:
		do_accept(process);
		break;
	case SLIM_SHIM_NAME:
		do_name(process);
		break;
	default:
		fail(process, EPROTO, SLIM_REASON_NONE);
	}
}

static int process_new(struct endpoint *endpoint, int fd)
{
	struct process *process = calloc(1, sizeof(*process));

	if (!process || loop_watch(&process->watch, fd, EPOLLIN, process_ready)) {
		free(process);
		close(fd);
		return -1;
	}
	process->socket = -1;
	process->number = ++numbers ? numbers : ++numbers;
	process->endpoint = endpoint;
	process->next = processes;
	if (processes)
		processes->before = process;
	processes = process;
	endpoint->processes++;
	process_count++;
	return 0;
}

/* An endpoint's socket has a new process. */
static void endpoint_ready(struct watch *watch, uint32_t events)
{
	struct endpoint *endpoint = CONTAINER(watch, struct endpoint, watch);
	struct ucred who;
	socklen_t size = sizeof(who);
	int fd = loop_accept(watch, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)events;
	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) ||
	    (endpoint->record->uid != (uint32_t)~0u && endpoint->record->uid != who.uid) ||
	    process_count >= PROCESSES) {
		close(fd);
		return;
	}
	process_new(endpoint, fd);
}

static int listen_at(const char *path)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -1;
	memcpy(name.sun_path, path, strnlen(path, sizeof(name.sun_path) - 1));
	unlink(path);
	if (bind(fd, (struct sockaddr *)&name, sizeof(name)) ||
	    /* Who may use it is SO_PEERCRED's to say: not all of an endpoint's users own it. */
	    chmod(path, 0666) || listen(fd, QUEUE)) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

int endpoint_open(const struct state_endpoint *record)
{
	struct state_endpoint *place = NULL;
	struct endpoint *endpoint;
	uint32_t index;
	int fd;

	for (endpoint = endpoints; endpoint; endpoint = endpoint->next) {
		const struct state_endpoint *old = endpoint->record;

		if (old->id == record->id && old->vni == record->vni && old->uid == record->uid &&
		    slim_same(old->address, record->address) && !strcmp(old->path, record->path) &&
		    !access(record->path, F_OK))
			return 0;
	}
	endpoint_close(record->id);
	for (index = 0; index < SLIM_CONTROL_ENDPOINTS && !place; index++)
		if (!state->endpoints[index].used)
			place = &state->endpoints[index];
	if (!place) {
		errno = ENOSPC;
		return -1;
	}
	endpoint = calloc(1, sizeof(*endpoint));
	fd = endpoint ? listen_at(record->path) : -1;
	if (fd < 0 || loop_watch(&endpoint->watch, fd, EPOLLIN, endpoint_ready)) {
		int error = errno;

		if (fd >= 0)
			close(fd);
		free(endpoint);
		errno = error;
		return -1;
	}
	*place = *record;
	place->used = 0;
	__atomic_store_n(&place->used, 1, __ATOMIC_RELEASE);
	endpoint->record = place;
	endpoint->next = endpoints;
	endpoints = endpoint;
	return 0;
}

static void drop_port(struct state_port *port, void *data)
{
	if (port->endpoint == *(const uint32_t *)data) {
		link_listener(port, 0, 1);
		port_drop(port);
	}
}

void endpoint_close(uint32_t id)
{
	struct endpoint **link, *endpoint;
	struct process *process, *next;

	for (link = &endpoints; *link && (*link)->record->id != id; link = &(*link)->next)
		;
	endpoint = *link;
	if (!endpoint)
		return;
	*link = endpoint->next;
	for (process = processes; process; process = next) {
		next = process->next;
		if (process->endpoint == endpoint)
			process_end(process);
	}
	loop_forget(&endpoint->watch);
	unlink(endpoint->record->path);
	__atomic_store_n(&endpoint->record->used, 0, __ATOMIC_RELEASE);
	port_each(drop_port, &id);
	link_forget(id);
	published_forget(id);
	loop_free(endpoint);
}

void endpoint_sweep(void)
{
	if (endpoints)
		see_listeners();
}

int endpoint_start(void)
{
	uint32_t index;

	for (index = 0; index < SLIM_CONTROL_ENDPOINTS; index++) {
		struct state_endpoint record = state->endpoints[index];

		if (!record.used)
			continue;
		state->endpoints[index].used = 0;
		if (endpoint_open(&record))
			say("endpoint %u: %s: %s", record.id, record.path, strerror(errno));
	}
	return 0;
}

#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
void fuzz_process(int fd)
{
	process_new(endpoints, fd);
}

int fuzz_turn(void)
{
	if (processes)
		process_ready(&processes->watch, EPOLLIN);
	return processes != NULL;
}

void fuzz_end(void)
{
	while (processes)
		process_end(processes);
	fuzz_bury();
}
#endif
