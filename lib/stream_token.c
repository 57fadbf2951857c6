/* SPDX-License-Identifier: BSD-2-Clause */
/* Tokens: where a transfer can go on, as one printable word. vhd-stream(5), TOKEN. */
#include "config.h"

#include <string.h>
#include <xxhash.h>

#include "bytes.h"
#include "stream_impl.h"

enum { LEN = 184, TEXT = (LEN * 8 + 5) / 6 };
enum { F_APPEND = 1, F_ZSTD = 2, F_SOURCE = 4, F_ALL = 7 };
static const char head[] = "qsm1.";
static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

_Static_assert(sizeof(head) + TEXT <= STREAM_TOKEN_STR, "the token is too long");

/* base64url without padding (RFC 4648, 5). */
static void text_put(char *out, const uint8_t *buf, size_t len)
{
	uint32_t acc = 0;
	unsigned bits = 0;

	for (size_t i = 0; i < len; i++) {
		acc = acc << 8 | buf[i];
		for (bits += 8; bits >= 6; bits -= 6)
			*out++ = digits[acc >> (bits - 6) & 63];
	}
	if (bits)
		*out++ = digits[acc << (6 - bits) & 63];
	*out = '\0';
}

static bool text_get(uint8_t *buf, size_t len, const char *text)
{
	uint32_t acc = 0;
	unsigned bits = 0;
	size_t n = 0;

	for (; *text; text++) {
		const char *p = strchr(digits, *text);

		if (!p)
			return false;
		acc = acc << 6 | (uint32_t)(p - digits);
		bits += 6;
		if (bits >= 8) {
			bits -= 8;
			if (n < len)
				buf[n] = (uint8_t)(acc >> bits);
			n++;
		}
	}
	return n == len;
}

void stream_token_put(const struct stream_token *t, char out[STREAM_TOKEN_STR])
{
	const struct stream_mark *m = &t->mark;
	uint8_t b[LEN] = {1};

	b[1] = (uint8_t)((t->append ? F_APPEND : 0) | (t->compressed ? F_ZSTD : 0) |
			 (t->has_source ? F_SOURCE : 0));
	le16_put(b + 2, (uint16_t)t->kind);
	memcpy(b + 8, t->stream_id, 16);
	le64_put(b + 24, t->size);
	memcpy(b + 32, t->uuid, 16);
	memcpy(b + 48, t->base_uuid, 16);
	memcpy(b + 64, t->source, 16);
	le64_put(b + 80, m->seq);
	le64_put(b + 88, m->wire_bytes);
	le64_put(b + 96, m->off);
	memcpy(b + 104, m->sum, STREAM_SUM);
	memcpy(b + 120, m->trail, STREAM_SUM);
	le64_put(b + 136, m->data_records);
	le64_put(b + 144, m->zero_records);
	le64_put(b + 152, m->data_bytes);
	le64_put(b + 160, m->zero_bytes);
	le64_put(b + 168, m->checkpoints);
	le64_put(b + 176, XXH3_64bits(b, 176));
	memcpy(out, head, sizeof(head) - 1);
	text_put(out + sizeof(head) - 1, b, sizeof(b));
}

int stream_token_get(const char *text, struct stream_token *t, struct img_err *err)
{
	struct stream_mark *m = &t->mark;
	uint8_t b[LEN];

	memset(t, 0, sizeof(*t));
	if (strncmp(text, "qsm", 3) != 0)
		return img_err_set(err, IMG_USAGE, "this is no token of vhd-recv or vhd-stream");
	if (strncmp(text, head, sizeof(head) - 1) != 0)
		return img_err_set(err, IMG_USAGE, "a token of a newer program");
	if (strlen(text) != sizeof(head) - 1 + TEXT ||
	    !text_get(b, sizeof(b), text + sizeof(head) - 1) ||
	    le64_get(b + 176) != XXH3_64bits(b, 176) || b[0] != 1 || b[1] & ~F_ALL)
		return img_err_set(err, IMG_USAGE, "the token is cut or damaged");
	t->append = b[1] & F_APPEND;
	t->compressed = b[1] & F_ZSTD;
	t->has_source = b[1] & F_SOURCE;
	t->kind = (enum stream_kind)le16_get(b + 2);
	memcpy(t->stream_id, b + 8, 16);
	t->size = le64_get(b + 24);
	memcpy(t->uuid, b + 32, 16);
	memcpy(t->base_uuid, b + 48, 16);
	memcpy(t->source, b + 64, 16);
	m->seq = le64_get(b + 80);
	m->wire_bytes = le64_get(b + 88);
	m->off = le64_get(b + 96);
	memcpy(m->sum, b + 104, STREAM_SUM);
	memcpy(m->trail, b + 120, STREAM_SUM);
	m->data_records = le64_get(b + 136);
	m->zero_records = le64_get(b + 144);
	m->data_bytes = le64_get(b + 152);
	m->zero_bytes = le64_get(b + 160);
	m->checkpoints = le64_get(b + 168);
	if (t->size > STREAM_MAX_SIZE || m->off > t->size ||
	    (m->off % STREAM_PIECE && m->off != t->size) || m->seq > 1ull << 60 ||
	    m->wire_bytes > 1ull << 60)
		return img_err_set(err, IMG_USAGE, "the token's numbers cannot be");
	return 0;
}
