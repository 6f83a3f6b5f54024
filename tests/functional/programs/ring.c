// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * A client and a server that make, connect, accept and use their sockets
 * through io_uring.
 *
 *   ring server PORT              prints "ready"; answers each connection with
 *                                 "<peer address> <peer port>\n"
 *   ring client ADDRESS PORT      prints its getsockname() and the answer, or
 *                                 "errno N" where connect failed
 *   ring socket FAMILY TYPE PROTOCOL
 *   ring bind ADDRESS PORT
 *   ring option LEVEL NAME        sets it to 1
 *                                 these print "errno N", or "done"
 */
#include <arpa/inet.h>
#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Newer than Debian 12's liburing: Linux 6.11, 6.7. */
#define OP_BIND 56
#define SOCKET_SETSOCKOPT 3

static struct io_uring ring;

/* Submit the one prepared request and wait for it. */
static int result(void)
{
	struct io_uring_cqe *cqe;
	int answer;

	io_uring_submit(&ring);
	if (io_uring_wait_cqe(&ring, &cqe))
		exit(1);
	answer = cqe->res;
	io_uring_cqe_seen(&ring, cqe);
	return answer;
}

static int make_socket(void)
{
	io_uring_prep_socket(io_uring_get_sqe(&ring), AF_INET, SOCK_STREAM, 0, 0);
	return result();
}

static int server(int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) }, peer;
	int listener = make_socket(), sock;
	char dotted[INET_ADDRSTRLEN], line[64];
	socklen_t length;

	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 16)) {
		perror("listen");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		length = sizeof(peer);
		io_uring_prep_accept(io_uring_get_sqe(&ring), listener,
				     (struct sockaddr *)&peer, &length, 0);
		sock = result();
		if (sock < 0) {
			printf("accept %d\n", sock);
			return 1;
		}
		inet_ntop(AF_INET, &peer.sin_addr, dotted, sizeof(dotted));
		sprintf(line, "%s %u\n", dotted, ntohs(peer.sin_port));
		io_uring_prep_send(io_uring_get_sqe(&ring), sock, line, strlen(line), 0);
		result();
		io_uring_prep_close(io_uring_get_sqe(&ring), sock);
		result();
	}
}

static int client(const char *to, int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) }, own;
	char dotted[INET_ADDRSTRLEN], line[64];
	socklen_t length = sizeof(own);
	int sock = make_socket(), got;

	if (sock < 0) {
		printf("socket %d\n", -sock);
		return 0;
	}
	inet_pton(AF_INET, to, &address.sin_addr);
	io_uring_prep_connect(io_uring_get_sqe(&ring), sock,
			      (struct sockaddr *)&address, sizeof(address));
	got = result();
	if (got < 0) {
		printf("errno %d\n", -got);
		return 0;
	}
	getsockname(sock, (struct sockaddr *)&own, &length);
	io_uring_prep_recv(io_uring_get_sqe(&ring), sock, line, sizeof(line) - 1, 0);
	got = result();
	if (got <= 0)
		return 1;
	line[got] = 0;
	inet_ntop(AF_INET, &own.sin_addr, dotted, sizeof(dotted));
	printf("%s %u %s", dotted, ntohs(own.sin_port), line);
	return 0;
}

static int made(int family, int type, int protocol)
{
	io_uring_prep_socket(io_uring_get_sqe(&ring), family, type, protocol, 0);
	return result();
}

static int bound(const char *to, int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, to, &address.sin_addr);
	io_uring_prep_rw(OP_BIND, io_uring_get_sqe(&ring), make_socket(), &address, 0,
			 sizeof(address));
	return result();
}

static int option(unsigned int level, unsigned int name)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
	int sock = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	/* off is cmd_op, addr is level and optname, file_index is optlen, addr3 is optval. */
	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, sock, NULL, 0, SOCKET_SETSOCKOPT);
	sqe->addr = level | (__u64)name << 32;
	sqe->file_index = sizeof(one);
	sqe->addr3 = (__u64)(uintptr_t)&one;
	return result();
}

static int report(int got)
{
	if (got < 0)
		printf("errno %d\n", -got);
	else
		puts("done");
	return 0;
}

int main(int argc, char **argv)
{
	if (io_uring_queue_init(8, &ring, 0)) {
		perror("io_uring_queue_init");
		return 3;
	}
	if (argc == 3 && !strcmp(argv[1], "server"))
		return server(atoi(argv[2]));
	if (argc == 4 && !strcmp(argv[1], "client"))
		return client(argv[2], atoi(argv[3]));
	if (argc == 5 && !strcmp(argv[1], "socket"))
		return report(made(atoi(argv[2]), atoi(argv[3]), atoi(argv[4])));
	if (argc == 4 && !strcmp(argv[1], "bind"))
		return report(bound(argv[2], atoi(argv[3])));
	if (argc == 4 && !strcmp(argv[1], "option"))
		return report(option(atoi(argv[2]), atoi(argv[3])));
	return 2;
}
