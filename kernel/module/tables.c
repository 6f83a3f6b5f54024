// SPDX-License-Identifier: GPL-2.0-only
/*
 * The compiled tables: hash tables of the records in tables.h. A set is written
 * while nobody reads it, put in force whole, and freed when its last reader is
 * gone.
 */
#include <linux/jhash.h>
#include <linux/mm.h>
#include <linux/random.h>
#include <linux/slab.h>

#include "slimnet.h"

struct slim_record {
	struct hlist_node node;
	u8 bytes[] __aligned(8);	/* key, then value */
};

static const struct {
	u16 key;
	u16 value;
	u16 shortest;			/* prefix length; 0: matched whole */
	u16 longest;
} slim_shapes[SLIM_NL_TABLES] = {
	[SLIM_NL_ADDRESSES] = { sizeof(struct slim_address_key), sizeof(u32), 0, 0 },
	[SLIM_NL_ENDPOINTS] = { sizeof(u32), sizeof(struct slim_endpoint), 0, 0 },
	[SLIM_NL_CIDRS] = { sizeof(struct slim_cidr_key), sizeof(struct slim_cidr), 32, 160 },
	[SLIM_NL_POLICY] = { sizeof(struct slim_policy_key), sizeof(struct slim_policy),
			     SLIM_PREFIX_ANY_PROTOCOL, SLIM_PREFIX_PORT },
	[SLIM_NL_SERVICES] = { sizeof(struct slim_service_key), sizeof(struct slim_service), 0, 0 },
};

/* The longest key, with the prefix length in front. */
#define SLIM_KEY_MAX 24

static u32 slim_seed __read_mostly;

u32 slim_table_key_size(u32 table)
{
	return slim_shapes[table].key;
}

u32 slim_table_record_size(u32 table)
{
	return slim_shapes[table].key + slim_shapes[table].value;
}

static u32 slim_prefix(const u8 *key)
{
	u32 length;

	memcpy(&length, key, sizeof(length));
	return length;
}

/* Cuts a key to `length` bits behind the number that says so. */
static void slim_cut(u8 *key, u32 size, u32 length)
{
	u32 at = sizeof(u32) + length / 8;

	memcpy(key, &length, sizeof(length));
	if (at >= size)
		return;
	key[at] &= (u8)(0xff00 >> length % 8);
	memset(key + at + 1, 0, size - at - 1);
}

/* Whether it is a record; `value` may be NULL. */
int slim_table_check(u32 table, const u8 *key, const u8 *value)
{
	u32 length;

	if (slim_shapes[table].longest) {
		length = slim_prefix(key);
		if (length < slim_shapes[table].shortest || length > slim_shapes[table].longest)
			return -EINVAL;
	}
	if (table == SLIM_NL_POLICY) {
		const struct slim_policy_key *policy = (const void *)key;

		if (policy->direction > SLIM_EGRESS ||
		    (policy->prefixlen > SLIM_PREFIX_ANY_PROTOCOL &&
		     policy->prefixlen < SLIM_PREFIX_ANY_PORT))
			return -EINVAL;
		if (value && ((const struct slim_policy *)(const void *)value)->action > SLIM_ALLOW)
			return -EINVAL;
	}
	if (table == SLIM_NL_ENDPOINTS) {
		memcpy(&length, key, sizeof(length));
		if (!length || length >= SLIM_ADDRESS_SERVICE)
			return -EINVAL;
	}
	return 0;
}

static struct hlist_head *slim_bucket(const struct slim_table *table, const u8 *key, u32 size)
{
	return &table->buckets[jhash(key, size, slim_seed) & (table->size - 1)];
}

static struct slim_record *slim_find(const struct slim_table *table, const u8 *key, u32 size)
{
	struct slim_record *record;

	hlist_for_each_entry(record, slim_bucket(table, key, size), node)
		if (!memcmp(record->bytes, key, size))
			return record;
	return NULL;
}

static int slim_resize(struct slim_table *table, u32 key_size, u32 size)
{
	struct hlist_head *buckets = kvcalloc(size, sizeof(*buckets), GFP_KERNEL);
	struct slim_table old = *table;
	struct slim_record *record;
	struct hlist_node *next;
	u32 i;

	if (!buckets)
		return -ENOMEM;
	table->buckets = buckets;
	table->size = size;
	for (i = 0; i < old.size; i++)
		hlist_for_each_entry_safe(record, next, &old.buckets[i], node) {
			hlist_del(&record->node);
			hlist_add_head(&record->node, slim_bucket(table, record->bytes, key_size));
		}
	kvfree(old.buckets);
	return 0;
}

/* The key of a record, with nothing behind its prefix. */
static void slim_key(u32 number, const u8 *bytes, u8 *key)
{
	u32 size = slim_shapes[number].key;

	memcpy(key, bytes, size);
	if (slim_shapes[number].longest)
		slim_cut(key, size, slim_prefix(key));
}

/* Sets one record: key and value behind one another, which slim_table_check() has seen. */
int slim_table_set(struct slim_tables *tables, u32 number, const u8 *bytes)
{
	struct slim_table *table = &tables->table[number];
	u32 size = slim_shapes[number].key, value = slim_shapes[number].value;
	struct slim_record *record;
	u8 key[SLIM_KEY_MAX];

	slim_key(number, bytes, key);
	record = slim_find(table, key, size);
	if (record) {
		memcpy(record->bytes + size, bytes + size, value);
		return 0;
	}
	if (table->count >= table->size && slim_resize(table, size, table->size * 2))
		return -ENOMEM;
	record = kvmalloc(struct_size(record, bytes, size + value), GFP_KERNEL_ACCOUNT);
	if (!record)
		return -ENOMEM;
	memcpy(record->bytes, key, size);
	memcpy(record->bytes + size, bytes + size, value);
	hlist_add_head(&record->node, slim_bucket(table, key, size));
	table->count++;
	if (slim_shapes[number].longest && table->lengths[slim_prefix(key)] < U16_MAX)
		table->lengths[slim_prefix(key)]++;
	return 0;
}

void slim_table_remove(struct slim_tables *tables, u32 number, const u8 *bytes)
{
	struct slim_table *table = &tables->table[number];
	u32 size = slim_shapes[number].key;
	struct slim_record *record;
	u8 key[SLIM_KEY_MAX];

	slim_key(number, bytes, key);
	record = slim_find(table, key, size);
	if (!record)
		return;
	hlist_del(&record->node);
	kvfree(record);
	table->count--;
	/* A count that once was full says no more than that there may be one. */
	if (slim_shapes[number].longest && table->lengths[slim_prefix(key)] < U16_MAX)
		table->lengths[slim_prefix(key)]--;
}

/* The value at a key, or NULL. */
const void *slim_table_get(const struct slim_tables *tables, u32 number, const void *key)
{
	u32 size = slim_shapes[number].key;
	const struct slim_record *record = slim_find(&tables->table[number], key, size);

	return record ? record->bytes + size : NULL;
}

/* The value at the longest prefix of a key, or NULL. */
const void *slim_table_match(const struct slim_tables *tables, u32 number, const void *key)
{
	const struct slim_table *table = &tables->table[number];
	u32 size = slim_shapes[number].key, length = slim_prefix(key);
	const struct slim_record *record;
	u8 cut[SLIM_KEY_MAX];

	memcpy(cut, key, size);
	for (; length >= slim_shapes[number].shortest; length--) {
		if (!table->lengths[length])
			continue;
		slim_cut(cut, size, length);
		record = slim_find(table, cut, size);
		if (record)
			return record->bytes + size;
	}
	return NULL;
}

void slim_tables_free(struct slim_tables *tables)
{
	struct slim_record *record;
	struct hlist_node *next;
	u32 number, i;

	if (!tables)
		return;
	for (number = 0; number < SLIM_NL_TABLES; number++) {
		struct slim_table *table = &tables->table[number];

		for (i = 0; i < table->size; i++) {
			hlist_for_each_entry_safe(record, next, &table->buckets[i], node)
				kvfree(record);
			cond_resched();
		}
		kvfree(table->buckets);
	}
	kvfree(tables);
}

static struct slim_tables *slim_tables_sized(const struct slim_tables *like, u64 generation)
{
	struct slim_tables *tables = kvzalloc(sizeof(*tables), GFP_KERNEL);
	u32 number;

	if (!tables)
		return NULL;
	get_random_once(&slim_seed, sizeof(slim_seed));
	tables->generation = generation;
	for (number = 0; number < SLIM_NL_TABLES; number++)
		if (slim_resize(&tables->table[number], slim_shapes[number].key,
				like ? like->table[number].size : 16)) {
			slim_tables_free(tables);
			return NULL;
		}
	return tables;
}

struct slim_tables *slim_tables_make(u64 generation)
{
	return slim_tables_sized(NULL, generation);
}

struct slim_tables *slim_tables_copy(const struct slim_tables *old, u64 generation)
{
	struct slim_tables *tables = slim_tables_sized(old, generation);
	const struct slim_record *record;
	u32 number, i;

	if (!tables)
		return NULL;
	for (number = 0; number < SLIM_NL_TABLES; number++)
		for (i = 0; i < old->table[number].size; i++) {
			hlist_for_each_entry(record, &old->table[number].buckets[i], node)
				if (slim_table_set(tables, number, record->bytes)) {
					slim_tables_free(tables);
					return NULL;
				}
			cond_resched();
		}
	return tables;
}
