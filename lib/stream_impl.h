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
/* Half of what may have to be sent again: while one is made durable the next is on its way. */
#define STREAM_CHECKPOINT_BYTES (128ull << 20)
#define STREAM_CHECKPOINT_SECONDS 4

enum { STREAM_INCOMPAT_ZSTD = 1u << 0, STREAM_INCOMPAT_CONTINUED = 1u << 1 };

enum stream_type {
	STREAM_BEGIN = 1,
	STREAM_DATA = 2,
	STREAM_ZERO = 3,
	STREAM_CHECKPOINT = 4,
	STREAM_END = 5,
	STREAM_ABORT = 6,
	STREAM_CONTINUE = 7, /* the first of a continued stream, and outside of its numbers and sums */
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
/* Fills the stream's id and features. */
int stream_preamble_get(const uint8_t buf[STREAM_PREAMBLE], struct stream_begin *b,
			bool *continued, const struct stream_where *at, struct img_err *err);

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
size_t stream_continue_put(uint8_t *buf, const struct stream_begin *b, const struct stream_marks *m);
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

/* stream_pipe.c */
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
/* Length in DST, which has LEN bytes; 0: it does not pay, send as it is. */
size_t stream_pack(struct stream_codec *c, const void *src, size_t len, void *dst);
/* False: it is not a frame of exactly LEN bytes. */
bool stream_unpack(struct stream_codec *c, const void *src, size_t stored, void *dst, size_t len);

#endif
