/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the shim stands on. Three layers: real_connect() is libc's own, or where there
 * is none to be found the system call; between them is our logic; connect() is what
 * the application calls.
 *
 * Nothing here allocates, locks or keeps a thread's data, so that it may be called in a
 * signal handler, between vfork() and exec(), and before the constructors of whoever
 * is linked in. raw_*() are system calls that no thread can be cancelled in.
 */
#ifndef SLIMNET_SHIM_REAL_H
#define SLIMNET_SHIM_REAL_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>

/* These are cancellation points, and libc's code is what makes them so. */
int real_socket(int domain, int type, int protocol);
int real_bind(int fd, const struct sockaddr *name, socklen_t size);
int real_listen(int fd, int backlog);
int real_connect(int fd, const struct sockaddr *name, socklen_t size);
int real_accept4(int fd, struct sockaddr *name, socklen_t *size, int flags);
int real_accept(int fd, struct sockaddr *name, socklen_t *size);
int real_getsockname(int fd, struct sockaddr *name, socklen_t *size);
int real_getpeername(int fd, struct sockaddr *name, socklen_t *size);
int real_getsockopt(int fd, int level, int name, void *value, socklen_t *size);
int real_setsockopt(int fd, int level, int name, const void *value, socklen_t size);
ssize_t real_sendto(int fd, const void *bytes, size_t count, int flags,
		    const struct sockaddr *name, socklen_t size);
ssize_t real_sendmsg(int fd, const struct msghdr *message, int flags);
int real_sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags);
int real_close(int fd);

/* A system call: its result, or a negative errno. errno itself is as it was. */
long raw(long number, long a, long b, long c, long d, long e, long f);

/* Of a socket, by raw(): 0, or a negative errno. */
long raw_option(int fd, int level, int name, void *value, size_t size);

/* The kernel's number of a socket, which no other ever has; 0: no socket. */
uint64_t cookie_of(int fd);

/* -1 and errno. */
static inline int no(int error)
{
	errno = error;
	return -1;
}

#define EXPORT __attribute__((visibility("default")))

#endif
