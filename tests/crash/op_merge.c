/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One or several layers folded into an ancestor of any kind, with what `vhd-merge` does around it;
 * and a chain made into a new file.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "ops.h"

#define GRAND "grand.avhd" /* a child of the leaf */
#define NEW "new.vhd"
#define MOST 3

static const char *const names[MOST] = {"leaf.avhd", "second.avhd", "third.avhd"};

struct merging {
	int layers;		    /* to be merged; names[0] is the leaf */
	const char *target, *below; /* names */
	bool del, grand, raw;
	char aside[2 * FS_PATH];
	uint8_t uuid[MOST + 2][16];
	uint64_t size[MOST + 2]; /* of each layer, target and what is below it included: a child may
				    have grown */
	uint8_t *shows[MOST];	 /* what each layer shows */
	uint8_t *grand_shows;
	uint8_t *written; /* what the target shows after somebody has written to it */
	uint8_t store[];
};

/* A layer over what VIEW shows, which it changes. */
static void add_layer(struct world *w, const char *name, struct vhd_spec *s, uint8_t *view,
		      uint64_t tag)
{
	uint64_t nsec = s->size / SECTOR;
	uint8_t *own = need(nsec);

	s->block_size = random_block_size(w);
	disk_own(own, s->size, s->block_size, &w->rng);
	if (s->type == IMG_RAW || s->type == IMG_FIXED)
		memset(own, 1, nsec);
	for (uint64_t i = 0; i < nsec; i++) {
		if (!own[i])
			continue;
		if (rng_one_in(&w->rng, 6))
			memset(view + i * SECTOR, 0, SECTOR);
		else if (!rng_one_in(&w->rng, 8))
			disk_fill(view, i * SECTOR, SECTOR, tag);
	}
	s->disk = view;
	s->own = own;
	disk_layout(s, &w->rng);
	disk_add(&w->base, name, s, &w->rng);
	free(own);
}

static void add_target(struct world *w, struct merging *m, struct vhd_spec *p)
{
	random_uuid(p->uuid, &w->rng);
	if (p->type == IMG_RAW)
		memset(p->uuid, 0, sizeof(p->uuid));
	if (p->type == IMG_DIFFERENCING) {
		struct vhd_spec g = {.type = rng_one_in(&w->rng, 3) ? IMG_RAW : IMG_DYNAMIC};

		if (g.type != IMG_RAW)
			random_uuid(g.uuid, &w->rng);
		g.size = m->size[m->layers + 1];
		add_layer(w, m->below, &g, w->old, 1);
		memcpy(p->parent_uuid, g.uuid, 16);
		p->parent = "root.vhd";
	}
	p->size = m->size[m->layers];
	p->first_size = m->size[m->layers + 1];
	add_layer(w, m->target, p, w->old, 2);
}

static void merge_build(struct world *w)
{
	static const enum img_type kinds[] = {IMG_DYNAMIC, IMG_DIFFERENCING, IMG_FIXED,
					      IMG_RAW,	   IMG_DYNAMIC,	     IMG_DIFFERENCING};
	struct vhd_spec p = {.type = kinds[rng_below(&w->rng, 6)]};
	uint32_t block_size = random_block_size(w);
	struct merging *m;
	bool grown = rng_one_in(&w->rng, 2);

	world_size(w, random_size(w, block_size));
	w->op = m = need(sizeof(*m) + (MOST + 2) * w->size);
	m->layers = rng_one_in(&w->rng, 2) ? 1 : 1 + (int)rng_below(&w->rng, MOST);
	m->del = rng_one_in(&w->rng, 2);
	m->grand = m->del && rng_one_in(&w->rng, 3);
	m->target = "base.vhd";
	m->below = "root.vhd";
	/* The target, and what is below it, in another folder: with syncs of its own. */
	if (rng_one_in(&w->rng, 3)) {
		m->target = "aside/base.vhd";
		m->below = "aside/root.vhd";
		snprintf(m->aside, sizeof(m->aside), "%s", in_dir(w, "aside"));
		w->aside[0] = m->aside;
	}
	/* Half of the chains are of one size. The child of a raw disk knows it by its size: it
	 * grows last. */
	m->size[0] = w->size;
	for (int i = 1; i < m->layers + 2; i++) {
		m->size[i] = m->size[i - 1];
		if (grown && rng_one_in(&w->rng, 2) && (p.type != IMG_RAW || i >= m->layers))
			m->size[i] = (1 + rng_below(&w->rng, (unsigned)(m->size[i] / SECTOR))) *
				     (uint64_t)SECTOR;
	}
	add_target(w, m, &p);
	m->raw = p.type == IMG_RAW;
	memcpy(w->view, w->old, w->size);
	for (int i = m->layers - 1; i >= 0; i--) {
		struct vhd_spec c = {.type = IMG_DIFFERENCING};

		c.parent = i == m->layers - 1 ? m->target : names[i + 1];
		memcpy(c.parent_uuid, p.uuid, 16);
		random_uuid(c.uuid, &w->rng);
		c.size = m->size[i];
		c.first_size = m->size[i + 1];
		add_layer(w, names[i], &c, w->view, 3 + (uint64_t)i);
		m->shows[i] = m->store + w->size * (uint64_t)i;
		memcpy(m->shows[i], w->view, w->size);
		memcpy(p.uuid, c.uuid, 16);
	}
	m->grand_shows = m->store + w->size * MOST;
	m->written = m->store + w->size * (MOST + 1);
	memcpy(m->grand_shows, w->view, w->size);
	if (m->grand) {
		struct vhd_spec c = {.type = IMG_DIFFERENCING, .parent = names[0], .size = w->size};

		memcpy(c.parent_uuid, p.uuid, 16);
		random_uuid(c.uuid, &w->rng);
		add_layer(w, GRAND, &c, m->grand_shows, 9);
	}
}

/* What vhd-merge --to=TARGET [--delete] does. */
static int merge_run(struct world *w, void *ctx, bool again, struct img_err *err)
{
	struct merging *m = w->op;
	char target[2 * FS_PATH];
	struct img_open o = open_as(w);
	struct img_merge opts = {.open = &o, .del = m->del};
	struct img_merge_stats stats;
	struct img_chain *c;
	bool done = false;
	char *into = NULL;
	int rc;

	(void)ctx;
	snprintf(target, sizeof(target), "%s", in_dir(w, m->target));
	o.writable = o.merge = true;
	o.merge_to = target;
	if (img_open(&c, in_dir(w, names[0]), &o, err) == 0) {
		rc = img_merge(c, &opts, &stats, err);
		img_close(c);
		return rc;
	}
	if (err->code != IMG_NOINPUT || !again || !m->del)
		return -1;
	struct img_err e = {0};

	if (img_merge_clean_up(in_dir(w, names[0]), target, &o, &done, &into, &e) < 0) {
		*err = e;
		return -1;
	}
	free(into);
	/* All was done already: the leaf is not there any more. */
	return done || !exists(w, names[0]) ? 0 : -1;
}

/* Alone the target is the old disk, the merged one, or refused: never anything in between. */
static bool target_holds(struct world *w, bool done)
{
	const struct merging *m = w->op;
	struct img_open o = open_as(w);
	struct img_err err = {0};
	struct img_chain *c;
	uint64_t size;
	bool sound;

	o.raw = m->raw;
	if (look(w, m->target, &o, &size, &err) < 0)
		return (!done && err.code == IMG_AGAIN) ||
		       wrong(w, "the target alone: %d, %s", err.code, err.msg);
	if ((size != w->size || disk_differs(w->buf, w->view, w->size) >= 0) &&
	    (done || size != m->size[m->layers] || disk_differs(w->buf, w->old, size) >= 0))
		return wrong(
			w,
			"the target alone is neither the old disk nor the merged one: sector %lld",
			(long long)disk_differs(w->buf, w->view, w->size));
	if (!done)
		return true;
	if (img_open(&c, in_dir(w, m->target), &o, &err) < 0)
		return wrong(w, "the target: %s", err.msg);
	sound = !img_layer_info(c, 0)->unsound && !img_layer_info(c, 0)->warning;
	if (!sound)
		wrong(w, "the merged target: %s", img_layer_info(c, 0)->warning);
	img_close(c);
	return sound;
}

/*
 * Not every program knows the marker. What it would see is old or new in each sector: no bit is
 * there without its data, no entry without its bitmap.
 */
static bool old_or_new(struct world *w)
{
	const struct merging *m = w->op;
	struct img_open o = open_as(w);
	struct img_err err = {0};
	char marker[FS_PATH], hidden[2 * FS_PATH];
	uint64_t size;
	int rc;

	snprintf(marker, sizeof(marker), "%s.merging", m->target);
	if (!exists(w, marker))
		return true;
	snprintf(hidden, sizeof(hidden), "%s", in_dir(w, "hidden"));
	o.raw = m->raw;
	if (rename(in_dir(w, marker), hidden) < 0)
		die("the marker cannot be hidden");
	rc = look(w, m->target, &o, &size, &err);
	if (rename(hidden, in_dir(w, marker)) < 0)
		die("the marker cannot be brought back");
	if (rc < 0)
		return wrong(w, "the target without its marker: %s", err.msg);
	for (uint64_t off = 0; off < w->size; off += SECTOR)
		if (memcmp(w->buf + off, w->old + off, SECTOR) != 0 &&
		    memcmp(w->buf + off, w->view + off, SECTOR) != 0)
			return wrong(
				w,
				"the target without its marker: sector %llu is neither old nor new",
				(unsigned long long)(off / SECTOR));
	return true;
}

/* A layer between shows what it showed, or nothing. */
static bool middle_holds(struct world *w, int i)
{
	struct merging *m = w->op;
	struct img_open o = open_as(w);
	struct img_err err = {0};
	uint64_t size;

	if (look(w, names[i], &o, &size, &err) < 0)
		return true;
	return (size == m->size[i] && disk_differs(w->buf, m->shows[i], size) < 0) ||
	       wrong(w, "%s shows something that it never was, from sector %lld on", names[i],
		     (long long)disk_differs(w->buf, m->shows[i], w->size));
}

/* A folder that could not be synced may bring back what was removed. */
static bool may_come_back(const struct when *when)
{
	bool failed = false;

	for (unsigned i = 0; i < when->tape->n; i++)
		failed |= when->tape->ev[i].kind == EV_SYNC_DIR && when->tape->ev[i].failed;
	return when->power && failed;
}

static bool nothing_left(struct world *w)
{
	struct merging *m = w->op;
	char marker[FS_PATH];

	for (int i = 0; i < m->layers; i++)
		if (m->del && exists(w, names[i]))
			return wrong(w, "%s was to be deleted", names[i]);
	snprintf(marker, sizeof(marker), "%s.merging", m->target);
	return !exists(w, marker) || wrong(w, "the marker is still there");
}

/* A sector that the merge has changed, or -1. */
static int64_t changed_sector(const struct world *w)
{
	return disk_differs(w->old, w->view, w->size);
}

/* Somebody writes to the target, and the merge is run once more. */
static bool write_and_merge(struct world *w, uint64_t off)
{
	struct merging *m = w->op;
	struct img_open o = open_as(w);
	struct img_err err = {0};
	struct img_chain *c;
	int rc;

	o.raw = m->raw;
	o.writable = true;
	disk_fill(w->buf, off, SECTOR, 77);
	if (img_open(&c, in_dir(w, m->target), &o, &err) < 0)
		return wrong(w, "the merged target cannot be written to: %s", err.msg);
	rc = img_write(c, w->buf + off, off, SECTOR, true, &err);
	img_close(c);
	if (rc < 0)
		return wrong(w, "the merged target cannot be written to: %s", err.msg);
	memcpy(m->written, w->buf, w->size);
	(void)merge_run(w, NULL, true, &err);
	o.writable = false;
	img_err_clear(&err);
	if (disk_read(in_dir(w, m->target), &o, w->buf, w->size, &err) < 0)
		return wrong(w, "the merged target, written to and merged again: %s", err.msg);
	return disk_differs(w->buf, m->written, w->size) < 0 ||
	       wrong(w, "merged again the target has lost what was written to it");
}

/*
 * From the moment on that the target opens by itself and is the new one, what is written to it
 * stays, though the merge is run again: also where the child is still there.
 */
static bool writes_stay(struct world *w)
{
	struct merging *m = w->op;
	struct img_open o = open_as(w);
	int64_t sec = changed_sector(w);
	struct img_err err = {0};
	struct fs saved;
	uint64_t size;
	bool ok;

	o.raw = m->raw;
	if (sec < 0 || !exists(w, names[0]) || look(w, m->target, &o, &size, &err) < 0 ||
	    size != w->size || disk_differs(w->buf, w->view, size) >= 0)
		return true;
	fs_load(&saved, w->dir, w->pool);
	ok = write_and_merge(w, (uint64_t)sec * SECTOR);
	fs_store(&saved, w->dir, w->pool);
	fs_free(&saved);
	return ok;
}

static bool merge_check(struct world *w, void *ctx, const struct when *when)
{
	struct merging *m = w->op;
	struct img_open o = open_as(w);
	struct img_err err = {0};
	bool ok = true;

	(void)ctx;
	o.raw = m->raw;
	if (when->done && !may_come_back(when) && !nothing_left(w))
		return false;
	if (!when->done || !m->del)
		ok = shows(w, names[0], w->view, w->size);
	/* A rest of a merged chain need not open once the target stands for it. */
	if (!ok && m->del)
		ok = disk_read(in_dir(w, m->target), &o, w->buf, w->size, &err) == 0 &&
		     disk_differs(w->buf, w->view, w->size) < 0 && !opens(w, names[0]);
	for (int i = 1; ok && i < m->layers; i++)
		ok = middle_holds(w, i);
	if (ok && m->grand)
		ok = shows(w, GRAND, m->grand_shows, w->size);
	if (ok && exists(w, names[0]))
		ok = sound(w, names[0], false);
	return ok && target_holds(w, when->done) && (when->done || old_or_new(w)) &&
	       (m->raw || sound(w, m->target, when->done)) &&
	       (may_come_back(when) || writes_stay(w));
}

static void flatten_build(struct world *w)
{
	merge_build(w);
	((struct merging *)w->op)->del = false;
}

static int flatten_run(struct world *w, void *ctx, bool again, struct img_err *err)
{
	struct img_open o = open_as(w);
	struct img_merge opts = {.open = &o};
	struct img_merge_stats stats;
	struct img_chain *c;
	int rc;

	(void)ctx;
	if (img_open(&c, in_dir(w, names[0]), &o, err) < 0)
		return -1;
	rc = img_flatten(c, img_layers(c) - 1, in_dir(w, NEW), again && exists(w, NEW), &opts,
			 &stats, err);
	img_close(c);
	return rc;
}

static bool flatten_check(struct world *w, void *ctx, const struct when *when)
{
	(void)ctx;
	if (!shows(w, names[0], w->view, w->size))
		return false;
	if (!exists(w, NEW))
		return !when->done || wrong(w, "no new file");
	return shows(w, NEW, w->view, w->size) && sound(w, NEW, true);
}

const struct op op_merge = {
	.name = "merge", .build = merge_build, .run = merge_run, .check = merge_check};
const struct op op_flatten = {
	.name = "flatten", .build = flatten_build, .run = flatten_run, .check = flatten_check};
