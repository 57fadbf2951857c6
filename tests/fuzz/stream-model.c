/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include "stream-model.h"

#include <string.h>
#include <xxhash.h>
#ifdef HAVE_ZSTD
#include <zstd.h>
#endif

#include "bytes.h"
#include "fuzz.h"
#include "stream_impl.h"

struct state {
	struct model *m;
	const uint8_t *p;
	size_t n, at;
	bool zstd, joined, begun, ended;
	uint64_t seed, seq, pos, count[5]; /* records of data and zeros, their bytes, checkpoints */
	uint8_t sum[STREAM_SUM];
};

static bool no(struct state *s, const char *why)
{
	s->m->why = why;
	s->m->at = s->at;
	return false;
}

void model_base(uint8_t *disk, uint64_t size)
{
	static uint8_t base[MODEL_DISK];

	if (!base[0])
		fuzz_pattern(base, sizeof(base), 77);
	memcpy(disk, base, (size_t)size);
}

/* The field WANT of a control record, exactly LEN bytes, or NULL. All fields are walked once by
 * fields_ok(). */
static const uint8_t *field(const uint8_t *p, size_t n, unsigned want)
{
	while (n >= 8) {
		uint32_t len = le32_get(p + 4);

		if (le16_get(p) == want)
			return p + 8;
		p += 8 + len;
		n -= 8 + len;
	}
	return NULL;
}

static int known_length(unsigned record, unsigned f)
{
	static const uint8_t begin[16] = {0, 4, 8, 16, 16, 4, 4, 4, 8, 4, 16, 8, 16, 8, 8, 16};

	if (record == STREAM_BEGIN)
		return f && f < 16 ? begin[f] : -1;
	if (f == 32 || f == 33)
		return f == 32 ? 8 : 16;
	if (record == STREAM_END && f >= 34 && f <= 39)
		return f == 34 ? 16 : 8;
	return -1;
}

static bool fields_ok(struct state *s, unsigned record, const uint8_t *p, size_t n)
{
	uint64_t seen = 0;

	if (n > STREAM_MAX_CONTROL)
		return no(s, "control record too long");
	while (n) {
		unsigned f;
		uint32_t len;
		int want;

		if (n < 8)
			return no(s, "field cut");
		f = le16_get(p);
		len = le32_get(p + 4);
		if (len > n - 8)
			return no(s, "field cut");
		want = known_length(record, f);
		if (want < 0 && le16_get(p + 2) & 1)
			return no(s, "unknown critical field");
		if (want >= 0 && (len != (uint32_t)want || seen >> f & 1))
			return no(s, "length of a field, or twice");
		if (want >= 0)
			seen |= 1ull << f;
		p += 8 + len;
		n -= 8 + len;
	}
	return true;
}

static void content_sum(const uint8_t *disk, uint64_t size, uint8_t sum[16])
{
	uint8_t all[8 + 16 * (MODEL_DISK >> 20)];
	size_t n = 8;

	le64_put(all, size);
	for (uint64_t off = 0; off < size; off += 1 << 20, n += 16)
		img_sum_chunk(disk + off, (size_t)u64_min(1 << 20, size - off), 0, all + n);
	img_sum_chunk(all, n, 0, sum);
}

static void look_at_base(struct model *m, const uint8_t *p, size_t n)
{
	static uint8_t base[MODEL_DISK];
	const uint8_t *uuid = field(p, n, 3), *sum = field(p, n, 12);
	uint8_t is[16];

	memcpy(m->base_uuid, field(p, n, 10), 16);
	m->own_base = m->kind == STREAM_INCREMENT && uuid && memcmp(uuid, m->base_uuid, 16) == 0;
	if (!sum)
		return;
	model_base(base, m->base_size);
	content_sum(base, m->base_size, is);
	m->other_base = memcmp(sum, is, 16) != 0;
}

static bool take_begin(struct state *s, const uint8_t *p, size_t n)
{
	static const unsigned needed[] = {1, 2, 5, 6};
	struct model *m = s->m;
	uint32_t block;

	if (!fields_ok(s, STREAM_BEGIN, p, n))
		return false;
	for (int i = 0; i < 4; i++)
		if (!field(p, n, needed[i]))
			return no(s, "BEGIN lacks a field");
	m->kind = le32_get(field(p, n, 1));
	m->size = le64_get(field(p, n, 2));
	m->type = le32_get(field(p, n, 5));
	block = le32_get(field(p, n, 6));
	m->base_size = field(p, n, 11) ? le64_get(field(p, n, 11)) : 0;
	if (m->kind > 2 || m->type > 3 || m->size > STREAM_MAX_SIZE ||
	    m->base_size > STREAM_MAX_SIZE)
		return no(s, "BEGIN: kind, type or size");
	if (block && ((block & (block - 1)) || block < 4096 || block > 256 << 20))
		return no(s, "BEGIN: block size");
	if (m->kind && (!field(p, n, 10) || !field(p, n, 11)))
		return no(s, "BEGIN: no base");
	if (m->type != IMG_RAW && m->size % 512)
		return no(s, "BEGIN: size is no multiple of 512");
	m->too_large = m->size > MODEL_DISK || m->base_size > MODEL_DISK;
	if (m->too_large)
		return no(s, "too large for the model");
	memset(m->disk, 0, (size_t)m->size);
	if (m->kind)
		model_base(m->disk, u64_min(m->size, m->base_size));
	if (m->kind)
		look_at_base(m, p, n);
	s->begun = true;
	return true;
}

static bool take_range(struct state *s, const struct stream_head *h)
{
	uint64_t size = s->m->size;

	if (!h->len || h->off > size || h->len > size - h->off)
		return no(s, "range outside of the disk");
	if (h->off < s->pos || (!s->m->kind && h->off != s->pos))
		return no(s, "range not behind the last one");
	if (h->off % 512 || ((h->off + h->len) % 512 && h->off + h->len != size))
		return no(s, "range not made of sectors");
	s->pos = h->off + h->len;
	return true;
}

static bool unpack(struct state *s, const struct stream_head *h, const uint8_t *p)
{
#ifdef HAVE_ZSTD
	static uint8_t plain[MODEL_DISK];

	if (h->len > STREAM_MAX_PAYLOAD ||
	    ZSTD_getFrameContentSize(p, h->stored) == ZSTD_CONTENTSIZE_ERROR ||
	    ZSTD_findFrameCompressedSize(p, h->stored) != h->stored ||
	    ZSTD_decompress(plain, (size_t)h->len, p, h->stored) != h->len)
		return no(s, "not one frame of that length");
	memcpy(s->m->disk + h->off, plain, (size_t)h->len);
	return true;
#else
	(void)h, (void)p;
	return no(s, "compressed");
#endif
}

static bool take_data(struct state *s, const struct stream_head *h, const uint8_t *p)
{
	if (!take_range(s, h))
		return false;
	s->count[0]++;
	s->count[2] += h->len;
	if (h->flags & STREAM_ZSTD)
		return unpack(s, h, p);
	memcpy(s->m->disk + h->off, p, (size_t)h->len);
	return true;
}

static bool take_zero(struct state *s, const struct stream_head *h)
{
	if (!take_range(s, h))
		return false;
	s->count[1]++;
	s->count[3] += h->len;
	memset(s->m->disk + h->off, 0, (size_t)h->len);
	return true;
}

static bool take_marks(struct state *s, unsigned record, const uint8_t *p, size_t n)
{
	if (!fields_ok(s, record, p, n))
		return false;
	if (!field(p, n, 32) || !field(p, n, 33))
		return no(s, "no position or running sum");
	if (le64_get(field(p, n, 32)) != s->at)
		return no(s, "another position");
	return memcmp(field(p, n, 33), s->sum, STREAM_SUM) == 0 || no(s, "another running sum");
}

static bool take_checkpoint(struct state *s, const struct stream_head *h, const uint8_t *p)
{
	struct model *m = s->m;

	if (!take_marks(s, STREAM_CHECKPOINT, p, h->stored))
		return false;
	if (h->off < s->pos || h->off > m->size || (!m->kind && h->off != s->pos))
		return no(s, "CHECKPOINT elsewhere");
	s->pos = h->off;
	s->count[4]++;
	if (h->off && h->off % (1 << 20) == 0 && m->marks < MODEL_MARKS)
		m->mark[m->marks++] = s->at + STREAM_HEADER + h->stored;
	return true;
}

static bool take_end(struct state *s, const struct stream_head *h, const uint8_t *p)
{
	const uint8_t *sum;
	struct model *m = s->m;

	m->end_at = s->at;
	content_sum(m->disk, m->size, m->content);
	if (!fields_ok(s, STREAM_END, p, h->stored))
		return false;
	sum = field(p, h->stored, 34);
	m->content_at = sum ? s->at + STREAM_HEADER + (size_t)(sum - p) : 0;
	if (!take_marks(s, STREAM_END, p, h->stored))
		return false;
	if (h->off != m->size || (!m->kind && s->pos != m->size))
		return no(s, "END before the end");
	for (unsigned i = 0; i < 5; i++) {
		const uint8_t *v = field(p, h->stored, 35 + i);

		if (!v || le64_get(v) != s->count[i])
			return no(s, "another count");
	}
	if (!sum && m->kind != 1 && !s->joined)
		return no(s, "no content sum");
	m->content_right = !sum || memcmp(sum, m->content, 16) == 0;
	if (!m->kind && !m->content_right)
		return no(s, "another content sum");
	s->ended = true;
	return true;
}

static bool take(struct state *s, const struct stream_head *h, const uint8_t *p)
{
	switch (h->type) {
	case STREAM_BEGIN:
		return s->begun ? no(s, "BEGIN again") : take_begin(s, p, h->stored);
	case STREAM_DATA:
		return take_data(s, h, p);
	case STREAM_ZERO:
		return take_zero(s, h);
	case STREAM_CHECKPOINT:
		return take_checkpoint(s, h, p);
	case STREAM_END:
		return take_end(s, h, p);
	case STREAM_ABORT:
	case STREAM_CONTINUE:
		return no(s, "ABORT, or CONTINUE in a stream that is whole");
	}
	return !(h->flags & STREAM_CRITICAL) || no(s, "unknown and critical");
}

static bool take_record(struct state *s)
{
	const uint8_t *p = s->p + s->at;
	size_t left = s->n - s->at;
	struct stream_head h;

	if (left < STREAM_HEADER)
		return no(s, "cut");
	stream_head_get(p, &h);
	if (h.stored > STREAM_MAX_PAYLOAD || h.stored > left - STREAM_HEADER)
		return no(s, "cut, or a payload that is too long");
	if (stream_head_sum(p, p + STREAM_HEADER, h.stored, s->seed) != h.sum)
		return no(s, "checksum");
	if (h.seq != s->seq || h.flags & ~3)
		return no(s, "number or flags");
	if (h.flags & STREAM_ZSTD && (h.type != STREAM_DATA || !s->zstd))
		return no(s, "compressed");
	if (h.type == STREAM_ZERO   ? h.stored != 0
	    : h.flags & STREAM_ZSTD ? h.stored >= h.len
				    : h.stored != h.len)
		return no(s, "length");
	if (!s->begun && h.type != STREAM_BEGIN)
		return no(s, "no BEGIN");
	if (!take(s, &h, p + STREAM_HEADER))
		return false;
	stream_sum_link(s->sum, p);
	s->seq++;
	s->at += STREAM_HEADER + h.stored;
	return true;
}

static bool read_all(struct state *s)
{
	static const uint8_t magic[8] = {0x89, 0x56, 0x48, 0x53, 0x0d, 0x0a, 0x1a, 0x0a};

	if (s->n < STREAM_PREAMBLE || memcmp(s->p, magic, 8) != 0 || le16_get(s->p + 8) != 1)
		return no(s, "preamble");
	/* Bit 1, CONTINUED, is for those who have what comes before. */
	if (le32_get(s->p + 12) & ~1u || le64_get(s->p + 40) != XXH3_64bits(s->p, 40))
		return no(s, "preamble: features or hash");
	s->zstd = le32_get(s->p + 12) & 1;
	s->seed = stream_seed(s->p + 24);
	stream_sum_begin(s->sum, s->p);
	s->at = STREAM_PREAMBLE;
	while (!s->ended)
		if (!take_record(s))
			return false;
	return s->at == s->n || no(s, "more behind END");
}

void model_read(struct model *m, const uint8_t *p, size_t n, bool joined)
{
	struct state s = {.m = m, .p = p, .n = n, .joined = joined};

	memset(m, 0, offsetof(struct model, disk));
	m->ok = read_all(&s);
	if (!s.begun && !m->too_large) { /* nothing is known of it */
		m->kind = STREAM_WHOLE;
		m->size = m->base_size = 0;
	}
}
