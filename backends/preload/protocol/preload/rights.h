/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One descriptor that goes along with a message of a Unix socket (SCM_RIGHTS, unix(7)). */
#ifndef SLIMNET_PRELOAD_RIGHTS_H
#define SLIMNET_PRELOAD_RIGHTS_H

#include <string.h>
#include <sys/socket.h>

/* The room that it takes. */
union slim_rights {
	char bytes[CMSG_SPACE(sizeof(int))];
	struct cmsghdr header;
};

/* Adds `fd` to a message; -1: nothing. */
static inline void slim_rights_give(struct msghdr *message, union slim_rights *rights, int fd)
{
	if (fd < 0)
		return;
	memset(rights, 0, sizeof(*rights));
	rights->header.cmsg_level = SOL_SOCKET;
	rights->header.cmsg_type = SCM_RIGHTS;
	rights->header.cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(&rights->header), &fd, sizeof(fd));
	message->msg_control = rights;
	message->msg_controllen = CMSG_LEN(sizeof(fd));
}

/* What came with a message that was received, or -1. */
static inline int slim_rights_take(const struct msghdr *message)
{
	const struct cmsghdr *header = CMSG_FIRSTHDR(message);
	int fd = -1;

	if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
	    header->cmsg_len == CMSG_LEN(sizeof(fd)))
		memcpy(&fd, CMSG_DATA(header), sizeof(fd));
	return fd;
}

#endif /* SLIMNET_PRELOAD_RIGHTS_H */
