/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The receiving side. A record is verified, whole, before anything of it is used; then it must
 * fit what came before. The other side is not trusted: all sizes are bounded, memory is
 * taken as bytes arrive. A payload is read to where the visitor will find it.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "stream_impl.h"

enum { AHEAD = 256 << 10 }; /* read at once, where records are small */

struct reader {
	struct stream_pipe from;
	const struct stream_visitor *v;
	struct stream_relay *relay;
	struct stream_where at; /* the present record */
	struct stream_begin begin;
	struct stream_codec *codec;
	struct img_sum *content; /* whole disks */
	uint64_t seed, pos;	 /* of the disk: where the next record may begin */
	uint8_t sum[STREAM_SUM];
	struct stream_totals totals;
	struct stream_trail *trail;
	bool continued, begun, ended, mark_due;
	struct stream_mark last; /* before END */
	uint8_t head[STREAM_HEADER];
	uint8_t *payload; /* of the present record */
	uint64_t got;	  /* bytes of it that were taken */
	bool large;	  /* the one before was */
	uint8_t *buf;	  /* read ahead; AHEAD */
	size_t start, end;
	uint8_t *own; /* payloads that are not for the visitor, or not yet */
	size_t own_cap;
};

static size_t have(const struct reader *r)
{
	return r->end - r->start;
}

/*
 * LEN bytes, a few, to DST. Behind a large record nothing is read along that would have to be
 * moved. *MORE is false at the end of the file.
 */
static int take_bytes(struct reader *r, void *dst, size_t len, bool *more, struct img_err *err)
{
	size_t got;

	if (have(r) < len) {
		memmove(r->buf, r->buf + r->start, have(r));
		r->end -= r->start;
		r->start = 0;
		if (stream_pipe_read(&r->from, r->buf + r->end, len - r->end,
				     (r->large ? len : AHEAD) - r->end, &got, err))
			return -1;
		r->end += got;
	}
	*more = have(r) >= len;
	if (*more) {
		memcpy(dst, r->buf + r->start, len);
		r->start += len;
		r->got += len;
	}
	return 0;
}

/* Any number of them. */
static int take_payload(struct reader *r, uint8_t *dst, size_t len, bool *more, struct img_err *err)
{
	size_t n = have(r) < len ? have(r) : len, got = 0;

	if (len < AHEAD / 2)
		return take_bytes(r, dst, len, more, err);
	memcpy(dst, r->buf + r->start, n);
	r->start += n;
	r->got += n;
	if (n < len && stream_pipe_read(&r->from, dst + n, len - n, len - n, &got, err))
		return -1;
	r->got += got;
	*more = n + got == len;
	return 0;
}

/* The present record is done with. */
static void pass(struct reader *r)
{
	r->large = r->got >= AHEAD / 2;
	r->at.pos += r->got;
	r->totals.wire_bytes += r->got;
	r->got = 0;
}

static int cut(struct reader *r, struct img_err *err)
{
	r->totals.cut = true;
	if (!r->at.pos && !r->got && !have(r))
		return img_err_set(err, IMG_PROTO, "%s: empty; the sender's message says why",
				   r->at.name);
	return img_err_set(err, IMG_PROTO,
			   "%s: the stream is cut at byte %llu, its END is missing: the sender or "
			   "the connection died; run the same command again",
			   r->at.name, (unsigned long long)(r->at.pos + r->got + have(r)));
}

static int read_preamble(struct reader *r, struct img_err *err)
{
	uint8_t preamble[STREAM_PREAMBLE] = {0};
	bool more;

	if (take_bytes(r, preamble, sizeof(preamble), &more, err))
		return -1;
	if (!more) /* even a short file can be told from a stream */
		memcpy(preamble, r->buf + r->start, have(r));
	if (!more && (have(r) < 8 || stream_has_magic(preamble)))
		return cut(r, err);
	if (stream_preamble_get(preamble, &r->begin, &r->continued, &r->at, err))
		return -1;
	if (!more)
		return cut(r, err);
	r->seed = stream_seed(r->begin.stream_id);
	stream_sum_begin(r->sum, preamble);
	pass(r);
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

/* Where the payload goes: data at once to where the visitor finds it. */
static int place(struct reader *r, const struct stream_head *h, struct img_err *err)
{
	if (h->type == STREAM_DATA && !(h->flags & STREAM_ZSTD) && h->stored)
		return stream_relay_room(r->relay, h->stored, &r->payload, err);
	if (!r->own || h->stored > r->own_cap) {
		free(r->own);
		/* Untouched pages cost nothing: a length that lies takes no memory. */
		r->own_cap = h->stored > STREAM_MAX_CONTROL ? h->stored : STREAM_MAX_CONTROL;
		r->own = malloc(r->own_cap);
		if (!r->own)
			return img_err_errno(err, ENOMEM, "%s", r->at.name);
	}
	r->payload = r->own;
	return 0;
}

/* The next record, whole and verified. */
static int next_record(struct reader *r, struct stream_head *h, struct img_err *err)
{
	bool more;

	if (take_bytes(r, r->head, STREAM_HEADER, &more, err))
		return -1;
	if (!more)
		return cut(r, err);
	stream_head_get(r->head, h);
	if (h->stored > STREAM_MAX_PAYLOAD)
		return stream_bad(&r->at, err, "damaged: %u bytes in one record", h->stored);
	if (place(r, h, err) || (h->stored && take_payload(r, r->payload, h->stored, &more, err)))
		return -1;
	if (!more)
		return cut(r, err);
	if (stream_head_sum(r->head, r->payload, h->stored, r->seed) != h->sum)
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
	stream_relay_chunks(r->relay, first, n, sum);
}

/* In an increment those that came whole. */
static void on_covered(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	struct reader *r = ctx;

	stream_relay_chunks(r->relay, first, n, sum);
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
	pass(r);
	go_on(r, &mark);
	return 0;
}

static int unpack(struct reader *r, const struct stream_head *h, struct img_err *err)
{
	uint8_t *plain;

	if (h->len > STREAM_MAX_PAYLOAD)
		return stream_bad(&r->at, err, "a record of %llu bytes",
				  (unsigned long long)h->len);
	if (stream_relay_room(r->relay, (size_t)h->len, &plain, err))
		return -1;
	if (!stream_unpack(r->codec, r->payload, h->stored, plain, (size_t)h->len))
		return stream_bad(&r->at, err, "does not decompress to %llu bytes",
				  (unsigned long long)h->len);
	r->payload = plain;
	return 0;
}

static int take_data(struct reader *r, const struct stream_head *h, struct img_err *err)
{
	if (take_range(r, h, err))
		return -1;
	if (h->flags & STREAM_ZSTD && unpack(r, h, err))
		return -1;
	r->totals.data_records++;
	r->totals.data_bytes += h->len;
	if (r->content)
		img_sum_data(r->content, r->payload, (size_t)h->len);
	else
		stream_trail_add(r->trail, h->off, r->payload, h->len);
	return stream_relay_data(r->relay, h->off, r->payload, (size_t)h->len, err);
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
	return stream_relay_zero(r->relay, h->off, h->len, err);
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
	return stream_relay_mark(r->relay, &m, err);
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
	switch (h->type) {
	case STREAM_BEGIN:
		return take_begin(r, h, r->payload, err);
	case STREAM_DATA:
		return take_data(r, h, err);
	case STREAM_ZERO:
		return take_zero(r, h, err);
	case STREAM_CHECKPOINT:
		return take_checkpoint(r, h, r->payload, err);
	case STREAM_END:
		return take_end(r, h, r->payload, err);
	case STREAM_ABORT:
		return stream_abort_get(r->payload, h->stored, &r->at, err);
	}
	if (h->flags & STREAM_CRITICAL)
		return stream_bad(&r->at, err, "unknown type %u; a newer program sent this",
				  h->type);
	r->totals.skipped++;
	return 0;
}

const char *stream_type_name(unsigned type)
{
	static const char *const names[] = {NULL,	  "BEGIN", "DATA",  "ZERO",
					    "CHECKPOINT", "END",   "ABORT", "CONTINUE"};

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
	uint8_t behind;
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
			if (take_continue(r, &h, r->payload, err))
				return -1;
			continue;
		}
		if (take(r, &h, err))
			return -1;
		stream_sum_link(r->sum, r->head);
		r->totals.records++;
		r->at.seq++;
		pass(r);
		if ((r->mark_due && tell_mark(r, err)) || stream_relay_step(r->relay, err))
			return -1;
	}
	if (take_bytes(r, &behind, 1, &more, err))
		return -1;
	if (more)
		return img_err_set(err, IMG_PROTO, "%s: something follows the END at byte %llu",
				   r->at.name, (unsigned long long)r->at.pos);
	stream_sum_str(r->sum, r->totals.stream_sum);
	return stream_relay_mark(r->relay, &r->last, err);
}

int stream_read(const struct stream_pipe *from, const struct stream_visitor *visitor,
		struct stream_totals *totals, struct img_err *err)
{
	struct reader r = {.from = *from, .v = visitor, .at = {.name = from->name}};
	int rc;

	r.relay = r.from.relay = stream_relay_new(visitor);
	r.buf = malloc(AHEAD);
	stream_pipe_tune(&r.from);
	if (!r.relay || !r.buf)
		rc = img_err_errno(err, ENOMEM, "%s", from->name);
	else
		rc = stream_relay_end(r.relay, read_all(&r, err), err);
	*totals = r.totals;
	stream_relay_free(r.relay);
	stream_codec_free(r.codec);
	img_sum_free(r.content);
	stream_trail_free(r.trail);
	free(r.own);
	free(r.buf);
	return rc;
}
