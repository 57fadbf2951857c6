/* SPDX-License-Identifier: BSD-2-Clause */
/* Numbers that follow from a seed alone, so that every state can be made again (splitmix64). */
#ifndef CRASH_RANDOM_H
#define CRASH_RANDOM_H

#include <stdint.h>

struct rng {
	uint64_t state;
};

static inline void rng_seed(struct rng *r, uint64_t seed)
{
	r->state = seed;
}

static inline uint64_t rng_next(struct rng *r)
{
	uint64_t z = r->state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static inline unsigned rng_below(struct rng *r, unsigned n)
{
	return (unsigned)(rng_next(r) % n);
}

/* True once in N. */
static inline int rng_one_in(struct rng *r, unsigned n)
{
	return rng_below(r, n) == 0;
}

#endif
