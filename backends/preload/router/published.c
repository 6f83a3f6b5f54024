// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Ports of this host that are an endpoint's. The router listens there, and decides. For a
 * client that may come in it connects to the endpoint's listener itself: a knock, by which
 * the application's own socket becomes readable and its queue is as long as it asked for.
 * Who accepts the knock is given the client's socket in its place (endpoint.c).
 *
 * So a client that is refused, or for whom nobody listens, is connected first and reset then.
 */
#include "router.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <slimnet/address.h>

#include "loop.h"
#include "name.h"

#define QUEUE 1024	/* clients of one port that the kernel keeps while its listener is full */
#define WAITING 1024	/* and that wait here to be accepted */
#define TURN 64		/* that are taken in at once */

struct listener {
	struct watch watch;		/* fd -1: it is not to be had */
	struct listener *next;
	struct slim_publish_key key;
	struct slim_publish to;
	int error;			/* why it is not to be had */
	uint32_t waiting;
	uint32_t slow;			/* of these, whose knock waits for room */
	uint8_t wanted;
};

/* A client that nobody accepted yet. */
struct given {
	struct watch knock;
	struct given *next;
	struct given *before;
	struct listener *listener;	/* NULL: the port was taken back meanwhile */
	struct slim_tuple tuple;	/* the client's */
	struct slim_tuple knocked;
	uint32_t endpoint;
	__be16 port;
	uint8_t slow;
	int client;
};

static struct listener *listeners;
static struct given *every;

/* RST when it is closed, and no TIME_WAIT. */
static void set_reset(int fd)
{
	const struct linger now = { .l_onoff = 1 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

static void reset(int client)
{
	set_reset(client);
	close(client);
}

static void refused(uint32_t endpoint, __be16 port, const struct slim_tuple *tuple,
		    uint32_t reason, uint32_t rule)
{
	const struct slim_endpoint *called = tables_endpoint(tables, endpoint);
	struct slim_event event = {
		.kind = SLIM_EVENT_REFUSED,
		.reason = reason,
		.rule = rule,
		.direction = SLIM_INGRESS,
		.endpoint = endpoint,
		.source_port = tuple->source_port,
		.destination_port = port,
		.protocol = IPPROTO_TCP,
	};

	slim_copy(event.source, tuple->source);
	if (called)
		slim_copy(event.destination, called->address);
	count(0, SLIM_INGRESS, reason);
	tell(&event);
}

/* Takes in more, or no more for now. */
static void want(struct listener *listener)
{
	const int full = listener->slow || listener->waiting >= WAITING;

	loop_want(&listener->watch, full ? 0 : EPOLLIN);
}

/* Nothing of it is left but the client's socket. */
static void given_free(struct given *given)
{
	struct listener *listener = given->listener;

	if (listener) {
		listener->waiting--;
		listener->slow -= given->slow;
		want(listener);
	}
	if (given->before)
		given->before->next = given->next;
	else
		every = given->next;
	if (given->next)
		given->next->before = given->before;
	loop_forget(&given->knock);
	loop_free(given);
}

static void given_end(struct given *given)
{
	reset(given->client);
	given_free(given);
}

/* 0; EAGAIN: the listener's queue is full; else an errno. */
static int ring(int knock)
{
	/* One byte, which nobody reads: a listener with TCP_DEFER_ACCEPT waits for it. */
	return send(knock, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1 ? 0 : errno;
}

static void knock_ready(struct watch *watch, uint32_t events)
{
	struct given *given = CONTAINER(watch, struct given, knock);
	char byte;

	if (given->slow && events & EPOLLOUT && !ring(watch->fd)) {
		given->slow = 0;
		loop_want(watch, EPOLLIN);
		if (given->listener) {
			given->listener->slow--;
			want(given->listener);
		}
		return;
	}
	/* Its listener closed, or whoever accepted it ended before it asked. */
	if (recv(watch->fd, &byte, sizeof(byte), MSG_DONTWAIT) >= 0 || errno != EAGAIN)
		given_end(given);
}

/* 0: it is under way; else an errno. */
static int knock(struct given *given, __be16 underlay)
{
	const int family = name_family(state->host);
	union name name;
	socklen_t size = name_make(&name, family, state->host, underlay);
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int error = 0;

	if (fd < 0)
		return errno;
	set_reset(fd);
	slim_copy(given->knocked.destination, state->host);
	given->knocked.destination_port = underlay;
	if (connect(fd, &name.any, size) && errno != EINPROGRESS)
		error = errno;
	size = sizeof(name);
	if (!error && getsockname(fd, &name.any, &size))
		error = errno;
	if (!error) {
		name_read(&name, given->knocked.source, &given->knocked.source_port);
		error = ring(fd);
		given->slow = error == EAGAIN;
		/* Where nobody listens a socket may find itself, if its port is the same. */
		if (given->knocked.source_port == underlay)
			error = ECONNREFUSED;
		else if (given->slow)
			error = 0;
	}
	if (!error && loop_watch(&given->knock, fd,
				 given->slow ? EPOLLIN | EPOLLOUT : EPOLLIN, knock_ready))
		error = errno;
	if (error)
		close(fd);
	return error;
}

/* A client has connected. */
static void come(struct listener *listener, int client, const struct slim_tuple *tuple)
{
	const uint32_t endpoint = listener->to.endpoint;
	const __be16 port = listener->to.port;
	struct given *given;
	struct answer why;
	__be16 underlay;
	int error;

	if (tables_admit_from(tables, tuple->source, endpoint, port, &why)) {
		refused(endpoint, port, tuple, why.reason, why.rule);
		reset(client);
		return;
	}
	underlay = endpoint_listener(endpoint, port);
	given = underlay ? calloc(1, sizeof(*given)) : NULL;
	if (!given) {
		refused(endpoint, port, tuple,
			underlay ? SLIM_REASON_FLOW_FULL : SLIM_REASON_SYN_NO_LISTENER, 0);
		reset(client);
		return;
	}
	given->endpoint = endpoint;
	given->port = port;
	given->tuple = *tuple;
	error = knock(given, underlay);
	if (error) {
		if (loop_is_short(error))
			loop_rest(&listener->watch);
		refused(endpoint, port, tuple,
			error == ECONNREFUSED || error == ECONNRESET || error == EPIPE ?
				SLIM_REASON_SYN_NO_LISTENER : SLIM_REASON_FLOW_FULL, 0);
		free(given);
		reset(client);
		return;
	}
	given->client = client;
	given->listener = listener;
	given->next = every;
	if (every)
		every->before = given;
	every = given;
	listener->waiting++;
	listener->slow += given->slow;
	want(listener);
}

static void on_client(struct watch *watch, uint32_t events)
{
	struct listener *listener = CONTAINER(watch, struct listener, watch);
	int turn;

	(void)events;
	for (turn = 0; turn < TURN && watch->events && !watch->rests; turn++) {
		struct slim_tuple tuple = {};
		union name name = {};
		socklen_t size = sizeof(name);
		int client = loop_accept(watch, &name.any, &size, SOCK_CLOEXEC);

		if (client < 0) {
			if (errno == ECONNABORTED || errno == EINTR)
				continue;
			return;
		}
		name_read(&name, tuple.source, &tuple.source_port);
		size = sizeof(name);
		if (getsockname(client, &name.any, &size)) {
			close(client);
			continue;
		}
		name_read(&name, tuple.destination, &tuple.destination_port);
		come(listener, client, &tuple);
	}
}

/* As the listener of an endpoint, which has a socket of IPv6, wants it: see give_family(). */
static int open_at(const struct slim_publish_key *key, int family)
{
	static const int on = 1;
	__be32 address[4];
	union name name;
	socklen_t size;
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -1;
	/* Only to addresses of IPv4, also where it is all of them. */
	if (slim_is_any(key->address))
		slim_map_v4(address, 0);
	else
		slim_copy(address, key->address);
	size = name_make(&name, family, address, key->port);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, &name.any, size) || listen(fd, QUEUE)) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

static void describe(const struct listener *listener, char *text, size_t room)
{
	const struct in_addr address = { .s_addr = listener->key.address[3] };

	snprintf(text, room, "published port %s:%u of endpoint %u: %s", inet_ntoa(address),
		 ntohs(listener->key.port), listener->to.endpoint, strerror(listener->error));
}

static void listen_for(struct listener *listener)
{
	int fd = open_at(&listener->key, AF_INET6), error;

	if (fd < 0 && (errno == EAFNOSUPPORT || errno == EADDRNOTAVAIL))
		fd = open_at(&listener->key, AF_INET);	/* a host without IPv6 */
	error = fd < 0 ? errno : 0;
	if (fd >= 0 && loop_watch(&listener->watch, fd, EPOLLIN, on_client)) {
		error = errno;
		close(fd);
	}
	if (error && error != listener->error) {
		char text[256];

		listener->error = error;
		describe(listener, text, sizeof(text));
		say("%s", text);
	}
	listener->error = error;
}

static void listener_end(struct listener *listener)
{
	struct given *given;

	for (given = every; given; given = given->next)
		if (given->listener == listener)
			given->listener = NULL;
	loop_forget(&listener->watch);
	loop_free(listener);
}

static struct listener *listener_of(const struct slim_publish_key *key)
{
	struct listener *listener;

	for (listener = listeners; listener; listener = listener->next)
		if (!memcmp(&listener->key, key, sizeof(*key)))
			break;
	return listener;
}

void published_tables(void)
{
	struct listener **link = &listeners, *listener;
	size_t index;

	for (listener = listeners; listener; listener = listener->next)
		listener->wanted = 0;
	for (index = 0; index < tables_published_count(tables); index++) {
		const struct slim_publish_key *key = tables_published_at(tables, index);

		if (key->protocol != IPPROTO_TCP ||
		    !(slim_is_any(key->address) || slim_is_mapped(key->address)))
			continue;
		listener = listener_of(key);
		if (!listener) {
			listener = calloc(1, sizeof(*listener));
			if (!listener) {
				say("no memory for a published port");
				continue;
			}
			listener->watch.fd = -1;
			listener->key = *key;
			listener->next = listeners;
			listeners = listener;
		}
		memcpy(&listener->to, key + 1, sizeof(listener->to));
		listener->wanted = 1;
	}
	/* First those that are no more: another may have the same port. */
	while (*link) {
		listener = *link;
		if (listener->wanted) {
			link = &listener->next;
			continue;
		}
		*link = listener->next;
		listener_end(listener);
	}
	published_sweep();
}

void published_sweep(void)
{
	struct listener *listener;

	for (listener = listeners; listener; listener = listener->next)
		if (listener->watch.fd < 0)
			listen_for(listener);
}

void published_forget(uint32_t endpoint)
{
	struct given *given, *next;

	for (given = every; given; given = next) {
		next = given->next;
		if (given->endpoint == endpoint)
			given_end(given);
	}
}

void published_trouble(char *text, size_t room)
{
	const struct listener *listener;
	uint32_t more = 0;

	text[0] = 0;
	for (listener = listeners; listener; listener = listener->next) {
		if (!listener->error)
			continue;
		if (!text[0])
			describe(listener, text, room);
		else
			more++;
	}
	if (more)
		snprintf(text + strlen(text), room - strlen(text), ", and %u more", more);
}

/*
 * A socket of the listener's family, as accept(2) would have made: it is one of IPv6 so far.
 * The kernel does that to an established one only: where the client has said already that
 * it sends no more, names are all that looks like it.
 */
static void give_family(int client, int v4)
{
	static const int family = AF_INET;

	if (v4)
		setsockopt(client, IPPROTO_IPV6, IPV6_ADDRFORM, &family, sizeof(family));
}

int published_accepted(const struct slim_tuple *tuple, uint32_t endpoint, int v4, int *client,
		       struct flow **flow, struct answer *why)
{
	const struct slim_endpoint *called;
	struct given *given;
	struct flow *new;

	*client = -1;
	for (given = every; given; given = given->next)
		if (given->endpoint == endpoint && !memcmp(&given->knocked, tuple, sizeof(*tuple)))
			break;
	if (!given)
		return 0;
	/* New tables may have forbidden it meanwhile. */
	if (tables_admit_from(tables, given->tuple.source, endpoint, given->port, why))
		goto no;
	called = tables_endpoint(tables, endpoint);
	new = flow_find(&given->tuple);
	if (new)
		flows_end(new);
	new = flows_new(&given->tuple);
	if (!new) {
		why->error = ENOBUFS;
		why->reason = SLIM_REASON_FLOW_FULL;
		why->rule = 0;
		goto no;
	}
	new->kind = SLIM_WAY_OUTSIDE;
	new->server = endpoint;
	new->server_here = 1;
	new->port = given->port;
	slim_copy(new->client_name.address, given->tuple.source);
	new->client_name.port = given->tuple.source_port;
	slim_copy(new->dialled.address, given->tuple.destination);
	new->dialled.port = given->tuple.destination_port;
	slim_copy(new->server_name.address, called->address);
	new->server_name.port = given->port;
	new->since = loop_now();
	new->opened = now_ns();
	*flow = new;
	*client = given->client;
	give_family(*client, v4);
	given_free(given);
	return 1;
no:
	refused(endpoint, given->port, &given->tuple, why->reason, why->rule);
	given_end(given);
	return 1;
}
