/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A guest at work on the leaf. What was acknowledged survives the death of the server, what was
 * flushed survives power loss; of the rest a sector reads old or new. What was written before a
 * sync that failed may be there or not, until it is written and flushed again.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "ops.h"

#define LEAF "leaf.avhd"
#define PARENT "base.vhd"
#define MAX_REQUESTS 40

enum request_kind { REQ_WRITE, REQ_ZERO, REQ_TRIM, REQ_FLUSH };

struct request {
	enum request_kind kind;
	bool fua;
	uint64_t off, len;
};

struct guest {
	struct request req[MAX_REQUESTS / 2];
	int n;
	bool raw;
};

/* What came of a request: AFTER is what its range held then, in the context's store. */
struct outcome {
	struct request req;
	bool ok, sync_failed;
	unsigned began, ended; /* notes */
	uint8_t *after;
};

struct history {
	uint8_t *base; /* the content at the beginning */
	struct outcome out[MAX_REQUESTS];
	int n;
	uint64_t tag;
	uint8_t store[]; /* base, then a disk for each outcome */
};

static void guest_build(struct world *w)
{
	static const enum img_type kinds[] = {IMG_DIFFERENCING, IMG_DIFFERENCING, IMG_DIFFERENCING,
					      IMG_DYNAMIC,	IMG_DYNAMIC,	  IMG_FIXED};
	struct guest *g = need(sizeof(*g));
	struct vhd_spec p = {.type = rng_one_in(&w->rng, 4) ? IMG_RAW : IMG_DYNAMIC};
	struct vhd_spec c = {.type = kinds[rng_below(&w->rng, 6)], .parent = PARENT};
	uint8_t *own;

	w->op = g;
	p.block_size = random_block_size(w);
	c.block_size = random_block_size(w);
	world_size(w, random_size(w, c.block_size));
	own = need(w->size / SECTOR);
	p.size = c.size = w->size;
	random_uuid(c.uuid, &w->rng);
	if (c.type == IMG_DIFFERENCING) {
		if (p.type != IMG_RAW)
			random_uuid(p.uuid, &w->rng);
		disk_own(own, w->size, p.block_size, &w->rng);
		for (uint64_t i = 0; i < w->size / SECTOR; i++)
			if (own[i] || p.type == IMG_RAW)
				disk_fill(w->view, i * SECTOR, SECTOR, 1);
		p.disk = w->view;
		p.own = own;
		disk_layout(&p, &w->rng);
		disk_add(&w->base, PARENT, &p, &w->rng);
		memcpy(c.parent_uuid, p.uuid, 16);
	}
	disk_own(own, w->size, c.block_size, &w->rng);
	for (uint64_t i = 0; i < w->size / SECTOR; i++)
		if (own[i] || c.type == IMG_FIXED)
			disk_fill(w->view, i * SECTOR, SECTOR, 2);
	c.disk = w->view;
	c.own = own;
	disk_layout(&c, &w->rng);
	disk_add(&w->base, LEAF, &c, &w->rng);
	free(own);
	g->n = 4 + (int)rng_below(&w->rng, MAX_REQUESTS / 2 - 4);
	for (int i = 0; i < g->n; i++) {
		static const enum request_kind mix[] = {REQ_WRITE, REQ_WRITE, REQ_WRITE, REQ_WRITE,
							REQ_ZERO,  REQ_TRIM,  REQ_FLUSH};
		struct request *r = &g->req[i];
		uint64_t nsec = w->size / SECTOR, most = rng_one_in(&w->rng, 3) ? 40 : 6;

		r->kind = mix[rng_below(&w->rng, 7)];
		r->fua = rng_one_in(&w->rng, 8);
		r->off = rng_below(&w->rng, (unsigned)nsec) * (uint64_t)SECTOR;
		r->len = (1 + rng_below(&w->rng, (unsigned)u64_min(most, nsec - r->off / SECTOR))) *
			 (uint64_t)SECTOR;
	}
}

static void *guest_begin(struct world *w)
{
	struct history *h = need(sizeof(*h) + w->size * (MAX_REQUESTS + 1));
	struct img_open o = {.writable = false};
	struct img_err err = {0};

	h->base = h->store;
	h->tag = 10 + (uint64_t)w->runs * 100;
	for (int i = 0; i < MAX_REQUESTS; i++)
		h->out[i].after = h->store + w->size * (uint64_t)(i + 1);
	if (disk_read(in_dir(w, LEAF), &o, h->base, w->size, &err) < 0)
		die("%s", err.msg);
	return h;
}

static int request(struct img_chain *c, const struct request *r, const uint8_t *data,
		   struct img_err *err)
{
	switch (r->kind) {
	case REQ_WRITE:
		return img_write(c, data + r->off, r->off, r->len, r->fua, err);
	case REQ_ZERO:
		return img_zero(c, r->off, r->len, r->fua, err);
	case REQ_TRIM:
		return img_trim(c, r->off, r->len, err);
	default:
		return img_flush(c, err);
	}
}

/* One request, with a note before and after; what a trim leaves is asked for. */
static int do_request(struct world *w, struct img_chain *c, struct history *h,
		      const struct request *r, struct img_err *err)
{
	struct outcome *o = &h->out[h->n];
	uint64_t tag = h->tag + (uint64_t)h->n;
	int rc;

	o->req = *r;
	o->ok = o->sync_failed = false;
	memset(o->after, 0, w->size);
	if (r->kind == REQ_WRITE)
		disk_fill(o->after, r->off, r->len, tag);
	record_note(2 * (uint64_t)h->n);
	h->n++;
	rc = request(c, r, o->after, err);
	o->ok = rc == 0;
	o->sync_failed = rc < 0 && err->code == IMG_IO;
	if (rc == 0 && r->kind == REQ_TRIM)
		rc = img_read(c, o->after + r->off, r->off, r->len, err);
	record_note(2 * (uint64_t)(h->n - 1) + 1);
	return rc;
}

static int guest_run(struct world *w, void *ctx, bool again, struct img_err *err)
{
	struct img_open o = {.writable = true};
	const struct guest *g = w->op;
	struct history *h = ctx;
	struct img_chain *c;
	int rc = 0;

	if (!again)
		h->n = 0;
	if (img_open(&c, in_dir(w, LEAF), &o, err) < 0)
		return -1;
	for (int i = 0; rc == 0 && i < g->n && h->n < MAX_REQUESTS - 1; i++) {
		rc = do_request(w, c, h, &g->req[i], err);
		/* A full disk: the guest waits, and the same request comes again. */
		if (rc < 0 && err->code == IMG_CANTCREAT) {
			img_err_clear(err);
			i--;
			rc = 0;
		}
	}
	img_close(c);
	return rc;
}

/* What a sector may read: the value of BASE (-1) or of these outcomes. */
struct maybe {
	int v[MAX_REQUESTS + 1], n;
	int last; /* the last one that was completed */
};

static unsigned note_at(const struct tape *t, uint64_t number)
{
	for (unsigned i = 0; i < t->n; i++)
		if (t->ev[i].kind == EV_NOTE && t->ev[i].off == number)
			return i;
	return t->n;
}

static bool touches(const struct request *r, uint64_t off)
{
	return r->kind != REQ_FLUSH && off >= r->off && off < r->off + r->len;
}

/* Whether all requests up to WHEN were without a failed sync: then what was acknowledged is in the
 * cache. */
static bool cache_is_whole(const struct history *h, const struct when *when)
{
	for (int i = 0; i < h->n; i++)
		if (h->out[i].sync_failed && h->out[i].began < when->pos)
			return false;
	return !when->power;
}

static void possible(const struct history *h, const struct when *when, uint64_t off,
		     struct maybe *m)
{
	bool whole = cache_is_whole(h, when);
	int floor = 0; /* the first request after the last failed sync */

	*m = (struct maybe){.v = {-1}, .n = 1, .last = -1};
	for (int i = 0; i < h->n && h->out[i].began < when->pos; i++) {
		const struct outcome *o = &h->out[i];
		bool ended = o->ended < when->pos && o->ok, touched = touches(&o->req, off);
		bool flush = o->req.kind == REQ_FLUSH || (o->req.fua && o->req.kind != REQ_TRIM);

		if (touched) {
			m->v[m->n++] = i;
			if (ended)
				m->last = i;
		}
		/* What a failed sync left is not known until it is written again. */
		if (ended && ((whole && touched) || (flush && (m->last >= floor || floor == 0)))) {
			m->v[0] = m->last;
			m->n = 1;
		}
		if (o->sync_failed)
			floor = i + 1;
	}
}

static bool none_of_them(struct world *w, const struct history *h, const struct maybe *m,
			 uint64_t off)
{
	static const char *const kinds[] = {"write", "zero", "trim", "flush"};
	char list[1000] = "";

	for (int i = 0; i < m->n; i++) {
		int k = m->v[i];
		size_t n = strlen(list);

		snprintf(list + n, sizeof(list) - n, " %d (%s%s: %016llx)", k,
			 k < 0 ? "before" : kinds[h->out[k].req.kind],
			 k >= 0 && !h->out[k].ok ? ", failed" : "",
			 (unsigned long long)be64_get((k < 0 ? h->base : h->out[k].after) + off));
	}
	return wrong(w, "sector %llu reads %016llx; what it may read is of request%s",
		     (unsigned long long)(off / SECTOR), (unsigned long long)be64_get(w->buf + off),
		     list);
}

static bool guest_check(struct world *w, void *ctx, const struct when *when)
{
	struct img_open o = {.writable = false};
	struct history *h = ctx;
	struct img_err err = {0};
	struct when now = *when;

	for (int i = 0; i < h->n; i++) {
		h->out[i].began = note_at(when->tape, 2 * (uint64_t)i);
		h->out[i].ended = note_at(when->tape, 2 * (uint64_t)i + 1);
	}
	if (disk_read(in_dir(w, LEAF), &o, w->buf, w->size, &err) < 0)
		return wrong(w, "the disk: %d, %s", err.code, err.msg);
	for (uint64_t off = 0; off < w->size; off += SECTOR) {
		struct maybe m;
		bool good = false;

		possible(h, &now, off, &m);
		for (int i = 0; !good && i < m.n; i++)
			good = memcmp(w->buf + off,
				      (m.v[i] < 0 ? h->base : h->out[m.v[i]].after) + off,
				      SECTOR) == 0;
		if (!good)
			return none_of_them(w, h, &m, off);
	}
	return sound(w, LEAF, false);
}

const struct op op_guest = {.name = "guest",
			    .positional = true,
			    .build = guest_build,
			    .begin = guest_begin,
			    .run = guest_run,
			    .check = guest_check};
