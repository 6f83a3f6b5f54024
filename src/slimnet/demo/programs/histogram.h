/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Durations in nanoseconds, counted in buckets whose width is 1/128 of their
 * octave: a percentile is off by at most 0.8 per cent, and counting one costs
 * the same whether it is the first or the millionth.
 */
#ifndef SLIMNET_DEMO_HISTOGRAM_H
#define SLIMNET_DEMO_HISTOGRAM_H

#include <stdint.h>
#include <stdio.h>

#define HISTOGRAM_SHIFT		7
#define HISTOGRAM_STEPS		(1u << HISTOGRAM_SHIFT)
#define HISTOGRAM_BUCKETS	((64 - HISTOGRAM_SHIFT + 1) * HISTOGRAM_STEPS)

struct histogram {
	uint64_t bucket[HISTOGRAM_BUCKETS];
	uint64_t count;
	uint64_t sum;
	uint64_t max;
};

static inline unsigned int histogram_index(uint64_t ns)
{
	unsigned int octave;

	if (ns < HISTOGRAM_STEPS)
		return ns;
	octave = 63 - __builtin_clzll(ns) - HISTOGRAM_SHIFT;
	return octave * HISTOGRAM_STEPS + (ns >> octave);
}

/* The middle of a bucket: the inverse of histogram_index(). */
static inline double histogram_middle(unsigned int index)
{
	unsigned int octave;

	if (index < 2 * HISTOGRAM_STEPS)
		return index;
	octave = index / HISTOGRAM_STEPS - 1;
	return ((double)(index - octave * HISTOGRAM_STEPS) + 0.5) * (double)(1ull << octave);
}

static inline void histogram_add(struct histogram *h, uint64_t ns)
{
	h->bucket[histogram_index(ns)]++;
	h->count++;
	h->sum += ns;
	if (ns > h->max)
		h->max = ns;
}

static inline double histogram_percentile(const struct histogram *h, double part)
{
	uint64_t wanted = part * h->count, seen = 0;
	unsigned int i;

	for (i = 0; i < HISTOGRAM_BUCKETS; i++) {
		seen += h->bucket[i];
		if (seen > wanted)
			return histogram_middle(i);
	}
	return h->max;
}

/* As a JSON object, in microseconds. */
static inline void histogram_print(const struct histogram *h, FILE *out)
{
	fprintf(out, "{\"mean\": %.3f, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}",
		h->count ? h->sum / 1e3 / h->count : 0.0,
		histogram_percentile(h, 0.50) / 1e3,
		histogram_percentile(h, 0.99) / 1e3, h->max / 1e3);
}

#endif
