/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vhd-recv: a stream is cut, and the same command goes on with it; a whole disk of any type, a
 * child, an increment that becomes a part of a disk that is there (--onto); and --abort of what was
 * cut. The sender is what stands in memory: the whole stream, or the rest that a token asks for.
 */
#define _GNU_SOURCE
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bytes.h"
#include "ops.h"
#include "recv.h"
#include "stream_impl.h"

#define FILE_NAME "disk.vhd"
#define BASE "base.vhd"

enum { MAX_STREAM = 1 << 20 };

struct receiving {
	enum { WHOLE, CHILD, ONTO } how;
	enum img_type type; /* of a whole disk */
	bool replaces;	    /* --force, and there is something */
	bool raw;	    /* the file that was there */
	bool verify;
	bool late;  /* the sync of a mark is done when the next one is made */
	size_t cut; /* bytes of the stream that come the first time; 0: all */
	struct stream_begin begin;
	struct sent {
		size_t len;
		uint8_t stream[MAX_STREAM];
	} now, before; /* BEFORE: of the same disk, cut, and not gone on with; or empty */
};

/*
 * A disk's identity is made of its files' inodes and times, which a power cut does not change; but
 * here files are made again and again. So it is made of their bytes.
 */
int __wrap_img_identity(struct img_chain *c, unsigned from, unsigned to, uint8_t out[IMG_SUM_BYTES],
			struct img_err *err);
int __wrap_img_identity(struct img_chain *c, unsigned from, unsigned to, uint8_t out[IMG_SUM_BYTES],
			struct img_err *err)
{
	uint8_t sum[IMG_SUM_BYTES], buf[65536];

	memset(out, 0, IMG_SUM_BYTES);
	for (unsigned i = from; i < to; i++) {
		FILE *f = fopen(img_layer_real(c, i), "r");
		size_t n;

		if (!f)
			return img_err_errno(err, errno, "%s", img_layer_real(c, i));
		while ((n = fread(buf, 1, sizeof(buf), f)) > 0) {
			img_sum_chunk(buf, n, be64_get(out), sum);
			memcpy(out, sum, IMG_SUM_BYTES);
		}
		fclose(f);
	}
	return 0;
}

static void check_call(int rc, const struct img_err *err)
{
	if (rc)
		die("the stream cannot be made: %s", err->msg);
}

/* What differs between W->old and W->view, or all. */
static void write_runs(struct world *w, struct stream_writer *s, bool whole)
{
	struct img_err err = {0};
	uint64_t off = 0, n;
	uint8_t *buf;

	for (; off < w->size; off += n) {
		n = u64_min(STREAM_PIECE - off % STREAM_PIECE, w->size - off);
		if (!whole) {
			n = SECTOR;
			if (memcmp(w->old + off, w->view + off, SECTOR) == 0)
				continue;
		}
		if (bytes_are_zero(w->view + off, n)) {
			check_call(stream_write_zero(s, off, n, &err), &err);
			continue;
		}
		check_call(stream_write_space(s, n, &buf, &err), &err);
		memcpy(buf, w->view + off, n);
		check_call(stream_write_data(s, off, buf, n, &err), &err);
	}
}

static void make_stream(struct world *w, struct receiving *m, struct sent *sent)
{
	struct stream_pipe to = {
		.fd = memfd_create("stream", MFD_CLOEXEC), .name = "s", .checkpoint = 1};
	struct stream_totals totals;
	struct img_err err = {0};
	struct stream_writer *s;
	ssize_t n;

	check_call(stream_write_begin(&s, &to, 0, &m->begin, &err), &err);
	write_runs(w, s, m->how == WHOLE);
	check_call(stream_write_end(s, &totals, &err), &err);
	stream_writer_free(s);
	n = pread(to.fd, sent->stream, MAX_STREAM, 0);
	close(to.fd);
	if (n <= 0 || n == MAX_STREAM)
		die("the stream is too long");
	sent->len = (size_t)n;
}

/* Some sectors here and there: images stay small. */
static void scatter(struct world *w, uint8_t *disk, unsigned runs, uint64_t tag)
{
	for (unsigned i = 0; i < runs; i++) {
		uint64_t sec = rng_below(&w->rng, (unsigned)(w->size / SECTOR));
		uint64_t n = 1 + rng_below(&w->rng, 24);

		n = u64_min(n, w->size / SECTOR - sec) * SECTOR;
		if (rng_one_in(&w->rng, 5))
			memset(disk + sec * SECTOR, 0, n);
		else
			disk_fill(disk, sec * SECTOR, n, tag + i);
	}
}

static uint32_t block_size(struct world *w)
{
	static const uint32_t sizes[] = {4096, 4096, 16384, 65536, 512 << 10, 2 << 20};

	return sizes[rng_below(&w->rng, 6)];
}

/* The disk that is there, which shows W->old. */
static void add_base(struct world *w, struct receiving *m, const char *name)
{
	static const enum img_type kinds[] = {IMG_DYNAMIC, IMG_DYNAMIC, IMG_DYNAMIC, IMG_FIXED,
					      IMG_RAW};
	struct vhd_spec p = {.type = kinds[rng_below(&w->rng, 5)], .block_size = block_size(w)};
	uint8_t *own = need(w->size / SECTOR);

	scatter(w, w->old, 4, 1);
	p.size = w->size;
	for (uint64_t i = 0; i < w->size / SECTOR; i++)
		own[i] = !bytes_are_zero(w->old + i * SECTOR, SECTOR) || p.type == IMG_RAW ||
			 p.type == IMG_FIXED;
	p.own = own;
	p.disk = w->old;
	if (p.type != IMG_RAW)
		random_uuid(p.uuid, &w->rng);
	disk_layout(&p, &w->rng);
	disk_add(&w->base, name, &p, &w->rng);
	memcpy(m->begin.base_uuid, p.uuid, 16);
	m->begin.base_size = w->size;
	m->raw = p.type == IMG_RAW;
	free(own);
}

static void build(struct world *w, int how)
{
	struct receiving *m = need(sizeof(*m));
	struct stream_begin *b = &m->begin;

	w->op = m;
	w->big = true; /* a few scenarios only are tried at every call */
	m->how = how;
	world_size(w, (2 << 20) + rng_below(&w->rng, 1 << 11) * (uint64_t)SECTOR);
	m->type = rng_one_in(&w->rng, 4)   ? IMG_FIXED
		  : rng_one_in(&w->rng, 4) ? IMG_RAW
					   : IMG_DYNAMIC;
	m->verify = rng_one_in(&w->rng, 4);
	m->late = rng_one_in(&w->rng, 2);
	m->replaces = how == WHOLE && rng_one_in(&w->rng, 3);
	if (how != WHOLE || m->replaces)
		add_base(w, m, how == CHILD ? BASE : FILE_NAME);
	if (how != WHOLE)
		memcpy(w->view, w->old, w->size);
	scatter(w, w->view, 3 + rng_below(&w->rng, 6), 100);
	/* Something in each part between two checkpoints. */
	for (uint64_t off = 512; off < w->size; off += 1 << 20)
		disk_fill(w->view, off, SECTOR, 200);
	b->kind = how == WHOLE ? STREAM_WHOLE : STREAM_INCREMENT;
	b->size = w->size;
	b->type = how == WHOLE ? IMG_DYNAMIC : IMG_DIFFERENCING;
	b->block_size = block_size(w);
	b->has_uuid = true;
	random_uuid(b->uuid, &w->rng);
	make_stream(w, m, &m->now);
	if (rng_below(&w->rng, 4))
		m->cut = 300 + rng_below(&w->rng, (unsigned)(m->now.len - 300));
}

static void ready(struct world *w, struct recv *r, char path[2][2 * FS_PATH])
{
	const struct receiving *m = w->op;

	*r = (struct recv){.type = TYPE_KEEP};
	cli_common_init(&r->common);
	r->common.quiet = true;
	snprintf(path[0], 2 * FS_PATH, "%s", in_dir(w, FILE_NAME));
	snprintf(path[1], 2 * FS_PATH, "%s", in_dir(w, BASE));
	r->file = r->path = path[0];
	r->onto = m->how == ONTO;
	r->parent = m->how == CHILD ? path[1] : r->onto ? path[0] : NULL;
	r->force = m->replaces;
	r->verify = m->verify;
	if (m->how == WHOLE)
		r->type = (int)m->type;
}

/* vhd-recv --token, or --abort. TEXT is empty when there is nothing to go on with. */
static int manage(struct world *w, enum verb verb, char *text, size_t size, struct img_err *err)
{
	char path[2][2 * FS_PATH];
	struct recv r;
	int rc;

	memset(text, 0, size);
	ready(w, &r, path);
	r.verb = verb;
	r.out = fmemopen(text, size, "w");
	if (!r.out)
		die("fmemopen");
	rc = recv_manage(&r, err);
	fclose(r.out);
	recv_end(&r);
	text[strcspn(text, "\n")] = '\0';
	return rc;
}

/* What vhd-send --resume=TOKEN sends, at most MOST bytes of the whole stream. */
static int sender(const struct receiving *m, const char *text, size_t most)
{
	const struct sent *sent = &m->now;
	int fd = memfd_create("stream", MFD_CLOEXEC);
	uint8_t head[4096];
	struct stream_begin b;
	struct stream_token t;
	struct img_err err = {0};
	size_t n = STREAM_PREAMBLE + STREAM_HEADER, from = 0;

	if (*text) {
		struct stream_head h = {.type = STREAM_CONTINUE, .flags = STREAM_CRITICAL};
		struct stream_marks marks = {.wire_bytes = 0};

		check_call(stream_token_get(text, &t, &err), &err);
		/* The sender takes any token that fits its disk. */
		if (memcmp(t.stream_id, sent->stream + 24, 16) != 0)
			sent = &m->before;
		marks.wire_bytes = from = t.mark.wire_bytes;
		memcpy(marks.sum, t.mark.sum, STREAM_SUM);
		h.seq = t.mark.seq;
		h.off = t.mark.off;
		b = m->begin;
		memcpy(b.stream_id, t.stream_id, 16);
		stream_preamble_put(head, &b, true);
		h.len = h.stored = (uint32_t)stream_continue_put(head + n, &b, &marks);
		stream_head_put(head + STREAM_PREAMBLE, &h, head + n, stream_seed(t.stream_id));
		if (write(fd, head, n + h.stored) != (ssize_t)(n + h.stored))
			die("memfd");
	}
	most = u64_min(most, sent->len);
	if (most > from && write(fd, sent->stream + from, most - from) != (ssize_t)(most - from))
		die("memfd");
	lseek(fd, 0, SEEK_SET);
	return fd;
}

/* vhd-send --resume="$(vhd-recv --token FILE)" | vhd-recv FILE */
static int transfer(struct world *w, size_t most, bool anew, struct img_err *err)
{
	static FILE *nowhere;
	char path[2][2 * FS_PATH], text[STREAM_TOKEN_STR + 2];
	struct recv r;
	int rc;

	if (!nowhere)
		nowhere = fopen("/dev/null", "w");
	if (manage(w, TOKEN, text, sizeof(text), err))
		return -1;
	if (anew)
		text[0] = '\0';
	ready(w, &r, path);
	r.out = nowhere;
	r.in = sender(w->op, text, most);
	rc = recv_stream(&r, err);
	recv_end(&r);
	close(r.in);
	return rc;
}

/* What came of it is kept, or there was nothing to be kept. */
static bool is_cut(const struct img_err *err)
{
	return err->code == IMG_PROTO || err->code == IMG_AGAIN;
}

/* The folder holds what came before the stream was cut. */
static void leave_part(struct world *w, bool lose_log)
{
	struct receiving *m = w->op;
	struct img_err err = {0};
	size_t cut = m->now.len - 1 - rng_below(&w->rng, (unsigned)m->now.len / 2);
	struct tape t = {0};
	struct fs left;

	record_threads(m->late);
	fs_store(&w->base, w->dir, w->pool);
	record_start(w->dir, w->pool, &w->base, &t, (struct fault){0});
	if (transfer(w, cut, false, &err) == 0 || !is_cut(&err))
		die("the stream is not cut: %s", err.msg);
	if (lose_log)
		unlink(in_dir(w, ".disk.vhd.partial-log.tmp"));
	record_stop();
	/* With the same inodes, which the log tells. */
	fs_replay(&left, &w->base, &t, t.n, (struct choice){TAKE_ALL, 0});
	tape_free(&t);
	fs_free(&w->base);
	w->base = left;
}

/* One in four begins anew, although there is something to go on with. */
static void leave_another(struct world *w)
{
	struct receiving *m = w->op;
	struct sent *s = &m->before;

	if (!rng_one_in(&w->rng, 4))
		return;
	leave_part(w, false);
	*s = m->now;
	make_stream(w, m, &m->now);
}

static void recv_build(struct world *w)
{
	build(w, rng_one_in(&w->rng, 3) ? CHILD : WHOLE);
	leave_another(w);
}

static void onto_build(struct world *w)
{
	build(w, ONTO);
	leave_another(w);
}

static int recv_run(struct world *w, void *ctx, bool again, struct img_err *err)
{
	const struct receiving *m = w->op;
	bool anew = !again && m->before.len;

	(void)ctx;
	record_threads(m->late);
	if (!again && m->cut) {
		if (transfer(w, m->cut, anew, err) == 0)
			return img_err_set(err, IMG_BUG, "a stream that was cut is taken");
		if (!is_cut(err))
			return -1;
		img_err_clear(err);
		anew = false;
	}
	/* What was killed when all was there proves it. */
	return transfer(w, MAX_STREAM, anew, err);
}

/* FILE, whatever it is; -1 with ERR when it does not open. */
static int look_at(struct world *w, bool raw, struct img_err *err)
{
	struct img_open o = {.raw = raw};
	uint64_t size;

	if (look(w, FILE_NAME, &o, &size, err) < 0)
		return -1;
	if (size != w->size && !raw)
		return img_err_set(err, IMG_DATA, "another size");
	return 0;
}

static bool is(struct world *w, const uint8_t *want)
{
	return memcmp(w->buf, want, w->size) == 0;
}

/* Under its name a disk is whole. */
static bool new_holds(struct world *w, bool done)
{
	const struct receiving *m = w->op;
	bool raw = m->how == WHOLE && m->type == IMG_RAW;
	struct img_err err = {0};

	if (!exists(w, FILE_NAME))
		return (!done && !m->replaces) || wrong(w, "no disk");
	if (look_at(w, raw, &err) == 0 && is(w, w->view))
		return raw || sound(w, FILE_NAME, true);
	img_err_clear(&err);
	if (!done && m->replaces && look_at(w, m->raw, &err) == 0 && is(w, w->old))
		return true;
	return wrong(w, "the disk is there, and is not the one that was sent: %s", err.msg);
}

/* The disk that is there is old, closed, or new. Where there is something to go on with, it is not
 * the old one for everybody. */
static bool onto_holds(struct world *w, bool done)
{
	const struct receiving *m = w->op;
	char text[STREAM_TOKEN_STR + 2];
	struct img_err err = {0}, e = {0};

	if (look_at(w, m->raw, &err) < 0)
		return (!done && err.code == IMG_AGAIN) ||
		       wrong(w, "the disk does not open: %d, %s", err.code, err.msg);
	if (is(w, w->view))
		return m->raw || sound(w, FILE_NAME, done);
	if (done || !is(w, w->old))
		return wrong(w, "the disk is neither the old one nor the new one");
	if (manage(w, TOKEN, text, sizeof(text), &e) < 0)
		return wrong(w, "no token: %s", e.msg);
	return !*text || wrong(w, "the disk is open while a part of what will change it is there");
}

static bool nothing_left(struct world *w)
{
	struct fs now;
	bool ok = true;

	fs_load(&now, w->dir, w->pool);
	for (int i = 0; ok && i < now.names; i++) {
		const char *name = now.name[i].path;

		if (strcmp(name, ".disk.vhd.partial.tmp") == 0 ||
		    strcmp(name, ".disk.vhd.onto.tmp") == 0 ||
		    strcmp(name, "disk.vhd.merging") == 0)
			ok = wrong(w, "%s is left", name);
	}
	fs_free(&now);
	return ok;
}

static bool base_holds(struct world *w)
{
	const struct receiving *m = w->op;
	struct img_open o = {.raw = m->raw};
	struct img_err err = {0};

	if (m->how != CHILD)
		return true;
	if (disk_read(in_dir(w, BASE), &o, w->buf, w->size, &err) < 0)
		return wrong(w, "the base: %s", err.msg);
	return is(w, w->old) || wrong(w, "the base has changed");
}

/* A folder that could not be synced may bring back what was removed, and lose what was renamed. */
static bool may_come_back(const struct when *when)
{
	for (unsigned i = 0; i < when->tape->n; i++)
		if (when->tape->ev[i].kind == EV_SYNC_DIR && when->tape->ev[i].failed)
			return when->power;
	return false;
}

static bool recv_check(struct world *w, void *ctx, const struct when *when)
{
	const struct receiving *m = w->op;

	(void)ctx;
	if (when->done && !may_come_back(when) && !nothing_left(w))
		return false;
	if (m->how == ONTO)
		return onto_holds(w, when->done && !may_come_back(when));
	return base_holds(w) && new_holds(w, when->done && !may_come_back(when));
}

/* What was cut is there already; one in four has lost its log. */
static void drop_build(struct world *w)
{
	static const int hows[] = {WHOLE, CHILD, ONTO, ONTO};

	build(w, hows[rng_below(&w->rng, 4)]);
	leave_part(w, rng_one_in(&w->rng, 4));
}

static int drop_run(struct world *w, void *ctx, bool again, struct img_err *err)
{
	char text[STREAM_TOKEN_STR + 2];

	(void)ctx, (void)again;
	return manage(w, ABORT, text, sizeof(text), err);
}

static bool drop_check(struct world *w, void *ctx, const struct when *when)
{
	const struct receiving *m = w->op;
	struct img_err err = {0};

	(void)ctx;
	if (when->done && !may_come_back(when) && m->how == ONTO && !nothing_left(w))
		return false;
	if (m->how != ONTO && !m->replaces)
		return base_holds(w) && (!exists(w, FILE_NAME) || wrong(w, "there is a disk"));
	if (look_at(w, m->raw, &err) < 0)
		return ((!when->done || may_come_back(when)) && err.code == IMG_AGAIN) ||
		       wrong(w, "the disk does not open: %d, %s", err.code, err.msg);
	return is(w, w->old) || wrong(w, "the disk has changed");
}

const struct op op_recv = {
	.name = "recv", .build = recv_build, .run = recv_run, .check = recv_check};
const struct op op_onto = {
	.name = "onto", .build = onto_build, .run = recv_run, .check = recv_check};
const struct op op_drop = {
	.name = "abort", .build = drop_build, .run = drop_run, .check = drop_check};
