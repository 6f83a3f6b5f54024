/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Questions to the router: preload/shim.h. */
#ifndef SLIMNET_SHIM_ROUTER_H
#define SLIMNET_SHIM_ROUTER_H

#include <preload/shim.h>

/* Is this process one of an endpoint, and the shim not switched off? */
int router_is(void);

/* If it is: what it was started with. */
const char *router_socket(void);
const char *router_preload(void);

/*
 * Asks, and waits for the answer, whatever signals come. `fd`: a socket to go with the
 * question, or -1. `patience`: how long, in ms, to try where no router listens, since one
 * may be started again. 0: `answer` is there, and may be an error; else an errno: no answer.
 */
int router_ask(struct slim_shim_request *request, int fd, int patience,
	       struct slim_shim_answer *answer);

/* The same; `*given` is a socket that came with the answer, close-on-exec, or -1. */
int router_ask_given(struct slim_shim_request *request, int patience,
		     struct slim_shim_answer *answer, int *given);

/*
 * The same, in two halves: until router_done(`*kept`) the router sees that whoever asked
 * lives. When that ends it takes back what was announced and is not there yet.
 */
int router_ask_first(struct slim_shim_request *request, int fd, int patience,
		     struct slim_shim_answer *answer, int *kept);
void router_done(int kept);

#endif
