// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * names NAME ADDRESS PORT: what getaddrinfo(3) with AI_ADDRCONFIG (as Node, nginx and
 * OpenSSL ask) says of NAME, or why it says nothing, and what ADDRESS answers to a datagram.
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

int main(int count, char **words)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG }, *found;
	struct sockaddr_in to = { .sin_family = AF_INET };
	char text[INET6_ADDRSTRLEN] = "", answer[64];
	int sock = socket(AF_INET, SOCK_DGRAM, 0), one = 1, error;
	ssize_t got;

	if (count != 4)
		return 2;
	error = getaddrinfo(words[1], "80", &hints, &found);
	if (error)
		puts(gai_strerror(error));
	else
		puts(getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof(text), NULL, 0,
				 NI_NUMERICHOST) ? "no name" : text);
	to.sin_port = htons(atoi(words[3]));
	inet_pton(AF_INET, words[2], &to.sin_addr);
	if (setsockopt(sock, SOL_SOCKET, SO_BROADCAST, &one, sizeof(one)) ||
	    connect(sock, (struct sockaddr *)&to, sizeof(to)) || send(sock, "question", 8, 0) != 8 ||
	    (got = recv(sock, answer, sizeof(answer), 0)) < 0) {
		perror("datagram");
		return 1;
	}
	printf("%.*s\n", (int)got, answer);
	return 0;
}
