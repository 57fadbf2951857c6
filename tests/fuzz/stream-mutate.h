/* SPDX-License-Identifier: BSD-2-Clause */
/* Streams that are wrong in one place only: made, edited record by record, and sealed again. */
#ifndef FUZZ_STREAM_MUTATE_H
#define FUZZ_STREAM_MUTATE_H

#include <stddef.h>
#include <stdint.h>

#include "stream_impl.h"

enum seal {
	SEAL_SUMS = 1,	  /* checksums of the records, and of the preamble */
	SEAL_NUMBERS = 2, /* their numbers */
	SEAL_MARKS = 4,	  /* positions and running sums in CHECKPOINT and END */
	SEAL_COUNTS = 8,  /* counts in END */
	SEAL_ALL = 15,
};

/* Where the records begin: behind the preamble, or somewhere in the middle. */
struct seal_at {
	uint64_t seed, seq, pos, count[5];
	uint8_t sum[16];
};

/* Seals the records at P as far as they are whole. */
void stream_seal(uint8_t *p, size_t n, struct seal_at at, unsigned what);
/* A whole stream. */
void stream_seal_whole(uint8_t *p, size_t n, unsigned what);
/* A stream that is right, with random content. Returns its length. */
size_t stream_make(uint8_t *p, size_t max, uint32_t seed);
/* What a sender sends that goes on with the stream P of N bytes behind MARK. Returns its length. */
size_t stream_make_rest(const struct stream_begin *begin, const struct stream_mark *mark,
			const uint8_t *p, size_t n, uint8_t *out);
/* Edits the stream at P, which may have no more than MAX bytes. OTHER: another one to take records
 * from, or NULL. */
size_t stream_mutate(uint8_t *p, size_t n, size_t max, uint32_t seed, const uint8_t *other,
		     size_t other_n);

#endif
