// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Calls that a program may make and few do. Prints "right". In an endpoint 10.1.0.N. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define HOLDS(what)							\
	do {								\
		if (!(what)) {						\
			fprintf(stderr, "line %d: %s (errno %d)\n",	\
				__LINE__, #what, errno);		\
			exit(1);					\
		}							\
	} while (0)

static struct sockaddr_in loopback(int port)
{
	return (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_port = htons((uint16_t)port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
}

static int connected(int port)
{
	const struct sockaddr_in to = loopback(port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	HOLDS(!connect(fd, (const struct sockaddr *)&to, sizeof(to)));
	return fd;
}

static void addresses(int listener)
{
	struct sockaddr_storage name;
	struct sockaddr_in whole;
	unsigned char narrow[4];
	socklen_t size;
	int client = connected(80), fd;

	errno = 77;
	fd = accept(listener, NULL, NULL);
	HOLDS(fd >= 0 && errno == 77);
	size = sizeof(narrow);
	HOLDS(!getpeername(fd, (struct sockaddr *)narrow, &size) && size == sizeof(whole));
	size = 0;
	HOLDS(!getsockname(fd, (struct sockaddr *)narrow, &size) && size == sizeof(whole));
	size = sizeof(name);
	HOLDS(!getsockname(fd, (struct sockaddr *)&name, &size) && size == sizeof(whole));
	memcpy(&whole, &name, sizeof(whole));
	HOLDS(whole.sin_port == htons(80) && whole.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
	HOLDS(errno == 77);
	close(fd);
	close(client);
	HOLDS(connect(-1, (const struct sockaddr *)&whole, sizeof(whole)) == -1 && errno == EBADF);
	HOLDS(getsockname(0, (struct sockaddr *)&name, &size) == -1 && errno == ENOTSOCK);
	HOLDS(bind(listener, (const struct sockaddr *)&whole, sizeof(whole)) == -1 &&
	      errno == EINVAL);
	HOLDS(connect(listener, (const struct sockaddr *)&whole, sizeof(whole)) == -1 &&
	      errno == EISCONN);
	client = socket(AF_INET, SOCK_STREAM, 0);
	HOLDS(connect(client, (const struct sockaddr *)&whole, 3) == -1 && errno == EINVAL);
	HOLDS(connect(client, NULL, sizeof(whole)) == -1 && errno == EFAULT);
	close(client);
	client = socket(AF_UNIX, SOCK_STREAM, 0);
	size = sizeof(name);
	HOLDS(!getsockname(client, (struct sockaddr *)&name, &size) && size == sizeof(sa_family_t));
	close(client);
}

static volatile sig_atomic_t alarms;

static void on_alarm(int number)
{
	(void)number;
	alarms++;
}

/* accept(2) that is interrupted says so, without SA_RESTART. */
static void interrupted(int listener)
{
	const struct sigaction action = { .sa_handler = on_alarm };

	sigaction(SIGALRM, &action, NULL);
	alarm(1);
	HOLDS(accept(listener, NULL, NULL) == -1 && errno == EINTR && alarms == 1);
	fcntl(listener, F_SETFL, O_NONBLOCK);
	HOLDS(accept(listener, NULL, NULL) == -1 && errno == EAGAIN);
	fcntl(listener, F_SETFL, 0);
}

#ifndef __SANITIZE_ADDRESS__
static void *accepting(void *listener)
{
	accept(*(int *)listener, NULL, NULL);
	return NULL;
}

static void cancelled(int listener)
{
	pthread_t thread;
	void *result;

	HOLDS(!pthread_create(&thread, NULL, accepting, &listener));
	usleep(50000);
	HOLDS(!pthread_cancel(thread) && !pthread_join(thread, &result));
	HOLDS(result == PTHREAD_CANCELED);
}
#endif

/* Between vfork(2) and exec(2) a child has its parent's memory, and descriptors of its own. */
static void vforked(int listener)
{
	struct sockaddr_in name;
	socklen_t size = sizeof(name);
	int client = connected(80), fd = accept(listener, NULL, NULL), status;
	pid_t child;

	child = vfork();
	if (!child) {
		dup2(listener, fd);
		execl("/bin/true", "true", NULL);
		_exit(1);
	}
	HOLDS(child > 0 && waitpid(child, &status, 0) == child && !status);
	HOLDS(!getpeername(fd, (struct sockaddr *)&name, &size));
	HOLDS(name.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
	close(fd);
	close(client);
}

/* A full table of descriptors: an honest errno, and all is well afterwards. */
static void full(int listener)
{
	const struct sockaddr_in to = loopback(80);
	struct rlimit limit, low;
	int first = socket(AF_INET, SOCK_STREAM, 0), fd, kept[64], count = 0;

	getrlimit(RLIMIT_NOFILE, &limit);
	low = limit;
	low.rlim_cur = 40;
	setrlimit(RLIMIT_NOFILE, &low);
	while (count < 64 && (fd = dup(0)) >= 0)
		kept[count++] = fd;
	HOLDS(errno == EMFILE);
	HOLDS(socket(AF_INET, SOCK_STREAM, 0) == -1 && errno == EMFILE);
	while (count)
		close(kept[--count]);
	setrlimit(RLIMIT_NOFILE, &limit);
	HOLDS(!connect(first, (const struct sockaddr *)&to, sizeof(to)));
	fd = accept(listener, NULL, NULL);
	HOLDS(fd >= 0);
	close(fd);
	close(first);
}

/* A descriptor as high as the hard limit goes. */
static void high(int listener)
{
	struct sockaddr_in name;
	socklen_t size = sizeof(name);
	struct rlimit limit;
	int client = connected(80), fd = accept(listener, NULL, NULL), up;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	up = fcntl(fd, F_DUPFD, (int)limit.rlim_max - 1);
	HOLDS(up == (int)limit.rlim_max - 1);
	close(fd);
	HOLDS(!getsockname(up, (struct sockaddr *)&name, &size) && name.sin_port == htons(80));
	close(up);
	close(client);
}

/* Again and elsewhere on the same socket: connect(AF_UNSPEC) undoes what was decided. */
static void again(int listener)
{
	const struct sockaddr none = { .sa_family = AF_UNSPEC };
	const struct sockaddr_in to = loopback(80), nobody = loopback(81);
	struct sockaddr_in name;
	socklen_t size = sizeof(name);
	int fd = socket(AF_INET, SOCK_STREAM, 0), child;

	HOLDS(connect(fd, (const struct sockaddr *)&nobody, sizeof(nobody)) == -1 &&
	      errno == ECONNREFUSED);
	HOLDS(!connect(fd, (const struct sockaddr *)&to, sizeof(to)));
	HOLDS(connect(fd, (const struct sockaddr *)&to, sizeof(to)) == -1 && errno == EISCONN);
	child = accept(listener, NULL, NULL);
	HOLDS(child >= 0);
	close(child);
	HOLDS(!connect(fd, &none, sizeof(none)));
	HOLDS(getpeername(fd, (struct sockaddr *)&name, &size) == -1 && errno == ENOTCONN);
	HOLDS(!connect(fd, (const struct sockaddr *)&to, sizeof(to)));
	child = accept(listener, NULL, NULL);
	HOLDS(child >= 0);
	close(child);
	close(fd);
}

static int early = -1;

/* What a static constructor opens, before the shim's own where libc lets it. */
static void open_early(void)
{
	const struct sockaddr_in at = loopback(81);

	if (early >= 0)
		return;
	early = socket(AF_INET, SOCK_STREAM, 0);
	HOLDS(!bind(early, (const struct sockaddr *)&at, sizeof(at)) && !listen(early, 1));
}

/* ASan has to be first there itself; musl calls nothing of it. */
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
static void (*const before_all)(void) __attribute__((section(".preinit_array"), used)) = open_early;
#endif

static void __attribute__((constructor)) construct(void)
{
	open_early();
}

static void constructed(void)
{
	struct sockaddr_in name = {};
	socklen_t size = sizeof(name);
	int fd = connected(81), accepted = accept(early, NULL, NULL);

	HOLDS(accepted >= 0);
	HOLDS(!getsockname(early, (struct sockaddr *)&name, &size) && name.sin_port == htons(81));
	close(accepted);
	close(fd);
	close(early);
}

int main(void)
{
	const struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(80) };
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	HOLDS(!bind(listener, (const struct sockaddr *)&any, sizeof(any)) && !listen(listener, 10));
	constructed();
	addresses(listener);
	interrupted(listener);
#ifndef __SANITIZE_ADDRESS__	/* which takes the end of a cancelled thread for an overflow */
	cancelled(listener);
#endif
	vforked(listener);
	full(listener);
	high(listener);
	again(listener);
	puts("right");
	return 0;
}
