/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * load KIND ADDRESS PORT [COUNT [SECONDS]]: a client of answer.c that times
 * itself and prints one JSON object.
 *
 *	wait		connect until somebody accepts; prints nothing
 *	exchange	one connection, a byte each way, again and again
 *	connect		connect, wait for the server's close; connect() is what counts
 *	client		connect, a byte each way, close (the client first)
 *	server		the same, but wait for the server's close before ours
 *	accept		fill the server's queue, and be told how long each accept took;
 *			the seconds that it prints are those of the accepts
 *
 * It ends after COUNT operations or SECONDS seconds, whichever comes first (0:
 * no limit). A refused or failed connection is counted by its errno, and the
 * next one is tried: what an exhausted host does is part of what is measured.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "burst.h"
#include "clock.h"
#include "histogram.h"

#define WAIT_LIMIT	(10 * SECOND)
#define WAIT_STEP_US	2000
#define TIMELINE_MAX	4096
#define ERRNO_MAX	256

struct tick {
	uint64_t done;
	uint64_t failed;
	uint64_t longest;
};

enum kind { EXCHANGE, CONNECT, CLIENT, SERVER, ACCEPT };

static struct histogram connects, operations;
static struct tick timeline[TIMELINE_MAX];
static uint64_t failed[ERRNO_MAX];
static uint64_t slow_connects;

static int open_socket(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		err(1, "socket");
	return fd;
}

static void wait_for(const struct sockaddr_in *to)
{
	uint64_t deadline = now() + WAIT_LIMIT;
	int fd, bad;

	do {
		fd = open_socket();
		bad = connect(fd, (const struct sockaddr *)to, sizeof(*to)) ? errno : 0;
		close(fd);
		if (!bad)
			return;
		usleep(WAIT_STEP_US);
	} while (now() < deadline);
	errno = bad;
	err(1, "nobody accepts");
}

/* One byte there and one back: 0, or -errno. */
static int exchange(int fd)
{
	char byte = 's';
	ssize_t got;

	if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1)
		return -errno;
	got = recv(fd, &byte, 1, 0);
	if (got < 0)
		return -errno;
	return got ? 0 : -EPIPE;
}

/* One connection from socket() to close(): 0, or -errno. */
static int cycle(const struct sockaddr_in *to, enum kind kind)
{
	uint64_t before, after;
	int fd = open_socket();
	int bad = 0;
	char byte;

	before = now();
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)))
		bad = -errno;
	after = now();
	if (after - before > SECOND)
		slow_connects++;
	if (bad)
		goto out;
	histogram_add(&connects, after - before);
	if (kind != CONNECT)
		bad = exchange(fd);
	if (!bad && kind != CLIENT && recv(fd, &byte, 1, 0) < 0)
		bad = -errno;
out:
	close(fd);
	return bad;
}

static int open_exchange(const struct sockaddr_in *to)
{
	int fd = open_socket();
	int one = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
		err(1, "TCP_NODELAY");
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)))
		err(1, "connect");
	return fd;
}

static enum kind parse_kind(const char *text)
{
	static const char *const names[] = {
		[EXCHANGE] = "exchange", [CONNECT] = "connect",
		[CLIENT] = "client", [SERVER] = "server", [ACCEPT] = "accept",
	};
	unsigned int i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(text, names[i]))
			return i;
	errx(2, "kind: wanted wait, exchange, connect, client, server or accept, got %s", text);
}

static void report(uint64_t took)
{
	unsigned int i, last = took / SECOND;
	const char *comma = "";

	printf("{\"operations\": %lu, \"seconds\": %.6f, \"failed\": {",
	       operations.count, took / 1e9);
	for (i = 0; i < ERRNO_MAX; i++) {
		if (!failed[i])
			continue;
		printf("%s\"%s\": %lu", comma, strerrorname_np(i), failed[i]);
		comma = ", ";
	}
	printf("}, \"slow_connects\": %lu, \"operation_us\": ", slow_connects);
	histogram_print(&operations, stdout);
	printf(", \"connect_us\": ");
	histogram_print(&connects, stdout);
	printf(", \"timeline\": [");
	for (i = 0; i <= last && i < TIMELINE_MAX; i++)
		printf("%s{\"done\": %lu, \"failed\": %lu, \"longest_us\": %.1f}",
		       i ? ", " : "", timeline[i].done, timeline[i].failed,
		       timeline[i].longest / 1e3);
	printf("]}\n");
}

static void run(const struct sockaddr_in *to, enum kind kind, uint64_t count, uint64_t limit)
{
	uint64_t start, before, after, tried = 0;
	struct tick *tick;
	int fd = -1, bad;

	if (kind == EXCHANGE)
		fd = open_exchange(to);
	start = after = now();
	do {
		before = after;
		bad = kind == EXCHANGE ? exchange(fd) : cycle(to, kind);
		after = now();
		tick = &timeline[(after - start) / SECOND % TIMELINE_MAX];
		if (after - before > tick->longest)
			tick->longest = after - before;
		if (bad) {
			failed[-bad % ERRNO_MAX]++;
			tick->failed++;
		} else {
			histogram_add(&operations, after - before);
			tick->done++;
		}
		if (bad && kind == EXCHANGE)
			break;
	} while ((!count || ++tried < count) && (!limit || after - start < limit));
	report(after - start);
}

/* `count` connections in the server's queue at once: nanoseconds that it took to accept them. */
static uint64_t burst(const struct sockaddr_in *to, uint32_t count)
{
	static uint64_t took[BURST];
	static int fds[BURST];
	const ssize_t size = count * sizeof(*took);
	const int first = open_exchange(to);
	uint64_t whole = 0, before;
	uint32_t i;

	for (i = 0; i < count; i++) {
		before = now();
		fds[i] = open_socket();
		if (connect(fds[i], (const struct sockaddr *)to, sizeof(*to)))
			err(1, "connect");
		histogram_add(&connects, now() - before);
	}
	if (send(first, &count, sizeof(count), MSG_NOSIGNAL) != sizeof(count))
		err(1, "send");
	if (recv(first, took, size, MSG_WAITALL) != size)
		errx(1, "the server ended");
	for (i = 0; i < count; i++) {
		histogram_add(&operations, took[i]);
		whole += took[i];
		close(fds[i]);
	}
	close(first);
	return whole;
}

static void run_bursts(const struct sockaddr_in *to, uint64_t count, uint64_t limit)
{
	const uint64_t start = now();
	uint64_t took = 0, left = count ? count : UINT64_MAX, size;

	do {
		size = left < BURST ? left : BURST;
		took += burst(to, size);
		left -= size;
	} while (left && (!limit || now() - start < limit));
	report(took);
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	uint64_t count = 0, limit = 0;

	if (argc < 4 || argc > 6)
		errx(2, "usage: load KIND ADDRESS PORT [COUNT [SECONDS]]");
	if (inet_pton(AF_INET, argv[2], &to.sin_addr) != 1)
		errx(2, "address: wanted an IPv4 address, got %s", argv[2]);
	to.sin_port = htons(atoi(argv[3]));
	if (argc > 4)
		count = strtoull(argv[4], NULL, 10);
	if (argc > 5)
		limit = strtod(argv[5], NULL) * SECOND;
	if (!strcmp(argv[1], "wait")) {
		wait_for(&to);
		return 0;
	}
	if (!count && !limit)
		errx(2, "limit: wanted a count or a number of seconds, got neither");
	if (parse_kind(argv[1]) == ACCEPT)
		run_bursts(&to, count, limit);
	else
		run(&to, parse_kind(argv[1]), count, limit);
	return 0;
}
