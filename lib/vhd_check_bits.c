/* SPDX-License-Identifier: BSD-2-Clause */
/* The bitmaps of the blocks (vhd-format §10), and whether the batmap agrees with them (§18.2). */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "vhd_check.h"

/* How many sectors of the block lie inside the disk. */
static uint32_t sectors_of(const struct check *c, uint32_t block)
{
	uint64_t start = (uint64_t)block * c->header.block_size;

	return (uint32_t)(u64_min(c->header.block_size, c->footer.size - start) / SECTOR);
}

/* Sectors of a run that hold something although their bits are clear; holes are skipped. */
static int count_stray(struct check *c, uint64_t off, uint64_t len, uint32_t *n, uint64_t *first,
		       struct img_err *err)
{
	uint8_t buf[64 << 10];

	for (uint64_t done = 0; done < len;) {
		uint64_t part = len - done;
		bool hole;

		if (io_extent(&c->file, off + done, &part, &hole, err) < 0)
			return -1;
		part = hole ? part : u64_min(part, sizeof(buf));
		if (!hole && io_read(&c->file, buf, (size_t)part, off + done, err) < 0)
			return -1;
		for (uint64_t i = 0; !hole && i + SECTOR <= part; i += SECTOR)
			if (!bytes_are_zero(buf + i, SECTOR) && (*n)++ == 0)
				*first = off + done + i;
		done += part;
	}
	return 0;
}

/* Only in a dynamic disk: a child's clear bit means the parent, whatever stands there. */
static int check_clear(struct check *c, uint32_t block, uint64_t off, const uint8_t *bitmap,
		       struct img_err *err)
{
	uint32_t nsec = sectors_of(c, block), n = 0, run;
	uint64_t data = off + c->bitmap_len, end = c->end_off, first = 0;
	struct img_fault f;
	bool set;

	for (uint32_t sec = 0; sec < nsec; sec += run) {
		uint64_t at = data + (uint64_t)sec * SECTOR;

		run = bitmap_run(bitmap, sec, nsec - sec, &set);
		if (!set && at < end &&
		    count_stray(c, at, u64_min((uint64_t)run * SECTOR, end - at), &n, &first, err) <
			    0)
			return -1;
	}
	if (n == 0)
		return 0;
	f = fault_make(c, F_BITMAP_CLEAR_OVER_DATA, first);
	f.block = block;
	f.blocks = 1;
	FOUND(&f, "data in %" PRIu32 " sectors, the first is disk sector %" PRIu64, n,
	      ((uint64_t)block * c->header.block_size + first - data) / SECTOR);
	EXPECTED(&f, "zeros");
	fault_report(c, &f);
	return 0;
}

/*
 * Behind the block's sectors; and, in a child, behind the disk's. Windows sets the latter in a
 * dynamic disk.
 */
static void check_beyond(struct check *c, uint32_t block, uint64_t off, const uint8_t *bitmap)
{
	uint32_t all = c->header.block_size / SECTOR;
	uint32_t from = c->footer.type == VHD_DYNAMIC ? all : sectors_of(c, block);
	uint32_t bits = c->bitmap_len * 8, run = bits - from;
	struct img_fault *f = &c->first_beyond;
	bool set = false;

	if (from < bits)
		run = bitmap_run(bitmap, from, bits - from, &set);
	if (from == bits || (!set && run == bits - from) || c->beyond++)
		return;
	*f = fault_make(c, F_BITMAP_BEYOND_DISK, off + from / 8);
	f->block = block;
	f->blocks = 1;
	EXPECTED(f, "%" PRIu32 " bits", from);
}

/* Some writers fill all of every bitmap: one word about it will do. */
static void report_beyond(struct check *c)
{
	if (c->beyond == 0)
		return;
	FOUND(&c->first_beyond, "more in %" PRIu32 " of %zu bitmaps", c->beyond, c->nplaced);
	fault_report(c, &c->first_beyond);
}

static void compare_full(struct check *c, uint32_t block, uint64_t off, const uint8_t *bitmap)
{
	uint32_t nsec = sectors_of(c, block), run;
	struct img_fault f;
	bool set = false;

	run = nsec ? bitmap_run(bitmap, 0, c->header.block_size / SECTOR, &set) : 0;
	if (c->full && set && run == c->header.block_size / SECTOR)
		bitmap_set(c->full, block, 1);
	if (!c->batmap_sound || !bitmap_get(c->batmap, block) || (set && run >= nsec))
		return;
	f = fault_make(c, F_BATMAP_FALSE_FULL, c->batmap_off + block / 8);
	f.block = block;
	f.blocks = 1;
	f.mendable = true;
	FOUND(&f, "full, but sector %" PRIu32 " of the block at %" PRIu64 " is not there",
	      set ? run : 0, off);
	bitmap_set(c->full, c->blocks,
		   1); /* one bit more than there are blocks: the map is to be written */
	fault_report(c, &f);
}

static int check_block(struct check *c, uint32_t block, uint64_t off, uint8_t *bitmap,
		       struct img_err *err)
{
	size_t got;

	memset(bitmap, 0, c->bitmap_len);
	if (io_read_upto(&c->file, bitmap, (size_t)u64_min(c->bitmap_len, c->end_off - off), off,
			 &got, err) < 0)
		return -1;
	check_beyond(c, block, off, bitmap);
	compare_full(c, block, off, bitmap);
	return c->footer.type == VHD_DYNAMIC ? check_clear(c, block, off, bitmap, err) : 0;
}

/* --- the batmap ----------------------------------------------------------------------------- */

/* Entries that lead nowhere cannot be full. */
static void compare_absent(struct check *c)
{
	uint8_t *here = calloc(1, c->blocks / 8 + 1);
	struct img_fault f;

	for (size_t i = 0; here && i < c->nplaced; i++)
		bitmap_set(here, placed_block(c->placed[i]), 1);
	for (uint32_t b = 0; here && c->batmap_sound && b < c->blocks; b++) {
		if (!bitmap_get(c->batmap, b) || bitmap_get(here, b))
			continue;
		f = fault_make(c, F_BATMAP_FALSE_FULL, c->batmap_off + b / 8);
		f.block = b;
		f.blocks = 1;
		f.mendable = true;
		FOUND(&f, "full, but the block is not in the file");
		bitmap_set(c->full, c->blocks, 1);
		fault_report(c, &f);
	}
	free(here);
}

static bool range_free(const struct check *c, uint64_t off, uint64_t end)
{
	for (unsigned i = 0; i < c->nareas; i++)
		if (off < c->areas[i].end && end > c->areas[i].off)
			return false;
	for (size_t i = 0; i < c->nplaced; i++)
		if (off < placed_off(c->placed[i]) + c->stride && end > placed_off(c->placed[i]))
			return false;
	return end <= c->end_off;
}

/* In its old place or behind its header; where both are taken, behind all that the file holds. */
static uint64_t place_map(struct check *c, uint64_t need)
{
	uint64_t off = c->batmap_off ? c->batmap_off : c->batmap_head + SECTOR;

	if (range_free(c, off, off + need))
		return off;
	off = u64_round_up(c->mend.end, SECTOR);
	c->mend.end = off + need;
	c->mend.footers = c->mend.move_end = true;
	return off;
}

/* The map as the bitmaps have it. */
static int write_map(struct check *c, uint64_t off, struct img_err *err)
{
	uint64_t len = u64_max(u64_round_up((c->blocks + 7ull) / 8, SECTOR), SECTOR);
	uint8_t *map, *head;
	uint32_t sum = 0;

	if (c->batmap_sound)
		len = (uint64_t)be32_get(c->batmap_raw + 16) * SECTOR;
	map = calloc(1, len);
	head = malloc(SECTOR);
	if (!map || !head) {
		free(map);
		free(head);
		return img_err_errno(err, ENOMEM, "%s", c->file.path);
	}
	for (uint32_t b = 0; b < c->blocks; b++)
		if (bitmap_get(c->full, b))
			bitmap_set(map, b, 1);
	for (uint64_t i = 0; i < len; i++)
		sum += map[i];
	memcpy(head, c->batmap_raw, SECTOR);
	be64_put(head + 8, off);
	be32_put(head + 16, (uint32_t)(len / SECTOR));
	be32_put(head + 20, 0x00010002);
	be32_put(head + 24, ~sum);
	return mend_bytes(c, off, map, len, err) < 0 ||
			       mend_bytes(c, c->batmap_head, head, SECTOR, err) < 0
		       ? -1
		       : 0;
}

static int judge_batmap(struct check *c, struct img_err *err)
{
	uint64_t need = u64_max(u64_round_up((c->blocks + 7ull) / 8, SECTOR), SECTOR);
	struct img_fault f;

	compare_absent(c);
	if (c->batmap_sound)
		return bitmap_get(c->full, c->blocks) ? write_map(c, c->batmap_off, err) : 0;
	f = fault_make(c, c->batmap_off ? F_BATMAP_BAD_CHECKSUM : F_BATMAP_OUTSIDE, c->batmap_head);
	f.mendable = true;
	FOUND(&f, "%" PRIu32 " sectors at %" PRIu64, be32_get(c->batmap_raw + 16),
	      be64_get(c->batmap_raw + 8));
	fault_report(c, &f);
	return write_map(c, place_map(c, need), err);
}

int check_bitmaps(struct check *c, struct img_err *err)
{
	struct img_fault order = fault_make(c, F_BITMAP_ORDER, c->end_off + 32);
	uint8_t *bitmap;
	int rc = 0;

	if (!c->has_bat)
		return 0;
	if (vhd_bits_reversed(&c->footer)) {
		fault_report(c, &order);
		return 0;
	}
	if (c->opts->no_bitmaps)
		return 0;
	bitmap = malloc(c->bitmap_len);
	c->full = c->has_batmap ? calloc(1, c->blocks / 8 + 1) : NULL;
	if (!bitmap || (c->has_batmap && !c->full))
		rc = img_err_errno(err, ENOMEM, "%s", c->file.path);
	for (size_t i = 0; rc == 0 && i < c->nplaced; i++) {
		rc = check_block(c, placed_block(c->placed[i]), placed_off(c->placed[i]), bitmap,
				 err);
		if (rc == 0 && c->opts->progress && i % 64 == 0 &&
		    c->opts->progress(c->opts->ctx, i * c->stride, c->nplaced * c->stride))
			rc = img_err_set(err, IMG_AGAIN, "%s: interrupted; nothing was changed",
					 c->file.path);
	}
	report_beyond(c);
	if (rc == 0 && c->opts->progress)
		(void)c->opts->progress(c->opts->ctx, c->nplaced * c->stride,
					c->nplaced * c->stride);
	if (rc == 0 && c->has_batmap)
		rc = judge_batmap(c, err);
	free(bitmap);
	return rc;
}
