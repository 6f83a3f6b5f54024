// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What an application calls. Each function is libc's own but for the addresses in it,
 * and but for sockets that are not TCP or UDP over IP it is libc's own altogether.
 * No call that carries data is here, but those that may name an address.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#include <slimnet/address.h>
#include <slimnet/sockopt.h>

#include "cache.h"
#include "real.h"
#include "router.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

#define ACCEPT_PATIENCE_MS 1000
#define BIND_TRIES 8
#define DATAGRAM_NS 1000000000u	/* what was allowed is for so long */

union name {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
	struct sockaddr_storage room;
};

enum what {
	OTHER = 0,
	STREAM,
	DATAGRAM,
};

/* Which socket of ours is it? By the kernel, for only that knows every way to get one. */
static enum what what_is(int fd)
{
	int domain = 0, protocol = 0;

	if (raw_option(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, sizeof(protocol)) ||
	    (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP) ||
	    raw_option(fd, SOL_SOCKET, SO_DOMAIN, &domain, sizeof(domain)) ||
	    (domain != AF_INET && domain != AF_INET6))
		return OTHER;
	return protocol == IPPROTO_TCP ? STREAM : DATAGRAM;
}

/* 0, or -1 where it is no address of IP. */
static int to_name(const struct sockaddr *from, socklen_t size, struct slim_shim_name *to)
{
	union name name;

	*to = (struct slim_shim_name){};
	if (!from || size < (socklen_t)sizeof(sa_family_t))
		return -1;
	/* Its alignment is the application's. */
	memcpy(&name, from, size < sizeof(name) ? size : sizeof(name));
	if (name.any.sa_family == AF_INET && size >= sizeof(name.v4)) {
		slim_map_v4(to->address, name.v4.sin_addr.s_addr);
		to->port = name.v4.sin_port;
		return 0;
	}
	if (name.any.sa_family == AF_INET6 && size >= 24) {
		memcpy(to->address, &name.v6.sin6_addr, sizeof(to->address));
		to->port = name.v6.sin6_port;
		return 0;
	}
	return -1;
}

/* As a socket of `family` has it. */
static socklen_t from_name(const struct slim_shim_name *from, int family, union name *to)
{
	memset(to, 0, sizeof(*to));
	if (family == AF_INET) {
		to->v4.sin_family = AF_INET;
		to->v4.sin_port = from->port;
		to->v4.sin_addr.s_addr = slim_is_mapped(from->address) ? from->address[3] :
					 from->address[3] ? htonl(INADDR_LOOPBACK) : 0;
		return sizeof(to->v4);
	}
	to->v6.sin6_family = AF_INET6;
	to->v6.sin6_port = from->port;
	memcpy(&to->v6.sin6_addr, from->address, sizeof(to->v6.sin6_addr));
	return sizeof(to->v6);
}

/* As the kernel copies an address out: as much as there is room for, and its whole size. */
static void hand_out(const union name *name, socklen_t size, struct sockaddr *to, socklen_t *room)
{
	if (!to || !room)
		return;
	memcpy(to, name, size < *room ? size : *room);
	*room = size;
}

static int family_of(int fd)
{
	int domain = AF_INET;

	raw_option(fd, SOL_SOCKET, SO_DOMAIN, &domain, sizeof(domain));
	return domain;
}

/* The kernel's names of a socket; a `peer` of zeros where it has none. -1: not of IP. */
static int kernel_names(int fd, struct slim_shim_name *local, struct slim_shim_name *peer)
{
	union name name;
	socklen_t size = sizeof(name);

	*peer = (struct slim_shim_name){};
	if (raw(SYS_getsockname, fd, (long)&name, (long)&size, 0, 0, 0) ||
	    to_name(&name.any, size, local))
		return -1;
	size = sizeof(name);
	if (!raw(SYS_getpeername, fd, (long)&name, (long)&size, 0, 0, 0))
		to_name(&name.any, size, peer);
	return 0;
}

EXPORT int socket(int domain, int type, int protocol)
{
	const int kind = type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC);

	/* The others would be ways around what is decided here, or name the host. */
	if (router_is() && (domain == AF_INET || domain == AF_INET6) &&
	    !(kind == SOCK_STREAM && (protocol == 0 || protocol == IPPROTO_TCP)) &&
	    !(kind == SOCK_DGRAM && (protocol == 0 || protocol == IPPROTO_UDP)))
		return no(EPROTONOSUPPORT);
	return real_socket(domain, type, protocol);
}

/* Binds a socket to what the router has for an overlay name. */
static int bind_name(int fd, enum what what, const struct slim_shim_name *local)
{
	struct slim_shim_request request = {
		.call = SLIM_SHIM_BIND,
		.flags = what == DATAGRAM ? SLIM_SHIM_DATAGRAM : 0,
		.local = *local,
	};
	struct slim_shim_answer answer;
	const int family = family_of(fd);
	int tries, error;

	for (tries = 0; tries < BIND_TRIES; tries++) {
		union name name;
		socklen_t size;

		error = router_ask(&request, -1, ACCEPT_PATIENCE_MS, &answer);
		if (!error)
			error = (int)answer.error;
		if (error)
			return no(error);
		size = from_name(&answer.underlay, family, &name);
		error = errno;
		if (!real_bind(fd, &name.any, size)) {
			struct cached cached = {
				.cookie = cookie_of(fd),
				.is = CACHED_BOUND,
				.local = answer.local,
			};

			if (what == STREAM)
				cache_put(fd, &cached);
			return 0;
		}
		if (errno != EADDRINUSE || !(answer.flags & SLIM_SHIM_FRESH))
			return -1;
		/* Somebody else of the host has it: not what the application did. */
		errno = error;
		request.flags |= SLIM_SHIM_RETRY;
		request.underlay = answer.underlay;
	}
	return no(EADDRINUSE);
}

EXPORT int bind(int fd, const struct sockaddr *address, socklen_t size)
{
	struct slim_shim_name name, local, peer;
	enum what what;

	if (!router_is() || to_name(address, size, &name))
		return real_bind(fd, address, size);
	what = what_is(fd);
	/* What the kernel refuses anyway it refuses by itself. */
	if (what == OTHER || kernel_names(fd, &local, &peer) || local.port ||
	    (family_of(fd) == AF_INET && !slim_is_mapped(name.address)))
		return real_bind(fd, address, size);
	return bind_name(fd, what, &name);
}

EXPORT int listen(int fd, int backlog)
{
	struct slim_shim_name local, peer;

	/* Without bind(2) the kernel would draw a port that nobody knows of. */
	if (router_is() && what_is(fd) == STREAM && !kernel_names(fd, &local, &peer) &&
	    !local.port && bind_name(fd, STREAM, &local))
		return -1;
	return real_listen(fd, backlog);
}

/* Tells the router that what it announced does not come. */
static void failed(int fd, const struct cached *cached)
{
	struct slim_shim_request request = { .call = SLIM_SHIM_FAILED, .peer = cached->underlay };
	struct slim_shim_answer answer;
	struct slim_shim_name peer;

	cache_drop(fd);
	if (!kernel_names(fd, &request.local, &peer)) {
		if (slim_is_any(request.local.address))
			slim_copy(request.local.address, cached->underlay.address);
		router_ask(&request, -1, 0, &answer);
	}
}

/*
 * A socket that connects has its tuple from now on, which nobody else can take; its port
 * others may have for other tuples, also while it is in TIME_WAIT.
 */
static void let_go(int fd)
{
	const int on = 1;

	raw(SYS_setsockopt, fd, SOL_SOCKET, SO_REUSEADDR, (long)&on, sizeof(on), 0);
}

static int connect_again(int fd, const struct cached *cached, const struct sockaddr *address,
			 socklen_t size)
{
	const int before = errno;
	union name name;
	socklen_t length;
	int result, error;

	if (cached->is == CACHED_OUTSIDE) {
		result = real_connect(fd, address, size);
	} else {
		length = from_name(&cached->underlay, family_of(fd), &name);
		result = real_connect(fd, &name.any, length);
		if (!result || errno == EINPROGRESS)
			let_go(fd);
	}
	if (result && errno != EINPROGRESS && errno != EALREADY && errno != EINTR &&
	    errno != EISCONN) {
		error = errno;
		if (cached->is == CACHED_CONNECTED)
			failed(fd, cached);
		else
			cache_drop(fd);
		errno = error;
	} else if (result && cached->is == CACHED_CONNECTED && errno != EISCONN) {
		struct cached waits = *cached;

		waits.pending = 1;
		cache_put(fd, &waits);
	} else if (!result) {
		errno = before;
	}
	return result;
}

/*
 * One that was not waited for and did not come about: nobody may turn up in its place,
 * from the port that is free now. All other descriptors are closed and nothing else.
 */
EXPORT int close(int fd)
{
	struct slim_shim_request request = { .call = SLIM_SHIM_FAILED };
	struct slim_shim_answer answer;
	struct slim_shim_name peer;
	struct tcp_info info = {};
	struct cached cached;
	int result, error;

	if (!cache_pending(fd) || !cache_get(fd, cookie_of(fd), &cached))
		return real_close(fd);
	raw_option(fd, IPPROTO_TCP, TCP_INFO, &info, sizeof(info));
	cache_drop(fd);
	if ((info.tcpi_state != TCP_SYN_SENT && info.tcpi_state != TCP_CLOSE) ||
	    kernel_names(fd, &request.local, &peer))
		return real_close(fd);
	result = real_close(fd);
	error = errno;
	if (slim_is_any(request.local.address))
		slim_copy(request.local.address, cached.underlay.address);
	request.peer = cached.underlay;
	router_ask(&request, -1, 0, &answer);
	errno = error;
	return result;
}

static uint64_t now(void)
{
	struct timespec time = {};

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* May a datagram go there? 0, or an errno. */
static int datagram(int fd, const struct slim_shim_name *peer)
{
	struct slim_shim_request request = {
		.call = SLIM_SHIM_CONNECT,
		.flags = SLIM_SHIM_DATAGRAM,
		.peer = *peer,
	};
	struct slim_shim_answer answer;
	struct cached cached;
	const uint64_t cookie = cookie_of(fd);
	int error;

	if (cache_get(fd, cookie, &cached) && cached.is == CACHED_DATAGRAM &&
	    !memcmp(&cached.peer, peer, sizeof(*peer)) && cached.until > now())
		return 0;
	error = router_ask(&request, -1, 0, &answer);
	if (!error)
		error = (int)answer.error;
	if (error)
		return error;
	/* What is known of a connected one stays. */
	if (cache_get(fd, cookie, &cached) && !slim_is_any(cached.local.address))
		return 0;
	cached = (struct cached){
		.cookie = cookie,
		.is = CACHED_DATAGRAM,
		.peer = *peer,
		.until = now() + DATAGRAM_NS,
	};
	cache_put(fd, &cached);
	return 0;
}

/*
 * What a connected one sends nobody sees. Where it may send nothing it is connected to where
 * that is refused, for programs learn by connect(2) which address is theirs.
 */
static int connect_datagram(int fd, const struct sockaddr *address, socklen_t size,
			    const struct slim_shim_name *peer)
{
	struct slim_shim_request request = {
		.call = SLIM_SHIM_CONNECT,
		.flags = SLIM_SHIM_DATAGRAM | SLIM_SHIM_EMPTY,
		.peer = *peer,
	};
	struct slim_shim_answer answer;
	struct cached cached;
	union name name;
	int error, result;

	error = router_ask(&request, -1, 0, &answer);
	if (!error)
		error = (int)answer.error;
	if (error)
		return no(error);
	if (answer.flags & SLIM_SHIM_NOWHERE) {
		size = from_name(&answer.underlay, family_of(fd), &name);
		address = &name.any;
	}
	result = real_connect(fd, address, size);
	if (result)
		return result;
	cached = (struct cached){
		.cookie = cookie_of(fd),
		.is = answer.flags & SLIM_SHIM_NOWHERE ? CACHED_NOWHERE : CACHED_DATAGRAM,
		.local = answer.local,
		.peer = answer.peer,
	};
	cache_put(fd, &cached);
	return 0;
}

/* connect(2) of a socket of ours. */
static int connect_name(int fd, enum what what, const struct sockaddr *address, socklen_t size,
			const struct slim_shim_name *peer)
{
	struct slim_shim_request request = { .call = SLIM_SHIM_CONNECT, .peer = *peer };
	struct slim_shim_answer answer;
	struct cached cached;
	const uint64_t cookie = cookie_of(fd);
	int error, result, kept = -1;

	if (what == DATAGRAM)
		return connect_datagram(fd, address, size, peer);
	if (cache_get(fd, cookie, &cached) &&
	    (cached.is == CACHED_CONNECTED || cached.is == CACHED_OUTSIDE)) {
		struct tcp_info info = {};

		/*
		 * Under way, established, or failed and not said so yet: the kernel's to say. One
		 * whose error was read by getsockopt(2) starts anew.
		 */
		raw_option(fd, IPPROTO_TCP, TCP_INFO, &info, sizeof(info));
		if (info.tcpi_state != TCP_CLOSE)
			return connect_again(fd, &cached, address, size);
		error = errno;
		if (connect_again(fd, &cached, address, size) || errno != error)
			return -1;
		return 0;
	}
	error = router_ask_first(&request, fd, 0, &answer, &kept);
	if (!error)
		error = (int)answer.error;
	if (error) {
		router_done(kept);
		return no(error);
	}
	cached = (struct cached){
		.cookie = cookie,
		.is = answer.flags & SLIM_SHIM_PLAIN ? CACHED_OUTSIDE : CACHED_CONNECTED,
		.local = answer.local,
		.peer = answer.peer,
		.underlay = answer.underlay,
	};
	cache_put(fd, &cached);
	result = connect_again(fd, &cached, address, size);
	router_done(kept);
	return result;
}

EXPORT int connect(int fd, const struct sockaddr *address, socklen_t size)
{
	struct slim_shim_name peer;
	struct cached cached;
	sa_family_t family = 0;
	enum what what;

	if (!router_is())
		return real_connect(fd, address, size);
	if (address && size >= (socklen_t)sizeof(family))
		memcpy(&family, address, sizeof(family));
	if (address && family == AF_UNSPEC && cache_get(fd, cookie_of(fd), &cached)) {
		/* Undone: what comes next on this socket is decided anew. */
		int result = real_connect(fd, address, size), error = errno;

		if (!result && cached.is == CACHED_CONNECTED)
			failed(fd, &cached);
		else if (!result)
			cache_drop(fd);
		errno = error;
		return result;
	}
	if (to_name(address, size, &peer))
		return real_connect(fd, address, size);
	what = what_is(fd);
	if (what == OTHER || (family == AF_INET6 && family_of(fd) == AF_INET))
		return real_connect(fd, address, size);
	return connect_name(fd, what, address, size, &peer);
}

/* RST, as a port that nobody listens at would answer. */
static void reset(int fd)
{
	const struct linger now = { .l_onoff = 1 };

	raw(SYS_setsockopt, fd, SOL_SOCKET, SO_LINGER, (long)&now, sizeof(now), 0);
	raw(SYS_close, fd, 0, 0, 0, 0, 0);
}

/* What a socket has of its listener, where the router's had nothing of that. */
static void inherit(int from, int to)
{
	static const struct {
		int level, name;
	} options[] = {
		{ SOL_SOCKET, SO_KEEPALIVE },
		{ SOL_SOCKET, SO_OOBINLINE },
		{ SOL_SOCKET, SO_PRIORITY },
		{ SOL_SOCKET, SO_RCVLOWAT },
		{ IPPROTO_IP, IP_TOS },
		{ IPPROTO_IP, IP_TTL },
		{ IPPROTO_TCP, TCP_NODELAY },
		{ IPPROTO_TCP, TCP_KEEPIDLE },
		{ IPPROTO_TCP, TCP_KEEPINTVL },
		{ IPPROTO_TCP, TCP_KEEPCNT },
		{ IPPROTO_TCP, TCP_USER_TIMEOUT },
		{ IPPROTO_TCP, TCP_NOTSENT_LOWAT },
	};
	static const int whole[] = { SO_LINGER, SO_RCVTIMEO, SO_SNDTIMEO };
	size_t index;

	for (index = 0; index < sizeof(options) / sizeof(*options); index++) {
		const int level = options[index].level, name = options[index].name;
		int wanted, has;

		if (!raw_option(from, level, name, &wanted, sizeof(wanted)) &&
		    !raw_option(to, level, name, &has, sizeof(has)) && wanted != has)
			raw(SYS_setsockopt, to, level, name, (long)&wanted, sizeof(wanted), 0);
	}
	for (index = 0; index < sizeof(whole) / sizeof(*whole); index++) {
		struct timeval value = {};	/* struct linger is no larger */
		const size_t size = whole[index] == SO_LINGER ? sizeof(struct linger) :
								sizeof(value);

		if (!raw_option(from, SOL_SOCKET, whole[index], &value, size) &&
		    (value.tv_sec || value.tv_usec))
			raw(SYS_setsockopt, to, SOL_SOCKET, whole[index], (long)&value,
			    (long)size, 0);
	}
}

/* Puts another socket under the number of one that was accepted, as that one was asked for. */
static void replace(int fd, int given, int flags)
{
	inherit(fd, given);
	if (flags >= 0 && flags & SOCK_NONBLOCK)
		raw(SYS_fcntl, given, F_SETFL, O_RDWR | O_NONBLOCK, 0, 0, 0);
	raw(SYS_dup3, given, fd, flags >= 0 && flags & SOCK_CLOEXEC ? O_CLOEXEC : 0, 0, 0, 0);
	raw(SYS_close, given, 0, 0, 0, 0, 0);
}

/*
 * Who is on a connection that was accepted? 1: `name` says so, or the kernel did; 0: nobody
 * who may be, and it is closed; -1: the same, and errno says why. Else errno is as it was.
 */
static int admit(int fd, int flags, union name *name, socklen_t *size)
{
	const int error = errno, family = name->any.sa_family;
	struct slim_shim_request request = { .call = SLIM_SHIM_ACCEPT };
	struct slim_shim_answer answer;
	struct slim_shim_name peer;
	struct cached cached;
	int given, failed;

	if ((family != AF_INET && family != AF_INET6) || what_is(fd) != STREAM ||
	    kernel_names(fd, &request.local, &peer))
		return 1;
	/* As accept(2) told it: a peer that has gone since has no name any more. */
	to_name(&name->any, *size, &request.peer);
	if (family == AF_INET)
		request.flags = SLIM_SHIM_V4;
	failed = router_ask_given(&request, ACCEPT_PATIENCE_MS, &answer, &given);
	if (failed || answer.error) {
		if (given >= 0)
			reset(given);
		reset(fd);
		errno = error;
		return 0;
	}
	if (answer.flags & SLIM_SHIM_GIVEN) {
		if (given < 0) {
			/* There was no number left for it. */
			reset(fd);
			return no(EMFILE);
		}
		replace(fd, given, flags);
		request.peer = answer.peer;
	}
	errno = error;
	if (answer.flags & SLIM_SHIM_PLAIN)
		return 1;
	*size = from_name(&answer.peer, family, name);
	cached = (struct cached){
		.cookie = cookie_of(fd),
		.is = CACHED_CONNECTED,
		.local = answer.local,
		.peer = answer.peer,
		.underlay = request.peer,
		.family = (uint32_t)family,
	};
	cache_put(fd, &cached);
	return 1;
}

/* `flags` -1: accept(2). Where one is refused, the next is waited for as the kernel does. */
static int accept_one(int fd, struct sockaddr *address, socklen_t *room, int flags)
{
	for (;;) {
		union name name = {};
		socklen_t size = sizeof(name);
		int new, admitted;

		/* Bad memory is told before a connection is taken out of the queue. */
		if (address && !room)
			return no(EFAULT);
		new = flags < 0 ? real_accept(fd, &name.any, &size) :
				  real_accept4(fd, &name.any, &size, flags);
		if (new < 0)
			return new;
		admitted = admit(new, flags, &name, &size);
		if (admitted < 0)
			return -1;
		if (admitted) {
			hand_out(&name, size, address, room);
			return new;
		}
	}
}

EXPORT int accept(int fd, struct sockaddr *address, socklen_t *room)
{
	return router_is() ? accept_one(fd, address, room, -1) : real_accept(fd, address, room);
}

EXPORT int accept4(int fd, struct sockaddr *address, socklen_t *room, int flags)
{
	return router_is() && flags >= 0 ? accept_one(fd, address, room, flags) :
					   real_accept4(fd, address, room, flags);
}

/* The overlay names of a socket that has a port. 0: there are none to know. */
static int names(int fd, int connected, struct cached *cached)
{
	struct slim_shim_request request = { .call = SLIM_SHIM_NAME };
	struct slim_shim_answer answer;
	const uint64_t cookie = cookie_of(fd);

	if (cache_get(fd, cookie, cached) && !(connected && cached->is == CACHED_BOUND))
		return cached->is != CACHED_DATAGRAM || !slim_is_any(cached->local.address);
	if (what_is(fd) != STREAM || kernel_names(fd, &request.local, &request.peer) ||
	    !request.local.port || router_ask(&request, -1, 0, &answer) || answer.error)
		return 0;
	*cached = (struct cached){
		.cookie = cookie,
		.is = !request.peer.port ? CACHED_BOUND :
		      answer.flags & SLIM_SHIM_PLAIN ? CACHED_OUTSIDE : CACHED_CONNECTED,
		.local = answer.local,
		.peer = answer.peer,
		.underlay = request.peer,
	};
	cache_put(fd, cached);
	return 1;
}

EXPORT int getsockname(int fd, struct sockaddr *address, socklen_t *room)
{
	const int error = errno;
	struct slim_shim_name local;
	struct cached cached;
	union name name;
	socklen_t size = sizeof(name);

	if (!router_is() || !address || !room)
		return real_getsockname(fd, address, room);
	if ((int)*room < 0)
		return no(EINVAL);
	if (real_getsockname(fd, &name.any, &size))
		return -1;
	if (!to_name(&name.any, size, &local) && local.port && names(fd, 0, &cached)) {
		const int family = cached.family ? (int)cached.family : name.any.sa_family;

		/* Outside, the address is the endpoint's, and the port the kernel's. */
		if (!cached.local.port)
			cached.local.port = local.port;
		size = from_name(&cached.local, family, &name);
	}
	errno = error;
	hand_out(&name, size, address, room);
	return 0;
}

EXPORT int getpeername(int fd, struct sockaddr *address, socklen_t *room)
{
	const int error = errno;
	struct slim_shim_name peer;
	struct cached cached;
	union name name;
	socklen_t size = sizeof(name);

	if (!router_is() || !address || !room)
		return real_getpeername(fd, address, room);
	if ((int)*room < 0)
		return no(EINVAL);
	if (real_getpeername(fd, &name.any, &size))
		return -1;
	if (!to_name(&name.any, size, &peer) && names(fd, 1, &cached) &&
	    (cached.is == CACHED_CONNECTED || cached.is == CACHED_NOWHERE))
		size = from_name(&cached.peer,
				 cached.family ? (int)cached.family : name.any.sa_family, &name);
	errno = error;
	hand_out(&name, size, address, room);
	return 0;
}

EXPORT int setsockopt(int fd, int level, int option, const void *value, socklen_t size)
{
	if ((slim_option_forbidden(level, option) || slim_option_swallowed(level, option)) &&
	    router_is() && what_is(fd) != OTHER)
		return slim_option_forbidden(level, option) ? no(EPERM) : 0;
	return real_setsockopt(fd, level, option, value, size);
}

EXPORT int getsockopt(int fd, int level, int option, void *value, socklen_t *size)
{
	if (slim_option_reveals(level, option) && router_is() && what_is(fd) != OTHER)
		return no(EPERM);
	return real_getsockopt(fd, level, option, value, size);
}

/*
 * A call that may name an address. 0: go on, with `*flags`; -1: errno is set.
 * Fast Open is a connect with a gift: the gift comes behind.
 */
static int before_send(int fd, const struct sockaddr *address, socklen_t size, int *flags)
{
	struct slim_shim_name peer;
	enum what what;
	int error;

	if (to_name(address, size, &peer))
		return 0;
	what = what_is(fd);
	if (what == DATAGRAM) {
		error = datagram(fd, &peer);
		return error ? no(error) : 0;
	}
	if (what != STREAM || !(*flags & MSG_FASTOPEN))
		return 0;
	*flags &= ~MSG_FASTOPEN;
	return connect_name(fd, what, address, size, &peer);
}

EXPORT ssize_t sendto(int fd, const void *bytes, size_t count, int flags,
		      const struct sockaddr *address, socklen_t size)
{
	int asked = flags;

	if (address && router_is() && before_send(fd, address, size, &asked))
		return -1;
	/* Of a stream the kernel reads the address only for Fast Open. */
	if (asked != flags)
		return real_sendto(fd, bytes, count, asked, NULL, 0);
	return real_sendto(fd, bytes, count, flags, address, size);
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	struct msghdr copy;
	int asked = flags;

	if (!message || !message->msg_name || !router_is())
		return real_sendmsg(fd, message, flags);
	if (before_send(fd, message->msg_name, message->msg_namelen, &asked))
		return -1;
	if (asked == flags)
		return real_sendmsg(fd, message, flags);
	copy = *message;
	copy.msg_name = NULL;
	copy.msg_namelen = 0;
	return real_sendmsg(fd, &copy, asked);
}

EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
	unsigned int index;

	if (!messages || !router_is())
		return real_sendmmsg(fd, messages, count, flags);
	for (index = 0; index < count && !messages[index].msg_hdr.msg_name; index++)
		;
	if (index == count)
		return real_sendmmsg(fd, messages, count, flags);
	for (index = 0; index < count && index < INT_MAX; index++) {
		ssize_t sent = sendmsg(fd, &messages[index].msg_hdr, flags);

		if (sent < 0)
			return index ? (int)index : -1;
		messages[index].msg_len = (unsigned int)sent;
	}
	return (int)index;
}

/*
 * A ring is a way around all of this: io_uring_setup(2) is refused, as where the kernel
 * has none, and programs that can do without do. What makes system calls by itself does not
 * come through here.
 */
EXPORT long syscall(long number, ...)
{
	va_list arguments;
	long each[6], result;
	int index;

	va_start(arguments, number);
	for (index = 0; index < 6; index++)
		each[index] = va_arg(arguments, long);
	va_end(arguments);
	if (number == SYS_io_uring_setup && router_is())
		return no(ENOSYS);
	result = raw(number, each[0], each[1], each[2], each[3], each[4], each[5]);
	if (result < 0 && result > -4096)
		return no((int)-result);
	return result;
}
