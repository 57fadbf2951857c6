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
#define STREAM_MAX_SIZE (64ull << 40)	     /* of a disk */
#define STREAM_MAX_CHECKPOINT (256ull << 20) /* bytes from one to the next */

enum stream_kind {
	STREAM_WHOLE = 0,      /* every byte of the disk */
	STREAM_INCREMENT = 1,  /* what is absent is as in the base */
	STREAM_DIFFERENCE = 2, /* the same; the base is a stale copy of the same disk */
};

/* As it stands in receipts and reports. */
const char *stream_kind_name(enum stream_kind kind);

/* One end of a pipe. */
struct stream_pipe {
	int fd;			   /* -1: nowhere, the writer only counts */
	const char *name;	   /* for messages */
	bool (*stop)(void);	   /* asked while waiting: true ends with IMG_AGAIN. May be NULL */
	uint64_t rate;		   /* bytes a second when writing, 0: no limit */
	const uint64_t *live_rate; /* the same, looked at again and again; NULL: RATE stays */
	uint64_t checkpoint;	   /* bytes between checkpoints when writing, 0: the usual */
	unsigned threads; /* that compress when writing, if there is memory; 0 or 1: none */
	uint64_t ready;	  /* when the next byte may go; nanoseconds, private */
	struct stream_relay *relay; /* private */
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
	bool has_source;
	uint8_t source[IMG_SUM_BYTES]; /* identity of the source's files, for the sender alone */
};

/* A position between two records where a transfer can go on. */
struct stream_mark {
	uint64_t seq;		      /* of the next record */
	uint64_t wire_bytes;	      /* of the stream before it */
	uint64_t off;		      /* of the disk: a multiple of STREAM_PIECE, or its end */
	uint8_t sum[IMG_SUM_BYTES];   /* the running sum */
	uint8_t trail[IMG_SUM_BYTES]; /* the prefix sum */
	uint64_t data_records, zero_records, data_bytes, zero_bytes, checkpoints;
};

/* What a receiver (or vhd-stream) gives to a sender, so that it goes on. */
struct stream_token {
	bool append;	 /* to be appended to a stored stream: nothing but the rest */
	bool compressed; /* the stored stream's records may be */
	bool has_source;
	uint8_t stream_id[16];
	enum stream_kind kind;
	uint64_t size;
	uint8_t uuid[16], base_uuid[16]; /* all zero: none */
	uint8_t source[IMG_SUM_BYTES];
	struct stream_mark mark;
};
#define STREAM_TOKEN_STR 256
void stream_token_put(const struct stream_token *t, char out[STREAM_TOKEN_STR]);
int stream_token_get(const char *text, struct stream_token *t, struct img_err *err);

/* The prefix sum: what a stream said of the disk, in ascending order. */
struct stream_trail;
struct stream_trail *stream_trail_new(void);
void stream_trail_free(struct stream_trail *t);
/* BUF is NULL for zeros. */
void stream_trail_add(struct stream_trail *t, uint64_t off, const void *buf, uint64_t len);
/* N whole chunks from FIRST on, of a disk of SIZE, whose content has this sum. */
void stream_trail_chunks(struct stream_trail *t, uint64_t first, uint64_t n,
			 const uint8_t sum[IMG_SUM_BYTES], uint64_t size);
/* FN is told the sums of the chunks of a disk of SIZE that came whole, each when it is known. */
void stream_trail_watch(struct stream_trail *t, uint64_t size,
			void (*fn)(void *ctx, uint64_t first, uint64_t n,
				   const uint8_t sum[IMG_SUM_BYTES]),
			void *ctx);
/* Goes on from a known one. */
void stream_trail_set(struct stream_trail *t, const uint8_t sum[IMG_SUM_BYTES]);
/* Ends the present chunk: what comes later must lie behind it. */
void stream_trail_get(struct stream_trail *t, uint8_t sum[IMG_SUM_BYTES]);

/* What was sent or received; complete after END. */
struct stream_totals {
	uint64_t data_records, zero_records, checkpoints;
	uint64_t data_bytes, zero_bytes; /* of the disk */
	uint64_t wire_bytes;		 /* of the stream */
	uint64_t records;		 /* of every type */
	uint64_t skipped;		 /* of unknown type, and not critical */
	bool cut;			 /* it just ends, without END; nothing else is wrong */
	char stream_sum[IMG_SUM_STR];
	char content_sum[IMG_SUM_STR]; /* "": an increment, or not known */
	uint8_t trail[IMG_SUM_BYTES];  /* the prefix sum of all of it; received only */
};

struct stream_writer;

/*
 * Sends the preamble and BEGIN; the stream's id is made here and put into BEGIN. LEVEL is zstd's,
 * 0: no compression. TO is copied.
 */
int stream_write_begin(struct stream_writer **out, const struct stream_pipe *to, int level,
		       struct stream_begin *begin, struct img_err *err);
/*
 * Goes on where TOKEN says. CONTENT has seen the chunks below that, or is NULL: then END has no
 * content sum. The writer owns it from now on. BEGIN must be what it was, but for the plan.
 */
int stream_write_resume(struct stream_writer **out, const struct stream_pipe *to, int level,
			struct stream_begin *begin, const struct stream_token *token,
			struct img_sum *content, struct img_err *err);
/* FN is told the sums of chunks (img_sum_watch()) of a whole disk all of which is sent. */
void stream_write_watch(struct stream_writer *w,
			void (*fn)(void *ctx, uint64_t first, uint64_t n,
				   const uint8_t sum[IMG_SUM_BYTES]),
			void *ctx);
/* What this writer sent itself: all but what was sent before it went on. */
uint64_t stream_write_sent(const struct stream_writer *w);
/*
 * Room for LEN bytes of data, at most STREAM_PIECE; it belongs to the writer and holds until the
 * next call. Only what lies there may be given to stream_write_data().
 */
int stream_write_space(struct stream_writer *w, size_t len, uint8_t **buf, struct img_err *err);
/* Offsets ascend. Long zeros inside become ZERO records. */
int stream_write_data(struct stream_writer *w, uint64_t off, const uint8_t *buf, size_t len,
		      struct img_err *err);
int stream_write_zero(struct stream_writer *w, uint64_t off, uint64_t len, struct img_err *err);
/* The content sum of the disk, for END, of an increment whose sender knows it. */
void stream_write_content(struct stream_writer *w, const char sum[IMG_SUM_STR]);
/* Everything is out when this returns. */
int stream_write_end(struct stream_writer *w, struct stream_totals *totals, struct img_err *err);
/* Tells the receiver, if it can still be told, why there will be no END. */
void stream_write_abort(struct stream_writer *w, const struct img_err *why);
void stream_writer_free(struct stream_writer *w);

/* The most bytes that a stream with this BEGIN has, from what it plans. */
uint64_t stream_bound(const struct stream_begin *begin, uint64_t checkpoint, bool rest);

/* One record as it stands in the stream. */
struct stream_record {
	uint64_t seq, pos, off, len;
	uint32_t stored;
	uint16_t type, flags;
};
/* NULL: unknown */
const char *stream_type_name(unsigned type);

/* What a reader tells. Only what was verified arrives, in ascending order. */
struct stream_visitor {
	void *ctx;
	/*
	 * Data, zero, chunks and mark may come from another thread, later than the records; it
	 * has ended when stream_read() returns.
	 */
	bool apart;
	int (*begin)(void *ctx, const struct stream_begin *begin, struct img_err *err);
	int (*data)(void *ctx, uint64_t off, const void *buf, size_t len, struct img_err *err);
	int (*zero)(void *ctx, uint64_t off, uint64_t len, struct img_err *err);
	/*
	 * All below are NULL where the receiver cannot go on. Mark: everything before it was
	 * verified, also against the sender's own sum; at checkpoints and before END. Chunks:
	 * sums of those that came whole, N equal ones from FIRST on. Resume, instead of begin:
	 * fills in MARK, that of the partial result, and gives CONTENT (whole disks) the sums below
	 * it.
	 */
	/* Each record, before its content is looked at. */
	void (*record)(void *ctx, const struct stream_record *record);
	int (*mark)(void *ctx, const struct stream_mark *mark, struct img_err *err);
	void (*chunks)(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES]);
	int (*resume)(void *ctx, const struct stream_begin *begin, struct stream_mark *mark,
		      struct img_sum *content, struct img_err *err);
};

/*
 * Reads one stream up to its END and the end of the file behind it. All else is an error:
 * IMG_PROTO, that of the pipe, or the visitor's.
 */
int stream_read(const struct stream_pipe *from, const struct stream_visitor *visitor,
		struct stream_totals *totals, struct img_err *err);

#endif
