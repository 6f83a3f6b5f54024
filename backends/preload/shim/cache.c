// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Entries by descriptor that are read without a lock. */
#include "cache.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include "real.h"

#define MOST (1u << 20)		/* descriptors that have a place: 128 MB of addresses, no memory */
#define WORDS (sizeof(struct cached) / sizeof(uint32_t))

/* An even `turn` is a whole entry; a writer makes it odd. */
struct entry {
	uint32_t turn;
	uint32_t words[WORDS];
	uint32_t pad[32 - 1 - WORDS];
};

_Static_assert(sizeof(struct cached) % sizeof(uint32_t) == 0, "whole words");
_Static_assert(offsetof(struct cached, pending) == offsetof(struct cached, is) + 2 &&
	       offsetof(struct cached, is) % 4 == 0, "one word");
_Static_assert(sizeof(struct entry) == 128, "two cache lines");

static struct entry *entries;
static uint32_t count;

#define NONE ((struct entry *)-1)

/* Pages that nobody wrote to take no room; the rest is copied by fork(). */
static struct entry *start(void)
{
	struct rlimit limit = { .rlim_max = MOST };
	struct entry *none = NULL, *fresh;
	long address;
	uint32_t most;

	raw(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, (long)&limit, 0, 0);
	most = limit.rlim_max > MOST ? MOST : (uint32_t)limit.rlim_max;
	address = raw(SYS_mmap, 0, (long)(most * sizeof(struct entry)), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	fresh = address < 0 && address > -4096 ? NONE : (struct entry *)address;
	if (fresh != NONE)
		__atomic_store_n(&count, most, __ATOMIC_RELAXED);
	if (__atomic_compare_exchange_n(&entries, &none, fresh, 0, __ATOMIC_ACQ_REL,
					__ATOMIC_ACQUIRE))
		return fresh;
	if (fresh != NONE)
		raw(SYS_munmap, (long)fresh, (long)(most * sizeof(struct entry)), 0, 0, 0, 0);
	return none;
}

static struct entry *entry(int fd, int make)
{
	struct entry *all = __atomic_load_n(&entries, __ATOMIC_ACQUIRE);

	if (!all && make)
		all = start();
	if (!all || all == NONE || fd < 0 ||
	    (uint32_t)fd >= __atomic_load_n(&count, __ATOMIC_RELAXED))
		return NULL;
	return &all[fd];
}

int cache_get(int fd, uint64_t cookie, struct cached *cached)
{
	struct entry *from = entry(fd, 0);
	uint32_t *to = (uint32_t *)(void *)cached;
	uint32_t turn;
	size_t word;

	if (!from)
		return 0;
	turn = __atomic_load_n(&from->turn, __ATOMIC_ACQUIRE);
	if (!turn || turn & 1)
		return 0;
	for (word = 0; word < WORDS; word++)
		to[word] = __atomic_load_n(&from->words[word], __ATOMIC_ACQUIRE);
	if (__atomic_load_n(&from->turn, __ATOMIC_RELAXED) != turn)
		return 0;
	return cached->is && cached->cookie == cookie;
}

int cache_pending(int fd)
{
	const struct entry *from = entry(fd, 0);
	union {
		uint32_t word;
		uint16_t half[2];	/* is, pending */
	} state = {};

	if (from)
		state.word = __atomic_load_n(
			&from->words[offsetof(struct cached, is) / sizeof(uint32_t)],
			__ATOMIC_RELAXED);
	return state.half[1];
}

void cache_put(int fd, const struct cached *cached)
{
	const uint32_t *from = (const uint32_t *)(const void *)cached;
	struct entry *to = entry(fd, 1);
	uint32_t turn;
	size_t word;

	if (!to)
		return;
	turn = __atomic_load_n(&to->turn, __ATOMIC_RELAXED);
	/* Another thread writes: two sockets under one number in turn. Who is not in asks. */
	if (turn & 1 || !__atomic_compare_exchange_n(&to->turn, &turn, turn + 1, 0,
						     __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
		return;
	for (word = 0; word < WORDS; word++)
		__atomic_store_n(&to->words[word], from[word], __ATOMIC_RELEASE);
	__atomic_store_n(&to->turn, turn + 2, __ATOMIC_RELEASE);
}

void cache_drop(int fd)
{
	static const struct cached nothing;

	if (entry(fd, 0))
		cache_put(fd, &nothing);
}
