/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel module must stand, in a machine that has nothing but this program,
 * ip(8) and the module: two hosts, h0 and h1, are network namespaces joined by a cable;
 * of the endpoints e0 and e2 are h0's, e1 is h1's. Their namespaces have no way out, so
 * that what connects was carried by the module.
 *
 *   trials <slimnet.ko> <trial> [count]
 *
 * A trial that fails says where, and exits 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <asm/byteorder.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/genetlink.h>
#include <linux/io_uring.h>
#include <linux/netlink.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <slimnet/fingerprint.h>
#include <slimnet/netlink.h>
#include <slimnet/wire.h>

#define PORT 80
#define WIRE_PORT 4790
#define PATIENCE 120		/* seconds that anything may take: the machine is emulated */

static const char *file;

static void die(int line, const char *what)
{
	printf("line %d: %s: %s\n", line, what, strerror(errno));
	exit(1);
}

#define CHECK(x) do { if (!(x)) die(__LINE__, #x); } while (0)

static void run(const char *format, ...)
{
	char command[512];
	va_list list;

	va_start(list, format);
	vsnprintf(command, sizeof(command), format, list);
	va_end(list);
	if (system(command)) {
		printf("%s\n", command);
		exit(1);
	}
}

/* Waits for something that comes by itself. */
#define AWAIT(x) do {								\
	time_t until_ = time(NULL) + PATIENCE;					\
	while (!(x)) {								\
		if (time(NULL) > until_)					\
			die(__LINE__, "never: " #x);				\
		usleep(10000);							\
	}									\
} while (0)

/* Network namespaces */

static int home;

static int place(const char *name)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/run/netns/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	return fd;
}

static void enter(const char *name)
{
	int fd = name ? place(name) : home;

	CHECK(!setns(fd, CLONE_NEWNET));
	if (name)
		close(fd);
}

static int make(const char *name, int family, int type, int protocol)
{
	int fd;

	enter(name);
	fd = socket(family, type, protocol);
	enter(NULL);
	CHECK(fd >= 0);
	return fd;
}

/* Netlink */

struct link {
	int fd;
	int family;
	unsigned int seq;
};

struct request {
	struct nlmsghdr head;
	struct genlmsghdr genl;
	char data[8192];
};

static void put(struct request *request, int attribute, const void *data, size_t size)
{
	struct nlattr *to = (void *)((char *)request + NLMSG_ALIGN(request->head.nlmsg_len));

	to->nla_type = (unsigned short)attribute;
	to->nla_len = (unsigned short)(NLA_HDRLEN + size);
	memcpy((char *)to + NLA_HDRLEN, data, size);
	request->head.nlmsg_len = NLMSG_ALIGN(request->head.nlmsg_len) + NLA_ALIGN(to->nla_len);
}

static void put32(struct request *request, int attribute, __u32 value)
{
	put(request, attribute, &value, sizeof(value));
}

static struct request ask(struct link *link, int command, int flags)
{
	struct request request = {
		.head = {
			.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN),
			.nlmsg_type = (unsigned short)link->family,
			.nlmsg_flags = (unsigned short)(NLM_F_REQUEST | flags),
			.nlmsg_seq = ++link->seq,
		},
		.genl = { .cmd = (unsigned char)command, .version = 1 },
	};

	return request;
}

/* The attribute of a message, or NULL. */
static const void *got(const struct nlmsghdr *head, int attribute)
{
	const char *at = (const char *)head + NLMSG_LENGTH(GENL_HDRLEN);
	const char *end = (const char *)head + head->nlmsg_len;

	while (at + NLA_HDRLEN <= end) {
		const struct nlattr *found = (const void *)at;

		if ((found->nla_type & NLA_TYPE_MASK) == attribute)
			return at + NLA_HDRLEN;
		at += NLA_ALIGN(found->nla_len);
	}
	return NULL;
}

/*
 * Sends it and takes what is answered: 0 or an errno. Of an answer one attribute of at
 * most `size` bytes is kept; `count` is how many messages there were.
 */
static int talk(struct link *link, struct request *request, int attribute, void *to, size_t size,
		int *count)
{
	static char buffer[1 << 17];

	CHECK(send(link->fd, request, request->head.nlmsg_len, 0) > 0);
	for (;;) {
		ssize_t length = recv(link->fd, buffer, sizeof(buffer), 0);
		struct nlmsghdr *head = (void *)buffer;

		CHECK(length > 0);
		for (; NLMSG_OK(head, (unsigned int)length); head = NLMSG_NEXT(head, length)) {
			if (head->nlmsg_seq != link->seq)
				continue;
			if (head->nlmsg_type == NLMSG_ERROR)
				return -((struct nlmsgerr *)NLMSG_DATA(head))->error;
			if (head->nlmsg_type == NLMSG_DONE)
				return 0;
			if (count)
				++*count;
			if (to && got(head, attribute))
				memcpy(to, got(head, attribute), size);
		}
	}
}

static int family_of(struct link *link)
{
	struct request request;
	unsigned short family = 0;

	link->family = GENL_ID_CTRL;
	request = ask(link, CTRL_CMD_GETFAMILY, NLM_F_ACK);
	put(&request, CTRL_ATTR_FAMILY_NAME, SLIM_NL_FAMILY, sizeof(SLIM_NL_FAMILY));
	CHECK(!talk(link, &request, CTRL_ATTR_FAMILY_ID, &family, sizeof(family), NULL));
	return family;
}

/* The cluster */

static const unsigned char key[16] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };

static struct endpoint {
	const char *name;
	__u32 id;
	const char *address;
	int host;
} endpoints[] = {
	{ "e0", 11, "10.9.0.1", 0 },
	{ "e1", 12, "10.9.0.2", 1 },
	{ "e2", 13, "10.9.0.3", 0 },
};

#define ENDPOINTS (sizeof(endpoints) / sizeof(endpoints[0]))
#define NOBODY "10.9.0.9"	/* an endpoint of a host that does not answer */

static const char *const hosts[] = { "198.18.0.1", "198.18.0.2", "198.18.0.9" };
static struct link links[2];

static void mapped(void *to, const char *address)
{
	unsigned char *bytes = to;

	memset(bytes, 0, 16);
	bytes[10] = bytes[11] = 0xff;
	inet_pton(AF_INET, address, bytes + 12);
}

static void record(struct link *link, __u32 id, const char *address, int host, bool local)
{
	struct { struct slim_address_key key; __u32 id; } by = { .key.vni = 7, .id = id };
	struct { __u32 id; struct slim_endpoint endpoint; } is = {
		.id = id,
		.endpoint = {
			.vni = 7,
			.identity = 300,
			.flags = local ? SLIM_ENDPOINT_LOCAL : SLIM_ENDPOINT_WIRE_SYN,
		},
	};
	struct request request = ask(link, SLIM_CMD_TABLES_PUT, NLM_F_ACK);

	mapped(by.key.address, address);
	mapped(is.endpoint.address, address);
	mapped(is.endpoint.host, hosts[host]);
	put32(&request, SLIM_ATTR_TABLE, SLIM_NL_ADDRESSES);
	put(&request, SLIM_ATTR_RECORDS, &by, sizeof(by));
	CHECK(!talk(link, &request, 0, NULL, 0, NULL));
	request = ask(link, SLIM_CMD_TABLES_PUT, NLM_F_ACK);
	put32(&request, SLIM_ATTR_TABLE, SLIM_NL_ENDPOINTS);
	put(&request, SLIM_ATTR_RECORDS, &is, sizeof(is));
	CHECK(!talk(link, &request, 0, NULL, 0, NULL));
}

static void tables(int host, __u64 generation)
{
	struct request request = ask(&links[host], SLIM_CMD_TABLES_BEGIN, NLM_F_ACK);
	size_t i;

	put(&request, SLIM_ATTR_GENERATION, &generation, sizeof(generation));
	CHECK(!talk(&links[host], &request, 0, NULL, 0, NULL));
	for (i = 0; i < ENDPOINTS; i++)
		record(&links[host], endpoints[i].id, endpoints[i].address, endpoints[i].host,
		       endpoints[i].host == host);
	record(&links[host], 19, NOBODY, 2, false);
	request = ask(&links[host], SLIM_CMD_TABLES_COMMIT, NLM_F_ACK);
	put(&request, SLIM_ATTR_GENERATION, &generation, sizeof(generation));
	CHECK(!talk(&links[host], &request, 0, NULL, 0, NULL));
}

static void hold(int host)
{
	struct link *link = &links[host];
	__u64 fingerprint = SLIM_FINGERPRINT;
	__u16 port = WIRE_PORT;
	struct request request;
	char underlay[16];

	link->fd = make(host ? "h1" : "h0", AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);
	link->family = family_of(link);
	mapped(underlay, hosts[host]);
	request = ask(link, SLIM_CMD_START, NLM_F_ACK);
	put32(&request, SLIM_ATTR_ABI_VERSION, SLIM_ABI_VERSION);
	put(&request, SLIM_ATTR_FINGERPRINT, &fingerprint, sizeof(fingerprint));
	put(&request, SLIM_ATTR_INSTANCE, "trial", 6);
	put(&request, SLIM_ATTR_UNDERLAY, underlay, sizeof(underlay));
	put(&request, SLIM_ATTR_WIRE_PORT, &port, sizeof(port));
	put(&request, SLIM_ATTR_RANGE, "\xf0\0\0\0", 4);
	put(&request, SLIM_ATTR_KEY, key, sizeof(key));
	CHECK(!talk(link, &request, 0, NULL, 0, NULL));
}

static int attach(int host, int fd, __u32 id, const char *address)
{
	struct request request = ask(&links[host], SLIM_CMD_ATTACH, NLM_F_ACK);
	char bytes[16];

	mapped(bytes, address);
	put32(&request, SLIM_ATTR_ENDPOINT, id);
	put32(&request, SLIM_ATTR_NETNS_FD, (__u32)fd);
	put32(&request, SLIM_ATTR_VNI, 7);
	put(&request, SLIM_ATTR_ADDRESS, bytes, sizeof(bytes));
	return talk(&links[host], &request, 0, NULL, 0, NULL);
}

static int detach(int host, __u32 id)
{
	struct request request = ask(&links[host], SLIM_CMD_DETACH, NLM_F_ACK);

	put32(&request, SLIM_ATTR_ENDPOINT, id);
	return talk(&links[host], &request, 0, NULL, 0, NULL);
}

static void start(int host)
{
	size_t i;
	int fd;

	hold(host);
	tables(host, 1);
	for (i = 0; i < ENDPOINTS; i++) {
		if (endpoints[i].host != host)
			continue;
		fd = place(endpoints[i].name);
		CHECK(!attach(host, fd, endpoints[i].id, endpoints[i].address));
		close(fd);
	}
}

static int teardown(int host, bool force)
{
	struct request request = ask(&links[host], SLIM_CMD_TEARDOWN, NLM_F_ACK);
	int error;

	if (force)
		put(&request, SLIM_ATTR_FORCE, "", 0);
	error = talk(&links[host], &request, 0, NULL, 0, NULL);
	if (!error)
		close(links[host].fd);
	return error;
}

static int sockets(int host)
{
	struct request request = ask(&links[host], SLIM_CMD_INFO, NLM_F_ACK);
	__u32 count = ~0u;

	CHECK(!talk(&links[host], &request, SLIM_ATTR_SOCKETS, &count, sizeof(count), NULL));
	return (int)count;
}

static void load(void)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0);
	CHECK(!syscall(SYS_finit_module, fd, "", 0));
	close(fd);
}

static void unload(void)
{
	AWAIT(!syscall(SYS_delete_module, "slimnet", O_NONBLOCK) ||
	      (errno != EAGAIN && errno != EBUSY && errno != EWOULDBLOCK && (die(__LINE__, "unload"), 1)));
}

static void build(void)
{
	size_t i;

	run("ip netns add h0 && ip netns add h1");
	run("ip -n h0 link add cable address 02:00:00:00:00:01 type veth"
	    " peer name cable address 02:00:00:00:00:02 netns h1");
	for (i = 0; i < 2; i++)
		run("ip -n h%d address add %s/24 dev cable && ip -n h%d link set cable up &&"
		    " ip -n h%d link set lo up", (int)i, hosts[i], (int)i, (int)i);
	run("ip -n h0 neighbour replace %s lladdr 02:00:00:00:00:09 dev cable", hosts[2]);
	for (i = 0; i < ENDPOINTS; i++)
		run("ip netns add %s && ip -n %s link set lo up && ip -n %s address add %s/32 dev lo",
		    endpoints[i].name, endpoints[i].name, endpoints[i].name, endpoints[i].address);
}

/* How many sockets of TCP a namespace has in use. */
static int in_use(const char *name)
{
	char line[256];
	int pid = fork(), status;
	FILE *stat;

	if (!pid) {
		int count = 255;

		enter(name);
		/* The thread's namespace, not the process's that /proc was mounted for. */
		stat = fopen("/proc/thread-self/net/sockstat", "r");
		while (stat && fgets(line, sizeof(line), stat))
			sscanf(line, "TCP: inuse %d", &count);
		_exit(count);
	}
	waitpid(pid, &status, 0);
	return WEXITSTATUS(status);
}

/* Sockets */

static struct sockaddr_storage sockaddr(int family, const char *address, int port)
{
	struct sockaddr_storage storage = { .ss_family = (sa_family_t)family };

	if (family == AF_INET) {
		struct sockaddr_in *in = (void *)&storage;

		inet_pton(AF_INET, address, &in->sin_addr);
		in->sin_port = htons((unsigned short)port);
	} else {
		struct sockaddr_in6 *in = (void *)&storage;

		mapped(&in->sin6_addr, address);
		in->sin6_port = htons((unsigned short)port);
	}
	return storage;
}

static socklen_t length_of(int family)
{
	return family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

static int listener_at(const char *name, int family, int protocol, int port)
{
	int fd = make(name, family, SOCK_STREAM, protocol), one = 1;
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons((unsigned short)port) };
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((unsigned short)port) };

	CHECK(!setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)));
	CHECK(!bind(fd, family == AF_INET ? (void *)&in : (void *)&any, length_of(family)));
	CHECK(!listen(fd, 512));
	return fd;
}

static int dial(int fd, int family, const char *address, int port)
{
	struct sockaddr_storage to = sockaddr(family, address, port);

	return connect(fd, (void *)&to, length_of(family)) ? errno : 0;
}

static int client_of(const char *name, int family, const char *address)
{
	int fd = make(name, family, SOCK_STREAM, 0);

	CHECK(!dial(fd, family, address, PORT));
	return fd;
}

struct name {
	char address[64];
	int port;
};

static struct name name_of(const struct sockaddr_storage *storage)
{
	struct name name = {};

	if (storage->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)storage;

		inet_ntop(AF_INET, &in->sin_addr, name.address, sizeof(name.address));
		name.port = ntohs(in->sin_port);
	} else {
		const struct sockaddr_in6 *in = (const void *)storage;

		inet_ntop(AF_INET6, &in->sin6_addr, name.address, sizeof(name.address));
		name.port = ntohs(in->sin6_port);
	}
	return name;
}

static struct name name(int fd, bool peer)
{
	struct sockaddr_storage storage;
	socklen_t length = sizeof(storage);

	CHECK(!(peer ? getpeername : getsockname)(fd, (void *)&storage, &length));
	return name_of(&storage);
}

/* The tail of an address: what is behind ::ffff: */
static bool is(const struct name *name, const char *address, int port)
{
	size_t own = strlen(name->address), other = strlen(address);
	bool same = own >= other && !strcmp(name->address + own - other, address) &&
		    (!port || name->port == port);

	if (!same)
		printf("%s port %d, not %s port %d\n", name->address, name->port, address, port);
	return same;
}

/* The next connection of a listener, by the name that accept(2) gives. */
static int accepted(int listener, struct name *from)
{
	struct sockaddr_storage storage;
	socklen_t length = sizeof(storage);
	struct pollfd ready = { .fd = listener, .events = POLLIN };
	int fd;

	CHECK(poll(&ready, 1, PATIENCE * 1000) == 1);
	fd = accept(listener, (void *)&storage, &length);
	CHECK(fd >= 0);
	if (from)
		*from = name_of(&storage);
	return fd;
}

/* What is written at one end is read at the other. */
static void speak(int from, int to)
{
	struct pollfd ready = { .fd = to, .events = POLLIN };
	char text[6] = {};

	CHECK(write(from, "hello", 5) == 5);
	CHECK(poll(&ready, 1, PATIENCE * 1000) == 1);
	CHECK(read(to, text, 5) == 5 && !strcmp(text, "hello"));
}

/* Both ends of a connection say the same of it. */
static void agree(int client, const char *own, int server, const char *other)
{
	struct name at = name(client, false), seen = name(server, true);
	struct name peer = name(client, true), here = name(server, false);

	CHECK(is(&at, own, 0));
	CHECK(is(&seen, own, at.port));
	CHECK(is(&peer, other, PORT));
	CHECK(is(&here, other, PORT));
	speak(client, server);
	speak(server, client);
}

/* Trials */

static void begin(void)
{
	load();
	start(0);
	start(1);
}

static void end(void)
{
	CHECK(!teardown(0, true));
	CHECK(!teardown(1, true));
	unload();
	AWAIT(!in_use("h0") && !in_use("h1"));
}

/* Connections between hosts and on one, of each family with each. */
static void trial_names(int count)
{
	static const char *const callers[] = { "e0", "e2", "e1" }, *own[] = { "10.9.0.1", "10.9.0.3", "10.9.0.2" };
	static const char *const called[] = { "e1", "e0", "e2" }, *other[] = { "10.9.0.2", "10.9.0.1", "10.9.0.3" };
	const int families[] = { AF_INET, AF_INET6 };
	int i, a, b;

	begin();
	for (i = 0; i < 3; i++)
		for (a = 0; a < 2; a++)
			for (b = 0; b < 2; b++) {
				int listener = listener_at(called[i], families[a], 0, PORT);
				int client = client_of(callers[i], families[b], other[i]);
				struct name from;
				int server = accepted(listener, &from);

				CHECK(is(&from, own[i], 0));
				agree(client, own[i], server, other[i]);
				CHECK(sockets(0) > 0);
				close(client);
				close(server);
				close(listener);
			}
	end();
}

/*
 * A host with few source ports gives one to many connections; each has a name of its
 * own all the same, at both ends.
 */
static void trial_alias(int count)
{
	const char *called[] = { "e1", "e2" }, *address[] = { "10.9.0.2", "10.9.0.3" };
	int clients[64], servers[64], i, j, way, aliases, one = 1;
	struct sockaddr_storage bound = sockaddr(AF_INET, "10.9.0.1", 5555);

	run("ip netns exec h0 sh -c 'echo 40000 40015 > /proc/sys/net/ipv4/ip_local_port_range'");
	begin();
	for (way = 0; way < 2; way++) {
		int listener = listener_at(called[way], AF_INET, 0, PORT), lingering;

		aliases = 0;
		for (i = 0; i < 64; i++) {
			struct name at, from;

			clients[i] = client_of("e0", AF_INET, address[way]);
			servers[i] = accepted(listener, &from);
			at = name(clients[i], false);
			CHECK(is(&from, "10.9.0.1", at.port));
			agree(clients[i], "10.9.0.1", servers[i], address[way]);
			aliases += at.port < 40000 || at.port > 40015;
			for (j = 0; j < i; j++) {
				struct name before = name(clients[j], false);

				CHECK(before.port != at.port);
			}
		}
		printf("%d of 64 have an alias\n", aliases);
		CHECK(aliases >= 64 - 16);
		/* A server that has not closed yet still has the name. */
		lingering = name(servers[63], true).port;
		for (i = 0; i < 64; i++)
			close(clients[i]);
		for (i = 0; i < 64; i++) {
			struct name at;

			clients[i] = client_of("e0", AF_INET, address[way]);
			close(accepted(listener, NULL));
			at = name(clients[i], false);
			for (j = 0; j < 64; j++)
				CHECK(name(servers[j], true).port != at.port);
		}
		CHECK(name(servers[63], true).port == lingering);
		for (i = 0; i < 64; i++) {
			close(clients[i]);
			close(servers[i]);
		}
		/* A port that was asked for is what it is, once. */
		for (i = 0; i < 2; i++) {
			clients[i] = make("e0", AF_INET, SOCK_STREAM, 0);
			CHECK(!setsockopt(clients[i], SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)));
			CHECK(!bind(clients[i], (void *)&bound, sizeof(struct sockaddr_in)));
			CHECK(dial(clients[i], AF_INET, address[way], PORT) ==
			      (i ? EADDRNOTAVAIL : 0));
		}
		servers[0] = accepted(listener, NULL);
		CHECK(name(servers[0], true).port == 5555);
		CHECK(name(clients[1], false).port == 5555);
		close(servers[0]);
		close(clients[0]);
		close(clients[1]);
		close(listener);
	}
	end();
}

static void hex(const void *data, size_t size)
{
	const unsigned char *bytes = data;

	while (size--)
		printf("%02x", *bytes++);
}

/* SYNs as they came over the cable, for wire_reference.py. */
static void print_syns(int fd, int wanted)
{
	unsigned char packet[2048];

	while (wanted) {
		struct pollfd ready = { .fd = fd, .events = POLLIN };
		const struct iphdr *ip = (const void *)packet;
		const struct tcphdr *tcp;
		ssize_t size;

		CHECK(poll(&ready, 1, PATIENCE * 1000) == 1);
		size = recv(fd, packet, sizeof(packet), 0);
		tcp = (const void *)(packet + ip->ihl * 4);
		if (size < 40 || !tcp->syn || tcp->ack)
			continue;
		printf("syn ");
		hex(&ip->saddr, 4);
		printf(" ");
		hex(&ip->daddr, 4);
		printf(" %u %u ", ntohs(tcp->source), ntohl(tcp->seq));
		hex(tcp + 1, tcp->doff * 4u - sizeof(*tcp));
		printf("\n");
		wanted--;
	}
}

static unsigned short checksum(const void *data, size_t size, unsigned int sum)
{
	const unsigned short *words = data;

	for (; size > 1; size -= 2)
		sum += *words++;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (unsigned short)~sum;
}

static struct sockaddr_ll cable = {
	.sll_family = AF_PACKET,
	.sll_protocol = __constant_htons(ETH_P_IP),
	.sll_halen = 6,
	.sll_addr = { 2, 0, 0, 0, 0, 2 },
};

/* A segment of a client that is no kernel's. */
static void segment(int fd, __u16 source, __u32 seq, __u32 ack, const void *options, size_t size)
{
	const size_t length = sizeof(struct tcphdr) + size;
	struct {
		struct iphdr ip;
		struct tcphdr tcp;
		unsigned char options[40];
	} packet = {
		.ip = {
			.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP,
			.tot_len = htons((unsigned short)(sizeof(struct iphdr) + length)),
		},
		.tcp = {
			.source = htons(source), .dest = htons(WIRE_PORT), .seq = htonl(seq),
			.ack_seq = htonl(ack), .syn = !ack, .ack = !!ack, .window = htons(1000),
		},
	};
	unsigned short pseudo[2] = { htons(IPPROTO_TCP), htons((unsigned short)length) };

	inet_pton(AF_INET, hosts[0], &packet.ip.saddr);
	inet_pton(AF_INET, hosts[1], &packet.ip.daddr);
	packet.ip.check = checksum(&packet.ip, sizeof(packet.ip), 0);
	packet.tcp.doff = (length / 4) & 15;
	memcpy(packet.options, options, size);
	packet.tcp.check = checksum(&packet.ip.saddr, 8 + length,
				    (unsigned int)pseudo[0] + pseudo[1]);
	CHECK(sendto(fd, &packet, sizeof(packet.ip) + length, 0, (void *)&cable, sizeof(cable)) > 0);
}

/* The segment that answers: its number, or 0 for a reset. */
static __u32 answer(int fd, __u16 port)
{
	unsigned char packet[2048];

	for (;;) {
		struct pollfd ready = { .fd = fd, .events = POLLIN };
		const struct iphdr *ip = (const void *)packet;
		const struct tcphdr *tcp;

		CHECK(poll(&ready, 1, PATIENCE * 1000) == 1);
		if (recv(fd, packet, sizeof(packet), 0) < 40)
			continue;
		tcp = (const void *)(packet + ip->ihl * 4);
		if (ip->protocol != IPPROTO_TCP || ntohs(tcp->dest) != port)
			continue;
		if (tcp->rst)
			return 0;
		if (tcp->syn && tcp->ack)
			return ntohl(tcp->seq);
	}
}

/* Where h0 was there is no kernel any more, which would reset what it does not know. */
static int stranger(void)
{
	int fd;

	run("ip -n h1 neighbour replace %s lladdr 02:00:00:00:00:01 dev cable", hosts[0]);
	run("ip -n h0 address flush dev cable");
	enter("h0");
	cable.sll_ifindex = (int)if_nametoindex("cable");
	enter(NULL);
	fd = make("h0", AF_PACKET, SOCK_DGRAM, htons(ETH_P_IP));
	CHECK(!bind(fd, (void *)&cable, sizeof(cable)));
	return fd;
}

/*
 * The option, byte by byte. What the module sends is printed; what it reads comes from
 * /vectors, a line each: source port, sequence number, options, and the port of the
 * client as it is to be seen, or 0 if it is to be refused.
 */
static void trial_vectors(int count)
{
	int sniff = make("h1", AF_INET, SOCK_RAW, IPPROTO_TCP), listener, raw, i, clients[4];
	FILE *vectors = fopen("/vectors", "r");
	unsigned int source, sequence, seen;
	char text[128];

	CHECK(vectors);
	run("ip netns exec h0 sh -c 'echo 40000 40001 > /proc/sys/net/ipv4/ip_local_port_range'");
	begin();
	listener = listener_at("e1", AF_INET, 0, PORT);
	for (i = 0; i < 4; i++) {
		clients[i] = client_of("e0", AF_INET, "10.9.0.2");
		printf("name %d\n", name(clients[i], false).port);
		close(accepted(listener, NULL));
	}
	print_syns(sniff, 4);
	CHECK(!teardown(0, true));
	raw = stranger();
	while (fscanf(vectors, "%u %u %127s %u", &source, &sequence, text, &seen) == 4) {
		unsigned char options[40] = {};
		size_t size = strlen(text) / 2, at;
		__u32 theirs;

		for (at = 0; at < size; at++)
			CHECK(sscanf(text + 2 * at, "%2hhx", &options[at]) == 1);
		segment(raw, (__u16)source, sequence, 0, options, size);
		theirs = answer(raw, (__u16)source);
		if (!seen) {
			CHECK(!theirs);
			count++;
			continue;
		}
		CHECK(theirs);
		segment(raw, (__u16)source, sequence + 1, theirs + 1, "", 0);
		{
			struct name from;
			int server = accepted(listener, &from);

			CHECK(is(&from, "10.9.0.1", (int)seen));
			close(server);
		}
		count++;
	}
	printf("%d vectors\n", count);
	CHECK(!teardown(1, true));
	unload();
}

/* Fast Open, MPTCP and io_uring */

static void trial_fastopen(int count)
{
	struct sockaddr_storage to = sockaddr(AF_INET, "10.9.0.2", PORT);
	int listener, client, server, i, backlog = 16, one = 1;
	char text[8];
	const char *const all[] = { "h0", "h1", "e0", "e1" };

	for (i = 0; i < 4; i++)
		run("ip netns exec %s sh -c 'echo 3 > /proc/sys/net/ipv4/tcp_fastopen'", all[i]);
	begin();
	listener = listener_at("e1", AF_INET, 0, PORT);
	CHECK(!setsockopt(listener, IPPROTO_TCP, TCP_FASTOPEN, &backlog, sizeof(backlog)));
	for (i = 0; i < 4; i++) {
		client = make("e0", AF_INET, SOCK_STREAM, 0);
		if (i % 2) {
			CHECK(!setsockopt(client, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &one, sizeof(one)));
			CHECK(!dial(client, AF_INET, "10.9.0.2", PORT));
			CHECK(write(client, "first", 5) == 5);
		} else {
			CHECK(sendto(client, "first", 5, MSG_FASTOPEN, (void *)&to,
				     sizeof(struct sockaddr_in)) == 5);
		}
		server = accepted(listener, NULL);
		CHECK(recv(server, text, 5, MSG_WAITALL) == 5 && !memcmp(text, "first", 5));
		agree(client, "10.9.0.1", server, "10.9.0.2");
		close(client);
		close(server);
	}
	close(listener);
	end();
}

static void trial_mptcp(int count)
{
	const int families[] = { AF_INET, AF_INET6 };
	int i, listener, client, server;

	begin();
	for (i = 0; i < 4; i++) {
		listener = listener_at("e1", families[i & 1], i & 2 ? IPPROTO_MPTCP : 0, PORT);
		client = make("e0", families[i & 1], SOCK_STREAM, IPPROTO_MPTCP);
		CHECK(!dial(client, families[i & 1], "10.9.0.2", PORT));
		server = accepted(listener, NULL);
		agree(client, "10.9.0.1", server, "10.9.0.2");
		close(client);
		close(server);
		close(listener);
	}
	end();
}

struct ring {
	int fd;
	struct io_uring_params params;
	char *submission, *completion;
	struct io_uring_sqe *entries;
};

static struct ring ring_make(void)
{
	struct ring ring = {};

	ring.fd = (int)syscall(SYS_io_uring_setup, 4, &ring.params);
	CHECK(ring.fd >= 0);
	ring.submission = mmap(NULL, ring.params.sq_off.array + ring.params.sq_entries * 4,
			       PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
	ring.completion = mmap(NULL, ring.params.cq_off.cqes +
			       ring.params.cq_entries * sizeof(struct io_uring_cqe),
			       PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_CQ_RING);
	ring.entries = mmap(NULL, ring.params.sq_entries * sizeof(struct io_uring_sqe),
			    PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQES);
	CHECK(ring.submission != MAP_FAILED && ring.completion != MAP_FAILED &&
	      ring.entries != MAP_FAILED);
	return ring;
}

/* One operation, and what comes of it. */
static int ring_do(struct ring *ring, struct io_uring_sqe entry)
{
	unsigned int *tail = (void *)(ring->submission + ring->params.sq_off.tail);
	unsigned int *array = (void *)(ring->submission + ring->params.sq_off.array);
	unsigned int *head = (void *)(ring->completion + ring->params.cq_off.head);
	struct io_uring_cqe *results = (void *)(ring->completion + ring->params.cq_off.cqes);
	unsigned int at = *tail & (ring->params.sq_entries - 1);
	int result;

	ring->entries[at] = entry;
	array[at] = at;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	CHECK(syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1);
	result = results[*head & (ring->params.cq_entries - 1)].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

/* By the caller itself, and by a worker of the kernel's (IOSQE_ASYNC). */
static void trial_io_uring(int count)
{
	struct ring ring = ring_make();
	struct sockaddr_storage to = sockaddr(AF_INET, "10.9.0.2", PORT), from;
	socklen_t length;
	int async, listener, client, server;

	begin();
	listener = listener_at("e1", AF_INET, 0, PORT);
	for (async = 0; async < 2; async++) {
		const unsigned char flags = async ? IOSQE_ASYNC : 0;

		client = make("e0", AF_INET, SOCK_STREAM, 0);
		CHECK(!ring_do(&ring, (struct io_uring_sqe){
			.opcode = IORING_OP_CONNECT, .flags = flags, .fd = client,
			.addr = (unsigned long)&to, .off = sizeof(struct sockaddr_in) }));
		length = sizeof(from);
		server = ring_do(&ring, (struct io_uring_sqe){
			.opcode = IORING_OP_ACCEPT, .flags = flags, .fd = listener,
			.addr = (unsigned long)&from, .addr2 = (unsigned long)&length });
		CHECK(server >= 0);
		{
			struct name seen = name_of(&from);

			CHECK(is(&seen, "10.9.0.1", name(client, false).port));
		}
		agree(client, "10.9.0.1", server, "10.9.0.2");
		close(client);
		close(server);
	}
	close(listener);
	close(ring.fd);
	end();
}

/*
 * A caller in the kernel: with a socket of the process that asks it is carried as that
 * process would be. One of the kernel's own stays where it is: e0 has no way out there.
 */
static void trial_kernel(int count)
{
	struct name from;
	char text[6] = {};
	int listener, server, fd = open("/caller.ko", O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0);
	begin();
	listener = listener_at("e1", AF_INET, 0, PORT);
	enter("e0");
	CHECK(syscall(SYS_finit_module, fd, "", 0) && errno == ECANCELED);
	CHECK(syscall(SYS_finit_module, fd, "kernel=1", 0) && errno == ENETUNREACH);
	enter(NULL);
	close(fd);
	server = accepted(listener, &from);
	CHECK(is(&from, "10.9.0.1", 0));
	CHECK(recv(server, text, 5, MSG_WAITALL) == 5 && !strcmp(text, "hello"));
	CHECK(!read(server, text, 1));
	close(server);
	close(listener);
	end();
}

/*
 * Replays /oracle, requests for a data path and questions to it, and writes what is
 * answered to the disk (oracle.py).
 */
static void trial_oracle(int count)
{
	FILE *script = fopen("/oracle", "r"), *disk;
	struct link link = {};
	static struct { struct nlmsghdr head; char rest[1 << 17]; } message;
	struct slim_question answer;
	int asked = 0;
	__u32 wanted;

	CHECK(script && fread(&wanted, sizeof(wanted), 1, script) == 1);
	AWAIT((disk = fopen("/dev/vda", "w")));
	load();
	link.fd = make("h0", AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);
	link.family = family_of(&link);
	while (fread(&message.head, sizeof(message.head), 1, script) == 1) {
		size_t left = NLMSG_ALIGN(message.head.nlmsg_len) - sizeof(message.head);
		const struct genlmsghdr *genl = (void *)message.rest;

		CHECK(left < sizeof(message.rest) && fread(message.rest, left, 1, script) == 1);
		message.head.nlmsg_type = (unsigned short)link.family;
		message.head.nlmsg_seq = ++link.seq;
		errno = talk(&link, (void *)&message, SLIM_ATTR_QUESTION, &answer, sizeof(answer),
			     NULL);
		CHECK(!errno);
		if (genl->cmd != SLIM_CMD_ASK)
			continue;
		CHECK(fwrite(&answer, sizeof(answer), 1, disk) == 1);
		asked++;
	}
	CHECK(feof(script) && asked == (int)wanted);
	CHECK(!fflush(disk) && !fsync(fileno(disk)));
	printf("%d questions\n", asked);
	fclose(disk);
	close(link.fd);
	run("ip netns delete h0");
	unload();
}

/* Ends of all kinds */

static int state_of(int fd)
{
	struct tcp_info info;
	socklen_t length = sizeof(info);

	CHECK(!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length));
	return info.tcpi_state;
}

/* A pair, one end of it in a state. It is what a process has that is killed. */
static void into(int state)
{
	int listener = listener_at("e1", AF_INET, 0, PORT), client, server;
	char byte;

	if (state == TCP_LISTEN)
		return;
	if (state == TCP_CLOSE) {
		struct sockaddr_storage own = sockaddr(AF_INET, "10.9.0.1", 7777);

		client = make("e0", AF_INET, SOCK_STREAM, 0);
		CHECK(!bind(client, (void *)&own, sizeof(struct sockaddr_in)));
		return;
	}
	if (state == TCP_SYN_SENT) {
		enter("e0");
		client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		enter(NULL);
		CHECK(dial(client, AF_INET, NOBODY, PORT) == EINPROGRESS);
		CHECK(state_of(client) == TCP_SYN_SENT);
		return;
	}
	client = client_of("e0", AF_INET, "10.9.0.2");
	server = accepted(listener, NULL);
	speak(client, server);
	switch (state) {
	case TCP_ESTABLISHED:
		return;
	case TCP_SYN_RECV:	/* not accepted: it waits in the queue */
		client = client_of("e0", AF_INET, "10.9.0.2");
		return;
	case TCP_FIN_WAIT1:
		run("ip -n h0 link set cable down");
		shutdown(client, SHUT_WR);
		break;
	case TCP_FIN_WAIT2:
		shutdown(client, SHUT_WR);
		AWAIT(state_of(client) == state);
		return;
	case TCP_CLOSE_WAIT:
		shutdown(server, SHUT_WR);
		AWAIT(state_of(client) == state);
		return;
	case TCP_LAST_ACK:
		shutdown(server, SHUT_WR);
		AWAIT(state_of(client) == TCP_CLOSE_WAIT);
		run("ip -n h0 link set cable down");
		shutdown(client, SHUT_WR);
		break;
	case TCP_CLOSING:
		run("ip -n h0 link set cable down");
		shutdown(client, SHUT_WR);
		shutdown(server, SHUT_WR);
		CHECK(state_of(client) == TCP_FIN_WAIT1 && state_of(server) == TCP_FIN_WAIT1);
		return;
	case TCP_TIME_WAIT:
		shutdown(client, SHUT_WR);
		CHECK(!read(server, &byte, 1));
		close(server);
		CHECK(!read(client, &byte, 1));
		return;
	}
	CHECK(state_of(client) == state);
}

/* Kills a process that has it; `unplugged`: nothing that it sends on the way out arrives. */
static void killed_in(int state, bool unplugged)
{
	int pid, status, ready[2];
	char byte;

	CHECK(!pipe(ready));
	pid = fork();
	if (!pid) {
		into(state);
		if (unplugged)
			run("ip -n h0 link set cable down");
		CHECK(write(ready[1], "", 1) == 1);
		pause();
	}
	close(ready[1]);
	CHECK(read(ready[0], &byte, 1) == 1);
	close(ready[0]);
	CHECK(!kill(pid, SIGKILL) && waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
}

static void trial_killed(int count)
{
	int state;

	begin();
	for (state = TCP_ESTABLISHED; state <= TCP_CLOSING; state++) {
		killed_in(state, false);
		run("ip -n h0 link set cable up");
		run("ip -n h0 neighbour replace %s lladdr 02:00:00:00:00:09 dev cable", hosts[2]);
		AWAIT(!sockets(0) && !sockets(1));
		AWAIT(!in_use("e0") && !in_use("e1") && !in_use("h0") && !in_use("h1"));
	}
	/* What is left of it all stands in nobody's way. */
	{
		int listener = listener_at("e1", AF_INET, 0, PORT);
		int client = client_of("e0", AF_INET, "10.9.0.2"), server = accepted(listener, NULL);

		agree(client, "10.9.0.1", server, "10.9.0.2");
		close(client);
		close(server);
		close(listener);
	}
	AWAIT(!sockets(0) && !sockets(1));
	CHECK(teardown(0, false) == EBUSY);	/* endpoints are attached */
	end();
}

static bool is_there(const char *link)
{
	char command[128];

	snprintf(command, sizeof(command), "ip -n h0 link show %s >/dev/null 2>&1", link);
	return !system(command);
}

static int attached(int host)
{
	struct request request = ask(&links[host], SLIM_CMD_ENDPOINTS, NLM_F_DUMP);
	int count = 0;

	CHECK(!talk(&links[host], &request, 0, NULL, 0, &count));
	return count;
}

/*
 * The namespace of an endpoint is deleted while its connections live: they go on, and
 * with the last of them it is gone, with all that was in it, and detached.
 */
static void trial_deleted(int count)
{
	int listener, client, server, own;

	run("ip -n e0 link add inside type veth peer name witness netns h0");
	begin();
	listener = listener_at("e1", AF_INET, 0, PORT);
	own = listener_at("e0", AF_INET, 0, PORT);
	client = client_of("e0", AF_INET, "10.9.0.2");
	server = accepted(listener, NULL);
	run("ip netns delete e0");
	agree(client, "10.9.0.1", server, "10.9.0.2");
	CHECK(attached(0) == 2 && is_there("witness"));
	close(own);
	close(client);
	AWAIT(!is_there("witness"));
	AWAIT(attached(0) == 1);
	CHECK(!read(server, &own, 1));
	/* And of a host, whose connections hold it. */
	close(server);
	close(listener);
	listener = listener_at("e2", AF_INET, 0, PORT);
	client = client_of("e1", AF_INET, "10.9.0.3");
	server = accepted(listener, NULL);
	run("ip netns delete h0");
	agree(client, "10.9.0.2", server, "10.9.0.3");
	close(client);
	close(server);
	close(listener);
	close(links[0].fd);
	CHECK(!teardown(1, true));
	/* The last reference to the module was the host's that went with its namespace. */
	unload();
}

/*
 * Hosts end by force while connections that nobody has any more are in every state:
 * these are over at once, and nothing of them is left to whoever unloads the module.
 */
static void trial_forced(int count)
{
	int state;

	run("ip -n e0 link add inside type veth peer name witness netns h0");
	load();
	for (state = TCP_ESTABLISHED; state <= TCP_CLOSING; state++) {
		start(0);
		start(1);
		killed_in(state, true);
		CHECK(!teardown(0, true) && !teardown(1, true));
		AWAIT(!in_use("e0") && !in_use("e1") && !in_use("h0") && !in_use("h1"));
		run("ip -n h0 link set cable up");
		run("ip -n h0 neighbour replace %s lladdr 02:00:00:00:00:09 dev cable", hosts[2]);
	}
	unload();
	run("ip netns delete e0");
	AWAIT(!is_there("witness"));
	run("ip netns add e0");
}

/* Endpoints come and go by the hundred, all at once and one by one. */
static void trial_endpoints(int count)
{
	int *places = calloc((size_t)count, sizeof(*places)), i;
	struct rlimit many = { (rlim_t)count + 64, (rlim_t)count + 64 };
	char address[32];

	CHECK(!setrlimit(RLIMIT_NOFILE, &many));
	begin();
	for (i = 0; i < count; i++) {
		CHECK(!unshare(CLONE_NEWNET));
		places[i] = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
		CHECK(places[i] >= 0);
		enter(NULL);
		snprintf(address, sizeof(address), "10.9.%d.%d", 1 + i / 250, 1 + i % 250);
		CHECK(!attach(0, places[i], 1000u + (__u32)i, address));
	}
	CHECK(attached(0) == count + 2);
	/* Half are detached, half go with their namespaces. */
	for (i = 0; i < count; i++) {
		if (i % 2)
			CHECK(!detach(0, 1000u + (__u32)i));
		close(places[i]);
	}
	AWAIT(attached(0) == 2);
	i = make("h0", AF_INET, SOCK_STREAM, 0);
	close(i);
	for (i = 0; i < count; i++) {
		int fd = place("e0");

		CHECK(!detach(0, 11) && !attach(0, fd, 11, "10.9.0.1"));
		close(fd);
	}
	end();
}

/* Load and unload under traffic */

static volatile unsigned long *carried;

/* Connects, speaks and closes, and goes on whatever becomes of it. */
static void traffic(const char *caller, const char *address)
{
	const struct timeval soon = { .tv_sec = 1 };
	char byte = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	enter(caller);
	for (;;) {
		struct sockaddr_storage to = sockaddr(AF_INET, address, PORT), own;
		socklen_t length = sizeof(own);
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof(soon));
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof(soon));
		if (!connect(fd, (void *)&to, sizeof(struct sockaddr_in)) &&
		    !getsockname(fd, (void *)&own, &length) && write(fd, &byte, 1) == 1 &&
		    read(fd, &byte, 1) == 1)
			__atomic_add_fetch(carried, 1, __ATOMIC_RELAXED);
		close(fd);
		/* Some hundred connections a second are enough, and leave time for the rest. */
		usleep(10000);
	}
}

static void service(const char *called)
{
	int listener = -1;
	char byte;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		struct pollfd ready = { .events = POLLIN };
		int fd;

		if (listener < 0)
			listener = listener_at(called, AF_INET, 0, PORT);
		ready.fd = listener;
		if (poll(&ready, 1, 200) == 1) {
			fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
			if (fd >= 0) {
				struct pollfd come = { .fd = fd, .events = POLLIN };

				poll(&come, 1, 200);
				if (read(fd, &byte, 1) == 1 && write(fd, &byte, 1) != 1)
					usleep(1);
				close(fd);
				continue;
			}
		}
		/* Closed by a teardown, or never moved: a new one may be. */
		close(listener);
		listener = -1;
	}
}

static void trial_loads(int count)
{
	static const char *const calls[][3] = {
		{ "e0", "10.9.0.2", "e1" }, { "e1", "10.9.0.3", "e2" }, { "e2", "10.9.0.1", "e0" },
	};
	int children[6], i;

	carried = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(carried != MAP_FAILED);
	for (i = 0; i < 6; i++) {
		children[i] = fork();
		if (!children[i]) {
			if (i % 2)
				service(calls[i / 2][2]);
			traffic(calls[i / 2][0], calls[i / 2][1]);
		}
	}
	for (i = 0; i < count; i++) {
		unsigned long before;

		begin();
		before = *carried;
		AWAIT(*carried > before + 3);
		CHECK(!teardown(0, true));
		CHECK(!teardown(1, true));
		unload();
		if (i % 10 == 9)
			printf("%d times, %lu connections\n", i + 1, *carried);
	}
	for (i = 0; i < 6; i++) {
		kill(children[i], SIGKILL);
		waitpid(children[i], NULL, 0);
	}
	AWAIT(!in_use("h0") && !in_use("h1") && !in_use("e0") && !in_use("e1") && !in_use("e2"));
}

/*
 * Speed beside the host's own and a classic overlay's, one after the other in each round. The
 * machine is emulated, so only the ratios say something; it has one processor, which both ends
 * keep busy, so that a time is a processor's time too.
 */

#define MESSAGE 128
#define BULK (1 << 16)

static const struct way {
	const char *name, *caller, *called, *address;
} ways[] = {
	{ "host", "h0", "h1", "198.18.0.2" },
	{ "vxlan", "v0", "v1", "10.8.1.2" },
	{ "kmod", "e0", "e1", "10.9.0.2" },
};

/* As the fallback overlay has it: a veth(4) and a route, VXLAN between the hosts. */
static void build_vxlan(void)
{
	int i;

	for (i = 0; i < 2; i++) {
		run("ip netns add v%d", i);
		run("ip -n h%d link add vx type vxlan id 7 dstport 8472 dev cable local %s remote %s",
		    i, hosts[i], hosts[!i]);
		run("ip -n h%d address add 10.8.0.%d/24 dev vx && ip -n h%d link set vx up", i, i + 1, i);
		run("ip -n h%d link add vv type veth peer name eth0 netns v%d", i, i);
		run("ip -n h%d address add 169.254.0.1/32 dev vv && ip -n h%d link set vv up", i, i);
		run("ip -n v%d link set eth0 mtu 1450 up && ip -n v%d address add 10.8.1.%d/32 dev eth0",
		    i, i, i + 1);
		run("ip -n v%d route add 169.254.0.1 dev eth0 &&"
		    " ip -n v%d route add default via 169.254.0.1", i, i);
		run("ip -n h%d route add 10.8.1.%d dev vv && ip -n h%d route add 10.8.1.%d via 10.8.0.%d",
		    i, i + 1, i, 2 - i, 2 - i);
		run("ip netns exec h%d sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'", i);
	}
}

static void whole(int fd, void *data, size_t size, bool out)
{
	size_t done = 0;

	while (done < size) {
		ssize_t some = out ? write(fd, (char *)data + done, size - done) :
				     read(fd, (char *)data + done, size - done);

		CHECK(some > 0);
		done += (size_t)some;
	}
}

/* For ever: gives back messages, or takes in so many bytes and says that it has them. */
static void serve(const char *called)
{
	static char bytes[BULK];
	int listener = listener_at(called, AF_INET, 0, PORT);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		__u32 left = 0;

		CHECK(fd >= 0);
		if (read(fd, &left, sizeof(left)) == sizeof(left)) {
			for (; left; left--) {
				whole(fd, bytes, BULK, false);
				if (left == 1)
					whole(fd, bytes, 1, true);
			}
			while (read(fd, bytes, MESSAGE) == MESSAGE)
				whole(fd, bytes, MESSAGE, true);
		}
		close(fd);
	}
}

static double seconds(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/*
 * In microseconds each: a connect(2), a request with its response, 64 KiB one way. In a machine
 * that takes a nanosecond for each instruction: in thousands of them, of both ends.
 */
static void measure(const struct way *way, int count)
{
	const struct linger now = { .l_onoff = 1 };
	struct sockaddr_storage to = sockaddr(AF_INET, way->address, PORT);
	static char bytes[BULK];
	double before, connects = 0;
	__u32 bulks = (__u32)count;
	int i, fd;

	enter(way->caller);
	for (i = 0; i < count; i++) {
		fd = socket(AF_INET, SOCK_STREAM, 0);
		before = seconds();
		CHECK(fd >= 0 && !connect(fd, (void *)&to, sizeof(struct sockaddr_in)));
		connects += seconds() - before;
		CHECK(!setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)));
		close(fd);
	}
	printf("speed connect %s %.3f\n", way->name, connects * 1e6 / count);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(fd >= 0 && !connect(fd, (void *)&to, sizeof(struct sockaddr_in)));
	whole(fd, &bulks, sizeof(bulks), true);
	before = seconds();
	for (i = 0; i < count; i++)
		whole(fd, bytes, BULK, true);
	whole(fd, bytes, 1, false);
	printf("speed bulk %s %.3f\n", way->name, (seconds() - before) * 1e6 / count);
	before = seconds();
	for (i = 0; i < count; i++) {
		whole(fd, bytes, MESSAGE, true);
		whole(fd, bytes, MESSAGE, false);
	}
	printf("speed request %s %.3f\n", way->name, (seconds() - before) * 1e6 / count);
	close(fd);
	enter(NULL);
}

static void trial_speed(int rounds)
{
	const size_t every = sizeof(ways) / sizeof(ways[0]);
	int children[sizeof(ways) / sizeof(ways[0])], round;
	size_t i;

	build_vxlan();
	begin();
	for (i = 0; i < every; i++) {
		children[i] = fork();
		if (!children[i])
			serve(ways[i].called);
	}
	sleep(2);
	for (round = 0; round < rounds; round++)
		for (i = 0; i < every; i++)
			measure(&ways[(i + (size_t)round) % every], 500);
	for (i = 0; i < every; i++) {
		kill(children[i], SIGKILL);
		waitpid(children[i], NULL, 0);
	}
	end();
}

static const struct {
	const char *name;
	void (*run)(int count);
} trials[] = {
	{ "names", trial_names },
	{ "alias", trial_alias },
	{ "vectors", trial_vectors },
	{ "fastopen", trial_fastopen },
	{ "mptcp", trial_mptcp },
	{ "io_uring", trial_io_uring },
	{ "kernel", trial_kernel },
	{ "oracle", trial_oracle },
	{ "killed", trial_killed },
	{ "deleted", trial_deleted },
	{ "forced", trial_forced },
	{ "endpoints", trial_endpoints },
	{ "loads", trial_loads },
	{ "speed", trial_speed },
};

int main(int argc, char **argv)
{
	size_t i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	if (argc < 3)
		return 2;
	file = argv[1];
	home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	for (i = 0; i < sizeof(trials) / sizeof(trials[0]); i++) {
		if (strcmp(trials[i].name, argv[2]))
			continue;
		/* What a trial that failed left. */
		run("ip --all netns delete; n=0; while grep -q '^slimnet ' /proc/modules &&"
		    " ! rmmod slimnet 2>/dev/null && [ $n -lt 60 ]; do n=$((n + 1)); sleep 1; done");
		build();
		trials[i].run(argc > 3 ? atoi(argv[3]) : 0);
		run("ip --all netns delete");
		return 0;
	}
	return 2;
}
