// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The mapped tables, an index over them, and what the core looks up in both. */
#include "tables.h"

#include "own.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <slimnet/address.h>

static const struct slim_policy *
slim_policy_lookup(void *env, const struct slim_policy_key *key);
static struct slim_affinity *
slim_affinity_lookup(void *env, const struct slim_affinity_key *key);
static void slim_affinity_store(void *env, const struct slim_affinity_key *key,
				const struct slim_affinity *value);
static __u32 slim_address_lookup(void *env, const struct slim_address_key *key);
static const struct slim_endpoint *slim_endpoint_lookup(void *env, __u32 id);
static const struct slim_service *slim_service_lookup(void *env,
						      const struct slim_service_key *key);
static const struct slim_cidr *slim_cidr_lookup(void *env, __u32 vni, const __be32 *address);

#include <slimnet/ask.h>

#define KEY_MAX 24	/* bytes of the longest key */
#define LENGTHS (KEY_MAX * 8 + 1)
#define CLIENTS 4096	/* of services with affinity, remembered */

struct table {
	const unsigned char *rows;
	size_t row_size, key_size, count;
	uint32_t *slots;	/* index of a row + 1; 0: empty */
	size_t mask;		/* number of slots - 1, a power of two */
	/* Of a longest-prefix table: how many rows have a key of so many bits. */
	uint32_t *lengths;
};

struct tables {
	void *bytes;
	size_t size;
	int mapped;
	uint64_t generation;
	struct table table[SLIM_FILE_COUNT];
};

/* What a client of a service with affinity was given, whatever the generation. */
static struct client {
	struct slim_affinity_key key;
	struct slim_affinity value;
} clients[CLIENTS];
static int asking;	/* `explain` asks: nothing is kept */
static const struct slim_cidr broadcast = {
	.identity = SLIM_IDENTITY_WORLD,
	.flags = SLIM_CIDR_BROADCAST,
};

static const struct {
	const char *name;
	uint16_t key_size, value_size;
	int prefix;
} shapes[SLIM_FILE_COUNT] = {
	[SLIM_FILE_ADDRESSES] = { "addresses", sizeof(struct slim_address_key), sizeof(__u32), 0 },
	[SLIM_FILE_ENDPOINTS] = { "endpoints", sizeof(__u32), sizeof(struct slim_endpoint), 0 },
	[SLIM_FILE_CIDRS] = { "cidrs", sizeof(struct slim_cidr_key), sizeof(struct slim_cidr), 1 },
	[SLIM_FILE_POLICY] = { "policy", sizeof(struct slim_policy_key),
			       sizeof(struct slim_policy), 1 },
	[SLIM_FILE_SERVICES] = { "services", sizeof(struct slim_service_key),
				 sizeof(struct slim_service), 0 },
	[SLIM_FILE_PUBLISHED] = { "published", sizeof(struct slim_publish_key),
				  sizeof(struct slim_publish), 0 },
	[SLIM_FILE_HOSTS] = { "hosts", sizeof(__be32[4]), sizeof(struct slim_file_host), 0 },
};

static size_t hash(const unsigned char *key, size_t size)
{
	uint64_t sum = 14695981039346656037u;
	size_t index;

	for (index = 0; index < size; index++)
		sum = (sum ^ key[index]) * 1099511628211u;
	return (size_t)(sum ^ sum >> 32);
}

static const unsigned char *row(const struct table *table, size_t index)
{
	return table->rows + index * table->row_size;
}

/* The slot of a key: its own, or the empty one where it would be. */
static uint32_t *slot(const struct table *table, const void *key)
{
	size_t at = hash(key, table->key_size) & table->mask;

	while (table->slots[at] &&
	       memcmp(row(table, table->slots[at] - 1), key, table->key_size))
		at = (at + 1) & table->mask;
	return &table->slots[at];
}

/* The value of exactly this key, or NULL. */
static const void *find(const struct table *table, const void *key)
{
	uint32_t index = table->count ? *slot(table, key) : 0;

	return index ? row(table, index - 1) + table->key_size : NULL;
}

/* What a longest-prefix key of `length` bits has behind them is not compared. */
static void cut(unsigned char *key, size_t size, uint32_t length)
{
	unsigned char *data = key + sizeof(length);
	size_t whole = length / 8;

	memcpy(key, &length, sizeof(length));
	if (length % 8) {
		data[whole] &= (unsigned char)(0xff << (8 - length % 8));
		whole++;
	}
	memset(data + whole, 0, size - sizeof(length) - whole);
}

static const void *find_prefix(const struct table *table, const void *key, uint32_t length)
{
	unsigned char copy[KEY_MAX];
	int bits;

	if (!table->count)
		return NULL;
	memcpy(copy, key, table->key_size);
	for (bits = (int)length; bits >= 0; bits--) {
		const void *value;

		if (!table->lengths[bits])
			continue;
		cut(copy, table->key_size, (uint32_t)bits);
		value = find(table, copy);
		if (value)
			return value;
	}
	return NULL;
}

static int wrong(char *text, size_t room, const char *format, ...)
{
	va_list values;

	va_start(values, format);
	vsnprintf(text, room, format, values);
	va_end(values);
	errno = EINVAL;
	return -1;
}

static int index_table(struct table *table, int number, char *text, size_t room)
{
	size_t index, slots = 4;

	while (slots < 2 * table->count + 1)
		slots *= 2;
	table->mask = slots - 1;
	table->slots = calloc(slots, sizeof(*table->slots));
	table->lengths = shapes[number].prefix ? calloc(LENGTHS, sizeof(*table->lengths)) : NULL;
	if (!table->slots || (shapes[number].prefix && !table->lengths)) {
		snprintf(text, room, "no memory for the table of %s", shapes[number].name);
		errno = ENOMEM;
		return -1;
	}
	for (index = 0; index < table->count; index++) {
		const unsigned char *key = row(table, index);
		uint32_t *found = slot(table, key);

		if (*found)
			return wrong(text, room, "%s: row %zu has the key of row %u",
				     shapes[number].name, index, *found - 1);
		if (shapes[number].prefix) {
			unsigned char copy[KEY_MAX];
			uint32_t length;

			memcpy(&length, key, sizeof(length));
			if (length > (table->key_size - sizeof(length)) * 8)
				return wrong(text, room, "%s: row %zu: prefix of %u bits",
					     shapes[number].name, index, length);
			memcpy(copy, key, table->key_size);
			cut(copy, table->key_size, length);
			if (memcmp(copy, key, table->key_size))
				return wrong(text, room, "%s: row %zu: bits behind its prefix",
					     shapes[number].name, index);
			table->lengths[length]++;
		}
		*found = (uint32_t)index + 1;
	}
	return 0;
}

static int read_all(struct tables *tables, char *text, size_t room)
{
	const unsigned char *bytes = tables->bytes;
	struct slim_file_header header;
	int number;

	if (tables->size < sizeof(header))
		return wrong(text, room, "tables: %zu bytes are no header", tables->size);
	memcpy(&header, bytes, sizeof(header));
	if (header.magic != SLIM_FILE_MAGIC)
		return wrong(text, room, "tables: not a file of tables");
	if (header.abi != SLIM_ABI_VERSION)
		return wrong(text, room, "tables: of contract %u, the router's is %u", header.abi,
			     SLIM_ABI_VERSION);
	if (header.size != tables->size)
		return wrong(text, room, "tables: of %llu bytes, and there are %zu",
			     (unsigned long long)header.size, tables->size);
	if (!header.generation)
		return wrong(text, room, "tables: generation 0");
	tables->generation = header.generation;
	for (number = 0; number < SLIM_FILE_COUNT; number++) {
		const struct slim_file_section *section = &header.sections[number];
		struct table *table = &tables->table[number];

		if (section->key_size != shapes[number].key_size ||
		    section->value_size != shapes[number].value_size)
			return wrong(text, room, "%s: keys of %u and values of %u bytes",
				     shapes[number].name, section->key_size, section->value_size);
		table->key_size = section->key_size;
		table->row_size = (size_t)section->key_size + section->value_size;
		table->count = section->count;
		if (section->offset % 8 || section->offset > tables->size ||
		    table->count > (tables->size - section->offset) / table->row_size)
			return wrong(text, room, "%s: not inside the file", shapes[number].name);
		table->rows = bytes + section->offset;
		if (index_table(table, number, text, room))
			return -1;
	}
	return 0;
}

struct tables *tables_read(const void *bytes, size_t size, int mapped, char *text, size_t room)
{
	struct tables *tables = calloc(1, sizeof(*tables));

	if (!tables) {
		snprintf(text, room, "no memory");
		errno = ENOMEM;
		return NULL;
	}
	tables->bytes = (void *)(uintptr_t)bytes;
	tables->size = size;
	tables->mapped = mapped;
	if (read_all(tables, text, room)) {
		int error = errno;

		tables_close(tables);
		errno = error;
		return NULL;
	}
	return tables;
}

struct tables *tables_open(const char *path, char *text, size_t room)
{
	struct tables *tables = NULL;
	struct stat about;
	void *bytes;
	int file = open(path, O_RDONLY | O_CLOEXEC);

	if (file < 0) {
		snprintf(text, room, "%s: %s", path, strerror(errno));
		return NULL;
	}
	if (fstat(file, &about) || !S_ISREG(about.st_mode) || about.st_size <= 0) {
		snprintf(text, room, "%s: not a file of tables", path);
		errno = EINVAL;
	} else {
		/* Private: rows that are hashed now are those that are compared later. */
		bytes = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
		if (bytes == MAP_FAILED)
			snprintf(text, room, "%s: %s", path, strerror(errno));
		else
			tables = tables_read(bytes, (size_t)about.st_size, 1, text, room);
	}
	close(file);
	return tables;
}

void tables_close(struct tables *tables)
{
	int number;

	if (!tables)
		return;
	for (number = 0; number < SLIM_FILE_COUNT; number++) {
		free(tables->table[number].slots);
		free(tables->table[number].lengths);
	}
	if (tables->mapped)
		munmap(tables->bytes, tables->size);
	free(tables);
}

/* The look-ups of the core. Their `env` is a struct tables, or NULL before the first. */

_Static_assert((int)SOURCE_ANY == SLIM_SOURCE_ANY && (int)SOURCE_PORT == SLIM_SOURCE_PORT &&
	       (int)SOURCE_LOOPBACK == SLIM_SOURCE_LOOPBACK, "the same enum");

static const struct slim_policy *
slim_policy_lookup(void *env, const struct slim_policy_key *key)
{
	const struct tables *tables = env;

	return find_prefix(&tables->table[SLIM_FILE_POLICY], key, key->prefixlen);
}

static __u32 slim_address_lookup(void *env, const struct slim_address_key *key)
{
	const struct tables *tables = env;
	const __u32 *id = find(&tables->table[SLIM_FILE_ADDRESSES], key);

	return id ? *id : 0;
}

static const struct slim_endpoint *slim_endpoint_lookup(void *env, __u32 id)
{
	const struct tables *tables = env;

	return tables ? find(&tables->table[SLIM_FILE_ENDPOINTS], &id) : NULL;
}

static const struct slim_service *
slim_service_lookup(void *env, const struct slim_service_key *key)
{
	const struct tables *tables = env;

	return find(&tables->table[SLIM_FILE_SERVICES], key);
}

static const struct slim_cidr *slim_cidr_lookup(void *env, __u32 vni, const __be32 *address)
{
	const struct tables *tables = env;
	struct slim_cidr_key key = { .prefixlen = 160, .vni = htonl(vni) };
	const struct slim_cidr *found;
	int here;

	slim_copy(key.address, address);
	found = find_prefix(&tables->table[SLIM_FILE_CIDRS], &key, key.prefixlen);
	if (found && found->flags & SLIM_CIDR_HOST)
		return found;
	here = own_find(address);
	if (!here)
		return found;
	if (here == OWN_BROADCAST)
		return &broadcast;
	/* Policy knows the host by its underlay address, whichever of its addresses it is. */
	slim_copy(key.address, own_host());
	return find_prefix(&tables->table[SLIM_FILE_CIDRS], &key, key.prefixlen);
}

/* One client a place: who comes to a taken one is remembered in its stead. */
static struct client *client(const struct slim_affinity_key *key)
{
	return &clients[hash((const unsigned char *)key, sizeof(*key)) % CLIENTS];
}

static struct slim_affinity *
slim_affinity_lookup(void *env, const struct slim_affinity_key *key)
{
	struct client *known = client(key);

	(void)env;
	return memcmp(&known->key, key, sizeof(*key)) ? NULL : &known->value;
}

static void slim_affinity_store(void *env, const struct slim_affinity_key *key,
				const struct slim_affinity *value)
{
	(void)env;
	if (!asking)
		*client(key) = (struct client){ *key, *value };
}

/* The defaults: no socket of ours is at an inner address, but another host's may be. */
static const struct slim_inner_range inner = {
	.v4 = (__be32)__builtin_bswap32(0xf0000000),
	.v6 = { (__be32)__builtin_bswap32(0xfd736c69), (__be32)__builtin_bswap32(0x6d6e6574) },
};
#define FIRST_WIRE_PORT 4790

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * SLIM_SECOND + (uint64_t)now.tv_nsec;
}

uint64_t tables_generation(const struct tables *tables)
{
	return tables ? tables->generation : 0;
}

const struct slim_endpoint *tables_endpoint(const struct tables *tables, uint32_t id)
{
	return slim_endpoint_lookup((void *)(uintptr_t)tables, id);
}

const struct slim_file_host *tables_host(const struct tables *tables, const __be32 *address)
{
	return tables ? find(&tables->table[SLIM_FILE_HOSTS], address) : NULL;
}

size_t tables_hosts(const struct tables *tables)
{
	return tables ? tables->table[SLIM_FILE_HOSTS].count : 0;
}

const __be32 *tables_host_at(const struct tables *tables, size_t index)
{
	return (const __be32 *)row(&tables->table[SLIM_FILE_HOSTS], index);
}

size_t tables_published_count(const struct tables *tables)
{
	return tables ? tables->table[SLIM_FILE_PUBLISHED].count : 0;
}

const struct slim_publish_key *tables_published_at(const struct tables *tables, size_t index)
{
	return (const void *)row(&tables->table[SLIM_FILE_PUBLISHED], index);
}

static void from_way(const struct slim_way *way, struct answer *answer)
{
	*answer = (struct answer){
		.kind = way->kind,
		.reason = way->reason,
		.error = (uint32_t)way->error,
		.rule = way->rule,
		.peer_rule = way->peer_rule,
		.peer_reason = way->peer_reason,
		.direction = way->direction,
		.endpoint = way->target.endpoint,
		.service = way->target.service,
		.port = way->target.port,
	};
	if (way->target.peer)
		slim_copy(answer->host, way->target.peer->host);
}

void tables_way(const struct tables *tables, uint32_t vni, uint32_t client,
		const struct slim_shim_name *name, int stream, enum source source,
		struct answer *answer)
{
	struct slim_dialled dialled = {
		.aim = {
			.now = now_ns(),
			.vni = vni,
			.client = client,
			.port = name->port,
			.protocol = stream ? IPPROTO_TCP : IPPROTO_UDP,
			.dialled = 1,
		},
		.stream = !!stream,
		.source = (__u8)source,
	};
	struct slim_way way = {};

	slim_copy(dialled.aim.address, name->address);
	if (getrandom(&dialled.aim.random, sizeof(dialled.aim.random), GRND_NONBLOCK) < 0)
		dialled.aim.random = (__u32)dialled.aim.now;
	slim_way((void *)(uintptr_t)tables, &inner, FIRST_WIRE_PORT, &dialled, &way);
	from_way(&way, answer);
	answer->later = slim_way_is_refused_later(&way);
}

static int judge(const struct tables *tables, uint32_t subject, uint32_t subject_identity,
		 const struct slim_target *peer, int direction, int error, struct answer *answer)
{
	const struct slim_verdict verdict =
		slim_target_decide((void *)(uintptr_t)tables, subject, subject_identity, peer,
				   (__u8)direction, IPPROTO_TCP);

	answer->reason = verdict.reason;
	answer->rule = verdict.rule;
	answer->direction = (uint32_t)direction;
	answer->error = verdict.action == SLIM_ALLOW ? 0 : (uint32_t)error;
	return (int)answer->error;
}

/* Both ends of a connection of the overlay; `whose` end's policy. */
static int both(const struct tables *tables, uint32_t client, uint32_t server, __be16 port,
		int direction, struct answer *answer)
{
	const struct slim_endpoint *opener = tables_endpoint(tables, client);
	const struct slim_endpoint *called = tables_endpoint(tables, server);
	const int egress = direction == SLIM_EGRESS;
	struct slim_target peer = { .endpoint = egress ? server : client, .port = port };

	*answer = (struct answer){
		.reason = SLIM_REASON_SYN_UNKNOWN,
		.error = egress ? EHOSTUNREACH : ECONNREFUSED,
		.direction = (uint32_t)direction,
	};
	if (!opener || !called)
		return (int)answer->error;
	if (opener->vni != called->vni) {
		answer->reason = SLIM_REASON_SYN_SOURCE;
		return (int)answer->error;
	}
	peer.identity = egress ? called->identity : opener->identity;
	return judge(tables, egress ? client : server,
		     egress ? opener->identity : called->identity, &peer, direction,
		     egress ? EACCES : ECONNREFUSED, answer);
}

int tables_admit(const struct tables *tables, uint32_t client, uint32_t server, __be16 port,
		 struct answer *answer)
{
	return both(tables, client, server, port, SLIM_INGRESS, answer);
}

int tables_admit_from(const struct tables *tables, const __be32 *address, uint32_t server,
		      __be16 port, struct answer *answer)
{
	const struct slim_endpoint *called = tables_endpoint(tables, server);
	struct slim_target client = { .port = port };

	*answer = (struct answer){
		.reason = SLIM_REASON_SYN_UNKNOWN,
		.error = ECONNREFUSED,
		.direction = SLIM_INGRESS,
	};
	if (!called)
		return (int)answer->error;
	slim_target_range((void *)(uintptr_t)tables, called->vni, address, &client);
	return judge(tables, server, called->identity, &client, SLIM_INGRESS, ECONNREFUSED, answer);
}

int tables_leave(const struct tables *tables, uint32_t client, uint32_t server, __be16 port,
		 struct answer *answer)
{
	return both(tables, client, server, port, SLIM_EGRESS, answer);
}

void tables_ask(const struct tables *tables, struct slim_question *question)
{
	question->generation = tables_generation(tables);
	asking = 1;
	if (tables)
		slim_answer((void *)(uintptr_t)tables, &inner, FIRST_WIRE_PORT, now_ns(), question);
	else
		slim_ask_refuse(question, SLIM_REASON_NO_TABLES);
	asking = 0;
}
