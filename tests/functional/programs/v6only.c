// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Binds sockets of both families to a port that the kernel chooses, while another
 * thread makes them IPv6-only and back; listens on those that have the port it is
 * given. In the end it says how many sockets that were, and how many listened.
 *
 * v6only PORT SECONDS
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static atomic_int current = -1;

static void *toggle(void *unused)
{
	int value = 0;

	(void)unused;
	for (;;) {
		value = !value;
		setsockopt(current, IPPROTO_IPV6, IPV6_V6ONLY, &value, sizeof(value));
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const int port = argc > 2 ? atoi(argv[1]) : 0;
	const time_t end = time(NULL) + (argc > 2 ? atoi(argv[2]) : 0);
	struct sockaddr_in6 any = { .sin6_family = AF_INET6 }, name;
	long tries, heard = 0;
	pthread_t thread;

	if (pthread_create(&thread, NULL, toggle, NULL))
		return 1;
	for (tries = 0; time(NULL) < end; tries++) {
		int fd = socket(AF_INET6, SOCK_STREAM, 0);
		socklen_t size = sizeof(name);

		if (fd < 0)
			return 1;
		current = fd;
		if (!bind(fd, (struct sockaddr *)&any, sizeof(any)) &&
		    !getsockname(fd, (struct sockaddr *)&name, &size) &&
		    ntohs(name.sin6_port) == port && !listen(fd, 8)) {
			heard++;
			usleep(1500);
		}
		close(fd);
	}
	printf("%ld %ld\n", tries, heard);
	return 0;
}
