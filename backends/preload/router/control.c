// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What the agent asks, and is told: preload/control.h. */
#include "router.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <slimnet/announce.h>
#include <slimnet/address.h>

#include "diag.h"
#include "loop.h"

#define AGENTS 64

struct agent {
	struct watch watch;
	struct agent *next;
	uint8_t wants_events;
	uint64_t lost;
};

struct tables *tables;

static struct watch listener;
static struct agent *agents;
static size_t agent_count;
static uint64_t refused[2][SLIM_REASON_COUNT], allowed[2][SLIM_REASON_COUNT];

void count(int yes, int direction, uint32_t reason)
{
	if (reason < SLIM_REASON_COUNT)
		(yes ? allowed : refused)[direction & 1][reason]++;
}

void tell(struct slim_event *event)
{
	struct agent *agent;

	if (event->kind != SLIM_EVENT_REFUSED && !state->observed)
		return;
	event->time = now_ns();
	for (agent = agents; agent; agent = agent->next) {
		struct slim_control_event told = {
			.answer = { .version = SLIM_CONTROL_VERSION, .call = SLIM_CONTROL_EVENTS },
			.lost = agent->lost,
			.event = *event,
		};

		if (!agent->wants_events)
			continue;
		if (send(agent->watch.fd, &told, sizeof(told), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
			agent->lost++;
		else
			agent->lost = 0;
	}
}

static void agent_end(struct agent *agent)
{
	struct agent **link;

	for (link = &agents; *link && *link != agent; link = &(*link)->next)
		;
	if (*link)
		*link = agent->next;
	agent_count--;
	loop_forget(&agent->watch);
	loop_free(agent);
}

static struct slim_control_answer blank(uint32_t call, int error, const char *text)
{
	struct slim_control_answer answer = {
		.version = SLIM_CONTROL_VERSION,
		.call = call,
		.error = (uint32_t)error,
	};

	strncpy(answer.text, text, sizeof(answer.text) - 1);
	return answer;
}

/* An agent that does not read waits for nobody but itself: its connection ends. */
static int answer_with(struct agent *agent, const void *answer, size_t size)
{
	return send(agent->watch.fd, answer, size, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)size ?
		       0 : -1;
}

static int plain(struct agent *agent, uint32_t call, int error, const char *text)
{
	const struct slim_control_answer answer = blank(call, error, text);

	return answer_with(agent, &answer, sizeof(answer));
}

static int do_status(struct agent *agent)
{
	struct slim_control_status status = {
		.answer = blank(SLIM_CONTROL_STATUS, 0, ""),
		.generation = tables_generation(tables),
		.abi = SLIM_ABI_VERSION,
		.shim_version = SLIM_SHIM_VERSION,
		.announce_version = SLIM_ANNOUNCE_VERSION,
		.pid = (uint32_t)getpid(),
		.links = link_count(),
		.connections = flow_count(),
		.revokes = (uint32_t)flows_revokes(),
	};
	uint32_t index;

	flows_trouble(status.trouble, sizeof(status.trouble));
	if (!status.trouble[0])
		published_trouble(status.trouble, sizeof(status.trouble));
	memcpy(status.refused, refused, sizeof(refused));
	memcpy(status.allowed, allowed, sizeof(allowed));
	for (index = 0; index < SLIM_CONTROL_ENDPOINTS; index++)
		if (state->endpoints[index].used)
			status.endpoints[status.count++] = state->endpoints[index].id;
	return answer_with(agent, &status, offsetof(struct slim_control_status, endpoints) +
			   status.count * sizeof(status.endpoints[0]));
}

static int do_attach(struct agent *agent, const struct slim_control_request *request)
{
	struct state_endpoint record = {
		.id = request->endpoint,
		.vni = request->vni,
		.uid = request->uid,
	};
	size_t length = strnlen(request->path, sizeof(request->path));

	if (!request->endpoint || !length || length >= sizeof(record.path))
		return plain(agent, request->call, EINVAL, "an id and a path of 1 to 107 bytes");
	memcpy(record.path, request->path, length);
	slim_copy(record.address, request->address);
	if (endpoint_open(&record))
		return plain(agent, request->call, errno, strerror(errno));
	return plain(agent, request->call, 0, "");
}

static int do_tables(struct agent *agent, const struct slim_control_request *request)
{
	char text[sizeof(((struct slim_control_answer *)0)->text)] = "";
	struct tables *fresh, *old = tables;

	if (strnlen(request->path, sizeof(request->path)) == sizeof(request->path))
		return plain(agent, request->call, EINVAL, "the path does not end");
	fresh = tables_open(request->path, text, sizeof(text));
	if (!fresh)
		return plain(agent, request->call, errno ? errno : EINVAL, text);
	tables = fresh;
	memcpy(state->tables, request->path, sizeof(state->tables));
	flows_revoke();
	tables_close(old);
	link_tables();
	published_tables();
	return plain(agent, request->call, 0, "");
}

static int do_keys(struct agent *agent, const struct slim_control_request *request)
{
	uint8_t both[2][16];

	if (strnlen(request->path, sizeof(request->path)) == sizeof(request->path))
		return plain(agent, request->call, EINVAL, "the path does not end");
	if (read_keys(request->path, both))
		return plain(agent, request->call, errno, "no file of keys");
	link_keys((const uint8_t (*)[16])both);
	explicit_bzero(both, sizeof(both));
	return plain(agent, request->call, 0, "");
}

struct listing {
	struct agent *agent;
	int failed;
};

static void list_end(struct listing *listing, const struct flow *flow, int egress,
		     const struct diag *socket)
{
	const struct slim_shim_name *local = egress ? &flow->client_name : &flow->server_name;
	const struct slim_shim_name *peer = egress ? &flow->dialled : &flow->client_name;
	struct slim_control_connection one = {
		.answer = blank(SLIM_CONTROL_CONNECTIONS, 0, ""),
		.endpoint = egress ? flow->client : flow->server,
		.peer_endpoint = egress ? flow->server : flow->client,
		.direction = egress ? SLIM_EGRESS : SLIM_INGRESS,
		.wire = flow->kind,
		.state = socket->state,
		.rule = egress ? flow->rule : flow->peer_rule,
		.local_port = local->port,
		.peer_port = peer->port,
		.opened = flow->opened,
		.cookie = socket->cookie,
	};

	slim_copy(one.local, local->address);
	slim_copy(one.peer, peer->address);
	/* Its buffer may fill: this one may wait, the agent reads. */
	if (!listing->failed &&
	    send(listing->agent->watch.fd, &one, sizeof(one), MSG_NOSIGNAL) < 0)
		listing->failed = 1;
}

static void list_one(const struct diag *socket, void *data)
{
	int egress;
	const struct flow *flow = flows_of(socket, &egress);

	if (flow && (egress || flow->used == FLOW_OPEN))
		list_end(data, flow, egress, socket);
}

static int do_connections(struct agent *agent)
{
	struct slim_control_connection last = {
		.answer = blank(SLIM_CONTROL_CONNECTIONS, 0, ""),
		.end = 1,
	};
	struct listing listing = { .agent = agent };
	const struct timeval wait = { .tv_usec = 200000 };

	setsockopt(agent->watch.fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
	if (flow_count() && diag_each(FLOWS_LIVE, list_one, &listing)) {
		last.answer.error = EIO;
		strcpy(last.answer.text, "the kernel's list of sockets cannot be read");
	}
	if (listing.failed)
		return -1;
	return send(agent->watch.fd, &last, sizeof(last), MSG_NOSIGNAL) < 0 ? -1 : 0;
}

static int do_ask(struct agent *agent, const struct slim_control_request *request)
{
	struct slim_control_asked asked = {
		.answer = blank(SLIM_CONTROL_ASK, 0, ""),
		.question = request->question,
	};

	tables_ask(tables, &asked.question);
	return answer_with(agent, &asked, sizeof(asked));
}

static int control_request(struct agent *agent, const struct slim_control_request *request)
{
	switch (request->call) {
	case SLIM_CONTROL_STATUS:
		return do_status(agent);
	case SLIM_CONTROL_ATTACH:
		return do_attach(agent, request);
	case SLIM_CONTROL_DETACH:
		endpoint_close(request->endpoint);
		return plain(agent, request->call, 0, "");
	case SLIM_CONTROL_TABLES:
		return do_tables(agent, request);
	case SLIM_CONTROL_CONNECTIONS:
		return do_connections(agent);
	case SLIM_CONTROL_ASK:
		return do_ask(agent, request);
	case SLIM_CONTROL_EVENTS:
		agent->wants_events = 1;
		return plain(agent, request->call, 0, "");
	case SLIM_CONTROL_OBSERVE:
		state->observed = !!request->number;
		return plain(agent, request->call, 0, "");
	case SLIM_CONTROL_KEYS:
		return do_keys(agent, request);
	case SLIM_CONTROL_STOP:
		loop_stop();
		return plain(agent, request->call, 0, "");
	default:
		return plain(agent, request->call, ENOSYS, "no such call");
	}
}

static void agent_ready(struct watch *watch, uint32_t events)
{
	struct agent *agent = CONTAINER(watch, struct agent, watch);
	struct slim_control_request request;
	ssize_t size = recv(watch->fd, &request, sizeof(request), MSG_DONTWAIT | MSG_TRUNC);

	(void)events;
	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (size > 0 && (size != sizeof(request) || request.version != SLIM_CONTROL_VERSION)) {
		plain(agent, 0, EPROTO, "a request of another version");
		size = 0;
	}
	if (size <= 0 || control_request(agent, &request))
		agent_end(agent);
}

static void on_agent(struct watch *watch, uint32_t events)
{
	struct agent *agent;
	struct ucred who;
	socklen_t size = sizeof(who);
	int fd = loop_accept(watch, NULL, NULL, SOCK_CLOEXEC);

	(void)events;
	if (fd < 0)
		return;
	agent = agent_count < AGENTS ? calloc(1, sizeof(*agent)) : NULL;
	if (!agent || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) ||
	    (who.uid && who.uid != geteuid()) ||
	    loop_watch(&agent->watch, fd, EPOLLIN, agent_ready)) {
		free(agent);
		close(fd);
		return;
	}
	agent->next = agents;
	agents = agent;
	agent_count++;
}

int control_start(const char *path)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	mode_t mask;
	int fd, failed;

	if (strlen(path) >= sizeof(name.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -1;
	strcpy(name.sun_path, path);
	unlink(path);
	mask = umask(0177);
	failed = bind(fd, (struct sockaddr *)&name, sizeof(name));
	umask(mask);
	if (failed || listen(fd, 16) || loop_watch(&listener, fd, EPOLLIN, on_agent)) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return 0;
}
