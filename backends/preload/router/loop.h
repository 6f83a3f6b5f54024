/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One thread, one epoll: descriptors that become ready, and deadlines. */
#ifndef SLIMNET_ROUTER_LOOP_H
#define SLIMNET_ROUTER_LOOP_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* The member of a struct that a callback was given, back to the struct. */
#define CONTAINER(pointer, type, member) \
	((type *)(void *)((char *)(pointer) - offsetof(type, member)))

struct watch {
	int fd;
	uint32_t events;	/* EPOLLIN and so on: what is waited for */
	void (*ready)(struct watch *watch, uint32_t events);
	struct watch *resting;	/* the next of those that rest */
	uint8_t rests;
};

struct timer {
	uint64_t due;		/* ms of CLOCK_MONOTONIC */
	size_t place;		/* in the heap, from 1 on; 0: not set */
	void (*over)(struct timer *timer);
};

/* 0, or -1 with errno. */
int loop_start(void);
/* Takes `fd` over. 0, or -1 with errno, and then `fd` is still the caller's. */
int loop_watch(struct watch *watch, int fd, uint32_t events,
	       void (*ready)(struct watch *watch, uint32_t events));
void loop_want(struct watch *watch, uint32_t events);
/* Nothing of it is told for a while: this process lacks what it takes. */
void loop_rest(struct watch *watch);
/*
 * accept4(2) on a watched listener. Where this process lacks a descriptor or memory for it, the
 * listener rests: epoll would say again and again that somebody is there.
 */
int loop_accept(struct watch *watch, struct sockaddr *name, socklen_t *size, int flags);
/* Whether an errno says that this process, or the system, has too little of something. */
int loop_is_short(int error);
/* Closes its descriptor. Its memory may be freed by loop_free() only. */
void loop_forget(struct watch *watch);
/* Frees what may still be named by an event that was fetched, when these are through. */
void loop_free(void *memory);

/* `in` ms from now; again: anew. */
void loop_set(struct timer *timer, uint64_t in, void (*over)(struct timer *timer));
void loop_clear(struct timer *timer);

uint64_t loop_now(void);	/* ms of CLOCK_MONOTONIC */
void loop_run(void);
void loop_stop(void);

#endif
