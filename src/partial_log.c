/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Log: MAGIC, then records: u32 type, u32 length, payload, XXH3-64 of all that, seeded by that of
 * the record before. Little-endian. A mark only counts after a whole head, chunks only before a
 * mark. What an older transfer, or an older run, has left behind the end does not fit to what was
 * written since: a power cut may leave some of both.
 */
#include "config.h"

#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "bytes.h"
#include "partial_impl.h"

static const uint8_t magic[8] = {'q', 's', 'm', 'p', 'a', 'r', 't', '3'};
enum { HEAD = 1, CHUNKS = 2, MARK = 3, APPLY = 4, DONE = 5 };
enum { RECORD_HEAD = 8, RECORD_SUM = 8, MARK_LEN = 104 + 24 };
enum { FLAG_COMPLETE = 1 };

static int append(struct partial *p, uint32_t type, const void *payload, size_t len,
		  struct img_err *err)
{
	uint8_t buf[PARTIAL_RECORD + RECORD_HEAD + RECORD_SUM];
	size_t n = RECORD_HEAD + len;

	le32_put(buf, type);
	le32_put(buf + 4, (uint32_t)len);
	memcpy(buf + RECORD_HEAD, payload, len);
	le64_put(buf + n, XXH3_64bits_withSeed(buf, n, p->chain));
	if (io_write(&p->log, buf, n + RECORD_SUM, p->end, err))
		return -1;
	p->chain = le64_get(buf + n);
	p->end += n + RECORD_SUM;
	return 0;
}

/*
 * 1, or 0 at the end of what is whole: what cannot be read is no end. BUF has PARTIAL_RECORD bytes;
 * *CHAIN begins with 0.
 */
static int next(struct partial *p, uint64_t *at, uint64_t *chain, uint32_t *type, uint8_t *buf,
		size_t *len, struct img_err *err)
{
	uint8_t rec[PARTIAL_RECORD + RECORD_HEAD + RECORD_SUM];
	size_t got, n;

	if (io_read_upto(&p->log, rec, RECORD_HEAD, *at, &got, err))
		return -1;
	if (got < RECORD_HEAD)
		return 0;
	*type = le32_get(rec);
	*len = le32_get(rec + 4);
	if (*len > PARTIAL_RECORD)
		return 0;
	n = RECORD_HEAD + *len;
	if (io_read_upto(&p->log, rec, n + RECORD_SUM, *at, &got, err))
		return -1;
	if (got < n + RECORD_SUM || le64_get(rec + n) != XXH3_64bits_withSeed(rec, n, *chain))
		return 0;
	memcpy(buf, rec + RECORD_HEAD, *len);
	*chain = le64_get(rec + n);
	*at += n + RECORD_SUM;
	return 1;
}

enum { HEAD_FIXED = 152 };

static size_t head_put(const struct partial_head *h, uint8_t *b)
{
	size_t n = strlen(h->parent);

	memset(b, 0, HEAD_FIXED);
	memcpy(b, h->what.stream_id, 16);
	memcpy(b + 16, h->what.uuid, 16);
	memcpy(b + 32, h->what.base_uuid, 16);
	memcpy(b + 48, h->what.source, 16);
	memcpy(b + 64, h->uuid, 16);
	le64_put(b + 80, h->what.size);
	le64_put(b + 88, h->began);
	le32_put(b + 96, h->block_size);
	le32_put(b + 100, (uint32_t)h->type);
	le32_put(b + 104, (uint32_t)h->what.kind);
	b[108] = h->what.has_source;
	b[109] = h->what.compressed;
	b[110] = h->onto;
	memcpy(b + 112, h->base, 16);
	le64_put(b + 128, h->file);
	memcpy(b + 136, h->boot, 16);
	memcpy(b + HEAD_FIXED, h->parent, n);
	return HEAD_FIXED + n;
}

static bool head_get(struct partial_head *h, const uint8_t *b, size_t len)
{
	memset(h, 0, sizeof(*h));
	if (len < HEAD_FIXED || len - HEAD_FIXED >= sizeof(h->parent))
		return false;
	memcpy(h->what.stream_id, b, 16);
	memcpy(h->what.uuid, b + 16, 16);
	memcpy(h->what.base_uuid, b + 32, 16);
	memcpy(h->what.source, b + 48, 16);
	memcpy(h->uuid, b + 64, 16);
	h->what.size = le64_get(b + 80);
	h->began = le64_get(b + 88);
	h->block_size = le32_get(b + 96);
	h->type = (enum img_type)le32_get(b + 100);
	h->what.kind = (enum stream_kind)le32_get(b + 104);
	h->what.has_source = b[108];
	h->what.compressed = b[109];
	h->onto = b[110];
	memcpy(h->base, b + 112, 16);
	h->file = le64_get(b + 128);
	memcpy(h->boot, b + 136, 16);
	memcpy(h->parent, b + HEAD_FIXED, len - HEAD_FIXED);
	return true;
}

static void mark_put(uint8_t *b, const struct stream_mark *m, uint64_t end, uint64_t id,
		     bool complete)
{
	memset(b, 0, MARK_LEN);
	le64_put(b, m->seq);
	le64_put(b + 8, m->wire_bytes);
	le64_put(b + 16, m->off);
	memcpy(b + 24, m->sum, 16);
	memcpy(b + 40, m->trail, 16);
	le64_put(b + 56, m->data_records);
	le64_put(b + 64, m->zero_records);
	le64_put(b + 72, m->data_bytes);
	le64_put(b + 80, m->zero_bytes);
	le64_put(b + 88, m->checkpoints);
	le64_put(b + 96, end);
	le64_put(b + 104, (uint64_t)time(NULL));
	le64_put(b + 112, id);
	b[120] = complete ? FLAG_COMPLETE : 0;
}

static void mark_get(struct partial *p, const uint8_t *b)
{
	struct stream_mark *m = &p->mark;

	m->seq = le64_get(b);
	m->wire_bytes = le64_get(b + 8);
	m->off = le64_get(b + 16);
	memcpy(m->sum, b + 24, 16);
	memcpy(m->trail, b + 40, 16);
	m->data_records = le64_get(b + 56);
	m->zero_records = le64_get(b + 64);
	m->data_bytes = le64_get(b + 72);
	m->zero_bytes = le64_get(b + 80);
	m->checkpoints = le64_get(b + 88);
	p->image_end = le64_get(b + 96);
	p->time = le64_get(b + 104);
	p->id = le64_get(b + 112);
	p->complete = b[120] & FLAG_COMPLETE;
	p->marked = true;
}

int partial_log_load(struct partial *p, struct img_err *err)
{
	uint8_t buf[PARTIAL_RECORD], start[8];
	uint64_t at = sizeof(magic), chain = 0;
	uint32_t type;
	size_t len;
	int more;

	if (io_read_upto(&p->log, start, sizeof(start), 0, &len, err))
		return -1;
	if (len < sizeof(start) || memcmp(start, magic, sizeof(magic)) != 0)
		return 0;
	while ((more = next(p, &at, &chain, &type, buf, &len, err)) > 0) {
		if (type == HEAD && at == sizeof(magic) + RECORD_HEAD + len + RECORD_SUM)
			p->begun = head_get(&p->head, buf, len);
		if (type == MARK && len == MARK_LEN && p->begun) {
			mark_get(p, buf);
			p->end = at;
			p->chain = chain;
		}
		if ((type == APPLY || type == DONE) && p->complete) {
			p->applied = true;
			p->done = type == DONE;
			p->end = at;
			p->chain = chain;
		}
	}
	return more;
}

int partial_log_cut(struct partial *p, uint64_t end, struct img_err *err)
{
	return io_truncate(&p->log, end, err) || io_sync(&p->log, err) ? -1 : 0;
}

int partial_log_begin(struct partial *p, const struct partial_head *head, struct img_err *err)
{
	uint8_t buf[PARTIAL_RECORD];

	if (io_write(&p->log, magic, sizeof(magic), 0, err))
		return -1;
	p->end = sizeof(magic);
	p->chain = 0;
	p->begun = true;
	return append(p, HEAD, buf, head_put(head, buf), err);
}

int partial_log_mark(struct partial *p, struct img_err *err)
{
	uint8_t buf[MARK_LEN];

	mark_put(buf, &p->next, p->next_end, p->id, p->next_complete);
	return append(p, MARK, buf, sizeof(buf), err) || io_sync(&p->log, err) ? -1 : 0;
}

int partial_log_chunks(struct partial *p, struct img_err *err)
{
	uint8_t buf[PARTIAL_RECORD];

	if (!p->nruns)
		return 0;
	for (size_t i = 0; i < p->nruns; i++) {
		le64_put(buf + i * PARTIAL_CHUNK, p->runs[i].first);
		le64_put(buf + i * PARTIAL_CHUNK + 8, p->runs[i].n);
		memcpy(buf + i * PARTIAL_CHUNK + 16, p->runs[i].sum, IMG_SUM_BYTES);
	}
	if (append(p, CHUNKS, buf, p->nruns * PARTIAL_CHUNK, err))
		return -1;
	p->nruns = 0;
	return 0;
}

void partial_chunks(struct partial *p, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	struct partial_run *last = p->nruns ? &p->runs[p->nruns - 1] : NULL;

	if (last && first == last->first + last->n && memcmp(last->sum, sum, IMG_SUM_BYTES) == 0) {
		last->n += n;
		return;
	}
	/* A failure shows when the next mark is to be made. */
	if (p->nruns == PARTIAL_RUNS &&
	    (partial_wait(p, &p->err) || partial_log_chunks(p, &p->err)))
		return;
	p->runs[p->nruns++] = (struct partial_run){.first = first, .n = n};
	memcpy(p->runs[p->nruns - 1].sum, sum, IMG_SUM_BYTES);
}

/* One record of sums, below chunk LIMIT; they must follow one another. */
static bool replay(const uint8_t *buf, size_t len, uint64_t *chunk, uint64_t limit,
		   struct img_sum *content)
{
	for (size_t i = 0; i + PARTIAL_CHUNK <= len; i += PARTIAL_CHUNK) {
		uint64_t first = le64_get(buf + i), n = le64_get(buf + i + 8);

		if (first != *chunk || n > limit - first)
			return false;
		img_sum_known(content, buf + i + 16, n);
		*chunk += n;
	}
	return true;
}

int partial_resume(struct partial *p, struct img_sum *content, struct img_err *err)
{
	uint64_t at = sizeof(magic), chain = 0, chunk = 0;
	uint64_t limit = (p->mark.off + IMG_SUM_CHUNK - 1) / IMG_SUM_CHUNK;
	uint8_t buf[PARTIAL_RECORD];
	uint32_t type;
	size_t len;
	int more = 0;

	while (content && at < p->end && (more = next(p, &at, &chain, &type, buf, &len, err)) > 0)
		if (type == CHUNKS && at <= p->end && !replay(buf, len, &chunk, limit, content))
			break;
	if (more < 0)
		return -1;
	if (content && chunk != limit)
		return img_err_set(err, IMG_DATA,
				   "%s: the partial result is damaged; vhd-recv --abort drops it",
				   p->file);
	return partial_log_cut(p, p->end, err);
}

void partial_each(struct partial *p,
		  void (*fn)(void *ctx, uint64_t first, uint64_t n,
			     const uint8_t sum[IMG_SUM_BYTES]),
		  void *ctx)
{
	uint8_t buf[PARTIAL_RECORD];
	uint64_t at = sizeof(magic), chain = 0;
	struct img_err ignored = {0};
	uint32_t type;
	size_t len;

	/* Sums are not needed. */
	while (at < p->end && next(p, &at, &chain, &type, buf, &len, &ignored) > 0)
		for (size_t i = 0; type == CHUNKS && i + PARTIAL_CHUNK <= len; i += PARTIAL_CHUNK)
			fn(ctx, le64_get(buf + i), le64_get(buf + i + 8), buf + i + 16);
}

static int note(struct partial *p, uint32_t type, bool *what, struct img_err *err)
{
	if (*what)
		return 0;
	if (append(p, type, "", 0, err) || io_sync(&p->log, err))
		return -1;
	*what = true;
	return 0;
}

int partial_apply(struct partial *p, struct img_err *err)
{
	return note(p, APPLY, &p->applied, err);
}

int partial_done(struct partial *p, struct img_err *err)
{
	return note(p, DONE, &p->done, err);
}
