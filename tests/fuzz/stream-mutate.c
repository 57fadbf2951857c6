/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include "stream-mutate.h"

#include <string.h>
#include <xxhash.h>
#ifdef HAVE_ZSTD
#include <zstd.h>
#endif

#include "bytes.h"
#include "fuzz.h"
#include "stream-model.h"
#include "stream_impl.h"

enum { MAX_RECORDS = 200, MAX_MADE = 16000, LARGE = 6 << 20, MOSTLY = 3 << 20 };

static uint32_t rnd_state;

static uint32_t rnd(uint32_t below)
{
	rnd_state ^= rnd_state << 13;
	rnd_state ^= rnd_state >> 17;
	rnd_state ^= rnd_state << 5;
	return below ? rnd_state % below : 0;
}

static void rnd_start(uint32_t seed)
{
	rnd_state = seed * 2654435761u | 1;
	for (int i = 0; i < 4; i++)
		rnd(0);
}

/* Sealing */

static void seal_fields(uint8_t *p, size_t n, const struct seal_at *at, unsigned what)
{
	while (n >= 8) {
		unsigned f = le16_get(p);
		uint32_t len = le32_get(p + 4);

		if (len > n - 8)
			return;
		if (what & SEAL_MARKS && f == 32 && len == 8)
			le64_put(p + 8, at->pos);
		if (what & SEAL_MARKS && f == 33 && len == 16)
			memcpy(p + 8, at->sum, 16);
		if (what & SEAL_COUNTS && f >= 35 && f <= 39 && len == 8)
			le64_put(p + 8, at->count[f - 35]);
		p += 8 + len;
		n -= 8 + len;
	}
}

static void count(struct seal_at *at, const struct stream_head *h)
{
	if (h->type == STREAM_DATA || h->type == STREAM_ZERO) {
		unsigned zero = h->type == STREAM_ZERO;

		at->count[zero]++;
		at->count[2 + zero] += h->len;
	}
	at->count[4] += h->type == STREAM_CHECKPOINT;
}

void stream_seal(uint8_t *p, size_t n, struct seal_at at, unsigned what)
{
	struct stream_head h;

	while (n >= STREAM_HEADER) {
		stream_head_get(p, &h);
		if (h.stored > n - STREAM_HEADER)
			return;
		if (what & SEAL_NUMBERS)
			le64_put(p + 8, at.seq);
		if (h.type == STREAM_CHECKPOINT || h.type == STREAM_END)
			seal_fields(p + STREAM_HEADER, h.stored, &at, what);
		if (what & SEAL_SUMS)
			le64_put(p, stream_head_sum(p, p + STREAM_HEADER, h.stored, at.seed));
		stream_sum_link(at.sum, p);
		count(&at, &h);
		at.seq++;
		at.pos += STREAM_HEADER + h.stored;
		p += STREAM_HEADER + h.stored;
		n -= STREAM_HEADER + h.stored;
	}
}

void stream_seal_whole(uint8_t *p, size_t n, unsigned what)
{
	struct seal_at at = {.pos = STREAM_PREAMBLE};

	if (n < STREAM_PREAMBLE)
		return;
	if (what & SEAL_SUMS)
		le64_put(p + 40, XXH3_64bits(p, 40));
	at.seed = stream_seed(p + 24);
	stream_sum_begin(at.sum, p);
	stream_seal(p + STREAM_PREAMBLE, n - STREAM_PREAMBLE, at, what);
}

/* The content sum too, which only the model knows. */
static void seal_content(uint8_t *p, size_t n)
{
	static struct model m;

	stream_seal_whole(p, n, SEAL_ALL);
	model_read(&m, p, n, false);
	if (!m.content_at)
		return;
	memcpy(p + m.content_at, m.content, 16);
	stream_seal_whole(p, n, SEAL_ALL);
}

/* Making */

struct made {
	uint8_t *p;
	size_t n, max;
};

static void put(struct made *m, unsigned type, unsigned flags, uint64_t off, uint64_t len,
		const void *payload, size_t stored)
{
	uint8_t *p = m->p + m->n;

	if (m->max - m->n < STREAM_HEADER + stored)
		return;
	memset(p, 0, STREAM_HEADER);
	le64_put(p + 16, off);
	le64_put(p + 24, len);
	le32_put(p + 32, (uint32_t)stored);
	le16_put(p + 36, (uint16_t)type);
	le16_put(p + 38, (uint16_t)flags);
	if (stored)
		memcpy(p + STREAM_HEADER, payload, stored);
	m->n += STREAM_HEADER + stored;
}

static void put_data(struct made *m, bool zstd, uint64_t off, size_t len)
{
	uint8_t buf[2048], small[4096];

	if (len > sizeof(buf))
		len = sizeof(buf);
	memset(buf, (int)rnd(256), len);
#ifdef HAVE_ZSTD
	size_t n = zstd && rnd(4) ? ZSTD_compress(small, sizeof(small), buf, len, 1) : 0;

	if (n && !ZSTD_isError(n) && n < len) {
		put(m, STREAM_DATA, STREAM_CRITICAL | STREAM_ZSTD, off, len, small, n);
		return;
	}
#else
	(void)zstd, (void)small;
#endif
	for (size_t i = 0; i < len; i += 512)
		buf[i] = (uint8_t)rnd(256);
	put(m, STREAM_DATA, STREAM_CRITICAL, off, len, buf, len);
}

/*
 * Much that is small when it is compressed: what a receiver gathers, and writes in large pieces,
 * some of them past the page cache.
 */
static void put_large(struct made *m, uint64_t off, size_t len)
{
#ifdef HAVE_ZSTD
	static uint8_t buf[LARGE];
	uint8_t small[8192];
	size_t n = 0, k;

	for (; n < len; n += k) {
		k = 512 * (size_t)(1 + rnd(LARGE / 512 / 4));
		k = len - n < k ? len - n : k;
		memset(buf + n, (int)rnd(256), k);
	}
	n = ZSTD_compress(small, sizeof(small), buf, len, 1);
	if (!ZSTD_isError(n) && n < len) {
		put(m, STREAM_DATA, STREAM_CRITICAL | STREAM_ZSTD, off, len, small, n);
		return;
	}
#endif
	put(m, STREAM_ZERO, STREAM_CRITICAL, off, len, NULL, 0);
}

static void put_marks(struct made *m, unsigned type, uint64_t off)
{
	struct stream_marks marks = {.wire_bytes = 0};
	uint8_t buf[512];
	size_t n;

	memset(marks.totals.content_sum, '0', 32);
	n = type == STREAM_END ? stream_end_put(buf, &marks) : stream_checkpoint_put(buf, &marks);
	put(m, type, type == STREAM_END ? STREAM_CRITICAL : 0, off, n, buf, n);
}

static uint64_t random_size(const struct stream_begin *b)
{
	uint64_t size = rnd(2) ? 512 * (1 + rnd(64))
			       : 512 * (1 + rnd((rnd(8) ? MOSTLY : MODEL_DISK) / 512));

	return b->type == IMG_RAW && b->kind == STREAM_WHOLE && !rnd(4) ? size - 1 - rnd(500)
									: size;
}

static void put_ranges(struct made *m, const struct stream_begin *b)
{
	uint64_t off = 0, n;

	while (off < b->size && m->max - m->n > 4096) {
		uint64_t left = b->size - off;

		if (b->kind != STREAM_WHOLE && !rnd(2)) {
			off += 512 * (uint64_t)rnd((uint32_t)(left / 512 + 1));
			continue;
		}
		n = rnd(3) ? 512 * (1 + rnd(4)) : 512 * (1 + rnd((uint32_t)(left / 512 + 1)));
		if (n > 4096 && rnd(2)) /* whole pages */
			n &= ~4095ull;
		if (!rnd(3)) /* to where one can go on */
			n = (1 << 20) - off % (1 << 20);
		n = u64_min(n, left);
		if (n > 2048 && b->compressed && rnd(2)) {
			n = u64_min(n, LARGE);
			put_large(m, off, (size_t)n);
		} else if (n <= 2048 && rnd(2))
			put_data(m, b->compressed, off, (size_t)n);
		else
			put(m, STREAM_ZERO, STREAM_CRITICAL, off, n, NULL, 0);
		off += n;
		if (off % (1 << 20) == 0 ? rnd(4) : !rnd(12))
			put_marks(m, STREAM_CHECKPOINT, off);
	}
	if (b->kind == STREAM_WHOLE && off < b->size)
		put(m, STREAM_ZERO, STREAM_CRITICAL, off, b->size - off, NULL, 0);
}

size_t stream_make(uint8_t *p, size_t max, uint32_t seed)
{
	struct stream_begin b = {.has_uuid = true};
	struct made m = {p, STREAM_PREAMBLE, max < MAX_MADE ? max : MAX_MADE};
	uint8_t buf[1024];
	size_t n;

	rnd_start(seed);
	b.compressed = rnd(2);
	b.kind = rnd(2) ? STREAM_WHOLE : (enum stream_kind)(1 + rnd(2));
	b.type = (enum img_type)rnd(4);
	b.size = random_size(&b);
	b.base_size = rnd(3) ? b.size : 512 * (uint64_t)(1 + rnd(MOSTLY / 512));
	b.block_size = rnd(3) ? 4096u << rnd(10) : 0;
	for (int i = 0; i < 16; i++) {
		b.stream_id[i] = (uint8_t)rnd(256);
		b.uuid[i] = (uint8_t)rnd(256);
		b.base_uuid[i] = b.kind == STREAM_WHOLE ? 0 : (uint8_t)rnd(256);
	}
	if (max < 4096)
		return 0;
	stream_preamble_put(p, &b, false);
	n = stream_begin_put(buf, &b);
	put(&m, STREAM_BEGIN, STREAM_CRITICAL, 0, n, buf, n);
	put_ranges(&m, &b);
	put_marks(&m, STREAM_END, b.size);
	seal_content(p, m.n);
	return m.n;
}

/* Editing */

struct list {
	size_t at[MAX_RECORDS], len[MAX_RECORDS];
	unsigned n;
};

static void list_records(struct list *l, const uint8_t *p, size_t n)
{
	size_t at = STREAM_PREAMBLE;

	l->n = 0;
	while (at + STREAM_HEADER <= n && l->n < MAX_RECORDS) {
		size_t len = STREAM_HEADER + (size_t)le32_get(p + at + 32);

		if (len > n - at)
			return;
		l->at[l->n] = at;
		l->len[l->n++] = len;
		at += len;
	}
}

/* OLD bytes at AT become the NEW ones at FROM. */
static size_t replace(uint8_t *p, size_t n, size_t max, size_t at, size_t old, const uint8_t *from,
		      size_t new)
{
	uint8_t copy[MAX_MADE];

	if (new > sizeof(copy) || n - old + new > max)
		return n;
	if (new)
		memcpy(copy, from, new);
	memmove(p + at + new, p + at + old, n - at - old);
	if (new)
		memcpy(p + at, copy, new);
	return n - old + new;
}

static void change_number(uint8_t *p, unsigned bytes)
{
	static const int64_t steps[] = {1, -1, 512, -512, 4096, 1 << 20, -(1 << 20), 1ll << 46};
	uint64_t v = bytes == 2 ? le16_get(p) : bytes == 4 ? le32_get(p) : le64_get(p);

	switch (rnd(4)) {
	case 0:
		v ^= 1ull << rnd(bytes * 8);
		break;
	case 1:
		v = (uint64_t)0 - rnd(3);
		break;
	default:
		v += (uint64_t)steps[rnd(8)];
	}
	if (bytes == 2)
		le16_put(p, (uint16_t)v);
	else if (bytes == 4)
		le32_put(p, (uint32_t)v);
	else
		le64_put(p, v);
}

/* Something in a header. */
static void edit_head(uint8_t *p)
{
	static const uint8_t at[] = {8, 16, 16, 24, 24, 32, 36, 38};
	unsigned i = rnd(sizeof(at));

	if (at[i] == 36 && rnd(2))
		le16_put(p + 36, (uint16_t)rnd(9));
	else
		change_number(p + at[i], at[i] < 32 ? 8 : at[i] == 32 ? 4 : 2);
}

/* One field of a control record: gone, twice, or with another head or value. */
static size_t edit_field(uint8_t *p, size_t n, size_t max, size_t rec)
{
	size_t stored = le32_get(p + rec + 32), at = rec + STREAM_HEADER, end = at + stored, len, m;

	for (unsigned skip = rnd(17); skip; skip--)
		if (at + 8 <= end && le32_get(p + at + 4) <= end - at - 8)
			at += 8 + le32_get(p + at + 4);
	if (at + 8 > end || le32_get(p + at + 4) > end - at - 8)
		at = rec + STREAM_HEADER;
	if (at + 8 > end || le32_get(p + at + 4) > end - at - 8)
		return n;
	len = 8 + le32_get(p + at + 4);
	m = n;
	switch (rnd(5)) {
	case 0:
		m = replace(p, n, max, at, len, NULL, 0);
		break;
	case 1:
		m = replace(p, n, max, at, 0, p + at, len);
		break;
	case 2:
		change_number(p + at + (rnd(2) ? 0 : 2), 2);
		break;
	default:
		if (len > 8)
			change_number(p + at + 8, len >= 16 ? 8 : len >= 12 ? 4 : 2);
	}
	stored += m - n;
	le32_put(p + rec + 32, (uint32_t)stored);
	le64_put(p + rec + 24, stored);
	return m;
}

static size_t insert(uint8_t *p, size_t n, size_t max, size_t at)
{
	uint8_t buf[4096];
	struct made m = {buf, 0, sizeof(buf)};
	uint64_t off = 512 * (uint64_t)rnd(MOSTLY / 512);

	switch (rnd(6)) {
	case 0:
		if (rnd(3))
			put_data(&m, rnd(2), off, 512 * (1 + rnd(3)));
		else
			put_large(&m, off, 4096 * (size_t)(1 + rnd(MOSTLY / 4096)));
		break;
	case 1:
		put(&m, STREAM_ZERO, STREAM_CRITICAL, off, 512 * (uint64_t)(1 + rnd(4000)), NULL,
		    0);
		break;
	case 2:
		put_marks(&m, STREAM_CHECKPOINT, rnd(2) ? (uint64_t)rnd(4) << 20 : off);
		break;
	case 3:
		put_marks(&m, STREAM_END, off);
		break;
	default:
		off = rnd(100);
		put(&m, rnd(2) ? 8 + rnd(3) : rnd(9), rnd(2), 0, off, p,
		    (size_t)off < n ? (size_t)off : 0);
	}
	return replace(p, n, max, at, 0, buf, m.n);
}

static size_t edit(uint8_t *p, size_t n, size_t max, const uint8_t *other, size_t other_n)
{
	struct list l, o;
	unsigned i, k;

	list_records(&l, p, n);
	if (!l.n || !rnd(40)) {
		if (n)
			p[rnd((uint32_t)n)] ^= (uint8_t)(1u << rnd(8));
		return rnd(4) ? n : rnd((uint32_t)n + 1);
	}
	i = rnd(l.n);
	k = rnd(l.n);
	o.n = 0;
	if (other)
		list_records(&o, other, other_n);
	switch (rnd(o.n ? 12 : 10)) {
	case 0:
		return replace(p, n, max, l.at[i], l.len[i], NULL, 0);
	case 1:
		return replace(p, n, max, l.at[i], 0, p + l.at[k], l.len[k]);
	case 2:
		return insert(p, n, max, l.at[i]);
	case 3: /* a byte of a payload */
		p[l.at[i] + rnd((uint32_t)l.len[i])] ^= (uint8_t)(1u << rnd(8));
		return n;
	case 4:
	case 5:
		edit_head(p + l.at[i]);
		return n;
	case 6: /* BEGIN above all */
		return edit_field(p, n, max, l.at[rnd(2) ? 0 : i]);
	case 7:
		return edit_field(p, n, max, l.at[l.n - 1]);
	case 8:
		return rnd(3) ? n : l.at[i];
	case 9:
		p[8 + rnd(32)] ^= (uint8_t)(1u << rnd(8));
		return n;
	default: /* the rest of the other one, or one record of it */
		k = rnd(o.n);
		if (rnd(2))
			return replace(p, n, max, l.at[i], n - l.at[i], other + o.at[k],
				       other_n - o.at[k]);
		return replace(p, n, max, l.at[i], l.len[i], other + o.at[k], o.len[k]);
	}
}

size_t stream_mutate(uint8_t *p, size_t n, size_t max, uint32_t seed, const uint8_t *other,
		     size_t other_n)
{
	unsigned seal;

	rnd_start(seed);
	if (n < STREAM_PREAMBLE + STREAM_HEADER || !rnd(50))
		return stream_make(p, max, seed);
	for (unsigned edits = 1 + rnd(3); edits; edits--)
		n = edit(p, n, max, other, other_n);
	seal = rnd(8);
	if (seal > 2)
		seal_content(p, n);
	else if (seal > 1)
		stream_seal_whole(p, n, SEAL_ALL);
	else if (seal)
		stream_seal_whole(p, n, SEAL_SUMS | rnd(16));
	return n;
}

size_t stream_make_rest(const struct stream_begin *begin, const struct stream_mark *mark,
			const uint8_t *p, size_t n, uint8_t *out)
{
	struct stream_marks marks = {.wire_bytes = mark->wire_bytes};
	struct stream_head h = {.seq = mark->seq,
				.off = mark->off,
				.type = STREAM_CONTINUE,
				.flags = STREAM_CRITICAL};
	size_t at = STREAM_PREAMBLE + STREAM_HEADER;

	memcpy(marks.sum, mark->sum, STREAM_SUM);
	stream_preamble_put(out, begin, true);
	h.len = h.stored = (uint32_t)stream_continue_put(out + at, begin, &marks);
	stream_head_put(out + STREAM_PREAMBLE, &h, out + at, stream_seed(begin->stream_id));
	at += h.stored;
	memcpy(out + at, p + mark->wire_bytes, n - mark->wire_bytes);
	return at + n - mark->wire_bytes;
}
