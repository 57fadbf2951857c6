/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The sending side. Data lies in one aligned buffer from the read of the source to the write into
 * the pipe; headers are kept apart and both go out in one writev().
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bytes.h"
#include "stream_impl.h"

enum {
	SPACE = 2 << 20,      /* of data, read but not yet written */
	FLUSH_AT = 512 << 10, /* still in the processor's cache */
	QUEUE = 256,	      /* records */
};

struct stream_writer {
	struct stream_pipe to;
	struct stream_crew *crew; /* where DATA is compressed */
	enum stream_kind kind;
	uint64_t size, seed, seq;
	uint64_t pos; /* of the disk: everything below was given */
	uint8_t sum[STREAM_SUM];
	struct stream_totals totals;
	struct img_sum *content;     /* whole disks, if all of it was seen */
	uint64_t skipped;	     /* sent before this writer, less what it said to go on */
	uint64_t zero_off, zero_len; /* not yet a record, may grow */
	uint64_t mark_bytes;	     /* the last checkpoint */
	struct timespec mark_time;
	bool broken; /* the pipe took a part of a record and no more */
	uint8_t *space, *control;
	size_t used;
	uint8_t heads[QUEUE][STREAM_HEADER];
	struct iovec iov[2 * QUEUE + 1];
	int nheads, niov;
	size_t queued;
};

void stream_writer_free(struct stream_writer *w)
{
	if (!w)
		return;
	stream_crew_free(w->crew);
	img_sum_free(w->content);
	free(w->space);
	free(w->control);
	free(w);
}

static int flush(struct stream_writer *w, struct img_err *err)
{
	int n = w->niov;

	w->niov = w->nheads = 0;
	w->queued = w->used = 0;
	if (w->broken)
		return img_err_set(err, IMG_BUG, "%s: written to after an error", w->to.name);
	if (w->to.fd >= 0 && stream_pipe_write(&w->to, w->iov, n, err)) {
		w->broken = true;
		return -1;
	}
	return 0;
}

static void queue(struct stream_writer *w, const void *buf, size_t len)
{
	w->iov[w->niov++] = (struct iovec){(void *)(uintptr_t)buf, len};
	w->queued += len;
	w->totals.wire_bytes += len;
}

/* PAYLOAD stays where it is until the next flush. */
static int emit(struct stream_writer *w, struct stream_head *h, const void *payload,
		struct img_err *err)
{
	uint8_t *head = w->heads[w->nheads++];

	h->seq = w->seq++;
	stream_head_put(head, h, payload, w->seed);
	stream_sum_link(w->sum, head);
	w->totals.records++;
	queue(w, head, STREAM_HEADER);
	if (h->stored)
		queue(w, payload, h->stored);
	return w->queued >= FLUSH_AT || w->nheads == QUEUE ? flush(w, err) : 0;
}

static int emit_control(struct stream_writer *w, enum stream_type type, unsigned flags,
			uint64_t off, size_t len, struct img_err *err)
{
	struct stream_head h = {.off = off, .len = len, .stored = (uint32_t)len};

	h.type = (uint16_t)type;
	h.flags = (uint16_t)flags;
	if (emit(w, &h, w->control, err))
		return -1;
	return flush(w, err);
}

static void new_sum(const struct stream_writer *w, struct stream_marks *m)
{
	m->wire_bytes = w->totals.wire_bytes;
	memcpy(m->sum, w->sum, STREAM_SUM);
	m->totals = w->totals;
}

static int allocate(struct stream_writer *w, int level, struct img_err *err)
{
	void *space = NULL;

	w->control = malloc(STREAM_MAX_CONTROL);
	if (!w->control || (!level && posix_memalign(&space, 4096, SPACE)))
		return img_err_errno(err, ENOMEM, "%s", w->to.name);
	w->space = space;
	if (level)
		w->crew = stream_crew_new(level, w->to.threads, err);
	return level && !w->crew ? -1 : 0;
}

static struct stream_writer *writer_new(const struct stream_pipe *to, int level,
					struct stream_begin *begin, struct img_err *err)
{
	struct stream_writer *w = calloc(1, sizeof(*w));

	if (!w) {
		img_err_errno(err, ENOMEM, "%s", to->name);
		return NULL;
	}
	w->to = *to;
	if (!w->to.checkpoint)
		w->to.checkpoint = STREAM_CHECKPOINT_BYTES;
	w->kind = begin->kind;
	w->size = begin->size;
	if (allocate(w, level, err)) {
		stream_writer_free(w);
		return NULL;
	}
	begin->compressed = level != 0;
	clock_gettime(CLOCK_MONOTONIC, &w->mark_time);
	stream_pipe_tune(&w->to);
	return w;
}

int stream_write_begin(struct stream_writer **out, const struct stream_pipe *to, int level,
		       struct stream_begin *begin, struct img_err *err)
{
	struct stream_writer *w = writer_new(to, level, begin, err);
	uint8_t preamble[STREAM_PREAMBLE];

	*out = NULL;
	if (!w)
		return -1;
	if (w->kind == STREAM_WHOLE && !(w->content = img_sum_new(w->size))) {
		img_err_errno(err, ENOMEM, "%s", to->name);
		goto fail;
	}
	img_uuid_new(begin->stream_id);
	w->seed = stream_seed(begin->stream_id);
	stream_preamble_put(preamble, begin, false);
	stream_sum_begin(w->sum, preamble);
	queue(w, preamble, sizeof(preamble));
	if (emit_control(w, STREAM_BEGIN, STREAM_CRITICAL, 0, stream_begin_put(w->control, begin),
			 err))
		goto fail;
	*out = w;
	return 0;
fail:
	stream_writer_free(w);
	return -1;
}

/* The numbers of the stream that was cut. */
static void take_mark(struct stream_writer *w, const struct stream_mark *m)
{
	struct stream_totals *t = &w->totals;

	w->seq = t->records = m->seq;
	w->pos = m->off;
	memcpy(w->sum, m->sum, STREAM_SUM);
	t->wire_bytes = w->mark_bytes = m->wire_bytes;
	t->data_records = m->data_records;
	t->zero_records = m->zero_records;
	t->data_bytes = m->data_bytes;
	t->zero_bytes = m->zero_bytes;
	t->checkpoints = m->checkpoints;
}

/* Preamble and CONTINUE: outside of the stream's numbers and sums. */
static int emit_continue(struct stream_writer *w, const struct stream_begin *begin,
			 const struct stream_mark *mark, struct img_err *err)
{
	uint8_t preamble[STREAM_PREAMBLE];
	struct stream_marks m = {.wire_bytes = mark->wire_bytes};
	struct stream_head h = {.seq = mark->seq,
				.off = mark->off,
				.type = STREAM_CONTINUE,
				.flags = STREAM_CRITICAL};

	memcpy(m.sum, mark->sum, STREAM_SUM);
	stream_preamble_put(preamble, begin, true);
	queue(w, preamble, sizeof(preamble));
	h.len = h.stored = (uint32_t)stream_continue_put(w->control, begin, &m);
	stream_head_put(w->heads[w->nheads], &h, w->control, w->seed);
	queue(w, w->heads[w->nheads++], STREAM_HEADER);
	queue(w, w->control, h.stored);
	return flush(w, err);
}

int stream_write_resume(struct stream_writer **out, const struct stream_pipe *to, int level,
			struct stream_begin *begin, const struct stream_token *token,
			struct img_sum *content, struct img_err *err)
{
	struct stream_writer *w = writer_new(to, level, begin, err);

	*out = NULL;
	if (!w) {
		img_sum_free(content);
		return -1;
	}
	w->content = content;
	memcpy(begin->stream_id, token->stream_id, 16);
	w->seed = stream_seed(begin->stream_id);
	if (!token->append && emit_continue(w, begin, &token->mark, err)) {
		stream_writer_free(w);
		return -1;
	}
	w->skipped = token->mark.wire_bytes - w->totals.wire_bytes;
	take_mark(w, &token->mark);
	*out = w;
	return 0;
}

void stream_write_content(struct stream_writer *w, const char sum[IMG_SUM_STR])
{
	memcpy(w->totals.content_sum, sum, IMG_SUM_STR);
}

void stream_write_watch(struct stream_writer *w,
			void (*fn)(void *ctx, uint64_t first, uint64_t n,
				   const uint8_t sum[IMG_SUM_BYTES]),
			void *ctx)
{
	if (w->content)
		img_sum_watch(w->content, fn, ctx);
}

uint64_t stream_write_sent(const struct stream_writer *w)
{
	return w->totals.wire_bytes - w->skipped;
}

static int in_order(struct stream_writer *w, uint64_t off, uint64_t len, struct img_err *err)
{
	if (!len || off < w->pos || off > w->size || len > w->size - off ||
	    (w->kind == STREAM_WHOLE && off != w->pos))
		return img_err_set(err, IMG_BUG, "%s: %llu bytes at %llu are out of order",
				   w->to.name, (unsigned long long)len, (unsigned long long)off);
	w->pos = off + len;
	return 0;
}

static int emit_zero(struct stream_writer *w, struct img_err *err)
{
	struct stream_head h = {.off = w->zero_off,
				.len = w->zero_len,
				.type = STREAM_ZERO,
				.flags = STREAM_CRITICAL};

	if (!w->zero_len)
		return 0;
	w->totals.zero_records++;
	w->totals.zero_bytes += w->zero_len;
	w->zero_len = 0;
	return emit(w, &h, NULL, err);
}

static int add_zero(struct stream_writer *w, uint64_t off, uint64_t len, struct img_err *err)
{
	if (w->content)
		img_sum_zeros(w->content, len);
	if (w->zero_len && w->zero_off + w->zero_len == off) {
		w->zero_len += len;
		return 0;
	}
	if (emit_zero(w, err))
		return -1;
	w->zero_off = off;
	w->zero_len = len;
	return 0;
}

static int add_data(struct stream_writer *w, const struct stream_run *r, struct img_err *err)
{
	struct stream_head h = {.off = r->off,
				.len = r->len,
				.stored = (uint32_t)(r->stored ? r->stored : r->len),
				.type = STREAM_DATA,
				.flags = STREAM_CRITICAL};

	if (emit_zero(w, err))
		return -1;
	if (w->content)
		img_sum_data(w->content, r->data, (size_t)r->len);
	w->totals.data_records++;
	w->totals.data_bytes += r->len;
	if (r->stored)
		h.flags |= STREAM_ZSTD;
	return emit(w, &h, r->stored ? r->packed : r->data, err);
}

/* By bytes, and by time so that a slow link has some too. A dry run's count must not depend on
 * how fast it was. */
static bool checkpoint_due(const struct stream_writer *w)
{
	struct timespec now;

	if (w->totals.wire_bytes - w->mark_bytes >= w->to.checkpoint)
		return true;
	if (w->to.fd < 0)
		return false;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec - w->mark_time.tv_sec >= STREAM_CHECKPOINT_SECONDS;
}

/* If one is due, and nothing that was given reaches into the chunk that begins at or below OFF: a
 * receiver can only go on between chunks of the sums. */
static int checkpoint(struct stream_writer *w, uint64_t off, struct img_err *err)
{
	struct stream_marks m;

	off -= off % STREAM_PIECE;
	if (off < w->pos || !off || !checkpoint_due(w))
		return 0;
	if (emit_zero(w, err))
		return -1;
	new_sum(w, &m);
	w->totals.checkpoints++;
	w->pos = off;
	if (emit_control(w, STREAM_CHECKPOINT, 0, off, stream_checkpoint_put(w->control, &m), err))
		return -1;
	w->mark_bytes = w->totals.wire_bytes;
	clock_gettime(CLOCK_MONOTONIC, &w->mark_time);
	return 0;
}

static int put_zero(struct stream_writer *w, uint64_t off, uint64_t len, struct img_err *err)
{
	uint64_t border = off - off % STREAM_PIECE + STREAM_PIECE, n = len;

	if (checkpoint(w, off, err))
		return -1;
	/* Zeros are only cut if a checkpoint would otherwise come late. */
	if (border < off + len && checkpoint_due(w))
		n = border - off;
	if (in_order(w, off, n, err) || add_zero(w, off, n, err))
		return -1;
	return n < len ? put_zero(w, off + n, len - n, err) : 0;
}

/* A run at its place in the stream. */
static int put(struct stream_writer *w, const struct stream_run *r, struct img_err *err)
{
	if (!r->data)
		return put_zero(w, r->off, r->len, err);
	if (checkpoint(w, r->off, err) || in_order(w, r->off, r->len, err))
		return -1;
	return add_data(w, r, err);
}

static int put_batch(struct stream_writer *w, const struct stream_batch *b, struct img_err *err)
{
	if (b->failed)
		return img_err_errno(err, ENOMEM, "%s: cannot compress", w->to.name);
	for (unsigned i = 0; i < b->nruns; i++)
		if (put(w, &b->runs[i], err))
			return -1;
	/* Its memory is about to be used again. */
	return flush(w, err);
}

/* What is compressed goes out; with ALL what is not yet so is waited for. */
static int drain(struct stream_writer *w, bool all, struct img_err *err)
{
	struct stream_batch *b = stream_crew_room(w->crew);

	if (all && b && b->npieces)
		stream_crew_fill(w->crew);
	while ((b = stream_crew_next(w->crew, all || !stream_crew_room(w->crew)))) {
		if (put_batch(w, b, err))
			return -1;
		stream_crew_empty(w->crew);
	}
	return 0;
}

/* BUF is NULL for zeros. */
static int give(struct stream_writer *w, uint64_t off, const uint8_t *buf, uint64_t len,
		struct img_err *err)
{
	struct stream_batch *b = stream_crew_room(w->crew);

	b->pieces[b->npieces++] = (struct stream_run){.off = off, .len = len, .data = buf};
	if (buf)
		b->used = (size_t)(buf - b->raw) + (size_t)len;
	if (!stream_batch_full(b))
		return 0;
	stream_crew_fill(w->crew);
	return drain(w, false, err);
}

int stream_write_space(struct stream_writer *w, size_t len, uint8_t **buf, struct img_err *err)
{
	if (len > STREAM_PIECE)
		return img_err_set(err, IMG_BUG, "%s: a piece of %zu bytes", w->to.name, len);
	if (w->crew) {
		struct stream_batch *b = stream_crew_room(w->crew);

		*buf = b->raw + b->used;
		return 0;
	}
	if (w->used + len > SPACE && flush(w, err))
		return -1;
	*buf = w->space + w->used;
	return 0;
}

int stream_write_zero(struct stream_writer *w, uint64_t off, uint64_t len, struct img_err *err)
{
	return w->crew ? give(w, off, NULL, len, err) : put_zero(w, off, len, err);
}

int stream_write_data(struct stream_writer *w, uint64_t off, const uint8_t *buf, size_t len,
		      struct img_err *err)
{
	struct stream_run rest = {.off = off, .len = len, .data = buf};

	if (w->crew)
		return give(w, off, buf, len, err);
	while (rest.len) {
		struct stream_run run = stream_run_first(&rest);

		if (put(w, &run, err))
			return -1;
	}
	/* What a flush took along need not be kept. */
	w->used = w->niov ? (size_t)(buf - w->space) + len : 0;
	return 0;
}

int stream_write_end(struct stream_writer *w, struct stream_totals *totals, struct img_err *err)
{
	struct stream_marks m;

	if (w->crew && drain(w, true, err))
		return -1;
	if (w->kind == STREAM_WHOLE && w->pos != w->size)
		return img_err_set(err, IMG_BUG, "%s: ends at %llu of %llu", w->to.name,
				   (unsigned long long)w->pos, (unsigned long long)w->size);
	if (emit_zero(w, err))
		return -1;
	if (w->content)
		img_sum_final(w->content, w->totals.content_sum);
	new_sum(w, &m);
	if (emit_control(w, STREAM_END, STREAM_CRITICAL, w->size, stream_end_put(w->control, &m),
			 err))
		return -1;
	stream_sum_str(w->sum, w->totals.stream_sum);
	*totals = w->totals;
	return 0;
}

void stream_write_abort(struct stream_writer *w, const struct img_err *why)
{
	struct img_err ignored = {0};

	if (!w || w->broken)
		return;
	(void)emit_control(w, STREAM_ABORT, STREAM_CRITICAL, 0, stream_abort_put(w->control, why),
			   &ignored);
}

uint64_t stream_bound(const struct stream_begin *begin, uint64_t checkpoint, bool rest)
{
	static const char any[IMG_SUM_STR] = "00000000000000000000000000000000";
	struct stream_begin most = *begin;
	struct stream_marks m = {0};
	uint8_t buf[4096];
	uint64_t mark = STREAM_HEADER + stream_checkpoint_put(buf, &m);
	uint64_t n = begin->planned_bytes + begin->planned_records * STREAM_HEADER;

	if (begin->kind != STREAM_INCREMENT)
		memcpy(m.totals.content_sum, any, sizeof(any));
	/* It may come to be known before the stream begins. */
	if (begin->kind != STREAM_WHOLE)
		memcpy(most.base_sum, any, sizeof(any));
	n += STREAM_PREAMBLE + STREAM_HEADER;
	n += rest ? stream_continue_put(buf, &most, &m) : stream_begin_put(buf, &most);
	n += STREAM_HEADER + stream_end_put(buf, &m);
	return n + n / (checkpoint ? checkpoint : STREAM_CHECKPOINT_BYTES) * (mark + STREAM_HEADER);
}
