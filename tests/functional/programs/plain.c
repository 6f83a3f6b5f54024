// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * A client and a prefork server without libc's help, built with -static.
 *
 *   plain server PORT CHILDREN    prints "ready"; answers each connection with
 *                                 "<peer address> <peer port> <own address> <own port>\n"
 *   plain client ADDRESS PORT N   connects N times; prints the answers, each
 *                                 behind its own getsockname()
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static const char *name(const struct sockaddr_in *address, char *text)
{
	char dotted[INET_ADDRSTRLEN];

	inet_ntop(AF_INET, &address->sin_addr, dotted, sizeof(dotted));
	sprintf(text, "%s %u", dotted, ntohs(address->sin_port));
	return text;
}

static void serve(int listener)
{
	struct sockaddr_in peer, own;
	char from[64], to[64], line[160];
	socklen_t length;
	int sock;

	for (;;) {
		length = sizeof(peer);
		sock = accept(listener, (struct sockaddr *)&peer, &length);
		if (sock < 0)
			die("accept");
		length = sizeof(own);
		if (getsockname(sock, (struct sockaddr *)&own, &length))
			die("getsockname");
		sprintf(line, "%s %s\n", name(&peer, from), name(&own, to));
		if (write(sock, line, strlen(line)) < 0)
			die("write");
		close(sock);
	}
}

static int server(int port, int children)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)))
		die("bind");
	if (listen(listener, 128))
		die("listen");
	while (children--)
		if (!fork())
			serve(listener);
	puts("ready");
	fflush(stdout);
	while (wait(NULL) > 0)
		;
	return 0;
}

static int client(const char *to, int port, int count)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) }, own;
	char text[64], line[256];
	socklen_t length;
	ssize_t got;
	int sock;

	inet_pton(AF_INET, to, &address.sin_addr);
	while (count--) {
		sock = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(sock, (struct sockaddr *)&address, sizeof(address)))
			die("connect");
		length = sizeof(own);
		getsockname(sock, (struct sockaddr *)&own, &length);
		got = read(sock, line, sizeof(line) - 1);
		if (got <= 0)
			die("read");
		line[got] = 0;
		printf("%s %s", name(&own, text), line);
		close(sock);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "server"))
		return server(atoi(argv[2]), atoi(argv[3]));
	if (argc == 5 && !strcmp(argv[1], "client"))
		return client(argv[2], atoi(argv[3]), atoi(argv[4]));
	return 2;
}
