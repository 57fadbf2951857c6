/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The difference from a stale copy: all of the disk is read, and summed with the copy's seed; what
 * is equal there is not sent.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "bytes.h"
#include "send.h"

/* One chunk of the disk. */
struct chunk {
	uint64_t off;
	size_t len;
	bool zero; /* nothing in it has data, and BUF holds none of it */
	uint8_t *buf;
};

static int read_chunk(struct send *s, struct chunk *c, struct img_err *err)
{
	struct img_run run;

	if (img_map(s->chain, c->off, c->len, s->base, &run, err))
		return -1;
	c->zero = run.kind != IMG_DATA_RUN && run.len == c->len;
	return c->zero ? 0 : img_read(s->chain, c->buf, c->off, c->len, err);
}

/* ZEROS is the sum of a whole chunk of them. */
static void sum_chunk(const struct send *s, const struct chunk *c,
		      const uint8_t zeros[IMG_SUM_BYTES], uint8_t sum[IMG_SUM_BYTES])
{
	if (c->zero && c->len == STREAM_PIECE)
		memcpy(sum, zeros, IMG_SUM_BYTES);
	else
		img_sum_chunk(c->zero ? memset(c->buf, 0, c->len) : c->buf, c->len,
			      against_seed(s->against), sum);
}

static int send_chunk(struct send *s, struct chunk *c, struct img_sum *content,
		      const uint8_t zeros[IMG_SUM_BYTES], struct img_err *err)
{
	uint8_t stale[IMG_SUM_BYTES], ours[IMG_SUM_BYTES];

	if (against_next(s->against, stale, err) ||
	    stream_write_space(s->writer, STREAM_PIECE, &c->buf, err) || read_chunk(s, c, err))
		return -1;
	if (c->zero)
		img_sum_zeros(content, c->len);
	else
		img_sum_data(content, c->buf, c->len);
	sum_chunk(s, c, zeros, ours);
	if (c->off < s->token.mark.off || !memcmp(stale, ours, sizeof(ours)))
		return 0;
	return c->zero ? stream_write_zero(s->writer, c->off, c->len, err)
		       : stream_write_data(s->writer, c->off, c->buf, c->len, err);
}

static int send_chunks(struct send *s, struct img_sum *content, struct img_err *err)
{
	const uint64_t size = s->begin.size;
	uint8_t zeros[IMG_SUM_BYTES];
	struct chunk c = {.len = STREAM_PIECE, .zero = true};

	if (stream_write_space(s->writer, STREAM_PIECE, &c.buf, err))
		return -1;
	img_sum_chunk(memset(c.buf, 0, c.len), c.len, against_seed(s->against), zeros);
	for (; c.off < size; c.off += c.len) {
		c.len = (size_t)u64_min(size - c.off, STREAM_PIECE);
		if (send_chunk(s, &c, content, zeros, err))
			return -1;
		if (cli_progress(&s->progress, c.off, size))
			return img_err_set(err, IMG_AGAIN, "interrupted");
	}
	return 0;
}

int send_differences(struct send *s, struct img_err *err)
{
	struct img_sum *content = img_sum_new(s->begin.size);
	char sum[IMG_SUM_STR];
	int rc = -1;

	if (!content)
		return img_err_errno(err, ENOMEM, "%s", s->disk);
	img_sum_watch(content, img_sums_add, s->kept);
	if (send_chunks(s, content, err) == 0) {
		img_sum_final(content, sum);
		stream_write_content(s->writer, sum);
		rc = against_end(s->against, err);
	}
	img_sum_free(content);
	return rc;
}
