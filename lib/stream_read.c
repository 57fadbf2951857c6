/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The receiving side. A record is verified, whole, before anything of it is used; then it must
 * fit what came before. The other side is not trusted: all sizes are bounded, memory is
 * taken as bytes arrive.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "stream_impl.h"

enum {
	AHEAD = 256 << 10,	     /* read at once, where records are small */
	ROOM = STREAM_PIECE + AHEAD, /* enough for our own sender */
};

struct reader {
	struct stream_pipe from;
	const struct stream_visitor *v;
	struct stream_where at;
	struct stream_begin begin;
	struct stream_codec *codec;
	struct img_sum *content; /* whole disks */
	uint64_t seed, pos;	 /* of the disk: where the next record may begin */
	uint8_t sum[STREAM_SUM];
	struct stream_totals totals;
	struct stream_trail *trail;
	bool continued, begun, ended, mark_due;
	struct stream_mark last; /* before END */
	uint8_t *buf, *plain;
	size_t cap, start, end;
};

static size_t have(const struct reader *r)
{
	return r->end - r->start;
}

/* At least LEN bytes in the buffer, in one piece. */
static int make_room(struct reader *r, size_t len, struct img_err *err)
{
	uint8_t *buf;

	if (r->start + len <= r->cap)
		return 0;
	if (len > r->cap) {
		/* Untouched pages cost nothing: a length that lies takes no memory. */
		buf = malloc(len + STREAM_HEADER);
		if (!buf)
			return img_err_errno(err, ENOMEM, "%s", r->at.name);
		memcpy(buf, r->buf + r->start, have(r));
		free(r->buf);
		r->buf = buf;
		r->cap = len + STREAM_HEADER;
	} else {
		memmove(r->buf, r->buf + r->start, have(r));
	}
	r->end -= r->start;
	r->start = 0;
	return 0;
}

/*
 * Reads until LEN bytes are there. Behind a large record only the next header is read along, so
 * that there is next to nothing to move. *MORE is false at the end of the file.
 */
static int fill(struct reader *r, size_t len, bool *more, struct img_err *err)
{
	size_t want = len >= AHEAD ? len + STREAM_HEADER : AHEAD, got;

	*more = true;
	if (have(r) >= len)
		return 0;
	if (!have(r))
		r->start = r->end = 0;
	if (make_room(r, len, err))
		return -1;
	want = (size_t)u64_min(want, r->cap - r->start);
	if (stream_pipe_read(&r->from, r->buf + r->end, len - have(r), want - have(r), &got, err))
		return -1;
	r->end += got;
	*more = have(r) >= len;
	return 0;
}

static void consume(struct reader *r, size_t len)
{
	r->start += len;
	r->at.pos += len;
	r->totals.wire_bytes += len;
}

static int cut(struct reader *r, struct img_err *err)
{
	r->totals.cut = true;
	if (!r->at.pos && !have(r))
		return img_err_set(err, IMG_PROTO, "%s: empty; the sender's message says why",
				   r->at.name);
	return img_err_set(err, IMG_PROTO,
			   "%s: the stream is cut at byte %llu, its END is missing: the sender or "
			   "the connection died; run the same command again",
			   r->at.name, (unsigned long long)(r->at.pos + have(r)));
}

static int read_preamble(struct reader *r, struct img_err *err)
{
	bool more;

	if (fill(r, STREAM_PREAMBLE, &more, err))
		return -1;
	if (!more && have(r) < 8)
		return cut(r, err);
	if (!more) /* even a short file can be told from a stream */
		memset(r->buf + r->end, 0, STREAM_PREAMBLE - have(r));
	if (stream_preamble_get(r->buf + r->start, &r->begin, &r->continued, &r->at, err))
		return -1;
	if (!more)
		return cut(r, err);
	r->seed = stream_seed(r->begin.stream_id);
	stream_sum_begin(r->sum, r->buf + r->start);
	consume(r, STREAM_PREAMBLE);
	if (r->begin.compressed && !(r->codec = stream_codec_new(0, err)))
		return -1;
	return 0;
}

/* Of what was verified: is it a record that there can be? */
static int check_head(struct reader *r, const struct stream_head *h, struct img_err *err)
{
	const bool control = h->type != STREAM_DATA && h->type != STREAM_ZERO;

	if (h->seq != r->at.seq)
		return stream_bad(&r->at, err, "number %llu is out of order",
				  (unsigned long long)h->seq);
	if (h->flags & ~(STREAM_CRITICAL | STREAM_ZSTD))
		return stream_bad(&r->at, err, "unknown flags 0x%x", h->flags);
	if (h->flags & STREAM_ZSTD && (h->type != STREAM_DATA || !r->begin.compressed))
		return stream_bad(&r->at, err, "a type %u record is compressed", h->type);
	if (h->type == STREAM_ZERO   ? h->stored != 0
	    : h->flags & STREAM_ZSTD ? h->stored >= h->len
				     : h->stored != h->len)
		return stream_bad(&r->at, err, "%u bytes for %llu", h->stored,
				  (unsigned long long)h->len);
	if (control && h->type <= STREAM_CONTINUE && h->stored > STREAM_MAX_CONTROL)
		return stream_bad(&r->at, err, "a type %u record of %u bytes", h->type, h->stored);
	if (!r->begun && h->type != STREAM_ABORT &&
	    h->type != (r->continued ? STREAM_CONTINUE : STREAM_BEGIN))
		return stream_bad(&r->at, err, "type %u, but the first must be %s", h->type,
				  r->continued ? "CONTINUE" : "BEGIN");
	return 0;
}

/* The next record, whole and verified; its payload behind the header in the buffer. */
static int next_record(struct reader *r, struct stream_head *h, struct img_err *err)
{
	const uint8_t *p;
	bool more;

	if (fill(r, STREAM_HEADER, &more, err))
		return -1;
	if (!more)
		return cut(r, err);
	stream_head_get(r->buf + r->start, h);
	if (h->stored > STREAM_MAX_PAYLOAD)
		return stream_bad(&r->at, err, "damaged: %u bytes in one record", h->stored);
	if (fill(r, STREAM_HEADER + h->stored, &more, err))
		return -1;
	p = r->buf + r->start;
	if (!more)
		return cut(r, err);
	if (stream_head_sum(p, p + STREAM_HEADER, h->stored, r->seed) != h->sum)
		return stream_bad(&r->at, err, "damaged: the checksum does not match");
	if (r->continued && !r->begun)
		r->at.seq = h->seq; /* it says itself where it goes on */
	return check_head(r, h, err);
}

/* A piece of the disk: inside it, ascending; a whole disk has no gaps. */
static int take_range(struct reader *r, const struct stream_head *h, struct img_err *err)
{
	const uint64_t size = r->begin.size;

	if (!h->len || h->off > size || h->len > size - h->off)
		return stream_bad(&r->at, err, "%llu bytes at %llu are not inside a disk of %llu",
				  (unsigned long long)h->len, (unsigned long long)h->off,
				  (unsigned long long)size);
	if (h->off < r->pos || (r->begin.kind == STREAM_WHOLE && h->off != r->pos))
		return stream_bad(&r->at, err, "offset %llu after %llu", (unsigned long long)h->off,
				  (unsigned long long)r->pos);
	if (h->off % SECTOR || ((h->off + h->len) % SECTOR && h->off + h->len != size))
		return stream_bad(&r->at, err, "%llu bytes at %llu are no whole sectors",
				  (unsigned long long)h->len, (unsigned long long)h->off);
	r->pos = h->off + h->len;
	return 0;
}

/* The sums of a whole disk's chunks serve the content sum, the prefix sum and the visitor. */
static void on_chunks(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	struct reader *r = ctx;

	stream_trail_chunks(r->trail, first, n, sum, r->begin.size);
	if (r->v->chunks)
		r->v->chunks(r->v->ctx, first, n, sum);
}

/* In an increment those that came whole. */
static void on_covered(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	struct reader *r = ctx;

	r->v->chunks(r->v->ctx, first, n, sum);
}

static int make_sums(struct reader *r, struct img_err *err)
{
	r->begun = true;
	r->trail = stream_trail_new();
	if (r->begin.kind == STREAM_WHOLE)
		r->content = img_sum_new(r->begin.size);
	if (!r->trail || (r->begin.kind == STREAM_WHOLE && !r->content))
		return img_err_errno(err, ENOMEM, "%s", r->at.name);
	if (!r->content && r->v->chunks)
		stream_trail_watch(r->trail, r->begin.size, on_covered, r);
	return 0;
}

static int take_begin(struct reader *r, const struct stream_head *h, const uint8_t *payload,
		      struct img_err *err)
{
	if (r->begun)
		return stream_bad(&r->at, err, "a second BEGIN");
	if (stream_begin_get(payload, h->stored, &r->begin, NULL, &r->at, err) || make_sums(r, err))
		return -1;
	if (r->content)
		img_sum_watch(r->content, on_chunks, r);
	return r->v->begin(r->v->ctx, &r->begin, err);
}

/* Everything goes on as if it had never been cut: numbers, sums, counts. */
static void go_on(struct reader *r, const struct stream_mark *m)
{
	struct stream_totals *t = &r->totals;

	r->pos = m->off;
	memcpy(r->sum, m->sum, STREAM_SUM);
	stream_trail_set(r->trail, m->trail);
	if (r->content)
		img_sum_watch(r->content, on_chunks, r);
	t->records = m->seq;
	t->data_records = m->data_records;
	t->zero_records = m->zero_records;
	t->data_bytes = m->data_bytes;
	t->zero_bytes = m->zero_bytes;
	t->checkpoints = m->checkpoints;
	t->wire_bytes = r->at.pos = m->wire_bytes;
}

static int take_continue(struct reader *r, const struct stream_head *h, const uint8_t *payload,
			 struct img_err *err)
{
	struct stream_mark mark = {0};
	struct stream_marks m;

	if (!r->continued || r->begun)
		return stream_bad(&r->at, err, "a CONTINUE in the middle");
	if (stream_begin_get(payload, h->stored, &r->begin, &m, &r->at, err))
		return -1;
	if (!r->v->resume)
		return img_err_set(err, IMG_PROTO, "%s: is the rest of a stream, not one by itself",
				   r->at.name);
	if (make_sums(r, err) || r->v->resume(r->v->ctx, &r->begin, &mark, r->content, err))
		return -1;
	if (h->seq != mark.seq || h->off != mark.off || m.wire_bytes != mark.wire_bytes ||
	    memcmp(m.sum, mark.sum, STREAM_SUM))
		return img_err_set(err, IMG_AGAIN,
				   "%s: goes on at byte %llu, but the partial result was made with "
				   "the stream up to byte %llu; ask for the token again",
				   r->at.name, (unsigned long long)m.wire_bytes,
				   (unsigned long long)mark.wire_bytes);
	consume(r, STREAM_HEADER + h->stored);
	go_on(r, &mark);
	return 0;
}

static int unpack(struct reader *r, const struct stream_head *h, const uint8_t **payload,
		  struct img_err *err)
{
	if (h->len > STREAM_MAX_PAYLOAD)
		return stream_bad(&r->at, err, "a record of %llu bytes",
				  (unsigned long long)h->len);
	if (!r->plain && !(r->plain = malloc(STREAM_MAX_PAYLOAD)))
		return img_err_errno(err, ENOMEM, "%s", r->at.name);
	if (!stream_unpack(r->codec, *payload, h->stored, r->plain, (size_t)h->len))
		return stream_bad(&r->at, err, "does not decompress to %llu bytes",
				  (unsigned long long)h->len);
	*payload = r->plain;
	return 0;
}

static int take_data(struct reader *r, const struct stream_head *h, const uint8_t *payload,
		     struct img_err *err)
{
	if (take_range(r, h, err))
		return -1;
	if (h->flags & STREAM_ZSTD && unpack(r, h, &payload, err))
		return -1;
	r->totals.data_records++;
	r->totals.data_bytes += h->len;
	if (r->content)
		img_sum_data(r->content, payload, (size_t)h->len);
	else
		stream_trail_add(r->trail, h->off, payload, h->len);
	return r->v->data(r->v->ctx, h->off, payload, (size_t)h->len, err);
}

static int take_zero(struct reader *r, const struct stream_head *h, struct img_err *err)
{
	if (take_range(r, h, err))
		return -1;
	r->totals.zero_records++;
	r->totals.zero_bytes += h->len;
	if (r->content)
		img_sum_zeros(r->content, h->len);
	else
		stream_trail_add(r->trail, h->off, NULL, h->len);
	return r->v->zero(r->v->ctx, h->off, h->len, err);
}

static int check_marks(const struct reader *r, const struct stream_marks *m, struct img_err *err)
{
	if (m->wire_bytes != r->at.pos)
		return stream_bad(&r->at, err, "says that it is at byte %llu",
				  (unsigned long long)m->wire_bytes);
	if (memcmp(m->sum, r->sum, STREAM_SUM))
		return stream_bad(&r->at, err, "the running sum does not match");
	return 0;
}

static int take_checkpoint(struct reader *r, const struct stream_head *h, const uint8_t *payload,
			   struct img_err *err)
{
	struct stream_marks m;

	if (stream_checkpoint_get(payload, h->stored, &m, &r->at, err) || check_marks(r, &m, err))
		return -1;
	if (h->off < r->pos || h->off > r->begin.size ||
	    (r->begin.kind == STREAM_WHOLE && h->off != r->pos))
		return stream_bad(&r->at, err, "a checkpoint of %llu after %llu",
				  (unsigned long long)h->off, (unsigned long long)r->pos);
	r->pos = h->off;
	r->totals.checkpoints++;
	r->mark_due = h->off && h->off % STREAM_PIECE == 0;
	return 0;
}

/* Before the next record. */
static void make_mark(struct reader *r, struct stream_mark *m)
{
	const struct stream_totals *t = &r->totals;

	*m = (struct stream_mark){.seq = r->at.seq,
				  .wire_bytes = r->at.pos,
				  .off = r->pos,
				  .data_records = t->data_records,
				  .zero_records = t->zero_records,
				  .data_bytes = t->data_bytes,
				  .zero_bytes = t->zero_bytes,
				  .checkpoints = t->checkpoints};
	memcpy(m->sum, r->sum, STREAM_SUM);
	stream_trail_get(r->trail, m->trail);
}

static int tell_mark(struct reader *r, struct img_err *err)
{
	struct stream_mark m;

	r->mark_due = false;
	if (!r->v->mark)
		return 0;
	make_mark(r, &m);
	return r->v->mark(r->v->ctx, &m, err);
}

static int take_end(struct reader *r, const struct stream_head *h, const uint8_t *payload,
		    struct img_err *err)
{
	const struct stream_totals *t;
	struct stream_marks m;

	if (stream_end_get(payload, h->stored, &m, &r->at, err) || check_marks(r, &m, err))
		return -1;
	if (h->off != r->begin.size || (r->begin.kind == STREAM_WHOLE && r->pos != h->off))
		return stream_bad(
			&r->at, err, "ends at %llu, the disk has %llu bytes",
			(unsigned long long)(r->begin.kind == STREAM_WHOLE ? r->pos : h->off),
			(unsigned long long)r->begin.size);
	t = &m.totals;
	if (t->data_records != r->totals.data_records ||
	    t->zero_records != r->totals.zero_records || t->data_bytes != r->totals.data_bytes ||
	    t->zero_bytes != r->totals.zero_bytes || t->checkpoints != r->totals.checkpoints)
		return stream_bad(&r->at, err, "the sender counted otherwise");
	if (r->begin.kind == STREAM_DIFFERENCE && !*t->content_sum && !r->continued)
		return stream_bad(&r->at, err, "the content sum is missing");
	if (r->content) {
		img_sum_final(r->content, r->totals.content_sum);
		if (strcmp(t->content_sum, r->totals.content_sum) &&
		    (*t->content_sum || !r->continued))
			return stream_bad(&r->at, err, "the content sum is %s, the sender's %s",
					  r->totals.content_sum,
					  *t->content_sum ? t->content_sum : "is missing");
	}
	/*
	 * What is in the base was not seen here: the sender's word, to be compared with the
	 * result.
	 */
	if (!r->content)
		memcpy(r->totals.content_sum, t->content_sum, sizeof(t->content_sum));
	r->ended = true;
	r->pos = r->begin.size;
	make_mark(r, &r->last);
	memcpy(r->totals.trail, r->last.trail, STREAM_SUM);
	return 0;
}

static int take(struct reader *r, const struct stream_head *h, struct img_err *err)
{
	const uint8_t *payload = r->buf + r->start + STREAM_HEADER;

	switch (h->type) {
	case STREAM_BEGIN:
		return take_begin(r, h, payload, err);
	case STREAM_DATA:
		return take_data(r, h, payload, err);
	case STREAM_ZERO:
		return take_zero(r, h, err);
	case STREAM_CHECKPOINT:
		return take_checkpoint(r, h, payload, err);
	case STREAM_END:
		return take_end(r, h, payload, err);
	case STREAM_ABORT:
		return stream_abort_get(payload, h->stored, &r->at, err);
	}
	if (h->flags & STREAM_CRITICAL)
		return stream_bad(&r->at, err, "unknown type %u; a newer program sent this",
				  h->type);
	r->totals.skipped++;
	return 0;
}

const char *stream_type_name(unsigned type)
{
	static const char *const names[] = {NULL,  "BEGIN", "DATA",     "ZERO", "CHECKPOINT",
					    "END", "ABORT", "CONTINUE"};

	return type < sizeof(names) / sizeof(names[0]) ? names[type] : NULL;
}

static void tell_record(struct reader *r, const struct stream_head *h)
{
	struct stream_record rec = {.seq = h->seq,
				    .pos = r->at.pos,
				    .off = h->off,
				    .len = h->len,
				    .stored = h->stored,
				    .type = h->type,
				    .flags = h->flags};

	r->v->record(r->v->ctx, &rec);
}

static int read_all(struct reader *r, struct img_err *err)
{
	bool more;

	if (read_preamble(r, err))
		return -1;
	while (!r->ended) {
		struct stream_head h;

		if (next_record(r, &h, err))
			return -1;
		if (r->v->record)
			tell_record(r, &h);
		if (h.type == STREAM_CONTINUE) {
			if (take_continue(r, &h, r->buf + r->start + STREAM_HEADER, err))
				return -1;
			continue;
		}
		if (take(r, &h, err))
			return -1;
		stream_sum_link(r->sum, r->buf + r->start);
		r->totals.records++;
		r->at.seq++;
		consume(r, STREAM_HEADER + h.stored);
		if (r->mark_due && tell_mark(r, err))
			return -1;
	}
	if (fill(r, 1, &more, err))
		return -1;
	if (more)
		return img_err_set(err, IMG_PROTO, "%s: something follows the END at byte %llu",
				   r->at.name, (unsigned long long)r->at.pos);
	stream_sum_str(r->sum, r->totals.stream_sum);
	return r->v->mark ? r->v->mark(r->v->ctx, &r->last, err) : 0;
}

int stream_read(const struct stream_pipe *from, const struct stream_visitor *visitor,
		struct stream_totals *totals, struct img_err *err)
{
	struct reader r = {.from = *from, .v = visitor, .at = {.name = from->name}, .cap = ROOM};
	void *buf = NULL;
	int rc;

	if (posix_memalign(&buf, 4096, r.cap))
		return img_err_errno(err, ENOMEM, "%s", from->name);
	r.buf = buf;
	stream_pipe_tune(&r.from);
	rc = read_all(&r, err);
	*totals = r.totals;
	stream_codec_free(r.codec);
	img_sum_free(r.content);
	stream_trail_free(r.trail);
	free(r.plain);
	free(r.buf);
	return rc;
}
