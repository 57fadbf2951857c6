/* SPDX-License-Identifier: BSD-2-Clause */
/* What changes the metadata of one disk: its size, and the link to its parent. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "ops.h"

#define LEAF "leaf.avhd"
#define PARENT "base.vhd"
#define OTHER "other.vhd" /* shows what PARENT shows */

struct change {
	uint64_t size; /* after a resize */
	enum img_type type;
	bool force;
};

/* What LEAF shows is W->view; OTHER is added when it is wanted, with the UUID of PARENT or another
 * one. */
static void build_pair(struct world *w, enum img_type type, uint64_t zero_from, bool other,
		       bool same)
{
	static const enum img_type kinds[] = {IMG_DYNAMIC, IMG_FIXED, IMG_RAW};
	struct vhd_spec p = {.type = kinds[rng_below(&w->rng, same ? 3 : 2)]}, c = {.type = type};
	uint64_t nsec = w->size / SECTOR;
	uint8_t *own = need(nsec);

	p.block_size = random_block_size(w);
	c.block_size = random_block_size(w);
	p.size = c.size = w->size;
	p.own = c.own = own;
	p.disk = c.disk = w->view;
	if (p.type != IMG_RAW)
		random_uuid(p.uuid, &w->rng);
	random_uuid(c.uuid, &w->rng);
	if (type == IMG_DIFFERENCING) {
		disk_own(own, w->size, p.block_size, &w->rng);
		for (uint64_t i = 0; i < nsec; i++)
			if ((own[i] || p.type != IMG_DYNAMIC) && i * SECTOR < zero_from)
				disk_fill(w->view, i * SECTOR, SECTOR, 1);
		disk_layout(&p, &w->rng);
		disk_add(&w->base, PARENT, &p, &w->rng);
		memcpy(c.parent_uuid, p.uuid, 16);
		c.parent = PARENT;
		if (!same)
			p.uuid[5] ^= 1;
		if (other)
			disk_add(&w->base, OTHER, &p, &w->rng);
	}
	disk_own(own, w->size, c.block_size, &w->rng);
	for (uint64_t i = 0; i < nsec; i++)
		if ((own[i] || type == IMG_FIXED) && i * SECTOR < zero_from)
			disk_fill(w->view, i * SECTOR, SECTOR, 2);
	disk_layout(&c, &w->rng);
	disk_add(&w->base, LEAF, &c, &w->rng);
	free(own);
}

static void reparent_build(struct world *w)
{
	struct change *x = w->op = need(sizeof(*x));

	world_size(w, random_size(w, random_block_size(w)));
	x->force = rng_one_in(&w->rng, 3);
	build_pair(w, IMG_DIFFERENCING, w->size, true, !x->force);
}

static int reparent_run(struct world *w, void *ctx, bool again, struct img_err *err)
{
	struct img_open o = {.writable = false};

	(void)ctx, (void)again;
	return img_reparent(in_dir(w, LEAF), in_dir(w, OTHER), &o, ((struct change *)w->op)->force,
			    err);
}

/* Whether the first PARENT is not needed any more. */
static bool without_parent(struct world *w)
{
	bool ok;

	if (rename(in_dir(w, PARENT), in_dir(w, "hidden")) < 0)
		die("the parent cannot be hidden");
	ok = shows(w, LEAF, w->view, w->size);
	if (rename(in_dir(w, "hidden"), in_dir(w, PARENT)) < 0)
		die("the parent cannot be brought back");
	return ok;
}

static bool reparent_check(struct world *w, void *ctx, const struct when *when)
{
	(void)ctx;
	return shows(w, LEAF, w->view, w->size) && sound(w, LEAF, when->done) &&
	       (!when->done || without_parent(w));
}

static void resize_build(struct world *w)
{
	static const enum img_type kinds[] = {IMG_DYNAMIC, IMG_FIXED, IMG_DIFFERENCING,
					      IMG_DYNAMIC};
	struct change *x = w->op = need(sizeof(*x));
	uint64_t size = random_size(w, random_block_size(w)), other = random_size(w, 4096);

	x->type = kinds[rng_below(&w->rng, 4)];
	/* From nothing changed up to a BAT that needs several more sectors. */
	x->size = rng_one_in(&w->rng, 3) ? other : size + other * (rng_one_in(&w->rng, 4) ? 40 : 1);
	world_size(w, u64_max(size, x->size));
	w->size = size;
	build_pair(w, x->type, u64_min(size, x->size), false, true);
}

static int resize_run(struct world *w, void *ctx, bool again, struct img_err *err)
{
	struct img_open o = {.writable = true};
	struct img_resize r = {.size = ((struct change *)w->op)->size};

	(void)ctx, (void)again;
	return img_resize(in_dir(w, LEAF), &o, &r, NULL, NULL, err);
}

/* The old size or the new one, with the same content and zeros. */
static bool resize_check(struct world *w, void *ctx, const struct when *when)
{
	const struct change *x = w->op;
	struct img_open o = {.writable = false};
	struct img_err err = {0};
	struct img_chain *c;
	uint64_t size;

	(void)ctx;
	if (img_open(&c, in_dir(w, LEAF), &o, &err) < 0)
		return wrong(w, "the disk: %d, %s", err.code, err.msg);
	size = img_size(c);
	img_close(c);
	if (size != x->size && (when->done || size != w->size))
		return wrong(w, "the disk has %llu bytes", (unsigned long long)size);
	return shows(w, LEAF, w->view, size) && sound(w, LEAF, when->done);
}

const struct op op_reparent = {
	.name = "reparent", .build = reparent_build, .run = reparent_run, .check = reparent_check};
const struct op op_resize = {
	.name = "resize", .build = resize_build, .run = resize_run, .check = resize_check};
