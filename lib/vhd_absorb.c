/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A VHD takes in the data of its child. merge.c calls these in order; what is written when, and
 * why, is in HACKING.md. A re-run writes everything again that it relies on: what the cache
 * holds equal need not be equal on the disk.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "vhd.h"

struct vhd_absorb {
	uint32_t *place; /* sector of each touched block's bitmap; 0: untouched */
	uint8_t *fresh;	 /* bit per block: it is new */
	uint64_t end;	 /* of the file's content, new blocks included */
	uint32_t nfresh;
	/* The bitmap under construction. */
	uint8_t *bitmap;
	uint32_t block;
	bool open;
};

int vhd_absorb_begin(struct img *l, uint64_t size, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_absorb *a;
	size_t blocks;

	if (l->info.type == IMG_FIXED)
		return 0;
	if (vhd_prepare_write(l, err) < 0)
		return -1;
	vhd_absorb_end(l);
	/* After a run that was cut short the file may be larger than what is merged into it. */
	blocks = u64_max(size, l->info.size) / v->block_size + 1;
	v->absorb = a = calloc(1, sizeof(*a));
	if (a) {
		a->place = calloc(blocks, sizeof(a->place[0]));
		a->fresh = calloc(1, blocks / 8 + 1);
		a->bitmap = malloc(v->bitmap_len);
		a->end = v->end;
	}
	if (!a || !a->place || !a->fresh || !a->bitmap)
		return img_err_errno(err, ENOMEM, "%s", l->file.path);
	return 0;
}

void vhd_absorb_end(struct img *l)
{
	struct vhd *v = l->state;

	if (!v->absorb)
		return;
	free(v->absorb->place);
	free(v->absorb->fresh);
	free(v->absorb->bitmap);
	free(v->absorb);
	v->absorb = NULL;
}

static int place_block(struct img *l, uint32_t block, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_absorb *a = v->absorb;
	uint64_t off = 0;

	/* Blocks behind the end are there when the layer has its new size. */
	if (block < v->blocks && vhd_block_find(l, block, &off, err) < 0)
		return -1;
	if (!off) {
		if (vhd_next_place(l, &a->end, &off, err) < 0)
			return -1;
		bitmap_set(a->fresh, block, 1);
		a->nfresh++;
	}
	a->place[block] = (uint32_t)(off / SECTOR);
	return 0;
}

int vhd_absorb_place(struct img *l, uint64_t off, uint64_t len, uint64_t *file_off,
		     uint64_t *placed, struct img_err *err)
{
	struct vhd *v = l->state;
	uint32_t block;

	*file_off = off;
	*placed = len;
	if (l->info.type == IMG_FIXED)
		return 0;
	block = (uint32_t)(off / v->block_size);
	if (!v->absorb->place[block] && place_block(l, block, err) < 0)
		return -1;
	*file_off =
		(uint64_t)v->absorb->place[block] * SECTOR + v->bitmap_len + off % v->block_size;
	*placed = u64_min(len, v->block_size - off % v->block_size);
	return 0;
}

/* Zeros wherever new blocks lie on old bytes: the old footer, what a crash left. */
static int clear_old_space(struct img *l, uint64_t old_size, uint64_t old_footer,
			   struct img_err *err)
{
	struct vhd *v = l->state;
	uint64_t end = u64_min(v->absorb->end, old_size);

	if (end > v->end && io_zero(&l->file, v->end, end - v->end, err) < 0)
		return -1;
	if (old_footer >= end && old_footer < v->footer_off)
		return io_zero(&l->file, old_footer,
			       u64_min(VHD_FOOTER_LEN, v->footer_off - old_footer), err);
	return 0;
}

int vhd_absorb_extend(struct img *l, struct img_merge_stats *stats, bool dry_run,
		      struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_absorb *a = v->absorb;
	uint64_t size, footer, old_footer;

	if (l->info.type == IMG_FIXED)
		return 0;
	if (io_size(&l->file, &size, err) < 0)
		return -1;
	footer = u64_max(vhd_footer_place(a->end), a->nfresh ? 0 : v->footer_off);
	stats->new_blocks = a->nfresh;
	stats->growth = footer + VHD_FOOTER_LEN > size ? footer + VHD_FOOTER_LEN - size : 0;
	if (dry_run)
		return 0;
	if (vhd_heal(l, err) < 0 || io_size(&l->file, &size, err) < 0)
		return -1;
	old_footer = v->footer_off;
	v->footer_off = u64_max(footer, v->footer_off);
	if (io_write(&l->file, v->footer_raw, VHD_FOOTER_LEN, v->footer_off, err) < 0 ||
	    io_write(&l->file, v->footer_raw, VHD_FOOTER_LEN, 0, err) < 0 ||
	    io_sync(&l->file, err) < 0)
		return -1;
	return a->nfresh ? clear_old_space(l, size, old_footer, err) : 0;
}

static int flush_bitmap(struct img *l, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_absorb *a = v->absorb;

	if (!a->open)
		return 0;
	a->open = false;
	return io_write(&l->file, a->bitmap, v->bitmap_len, (uint64_t)a->place[a->block] * SECTOR,
			err);
}

static int load_bitmap(struct img *l, uint32_t block, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_absorb *a = v->absorb;

	if (flush_bitmap(l, err) < 0)
		return -1;
	a->block = block;
	a->open = true;
	if (!bitmap_get(a->fresh, block))
		return io_read(&l->file, a->bitmap, v->bitmap_len,
			       (uint64_t)a->place[block] * SECTOR, err);
	memset(a->bitmap, 0, v->bitmap_len);
	/*
	 * All bits of a new dynamic block: what the child does not own are zeros, here and
	 * below.
	 */
	if (l->info.type == IMG_DYNAMIC)
		bitmap_set(a->bitmap, 0, v->block_size / SECTOR);
	return 0;
}

int vhd_absorb_mark(struct img *l, uint64_t off, uint64_t len, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_absorb *a = v->absorb;

	while (len && l->info.type != IMG_FIXED) {
		uint32_t block = (uint32_t)(off / v->block_size);
		uint64_t n = u64_min(len, v->block_size - off % v->block_size);

		if ((!a->open || a->block != block) && load_bitmap(l, block, err) < 0)
			return -1;
		bitmap_set(a->bitmap, (uint32_t)(off % v->block_size / SECTOR),
			   (uint32_t)(n / SECTOR));
		off += n;
		len -= n;
	}
	return 0;
}

/* Every BAT sector with a touched block. */
static int write_bat(struct img *l, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_absorb *a = v->absorb;
	const uint32_t per = SECTOR / 4;
	uint8_t buf[SECTOR];

	for (uint32_t first = 0; first < v->blocks; first += per) {
		uint64_t at = v->header.bat_off + (uint64_t)first * 4;
		bool touched = false;

		for (uint32_t b = first; b < v->blocks && b < first + per; b++)
			touched |= a->place[b] != 0;
		if (!touched)
			continue;
		if (io_read(&l->file, buf, SECTOR, at, err) < 0)
			return -1;
		for (uint32_t b = first; b < v->blocks && b < first + per; b++)
			if (a->place[b])
				be32_put(buf + (b - first) * 4, a->place[b]);
		if (vhd_meta_write(l, at, buf, err) < 0)
			return -1;
	}
	return 0;
}

int vhd_absorb_publish(struct img *l, struct img_err *err)
{
	struct vhd *v = l->state;

	if (l->info.type == IMG_FIXED)
		return 0;
	if (flush_bitmap(l, err) < 0 || io_sync(&l->file, err) < 0 || write_bat(l, err) < 0 ||
	    io_sync(&l->file, err) < 0)
		return -1;
	v->end = v->absorb->end;
	memset(v->cache->tag, 0xff, sizeof(v->cache->tag));
	return 0;
}
