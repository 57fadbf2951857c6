/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The wire format, vhd-stream(5): one disk as a sequence of records on a pipe. stream_write_*()
 * makes one, stream_read() takes one apart, checks everything and drives a visitor. Memory is
 * bounded whatever the other side says.
 */
#ifndef STREAM_H
#define STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "img.h"

/* Data is sent in pieces that do not cross multiples of this: a piece is at most one chunk of
 * the content sum. */
#define STREAM_PIECE IMG_SUM_CHUNK
#define STREAM_MAX_SIZE (64ull << 40) /* of a disk */

enum stream_kind {
	STREAM_WHOLE = 0,     /* every byte of the disk */
	STREAM_INCREMENT = 1, /* what is absent is as in the base */
};

/* One end of a pipe. */
struct stream_pipe {
	int fd;		    /* -1: nowhere, the writer only counts */
	const char *name;   /* for messages */
	bool (*stop)(void); /* asked while waiting: true ends with IMG_AGAIN. May be NULL */
	uint64_t rate;	    /* bytes a second when writing, 0: no limit */
	uint64_t ready;	    /* when the next byte may go; nanoseconds, private */
};

/* What a stream says of itself before the first byte of data. */
struct stream_begin {
	uint8_t stream_id[16];
	bool compressed; /* DATA records may be */
	enum stream_kind kind;
	uint64_t size;	    /* of the disk */
	enum img_type type; /* of the source's leaf, as all that follows */
	bool has_uuid;
	uint8_t uuid[16];
	bool has_parent;
	uint8_t parent_uuid[16];
	uint32_t block_size; /* 0: no blocks */
	uint16_t cylinders;
	uint8_t heads, sectors;
	char creator[5];
	uint32_t creator_version;
	uint32_t timestamp;
	/* increments only */
	uint8_t base_uuid[16]; /* all zero: the base is raw */
	uint64_t base_size;
	char base_sum[IMG_SUM_STR]; /* content sum; "": not told */
	/* Before zeros and compression made it less: bytes of DATA records, records. */
	uint64_t planned_bytes, planned_records;
};

/* What was sent or received; complete after END. */
struct stream_totals {
	uint64_t data_records, zero_records, checkpoints;
	uint64_t data_bytes, zero_bytes; /* of the disk */
	uint64_t wire_bytes;		 /* of the stream */
	uint64_t records;		 /* of every type */
	uint64_t skipped;		 /* of unknown type, and not critical */
	char stream_sum[IMG_SUM_STR];
	char content_sum[IMG_SUM_STR]; /* "": an increment */
};

struct stream_writer;

/*
 * Sends the preamble and BEGIN; the stream's id is made here and put into BEGIN. LEVEL is zstd's,
 * 0: no compression. TO is copied.
 */
int stream_write_begin(struct stream_writer **out, const struct stream_pipe *to, int level,
		       struct stream_begin *begin, struct img_err *err);
/*
 * Room for LEN bytes of data, at most STREAM_PIECE; it belongs to the writer and holds until the
 * next call. Only what lies there may be given to stream_write_data().
 */
int stream_write_space(struct stream_writer *w, size_t len, uint8_t **buf, struct img_err *err);
/* Offsets ascend. Long zeros inside become ZERO records. */
int stream_write_data(struct stream_writer *w, uint64_t off, const uint8_t *buf, size_t len,
		      struct img_err *err);
int stream_write_zero(struct stream_writer *w, uint64_t off, uint64_t len, struct img_err *err);
/* Everything is out when this returns. */
int stream_write_end(struct stream_writer *w, struct stream_totals *totals, struct img_err *err);
/* Tells the receiver, if it can still be told, why there will be no END. */
void stream_write_abort(struct stream_writer *w, const struct img_err *why);
void stream_writer_free(struct stream_writer *w);

/* The most bytes that a stream with this BEGIN has, from what it plans. */
uint64_t stream_bound(const struct stream_begin *begin);

/* What a reader tells. Only what was verified arrives, in ascending order. */
struct stream_visitor {
	void *ctx;
	int (*begin)(void *ctx, const struct stream_begin *begin, struct img_err *err);
	int (*data)(void *ctx, uint64_t off, const void *buf, size_t len, struct img_err *err);
	int (*zero)(void *ctx, uint64_t off, uint64_t len, struct img_err *err);
};

/*
 * Reads one stream up to its END and the end of the file behind it. All else is an error:
 * IMG_PROTO, that of the pipe, or the visitor's.
 */
int stream_read(const struct stream_pipe *from, const struct stream_visitor *visitor,
		struct stream_totals *totals, struct img_err *err);

#endif
