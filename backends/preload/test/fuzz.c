// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What comes into a router from outside, under libFuzzer: -DFUZZ_shim (a process's
 * requests), -DFUZZ_announce (another host's bytes, with and without the right tags) or
 * -DFUZZ_tables (the agent's file). It is built with all of the router but main.c.
 */
#include <arpa/inet.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <slimnet/address.h>

#include <preload/rights.h>

#include "diag.h"
#include "fuzzing.h"
#include "loop.h"
#include "own.h"
#include "router.h"

void say(const char *format, ...)
{
	(void)format;
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Two endpoints here, one on another host. */
static struct {
	struct slim_file_header header;
	struct {
		__u32 id;
		struct slim_endpoint endpoint;
	} endpoints[3];
	__u32 pad;
	struct {
		struct slim_address_key key;
		__u32 id;
	} addresses[3];
	struct {
		__be32 host[4];
		struct slim_file_host where;
	} hosts[1];
} world;

static void section(int table, const void *rows, uint32_t count, size_t key, size_t value)
{
	world.header.sections[table] = (struct slim_file_section){
		.offset = rows ? (uint64_t)((const char *)rows - (const char *)&world) : 0,
		.count = count,
		.key_size = (__u16)key,
		.value_size = (__u16)value,
	};
}

static void make_world(void)
{
	uint32_t index;

	world.header.magic = SLIM_FILE_MAGIC;
	world.header.abi = SLIM_ABI_VERSION;
	world.header.generation = 1;
	world.header.size = sizeof(world);
	for (index = 0; index < 3; index++) {
		const uint32_t id = index + 1;

		world.endpoints[index].id = id;
		slim_map_v4(world.endpoints[index].endpoint.address, htonl(0x0a010000 + id));
		slim_map_v4(world.endpoints[index].endpoint.host,
			    htonl(index < 2 ? 0x7f000001 : 0x7f000002));
		world.endpoints[index].endpoint.vni = 7;
		world.endpoints[index].endpoint.identity = 256 + id;
		world.endpoints[index].endpoint.flags =
			index < 2 ? SLIM_ENDPOINT_LOCAL : SLIM_ENDPOINT_WIRE_ANNOUNCE;
		world.addresses[index].key.vni = 7;
		slim_copy(world.addresses[index].key.address,
			  world.endpoints[index].endpoint.address);
		world.addresses[index].id = id;
	}
	slim_map_v4(world.hosts[0].host, htonl(0x7f000002));
	slim_map_v4(world.hosts[0].where.control, htonl(0x7f000002));
	world.hosts[0].where.port = htons(9);
	section(SLIM_FILE_ADDRESSES, world.addresses, 3, sizeof(struct slim_address_key), 4);
	section(SLIM_FILE_ENDPOINTS, world.endpoints, 3, 4, sizeof(struct slim_endpoint));
	section(SLIM_FILE_CIDRS, NULL, 0, sizeof(struct slim_cidr_key), sizeof(struct slim_cidr));
	section(SLIM_FILE_POLICY, NULL, 0, sizeof(struct slim_policy_key),
		sizeof(struct slim_policy));
	section(SLIM_FILE_SERVICES, NULL, 0, sizeof(struct slim_service_key),
		sizeof(struct slim_service));
	section(SLIM_FILE_PUBLISHED, NULL, 0, sizeof(struct slim_publish_key),
		sizeof(struct slim_publish));
	section(SLIM_FILE_HOSTS, world.hosts, 1, 16, sizeof(struct slim_file_host));
}

/* Once: a router without main(). */
static void __attribute__((unused)) start(void)
{
	char path[] = "/tmp/slimnet-fuzz-XXXXXX", text[256];
	struct state_endpoint record = { .id = 1, .vni = 7, .uid = ~0u };
	__be32 host[4];
	int file;

	if (tables)
		return;
	make_world();
	slim_map_v4(host, htonl(0x7f000001));
	own_set(host);
	file = mkstemp(path);
	if (file < 0 || loop_start() || diag_open() || state_open(path, host))
		abort();
	close(file);
	unlink(path);
	tables = tables_read(&world, sizeof(world), 0, text, sizeof(text));
	if (!tables) {
		fprintf(stderr, "%s\n", text);
		abort();
	}
	slim_map_v4(record.address, htonl(0x0a010001));
	snprintf(record.path, sizeof(record.path), "/tmp/slimnet-fuzz-%d", getpid());
	if (endpoint_open(&record))
		abort();
	unlink(record.path);
	port_new(1, htons(80), htons(20000));
}

#ifdef FUZZ_tables
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	char text[256];
	struct tables *found;
	uint8_t *copy;
	size_t at;

	if (!world.header.magic)
		make_world();
	/* The world, and what the fuzzer changes in it: pairs of place and value. */
	copy = malloc(sizeof(world));
	memcpy(copy, &world, sizeof(world));
	for (at = 0; at + 3 <= size; at += 3)
		copy[(bytes[at] | bytes[at + 1] << 8) % sizeof(world)] = bytes[at + 2];
	found = tables_read(copy, sizeof(world), 0, text, sizeof(text));
	if (found) {
		struct slim_question question = { .vni = 7, .direction = SLIM_EGRESS };
		struct answer answer;

		slim_map_v4(question.source, htonl(0x0a010001));
		slim_map_v4(question.destination, htonl(0x0a010003));
		question.protocol = 6;
		tables_ask(found, &question);
		tables_admit(found, 1, 2, 80, &answer);
	}
	tables_close(found);
	found = tables_read(bytes, size, 0, text, sizeof(text));
	tables_close(found);
	free(copy);
	return 0;
}
#endif

#ifdef FUZZ_shim
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	const size_t each = sizeof(struct slim_shim_request);
	int pair[2], peers[64], count = 0;

	start();
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair))
		abort();
	fuzz_process(pair[1]);
	while (size) {
		union slim_rights rights;
		struct slim_shim_request request;
		struct iovec part = { &request, sizeof(request) };
		struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
		const int plug = size & 1;
		char answer[128];
		size_t take = size < each ? size : each;

		memset(&request, 0, sizeof(request));
		memcpy(&request, bytes, take);
		if (request.version % 8)
			request.version = SLIM_SHIM_VERSION;
		if (request.call % 8)
			request.call %= 8;
		/* Addresses that there are, most of the time. */
		if (request.flags & 256)
			slim_map_v4(request.peer.address, htonl(0x0a010000 + (request.flags >> 9) % 4));
		if (plug && count < 64) {
			int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

			peers[count++] = fd;
			slim_rights_give(&message, &rights, fd);
		}
		if (sendmsg(pair[0], &message, MSG_NOSIGNAL) < 0)
			break;
		if (!fuzz_turn())
			break;
		while (recv(pair[0], answer, sizeof(answer), MSG_DONTWAIT) > 0)
			;
		bytes += take;
		size -= take;
	}
	close(pair[0]);
	fuzz_end();
	while (count)
		close(peers[--count]);
	return 0;
}
#endif

#ifdef FUZZ_announce
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	int pair[2];
	char answer[4096];
	__be32 host[4];

	start();
	slim_map_v4(host, htonl(0x7f000002));
	if (!size || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair))
		return 0;
	fuzz_link(pair[1], bytes[0] & 1, bytes[0] & 2, host, bytes + 1, size - 1);
	while (recv(pair[0], answer, sizeof(answer), MSG_DONTWAIT) > 0)
		;
	close(pair[0]);
	return 0;
}
#endif
