/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Shared by the parts of a partial result: partial.c is its files and who may work on them,
 * partial_log.c what the log says, partial_mark.c the thread that makes marks durable.
 */
#ifndef PARTIAL_IMPL_H
#define PARTIAL_IMPL_H

#include <pthread.h>

#include "partial.h"

enum { PARTIAL_RECORD = 64 << 10, PARTIAL_CHUNK = 32 };
enum { PARTIAL_RUNS = (PARTIAL_RECORD - 64) / PARTIAL_CHUNK };

/* N chunks with the same sum. */
struct partial_run {
	uint64_t first, n;
	uint8_t sum[IMG_SUM_BYTES];
};

struct partial {
	const char *file;
	char *image, *child, *path; /* the last one: of the log */
	struct io_file log;
	uint64_t end;	/* of the log: behind the last mark, or where the next record goes */
	uint64_t chain; /* the sum of the record before that */
	bool begun, marked, complete, applied, done, in_use;
	struct partial_head head;
	struct stream_mark mark;
	uint64_t image_end, time, id; /* of the image, with whatever name: partial_file_id() */
	struct partial_run runs[PARTIAL_RUNS];
	size_t nruns;
	/* the thread that waits for the disk */
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t change;
	bool started, quit;
	bool begin, beginning; /* what was written shall go to the disk; it does */
	/* the mark that is being made durable */
	bool busy;
	struct img_new *new;
	struct stream_mark next;
	bool next_complete;
	uint64_t next_end;
	struct img_err err; /* of the thread */
};

/* partial_log.c: up to the last mark. A log that cannot be read is not one that has no mark. */
int partial_log_load(struct partial *p, struct img_err *err);
int partial_log_begin(struct partial *p, const struct partial_head *head, struct img_err *err);
/*
 * Before the image changes: a mark that became durable, while something before it did not, would
 * count again as soon as that is written anew, and what it says of the image would not hold.
 */
int partial_log_cut(struct partial *p, uint64_t end, struct img_err *err);
/* The sums that partial_chunks() has so far. */
int partial_log_chunks(struct partial *p, struct img_err *err);
/* P->NEXT, what belongs to it, and all before it: durable. */
int partial_log_mark(struct partial *p, struct img_err *err);

/* partial_mark.c */
void partial_end_thread(struct partial *p);

#endif
