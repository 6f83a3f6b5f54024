// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * threads COUNT: threads that accept at one listener, others that connect to it, and one
 * that opens and closes descriptors, so that numbers are used again all the time. What both
 * ends say of each other must be the same. Prints "right".
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define THREADS 4

static int listener, count, wrong, done;

static void *serve(void *data)
{
	for (;;) {
		struct sockaddr_in peer = {}, asked = {};
		socklen_t size = sizeof(peer);
		int fd = accept(listener, (struct sockaddr *)&peer, &size);

		if (fd < 0)
			return data;
		size = sizeof(asked);
		if (getpeername(fd, (struct sockaddr *)&asked, &size) ||
		    memcmp(&peer, &asked, sizeof(peer)))
			__atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
		send(fd, &peer, sizeof(peer), MSG_NOSIGNAL);
		close(fd);
	}
}

static void *dial(void *data)
{
	const struct sockaddr_in to = {
		.sin_family = AF_INET,
		.sin_port = htons(80),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int turn;

	for (turn = 0; turn < count; turn++) {
		struct sockaddr_in own = {}, seen;
		socklen_t size = sizeof(own);
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		if (connect(fd, (const struct sockaddr *)&to, sizeof(to))) {
			perror("connect");
			exit(1);
		}
		getsockname(fd, (struct sockaddr *)&own, &size);
		if (recv(fd, &seen, sizeof(seen), MSG_WAITALL) != sizeof(seen) ||
		    memcmp(&own, &seen, sizeof(own)))
			__atomic_store_n(&wrong, 2, __ATOMIC_RELAXED);
		close(fd);
	}
	return data;
}

static void *churn(void *data)
{
	while (!__atomic_load_n(&done, __ATOMIC_RELAXED)) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		struct sockaddr_in name;
		socklen_t size = sizeof(name);

		if (getsockname(fd, (struct sockaddr *)&name, &size) || name.sin_port)
			__atomic_store_n(&wrong, 3, __ATOMIC_RELAXED);
		close(fd);
	}
	return data;
}

int main(int argc, char **argv)
{
	const struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(80) };
	pthread_t threads[2 * THREADS + 1];
	int index;

	count = argc > 1 ? atoi(argv[1]) : 100;
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (const struct sockaddr *)&any, sizeof(any)) || listen(listener, 100))
		return 1;
	for (index = 0; index < THREADS; index++) {
		pthread_create(&threads[index], NULL, serve, NULL);
		pthread_create(&threads[THREADS + index], NULL, dial, NULL);
	}
	pthread_create(&threads[2 * THREADS], NULL, churn, NULL);
	for (index = 0; index < THREADS; index++)
		pthread_join(threads[THREADS + index], NULL);
	__atomic_store_n(&done, 1, __ATOMIC_RELAXED);
	pthread_join(threads[2 * THREADS], NULL);
	shutdown(listener, SHUT_RDWR);
	for (index = 0; index < THREADS; index++)
		pthread_join(threads[index], NULL);
	printf(wrong ? "wrong %d\n" : "right\n", wrong);
	return wrong;
}
