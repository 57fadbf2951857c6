/* SPDX-License-Identifier: BSD-2-Clause */
/* New files: empty ones, children, and such that are filled before they get their name. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "ops.h"

#define NEW "new.vhd"
#define PARENT "base.vhd"

/* What a new file is made of, and what stood there before. */
struct making {
	struct img_create o;
	bool replaces; /* a file of that name, which shows W->old */
	uint8_t uuid[16];
	struct write {
		uint64_t off, len;
		bool zero;
	} write[8];
	int writes;
};

/* PARENT shows W->view; NEW, if it is there already, W->old. */
static struct making *base_files(struct world *w, enum img_type parent)
{
	struct vhd_spec p = {.type = parent};
	struct making *m = need(sizeof(*m));
	uint8_t *own;

	p.block_size = random_block_size(w);
	w->op = m;
	world_size(w, random_size(w, p.block_size));
	own = need(w->size / SECTOR);
	p.size = w->size;
	p.own = own;
	random_uuid(p.uuid, &w->rng);
	disk_own(own, w->size, p.block_size, &w->rng);
	for (uint64_t i = 0; i < w->size / SECTOR; i++)
		if (own[i] || parent == IMG_FIXED || parent == IMG_RAW)
			disk_fill(w->view, i * SECTOR, SECTOR, 1);
	p.disk = w->view;
	disk_layout(&p, &w->rng);
	disk_add(&w->base, PARENT, &p, &w->rng);
	m->replaces = rng_one_in(&w->rng, 2);
	if (m->replaces) {
		for (uint64_t i = 0; i < w->size / SECTOR; i++)
			if (own[i])
				disk_fill(w->old, i * SECTOR, SECTOR, 2);
		p.type = IMG_DYNAMIC;
		p.disk = w->old;
		p.uuid[0] ^= 1;
		disk_add(&w->base, NEW, &p, &w->rng);
	}
	free(own);
	return m;
}

/* NEW shows WANT; or, when not DONE, nothing or what it was. The other files are what they were. */
static bool new_check(struct world *w, const uint8_t *want, bool done)
{
	struct making *m = w->op;
	struct fs now;
	bool there, ok = true;

	fs_load(&now, w->dir, w->pool);
	there = fs_find(&now, NEW) >= 0;
	if (fs_find(&now, PARENT) < 0)
		ok = wrong(w, "the parent is gone");
	else {
		const struct node *a = &now.node[now.name[fs_find(&now, PARENT)].node];
		const struct node *b = &w->base.node[w->base.name[fs_find(&w->base, PARENT)].node];

		if (a->size != b->size || memcmp(a->data, b->data, a->size) != 0)
			ok = wrong(w, "the parent has changed");
	}
	fs_free(&now);
	if (!ok)
		return false;
	if (!there)
		return (!done && !m->replaces) || wrong(w, "no new file");
	if (!done && m->replaces && shows(w, NEW, w->old, w->size))
		return true;
	if (m->o.type != IMG_RAW)
		return shows(w, NEW, want, w->size) && sound(w, NEW, true);

	struct img_open o = {.raw = true};
	struct img_err err = {0};

	if (disk_read(in_dir(w, NEW), &o, w->buf, w->size, &err) < 0)
		return wrong(w, "%s", err.msg);
	return memcmp(w->buf, want, w->size) == 0 || wrong(w, "the new file shows something else");
}

/* The run before may have given the file its name and failed after that: then it takes --force. */
static bool force(struct world *w, bool again)
{
	const struct making *m = w->op;

	return m->replaces || (again && exists(w, NEW));
}

static void snap_build(struct world *w)
{
	static const enum img_type kinds[] = {IMG_DYNAMIC, IMG_FIXED};
	struct making *m = base_files(w, kinds[rng_below(&w->rng, 2)]);

	m->o.type = IMG_DIFFERENCING;
}

static int snap_run(struct world *w, void *ctx, bool again, struct img_err *err)
{
	struct img_open o = {.writable = false};

	(void)ctx;
	return img_snapshot(in_dir(w, PARENT), in_dir(w, NEW), &o, force(w, again), err);
}

static bool snap_check(struct world *w, void *ctx, const struct when *when)
{
	(void)ctx;
	return new_check(w, w->view, when->done);
}

static void create_build(struct world *w)
{
	static const enum img_type kinds[] = {IMG_DYNAMIC, IMG_FIXED, IMG_RAW};
	struct making *m = base_files(w, IMG_DYNAMIC);

	m->o.type = kinds[rng_below(&w->rng, 3)];
	m->o.size = w->size;
	m->o.block_size = w->big ? 2 << 20 : 4096u << rng_below(&w->rng, 5);
	memset(w->view, 0, w->size); /* what the new file is to show */
}

static int create_run(struct world *w, void *ctx, bool again, struct img_err *err)
{
	struct making *m = w->op;

	(void)ctx;
	m->o.force = force(w, again);
	return img_create(in_dir(w, NEW), &m->o, err);
}

/* As a stream is received or a disk converted: no barrier before the last one. */
static void fill_build(struct world *w)
{
	uint64_t nsec;
	struct making *m;

	create_build(w);
	m = w->op;
	nsec = w->size / SECTOR;
	m->writes = 1 + (int)rng_below(&w->rng, 8);
	for (int i = 0; i < m->writes; i++) {
		struct write *x = &m->write[i];

		x->off = rng_below(&w->rng, (unsigned)nsec) * (uint64_t)SECTOR;
		x->len = (1 + rng_below(&w->rng, (unsigned)u64_min(64, nsec - x->off / SECTOR))) *
			 (uint64_t)SECTOR;
		x->zero = rng_one_in(&w->rng, 4);
		if (x->zero)
			memset(w->view + x->off, 0, x->len);
		else
			disk_fill(w->view, x->off, x->len, 3 + (uint64_t)i);
	}
}

static int fill_run(struct world *w, void *ctx, bool again, struct img_err *err)
{
	struct making *m = w->op;
	struct img_new *n;
	uint8_t *buf = need(w->size);
	int rc = 0;

	(void)ctx;
	m->o.force = force(w, again);
	if (img_create_begin(&n, in_dir(w, NEW), &m->o, err) < 0) {
		free(buf);
		return -1;
	}
	for (int i = 0; rc == 0 && i < m->writes; i++) {
		struct write *x = &m->write[i];

		disk_fill(buf, x->off, x->len, 3 + (uint64_t)i);
		rc = x->zero ? img_zero(img_new_chain(n), x->off, x->len, false, err)
			     : img_write(img_new_chain(n), buf + x->off, x->off, x->len, false,
					 err);
	}
	if (rc == 0)
		rc = img_create_finish(n, err);
	else
		img_create_abort(n);
	free(buf);
	return rc;
}

const struct op op_snap = {
	.name = "snap", .build = snap_build, .run = snap_run, .check = snap_check};
const struct op op_create = {
	.name = "create", .build = create_build, .run = create_run, .check = snap_check};
const struct op op_fill = {
	.name = "fill", .build = fill_build, .run = fill_run, .check = snap_check};
