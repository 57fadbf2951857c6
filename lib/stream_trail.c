/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The prefix sum of vhd-stream(5): what was said of the disk below a position, whatever the
 * records were cut like. A sender that must prove that its disk is still the same reads the prefix
 * again and compares.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "bytes.h"
#include "stream_impl.h"

struct stream_trail {
	uint8_t sum[STREAM_SUM];
	bool open; /* something of CHUNK was given */
	uint64_t chunk;
	uint32_t start, end; /* the present range, within the chunk */
	XXH3_state_t *data, *ranges;
	uint8_t zero_chunk[STREAM_SUM]; /* of a chunk that is all zero */
	uint8_t full[STREAM_SUM];	/* of the ranges of a chunk that is all there */
	uint64_t size;			/* of the disk; 0: nobody watches */
	void (*watch)(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES]);
	void *ctx;
};

static void digest(uint8_t out[STREAM_SUM], XXH128_hash_t h)
{
	XXH128_canonical_t c;

	XXH128_canonicalFromHash(&c, h);
	memcpy(out, c.digest, STREAM_SUM);
}

static const uint8_t zeros[64 << 10];

struct stream_trail *stream_trail_new(void)
{
	struct stream_trail *t = calloc(1, sizeof(*t));
	uint8_t range[8];

	if (!t)
		return NULL;
	t->data = XXH3_createState();
	t->ranges = XXH3_createState();
	if (!t->data || !t->ranges) {
		stream_trail_free(t);
		return NULL;
	}
	le32_put(range, 0);
	le32_put(range + 4, STREAM_PIECE);
	digest(t->full, XXH3_128bits(range, sizeof(range)));
	XXH3_128bits_reset(t->data);
	for (size_t n = 0; n < STREAM_PIECE; n += sizeof(zeros))
		XXH3_128bits_update(t->data, zeros, sizeof(zeros));
	digest(t->zero_chunk, XXH3_128bits_digest(t->data));
	return t;
}

void stream_trail_free(struct stream_trail *t)
{
	if (!t)
		return;
	XXH3_freeState(t->data);
	XXH3_freeState(t->ranges);
	free(t);
}

void stream_trail_watch(struct stream_trail *t, uint64_t size,
			void (*fn)(void *ctx, uint64_t first, uint64_t n,
				   const uint8_t sum[IMG_SUM_BYTES]),
			void *ctx)
{
	t->size = size;
	t->watch = fn;
	t->ctx = ctx;
}

void stream_trail_set(struct stream_trail *t, const uint8_t sum[STREAM_SUM])
{
	memcpy(t->sum, sum, STREAM_SUM);
	t->open = false;
}

static void chain(struct stream_trail *t, uint64_t chunk, const uint8_t data[STREAM_SUM],
		  const uint8_t ranges[STREAM_SUM])
{
	uint8_t buf[3 * STREAM_SUM + 8];

	memcpy(buf, t->sum, STREAM_SUM);
	le64_put(buf + STREAM_SUM, chunk);
	memcpy(buf + STREAM_SUM + 8, data, STREAM_SUM);
	memcpy(buf + 2 * STREAM_SUM + 8, ranges, STREAM_SUM);
	digest(t->sum, XXH3_128bits(buf, sizeof(buf)));
}

static void end_range(struct stream_trail *t)
{
	uint8_t b[8];

	if (t->end == t->start)
		return;
	le32_put(b, t->start);
	le32_put(b + 4, t->end);
	XXH3_128bits_update(t->ranges, b, sizeof(b));
}

static void close_chunk(struct stream_trail *t)
{
	uint8_t data[STREAM_SUM], ranges[STREAM_SUM];

	if (!t->open)
		return;
	end_range(t);
	digest(data, XXH3_128bits_digest(t->data));
	digest(ranges, XXH3_128bits_digest(t->ranges));
	chain(t, t->chunk, data, ranges);
	t->open = false;
	/* The last range began at 0: it is the only one. */
	if (t->watch && t->start == 0 &&
	    t->end == u64_min(STREAM_PIECE, t->size - t->chunk * STREAM_PIECE))
		t->watch(t->ctx, t->chunk, 1, data);
}

static void open_chunk(struct stream_trail *t, uint64_t chunk)
{
	XXH3_128bits_reset(t->data);
	XXH3_128bits_reset(t->ranges);
	t->chunk = chunk;
	t->start = t->end = 0;
	t->open = true;
}

/* A part of one chunk. */
static void add_part(struct stream_trail *t, uint64_t off, const uint8_t *buf, size_t len)
{
	uint32_t at = (uint32_t)(off % STREAM_PIECE);

	if (t->open && t->chunk != off / STREAM_PIECE)
		close_chunk(t);
	if (!t->open && len == STREAM_PIECE) {
		uint8_t data[STREAM_SUM];

		if (buf)
			digest(data, XXH3_128bits(buf, len));
		chain(t, off / STREAM_PIECE, buf ? data : t->zero_chunk, t->full);
		if (t->watch)
			t->watch(t->ctx, off / STREAM_PIECE, 1, buf ? data : t->zero_chunk);
		return;
	}
	if (!t->open)
		open_chunk(t, off / STREAM_PIECE);
	if (at != t->end) {
		end_range(t);
		t->start = at;
	}
	t->end = at + (uint32_t)len;
	if (buf)
		XXH3_128bits_update(t->data, buf, len);
	for (size_t n; !buf && len; len -= n) {
		n = len < sizeof(zeros) ? len : sizeof(zeros);
		XXH3_128bits_update(t->data, zeros, n);
	}
}

void stream_trail_add(struct stream_trail *t, uint64_t off, const void *buf, uint64_t len)
{
	const uint8_t *p = buf;

	while (len) {
		size_t n = (size_t)u64_min(len, STREAM_PIECE - off % STREAM_PIECE);

		add_part(t, off, p, n);
		p = p ? p + n : NULL;
		off += n;
		len -= n;
	}
}

void stream_trail_chunks(struct stream_trail *t, uint64_t first, uint64_t n,
			 const uint8_t sum[STREAM_SUM], uint64_t size)
{
	uint8_t range[8], part[STREAM_SUM];

	for (uint64_t i = first; i < first + n; i++) {
		if (size - i * STREAM_PIECE >= STREAM_PIECE) {
			chain(t, i, sum, t->full);
			continue;
		}
		le32_put(range, 0);
		le32_put(range + 4, (uint32_t)(size - i * STREAM_PIECE));
		digest(part, XXH3_128bits(range, sizeof(range)));
		chain(t, i, sum, part);
	}
}

void stream_trail_get(struct stream_trail *t, uint8_t sum[STREAM_SUM])
{
	close_chunk(t);
	memcpy(sum, t->sum, STREAM_SUM);
}
