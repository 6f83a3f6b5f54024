// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Descriptors in one epoll instance, deadlines in a heap (loop.h). */
#include "loop.h"

#include "fuzzing.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define BATCH 256
#define REST_MS 200

static int epoll = -1;
static int stopped;
static struct timer **heap;	/* heap[1] is due first */
static size_t timers, room;

struct grave {
	struct grave *next;
	void *memory;
};
static struct grave *graves;

static struct watch *resting;
static struct timer rest;

uint64_t loop_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int loop_start(void)
{
	epoll = epoll_create1(EPOLL_CLOEXEC);
	room = 1024;
	heap = malloc(room * sizeof(*heap));
	return epoll < 0 || !heap ? -1 : 0;
}

int loop_watch(struct watch *watch, int fd, uint32_t events,
	       void (*ready)(struct watch *watch, uint32_t events))
{
	struct epoll_event event = { .events = events, .data.ptr = watch };

	*watch = (struct watch){ .fd = fd, .events = events, .ready = ready };
	if (!epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		return 0;
	watch->fd = -1;
	return -1;
}

static void apply(struct watch *watch)
{
	struct epoll_event event = {
		.events = watch->rests ? 0 : watch->events,
		.data.ptr = watch,
	};

	epoll_ctl(epoll, EPOLL_CTL_MOD, watch->fd, &event);
}

void loop_want(struct watch *watch, uint32_t events)
{
	if (watch->fd < 0 || watch->events == events)
		return;
	watch->events = events;
	apply(watch);
}

int loop_is_short(int error)
{
	return error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS;
}

static void rested(struct timer *timer)
{
	(void)timer;
	while (resting) {
		struct watch *watch = resting;

		resting = watch->resting;
		watch->rests = 0;
		apply(watch);
	}
}

void loop_rest(struct watch *watch)
{
	if (watch->fd < 0 || watch->rests)
		return;
	watch->rests = 1;
	watch->resting = resting;
	resting = watch;
	apply(watch);
	loop_set(&rest, REST_MS, rested);
}

int loop_accept(struct watch *watch, struct sockaddr *name, socklen_t *size, int flags)
{
	int fd = accept4(watch->fd, name, size, flags), error = errno;

	if (fd < 0 && loop_is_short(error))
		loop_rest(watch);
	errno = error;
	return fd;
}

void loop_forget(struct watch *watch)
{
	struct watch **link;

	for (link = &resting; *link; link = &(*link)->resting)
		if (*link == watch) {
			*link = watch->resting;
			break;
		}
	if (watch->fd >= 0) {
		/* Explicitly: a duplicate of it elsewhere would keep the registration. */
		epoll_ctl(epoll, EPOLL_CTL_DEL, watch->fd, NULL);
		close(watch->fd);
	}
	watch->fd = -1;
	watch->ready = NULL;
}

void loop_free(void *memory)
{
	struct grave *grave = malloc(sizeof(*grave));

	if (!grave)
		return;		/* lost, rather than used after it is free */
	*grave = (struct grave){ graves, memory };
	graves = grave;
}

static void put(size_t place, struct timer *timer)
{
	heap[place] = timer;
	timer->place = place;
}

static void sift(size_t place)
{
	struct timer *timer = heap[place];

	while (place > 1 && heap[place / 2]->due > timer->due) {
		put(place, heap[place / 2]);
		place /= 2;
	}
	for (;;) {
		size_t child = 2 * place;

		if (child > timers)
			break;
		if (child < timers && heap[child + 1]->due < heap[child]->due)
			child++;
		if (heap[child]->due >= timer->due)
			break;
		put(place, heap[child]);
		place = child;
	}
	put(place, timer);
}

void loop_clear(struct timer *timer)
{
	struct timer *last;
	size_t place = timer->place;

	if (!place)
		return;
	timer->place = 0;
	last = heap[timers--];
	if (last != timer) {
		put(place, last);
		sift(place);
	}
}

void loop_set(struct timer *timer, uint64_t in, void (*over)(struct timer *timer))
{
	loop_clear(timer);
	if (timers + 2 > room) {
		struct timer **more = realloc(heap, 2 * room * sizeof(*heap));

		if (!more)
			abort();	/* a deadline may not be lost */
		heap = more;
		room *= 2;
	}
	timer->due = loop_now() + in;
	timer->over = over;
	put(++timers, timer);
	sift(timers);
}

static void bury(void)
{
	while (graves) {
		struct grave *grave = graves;

		graves = grave->next;
		free(grave->memory);
		free(grave);
	}
}

void loop_stop(void)
{
	stopped = 1;
}

void loop_run(void)
{
	struct epoll_event events[BATCH];

	while (!stopped) {
		uint64_t now = loop_now();
		int count, index, wait = -1;

		while (timers && heap[1]->due <= now) {
			struct timer *timer = heap[1];

			loop_clear(timer);
			timer->over(timer);
		}
		bury();
		if (stopped)
			break;
		if (timers)
			wait = heap[1]->due - now > 60000 ? 60000 : (int)(heap[1]->due - now);
		count = epoll_wait(epoll, events, BATCH, wait);
		if (count < 0 && errno != EINTR)
			abort();
		for (index = 0; index < count; index++) {
			struct watch *watch = events[index].data.ptr;

			if (watch->ready)
				watch->ready(watch, events[index].events);
		}
		bury();
	}
	close(epoll);
	free(heap);
}

#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
void fuzz_bury(void)
{
	bury();
}
#endif
