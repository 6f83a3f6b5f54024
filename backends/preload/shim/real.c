// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* libc's own functions, looked up once, and the system calls where there are none. */
#include "real.h"

#include <dlfcn.h>

/* Of libc, or of libdl before glibc 2.34; a static program's preload is never run. */
#pragma weak dlsym

long raw(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
#else
#error "the system calls of this machine are not known here"
#endif
}

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	long result = raw(number, a, b, c, d, e, f);

	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

/* The next definition behind ours, looked for once. */
static void *next(void **place, const char *name)
{
	void *found = __atomic_load_n(place, __ATOMIC_ACQUIRE);
	int error;

	if (found || !dlsym)
		return found;
	error = errno;
	found = dlsym(RTLD_NEXT, name);
	errno = error;
	__atomic_store_n(place, found, __ATOMIC_RELEASE);
	return found;
}

#define REAL(type, name, parameters, arguments, number, ...)			\
	type real_##name parameters						\
	{									\
		static void *place;						\
		type (*libc) parameters = (type (*) parameters)next(&place, #name);	\
										\
		if (libc)							\
			return libc arguments;					\
		return (type)call(number, __VA_ARGS__);				\
	}

REAL(int, socket, (int domain, int type, int protocol), (domain, type, protocol),
     SYS_socket, domain, type, protocol, 0, 0, 0)
REAL(int, bind, (int fd, const struct sockaddr *name, socklen_t size), (fd, name, size),
     SYS_bind, fd, (long)name, size, 0, 0, 0)
REAL(int, listen, (int fd, int backlog), (fd, backlog), SYS_listen, fd, backlog, 0, 0, 0, 0)
REAL(int, connect, (int fd, const struct sockaddr *name, socklen_t size), (fd, name, size),
     SYS_connect, fd, (long)name, size, 0, 0, 0)
REAL(int, accept4, (int fd, struct sockaddr *name, socklen_t *size, int flags),
     (fd, name, size, flags), SYS_accept4, fd, (long)name, (long)size, flags, 0, 0)
REAL(int, accept, (int fd, struct sockaddr *name, socklen_t *size), (fd, name, size),
     SYS_accept4, fd, (long)name, (long)size, 0, 0, 0)
REAL(int, getsockname, (int fd, struct sockaddr *name, socklen_t *size), (fd, name, size),
     SYS_getsockname, fd, (long)name, (long)size, 0, 0, 0)
REAL(int, getpeername, (int fd, struct sockaddr *name, socklen_t *size), (fd, name, size),
     SYS_getpeername, fd, (long)name, (long)size, 0, 0, 0)
REAL(int, getsockopt, (int fd, int level, int name, void *value, socklen_t *size),
     (fd, level, name, value, size), SYS_getsockopt, fd, level, name, (long)value, (long)size, 0)
REAL(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t size),
     (fd, level, name, value, size), SYS_setsockopt, fd, level, name, (long)value, size, 0)
REAL(ssize_t, sendto, (int fd, const void *bytes, size_t count, int flags,
		       const struct sockaddr *name, socklen_t size),
     (fd, bytes, count, flags, name, size), SYS_sendto, fd, (long)bytes, (long)count, flags,
     (long)name, size)
REAL(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags),
     SYS_sendmsg, fd, (long)message, flags, 0, 0, 0)
REAL(int, sendmmsg, (int fd, struct mmsghdr *messages, unsigned int count, int flags),
     (fd, messages, count, flags), SYS_sendmmsg, fd, (long)messages, count, flags, 0, 0)
REAL(int, close, (int fd), (fd), SYS_close, fd, 0, 0, 0, 0, 0)

long raw_option(int fd, int level, int name, void *value, size_t size)
{
	socklen_t room = (socklen_t)size;

	return raw(SYS_getsockopt, fd, level, name, (long)value, (long)&room, 0);
}

uint64_t cookie_of(int fd)
{
	uint64_t cookie = 0;

	return raw_option(fd, SOL_SOCKET, SO_COOKIE, &cookie, sizeof(cookie)) ? 0 : cookie;
}
