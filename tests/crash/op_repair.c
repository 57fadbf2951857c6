/* SPDX-License-Identifier: BSD-2-Clause */
/* vhd-check --repair of damage whose repair loses nothing: the content stays, whatever happens on
 * the way. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "ops.h"
#include "vhd_fmt.h"

#define DISK "disk.vhd"

static uint8_t *bytes_of(struct world *w, uint64_t *size)
{
	struct node *n = &w->base.node[w->base.name[fs_find(&w->base, DISK)].node];

	*size = n->size;
	return n->data;
}

static void cut(struct world *w, uint64_t len)
{
	w->base.node[w->base.name[fs_find(&w->base, DISK)].node].size -= len;
}

static void damage(struct world *w, bool fixed)
{
	uint64_t size;
	uint8_t *d = bytes_of(w, &size), *end = d + size - VHD_FOOTER_LEN;
	unsigned how = fixed ? 10 + rng_below(&w->rng, 2) : rng_below(&w->rng, 8);

	switch (how) {
	case 0: /* end footer gone */
		memset(end, 0, VHD_FOOTER_LEN);
		break;
	case 1: /* cut off */
		cut(w, VHD_FOOTER_LEN);
		break;
	case 2:
		memset(d, 0, VHD_FOOTER_LEN);
		break;
	case 3: /* front copy of before */
		d[24] ^= 1;
		vhd_footer_seal(d);
		break;
	case 4:
		end[100] ^= 0x40;
		break;
	case 5:
		memset(d, 0xff, 8);
		break;
	case 6:
		d[66] ^= 1;
		break;
	case 7: /* a wrong geometry in both */
	case 10:
		end[57] ^= 1;
		vhd_footer_seal(end);
		if (!fixed)
			memcpy(d, end, VHD_FOOTER_LEN);
		break;
	default:
		end[11] = 0;
		vhd_footer_seal(end);
	}
}

static void repair_build(struct world *w)
{
	bool fixed = rng_one_in(&w->rng, 4);
	struct vhd_spec s = {.type = fixed ? IMG_FIXED : IMG_DYNAMIC};
	uint8_t *own;

	s.block_size = random_block_size(w);
	world_size(w, random_size(w, s.block_size));
	s.size = w->size;
	own = need(w->size / SECTOR);
	disk_own(own, w->size, s.block_size, &w->rng);
	for (uint64_t i = 0; i < w->size / SECTOR; i++)
		if (own[i] || fixed)
			disk_fill(w->view, i * SECTOR, SECTOR, 1);
	s.own = own;
	s.disk = w->view;
	random_uuid(s.uuid, &w->rng);
	disk_layout(&s, &w->rng);
	disk_add(&w->base, DISK, &s, &w->rng);
	free(own);
	damage(w, fixed);
}

static int repair_run(struct world *w, void *ctx, bool again, struct img_err *err)
{
	struct img_check o = {.fault = ignore_fault};
	struct img_check_result before, after;

	(void)ctx, (void)again;
	return img_repair(in_dir(w, DISK), &o, &before, &after, err);
}

/* The undo file takes the repair back, byte for byte. */
static bool undoes(struct world *w)
{
	struct img_err err = {0};
	struct fs now;
	bool ok;

	if (!exists(w, DISK ".undo"))
		return true; /* nothing was mended */
	if (img_undo(in_dir(w, DISK), false, &err) < 0)
		return wrong(w, "the repair cannot be taken back: %s", err.msg);
	fs_load(&now, w->dir, w->pool);
	const struct node *a = &now.node[now.name[fs_find(&now, DISK)].node];
	const struct node *b = &w->base.node[w->base.name[fs_find(&w->base, DISK)].node];

	ok = (a->size == b->size && memcmp(a->data, b->data, a->size) == 0) ||
	     wrong(w, "the repair was not taken back wholly");
	fs_free(&now);
	return ok;
}

static bool repair_check(struct world *w, void *ctx, const struct when *when)
{
	(void)ctx;
	if (!shows(w, DISK, w->view, w->size) || !sound(w, DISK, when->done))
		return false;
	return !when->done || undoes(w);
}

const struct op op_repair = {
	.name = "repair", .build = repair_build, .run = repair_run, .check = repair_check};
