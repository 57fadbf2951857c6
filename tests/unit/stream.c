/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Small streams of every kind, with every bit flipped, cut at every byte, with records that are
 * lost, doubled, exchanged, or from another stream of the same disk; and the same for what goes on
 * with one. Nothing of that may be accepted. In one process, since that is some ten thousand of
 * each.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bytes.h"
#include "../fuzz/stream-model.h"
#include "../fuzz/stream-mutate.h"
#include "stream_impl.h"

enum { MOST = 1100, ALL = 31 };

struct reader {
	int fd;
	bool keep, resumed; /* KEEP: the first mark is noted in MARK */
	struct stream_begin begin;
	struct stream_mark mark;
	uint8_t sum[4][IMG_SUM_BYTES];
	uint64_t n[4];
	unsigned sums, mark_sums;
};

static unsigned long tried;

static int on_begin(void *ctx, const struct stream_begin *b, struct img_err *err)
{
	struct reader *r = ctx;

	(void)err;
	if (r->keep)
		r->begin = *b;
	return 0;
}

static int on_data(void *ctx, uint64_t off, const void *buf, size_t len, struct img_err *err)
{
	(void)ctx, (void)off, (void)buf, (void)len, (void)err;
	return 0;
}

static int on_zero(void *ctx, uint64_t off, uint64_t len, struct img_err *err)
{
	(void)ctx, (void)off, (void)len, (void)err;
	return 0;
}

static void on_chunks(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	struct reader *r = ctx;

	(void)first;
	if (!r->keep || r->sums == 4)
		return;
	r->n[r->sums] = n;
	memcpy(r->sum[r->sums++], sum, IMG_SUM_BYTES);
}

static int on_mark(void *ctx, const struct stream_mark *m, struct img_err *err)
{
	struct reader *r = ctx;

	(void)err;
	if (!r->keep || r->mark.seq)
		return 0;
	r->mark = *m;
	r->mark_sums = r->sums;
	return 0;
}

static int on_resume(void *ctx, const struct stream_begin *b, struct stream_mark *mark,
		     struct img_sum *content, struct img_err *err)
{
	struct reader *r = ctx;

	/* As vhd-recv does. */
	if (memcmp(b->stream_id, r->begin.stream_id, 16) != 0 || b->size != r->begin.size ||
	    b->kind != r->begin.kind)
		return img_err_set(err, IMG_AGAIN, "another stream");
	*mark = r->mark;
	for (unsigned i = 0; content && i < r->mark_sums; i++)
		img_sum_known(content, r->sum[i], r->n[i]);
	return 0;
}

static bool accepted(struct reader *r, const uint8_t *p, size_t n)
{
	const struct stream_visitor v = {.ctx = r,
					 .begin = on_begin,
					 .data = on_data,
					 .zero = on_zero,
					 .chunks = on_chunks,
					 .mark = on_mark,
					 .resume = on_resume};
	struct stream_pipe from = {.fd = r->fd, .name = "s"};
	struct stream_totals totals;
	struct img_err err = {0};
	int rc;

	tried++;
	if (pwrite(r->fd, p, n, 0) != (ssize_t)n || ftruncate(r->fd, (off_t)n) < 0 ||
	    lseek(r->fd, 0, SEEK_SET) < 0)
		abort();
	rc = stream_read(&from, &v, &totals, &err);
	if (rc && (!err.code || !err.msg[0]))
		printf("refused without a word\n");
	return rc == 0;
}

static void refused(struct reader *r, const uint8_t *p, size_t n, const char *what, size_t where)
{
	if (!accepted(r, p, n))
		return;
	printf("accepted: %s at %zu\n", what, where);
	exit(1);
}

static void bits_and_cuts(struct reader *r, uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n * 8; i++) {
		p[i / 8] ^= (uint8_t)(1u << i % 8);
		refused(r, p, n, "a flipped bit", i);
		p[i / 8] ^= (uint8_t)(1u << i % 8);
	}
	for (size_t i = 0; i < n; i++)
		refused(r, p, i, "a cut", i);
}

/* The records of P, from FIRST on; returns how many. */
static unsigned records(const uint8_t *p, size_t n, size_t first, size_t *at)
{
	unsigned k = 0;

	for (; first < n && k < 99; first += STREAM_HEADER + le32_get(p + first + 32))
		at[k++] = first;
	at[k] = n;
	return k;
}

/* The records FROM to TO of X, behind what is at OUT. */
static size_t take(uint8_t *out, size_t n, const uint8_t *x, size_t from, size_t to)
{
	memcpy(out + n, x + from, to - from);
	return n + to - from;
}

/* B is another stream of the same disk, whose records are as long. */
static void reordered(struct reader *r, const uint8_t *a, const uint8_t *b, size_t n)
{
	static uint8_t out[4 * MOST];
	size_t at[100], k;
	unsigned count = records(a, n, STREAM_PREAMBLE, at);

	for (unsigned i = 0; i < count; i++) {
		k = take(out, take(out, 0, a, 0, at[i]), a, at[i + 1], n);
		refused(r, out, k, "a lost record", i);
		k = take(out, take(out, 0, a, 0, at[i + 1]), a, at[i], n);
		refused(r, out, k, "a doubled record", i);
		k = take(out, take(out, 0, a, 0, at[i]), b, at[i], at[i + 1]);
		k = take(out, k, a, at[i + 1], n);
		refused(r, out, k, "a record of another stream", i);
		k = take(out, take(out, 0, a, 0, at[i]), b, at[i], n);
		refused(r, out, k, "the rest of another stream", i);
		for (unsigned j = i + 1; j < count; j++) {
			k = take(out, take(out, 0, a, 0, at[i]), a, at[j], at[j + 1]);
			k = take(out, k, a, at[i + 1], at[j]);
			k = take(out, take(out, k, a, at[i], at[i + 1]), a, at[j + 1], n);
			refused(r, out, k, "two records exchanged", i);
		}
	}
}

static void try_stream(const uint8_t *made, size_t n)
{
	static uint8_t a[MOST], b[MOST], rest[2 * MOST];
	struct reader r = {.fd = memfd_create("stream", MFD_CLOEXEC), .keep = true};
	size_t k;

	memcpy(a, made, n);
	memcpy(b, made, n);
	b[24] ^= 1;
	stream_seal_whole(b, n, SEAL_ALL);
	if (!accepted(&r, b, n)) {
		printf("refused: a stream that is right\n");
		exit(1);
	}
	memset(&r.mark, 0, sizeof(r.mark));
	r.sums = 0;
	if (!accepted(&r, a, n))
		exit(1);
	r.keep = false;
	bits_and_cuts(&r, a, n);
	reordered(&r, a, b, n);
	if (r.mark.seq && r.mark.wire_bytes < n) {
		k = stream_make_rest(&r.begin, &r.mark, a, n, rest);
		if (!accepted(&r, rest, k)) {
			printf("refused: a rest that is right\n");
			exit(1);
		}
		bits_and_cuts(&r, rest, k);
	}
	close(r.fd);
}

/* What there is to be tried: each kind, compressed records, a place to go on from. */
static unsigned features(const uint8_t *p, size_t n)
{
	static struct model m;
	size_t at[100];
	unsigned f, count = records(p, n, STREAM_PREAMBLE, at);

	model_read(&m, p, n, false);
	f = 1u << m.kind;
	for (unsigned i = 0; i < count; i++)
		if (le16_get(p + at[i] + 38) & STREAM_ZSTD)
			f |= 8;
	return m.marks && m.mark[0] < m.end_at ? f | 16 : f;
}

int main(void)
{
	static uint8_t p[1 << 14];
	unsigned seen = 0, streams = 0, f;

	for (uint32_t seed = 1; seed < 20000 && seen != ALL; seed++) {
		size_t n = stream_make(p, sizeof(p), seed);

		if (n > MOST || ((f = features(p, n)) | seen) == seen)
			continue;
		try_stream(p, n);
		seen |= f;
		streams++;
	}
	if (!(seen & 8))
		printf("no compressed stream\n");
	printf("%u streams, %lu variations tried\n", streams, tried);
	return (seen | 8) != ALL;
}
