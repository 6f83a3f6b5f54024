// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * identity server PORT WORKERS		forks, and each worker accepts
 * identity client ADDRESS PORT COUNT OWN [-n]
 *
 * Over each connection the server sends whom it takes the client for, by accept(2) and
 * by getpeername(2); the client compares it with what getsockname(2) says of itself,
 * which must have the address OWN, and prints "right wrong refused". -n: connects
 * without blocking, and waits with poll(2).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct view {
	struct sockaddr_in accepted, asked;
};

static void __attribute__((noreturn)) fail(const char *what)
{
	perror(what);
	exit(1);
}

static void serve(int listener)
{
	for (;;) {
		struct view view = {};
		socklen_t size = sizeof(view.accepted);
		int fd = accept(listener, (struct sockaddr *)&view.accepted, &size);

		if (fd < 0) {
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			fail("accept");
		}
		size = sizeof(view.asked);
		/* A client that has gone already has no name to ask for. */
		if (!getpeername(fd, (struct sockaddr *)&view.asked, &size))
			send(fd, &view, sizeof(view), MSG_NOSIGNAL);
		close(fd);
	}
}

static int server(int port, int workers)
{
	struct sockaddr_in name = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&name, sizeof(name)) || listen(listener, 1024))
		fail("bind");
	while (workers--)
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			serve(listener);
		}
	puts("ready");
	fflush(stdout);
	while (wait(NULL) > 0)
		;
	return 0;
}

/* 0 or an errno. */
static int dial(int fd, const struct sockaddr_in *to, int poll_for_it)
{
	socklen_t size = sizeof(int);
	struct pollfd wait = { .fd = fd, .events = POLLOUT };
	int error = 0;

	if (!poll_for_it)
		return connect(fd, (const struct sockaddr *)to, sizeof(*to)) ? errno : 0;
	fcntl(fd, F_SETFL, O_NONBLOCK);
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)) && errno != EINPROGRESS)
		return errno;
	if (poll(&wait, 1, 10000) != 1)
		return ETIMEDOUT;
	getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
	fcntl(fd, F_SETFL, 0);
	return error;
}

static int client(const char *address, int port, int count, const char *own, int poll_for_it)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int right = 0, wrong = 0, refused = 0, first = 0;
	struct in_addr expected;

	inet_pton(AF_INET, address, &to.sin_addr);
	inet_pton(AF_INET, own, &expected);
	while (count--) {
		struct sockaddr_in me = {}, peer = {};
		socklen_t size = sizeof(me);
		struct view view;
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		int error = dial(fd, &to, poll_for_it);

		if (error) {
			if (!first)
				first = error;
			refused++;
			close(fd);
			continue;
		}
		getsockname(fd, (struct sockaddr *)&me, &size);
		size = sizeof(peer);
		getpeername(fd, (struct sockaddr *)&peer, &size);
		if (recv(fd, &view, sizeof(view), MSG_WAITALL) != sizeof(view)) {
			refused++;
		} else if (me.sin_addr.s_addr == expected.s_addr && me.sin_port &&
			   !memcmp(&view.accepted, &me, sizeof(me)) &&
			   !memcmp(&view.asked, &me, sizeof(me)) &&
			   (!peer.sin_port || !memcmp(&peer, &to, sizeof(to)))) {
			right++;
		} else {
			if (!wrong) {
				char a[20], b[20];

				inet_ntop(AF_INET, &view.accepted.sin_addr, a, sizeof(a));
				inet_ntop(AF_INET, &me.sin_addr, b, sizeof(b));
				fprintf(stderr, "accepted %s:%d, own %s:%d\n", a,
					ntohs(view.accepted.sin_port), b, ntohs(me.sin_port));
			}
			wrong++;
		}
		close(fd);
	}
	printf("%d %d %d %s\n", right, wrong, refused, first ? strerror(first) : "-");
	return 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 4 && !strcmp(argv[1], "server"))
		return server(atoi(argv[2]), atoi(argv[3]));
	if (argc >= 6 && !strcmp(argv[1], "client"))
		return client(argv[2], atoi(argv[3]), atoi(argv[4]), argv[5], argc > 6);
	return 2;
}
