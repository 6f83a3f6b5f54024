// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * A thread that connects one datagram socket to one address after the other, and to
 * none (AF_UNSPEC), while others send on it: what they send goes by the address, the
 * port and the route of different connects, for the kernel reads them without a lock.
 *
 *   torn ROUNDS ADDRESS PORT [ADDRESS PORT]...
 *
 * It ends after that many rounds through the addresses, and prints how many datagrams
 * the kernel took.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#define SENDERS 2
#define MOST 16

static int sock;
static atomic_bool stop;
static atomic_ulong taken;

static void *run(void *unused)
{
	(void)unused;
	while (!atomic_load(&stop))
		if (send(sock, "torn", 4, MSG_DONTWAIT) == 4)
			atomic_fetch_add(&taken, 1);
	return NULL;
}

int main(int argc, char **argv)
{
	static const struct sockaddr none = { .sa_family = AF_UNSPEC };
	struct sockaddr_in names[MOST] = {};
	pthread_t threads[SENDERS];
	int count = argc / 2 - 1;

	if (argc % 2 || count < 1 || count > MOST) {
		fprintf(stderr, "usage: torn ROUNDS ADDRESS PORT [ADDRESS PORT]...\n");
		return 2;
	}
	for (int i = 0; i < count; i++) {
		names[i].sin_family = AF_INET;
		names[i].sin_port = htons(atoi(argv[i * 2 + 3]));
		if (inet_pton(AF_INET, argv[i * 2 + 2], &names[i].sin_addr) != 1)
			return 2;
	}
	sock = socket(AF_INET, SOCK_DGRAM, 0);
	for (int i = 0; i < SENDERS; i++)
		pthread_create(&threads[i], NULL, run, NULL);
	for (int round = atoi(argv[1]); round; round--) {
		for (int i = 0; i < count; i++)
			connect(sock, (struct sockaddr *)&names[i], sizeof(names[i]));
		if (round % 4 == 0)
			connect(sock, &none, sizeof(none));
	}
	atomic_store(&stop, true);
	for (int i = 0; i < SENDERS; i++)
		pthread_join(threads[i], NULL);
	printf("%lu\n", atomic_load(&taken));
	return 0;
}
