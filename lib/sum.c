/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Content sums: XXH3-128 over the size (64 bits, little-endian) and the XXH3-128 (canonical,
 * big-endian) of each 1 MiB chunk; the last chunk may be short. The sum of a zero chunk is
 * computed once, so holes cost nothing.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "bytes.h"
#include "img_impl.h"

struct img_sum {
	XXH3_state_t *all, *chunk_state;
	uint64_t left; /* bytes of the disk still to come */
	uint64_t fill; /* bytes in the chunk so far */
	XXH128_canonical_t zero_chunk;
	uint64_t chunk; /* number of the present one */
	uint64_t seed;
	bool gaps; /* there is no sum of all */
	void (*watch)(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES]);
	void *ctx;
	uint8_t zeros[64 << 10];
};

void img_sum_chunk(const void *buf, size_t len, uint64_t seed, uint8_t sum[IMG_SUM_BYTES])
{
	XXH128_canonical_t c;

	XXH128_canonicalFromHash(&c, XXH3_128bits_withSeed(buf, len, seed));
	memcpy(sum, c.digest, IMG_SUM_BYTES);
}

struct img_sum *img_sum_new(uint64_t size)
{
	return img_sum_new_seeded(size, 0);
}

struct img_sum *img_sum_new_seeded(uint64_t size, uint64_t seed)
{
	struct img_sum *s = calloc(1, sizeof(*s));
	uint8_t le[8];

	if (!s)
		return NULL;
	s->all = XXH3_createState();
	s->chunk_state = XXH3_createState();
	if (!s->all || !s->chunk_state) {
		img_sum_free(s);
		return NULL;
	}
	s->left = size;
	s->seed = seed;
	le64_put(le, size);
	XXH3_128bits_reset(s->all);
	XXH3_128bits_update(s->all, le, sizeof(le));
	XXH3_128bits_reset_withSeed(s->chunk_state, s->seed);
	for (size_t n = 0; n < IMG_SUM_CHUNK; n += sizeof(s->zeros))
		XXH3_128bits_update(s->chunk_state, s->zeros, sizeof(s->zeros));
	XXH128_canonicalFromHash(&s->zero_chunk, XXH3_128bits_digest(s->chunk_state));
	XXH3_128bits_reset_withSeed(s->chunk_state, s->seed);
	return s;
}

void img_sum_free(struct img_sum *s)
{
	if (!s)
		return;
	XXH3_freeState(s->all);
	XXH3_freeState(s->chunk_state);
	free(s);
}

void img_sum_watch(struct img_sum *s,
		   void (*fn)(void *ctx, uint64_t first, uint64_t n,
			      const uint8_t sum[IMG_SUM_BYTES]),
		   void *ctx)
{
	s->watch = fn;
	s->ctx = ctx;
}

/* N chunks, told to whoever watches. */
static void add_chunks(struct img_sum *s, const uint8_t sum[IMG_SUM_BYTES], uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		XXH3_128bits_update(s->all, sum, IMG_SUM_BYTES);
	if (s->watch)
		s->watch(s->ctx, s->chunk, n, sum);
	s->chunk += n;
}

static void end_chunk(struct img_sum *s)
{
	XXH128_canonical_t c;

	XXH128_canonicalFromHash(&c, XXH3_128bits_digest(s->chunk_state));
	XXH3_128bits_reset_withSeed(s->chunk_state, s->seed);
	add_chunks(s, c.digest, 1);
	s->fill = 0;
}

void img_sum_known(struct img_sum *s, const uint8_t sum[IMG_SUM_BYTES], uint64_t n)
{
	s->left -= u64_min(s->left, n * IMG_SUM_CHUNK);
	add_chunks(s, sum, n);
}

void img_sum_skip(struct img_sum *s, uint64_t n)
{
	s->left -= u64_min(s->left, n * IMG_SUM_CHUNK);
	s->chunk += n;
	s->gaps = true;
}

void img_sum_data(struct img_sum *s, const void *buf, size_t len)
{
	const uint8_t *p = buf;

	while (len) {
		size_t n = (size_t)u64_min(len, IMG_SUM_CHUNK - s->fill);

		if (n == IMG_SUM_CHUNK) {
			XXH128_canonical_t c;

			XXH128_canonicalFromHash(&c, XXH3_128bits_withSeed(p, n, s->seed));
			s->left -= n;
			add_chunks(s, c.digest, 1);
		} else {
			XXH3_128bits_update(s->chunk_state, p, n);
			s->fill += n;
			s->left -= n;
			if (s->fill == IMG_SUM_CHUNK || s->left == 0)
				end_chunk(s);
		}
		p += n;
		len -= n;
	}
}

void img_sum_zeros(struct img_sum *s, uint64_t len)
{
	while (len) {
		if (s->fill == 0 && len >= IMG_SUM_CHUNK) {
			s->left -= len - len % IMG_SUM_CHUNK;
			add_chunks(s, s->zero_chunk.digest, len / IMG_SUM_CHUNK);
			len %= IMG_SUM_CHUNK;
			continue;
		}
		/* Never past the chunk: behind its end whole chunks come cheap again. */
		size_t n = (size_t)u64_min(u64_min(len, sizeof(s->zeros)), IMG_SUM_CHUNK - s->fill);

		img_sum_data(s, s->zeros, n);
		len -= n;
	}
}

void img_sum_final(struct img_sum *s, char out[IMG_SUM_STR])
{
	XXH128_canonical_t c;

	out[0] = '\0';
	if (s->gaps)
		return;
	XXH128_canonicalFromHash(&c, XXH3_128bits_digest(s->all));
	for (size_t i = 0; i < sizeof(c.digest); i++)
		snprintf(out + 2 * i, 3, "%02x", c.digest[i]);
}

struct range {
	struct img_sum *s;
	struct img_sum_job *job;
	uint64_t size; /* of the disk */
};

static int sum_run(void *ctx, const struct img_run *run, uint8_t *buf, struct img_err *err)
{
	struct range *r = ctx;
	struct img_sum_job *job = r->job;

	if (buf) {
		img_sum_data(r->s, buf, run->len);
		job->read += run->len;
	} else {
		img_sum_zeros(r->s, run->len);
	}
	if (job->progress && job->progress(job->ctx, run->off + run->len, r->size))
		return img_err_set(err, IMG_AGAIN, "interrupted");
	return 0;
}

int img_sum_range(struct img_chain *c, struct img_sum *s, uint64_t off, uint64_t end,
		  struct img_sum_job *job, struct img_err *err)
{
	struct range range = {.s = s, .job = job, .size = img_size(c)};
	struct img_walk w = {.off = off,
			     .end = end,
			     .base = img_layers(c),
			     .unit = IMG_SUM_CHUNK,
			     .visit = sum_run,
			     .ctx = &range};

	if (!job->buf && !(job->buf = aligned_alloc(4096, IMG_SUM_CHUNK)))
		return img_err_errno(err, ENOMEM, "sum");
	w.buf = job->buf;
	return img_walk(c, &w, err);
}

int img_sum_chain(struct img_chain *c, int (*progress)(void *ctx, uint64_t done, uint64_t planned),
		  void *ctx, char out[IMG_SUM_STR], struct img_err *err)
{
	struct img_sum_job job = {.progress = progress, .ctx = ctx};
	struct img_sum *s = img_sum_new(img_size(c));
	int rc;

	if (!s)
		return img_err_errno(err, ENOMEM, "sum");
	rc = img_sum_range(c, s, 0, img_size(c), &job, err);
	if (rc == 0)
		img_sum_final(s, out);
	img_sum_free(s);
	free(job.buf);
	return rc;
}
