/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Filling a new VHD that nobody else can open yet. There is nothing to protect before it is
 * finished, so the bitmap of the present block and the present sector of the BAT stay in memory
 * until another one is needed, and the end footer is written once, at the end. A stream comes
 * in ascending order, which makes that one write of each per block, whatever the size of its
 * pieces.
 *
 * An image that was cut off in the middle can be taken up again (vhd_build_resume): blocks lie in
 * the order in which they were written, so everything behind a position can be taken back by
 * cutting the file and clearing the rest of the BAT.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "vhd.h"

struct vhd_build {
	uint32_t block; /* whose bitmap is held; ~0: none */
	uint64_t entry; /* where it is in the file */
	bool fresh;	/* nothing was written from HIGH on */
	uint64_t high;
	bool dirty;	 /* the bitmap */
	uint8_t *bitmap; /* bitmap_len */
	uint64_t bat_at; /* the sector of the BAT that is held; 0: none */
	bool bat_dirty;
	uint8_t bat[SECTOR];
};

int vhd_build_begin(struct img *l, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_build *b = calloc(1, sizeof(*b));

	v->build = b;
	if (!b || !(b->bitmap = malloc(v->bitmap_len)))
		return img_err_errno(err, ENOMEM, "%s", l->file.path);
	b->block = ~0u;
	return 0;
}

void vhd_build_end(struct vhd *v)
{
	if (v->build)
		free(v->build->bitmap);
	free(v->build);
	v->build = NULL;
}

static int release_bat(struct img *l, struct img_err *err)
{
	struct vhd_build *b = ((struct vhd *)l->state)->build;

	if (b->bat_dirty && io_write(&l->file, b->bat, SECTOR, b->bat_at, err) < 0)
		return -1;
	b->bat_dirty = false;
	return 0;
}

static int release_bitmap(struct img *l, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_build *b = v->build;

	if (b->dirty && io_write(&l->file, b->bitmap, v->bitmap_len, b->entry, err) < 0)
		return -1;
	b->dirty = false;
	return 0;
}

/* The held sector of the BAT becomes that of BLOCK; *P is its entry. */
static int hold_bat(struct img *l, uint32_t block, uint8_t **p, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_build *b = v->build;
	uint64_t at = v->header.bat_off + (uint64_t)block * 4;

	if (b->bat_at != (at & ~(uint64_t)(SECTOR - 1))) {
		if (release_bat(l, err) < 0)
			return -1;
		b->bat_at = 0;
		if (io_read(&l->file, b->bat, SECTOR, at & ~(uint64_t)(SECTOR - 1), err) < 0)
			return -1;
		b->bat_at = at & ~(uint64_t)(SECTOR - 1);
	}
	*p = b->bat + at % SECTOR;
	return 0;
}

static int new_block(struct img *l, uint32_t block, uint8_t *bat, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_build *b = v->build;

	/* XFS takes space ahead of a file that grows by its writes, also where it gets holes. */
	if (vhd_next_place(l, &v->end, &b->entry, err) < 0 ||
	    io_truncate(&l->file, v->end, err) < 0)
		return -1;
	be32_put(bat, (uint32_t)(b->entry / SECTOR));
	b->bat_dirty = true;
	memset(b->bitmap, 0, v->bitmap_len);
	/* Every bit of a dynamic block says "written": its bytes are zeros until they are (§10). */
	if (l->info.type == IMG_DYNAMIC)
		bitmap_set(b->bitmap, 0, v->block_size / SECTOR);
	b->block = block;
	b->dirty = b->fresh = true;
	b->high = 0;
	return 0;
}

/*
 * Holds the bitmap of BLOCK, which gets its place if it has none; with MAY_LACK it may stay
 * without.
 */
static int hold_block(struct img *l, uint32_t block, bool may_lack, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_build *b = v->build;
	uint8_t *bat;

	if (b->block == block)
		return 0;
	if (release_bitmap(l, err) < 0 || hold_bat(l, block, &bat, err) < 0)
		return -1;
	b->block = ~0u;
	if (be32_get(bat) == VHD_BAT_FREE)
		return may_lack ? 0 : new_block(l, block, bat, err);
	b->entry = (uint64_t)be32_get(bat) * SECTOR;
	if (io_read(&l->file, b->bitmap, v->bitmap_len, b->entry, err) < 0)
		return -1;
	b->block = block;
	b->fresh = false;
	return 0;
}

/* BUF is NULL for zeros. In one block. */
static int build_piece(struct img *l, const uint8_t *buf, uint64_t off, uint64_t len,
		       struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_build *b = v->build;
	uint64_t in_block = off % v->block_size, at;
	uint32_t block = (uint32_t)(off / v->block_size), sec = (uint32_t)(in_block / SECTOR);
	uint32_t nsec = (uint32_t)(len / SECTOR);
	bool set, child = l->info.type == IMG_DIFFERENCING, virgin;

	if (hold_block(l, block, !buf && !child, err) < 0)
		return -1;
	if (b->block != block)
		return 0; /* zeros in a block that a base does not have */
	at = b->entry + v->bitmap_len + in_block;
	if (buf && io_write(&l->file, buf, (size_t)len, at, err) < 0)
		return -1;
	/* What was never written reads as zeros in a new file. */
	virgin = (b->fresh && in_block >= b->high) ||
		 (child && bitmap_run(b->bitmap, sec, nsec, &set) == nsec && !set);
	if (!buf && !virgin && io_zero(&l->file, at, len, err) < 0)
		return -1;
	if (buf && b->high < in_block + len)
		b->high = in_block + len;
	if (child) {
		bitmap_set(b->bitmap, sec, nsec);
		b->dirty = true;
	}
	return 0;
}

int vhd_build_write(struct img *l, const uint8_t *buf, uint64_t off, uint64_t len,
		    struct img_err *err)
{
	struct vhd *v = l->state;
	int rc = 0;

	pthread_mutex_lock(&l->mutex);
	while (len && rc == 0) {
		uint64_t n = u64_min(len, v->block_size - off % v->block_size);

		rc = build_piece(l, buf, off, n, err);
		buf = buf ? buf + n : NULL;
		off += n;
		len -= n;
	}
	pthread_mutex_unlock(&l->mutex);
	return rc;
}

int vhd_build_settle(struct img *l, uint64_t *end, struct img_err *err)
{
	struct vhd *v = l->state;
	int rc;

	if (end)
		*end = v->end;
	if (!v->build)
		return 0;
	pthread_mutex_lock(&l->mutex);
	rc = release_bitmap(l, err) < 0 || release_bat(l, err) < 0 ? -1 : 0;
	pthread_mutex_unlock(&l->mutex);
	return rc;
}

int vhd_build_finish(struct img *l, struct img_err *err)
{
	struct vhd *v = l->state;
	uint64_t place = vhd_footer_place(v->end);

	if (!v->build)
		return 0;
	if (vhd_build_settle(l, NULL, err) < 0)
		return -1;
	v->footer_off = place;
	return io_write(&l->file, v->footer_raw, VHD_FOOTER_LEN, place, err);
}

/* Entries from BLOCK on lead nowhere again. */
static int clear_bat(struct img *l, uint64_t block, struct img_err *err)
{
	struct vhd *v = l->state;
	uint8_t buf[16 * SECTOR], none[16 * SECTOR];
	uint64_t from = v->header.bat_off + block * 4;
	uint64_t end = v->header.bat_off + (uint64_t)v->blocks * 4;

	memset(none, 0xff, sizeof(none));
	while (from < end) {
		size_t n = (size_t)u64_min(end - from, sizeof(buf));

		if (io_read(&l->file, buf, n, from, err) < 0)
			return -1;
		if (memcmp(buf, none, n) != 0 && io_write(&l->file, none, n, from, err) < 0)
			return -1;
		from += n;
	}
	return 0;
}

/* The block may have got its place behind END, which was noted when nothing was in it yet. */
static int forget_later(struct img *l, uint32_t block, uint64_t end, struct img_err *err)
{
	struct vhd *v = l->state;
	uint8_t *bat;

	if (hold_bat(l, block, &bat, err) < 0)
		return -1;
	if (be32_get(bat) != VHD_BAT_FREE && (uint64_t)be32_get(bat) * SECTOR >= end) {
		be32_put(bat, VHD_BAT_FREE);
		v->build->bat_dirty = true;
	}
	return 0;
}

/*
 * The block in which OFF lies keeps what is below OFF. If there was anything it was the last one
 * when END was noted.
 */
static int cut_block(struct img *l, uint64_t off, uint64_t end, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_build *b = v->build;
	uint64_t in_block = off % v->block_size;
	uint32_t block = (uint32_t)(off / v->block_size);
	uint32_t sec = (uint32_t)(in_block / SECTOR), bits = v->block_size / SECTOR;

	if (!in_block)
		return 0;
	if (forget_later(l, block, end, err) < 0 || hold_block(l, block, true, err) < 0)
		return -1;
	if (b->block == ~0u)
		return 0;
	if (b->entry + v->bitmap_len + v->block_size != end)
		return img_err_set(err, IMG_DATA,
				   "%s: block %" PRIu32 " is at offset %" PRIu64
				   ", which does not fit an end of %" PRIu64,
				   l->file.path, b->block, b->entry, end);
	if (io_truncate(&l->file, b->entry + v->bitmap_len + in_block, err) < 0)
		return -1;
	if (l->info.type == IMG_DIFFERENCING) {
		for (; sec < bits && sec % 8; sec++)
			b->bitmap[sec / 8] &= (uint8_t) ~(0x80 >> sec % 8);
		memset(b->bitmap + sec / 8, 0, v->bitmap_len - sec / 8);
		b->dirty = true;
	}
	b->fresh = true;
	b->high = in_block;
	return 0;
}

int vhd_build_resume(struct img *l, uint64_t off, uint64_t end, struct img_err *err)
{
	struct vhd *v = l->state;
	uint64_t bat_end = v->header.bat_off + (uint64_t)v->blocks * 4;
	uint64_t next = (off + v->block_size - 1) / v->block_size;

	if (end < bat_end || end > INT64_MAX || off > l->info.size)
		return img_err_set(err, IMG_DATA,
				   "%s: cannot be taken up at %" PRIu64 ", end %" PRIu64,
				   l->file.path, off, end);
	v->end = end;
	if (clear_bat(l, next, err) < 0 || cut_block(l, off, end, err) < 0)
		return -1;
	return io_truncate(&l->file, end, err);
}
