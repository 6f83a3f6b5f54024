/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * answer PORT client|server|accept|queue: a server that answers every byte with
 * itself, one connection at a time.
 *
 *	client	the client closes first (and keeps TIME_WAIT)
 *	server	the server closes first, after its first answer
 *	accept	the server closes as soon as it has accepted; nothing is sent
 *	queue	the first connection says how many are in the queue behind it, and
 *		is told how long it took to accept each of them (burst.h)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "burst.h"
#include "clock.h"

enum first { FIRST_CLIENT, FIRST_SERVER, FIRST_ACCEPT, FIRST_QUEUE };

static enum first parse_first(const char *text)
{
	if (!strcmp(text, "client"))
		return FIRST_CLIENT;
	if (!strcmp(text, "server"))
		return FIRST_SERVER;
	if (!strcmp(text, "accept"))
		return FIRST_ACCEPT;
	if (!strcmp(text, "queue"))
		return FIRST_QUEUE;
	errx(2, "who closes first: wanted client, server, accept or queue, got %s", text);
}

static int listen_on(int port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd, one = 1;

	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		err(1, "socket");
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)))
		err(1, "SO_REUSEADDR");
	/* Accepted sockets inherit it. */
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
		err(1, "TCP_NODELAY");
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)))
		err(1, "bind port %d", port);
	if (listen(fd, 4096))
		err(1, "listen");
	return fd;
}

static void serve(int fd, enum first first)
{
	char byte;

	while (first != FIRST_ACCEPT && read(fd, &byte, 1) == 1) {
		if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1)
			break;
		if (first == FIRST_SERVER)
			break;
	}
	close(fd);
}

/* `fd`: of who says how many. Nothing is closed before all are accepted. */
static void take_queue(int listener, int fd)
{
	static uint64_t took[BURST];
	static int taken[BURST];
	uint32_t count, i;
	uint64_t before, after;
	char byte;

	if (recv(fd, &count, sizeof(count), MSG_WAITALL) != sizeof(count) || count > BURST) {
		close(fd);
		return;
	}
	before = now();
	for (i = 0; i < count; i++) {
		taken[i] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (taken[i] < 0)
			err(1, "accept");
		after = now();
		took[i] = after - before;
		before = after;
	}
	/* The client closes first, and keeps TIME_WAIT. */
	if (send(fd, took, count * sizeof(*took), MSG_NOSIGNAL) > 0)
		recv(fd, &byte, 1, 0);
	for (i = 0; i < count; i++)
		close(taken[i]);
	close(fd);
}

int main(int argc, char **argv)
{
	enum first first;
	int listener, fd;

	if (argc != 3)
		errx(2, "usage: answer PORT client|server|accept|queue");
	first = parse_first(argv[2]);
	listener = listen_on(atoi(argv[1]));
	for (;;) {
		fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0 && first == FIRST_QUEUE)
			take_queue(listener, fd);
		else if (fd >= 0)
			serve(fd, first);
		else if (errno != EINTR && errno != ECONNABORTED)
			err(1, "accept");
	}
}
