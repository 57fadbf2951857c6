/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A stream from somebody who wishes us ill, with right checksums: what the receiver takes of it stays inside the
 * disk and ascends, and what it accepts as whole has the content that it was told.
 *
 * Input: one byte of mode. Mode 0: the rest is a token. Mode 1: the rest is the stream, as it is. Else records: a byte
 * for the type, one for the flags, two for the offset, two for the length (in units of 64 bytes),
 * one for the payload's; each is sealed as a sender would, END and CHECKPOINT get their right marks.
 */
#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "fuzz.h"
#include "stream_impl.h"

enum { MAX_STREAM = 1 << 20, MAX_DISK = 4 << 20, MAX_RECORDS = 60 };

static uint8_t stream[MAX_STREAM], control[STREAM_MAX_CONTROL], disk[MAX_DISK];

struct made {
	size_t len;
	uint64_t seq, seed;
	uint8_t sum[STREAM_SUM];
};

struct seen {
	struct stream_begin begin;
	bool begun;
	uint64_t pos, marks;
};

static void add(struct made *m, struct stream_head *h, const uint8_t *payload)
{
	uint8_t *p = stream + m->len;

	h->seq = m->seq++;
	if (m->len + STREAM_HEADER + h->stored > MAX_STREAM)
		return;
	memcpy(p + STREAM_HEADER, payload, h->stored);
	stream_head_put(p, h, p + STREAM_HEADER, m->seed);
	stream_sum_link(m->sum, p);
	m->len += STREAM_HEADER + h->stored;
}

static size_t marks(const struct made *m, struct fuzz_in *in, bool end)
{
	struct stream_marks marks = {.wire_bytes = m->len};
	struct stream_totals *t = &marks.totals;

	memcpy(marks.sum, m->sum, STREAM_SUM);
	if (!end)
		return stream_checkpoint_put(control, &marks);
	t->data_records = fuzz_u8(in);
	t->zero_records = fuzz_u8(in);
	t->data_bytes = (uint64_t)fuzz_u16(in) * 64;
	t->zero_bytes = (uint64_t)fuzz_u16(in) * 64;
	return stream_end_put(control, &marks);
}

static void add_record(struct made *m, struct fuzz_in *in)
{
	struct stream_head h = {.type = fuzz_u8(in) % 9, .flags = fuzz_u8(in) % 4};

	h.off = (uint64_t)fuzz_u16(in) * 64;
	h.len = (uint64_t)fuzz_u16(in) * 64;
	if (h.type == STREAM_CHECKPOINT || h.type == STREAM_END)
		h.stored = (uint32_t)marks(m, in, h.type == STREAM_END);
	else if (h.type != STREAM_ZERO)
		h.stored = (uint32_t)(h.type == STREAM_DATA && !(h.flags & STREAM_ZSTD) && h.len < 4096
					      ? h.len
					      : fuzz_u8(in));
	if (h.type != STREAM_CHECKPOINT && h.type != STREAM_END) {
		memset(control, 0, h.stored);
		memcpy(control, in->p, in->n < h.stored ? in->n : h.stored);
	}
	if (h.type != STREAM_DATA && h.type != STREAM_ZERO)
		h.len = h.stored;
	add(m, &h, control);
}

static void make(struct made *m, struct fuzz_in *in)
{
	struct stream_begin b = {.compressed = fuzz_u8(in) & 1, .kind = fuzz_u8(in) % 3};
	struct stream_head h = {.type = STREAM_BEGIN, .flags = STREAM_CRITICAL};

	b.size = (uint64_t)fuzz_u16(in) * 64;
	b.base_size = b.size;
	b.has_uuid = true;
	stream_preamble_put(stream, &b, fuzz_u8(in) % 16 == 0);
	m->len = STREAM_PREAMBLE;
	m->seed = stream_seed(b.stream_id);
	stream_sum_begin(m->sum, stream);
	h.len = h.stored = (uint32_t)stream_begin_put(control, &b);
	add(m, &h, control);
	for (int i = 0; i < MAX_RECORDS && in->n; i++)
		add_record(m, in);
}

static int on_begin(void *ctx, const struct stream_begin *b, struct img_err *err)
{
	struct seen *s = ctx;

	if (s->begun || b->size > STREAM_MAX_SIZE)
		fuzz_die(NULL, "a second BEGIN, or a size beyond the limit");
	s->begun = true;
	s->begin = *b;
	if (b->size > MAX_DISK)
		return img_err_set(err, IMG_DATA, "too large for this test");
	memset(disk, 0, (size_t)b->size);
	return 0;
}

static void range(struct seen *s, uint64_t off, uint64_t len)
{
	if (!s->begun || !len || off < s->pos || off + len < off || off + len > s->begin.size)
		fuzz_die(NULL, "%llu bytes at %llu", (unsigned long long)len, (unsigned long long)off);
	s->pos = off + len;
}

static int on_data(void *ctx, uint64_t off, const void *buf, size_t len, struct img_err *err)
{
	(void)err;
	range(ctx, off, len);
	memcpy(disk + off, buf, len);
	return 0;
}

static int on_zero(void *ctx, uint64_t off, uint64_t len, struct img_err *err)
{
	(void)err;
	range(ctx, off, len);
	return 0;
}

static int on_mark(void *ctx, const struct stream_mark *m, struct img_err *err)
{
	struct seen *s = ctx;

	(void)err;
	if (m->off < s->pos || m->off > s->begin.size ||
	    (m->off % STREAM_PIECE && m->off != s->begin.size))
		fuzz_die(NULL, "a mark at %llu", (unsigned long long)m->off);
	s->marks++;
	return 0;
}

static void receive(size_t len)
{
	struct seen s = {.begun = false};
	const struct stream_visitor v = {
		.ctx = &s, .begin = on_begin, .data = on_data, .zero = on_zero, .mark = on_mark};
	struct stream_totals totals;
	struct img_err err = {0};
	char sum[IMG_SUM_STR];

	fuzz_file("stream", stream, len);
	struct stream_pipe from = {.fd = open(fuzz_path("stream"), O_RDONLY | O_CLOEXEC), .name = "s"};
	int rc = stream_read(&from, &v, &totals, &err);

	close(from.fd);
	if (rc == 0 && (!s.begun || !s.marks))
		fuzz_die(NULL, "accepted without a beginning or an end");
	if (rc == 0 && s.begin.kind == STREAM_WHOLE) {
		struct img_sum *again = img_sum_new(s.begin.size);

		img_sum_data(again, disk, (size_t)s.begin.size);
		img_sum_final(again, sum);
		img_sum_free(again);
		if (strcmp(sum, totals.content_sum))
			fuzz_die(NULL, "content sum %s, told %s", sum, totals.content_sum);
	}
	if (rc && (!err.code || !err.msg[0]))
		fuzz_die(NULL, "refused without a word");
}

static void token(const uint8_t *data, size_t size)
{
	char text[512], again[STREAM_TOKEN_STR];
	struct stream_token t;
	struct img_err err = {0};

	if (size >= sizeof(text))
		return;
	memcpy(text, data, size);
	text[size] = '\0';
	if (stream_token_get(text, &t, &err))
		return;
	stream_token_put(&t, again);
	if (strncmp(text, again, strlen(again) - 1))
		fuzz_die(NULL, "another token");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};
	struct made m = {.len = 0};
	uint8_t mode = fuzz_u8(&in);

	if (mode == 0) {
		token(in.p, in.n);
		return 0;
	}
	if (mode == 1) {
		m.len = in.n < MAX_STREAM ? in.n : MAX_STREAM;
		memcpy(stream, in.p, m.len);
	} else {
		make(&m, &in);
	}
	receive(m.len);
	return 0;
}
