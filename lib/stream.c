/* SPDX-License-Identifier: BSD-2-Clause */
/* The stream's bytes: preamble, record headers, fields of control records. vhd-stream(5). */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "bytes.h"
#include "stream_impl.h"

static const uint8_t magic[8] = {0x89, 'V', 'H', 'S', '\r', '\n', 0x1a, '\n'};

/* Fields of control records: type, flags, length, value. */
enum { FIELD_HEADER = 8, FIELD_CRITICAL = 1u << 0 };
enum field_type {
	FIELD_KIND = 1,
	FIELD_SIZE = 2,
	FIELD_DISK_UUID = 3,
	FIELD_PARENT_UUID = 4,
	FIELD_DISK_TYPE = 5,
	FIELD_BLOCK_SIZE = 6,
	FIELD_GEOMETRY = 7,
	FIELD_CREATOR = 8,
	FIELD_TIMESTAMP = 9,
	FIELD_BASE_UUID = 10,
	FIELD_BASE_SIZE = 11,
	FIELD_BASE_SUM = 12,
	FIELD_PLANNED_BYTES = 13,
	FIELD_PLANNED_RECORDS = 14,
	FIELD_SOURCE = 15,
	FIELD_WIRE_BYTES = 32,
	FIELD_STREAM_SUM = 33,
	FIELD_CONTENT_SUM = 34,
	FIELD_DATA_RECORDS = 35,
	FIELD_ZERO_RECORDS = 36,
	FIELD_DATA_BYTES = 37,
	FIELD_ZERO_BYTES = 38,
	FIELD_CHECKPOINTS = 39,
	FIELD_CODE = 48,
	FIELD_TEXT = 49,
};

int stream_bad(const struct stream_where *at, struct img_err *err, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return img_err_set(err, IMG_PROTO, "%s: record %llu at byte %llu: %s", at->name,
			   (unsigned long long)at->seq, (unsigned long long)at->pos, text);
}

const char *stream_kind_name(enum stream_kind kind)
{
	switch (kind) {
	case STREAM_WHOLE:
		return "whole";
	case STREAM_INCREMENT:
		return "increment";
	case STREAM_DIFFERENCE:
		return "difference";
	}
	return NULL;
}

uint64_t stream_seed(const uint8_t id[16])
{
	return XXH3_64bits(id, 16);
}

void stream_preamble_put(uint8_t buf[STREAM_PREAMBLE], const struct stream_begin *b, bool continued)
{
	memset(buf, 0, STREAM_PREAMBLE);
	memcpy(buf, magic, sizeof(magic));
	le16_put(buf + 8, STREAM_MAJOR);
	le16_put(buf + 10, STREAM_MINOR);
	le32_put(buf + 12, (b->compressed ? STREAM_INCOMPAT_ZSTD : 0u) |
				   (continued ? STREAM_INCOMPAT_CONTINUED : 0u));
	memcpy(buf + 24, b->stream_id, 16);
	le64_put(buf + 40, XXH3_64bits(buf, 40));
}

/* Says what a text-mode transfer, or a wrong file, did to the magic. */
static int magic_bad(const uint8_t *buf, const char *name, struct img_err *err)
{
	const char *why = "this is not a VHD stream (vhd-send makes them)";

	if (!memcmp(buf, "conectix", 8))
		why = "this is a VHD file, not a stream of one; send it with vhd-send";
	else if (!memcmp(buf, "vhdxfile", 8))
		why = "this is a VHDX file, not a VHD stream";
	else if (buf[0] == (magic[0] & 0x7f) && !memcmp(buf + 1, "VHS", 3))
		why = "a VHD stream that lost its eighth bits on the way; transfer it as binary";
	else if (!memcmp(buf, magic, 4))
		why = "a VHD stream whose line ends were changed on the way; transfer it as binary";
	return img_err_set(err, IMG_PROTO, "%s: %s", name, why);
}

bool stream_has_magic(const uint8_t *buf)
{
	return memcmp(buf, magic, sizeof(magic)) == 0;
}

int stream_preamble_get(const uint8_t buf[STREAM_PREAMBLE], struct stream_begin *b, bool *continued,
			const struct stream_where *at, struct img_err *err)
{
	const uint32_t known = STREAM_INCOMPAT_ZSTD | STREAM_INCOMPAT_CONTINUED;
	uint32_t incompat;

	if (!stream_has_magic(buf))
		return magic_bad(buf, at->name, err);
	if (le64_get(buf + 40) != XXH3_64bits(buf, 40))
		return img_err_set(err, IMG_PROTO, "%s: the preamble is damaged", at->name);
	if (le16_get(buf + 8) != STREAM_MAJOR)
		return img_err_set(err, IMG_PROTO,
				   "%s: stream version %u.%u, this program reads %u.x", at->name,
				   le16_get(buf + 8), le16_get(buf + 10), STREAM_MAJOR);
	incompat = le32_get(buf + 12);
	if (incompat & ~known)
		return img_err_set(
			err, IMG_PROTO,
			"%s: the stream needs features that this program does not have (bits 0x%x)",
			at->name, incompat & ~known);
	b->compressed = incompat & STREAM_INCOMPAT_ZSTD;
	*continued = incompat & STREAM_INCOMPAT_CONTINUED;
	memcpy(b->stream_id, buf + 24, 16);
	return 0;
}

/* The payload's sum is seeded by the header's, that by the stream: no part can be exchanged. */
uint64_t stream_head_sum(const uint8_t buf[STREAM_HEADER], const void *payload, size_t len,
			 uint64_t seed)
{
	return XXH3_64bits_withSeed(len ? payload : buf, len,
				    XXH3_64bits_withSeed(buf + 8, STREAM_HEADER - 8, seed));
}

void stream_head_put(uint8_t buf[STREAM_HEADER], struct stream_head *h, const void *payload,
		     uint64_t seed)
{
	le64_put(buf + 8, h->seq);
	le64_put(buf + 16, h->off);
	le64_put(buf + 24, h->len);
	le32_put(buf + 32, h->stored);
	le16_put(buf + 36, h->type);
	le16_put(buf + 38, h->flags);
	h->sum = stream_head_sum(buf, payload, h->stored, seed);
	le64_put(buf, h->sum);
}

void stream_head_get(const uint8_t buf[STREAM_HEADER], struct stream_head *h)
{
	h->sum = le64_get(buf);
	h->seq = le64_get(buf + 8);
	h->off = le64_get(buf + 16);
	h->len = le64_get(buf + 24);
	h->stored = le32_get(buf + 32);
	h->type = le16_get(buf + 36);
	h->flags = le16_get(buf + 38);
}

static void sum_of(uint8_t sum[STREAM_SUM], const uint8_t *buf, size_t len)
{
	XXH128_canonical_t c;

	XXH128_canonicalFromHash(&c, XXH3_128bits(buf, len));
	memcpy(sum, c.digest, STREAM_SUM);
}

void stream_sum_begin(uint8_t sum[STREAM_SUM], const uint8_t preamble[STREAM_PREAMBLE])
{
	sum_of(sum, preamble, STREAM_PREAMBLE);
}

/* Headers hold the payloads' checksums, so this sum covers all and costs nothing; and it goes on
 * from its 16 bytes alone, which a resumed transfer needs. */
void stream_sum_link(uint8_t sum[STREAM_SUM], const uint8_t head[STREAM_HEADER])
{
	uint8_t buf[STREAM_SUM + STREAM_HEADER];

	memcpy(buf, sum, STREAM_SUM);
	memcpy(buf + STREAM_SUM, head, STREAM_HEADER);
	sum_of(sum, buf, sizeof(buf));
}

void stream_sum_str(const uint8_t sum[STREAM_SUM], char out[IMG_SUM_STR])
{
	for (unsigned i = 0; i < STREAM_SUM; i++)
		snprintf(out + 2 * i, 3, "%02x", sum[i]);
}

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool sum_parse(const char *s, uint8_t sum[STREAM_SUM])
{
	for (unsigned i = 0; i < STREAM_SUM; i++) {
		int hi = hex_digit(s[2 * i]), lo = hi < 0 ? -1 : hex_digit(s[2 * i + 1]);

		if (lo < 0)
			return false;
		sum[i] = (uint8_t)(hi << 4 | lo);
	}
	return true;
}

/* Encoding */

static uint8_t *put_field(uint8_t *p, enum field_type type, const void *value, size_t len)
{
	le16_put(p, (uint16_t)type);
	le16_put(p + 2, FIELD_CRITICAL);
	le32_put(p + 4, (uint32_t)len);
	if (len)
		memcpy(p + FIELD_HEADER, value, len);
	return p + FIELD_HEADER + len;
}

/* A field that a reader may do without. */
static uint8_t *put_hint(uint8_t *p, enum field_type type, const void *value, size_t len)
{
	uint8_t *end = put_field(p, type, value, len);

	le16_put(p + 2, 0);
	return end;
}

static uint8_t *put_u32(uint8_t *p, enum field_type type, uint32_t v)
{
	uint8_t b[4];

	le32_put(b, v);
	return put_field(p, type, b, 4);
}

static uint8_t *put_u64(uint8_t *p, enum field_type type, uint64_t v)
{
	uint8_t b[8];

	le64_put(b, v);
	return put_field(p, type, b, 8);
}

static uint8_t *put_sum_str(uint8_t *p, enum field_type type, const char *s)
{
	uint8_t sum[STREAM_SUM];

	return *s && sum_parse(s, sum) ? put_field(p, type, sum, STREAM_SUM) : p;
}

size_t stream_begin_put(uint8_t *buf, const struct stream_begin *b)
{
	uint8_t *p = buf, v[8];

	p = put_u32(p, FIELD_KIND, b->kind);
	p = put_u64(p, FIELD_SIZE, b->size);
	if (b->has_uuid)
		p = put_field(p, FIELD_DISK_UUID, b->uuid, 16);
	if (b->has_parent)
		p = put_hint(p, FIELD_PARENT_UUID, b->parent_uuid, 16);
	p = put_u32(p, FIELD_DISK_TYPE, b->type);
	p = put_u32(p, FIELD_BLOCK_SIZE, b->block_size);
	le16_put(v, b->cylinders);
	v[2] = b->heads;
	v[3] = b->sectors;
	p = put_hint(p, FIELD_GEOMETRY, v, 4);
	memcpy(v, b->creator, 4);
	le32_put(v + 4, b->creator_version);
	p = put_hint(p, FIELD_CREATOR, v, 8);
	le32_put(v, b->timestamp);
	p = put_hint(p, FIELD_TIMESTAMP, v, 4);
	if (b->kind != STREAM_WHOLE) {
		p = put_field(p, FIELD_BASE_UUID, b->base_uuid, 16);
		p = put_u64(p, FIELD_BASE_SIZE, b->base_size);
		p = put_sum_str(p, FIELD_BASE_SUM, b->base_sum);
	}
	le64_put(v, b->planned_bytes);
	p = put_hint(p, FIELD_PLANNED_BYTES, v, 8);
	le64_put(v, b->planned_records);
	p = put_hint(p, FIELD_PLANNED_RECORDS, v, 8);
	if (b->has_source)
		p = put_hint(p, FIELD_SOURCE, b->source, IMG_SUM_BYTES);
	return (size_t)(p - buf);
}

size_t stream_continue_put(uint8_t *buf, const struct stream_begin *b, const struct stream_marks *m)
{
	size_t len = stream_begin_put(buf, b);

	return len + stream_checkpoint_put(buf + len, m);
}

size_t stream_checkpoint_put(uint8_t *buf, const struct stream_marks *m)
{
	uint8_t *p = put_u64(buf, FIELD_WIRE_BYTES, m->wire_bytes);

	return (size_t)(put_field(p, FIELD_STREAM_SUM, m->sum, STREAM_SUM) - buf);
}

size_t stream_end_put(uint8_t *buf, const struct stream_marks *m)
{
	const struct stream_totals *t = &m->totals;
	uint8_t *p = buf + stream_checkpoint_put(buf, m);

	p = put_u64(p, FIELD_DATA_RECORDS, t->data_records);
	p = put_u64(p, FIELD_ZERO_RECORDS, t->zero_records);
	p = put_u64(p, FIELD_DATA_BYTES, t->data_bytes);
	p = put_u64(p, FIELD_ZERO_BYTES, t->zero_bytes);
	p = put_u64(p, FIELD_CHECKPOINTS, t->checkpoints);
	p = put_sum_str(p, FIELD_CONTENT_SUM, t->content_sum);
	return (size_t)(p - buf);
}

/* Small enough that a pipe takes it in one piece. */
size_t stream_abort_put(uint8_t *buf, const struct img_err *why)
{
	size_t len = strnlen(why->msg, 1024);
	uint8_t *p = put_u32(buf, FIELD_CODE, (uint32_t)why->code);

	return (size_t)(put_field(p, FIELD_TEXT, why->msg, len) - buf);
}

/* Decoding */

struct field {
	enum field_type type;
	uint32_t len; /* of the value, exactly; or at most, with LOOSE */
	void *to;
	enum { NEEDED, OPTIONAL, LOOSE } need;
	bool seen;
	uint32_t got;
};

static struct field *field_find(struct field *f, size_t n, unsigned type)
{
	for (size_t i = 0; i < n; i++)
		if (f[i].type == type)
			return &f[i];
	return NULL;
}

static int fields_get(const uint8_t *p, size_t len, struct field *want, size_t n,
		      const struct stream_where *at, struct img_err *err)
{
	while (len) {
		unsigned type, flags;
		uint32_t size;
		struct field *f;

		if (len < FIELD_HEADER)
			return stream_bad(at, err, "a field is cut");
		type = le16_get(p);
		flags = le16_get(p + 2);
		size = le32_get(p + 4);
		p += FIELD_HEADER;
		len -= FIELD_HEADER;
		if (size > len)
			return stream_bad(at, err, "field %u is cut", type);
		f = field_find(want, n, type);
		if (!f && flags & FIELD_CRITICAL)
			return stream_bad(at, err, "field %u is unknown and critical", type);
		if (f) {
			if (f->seen)
				return stream_bad(at, err, "field %u is there twice", type);
			if (f->need == LOOSE ? size > f->len : size != f->len)
				return stream_bad(at, err, "field %u has %u bytes instead of %u",
						  type, size, f->len);
			memcpy(f->to, p, size);
			f->seen = true;
			f->got = size;
		}
		p += size;
		len -= size;
	}
	for (size_t i = 0; i < n; i++)
		if (want[i].need == NEEDED && !want[i].seen)
			return stream_bad(at, err, "field %u is missing", (unsigned)want[i].type);
	return 0;
}

/* Text from the other side goes to terminals. */
static void make_printable(char *s, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (s[i] < ' ' || s[i] > '~')
			s[i] = '?';
	s[len] = '\0';
}

/* Values that no sender of this version sends, and that the receiver need not know how to refuse.
 */
static int begin_check(const struct stream_begin *b, uint32_t kind, uint32_t type,
		       const struct stream_where *at, struct img_err *err)
{
	if (kind > STREAM_DIFFERENCE)
		return stream_bad(at, err, "a stream of an unknown kind, %u", kind);
	if (type > IMG_DIFFERENCING)
		return stream_bad(at, err, "a disk of an unknown type, %u", type);
	if (b->size > STREAM_MAX_SIZE || b->base_size > STREAM_MAX_SIZE)
		return stream_bad(at, err, "a disk of %llu bytes is beyond all limits",
				  (unsigned long long)u64_max(b->size, b->base_size));
	if (type != IMG_RAW && b->size % SECTOR)
		return stream_bad(at, err, "a disk of %llu bytes, which are no whole sectors",
				  (unsigned long long)b->size);
	if (b->block_size && !img_block_size_ok(b->block_size))
		return stream_bad(at, err, "a block size of %u bytes", b->block_size);
	return 0;
}

int stream_begin_get(const uint8_t *buf, size_t len, struct stream_begin *b, struct stream_marks *m,
		     const struct stream_where *at, struct img_err *err)
{
	uint8_t kind[4] = {0}, size[8] = {0}, type[4] = {0}, block[4] = {0}, chs[4] = {0};
	uint8_t creator[8] = {0}, stamp[4] = {0}, base_size[8] = {0}, base_sum[16] = {0};
	uint8_t bytes[8] = {0}, records[8] = {0}, wire[8] = {0}, sum[STREAM_SUM] = {0};
	struct field f[] = {
		{FIELD_KIND, 4, kind, NEEDED, false, 0},
		{FIELD_SIZE, 8, size, NEEDED, false, 0},
		{FIELD_DISK_TYPE, 4, type, NEEDED, false, 0},
		{FIELD_BLOCK_SIZE, 4, block, NEEDED, false, 0},
		{FIELD_DISK_UUID, 16, b->uuid, OPTIONAL, false, 0},
		{FIELD_PARENT_UUID, 16, b->parent_uuid, OPTIONAL, false, 0},
		{FIELD_GEOMETRY, 4, chs, OPTIONAL, false, 0},
		{FIELD_CREATOR, 8, creator, OPTIONAL, false, 0},
		{FIELD_TIMESTAMP, 4, stamp, OPTIONAL, false, 0},
		{FIELD_BASE_UUID, 16, b->base_uuid, OPTIONAL, false, 0},
		{FIELD_BASE_SIZE, 8, base_size, OPTIONAL, false, 0},
		{FIELD_BASE_SUM, 16, base_sum, OPTIONAL, false, 0},
		{FIELD_PLANNED_BYTES, 8, bytes, OPTIONAL, false, 0},
		{FIELD_PLANNED_RECORDS, 8, records, OPTIONAL, false, 0},
		{FIELD_SOURCE, IMG_SUM_BYTES, b->source, OPTIONAL, false, 0},
		/* CONTINUE only, and last */
		{FIELD_WIRE_BYTES, 8, wire, NEEDED, false, 0},
		{FIELD_STREAM_SUM, STREAM_SUM, sum, NEEDED, false, 0},
	};
	const size_t n = sizeof(f) / sizeof(f[0]) - (m ? 0 : 2);

	if (fields_get(buf, len, f, n, at, err))
		return -1;
	b->size = le64_get(size);
	b->base_size = le64_get(base_size);
	b->block_size = le32_get(block);
	if (begin_check(b, le32_get(kind), le32_get(type), at, err))
		return -1;
	b->kind = (enum stream_kind)le32_get(kind);
	b->type = (enum img_type)le32_get(type);
	b->has_uuid = field_find(f, n, FIELD_DISK_UUID)->seen;
	b->has_parent = field_find(f, n, FIELD_PARENT_UUID)->seen;
	b->has_source = field_find(f, n, FIELD_SOURCE)->seen;
	b->cylinders = le16_get(chs);
	b->heads = chs[2];
	b->sectors = chs[3];
	memcpy(b->creator, creator, 4);
	make_printable(b->creator, 4);
	b->creator_version = le32_get(creator + 4);
	b->timestamp = le32_get(stamp);
	b->planned_bytes = le64_get(bytes);
	b->planned_records = le64_get(records);
	if (field_find(f, n, FIELD_BASE_SUM)->seen)
		stream_sum_str(base_sum, b->base_sum);
	if (b->kind != STREAM_WHOLE &&
	    (!field_find(f, n, FIELD_BASE_UUID)->seen || !field_find(f, n, FIELD_BASE_SIZE)->seen))
		return stream_bad(at, err, "an increment that does not say of what");
	if (m) {
		m->wire_bytes = le64_get(wire);
		memcpy(m->sum, sum, STREAM_SUM);
	}
	return 0;
}

int stream_checkpoint_get(const uint8_t *buf, size_t len, struct stream_marks *m,
			  const struct stream_where *at, struct img_err *err)
{
	uint8_t wire[8];
	struct field f[] = {
		{FIELD_WIRE_BYTES, 8, wire, NEEDED, false, 0},
		{FIELD_STREAM_SUM, STREAM_SUM, m->sum, NEEDED, false, 0},
	};

	if (fields_get(buf, len, f, sizeof(f) / sizeof(f[0]), at, err))
		return -1;
	m->wire_bytes = le64_get(wire);
	return 0;
}

int stream_end_get(const uint8_t *buf, size_t len, struct stream_marks *m,
		   const struct stream_where *at, struct img_err *err)
{
	uint8_t wire[8], content[STREAM_SUM], count[5][8];
	struct field f[] = {
		{FIELD_WIRE_BYTES, 8, wire, NEEDED, false, 0},
		{FIELD_STREAM_SUM, STREAM_SUM, m->sum, NEEDED, false, 0},
		{FIELD_CONTENT_SUM, STREAM_SUM, content, OPTIONAL, false, 0},
		{FIELD_DATA_RECORDS, 8, count[0], NEEDED, false, 0},
		{FIELD_ZERO_RECORDS, 8, count[1], NEEDED, false, 0},
		{FIELD_DATA_BYTES, 8, count[2], NEEDED, false, 0},
		{FIELD_ZERO_BYTES, 8, count[3], NEEDED, false, 0},
		{FIELD_CHECKPOINTS, 8, count[4], NEEDED, false, 0},
	};
	struct stream_totals *t = &m->totals;

	memset(t, 0, sizeof(*t));
	if (fields_get(buf, len, f, sizeof(f) / sizeof(f[0]), at, err))
		return -1;
	m->wire_bytes = le64_get(wire);
	t->data_records = le64_get(count[0]);
	t->zero_records = le64_get(count[1]);
	t->data_bytes = le64_get(count[2]);
	t->zero_bytes = le64_get(count[3]);
	t->checkpoints = le64_get(count[4]);
	if (f[2].seen)
		stream_sum_str(content, t->content_sum);
	return 0;
}

int stream_abort_get(const uint8_t *buf, size_t len, const struct stream_where *at,
		     struct img_err *err)
{
	char text[1025] = "";
	uint8_t code[4];
	struct field f[] = {
		{FIELD_CODE, 4, code, NEEDED, false, 0},
		{FIELD_TEXT, sizeof(text) - 1, text, LOOSE, false, 0},
	};

	if (fields_get(buf, len, f, sizeof(f) / sizeof(f[0]), at, err))
		return -1;
	make_printable(text, f[1].got);
	return img_err_set(err, IMG_PROTO, "%s: the sender gave up (its code %u): %s", at->name,
			   le32_get(code), *text ? text : "no reason given");
}
