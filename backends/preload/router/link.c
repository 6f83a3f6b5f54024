// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Links to other hosts' routers: slimnet/announce.h. On the one that this router
 * opened it asks and announces (struct link with `opener`), on those that were opened
 * to it it answers.
 */
#include "router.h"

#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <slimnet/announce.h>
#include <slimnet/address.h>
#include <slimnet/keys.h>

#include "fuzzing.h"
#include "link.h"
#include "loop.h"
#include "mac.h"
#include "name.h"

#define STRANGERS 64		/* links that have not shown that they know the key */
#define LINKS 4096
#define OUT_MAX (4u << 20)	/* bytes that wait for a host that does not read */
#define KNOWN 8192		/* answers of one host, a power of two */
#define LATER 256		/* questions about endpoints that are not known yet */
#define LATER_MS 600
#define AGAIN_MS 100		/* the first pause before a host that failed is tried again */
#define AGAIN_MAX_MS 1600	/* and then it counts as down: nobody waits for it */

struct known {
	uint32_t client, server;
	__be16 port, underlay_port;
};

struct later {
	uint64_t since;
	struct slim_frame frame;	/* kind 0: free */
};

struct link {
	struct watch watch;
	struct timer timer;		/* until it is ready; then silence */
	struct link *next;
	uint8_t opener;			/* this end opened it */
	uint8_t connecting, greeted, ready, dead;
	uint8_t old;			/* by a key that another one follows: it ends soon */
	__be32 host[4];			/* the other end's */
	struct slim_hello mine, theirs;
	uint64_t by[2];			/* which of the cluster's keys */
	uint64_t in_key[2], out_key[2];
	uint64_t in_number, out_number;
	uint64_t heard;
	uint8_t in[LINK_IN];
	size_t in_size;
	uint8_t *out;
	size_t out_size, out_room;
	struct known *known;		/* opener: what was resolved */
	struct later *later;		/* acceptor */
};

/* A host that there is no link to, and when one is tried again. */
struct pause {
	struct pause *next;
	__be32 host[4];
	uint64_t until, length;
};

static struct watch listener;
static struct timer dialling, ticking;
static struct link *links;
static struct pause *pauses;
static size_t link_number, strangers;
static struct slim_keys keys;
static uint64_t tokens;

static void on_ready(struct watch *watch, uint32_t events);
static void dial_all(struct timer *timer);
static void tick(struct timer *timer);
static void opener_frame(struct link *link, const struct slim_frame *frame);
static void acceptor_frame(struct link *link, const struct slim_frame *frame);

uint64_t link_token(void)
{
	return ++tokens;
}

uint32_t link_count(void)
{
	const struct link *link;
	uint32_t ready = 0;

	for (link = links; link; link = link->next)
		ready += link->opener && link->ready && !link->dead;
	return ready;
}

static struct pause *pause_of(const __be32 *host)
{
	struct pause *pause;

	for (pause = pauses; pause && !slim_same(pause->host, host); pause = pause->next)
		;
	return pause;
}

/* It did not work: not at once again. */
static void rest(const __be32 *host)
{
	struct pause *pause = pause_of(host);

	if (!pause) {
		pause = calloc(1, sizeof(*pause));
		if (!pause)
			return;
		slim_copy(pause->host, host);
		pause->next = pauses;
		pauses = pause;
	}
	pause->length = pause->length ? 2 * pause->length : AGAIN_MS;
	if (pause->length > AGAIN_MAX_MS)
		pause->length = AGAIN_MAX_MS;
	/* Many that end at one time are one look at all hosts. */
	pause->until = (loop_now() + pause->length + AGAIN_MS - 1) / AGAIN_MS * AGAIN_MS;
}

/* It failed for some time, not just now, as while its router is started again. */
static int is_down(const __be32 *host)
{
	const struct pause *pause = pause_of(host);

	return pause && pause->length >= AGAIN_MAX_MS;
}

/* Its memory stays until the events at hand are through. */
static void link_end(struct link *link)
{
	struct link **at;

	if (link->dead)
		return;
	link->dead = 1;
	for (at = &links; *at && *at != link; at = &(*at)->next)
		;
	if (*at)
		*at = link->next;
	link_number--;
	strangers -= !link->opener && !link->ready;
	loop_clear(&link->timer);
	loop_forget(&link->watch);
	if (link->opener && !link->old) {
		rest(link->host);
		loop_set(&dialling, 0, dial_all);
	}
	free(link->out);
	free(link->known);
	free(link->later);
	link->out = NULL;
	link->known = NULL;
	link->later = NULL;
	loop_free(link);
	if (link->opener && !link->old && is_down(link->host))
		endpoint_unreachable(link->host);
}

static void timed_out(struct timer *timer)
{
	link_end(CONTAINER(timer, struct link, timer));
}

static void flush(struct link *link)
{
	while (link->out_size) {
		ssize_t sent = send(link->watch.fd, link->out, link->out_size,
				    MSG_NOSIGNAL | MSG_DONTWAIT);

		if (sent < 0) {
			if (errno == EINTR)
				continue;
			if (errno != EAGAIN) {
				link_end(link);
				return;
			}
			break;
		}
		link->out_size -= (size_t)sent;
		memmove(link->out, link->out + sent, link->out_size);
	}
	loop_want(&link->watch, link->out_size ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void put(struct link *link, const void *bytes, size_t size)
{
	if (link->dead)
		return;
	if (link->out_size + size > link->out_room) {
		size_t room = link->out_room ? 2 * link->out_room : 4096;
		uint8_t *more = room > OUT_MAX ? NULL : realloc(link->out, room);

		if (!more) {
			link_end(link);
			return;
		}
		link->out = more;
		link->out_room = room;
	}
	memcpy(link->out + link->out_size, bytes, size);
	link->out_size += size;
	if (!link->connecting)
		flush(link);
}

static void put_frame(struct link *link, struct slim_frame frame)
{
	frame.tag = mac_frame(link->out_key, link->out_number++, &frame);
	put(link, &frame, sizeof(frame));
}

static void greet(struct link *link)
{
	link->mine = (struct slim_hello){
		.magic = htonl(SLIM_ANNOUNCE_MAGIC),
		.version = htons(SLIM_ANNOUNCE_VERSION),
	};
	slim_copy(link->mine.host, state->host);
	if (getrandom(link->mine.nonce, sizeof(link->mine.nonce), 0) !=
	    sizeof(link->mine.nonce)) {
		link_end(link);
		return;
	}
	put(link, &link->mine, sizeof(link->mine));
}

static struct link *link_new(int fd, int opener, const __be32 *host)
{
	static const int on = 1;
	struct link *link = calloc(1, sizeof(*link));

	if (link && opener)
		link->known = calloc(KNOWN, sizeof(*link->known));
	if (link && !opener)
		link->later = calloc(LATER, sizeof(*link->later));
	if (!link || (opener ? !link->known : !link->later) ||
	    loop_watch(&link->watch, fd, opener ? EPOLLIN | EPOLLOUT : EPOLLIN, on_ready)) {
		if (link) {
			free(link->known);
			free(link->later);
		}
		free(link);
		close(fd);
		return NULL;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	link->opener = (uint8_t)opener;
	link->connecting = (uint8_t)opener;
	slim_copy(link->host, host);
	link->next = links;
	links = link;
	link_number++;
	strangers += !opener;
	loop_set(&link->timer, SLIM_ANNOUNCE_LINK_MS, timed_out);
	return link;
}

static void silence(struct timer *timer)
{
	struct link *link = CONTAINER(timer, struct link, timer);
	const uint64_t age = loop_now() - link->heard;

	if (age >= SLIM_ANNOUNCE_DEAD_MS) {
		link_end(link);
		return;
	}
	if (age >= SLIM_ANNOUNCE_IDLE_MS)
		put_frame(link, (struct slim_frame){ .kind = htons(SLIM_FRAME_PING) });
	if (!link->dead)
		loop_set(&link->timer, SLIM_ANNOUNCE_IDLE_MS, silence);
}

/* What may not have reached the other end of a link that is new: it knows what it has. */
static void announce_again(struct flow *flow, void *data)
{
	struct link *link = data;

	if (flow->kind == SLIM_WAY_WIRE && flow->client_here && !link->dead &&
	    slim_same(flow->tuple.destination, link->host) &&
	    loop_now() - flow->since < SLIM_ANNOUNCE_ANNOUNCED_MS) {
		/*
		 * Not one whose socket is gone: its port may be another's. One that waits for a
		 * processor to connect has none yet.
		 */
		const struct slim_tuple tuple = flow->tuple;

		if (!flows_is_to_come(flow))
			flows_check(flow);
		flow = flow_find(&tuple);
		if (flow)
			link_announce(flow);
	}
}

/* It says of each announcement whether it may come. */
static int answers(const struct link *link)
{
	return !!(link->theirs.flags & htons(SLIM_HELLO_RECORDS));
}

static void put_listener(struct link *link, const struct state_port *port, uint64_t question,
			 __be16 underlay)
{
	put_frame(link, (struct slim_frame){
		.kind = htons(SLIM_FRAME_LISTENER),
		.token = htobe64(question),
		.server = htonl(port->endpoint),
		.port = port->port,
		.underlay_port = underlay,
	});
}

static void tell_listener(struct state_port *port, void *data)
{
	put_listener(data, port, 0, port->underlay);
}

static void become_ready(struct link *link)
{
	struct pause *pause = pause_of(link->host);

	link->ready = 1;
	if (!link->opener)
		strangers--;
	if (!link->old)
		loop_set(&link->timer, SLIM_ANNOUNCE_IDLE_MS, silence);
	if (!link->opener) {
		put_frame(link, (struct slim_frame){ .kind = htons(SLIM_FRAME_READY) });
		if (link->theirs.flags & htons(SLIM_HELLO_LISTENERS))
			port_each(tell_listener, link);
		/* It is there, however long it was not: it is tried again at once. */
		if (pause) {
			pause->length = 0;
			pause->until = 0;
			loop_set(&dialling, 0, dial_all);
		}
		return;
	}
	if (pause)
		pause->length = 0;
	/* Who answers announcements has those that it answered; of the others somebody waits. */
	if (!answers(link))
		flow_each(announce_again, link);
	endpoint_reachable(link->host);
}

/* The link's keys, out of one of the cluster's two. */
static void take_keys(struct link *link, uint32_t which)
{
	const struct slim_hello *opener = link->opener ? &link->mine : &link->theirs;
	const struct slim_hello *acceptor = link->opener ? &link->theirs : &link->mine;

	memcpy(link->by, keys.key[which], sizeof(link->by));
	mac_link_key(link->by, opener, acceptor, link->opener, link->out_key);
	mac_link_key(link->by, opener, acceptor, !link->opener, link->in_key);
}

static void hello(struct link *link, const struct slim_hello *theirs)
{
	link->theirs = *theirs;
	if (theirs->magic != htonl(SLIM_ANNOUNCE_MAGIC) ||
	    theirs->version != htons(SLIM_ANNOUNCE_VERSION) ||
	    /* An echo of our own greeting would have our own keys. */
	    !memcmp(theirs->nonce, link->mine.nonce, sizeof(theirs->nonce)) ||
	    !slim_same(theirs->host, link->host)) {
		link_end(link);
		return;
	}
	if (!link->opener) {
		greet(link);
		if (link->dead)
			return;
	}
	link->greeted = 1;
	take_keys(link, keys.signs);
	if (link->opener)
		put_frame(link, (struct slim_frame){ .kind = htons(SLIM_FRAME_READY) });
}

static void on_frame(struct link *link, const struct slim_frame *frame)
{
	const uint16_t kind = ntohs(frame->kind);
	uint32_t which;

	/* Which of the keys a link is by, the opener says with its first frame. */
	for (which = 0; which < 2 && !link->opener && !link->ready; which++)
		if (frame->tag != mac_frame(link->in_key, link->in_number, frame))
			take_keys(link, which);
	if (frame->tag != mac_frame(link->in_key, link->in_number++, frame)) {
		link_end(link);
		return;
	}
	link->heard = loop_now();
	if (!link->ready) {
		if (kind == SLIM_FRAME_READY)
			become_ready(link);
		else
			link_end(link);
	} else if (kind == SLIM_FRAME_PING) {
		if (!frame->answer)
			put_frame(link, (struct slim_frame){
				.kind = htons(SLIM_FRAME_PING),
				.answer = htons(1),
			});
	} else if (link->opener) {
		opener_frame(link, frame);
	} else {
		acceptor_frame(link, frame);
	}
}

void link_bytes(struct link *link, const uint8_t *bytes, size_t size)
{
	while (size && !link->dead) {
		const size_t whole = link->greeted ? sizeof(struct slim_frame) :
						     sizeof(struct slim_hello);
		size_t part = whole - link->in_size;

		if (part > size)
			part = size;
		memcpy(link->in + link->in_size, bytes, part);
		link->in_size += part;
		bytes += part;
		size -= part;
		if (link->in_size < whole)
			return;
		link->in_size = 0;
		if (link->greeted) {
			struct slim_frame frame;

			memcpy(&frame, link->in, sizeof(frame));
			on_frame(link, &frame);
		} else {
			struct slim_hello greeting;

			memcpy(&greeting, link->in, sizeof(greeting));
			hello(link, &greeting);
		}
	}
}

static void on_ready(struct watch *watch, uint32_t events)
{
	struct link *link = CONTAINER(watch, struct link, watch);
	uint8_t bytes[16384];
	ssize_t size;

	if (link->connecting) {
		int error = 0;
		socklen_t room = sizeof(error);

		if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
			return;
		if (getsockopt(watch->fd, SOL_SOCKET, SO_ERROR, &error, &room) || error) {
			link_end(link);
			return;
		}
		link->connecting = 0;
		greet(link);
		return;
	}
	if (events & EPOLLOUT)
		flush(link);
	if (link->dead || !(events & ~(uint32_t)EPOLLOUT))
		return;
	size = recv(watch->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (size <= 0) {
		link_end(link);
		return;
	}
	link_bytes(link, bytes, (size_t)size);
}

/* The end that connects things. */

static struct known *known_place(struct link *link, uint32_t client, uint32_t server, __be16 port)
{
	uint32_t mixed = client * 2654435761u ^ server * 2246822519u ^ port * 3266489917u;

	return &link->known[(mixed ^ mixed >> 15) & (KNOWN - 1)];
}

/* The one that this router opened, or opens, by the key that signs. */
static struct link *link_current(const __be32 *host)
{
	struct link *link;

	for (link = links; link; link = link->next)
		if (link->opener && !link->dead && !link->old && slim_same(link->host, host))
			return link;
	return NULL;
}

/* The one to use; one by an old key until the one that follows it is ready. */
static struct link *link_to(const __be32 *host)
{
	struct link *current = link_current(host), *link;

	if (current && current->ready)
		return current;
	for (link = links; link; link = link->next)
		if (link->opener && link->ready && !link->dead && slim_same(link->host, host))
			return link;
	return current;
}

static void dial(const __be32 *host, const struct slim_file_host *where)
{
	const int family = name_family(where->control);
	static const int on = 1;
	union name own, name;
	socklen_t own_size, size;
	int fd;

	if (link_number >= LINKS)
		return;
	fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return;
	own_size = name_make(&own, family, state->host, 0);
	size = name_make(&name, family, where->control, where->port);
	/* The other end knows a host by the address that its link comes from. */
	if (family == AF_INET)
		setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on));
	if ((family == AF_INET && bind(fd, &own.any, own_size)) ||
	    (connect(fd, &name.any, size) && errno != EINPROGRESS)) {
		close(fd);
		rest(host);
		return;
	}
	link_new(fd, 1, host);
}

/* Keeps a link to each host that there is: due when one may be missing, and when a pause ends. */
static void dial_all(struct timer *timer)
{
	const uint64_t now = loop_now();
	uint64_t wait = UINT64_MAX;
	size_t index;

	for (index = 0; index < tables_hosts(tables); index++) {
		const __be32 *host = tables_host_at(tables, index);
		const struct pause *pause = pause_of(host);
		uint64_t left = AGAIN_MS;

		if (slim_same(host, state->host) || link_current(host))
			continue;
		if (!pause || pause->until <= now) {
			dial(host, tables_host(tables, host));
			if (link_current(host))
				continue;
			pause = pause_of(host);
		}
		if (pause && pause->until > now)
			left = pause->until - now;
		if (left < wait)
			wait = left;
	}
	if (wait != UINT64_MAX)
		loop_set(timer, wait, dial_all);
}

int link_resolve(const __be32 *host, uint32_t client, uint32_t server, __be16 port,
		 uint64_t question, __be16 *underlay_port, uint32_t *reason)
{
	const struct slim_file_host *where = tables_host(tables, host);
	struct link *link = link_to(host);
	const struct known *known;

	*reason = SLIM_REASON_UNREACHABLE;
	if (!where)
		return EHOSTUNREACH;
	if (!link)
		/* dial_all() goes on trying, and the question has a deadline. */
		return is_down(host) ? EHOSTUNREACH : 1;
	known = known_place(link, client, server, port);
	if (link->ready && known->underlay_port && known->client == client &&
	    known->server == server && known->port == port) {
		*underlay_port = known->underlay_port;
		return 0;
	}
	/* Before it is ready it is asked by endpoint_reachable(). */
	if (link->ready)
		put_frame(link, (struct slim_frame){
			.kind = htons(SLIM_FRAME_RESOLVE),
			.token = htobe64(question),
			.client = htonl(client),
			.server = htonl(server),
			.port = port,
		});
	return 1;
}

static void send_flow(struct link *link, const struct flow *flow, enum slim_announce_kind kind)
{
	struct slim_frame frame = {
		.kind = htons(kind),
		.token = htobe64(flow->token),
		.client = htonl(flow->client),
		.server = htonl(flow->server),
		.source_port = flow->tuple.source_port,
		.client_port = flow->client_name.port,
		.underlay_port = flow->tuple.destination_port,
		.port = flow->port,
	};

	slim_copy(frame.source, flow->tuple.source);
	put_frame(link, frame);
}

int link_answers(const __be32 *host)
{
	const struct link *link = link_to(host);

	return link && link->ready && answers(link);
}

void link_announce(const struct flow *flow)
{
	struct link *link = link_to(flow->tuple.destination);

	if (link && link->ready)
		send_flow(link, flow, SLIM_FRAME_ANNOUNCE);
}

void link_withdraw(const struct flow *flow)
{
	struct link *link = link_to(flow->tuple.destination);

	if (link && link->ready)
		send_flow(link, flow, SLIM_FRAME_WITHDRAW);
}

static void opener_frame(struct link *link, const struct slim_frame *frame)
{
	const uint32_t server = ntohl(frame->server);
	struct known *known;
	uint32_t index;

	switch (ntohs(frame->kind)) {
	case SLIM_FRAME_RESOLVED:
		known = known_place(link, ntohl(frame->client), server, frame->port);
		if (!frame->error && frame->underlay_port)
			*known = (struct known){ ntohl(frame->client), server, frame->port,
						 frame->underlay_port };
		/* A question of ours has the number that we gave it; others find nobody. */
		endpoint_resolved(be64toh(frame->token),
				  frame->underlay_port || frame->error ?
					  (int)ntohl(frame->error) : EHOSTUNREACH,
				  ntohl(frame->reason), ntohl(frame->rule), frame->underlay_port);
		return;
	case SLIM_FRAME_ANNOUNCED:
		endpoint_answered(be64toh(frame->token), (int)ntohl(frame->error),
				  ntohl(frame->reason), ntohl(frame->rule));
		return;
	case SLIM_FRAME_FORGET:
		for (index = 0; index < KNOWN; index++)
			if (!server || link->known[index].server == server)
				link->known[index] = (struct known){};
		return;
	case SLIM_FRAME_PROBE:
		put_frame(link, (struct slim_frame){
			.kind = htons(SLIM_FRAME_PROBED),
			.token = frame->token,
			.source = { frame->source[0], frame->source[1], frame->source[2],
				    frame->source[3] },
			.source_port = frame->source_port,
			.underlay_port = frame->underlay_port,
		});
		return;
	default:
		link_end(link);
	}
}

/* The end that is connected to. */

static void answer_resolve(struct link *link, const struct slim_frame *frame,
			   const struct answer *why, __be16 underlay_port)
{
	struct slim_frame answer = *frame;

	answer.kind = htons(SLIM_FRAME_RESOLVED);
	answer.error = htonl(why->error);
	answer.reason = htonl(why->reason);
	answer.rule = htonl(why->rule);
	answer.underlay_port = why->error ? 0 : underlay_port;
	put_frame(link, answer);
}

/* The port that the client will have is not chosen yet. */
static void tell_refused(const struct slim_frame *frame, const struct slim_endpoint *opener,
			 const struct slim_endpoint *called, const struct answer *why)
{
	struct slim_event event = {
		.kind = SLIM_EVENT_REFUSED,
		.reason = why->reason,
		.rule = why->rule,
		.direction = SLIM_INGRESS,
		.endpoint = ntohl(frame->server),
		.peer_endpoint = ntohl(frame->client),
		.destination_port = frame->port,
		.protocol = IPPROTO_TCP,
	};

	slim_copy(event.source, opener->address);
	slim_copy(event.destination, called->address);
	count(0, SLIM_INGRESS, why->reason);
	tell(&event);
}

/* 1: it is answered; 0: who it is about is not known here yet. */
static int resolve(struct link *link, const struct slim_frame *frame, int last)
{
	const uint32_t client = ntohl(frame->client), server = ntohl(frame->server);
	const struct slim_endpoint *opener = tables_endpoint(tables, client);
	const struct slim_endpoint *called = tables_endpoint(tables, server);
	struct answer why = { .error = EHOSTUNREACH, .reason = SLIM_REASON_SYN_UNKNOWN };
	__be16 underlay_port = 0;

	if (!opener || !called || !endpoint_record(server)) {
		if (!last)
			return 0;
	} else if (!slim_same(opener->host, link->host)) {
		why = (struct answer){ .error = ECONNREFUSED, .reason = SLIM_REASON_SYN_SOURCE };
	} else if (!tables_admit(tables, client, server, frame->port, &why)) {
		underlay_port = endpoint_listener(server, frame->port);
		if (!underlay_port)
			why = (struct answer){ .error = ECONNREFUSED,
					       .reason = SLIM_REASON_SYN_NO_LISTENER };
	}
	if (why.error && why.reason != SLIM_REASON_SYN_UNKNOWN)
		tell_refused(frame, opener, called, &why);
	answer_resolve(link, frame, &why, underlay_port);
	return 1;
}

static void resolve_later(struct link *link, const struct slim_frame *frame)
{
	uint32_t index;

	for (index = 0; index < LATER; index++)
		if (!link->later[index].frame.kind) {
			link->later[index] = (struct later){ loop_now(), *frame };
			if (!ticking.place)
				loop_set(&ticking, LATER_MS / 3, tick);
			return;
		}
	resolve(link, frame, 1);
}

/* Questions that tables answer now, or that waited long enough; whether some wait on. */
static int resolve_again(struct link *link)
{
	uint32_t index;
	int wait = 0;

	for (index = 0; index < LATER && !link->dead; index++) {
		struct later *later = &link->later[index];

		if (!later->frame.kind)
			continue;
		if (!resolve(link, &later->frame, loop_now() - later->since > LATER_MS))
			wait = 1;
		else if (!link->dead)
			later->frame.kind = 0;
	}
	return wait;
}

/* The connection that a frame of an opener is about. */
static struct slim_tuple tuple_of(const struct link *link, const struct slim_frame *frame)
{
	struct slim_tuple tuple = {
		.source_port = frame->source_port,
		.destination_port = frame->underlay_port,
	};

	slim_copy(tuple.source, link->host);
	slim_copy(tuple.destination, state->host);
	return tuple;
}

static void announced(struct link *link, const struct slim_frame *frame)
{
	const uint32_t client = ntohl(frame->client), server = ntohl(frame->server);
	const struct slim_endpoint *opener = tables_endpoint(tables, client);
	const struct slim_endpoint *called = tables_endpoint(tables, server);
	const struct state_port *port = port_of(frame->underlay_port);
	const struct slim_tuple tuple = tuple_of(link, frame);
	struct flow *flow;

	/* Only for its own: endpoints of that host, from its address, to a port of the called. */
	if (!opener || !called || !slim_same(opener->host, link->host) ||
	    opener->vni != called->vni || !slim_same(frame->source, link->host) || !port ||
	    port->endpoint != server || port->port != frame->port) {
		count(0, SLIM_INGRESS, SLIM_REASON_SYN_SOURCE);
		return;
	}
	flow = flow_find(&tuple);
	if (flow && flow->token == be64toh(frame->token))
		return;		/* twice: it is known, and perhaps used */
	if (flow)
		flow_drop(flow);
	flow = flow_new(&tuple);
	if (!flow) {
		count(0, SLIM_INGRESS, SLIM_REASON_FLOW_FULL);
		return;
	}
	flow->kind = SLIM_WAY_WIRE;
	flow->client = client;
	flow->server = server;
	flow->server_here = 1;
	flow->port = frame->port;
	slim_copy(flow->client_name.address, opener->address);
	flow->client_name.port = frame->client_port;
	slim_copy(flow->server_name.address, called->address);
	flow->server_name.port = frame->port;
	flow->dialled = flow->server_name;
	flow->token = be64toh(frame->token);
	flow->since = loop_now();
	flow->opened = now_ns();
	flow_commit(flow, FLOW_ANNOUNCED);
	endpoint_announced(&tuple);
}

static void withdrawn(const struct link *link, const struct slim_frame *frame)
{
	const struct slim_tuple tuple = tuple_of(link, frame);
	struct flow *flow = flow_find(&tuple);

	if (flow && flow->server_here && !flow->client_here && flow->used == FLOW_ANNOUNCED &&
	    flow->token == be64toh(frame->token))
		flow_drop(flow);
}

/* The other host had our endpoint's policy, and says what came of it. */
static void refused_there(const struct link *link, const struct slim_frame *frame)
{
	const struct slim_endpoint *opener = tables_endpoint(tables, ntohl(frame->client));
	const struct slim_endpoint *called = tables_endpoint(tables, ntohl(frame->server));
	const struct answer why = {
		.reason = ntohl(frame->reason),
		.rule = ntohl(frame->rule),
	};

	if (opener && called && endpoint_record(ntohl(frame->server)) &&
	    slim_same(opener->host, link->host) && why.reason < SLIM_REASON_COUNT)
		tell_refused(frame, opener, called, &why);
}

static void acceptor_frame(struct link *link, const struct slim_frame *frame)
{
	const struct slim_tuple tuple = tuple_of(link, frame);

	switch (ntohs(frame->kind)) {
	case SLIM_FRAME_RESOLVE:
		if (!resolve(link, frame, 0))
			resolve_later(link, frame);
		return;
	case SLIM_FRAME_ANNOUNCE:
		announced(link, frame);
		return;
	case SLIM_FRAME_WITHDRAW:
		withdrawn(link, frame);
		return;
	case SLIM_FRAME_REFUSED:
		refused_there(link, frame);
		return;
	case SLIM_FRAME_LISTENER:
		endpoint_listened(be64toh(frame->token));
		return;
	case SLIM_FRAME_PROBED:
		endpoint_probed(&tuple, be64toh(frame->token));
		return;
	default:
		link_end(link);
	}
}

uint32_t link_probe(const struct slim_tuple *tuple, uint64_t question)
{
	struct slim_frame frame = {
		.kind = htons(SLIM_FRAME_PROBE),
		.token = htobe64(question),
		.source_port = tuple->source_port,
		.underlay_port = tuple->destination_port,
	};
	struct link *link, *next;
	uint32_t asked = 0;

	slim_copy(frame.source, tuple->source);
	for (link = links; link; link = next) {
		next = link->next;
		if (link->opener || !link->ready || !slim_same(link->host, tuple->source))
			continue;
		put_frame(link, frame);
		asked += !link->dead;
	}
	return asked;
}

uint32_t link_listener(const struct state_port *port, uint64_t question, int gone)
{
	struct link *link, *next;
	uint32_t told = 0;

	for (link = links; link; link = next) {
		next = link->next;
		if (link->opener || !link->ready ||
		    !(link->theirs.flags & htons(SLIM_HELLO_LISTENERS)))
			continue;
		put_listener(link, port, question, gone ? 0 : port->underlay);
		told += !link->dead;
	}
	return told;
}

void link_forget(uint32_t server)
{
	struct link *link, *next;

	for (link = links; link; link = next) {
		next = link->next;
		if (!link->opener && link->ready)
			put_frame(link, (struct slim_frame){
				.kind = htons(SLIM_FRAME_FORGET),
				.server = htonl(server),
			});
	}
}

void link_tables(void)
{
	struct link *link, *next;

	for (link = links; link; link = next) {
		next = link->next;
		if (!tables_host(tables, link->host)) {
			link_end(link);		/* no host of the cluster any more */
			continue;
		}
		if (link->opener)
			memset(link->known, 0, KNOWN * sizeof(*link->known));
		else if (link->ready)
			resolve_again(link);
	}
	link_forget(0);
	loop_set(&dialling, 0, dial_all);
}

static void tick(struct timer *timer)
{
	struct link *link, *next;
	int wait = 0;

	for (link = links; link; link = next) {
		next = link->next;
		if (!link->opener && link->ready)
			wait |= resolve_again(link);
	}
	if (wait)
		loop_set(timer, LATER_MS / 3, tick);
}

static void on_stranger(struct watch *watch, uint32_t events)
{
	union name name = {};
	socklen_t size = sizeof(name);
	__be32 host[4];
	__be16 port;
	int fd = loop_accept(watch, &name.any, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)events;
	if (fd < 0)
		return;
	/* Who is no host of the cluster need not be heard at all. */
	if (name_read(&name, host, &port) || strangers >= STRANGERS || link_number >= LINKS || !tables_host(tables, host)) {
		close(fd);
		return;
	}
	link_new(fd, 0, host);
}

/* Whether another one has to follow it, or the other end's. */
static int is_old(const struct link *link)
{
	const uint32_t signs = keys.signs;

	return link->greeted && memcmp(link->by, keys.key[signs], sizeof(link->by)) &&
	       (link->opener || memcmp(link->by, keys.key[!signs], sizeof(link->by)));
}

void link_keys(const uint8_t both[2][16])
{
	__u64 half[2][2];
	struct pause *pause;
	struct link *link;
	int index;

	memcpy(half, both, sizeof(half));
	for (index = 0; index < 4; index++)
		half[index / 2][index % 2] = le64toh(half[index / 2][index % 2]);
	slim_keys_set(&keys, half[0], half[1]);
	/* Who was a stranger may be none by these. */
	for (pause = pauses; pause; pause = pause->next) {
		pause->length = 0;
		pause->until = 0;
	}
	loop_set(&dialling, 0, dial_all);
	for (link = links; link; link = link->next)
		if (!link->old && is_old(link)) {
			/* What is under way on it arrives. */
			link->old = 1;
			loop_set(&link->timer, SLIM_ANNOUNCE_LINK_MS, timed_out);
			loop_set(&dialling, 0, dial_all);
		}
}

int link_start(const struct slim_shim_name *listen_at, const uint8_t both[2][16])
{
	static const int on = 1;
	const int family = name_family(listen_at->address);
	union name name;
	socklen_t size = name_make(&name, family, listen_at->address, listen_at->port);
	int fd;

	link_keys(both);
	if (getrandom(&tokens, sizeof(tokens), 0) != sizeof(tokens))
		return -1;
	fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, &name.any, size) || listen(fd, 128) || loop_watch(&listener, fd, EPOLLIN, on_stranger)) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	loop_set(&dialling, 0, dial_all);
	return 0;
}

#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
void fuzz_link(int fd, int opener, int tagged, const __be32 *host, const uint8_t *bytes,
	       size_t size)
{
	struct link *link = link_new(fd, opener, host);
	struct slim_hello greeting = {
		.magic = htonl(SLIM_ANNOUNCE_MAGIC),
		.version = htons(SLIM_ANNOUNCE_VERSION),
	};
	struct slim_frame frame = { .kind = htons(SLIM_FRAME_READY) };

	if (!link)
		return;
	link->connecting = 0;
	if (!tagged) {
		link_bytes(link, bytes, size);
	} else {
		slim_copy(greeting.host, host);
		greeting.flags = size ? htons(bytes[0] & 3) : 0;
		if (opener)
			greet(link);
		link_bytes(link, (const uint8_t *)&greeting, sizeof(greeting));
		for (;;) {
			frame.tag = link->dead ? 0 : mac_frame(link->in_key, link->in_number, &frame);
			link_bytes(link, (const uint8_t *)&frame, sizeof(frame));
			if (!size || link->dead)
				break;
			memset(&frame, 0, sizeof(frame));
			memcpy(&frame, bytes, size < sizeof(frame) ? size : sizeof(frame));
			bytes += size < sizeof(frame) ? size : sizeof(frame);
			size -= size < sizeof(frame) ? size : sizeof(frame);
			/* Mostly of what there is. */
			if (frame.kind & 128)
				frame.kind = htons(frame.kind % 14);
			if (frame.id & 1)
				slim_copy(frame.source, host);
			if (frame.id & 2)
				frame.client = htonl(ntohl(frame.client) % 4);
			if (frame.id & 4)
				frame.server = htonl(ntohl(frame.server) % 4);
			if (frame.id & 8)
				frame.underlay_port = htons(20000);
			if (frame.id & 16)
				frame.port = htons(80);
		}
	}
	link_end(link);
	fuzz_bury();
}
#endif
