// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A request and its answer, on a connection that no other thread uses meanwhile. */
#include "router.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include <preload/rights.h>

#include "real.h"

extern char **environ;

#define IDLE 16		/* connections that are kept */
#define PAUSE_MS 10

/*
 * Connections to the router that nobody uses now. Taking one is an exchange with 0,
 * so that no two threads have the same, and none waits for another. `owner` is
 * pid << 32 | descriptor + 1.
 *
 * A number that we remember may be another file's by now: the application closed
 * all that it did not know (a daemon does), or forked. So it is used only while
 * it is the socket with that cookie, and only by the process that opened it.
 */
static struct idle {
	uint64_t owner;
	uint64_t cookie;
} idle[IDLE];

#define BUSY (~(uint64_t)0)	/* is being written; no process has that number */

static const char *socket_path;
static uint32_t looked;		/* 1: no endpoint's; 2: one's */

/* Not getenv(): musl's and glibc's are not safe beside setenv() in another thread. */
static const char *variable(const char *name)
{
	size_t length = strlen(name);
	char **each;

	for (each = environ; each && *each; each++)
		if (!strncmp(*each, name, length) && (*each)[length] == '=')
			return *each + length + 1;
	return NULL;
}

static struct sockaddr_un where;
static char preload[4096];

const char *router_socket(void)
{
	return where.sun_path;
}

const char *router_preload(void)
{
	return preload;
}

/* Read once: what the program does to its environment later is for its children. */
static void __attribute__((constructor)) look(void)
{
	const char *path, *off, *loaded;

	if (__atomic_load_n(&looked, __ATOMIC_ACQUIRE))
		return;
	path = variable(SLIM_SHIM_SOCKET);
	off = variable(SLIM_SHIM_DISABLE);
	loaded = variable("LD_PRELOAD");
	if (!path || !*path || (off && !strcmp(off, "1"))) {
		__atomic_store_n(&looked, 1, __ATOMIC_RELEASE);
		return;
	}
	where.sun_family = AF_UNIX;
	/* What is too long leads to no router, and so to no connection: it says an endpoint's. */
	strncpy(where.sun_path, path, sizeof(where.sun_path) - 1);
	socket_path = where.sun_path;
	if (loaded && strlen(loaded) < sizeof(preload))
		strcpy(preload, loaded);
	__atomic_store_n(&looked, 2, __ATOMIC_RELEASE);
}

int router_is(void)
{
	uint32_t found = __atomic_load_n(&looked, __ATOMIC_ACQUIRE);

	if (!found) {
		/* A constructor that runs before ours: there are no threads yet. */
		look();
		found = __atomic_load_n(&looked, __ATOMIC_ACQUIRE);
	}
	return found == 2;
}

/* Once a process. Not where standard error is a connection of the program's own. */
static void complain(const char *text)
{
	static uint32_t done;
	char line[256] = "slimnet: ";
	int domain = 0;
	size_t size;

	if (__atomic_exchange_n(&done, 1, __ATOMIC_ACQ_REL))
		return;
	if (!raw_option(2, SOL_SOCKET, SO_DOMAIN, &domain, sizeof(domain)) && domain != AF_UNIX)
		return;
	strncat(line, socket_path, sizeof(line) - strlen(line) - 100);
	strcat(line, text);
	size = strlen(line);
	raw(SYS_write, 2, (long)line, (long)size, 0, 0, 0);
}

/* Out of the way of programs that count on the lowest number being free. */
static int lift(int fd)
{
	struct rlimit limit = { .rlim_cur = 1024 };
	long high;

	raw(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, (long)&limit, 0, 0);
	if (limit.rlim_cur > 65536)
		limit.rlim_cur = 65536;
	high = limit.rlim_cur > 256 ? (long)limit.rlim_cur - 128 : (long)limit.rlim_cur / 2;
	high = raw(SYS_fcntl, fd, F_DUPFD_CLOEXEC, high, 0, 0, 0);
	if (high < 0)
		return fd;
	raw(SYS_close, fd, 0, 0, 0, 0, 0);
	return (int)high;
}

/* A negative errno, or a new connection. */
static int open_one(void)
{
	const struct timeval wait = { .tv_sec = SLIM_SHIM_WAIT_MS / 1000 };
	struct ucred who = {};
	long fd, error;

	fd = raw(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0, 0, 0);
	if (fd < 0)
		return (int)fd;
	raw(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, (long)&wait, sizeof(wait), 0);
	raw(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, (long)&wait, sizeof(wait), 0);
	do
		error = raw(SYS_connect, fd, (long)&where, sizeof(where), 0, 0, 0);
	while (error == -EINTR);
	if (error) {
		raw(SYS_close, fd, 0, 0, 0, 0, 0);
		return (int)error;
	}
	/* It may have to close a connection of ours, which Yama lets nobody else do. */
	if (!raw_option((int)fd, SOL_SOCKET, SO_PEERCRED, &who, sizeof(who)) && who.pid)
		raw(SYS_prctl, PR_SET_PTRACER, who.pid, 0, 0, 0, 0);
	return lift((int)fd);
}

/* A negative errno, or one that is ours alone until give() or drop(). */
static int take(long pid)
{
	size_t index;

	for (index = 0; index < IDLE; index++) {
		uint64_t cookie, owner;
		int fd;

		owner = __atomic_load_n(&idle[index].owner, __ATOMIC_ACQUIRE);
		if (!owner || owner == BUSY)
			continue;
		/* Before it is taken: afterwards the place may be another's already. */
		cookie = __atomic_load_n(&idle[index].cookie, __ATOMIC_RELAXED);
		if (!__atomic_compare_exchange_n(&idle[index].owner, &owner, 0, 0,
						 __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			continue;
		fd = (int)(owner & 0xffffffff) - 1;
		if (cookie_of(fd) != cookie)
			continue;
		if (owner >> 32 == (uint64_t)pid)
			return fd;
		/* A fork's: the parent goes on using it. */
		raw(SYS_close, fd, 0, 0, 0, 0, 0);
	}
	return open_one();
}

static void drop(int fd)
{
	raw(SYS_close, fd, 0, 0, 0, 0, 0);
}

static void give(int fd, long pid)
{
	const uint64_t owner = (uint64_t)pid << 32 | ((uint64_t)fd + 1);
	const uint64_t cookie = cookie_of(fd);
	size_t index;

	for (index = 0; index < IDLE; index++) {
		uint64_t none = 0;

		if (__atomic_load_n(&idle[index].owner, __ATOMIC_RELAXED) ||
		    !__atomic_compare_exchange_n(&idle[index].owner, &none, BUSY, 0,
						 __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			continue;
		__atomic_store_n(&idle[index].cookie, cookie, __ATOMIC_RELAXED);
		__atomic_store_n(&idle[index].owner, owner, __ATOMIC_RELEASE);
		return;
	}
	drop(fd);
}

static long send_one(int connection, const struct slim_shim_request *request, int fd)
{
	struct iovec part = { (void *)(uintptr_t)request, sizeof(*request) };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	union slim_rights rights;
	long sent;

	slim_rights_give(&message, &rights, fd);
	do
		sent = raw(SYS_sendmsg, connection, (long)&message, MSG_NOSIGNAL, 0, 0, 0);
	while (sent == -EINTR);
	return sent;
}

/* `*given`: what came along, or -1. */
static long receive_one(int connection, struct slim_shim_answer *answer, int *given)
{
	union slim_rights rights;
	struct iovec part = { answer, sizeof(*answer) };
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &rights,
		.msg_controllen = sizeof(rights),
	};
	long size;

	do
		size = raw(SYS_recvmsg, connection, (long)&message, MSG_CMSG_CLOEXEC, 0, 0, 0);
	while (size == -EINTR);
	*given = size > 0 ? slim_rights_take(&message) : -1;
	return size;
}

static void pause_ms(long ms)
{
	const struct timespec wait = { .tv_nsec = ms * 1000000 };

	raw(SYS_nanosleep, (long)&wait, 0, 0, 0, 0, 0);
}

void router_done(int connection)
{
	if (connection >= 0)
		give(connection, raw(SYS_getpid, 0, 0, 0, 0, 0, 0));
}

static int ask(struct slim_shim_request *request, int fd, int patience,
	       struct slim_shim_answer *answer, int *kept, int *given)
{
	const long pid = raw(SYS_getpid, 0, 0, 0, 0, 0, 0);
	int stale = 0;

	request->version = SLIM_SHIM_VERSION;
	for (;;) {
		int connection = take(pid);
		long size;

		if (connection >= 0) {
			size = send_one(connection, request, fd);
			if (size == (long)sizeof(*request)) {
				size = receive_one(connection, answer, given);
			} else if (size >= 0) {
				size = -EPIPE;
			}
			if (size == (long)sizeof(*answer)) {
				if (answer->version != SLIM_SHIM_VERSION ||
				    (answer->error == EPROTO && answer->call != request->call)) {
					if (*given >= 0)
						drop(*given);
					*given = -1;
					drop(connection);
					complain(": a router of another version\n");
					return EPROTO;
				}
				*kept = connection;
				return 0;
			}
			if (*given >= 0)
				drop(*given);
			*given = -1;
			drop(connection);
			if (size == -EAGAIN) {
				complain(": the router does not answer\n");
				return ETIMEDOUT;
			}
			/*
			 * It has gone, perhaps long ago: each connection that was kept is one of the
			 * old router's. A request that was not answered may be asked again.
			 */
			if (stale++ < IDLE)
				continue;
			connection = -ECONNRESET;
		}
		if (connection == -EMFILE || connection == -ENFILE || connection == -ENOMEM ||
		    connection == -ENOBUFS)
			return -connection;
		if (patience <= 0) {
			complain(": no router: new connections are refused\n");
			return ENETDOWN;
		}
		pause_ms(PAUSE_MS);
		patience -= PAUSE_MS;
	}
}

int router_ask_first(struct slim_shim_request *request, int fd, int patience,
		     struct slim_shim_answer *answer, int *kept)
{
	int given = -1, error = ask(request, fd, patience, answer, kept, &given);

	/* Nobody waits for it. */
	if (given >= 0)
		drop(given);
	return error;
}

int router_ask_given(struct slim_shim_request *request, int patience,
		     struct slim_shim_answer *answer, int *given)
{
	int connection = -1, error;

	*given = -1;
	error = ask(request, -1, patience, answer, &connection, given);
	router_done(connection);
	return error;
}

int router_ask(struct slim_shim_request *request, int fd, int patience,
	       struct slim_shim_answer *answer)
{
	int connection = -1, error = router_ask_first(request, fd, patience, answer, &connection);

	router_done(connection);
	return error;
}
