/* SPDX-License-Identifier: BSD-2-Clause */
/* What the parts of the stream code share; vhd-stream(5) explains every value. */
#ifndef STREAM_IMPL_H
#define STREAM_IMPL_H

#include <sys/uio.h>

#include "stream.h"

#define STREAM_MAJOR 1
#define STREAM_MINOR 0
#define STREAM_PREAMBLE 48u
#define STREAM_HEADER 40u
#define STREAM_SUM 16u
#define STREAM_MAX_PAYLOAD (16u << 20)
#define STREAM_MAX_CONTROL (64u << 10)
/*
 * Less than half of what may have to be sent again: while one is made durable the next is on its
 * way, and behind that what stands in pipes.
 */
#define STREAM_CHECKPOINT_BYTES (120ull << 20)
#define STREAM_CHECKPOINT_SECONDS 4

enum { STREAM_INCOMPAT_ZSTD = 1u << 0, STREAM_INCOMPAT_CONTINUED = 1u << 1 };

enum stream_type {
	STREAM_BEGIN = 1,
	STREAM_DATA = 2,
	STREAM_ZERO = 3,
	STREAM_CHECKPOINT = 4,
	STREAM_END = 5,
	STREAM_ABORT = 6,
	STREAM_CONTINUE =
		7, /* the first of a continued stream, and outside of its numbers and sums */
};

enum { STREAM_CRITICAL = 1u << 0, STREAM_ZSTD = 1u << 1 };

struct stream_head {
	uint64_t sum;
	uint64_t seq;
	uint64_t off;
	uint64_t len;	 /* of the disk (DATA, ZERO) or of the payload */
	uint32_t stored; /* bytes that follow */
	uint16_t type, flags;
};

/* Where a reader is, for messages. */
struct stream_where {
	const char *name;
	uint64_t seq, pos;
};

/* What CHECKPOINT and END say. */
struct stream_marks {
	uint64_t wire_bytes; /* before this record */
	uint8_t sum[STREAM_SUM];
	struct stream_totals totals; /* END only; its sums as text */
};

/* IMG_PROTO, with the place. Returns -1. */
int stream_bad(const struct stream_where *at, struct img_err *err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

uint64_t stream_seed(const uint8_t id[16]);
void stream_preamble_put(uint8_t buf[STREAM_PREAMBLE], const struct stream_begin *b,
			 bool continued);
/* Does it begin as a stream? BUF has 8 bytes at least. */
bool stream_has_magic(const uint8_t *buf);
/* Fills the stream's id and features. */
int stream_preamble_get(const uint8_t buf[STREAM_PREAMBLE], struct stream_begin *b, bool *continued,
			const struct stream_where *at, struct img_err *err);

/* Encodes H with its checksum over header and payload. */
void stream_head_put(uint8_t buf[STREAM_HEADER], struct stream_head *h, const void *payload,
		     uint64_t seed);
void stream_head_get(const uint8_t buf[STREAM_HEADER], struct stream_head *h);
uint64_t stream_head_sum(const uint8_t buf[STREAM_HEADER], const void *payload, size_t len,
			 uint64_t seed);

/* The running sum: begins with the preamble, each record's header is linked to it. */
void stream_sum_begin(uint8_t sum[STREAM_SUM], const uint8_t preamble[STREAM_PREAMBLE]);
void stream_sum_link(uint8_t sum[STREAM_SUM], const uint8_t head[STREAM_HEADER]);
void stream_sum_str(const uint8_t sum[STREAM_SUM], char out[IMG_SUM_STR]);

/* Payloads of the control records; BUF has STREAM_MAX_CONTROL bytes. Return the length. */
size_t stream_begin_put(uint8_t *buf, const struct stream_begin *b);
size_t stream_checkpoint_put(uint8_t *buf, const struct stream_marks *m);
size_t stream_end_put(uint8_t *buf, const struct stream_marks *m);
size_t stream_abort_put(uint8_t *buf, const struct img_err *why);
size_t stream_continue_put(uint8_t *buf, const struct stream_begin *b,
			   const struct stream_marks *m);
/* M is NULL for BEGIN, else the record is CONTINUE. */
int stream_begin_get(const uint8_t *buf, size_t len, struct stream_begin *b, struct stream_marks *m,
		     const struct stream_where *at, struct img_err *err);
int stream_checkpoint_get(const uint8_t *buf, size_t len, struct stream_marks *m,
			  const struct stream_where *at, struct img_err *err);
int stream_end_get(const uint8_t *buf, size_t len, struct stream_marks *m,
		   const struct stream_where *at, struct img_err *err);
/* Always -1: the sender's reason, or what is wrong with it. */
int stream_abort_get(const uint8_t *buf, size_t len, const struct stream_where *at,
		     struct img_err *err);

/* stream_pipe.c. Waits end with IMG_AGAIN when RELAY, if not NULL, has failed. */
void stream_pipe_tune(const struct stream_pipe *p);
/* All of IOV, which is used up. A reader that went away is IMG_UNAVAIL. */
int stream_pipe_write(struct stream_pipe *p, struct iovec *iov, int n, struct img_err *err);
/* At least MIN bytes, at most MAX, as many as are there; *GOT < MIN only at the end of the file. */
int stream_pipe_read(struct stream_pipe *p, void *buf, size_t min, size_t max, size_t *got,
		     struct img_err *err);

/* stream_zstd.c. Without zstd the first returns NULL and IMG_USAGE or IMG_UNAVAIL. */
struct stream_codec;
struct stream_codec *stream_codec_new(int level, struct img_err *err);
void stream_codec_free(struct stream_codec *c);
/* What one of a writer takes. */
size_t stream_codec_memory(int level);
/*
 * Length in DST, which has LEN bytes; 0: it does not pay, send as it is. *FAILED is set when it
 * is not known.
 */
size_t stream_pack(struct stream_codec *c, const void *src, size_t len, void *dst, bool *failed);
/* False: it is not a frame of exactly LEN bytes. */
bool stream_unpack(struct stream_codec *c, const void *src, size_t stored, void *dst, size_t len);

/*
 * stream_relay.c: from the reader to the visitor's data, zero, chunks and mark. One thread, the
 * reader's, calls these. When one has failed the reader ends; stream_relay_end() knows why.
 */
struct stream_relay;
struct stream_relay *stream_relay_new(const struct stream_visitor *v);
void stream_relay_free(struct stream_relay *r);
/* Room for LEN bytes; only what lies there, and begins there, may be the next data. */
int stream_relay_room(struct stream_relay *r, size_t len, uint8_t **buf, struct img_err *err);
int stream_relay_data(struct stream_relay *r, uint64_t off, const uint8_t *buf, size_t len,
		      struct img_err *err);
int stream_relay_zero(struct stream_relay *r, uint64_t off, uint64_t len, struct img_err *err);
void stream_relay_chunks(struct stream_relay *r, uint64_t first, uint64_t n,
			 const uint8_t sum[IMG_SUM_BYTES]);
int stream_relay_mark(struct stream_relay *r, const struct stream_mark *mark, struct img_err *err);
/* After each record. */
int stream_relay_step(struct stream_relay *r, struct img_err *err);
/* The visitor's; asked while the reader waits for the pipe. */
bool stream_relay_failed(struct stream_relay *r);
/* All was visited. RC and ERR are the reader's; the visitor's come first. */
int stream_relay_end(struct stream_relay *r, int rc, struct img_err *err);

/* A range of the disk. */
struct stream_run {
	uint64_t off, len;
	const uint8_t *data; /* NULL: zeros */
	const uint8_t *packed;
	size_t stored; /* bytes of PACKED; 0: not compressed */
};
/* Shorter zeros in data stay data: they cost less than two more records. */
#define STREAM_ZERO_UNIT (64u << 10)
/* Takes the first run of zeros, or of data without, off *REST. */
struct stream_run stream_run_first(struct stream_run *rest);

/* stream_crew.c. One thread, the caller's, uses all of these. */
#define STREAM_BATCH_PIECES 256
struct stream_batch {
	uint8_t *raw, *packed;
	size_t used; /* of RAW, which has room for another STREAM_PIECE */
	struct stream_run pieces[STREAM_BATCH_PIECES];
	unsigned npieces, nruns;
	/* Made of the pieces, with a cut at most wherever a unit begins inside one. */
	struct stream_run runs[2 * STREAM_BATCH_PIECES + 2 * STREAM_PIECE / STREAM_ZERO_UNIT];
	bool done, failed;
};
struct stream_crew;
/* At most THREADS, and less where memory would not be bounded. */
struct stream_crew *stream_crew_new(int level, unsigned threads, struct img_err *err);
void stream_crew_free(struct stream_crew *c);
/* The batch that is being filled; NULL: all are on their way, one must be emptied first. */
struct stream_batch *stream_crew_room(struct stream_crew *c);
bool stream_batch_full(const struct stream_batch *b);
/* It goes to the threads. */
void stream_crew_fill(struct stream_crew *c);
/* The oldest of them; NULL: there is none, or without WAIT, it is not done. */
struct stream_batch *stream_crew_next(struct stream_crew *c, bool wait);
/* Its pieces are not needed any more. */
void stream_crew_empty(struct stream_crew *c);

#endif
