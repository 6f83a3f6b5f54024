// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Asks the kernel over netlink for its TCP sockets, and to close some, where it lets us. */
#include "diag.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <slimnet/address.h>

static int netlink = -1;

struct request {
	struct nlmsghdr header;
	struct inet_diag_req_v2 body;
};

int diag_open(void)
{
	const struct timeval wait = { .tv_sec = 1 };

	netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	if (netlink < 0)
		return -1;
	setsockopt(netlink, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
	return 0;
}

static int ask(uint16_t type, uint16_t flags, const struct inet_diag_req_v2 *body)
{
	static uint32_t sequence;
	const struct request request = {
		.header = {
			.nlmsg_len = sizeof(request),
			.nlmsg_type = type,
			.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags),
			.nlmsg_seq = ++sequence,
		},
		.body = *body,
	};

	return send(netlink, &request, sizeof(request), 0) == sizeof(request) ? 0 : -1;
}

static void read_name(uint8_t family, const __be32 *from, __be32 *to)
{
	if (family == AF_INET)
		slim_map_v4(to, from[0]);
	else
		slim_copy(to, from);
}

static void read_one(const struct inet_diag_msg *message, struct diag *socket)
{
	*socket = (struct diag){
		.tuple = {
			.source_port = message->id.idiag_sport,
			.destination_port = message->id.idiag_dport,
		},
		.cookie = (uint64_t)message->id.idiag_cookie[1] << 32 |
			  message->id.idiag_cookie[0],
		.inode = message->idiag_inode,
		.uid = message->idiag_uid,
		.state = message->idiag_state,
		.family = message->idiag_family,
	};
	read_name(message->idiag_family, message->id.idiag_src, socket->tuple.source);
	read_name(message->idiag_family, message->id.idiag_dst, socket->tuple.destination);
}

/*
 * Answers of one request until its end; each socket goes to `one`. 0, or -1 and errno.
 * An answer to an earlier request, that came too late for it, would mix in: the
 * socket is opened anew after every failure.
 */
static int answers(int dump, void (*one)(const struct diag *socket, void *data), void *data)
{
	char buffer[32768] __attribute__((aligned(NLMSG_ALIGNTO)));

	for (;;) {
		ssize_t size = recv(netlink, buffer, sizeof(buffer), 0);
		const struct nlmsghdr *header = (const void *)buffer;

		if (size < 0 && errno == EINTR)
			continue;
		if (size <= 0)
			break;
		for (; NLMSG_OK(header, (size_t)size); header = NLMSG_NEXT(header, size)) {
			struct diag socket;

			if (header->nlmsg_type == NLMSG_DONE)
				return 0;
			if (header->nlmsg_type == NLMSG_ERROR) {
				const struct nlmsgerr *error = NLMSG_DATA(header);

				errno = -error->error;
				return error->error ? -1 : 0;
			}
			read_one(NLMSG_DATA(header), &socket);
			one(&socket, data);
			if (!dump)
				return 0;
		}
	}
	close(netlink);
	diag_open();
	errno = EIO;
	return -1;
}

int diag_each(uint32_t states, void (*one)(const struct diag *socket, void *data), void *data)
{
	static const uint8_t families[] = { AF_INET, AF_INET6 };
	size_t index;

	for (index = 0; index < sizeof(families); index++) {
		const struct inet_diag_req_v2 body = {
			.sdiag_family = families[index],
			.sdiag_protocol = IPPROTO_TCP,
			.idiag_states = states,
		};

		if (ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &body) || answers(1, one, data))
			return -1;
	}
	return 0;
}

static void keep(const struct diag *socket, void *data)
{
	*(struct diag *)data = *socket;
}

int diag_find(const struct slim_tuple *tuple, struct diag *socket)
{
	const _Bool v4 = slim_is_mapped(tuple->source);
	struct inet_diag_req_v2 body = {
		.sdiag_family = v4 ? AF_INET : AF_INET6,
		.sdiag_protocol = IPPROTO_TCP,
		.id = {
			.idiag_sport = tuple->source_port,
			.idiag_dport = tuple->destination_port,
			.idiag_cookie = { INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE },
		},
	};

	memcpy(body.id.idiag_src, tuple->source + (v4 ? 3 : 0), v4 ? 4 : 16);
	memcpy(body.id.idiag_dst, tuple->destination + (v4 ? 3 : 0), v4 ? 4 : 16);
	if (ask(SOCK_DIAG_BY_FAMILY, 0, &body) || answers(0, keep, socket))
		return -1;
	/* Where there is no such connection the kernel names a listener that would take it. */
	if (socket->tuple.destination_port != tuple->destination_port ||
	    socket->state == DIAG_LISTEN) {
		errno = ENOENT;
		return -1;
	}
	return 0;
}

static void nothing(const struct diag *socket, void *data)
{
	(void)socket;
	(void)data;
}

int diag_destroy(const struct diag *socket)
{
	const _Bool v4 = socket->family == AF_INET;
	struct inet_diag_req_v2 body = {
		.sdiag_family = socket->family,
		.sdiag_protocol = IPPROTO_TCP,
		.id = {
			.idiag_sport = socket->tuple.source_port,
			.idiag_dport = socket->tuple.destination_port,
			.idiag_cookie = { (uint32_t)socket->cookie,
					  (uint32_t)(socket->cookie >> 32) },
		},
	};

	memcpy(body.id.idiag_src, socket->tuple.source + (v4 ? 3 : 0), v4 ? 4 : 16);
	memcpy(body.id.idiag_dst, socket->tuple.destination + (v4 ? 3 : 0), v4 ? 4 : 16);
	if (ask(SOCK_DESTROY, NLM_F_ACK, &body))
		return -1;
	return answers(0, nothing, NULL);
}
