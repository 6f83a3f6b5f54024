// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Threads that make random socket calls on a table of sockets that they share, for a while.
 *
 *   fuzz seed=N seconds=N own=ADDRESS [friend=|foe=|host=|outside=|service=ADDRESS]...
 *        [secret=WORD] [unix=PATH] [give=PATH]... [uid=N] [threads=N] [without=CALL]...
 *
 * own      the endpoint's address
 * friend   an endpoint that policy lets it reach
 * foe      an endpoint that policy forbids: no name of one may ever appear
 * host     a host of the cluster: neither its name nor its address in what the kernel writes
 * secret   what only clients of the hosts' own services send: no socket here may receive it
 * unix     its Unix socket; sockets are passed to it, and to each of give
 * without  leaves a call out, to find the few that matter
 *
 * The last line of its output is JSON: the seed, and how often each call gave which errno.
 * A broken promise ends it at once with status 1, and the last calls on that descriptor.
 * One thread draws the same calls from the same seed; what they meet depends on the others.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <liburing.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define THREADS 8			/* the most */
#define SLOTS 256		/* descriptors that all threads share */
#define ERRNOS 134
#define TRACED 512		/* calls that each thread remembers */
#define BUFFER 8192

/* Newer than Debian 12's headers: Linux 6.11, 6.3, 4.18, 6.7. */
#define OP_BIND 56
#define OP_LISTEN 57
#ifndef IP_LOCAL_PORT_RANGE
#define IP_LOCAL_PORT_RANGE 51
#endif
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#define SOCKET_SETSOCKOPT 3

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

union name {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
	struct sockaddr_storage whole;
};

struct trace {
	uint64_t turn;
	const char *call;
	int fd, result, detail[2];
	socklen_t length;
	struct sockaddr_in6 name;
};

struct thread {
	pthread_t pthread;
	uint64_t random;
	int fd;				/* the last one used: half the calls go on with it */
	unsigned int call;
	struct trace *now;
	struct io_uring ring;
	uint64_t turns;
	struct trace traces[TRACED];
	uint64_t counts[64][ERRNOS];
	unsigned char data[BUFFER], control[512];
};

/* Addresses by what they are to this endpoint. */
enum { OWN, FRIEND, FOE, HOST, OUTSIDE, SERVICE, BOOKS };
static const char *const book_names[BOOKS] = {
	"own", "friend", "foe", "host", "outside", "service",
};
static struct { unsigned int count; in_addr_t at[16]; } books[BOOKS];

static const char *secret;
static struct sockaddr_un takers[8];
static unsigned int taker_count;
static int taken = -1;			/* our own Unix socket */
static unsigned long seed = 1, seconds = 5;
static int thread_count = THREADS;
static atomic_int slots[SLOTS];
static atomic_ushort learned[8];	/* ports that the kernel chose for sockets of ours */
static atomic_int listeners[8];		/* the last descriptors that listened */
static atomic_int hoard[32];		/* what others gave us, kept until they may be dead */
static atomic_ulong turn;
static atomic_bool stop;
static struct thread *threads;

/* Chance: xorshift64*. */

static uint64_t draw(struct thread *t)
{
	t->random ^= t->random >> 12;
	t->random ^= t->random << 25;
	t->random ^= t->random >> 27;
	return t->random * 0x2545f4914f6cdd1dULL >> 16;
}

static unsigned int below(struct thread *t, unsigned int limit)
{
	return draw(t) % limit;
}

static bool chance(struct thread *t, unsigned int percent)
{
	return below(t, 100) < percent;
}

#define ONE_OF(t, array) ((array)[below(t, COUNT(array))])

/* The table of descriptors. Whoever takes one out of it is the only one to close it. */

static int pick(struct thread *t)
{
	if (chance(t, 50))
		t->fd = chance(t, 10) ? atomic_load(&hoard[below(t, COUNT(hoard))]) : -1;
	for (int i = 0; i < 8 && t->fd < 0; i++)
		t->fd = atomic_load(&slots[below(t, SLOTS)]);
	t->now->fd = t->fd;
	return t->fd;
}

/* By chance alone accept seldom meets a listener, or connect what one listens at. */
static int pick_listener(struct thread *t)
{
	if (chance(t, 15))
		return pick(t);
	t->now->fd = t->fd = atomic_load(&listeners[below(t, COUNT(listeners))]);
	return t->fd;
}

static int listening(struct thread *t, int fd, int error)
{
	if (!error)
		atomic_store(&listeners[below(t, COUNT(listeners))], fd);
	return error;
}

static int put_at(atomic_int *slot, int fd)
{
	int old = atomic_exchange(slot, fd);

	if (old >= 0)
		close(old);
	return fd;
}

static int put(struct thread *t, int fd)
{
	if (fd < 0)
		return fd;
	t->fd = fd;
	if (t->now->fd < 0)
		t->now->fd = fd;
	return put_at(&slots[below(t, SLOTS)], fd);
}

static int take(atomic_int **slot, struct thread *t)
{
	*slot = &slots[below(t, SLOTS)];
	return atomic_exchange(*slot, -1);
}

static int answer(int result)
{
	return result < 0 ? -errno : result;
}

/* What may never be seen. */

static void tell(const struct trace *one)
{
	char dotted[INET6_ADDRSTRLEN] = "";
	const union name *name = (const void *)&one->name;

	if (name->any.sa_family == AF_INET)
		inet_ntop(AF_INET, &name->v4.sin_addr, dotted, sizeof(dotted));
	else if (name->any.sa_family == AF_INET6)
		inet_ntop(AF_INET6, &name->v6.sin6_addr, dotted, sizeof(dotted));
	printf("%10lu %-18s fd %-3d %5d  (%d, %d)", one->turn, one->call, one->fd, one->result,
	       one->detail[0], one->detail[1]);
	if (one->length)
		printf("  %s port %u, family %u, %u bytes", dotted, ntohs(name->v4.sin_port),
		       name->any.sa_family, one->length);
	putchar('\n');
}

static int by_turn(const void *a, const void *b)
{
	const struct trace *one = a, *other = b;

	return (one->turn > other->turn) - (one->turn < other->turn);
}

__attribute__((noreturn))
static void violation(struct thread *t, const char *what)
{
	static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
	static struct trace all[THREADS * TRACED];
	size_t count = 0, shown;

	pthread_mutex_lock(&once);
	for (int i = 0; i < THREADS; i++)
		for (int j = 0; j < TRACED; j++)
			if (threads[i].traces[j].call && (threads[i].traces[j].fd == t->now->fd ||
							  threads[i].traces[j].result == t->now->fd))
				all[count++] = threads[i].traces[j];
	qsort(all, count, sizeof(all[0]), by_turn);
	shown = count > 40 ? count - 40 : 0;
	for (; shown < count; shown++)
		tell(&all[shown]);
	printf("broken: %s; seed %lu, thread %d, call:\n", what, seed, (int)(t - threads));
	tell(t->now);
	fflush(stdout);
	_exit(1);
}

static bool in_book(int book, in_addr_t address)
{
	for (unsigned int i = 0; i < books[book].count; i++)
		if (books[book].at[i] == address)
			return true;
	return false;
}

/* An endpoint's calls name no address of the underlay or of the inner range, and no wire port. */
static void check_name(struct thread *t, const union name *name, socklen_t length)
{
	in_addr_t v4 = 0;
	unsigned int port;

	if (!books[HOST].count || length < sizeof(name->v4))
		return;
	memcpy(&t->now->name, name, sizeof(t->now->name));
	t->now->length = length;
	port = ntohs(name->v4.sin_port);
	if (name->any.sa_family == AF_INET) {
		v4 = name->v4.sin_addr.s_addr;
	} else if (name->any.sa_family == AF_INET6 && length >= sizeof(name->v6)) {
		if (IN6_IS_ADDR_V4MAPPED(&name->v6.sin6_addr))
			v4 = name->v6.sin6_addr.s6_addr32[3];
		else if (!IN6_IS_ADDR_UNSPECIFIED(&name->v6.sin6_addr) &&
			 !IN6_IS_ADDR_LOOPBACK(&name->v6.sin6_addr))
			violation(t, "a name of IPv6 that no endpoint has");
	} else {
		return;
	}
	if (in_book(HOST, v4))
		violation(t, "a name of the underlay");
	if (ntohl(v4) >> 28 == 15)
		violation(t, "an inner address");
	if (port >= 4790 && port < 4790 + 96)
		violation(t, "a wire port");
	if (port == 473)
		violation(t, "the port of inner addresses");
	/* SO_PEERNAME says whom a connect that is under way is for. */
	if (in_book(FOE, v4) && strcmp(t->now->call, "getsockopt"))
		violation(t, "a name of an endpoint that policy forbids");
}

/* What the kernel wrote, an address of a host in it? Also where the call failed. */
static void check_bytes(struct thread *t, const unsigned char *data, size_t length)
{
	for (unsigned int i = 0; i < books[HOST].count; i++)
		if (memmem(data, length, &books[HOST].at[i], 4))
			violation(t, "an address of the underlay in what the kernel wrote");
	if (secret && memmem(data, length, secret, strlen(secret)))
		violation(t, "received what was meant for the host");
}

/* Names to bind and to connect to. */

static in_addr_t of_book(struct thread *t, int book)
{
	return books[book].count ? books[book].at[below(t, books[book].count)] : 0;
}

static const unsigned short ports[] = { 80, 81, 5000, 1000, 33333 };
#define HOST_PORT 8443			/* chosen ones of the hosts' own services */
#define HOST_PORT_EPHEMERAL 40001

static in_port_t some_port(struct thread *t)
{
	unsigned int what = below(t, 100);

	if (what < 75)
		return htons(ONE_OF(t, ports));
	if (what < 85)
		return htons(atomic_load(&learned[below(t, COUNT(learned))]));
	if (what < 90)
		return 0;
	return htons(chance(t, 50) ? HOST_PORT : HOST_PORT_EPHEMERAL);
}

static in_addr_t inner(struct thread *t)
{
	return htonl(0xf0000000 | below(t, 2) << 27 | below(t, 6) << 16 | ONE_OF(t, ports));
}

static void to_bind(struct thread *t, in_addr_t *address, in_port_t *port)
{
	unsigned int what = below(t, 100);

	*port = chance(t, 35) ? 0 : some_port(t);
	*address = what < 40 ? 0 : what < 65 ? of_book(t, OWN) :
		   what < 80 ? htonl(INADDR_LOOPBACK) : what < 86 ? of_book(t, HOST) :
		   what < 92 ? of_book(t, FRIEND) : what < 95 ? of_book(t, FOE) : inner(t);
}

static void to_connect(struct thread *t, in_addr_t *address, in_port_t *port)
{
	static const in_addr_t odd[] = { 0xffffffff, 0xe0000001, 0xc0a832ff, 0x0a4dc801, 0x7f010203 };
	unsigned int what = below(t, 100);

	*port = some_port(t);
	if (what < 30) {
		*address = of_book(t, FRIEND);
	} else if (what < 45) {
		*address = of_book(t, OWN);
	} else if (what < 57) {
		*address = htonl(INADDR_LOOPBACK);
	} else if (what < 61) {
		*address = 0;
	} else if (what < 69) {
		*address = of_book(t, SERVICE);
	} else if (what < 79) {
		*address = of_book(t, FOE);
	} else if (what < 86) {
		*address = of_book(t, HOST);
		if (chance(t, 40))
			*port = htons(4790 + below(t, 96));
	} else if (what < 92) {
		*address = of_book(t, OUTSIDE);
		if (chance(t, 70))
			*port = htons(53);
	} else if (what < 97) {
		*address = inner(t);
		if (chance(t, 70))
			*port = htons(473);
	} else {
		*address = htonl(ONE_OF(t, odd));
	}
}

static int family_of(int fd)
{
	int family = AF_INET;
	socklen_t length = sizeof(family);

	getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length);
	return family;
}

/* Mostly of the socket's family and length. */
static socklen_t a_name(struct thread *t, int fd, union name *name,
			void (*choose)(struct thread *, in_addr_t *, in_port_t *))
{
	static const char *const six[] = { "::", "::1", "ff02::1", "fe80::1", "2001:db8::1" };
	socklen_t length = sizeof(name->v4);
	in_addr_t address;
	in_port_t port;

	choose(t, &address, &port);
	if (choose == to_connect && chance(t, 30)) {
		memset(name, 0, sizeof(*name));
		length = sizeof(*name);
		if (!getsockname(atomic_load(&listeners[below(t, COUNT(listeners))]), &name->any,
				 &length))
			port = name->v4.sin_port;
		address = chance(t, 70) ? of_book(t, OWN) : htonl(INADDR_LOOPBACK);
		length = sizeof(name->v4);
	}
	memset(name, 0, sizeof(*name));
	name->v4.sin_port = port;	/* at the same place in either */
	name->any.sa_family = family_of(fd) == AF_INET6 && !chance(t, 3) ? AF_INET6 : AF_INET;
	if (name->any.sa_family == AF_INET) {
		name->v4.sin_addr.s_addr = address;
	} else {
		length = sizeof(name->v6);
		if (chance(t, 70)) {
			name->v6.sin6_addr.s6_addr32[2] = htonl(0xffff);
			name->v6.sin6_addr.s6_addr32[3] = address;
		} else {
			inet_pton(AF_INET6, ONE_OF(t, six), &name->v6.sin6_addr);
		}
	}
	if (chance(t, 1))
		name->any.sa_family = below(t, 12);
	if (chance(t, 1))
		length = below(t, 32);
	memcpy(&t->now->name, name, sizeof(t->now->name));
	t->now->length = length;
	return length;
}

/* One request of io_uring, done soon or called off. */
static int ring_result(struct thread *t, struct io_uring_sqe *sqe)
{
	struct __kernel_timespec patience = { .tv_nsec = 300000 };
	struct io_uring_cqe *cqe;
	int result = 0;

	io_uring_sqe_set_data64(sqe, 1);
	io_uring_submit(&t->ring);
	if (io_uring_wait_cqe_timeout(&t->ring, &cqe, &patience)) {
		sqe = io_uring_get_sqe(&t->ring);
		io_uring_prep_cancel64(sqe, 1, 0);
		io_uring_sqe_set_data64(sqe, 2);
		io_uring_submit(&t->ring);
		for (int left = 2; left; left--) {
			if (io_uring_wait_cqe(&t->ring, &cqe))
				abort();
			if (cqe->user_data == 1)
				result = cqe->res;
			io_uring_cqe_seen(&t->ring, cqe);
		}
		return result;
	}
	result = cqe->res;
	io_uring_cqe_seen(&t->ring, cqe);
	return result;
}

/* The calls. Each answers 0 or more, or a negative errno. */

static int make(struct thread *t, int family, int type, int protocol)
{
	return put(t, answer(socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol)));
}

static int do_socket(struct thread *t)
{
	return make(t, chance(t, 65) ? AF_INET : AF_INET6, chance(t, 85) ? SOCK_STREAM : SOCK_DGRAM,
		    0);
}

static int do_socket_odd(struct thread *t)
{
	static const int families[] = { AF_INET, AF_INET6, AF_INET6, 43 /* AF_SMC */ };
	static const int protocols[] = { 0, 1, 6, 17, 33, 47, 58, 132, 136, 255, 256, 262 };
	int family = ONE_OF(t, families), type = 1 + below(t, 6), protocol = ONE_OF(t, protocols);

	t->now->detail[0] = type;
	t->now->detail[1] = protocol;
	return make(t, family, type, protocol);
}

static int do_ring_socket(struct thread *t)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&t->ring);

	io_uring_prep_socket(sqe, chance(t, 65) ? AF_INET : AF_INET6,
			     (chance(t, 85) ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK, 0, 0);
	return put(t, ring_result(t, sqe));
}

static int do_bind(struct thread *t)
{
	union name name;
	int fd = pick(t);
	socklen_t length = a_name(t, fd, &name, to_bind);

	return answer(bind(fd, &name.any, length));
}

static int do_ring_bind(struct thread *t)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&t->ring);
	union name name;
	int fd = pick(t);
	socklen_t length = a_name(t, fd, &name, to_bind);

	io_uring_prep_rw(OP_BIND, sqe, fd, &name, 0, length);
	return ring_result(t, sqe);
}

static int do_listen(struct thread *t)
{
	int fd = pick(t);

	return listening(t, fd, answer(listen(fd, below(t, 8))));
}

static int do_ring_listen(struct thread *t)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&t->ring);

	io_uring_prep_rw(OP_LISTEN, sqe, pick(t), NULL, below(t, 8), 0);
	return ring_result(t, sqe);
}

static int do_accept(struct thread *t)
{
	socklen_t length = sizeof(union name);
	int fd = pick_listener(t), child;
	union name name;

	if (chance(t, 20)) {
		child = answer(accept(fd, NULL, NULL));
		if (child >= 0)
			fcntl(child, F_SETFL, O_NONBLOCK);
		return put(t, child);
	}
	child = put(t, answer(accept4(fd, &name.any, &length, SOCK_NONBLOCK | SOCK_CLOEXEC)));
	if (child >= 0)
		check_name(t, &name, length);
	return child;
}

static int do_ring_accept(struct thread *t)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&t->ring);
	socklen_t length = sizeof(union name);
	union name name;
	int child;

	io_uring_prep_accept(sqe, pick_listener(t), &name.any, &length, SOCK_NONBLOCK);
	child = put(t, ring_result(t, sqe));
	if (child >= 0)
		check_name(t, &name, length);
	return child;
}

static int do_connect(struct thread *t)
{
	union name name;
	int fd = pick(t);
	socklen_t length = a_name(t, fd, &name, to_connect);

	return answer(connect(fd, &name.any, length));
}

static int do_ring_connect(struct thread *t)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&t->ring);
	union name name;
	int fd = pick(t);
	socklen_t length = a_name(t, fd, &name, to_connect);

	io_uring_prep_connect(sqe, fd, &name.any, length);
	return ring_result(t, sqe);
}

static int disconnect(int fd)
{
	static const union name none = { .any.sa_family = AF_UNSPEC };

	return answer(connect(fd, &none.any, sizeof(none.v6)));
}

static int do_disconnect(struct thread *t)
{
	return disconnect(pick(t));
}

/* A new listener, of which there are never enough by chance. */
static int do_serve(struct thread *t)
{
	int fd = do_socket(t), one = 1;
	union name name;
	socklen_t length;

	if (fd < 0)
		return fd;
	if (chance(t, 60))
		setsockopt(fd, SOL_SOCKET, chance(t, 50) ? SO_REUSEADDR : SO_REUSEPORT, &one, sizeof(one));
	if (chance(t, 10))
		setsockopt(fd, SOL_TCP, TCP_DEFER_ACCEPT, &one, sizeof(one));
	if (family_of(fd) == AF_INET6 && chance(t, 40))
		setsockopt(fd, SOL_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	length = a_name(t, fd, &name, to_bind);
	if (chance(t, 85) && bind(fd, &name.any, length))
		return -errno;
	return listening(t, fd, answer(listen(fd, 16)));
}

/* What accept gave is disconnected and made a listener; or a client. */
static int do_use_accepted(struct thread *t)
{
	int child = put(t, answer(accept4(pick_listener(t), NULL, NULL, SOCK_NONBLOCK))), error;

	if (child < 0)
		return child;
	t->now->detail[0] = t->now->fd;
	t->now->fd = child;
	error = disconnect(child);
	if (error)
		return error;
	if (chance(t, 30))
		return do_connect(t);
	if (chance(t, 60))
		do_bind(t);
	return listening(t, child, answer(listen(child, 16)));
}

/* The source port is one of the host's own, if the kernel lets it. */
static int do_choose_port(struct thread *t)
{
	static const unsigned int range = HOST_PORT_EPHEMERAL << 16 | HOST_PORT_EPHEMERAL;
	int fd = do_socket(t), one = 1;
	union name name = {};

	if (fd < 0)
		return fd;
	setsockopt(fd, SOL_IP, IP_LOCAL_PORT_RANGE, &range, sizeof(range));
	if (chance(t, 50))
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	name.any.sa_family = family_of(fd);
	if (name.any.sa_family == AF_INET6 && chance(t, 50))
		setsockopt(fd, SOL_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (bind(fd, &name.any, name.any.sa_family == AF_INET ? sizeof(name.v4) : sizeof(name.v6)))
		return -errno;
	return chance(t, 50) ? answer(listen(fd, 4)) : do_connect(t);
}

static void add_control(struct thread *t, struct msghdr *message, int level, int type,
			const void *data, size_t size)
{
	struct cmsghdr *one = (void *)(t->control + message->msg_controllen);

	*one = (struct cmsghdr){ CMSG_LEN(size), level, type };
	memcpy(CMSG_DATA(one), data, size);
	message->msg_control = t->control;
	message->msg_controllen += CMSG_SPACE(size);
}

static void some_control(struct thread *t, struct msghdr *message)
{
	struct in_pktinfo info = { .ipi_ifindex = below(t, 3) };
	struct in6_pktinfo info6 = { .ipi6_addr.s6_addr32 = { 0, 0, htonl(0xffff) } };
	unsigned char options[8] = { 131, 7, 4 };	/* LSRR */
	uint64_t random[4] = { draw(t), draw(t), draw(t), draw(t) };
	uint16_t segment = 1 + below(t, 200);
	in_addr_t address;
	in_port_t port;
	int small = below(t, 256);

	memset(t->control, 0, sizeof(t->control));
	to_bind(t, &address, &port);
	info.ipi_spec_dst.s_addr = address;
	info6.ipi6_addr.s6_addr32[3] = address;
	switch (below(t, 8)) {
	case 0:
		return add_control(t, message, SOL_IP, IP_PKTINFO, &info, sizeof(info));
	case 1:
		to_connect(t, &address, &port);
		memcpy(options + 3, &address, 4);
		return add_control(t, message, SOL_IP, IP_RETOPTS, options, sizeof(options));
	case 2:
		add_control(t, message, SOL_IP, IP_TTL, &small, sizeof(small));
		return add_control(t, message, SOL_IP, IP_TOS, &small, sizeof(small));
	case 3:
		return add_control(t, message, SOL_UDP, UDP_SEGMENT, &segment, sizeof(segment));
	case 4:
		return add_control(t, message, SOL_IPV6, IPV6_PKTINFO, &info6, sizeof(info6));
	case 5:
		return add_control(t, message, SOL_SOCKET, ONE_OF(t, ((int[]){ 12, 36, 37, 61 })),
				   random, chance(t, 50) ? 4 : 8);
	default:
		return add_control(t, message, ONE_OF(t, ((int[]){ SOL_IP, SOL_IPV6, SOL_SOCKET })),
				   below(t, 80), random, 4 + below(t, 28));
	}
}

static const int send_flags[] = {
	0, 0, 0, MSG_FASTOPEN, MSG_MORE, MSG_OOB, MSG_ZEROCOPY, MSG_CONFIRM, MSG_DONTROUTE, MSG_EOR,
};

/* A message in t->data and t->control; in `*name` where to. */
static int some_message(struct thread *t, int fd, struct msghdr *message, struct iovec *vector,
			union name *name)
{
	*vector = (struct iovec){ t->data, below(t, chance(t, 5) ? 4096 : 64) };
	*message = (struct msghdr){ .msg_iov = vector, .msg_iovlen = 1 };
	memset(t->data, 'x', vector->iov_len);
	if (chance(t, 50)) {
		message->msg_namelen = a_name(t, fd, name, to_connect);
		message->msg_name = name;
	}
	if (chance(t, 40))
		some_control(t, message);
	t->now->detail[0] = ONE_OF(t, send_flags);
	t->now->detail[1] = vector->iov_len;
	return t->now->detail[0] | MSG_DONTWAIT | MSG_NOSIGNAL;
}

static int do_send(struct thread *t)
{
	return answer(send(pick(t), t->data, 1 + below(t, 64), MSG_DONTWAIT | MSG_NOSIGNAL));
}

static int do_sendmsg(struct thread *t)
{
	struct msghdr message;
	struct iovec vector;
	union name name;
	int fd = pick(t), flags = some_message(t, fd, &message, &vector, &name);

	return answer(sendmsg(fd, &message, flags));
}

static int do_ring_sendmsg(struct thread *t)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&t->ring);
	struct msghdr message;
	struct iovec vector;
	union name name;
	int fd = pick(t), flags = some_message(t, fd, &message, &vector, &name);

	io_uring_prep_sendmsg(sqe, fd, &message, flags);
	return ring_result(t, sqe);
}

static int do_recv(struct thread *t)
{
	static const int all[] = {
		0, 0, 0, MSG_PEEK, MSG_TRUNC, MSG_ERRQUEUE, MSG_ERRQUEUE, MSG_OOB, MSG_WAITALL,
	};
	struct iovec vector = { t->data, 2048 };
	union name name;
	struct msghdr message = {
		.msg_iov = &vector, .msg_iovlen = 1, .msg_name = &name, .msg_namelen = sizeof(name),
		.msg_control = t->control, .msg_controllen = sizeof(t->control),
	};
	int flags = ONE_OF(t, all), got;

	memset(t->control, 0, sizeof(t->control));
	t->now->detail[0] = flags;
	got = answer(recvmsg(pick(t), &message, flags | MSG_DONTWAIT));
	if (got < 0)
		return got;
	check_bytes(t, t->data, got < 2048 ? got : 2048);
	check_bytes(t, t->control, message.msg_controllen);
	check_name(t, &name, message.msg_namelen);
	return got;
}

static int do_shutdown(struct thread *t)
{
	return answer(shutdown(pick(t), below(t, 3)));
}

static int do_close(struct thread *t)
{
	static const struct linger reset = { 1, 0 };
	atomic_int *slot;
	int fd = take(&slot, t);

	if (chance(t, 30))
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	return answer(close(fd));
}

static int do_ring_close(struct thread *t)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&t->ring);
	atomic_int *slot;
	int fd = take(&slot, t), result;

	io_uring_prep_close(sqe, fd);
	result = ring_result(t, sqe);
	if (result < 0 && fd >= 0)
		close(fd);
	return result;
}

static int do_dup(struct thread *t)
{
	atomic_int *slot;
	int fd = pick(t), other, result;

	if (chance(t, 50))
		return put(t, answer(fcntl(fd, F_DUPFD_CLOEXEC, 3)));
	other = take(&slot, t);
	if (other < 0)
		return -EBADF;
	result = answer(dup2(fd, other));
	put(t, other);
	return result;
}

static int do_pass(struct thread *t)
{
	struct iovec vector = { "x", 1 };
	struct msghdr message = {
		.msg_iov = &vector, .msg_iovlen = 1,
		.msg_name = &takers[below(t, taker_count ?: 1)], .msg_namelen = sizeof(takers[0]),
	};
	int fd = pick(t);

	memset(t->control, 0, CMSG_SPACE(sizeof(fd)));
	add_control(t, &message, SOL_SOCKET, SCM_RIGHTS, &fd, sizeof(fd));
	return taker_count ? answer(sendmsg(taken, &message, MSG_DONTWAIT)) : -EBADF;
}

static int do_take(struct thread *t)
{
	struct iovec vector = { t->data, 1 };
	struct msghdr message = {
		.msg_iov = &vector, .msg_iovlen = 1,
		.msg_control = t->control, .msg_controllen = CMSG_SPACE(sizeof(int)),
	};
	int got = answer(recvmsg(taken, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)), fd;

	if (got < 0 || !CMSG_FIRSTHDR(&message))
		return got;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return chance(t, 1) ? put_at(&hoard[below(t, COUNT(hoard))], fd) : put(t, fd);
}

static int do_getsockname(struct thread *t)
{
	socklen_t length = sizeof(union name);
	union name name;
	int result = answer(getsockname(pick(t), &name.any, &length));

	if (!result) {
		check_name(t, &name, length);
		if (ntohs(name.v4.sin_port) >= 32768)
			atomic_store(&learned[below(t, COUNT(learned))], ntohs(name.v4.sin_port));
	}
	return result;
}

/*
 * A datagram socket's peer is whom it dialled, whoever that is and whether or not it may send
 * there. `own` is nobody else's descriptor, which another thread could close and use again.
 */
static bool is_datagram(int own)
{
	socklen_t length = sizeof(int);
	int type = 0;

	return !getsockopt(own, SOL_SOCKET, SO_TYPE, &type, &length) && type == SOCK_DGRAM;
}

static int do_getpeername(struct thread *t)
{
	socklen_t length = sizeof(union name);
	union name name;
	int own = dup(pick(t)), result;

	result = answer(getpeername(own, &name.any, &length));
	if (!result && !is_datagram(own))
		check_name(t, &name, length);
	close(own);
	return result;
}

static const int levels[] = { SOL_SOCKET, SOL_IP, SOL_IPV6, SOL_TCP, SOL_UDP };
static const socklen_t lengths[] = { 4, 4, 4, 4, 0, 1, 8, 16, 88, 256, 4096, 4097 };

static void fill(struct thread *t, socklen_t length)
{
	static const char *const words[] = { "reno", "cubic", "tls", "lo", "eth0", "mptcp", "smc" };
	uint64_t random = 1;

	memset(t->data, 0, length + sizeof(random));
	switch (below(t, 6)) {
	case 0:
		break;
	case 1:
		strcpy((char *)t->data, ONE_OF(t, words));
		break;
	case 2:
		memset(t->data, 0xff, length);
		break;
	case 3:
		for (socklen_t at = 0; at < length; at += sizeof(random)) {
			random = draw(t) | draw(t) << 48;
			memcpy(t->data + at, &random, sizeof(random));
		}
		break;
	default:
		random = chance(t, 60) ? 1 : below(t, 300);
		memcpy(t->data, &random, sizeof(random));
	}
}

/* What would make the test wait, or take the machine's memory, is asked for in measure. */
static socklen_t moderate(struct thread *t, int level, int name, socklen_t length)
{
	static struct sock_filter pass = { BPF_RET | BPF_K, 0, 0, 0xffff },
				  drop = { BPF_RET | BPF_K, 0, 0, 0 };
	struct sock_fprog program = { 1, chance(t, 80) ? &pass : &drop };
	uint64_t number;

	memcpy(&number, t->data, sizeof(number));
	if (level == SOL_SOCKET && name == SO_LINGER)
		number &= 1;				/* l_onoff; l_linger is 0 */
	else if (level == SOL_SOCKET && (name == SO_SNDBUF || name == SO_RCVBUF ||
					 name == SO_SNDBUFFORCE || name == SO_RCVBUFFORCE ||
					 name == 73 /* SO_RESERVE_MEM */))
		number &= 0xffff;
	else if (level == SOL_SOCKET && name == SO_MAX_PACING_RATE)
		number |= 1 << 22;
	else if (level == SOL_TCP && (name == TCP_LINGER2 || name == TCP_DEFER_ACCEPT))
		number &= 1;
	else if (level == SOL_TCP && (name == TCP_USER_TIMEOUT || name == 44 /* TCP_RTO_MAX_MS */))
		number &= 1023;				/* the first outlives tcp_orphan_retries */
	else if (level == SOL_SOCKET && chance(t, 80) &&
		 (name == SO_ATTACH_FILTER || name == SO_ATTACH_REUSEPORT_CBPF))
		return memcpy(t->data, &program, sizeof(program)), sizeof(program);
	else
		return length;
	memcpy(t->data, &number, sizeof(number));
	return length;
}

static int some_option(struct thread *t, socklen_t *length)
{
	int level = ONE_OF(t, levels), name = below(t, chance(t, 95) ? 101 : 110);

	/* Half the time what other calls depend on. */
	if (chance(t, 15)) {
		level = SOL_SOCKET;
		name = chance(t, 50) ? SO_REUSEADDR : SO_REUSEPORT;
	} else if (chance(t, 10)) {
		level = SOL_IPV6;
		name = chance(t, 70) ? IPV6_V6ONLY : IPV6_ADDRFORM;
	} else if (chance(t, 10)) {
		level = SOL_TCP;
		name = ONE_OF(t, ((int[]){ TCP_DEFER_ACCEPT, TCP_SAVE_SYN, TCP_SAVED_SYN, TCP_ULP,
					   TCP_FASTOPEN, TCP_FASTOPEN_CONNECT, TCP_REPAIR }));
	}
	*length = ONE_OF(t, lengths);
	t->now->detail[0] = level;
	t->now->detail[1] = name;
	return level;
}

static int do_setsockopt(struct thread *t)
{
	socklen_t length;
	int level = some_option(t, &length), name = t->now->detail[1];

	fill(t, length);
	length = moderate(t, level, name, length);
	return answer(setsockopt(pick(t), level, name, t->data, length));
}

static int do_ring_setsockopt(struct thread *t)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&t->ring);
	socklen_t length;
	int level = some_option(t, &length), name = t->now->detail[1];

	fill(t, length);
	length = moderate(t, level, name, length);
	/* off is cmd_op, addr is level and optname, file_index is optlen, addr3 is optval. */
	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, pick(t), NULL, 0, SOCKET_SETSOCKOPT);
	sqe->addr = (uint64_t)name << 32 | level;
	sqe->file_index = length;
	sqe->addr3 = (uintptr_t)t->data;
	return ring_result(t, sqe);
}

static int do_getsockopt(struct thread *t)
{
	socklen_t length, given;
	int level = some_option(t, &length), name = t->now->detail[1], own = dup(pick(t)), result;
	bool dialled = level == SOL_SOCKET && name == SO_PEERNAME && is_datagram(own);

	memset(t->data, 0, length);
	given = length;
	result = answer(getsockopt(own, level, name, t->data, &length));
	close(own);
	if (dialled)
		return result;
	check_bytes(t, t->data, given);
	if (!result && ((level == SOL_SOCKET && name == SO_PEERNAME) ||
			(level == SOL_IP && name == 80 /* SO_ORIGINAL_DST */)))
		check_name(t, (void *)t->data, length);
	return result;
}

static int do_poll(struct thread *t)
{
	struct pollfd all[8];

	for (unsigned int i = 0; i < COUNT(all); i++)
		all[i] = (struct pollfd){ .fd = pick(t), .events = POLLIN | POLLOUT };
	return answer(poll(all, COUNT(all), 0));
}

static struct {
	const char *name;
	unsigned int weight;
	int (*run)(struct thread *t);
} calls[] = {
	{ "socket", 25, do_socket },
	{ "socket_odd", 5, do_socket_odd },
	{ "bind", 60, do_bind },
	{ "listen", 40, do_listen },
	{ "accept", 90, do_accept },
	{ "connect", 140, do_connect },
	{ "disconnect", 40, do_disconnect },
	{ "serve", 40, do_serve },
	{ "use_accepted", 30, do_use_accepted },
	{ "choose_port", 5, do_choose_port },
	{ "send", 40, do_send },
	{ "sendmsg", 40, do_sendmsg },
	{ "recv", 60, do_recv },
	{ "shutdown", 10, do_shutdown },
	{ "close", 30, do_close },
	{ "dup", 8, do_dup },
	{ "pass", 8, do_pass },
	{ "take", 10, do_take },
	{ "getsockname", 60, do_getsockname },
	{ "getpeername", 60, do_getpeername },
	{ "setsockopt", 70, do_setsockopt },
	{ "getsockopt", 60, do_getsockopt },
	{ "poll", 10, do_poll },
	{ "ring_socket", 5, do_ring_socket },
	{ "ring_bind", 8, do_ring_bind },
	{ "ring_listen", 6, do_ring_listen },
	{ "ring_accept", 8, do_ring_accept },
	{ "ring_connect", 12, do_ring_connect },
	{ "ring_sendmsg", 6, do_ring_sendmsg },
	{ "ring_setsockopt", 4, do_ring_setsockopt },
	{ "ring_close", 6, do_ring_close },
};

static void *run(void *given)
{
	struct thread *t = given;
	unsigned int sum = 0, what, call;
	int result;

	for (call = 0; call < COUNT(calls); call++)
		sum += calls[call].weight;
	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		what = below(t, sum);
		for (call = 0; what >= calls[call].weight; call++)
			what -= calls[call].weight;
		t->now = &t->traces[t->turns++ % TRACED];
		*t->now = (struct trace){ .turn = atomic_fetch_add(&turn, 1),
					  .call = calls[call].name, .fd = -1 };
		result = calls[call].run(t);
		t->now->result = result;
		result = result < 0 ? -result : 0;
		t->counts[call][result < ERRNOS ? result : ERRNOS - 1]++;
	}
	return NULL;
}

static void stuck(int number)
{
	(void)number;
	for (int i = 0; i < THREADS; i++)
		tell(threads[i].now);
	printf("broken: a call does not return; seed %lu\n", seed);
	fflush(stdout);
	_exit(3);
}

static void report(double took)
{
	unsigned long all = 0, sum;
	bool first;

	for (unsigned int call = 0; call < COUNT(calls); call++)
		for (int error = 0; error < ERRNOS; error++)
			for (int i = 0; i < THREADS; i++)
				all += threads[i].counts[call][error];
	printf("{\"seed\": %lu, \"seconds\": %.1f, \"total\": %lu, \"calls\": {", seed, took, all);
	for (unsigned int call = 0; call < COUNT(calls); call++) {
		printf("%s\"%s\": {", call ? ", " : "", calls[call].name);
		first = true;
		for (int error = 0; error < ERRNOS; error++) {
			sum = 0;
			for (int i = 0; i < THREADS; i++)
				sum += threads[i].counts[call][error];
			if (!sum)
				continue;
			printf("%s\"%s\": %lu", first ? "" : ", ",
			       error ? strerrorname_np(error) ?: "other" : "0", sum);
			first = false;
		}
		putchar('}');
	}
	puts("}}");
}

static bool argument(char *word)
{
	char *value = strchr(word, '=');
	struct sockaddr_un own = { .sun_family = AF_UNIX };

	if (!value)
		return false;
	*value++ = 0;
	for (int i = 0; i < BOOKS; i++)
		if (!strcmp(word, book_names[i]))
			return books[i].count < COUNT(books[i].at) &&
			       inet_pton(AF_INET, value, &books[i].at[books[i].count++]) == 1;
	if (!strcmp(word, "seed")) {
		seed = strtoul(value, NULL, 0);
	} else if (!strcmp(word, "seconds")) {
		seconds = strtoul(value, NULL, 0);
	} else if (!strcmp(word, "threads")) {
		thread_count = atoi(value);
		return thread_count > 0 && thread_count <= THREADS;
	} else if (!strcmp(word, "without")) {
		for (unsigned int call = 0; call < COUNT(calls); call++)
			if (!strcmp(value, calls[call].name))
				return !(calls[call].weight = 0);
		return false;
	} else if (!strcmp(word, "secret")) {
		secret = value;
	} else if (!strcmp(word, "uid")) {
		return !setgroups(0, NULL) && !setgid(atoi(value)) && !setuid(atoi(value));
	} else if (!strcmp(word, "unix") || !strcmp(word, "give")) {
		if (taker_count == COUNT(takers) || strlen(value) >= sizeof(own.sun_path))
			return false;
		strcpy(own.sun_path, value);
		takers[taker_count++] = own;
		if (!strcmp(word, "give"))
			return true;
		unlink(value);
		taken = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		return !bind(taken, (struct sockaddr *)&own, sizeof(own)) && !chmod(value, 0777);
	} else {
		return false;
	}
	return true;
}

int main(int argc, char **argv)
{
	struct timespec begun, ended;

	for (int i = 1; i < argc; i++) {
		if (!argument(argv[i])) {
			fprintf(stderr, "fuzz: %s: not understood, or it did not work\n", argv[i]);
			return 2;
		}
	}
	signal(SIGPIPE, SIG_IGN);
	signal(SIGALRM, stuck);
	for (unsigned int i = 0; i < SLOTS; i++)
		atomic_store(&slots[i], -1);
	for (unsigned int i = 0; i < COUNT(hoard); i++)
		atomic_store(&hoard[i], -1);
	for (unsigned int i = 0; i < COUNT(listeners); i++)
		atomic_store(&listeners[i], -1);
	threads = calloc(THREADS, sizeof(*threads));
	clock_gettime(CLOCK_MONOTONIC, &begun);
	for (int i = 0; i < THREADS; i++) {
		threads[i].random = (seed * THREADS + i + 1) * 0x9e3779b97f4a7c15ULL;
		threads[i].now = threads[i].traces;
		threads[i].fd = -1;
		if (io_uring_queue_init(8, &threads[i].ring, 0)) {
			perror("fuzz: io_uring_queue_init");
			return 2;
		}
	}
	for (int i = 0; i < thread_count; i++)
		pthread_create(&threads[i].pthread, NULL, run, &threads[i]);
	sleep(seconds);
	atomic_store(&stop, true);
	alarm(20);
	for (int i = 0; i < thread_count; i++)
		pthread_join(threads[i].pthread, NULL);
	clock_gettime(CLOCK_MONOTONIC, &ended);
	report(ended.tv_sec - begun.tv_sec + (ended.tv_nsec - begun.tv_nsec) / 1e9);
	return 0;
}
