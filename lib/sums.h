/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * FILE.sums as bytes (sums_file.c): made without being seen, read in ascending order, never held
 * in memory. What is worth of the sums in it is for sums.c.
 */
#ifndef SUMS_H
#define SUMS_H

#include <sys/stat.h>
#include <time.h>
#include <xxhash.h>

#include "img_impl.h"

/* N chunks from FIRST on have this sum. */
struct sums_run {
	uint64_t first, n;
	uint8_t sum[IMG_SUM_BYTES];
};

/* What the sums are of. */
struct sums_head {
	uint64_t size; /* of the disk */
	uint8_t identity[IMG_SUM_BYTES];
	uint8_t boot[16];
	uint64_t runs; /* how many there are; no part of what they are of */
};
/* Of what layer FROM shows. False: that cannot be told apart from what will be. */
bool sums_describe(struct sums_head *h, struct img_chain *c, unsigned from);
bool sums_same(const struct sums_head *a, const struct sums_head *b);
/* Whether a disk in so many bytes of files is large enough. */
bool sums_worth(uint64_t file_bytes);

uint64_t sums_chunks(uint64_t size);
/* Of this run of the system; false: it does not tell. */
bool sums_boot(uint8_t boot[16]);

/* Runs that are being collected, in a file beside the image that has no name. */
struct sums_out {
	struct io_file file;
	struct sums_run last;
	uint64_t runs, pos;
	uint8_t *buf;
	size_t used;
	struct img_err err; /* the first failure: then it is worth nothing */
};
/* Safe for sums_out_close() in any case. */
int sums_out_open(struct sums_out *o, const char *beside);
/* Ascending. */
void sums_out_add(struct sums_out *o, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES]);
/*
 * Whether whatever is written to the files of this file system from now on gets a later time than
 * T. Waits for a few milliseconds if that makes it so.
 */
bool sums_out_later(struct sums_out *o, dev_t dev, const struct timespec *t);
/* They get their name beside the image REAL, which has the status ST. */
int sums_out_publish(struct sums_out *o, const char *real, const struct sums_head *h,
		     const struct stat *st);
void sums_out_close(struct sums_out *o);

/* What is there, going forward. */
struct sums_in {
	struct io_file file;
	struct sums_head head;
	struct sums_run run; /* the present one; N is 0 behind the last */
	uint64_t next;	     /* number of the one behind it */
	uint8_t *buf;
	uint64_t buf_first;
	size_t buf_n;
};
/* Of the layer L: false where there are none, or none that are whole and fit WANT but for the
 * number. */
bool sums_in_open(struct sums_in *s, const struct img *l, const struct sums_head *want);
/* From CHUNK on: the sum of *N chunks, or NULL: N unknown ones. CHUNK may not go back. */
int sums_in_at(struct sums_in *s, uint64_t chunk, uint64_t *n, const uint8_t **sum,
	       struct img_err *err);
void sums_in_rewind(struct sums_in *s);
void sums_in_close(struct sums_in *s);

#endif
