/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A stream from somebody who wishes us ill, and seals it well: it is received into an image, as
 * vhd-recv does it, and the model (stream-model.c) says whether it may be and what the disk then
 * shows. Cut somewhere and gone on with from a checkpoint, the answer must be the same.
 *
 * Input: a byte of modes. 0: the rest is a token. Else a byte for what becomes of it, one for the
 * checkpoint where it is cut (0: it is not), one for the place of the cut, two for a place in the
 * rest (the first also for the call at which the disk fails), one for what is changed there, one
 * for how that is sealed; then the stream. The mutator knows what a stream is made of.
 */
#include "config.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "fuzz.h"
#include "fuzz-recv.h"
#include "stream-mutate.h"

enum { MAX_CHUNKS = 64 };

static struct model model, whole;

struct chunks {
	uint64_t first, n;
	uint8_t sum[IMG_SUM_BYTES];
};

struct recv {
	enum img_type type; /* wished, of whole disks */
	bool direct;
	bool apart;	       /* the visitor has a thread */
	pthread_t reader;      /* not that one */
	unsigned fails, calls; /* the number of the call that fails, from 1; of those made */
	struct img_create create;
	struct stream_begin begin;
	bool begun, resumed, too_large, failed;
	struct img_new *new;
	uint8_t uuid[16];
	uint64_t pos;
	char path[4096], partial[4096], base[4096];
	struct chunks chunk[MAX_CHUNKS];
	unsigned chunks, marks;
	struct img_err err; /* why the stream was refused */
	/* the mark to go on from, counted from 1 */
	unsigned keep;
	struct stream_mark mark;
	uint64_t end;
	unsigned mark_chunks;
};

void recv_make_base(const char *path, const uint8_t uuid[16], uint64_t size)
{
	static const uint8_t raw[16];
	static uint8_t disk[MODEL_DISK];
	struct img_err err = {0};
	struct img_create o = {.size = size, .force = true, .uuid = uuid};
	struct img_new *n;

	o.type = memcmp(uuid, raw, 16) ? IMG_DYNAMIC : IMG_RAW;
	model_base(disk, size);
	if (img_create_begin(&n, path, &o, &err) ||
	    img_write(img_new_chain(n), disk, 0, size, false, &err) || img_create_finish(n, &err))
		fuzz_die(&err, "no base");
}

static int on_begin(void *ctx, const struct stream_begin *b, struct img_err *err)
{
	struct recv *r = ctx;

	if (r->begun)
		fuzz_die(NULL, "begun twice");
	r->begun = true;
	r->begin = *b;
	r->too_large = b->size > MODEL_DISK || b->base_size > MODEL_DISK;
	if (r->too_large)
		return img_err_set(err, IMG_DATA, "too large for this test");
	r->create = (struct img_create){
		.type = r->type, .size = b->size, .uuid = r->uuid, .direct = r->direct};
	r->create.partial = r->partial;
	if (b->kind != STREAM_WHOLE) {
		r->create.type = IMG_DIFFERENCING;
		r->create.parent_path = r->base;
		r->create.parent_uuid = r->begin.base_uuid;
		r->create.parent_size = b->base_size;
	} else if (!b->size || b->size % SECTOR) {
		r->create.type = IMG_RAW;
	}
	if (r->create.type == IMG_DYNAMIC || r->create.type == IMG_DIFFERENCING)
		r->create.block_size = b->block_size;
	/* What no VHD can be, vhd-recv refuses here. */
	if (b->kind != STREAM_WHOLE &&
	    (!b->size || b->size % SECTOR || !b->base_size || b->base_size % SECTOR)) {
		r->too_large = true;
		return img_err_set(err, IMG_DATA, "no differencing disk can be that");
	}
	if (b->kind != STREAM_WHOLE)
		recv_make_base(r->base, r->begin.base_uuid, b->base_size);
	return img_create_begin(&r->new, r->path, &r->create, err);
}

static int on_resume(void *ctx, const struct stream_begin *b, struct stream_mark *mark,
		     struct img_sum *content, struct img_err *err)
{
	struct recv *r = ctx;

	if (!r->keep || r->resumed)
		fuzz_die(NULL, "gone on with, but nothing was cut");
	r->resumed = true;
	if (b->size != r->begin.size || b->kind != r->begin.kind ||
	    memcmp(b->stream_id, r->begin.stream_id, 16) != 0)
		return img_err_set(err, IMG_PROTO, "another disk");
	*mark = r->mark;
	r->pos = mark->off;
	r->chunks = r->mark_chunks;
	for (unsigned i = 0; content && i < r->chunks; i++)
		img_sum_known(content, r->chunk[i].sum, r->chunk[i].n);
	return img_create_resume(&r->new, r->path, &r->create, mark->off, r->end, err);
}

/* All that is visited is visited by one thread. */
static void visited(const struct recv *r)
{
	if ((pthread_equal(pthread_self(), r->reader) != 0) == r->apart)
		fuzz_die(NULL, "visited from another thread");
}

static void range(struct recv *r, uint64_t off, uint64_t len)
{
	visited(r);
	if (!r->new || !len || off < r->pos || off + len < off || off + len > r->begin.size)
		fuzz_die(NULL, "%llu bytes at %llu", (unsigned long long)len,
			 (unsigned long long)off);
	r->pos = off + len;
}

/* Nothing comes behind what has failed. */
static int fails(struct recv *r, struct img_err *err)
{
	if (r->fails && r->calls >= r->fails)
		fuzz_die(NULL, "visited again after a failure");
	if (++r->calls != r->fails)
		return 0;
	return img_err_set(err, IMG_CANTCREAT, "the disk has failed");
}

static int on_data(void *ctx, uint64_t off, const void *buf, size_t len, struct img_err *err)
{
	struct recv *r = ctx;

	range(r, off, len);
	if (fails(r, err))
		return -1;
	if (img_write(img_new_chain(r->new), buf, off, len, false, err))
		fuzz_die(err, "the image does not take what the stream may hold");
	return 0;
}

static int on_zero(void *ctx, uint64_t off, uint64_t len, struct img_err *err)
{
	struct recv *r = ctx;

	range(r, off, len);
	if (fails(r, err))
		return -1;
	if (r->create.type == IMG_DIFFERENCING &&
	    img_zero(img_new_chain(r->new), off, len, false, err))
		fuzz_die(err, "the image does not take zeros");
	return 0;
}

static void on_chunks(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	struct recv *r = ctx;

	visited(r);
	if (r->chunks == MAX_CHUNKS)
		fuzz_die(NULL, "more chunks than the disk has");
	r->chunk[r->chunks] = (struct chunks){.first = first, .n = n};
	memcpy(r->chunk[r->chunks++].sum, sum, IMG_SUM_BYTES);
}

static int on_mark(void *ctx, const struct stream_mark *m, struct img_err *err)
{
	struct recv *r = ctx;

	visited(r);
	if (m->off < r->pos || m->off > r->begin.size ||
	    (m->off % STREAM_PIECE && m->off != r->begin.size))
		fuzz_die(NULL, "a mark at %llu", (unsigned long long)m->off);
	if (fails(r, err))
		return -1;
	if (++r->marks != r->keep || r->resumed)
		return 0;
	r->mark = *m;
	r->mark_chunks = r->chunks;
	return img_create_settle(r->new, &r->end, err);
}

/* The answer of the receiver; the image is whole then. */
static int receive(struct recv *r, const uint8_t *p, size_t n, bool keep)
{
	const struct stream_visitor v = {.ctx = r,
					 .apart = r->apart,
					 .begin = on_begin,
					 .data = on_data,
					 .zero = on_zero,
					 .mark = on_mark,
					 .chunks = on_chunks,
					 .resume = on_resume};
	struct stream_pipe from = {.name = "s"};
	struct stream_totals totals;
	struct img_err err = {0};
	int rc;

	fuzz_file("stream", p, n);
	from.fd = open(fuzz_path("stream"), O_RDONLY | O_CLOEXEC);
	rc = stream_read(&from, &v, &totals, &err);
	close(from.fd);
	if (rc && (!err.code || !err.msg[0]))
		fuzz_die(NULL, "refused without a word");
	r->failed = r->fails && r->calls == r->fails;
	if (r->failed && (!rc || strcmp(err.msg, "the disk has failed") != 0))
		fuzz_die(&err, "that the disk has failed is lost");
	if (getenv("FUZZ_VERBOSE"))
		fprintf(stderr, "  %d %s\n", rc, rc ? err.msg : "accepted");
	if (rc == 0 && totals.wire_bytes > n && !r->resumed)
		fuzz_die(NULL, "more bytes than there were");
	if (rc == 0 && img_create_finish(r->new, &err))
		fuzz_die(&err, "no image of what was accepted");
	if (rc && keep)
		img_create_keep(r->new);
	else if (rc && r->new)
		img_create_abort(r->new);
	r->new = NULL;
	r->err = err;
	if (rc && access(r->path, F_OK) == 0)
		fuzz_die(NULL, "refused, and there is a disk");
	return rc;
}

void recv_check_disk(const char *path, bool raw, const struct model *m)
{
	static uint8_t disk[MODEL_DISK];
	struct img_open o = {.raw = raw};
	struct img_err err = {0};
	struct img_chain *c;

	if (img_open(&c, path, &o, &err))
		fuzz_die(&err, "what was received does not open");
	if (img_size(c) != m->size)
		fuzz_die(NULL, "another size");
	if (m->size && img_read(c, disk, 0, m->size, &err))
		fuzz_die(&err, "what was received cannot be read");
	if (memcmp(disk, m->disk, (size_t)m->size) != 0)
		fuzz_die(NULL, "another disk than the stream's");
	img_close(c);
}

static void start(struct recv *r, const uint8_t *head)
{
	static const enum img_type types[] = {IMG_DYNAMIC, IMG_FIXED, IMG_RAW};

	*r = (struct recv){
		.type = types[head[1] % 3], .apart = head[1] & 0x80, .direct = head[0] & DIRECT};
	r->reader = pthread_self();
	memset(r->uuid, 0x5a, 16);
	snprintf(r->path, sizeof(r->path), "%s", fuzz_path("out"));
	snprintf(r->partial, sizeof(r->partial), "%s", fuzz_path("partial"));
	snprintf(r->base, sizeof(r->base), "%s", fuzz_path("base"));
}

static void in_one_piece(const uint8_t *p, size_t n, const uint8_t *head)
{
	struct recv r;
	int rc;

	start(&r, head);
	if (head[0] & FAILS)
		r.fails = 1 + head[4];
	rc = receive(&r, p, n, false);
	if (!r.too_large && !r.failed && !model.too_large && (rc == 0) != model.ok)
		fuzz_die(&r.err, "%s, but the page says: %s at %zu", rc ? "refused" : "accepted",
			 model.ok ? "right" : model.why, model.at);
	if (rc == 0)
		recv_check_disk(r.path, r.create.type == IMG_RAW, &model);
}

static void seal_rest(const struct stream_begin *begin, const struct stream_mark *m, uint8_t *p,
		      size_t n, unsigned what)
{
	struct seal_at at = {.seed = stream_seed(begin->stream_id),
			     .seq = m->seq,
			     .pos = m->wire_bytes,
			     .count = {m->data_records, m->zero_records, m->data_bytes,
				       m->zero_bytes, m->checkpoints}};

	memcpy(at.sum, m->sum, 16);
	stream_seal(p, n, at, what);
}

void recv_make_rest(struct rest *r, const struct stream_begin *begin,
		    const struct stream_mark *mark, const uint8_t *p, size_t n, const uint8_t *head)
{
	size_t at = mark->wire_bytes, left = n - at;
	uint8_t *behind;

	r->len = stream_make_rest(begin, mark, p, n, r->p);
	behind = r->p + r->len - left;
	if (head[6]) {
		behind[le16_get(head + 4) % left] ^= head[6];
		seal_rest(begin, mark, behind, left, head[7]);
	}
	memcpy(r->joined, p, at);
	memcpy(r->joined + at, behind, left);
}

size_t recv_cut(const struct model *m, unsigned i, const uint8_t *head)
{
	return m->mark[i] + (m->end_at - m->mark[i]) * head[3] / 255;
}

/* The model likes the stream. */
static void in_two_pieces(const uint8_t *p, size_t n, const uint8_t *head)
{
	static struct rest rest;
	struct recv r;
	int rc;

	start(&r, head);
	r.keep = 1 + (head[2] - 1u) % model.marks;
	if (receive(&r, p, recv_cut(&model, r.keep - 1, head), true) == 0)
		fuzz_die(NULL, "accepted without its end");
	if (r.too_large)
		return;
	if (r.mark.wire_bytes != model.mark[r.keep - 1])
		fuzz_die(&r.err, "no mark at byte %zu", model.mark[r.keep - 1]);
	recv_make_rest(&rest, &r.begin, &r.mark, p, n, head);
	rc = receive(&r, rest.p, rest.len, false);
	model_read(&whole, rest.joined, n, true);
	if ((rc == 0) != whole.ok)
		fuzz_die(&r.err, "the rest is %s, but the page says: %s at %zu",
			 rc ? "refused" : "accepted", whole.ok ? "right" : whole.why, whole.at);
	if (rc == 0)
		recv_check_disk(r.path, r.create.type == IMG_RAW, &whole);
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
	uint8_t head[HEAD];

	if (size && !data[0])
		token(data + 1, size - 1);
	if (size < HEAD || !data[0] || size > HEAD + MAX_STREAM)
		return 0;
	memcpy(head, data, HEAD);
	size -= HEAD;
	fuzz_dir_clear();
	fuzz_room(3 * MODEL_DISK + (4 << 20)); /* base, child, what a merge adds */
	model_read(&model, data + HEAD, size, false);
	if (head[0] & TOOL) {
		recv_by_tool(data + HEAD, size, &model, head);
		return 0;
	}
	in_one_piece(data + HEAD, size, head);
	if (head[2] && model.ok && model.marks) {
		fuzz_dir_clear();
		in_two_pieces(data + HEAD, size, head);
	}
	return 0;
}

/* libFuzzer's hooks; without it nobody calls them. */

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max) __attribute__((weak));
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t an, const uint8_t *b, size_t bn,
				 uint8_t *out, size_t max, unsigned seed);

static size_t mutate_stream(uint8_t *data, size_t size, size_t max, unsigned seed,
			    const uint8_t *other, size_t other_n)
{
	if (size < HEAD) {
		memset(data, 1, HEAD);
		size = HEAD;
	}
	return HEAD + stream_mutate(data + HEAD, size - HEAD, max - HEAD, seed, other, other_n);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	if (max < 4096 + HEAD || (size && !data[0] && seed % 8))
		return LLVMFuzzerMutate(data, size, max);
	if (!size || !data[0] || size < HEAD || seed % 16 > 3)
		return mutate_stream(data, size, max, seed, NULL, 0);
	/* The head alone: the same stream, treated in another way. */
	data[seed / 16 % HEAD] = (uint8_t)(seed >> 16);
	data[0] |= 1;
	return size;
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t an, const uint8_t *b, size_t bn,
				 uint8_t *out, size_t max, unsigned seed)
{
	if (an < HEAD || bn < HEAD || !a[0] || !b[0] || an > max)
		return 0;
	memcpy(out, a, an);
	return mutate_stream(out, an, max, seed, b + HEAD, bn - HEAD);
}
