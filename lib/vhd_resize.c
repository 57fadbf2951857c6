/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Another size for a VHD.
 *
 * A BAT that has no room to grow moves to new space at the end of the file: a few sectors are
 * written, no block is copied, and nothing that was there is overwritten but footers and header.
 * (The alternative, moving the first blocks out of its way, copies data while guests' only copy of
 * it is under way.) The format lets the BAT lie anywhere; its old place is left unused.
 *
 * Header, a fixed disk's footer and a BAT entry have no second copy. So the old bytes of all that
 * is overwritten are saved first (undo.h), and until the last write is durable every open puts them
 * back: there is no order of writes to get right, and no state between.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "undo.h"
#include "vhd.h"

#define STEP (16u << 10)
#define RANGES 10

struct change {
	struct img *l;
	struct vhd_footer footer;
	struct vhd_header header;
	uint8_t footer_raw[VHD_FOOTER_LEN], header_raw[VHD_HEADER_LEN];
	uint32_t blocks; /* entries that the new size needs */
	bool bat_moves;
	struct vhd_batmap map;
	uint8_t *map_bits; /* NULL: no batmap, or it stays as it is */
	uint64_t map_off, map_len;
	uint64_t start, end; /* new space; equal: none */
	uint64_t footer_off;
	uint64_t tail_entry; /* the last block, if the old size ends inside it and it has one */
	uint32_t tail_sec;   /* the first sector behind the old size */
	uint64_t *dropped;   /* places of blocks that are no more */
	uint32_t ndropped;
	struct undo_range old[RANGES];
	size_t nold;
};

static void save(struct change *c, uint64_t off, uint64_t len)
{
	if (len)
		c->old[c->nold++] = (struct undo_range){off, len};
}

/*
 * Whether programs that go by the geometry, QEMU before 2025 the first of them, know this maker as
 * one whose size counts (vhd-format §4). Virtual PC means what its geometry says.
 */
static bool size_counts(const char creator[4])
{
	static const char known[][5] = {"win ", "qem2", "CTXS", "tap", "vpc ", "vs  "};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (memcmp(creator, known[i], 4) == 0)
			return true;
	return false;
}

/* The geometry follows, where there was one; only the largest stands for any size at all. */
static void new_footer(struct change *c, uint64_t size)
{
	struct vhd *v = c->l->state;
	struct vhd_footer *f = &c->footer;

	*f = v->footer;
	/* A parent is known by one of the two sizes, a raw one by nothing else (chain.c). */
	if (c->l->parent_size)
		f->original_size = c->l->parent_size;
	f->size = size;
	if (f->cylinders && (f->cylinders != 65535 || f->heads != 16 || f->sectors != 255)) {
		vhd_geometry(size, &f->cylinders, &f->heads, &f->sectors);
		if (!size_counts(f->creator) &&
		    (uint64_t)f->cylinders * f->heads * f->sectors * SECTOR != size) {
			f->cylinders = 65535;
			f->heads = 16;
			f->sectors = 255;
		}
	}
	memcpy(c->footer_raw, v->footer_raw, VHD_FOOTER_LEN);
	vhd_footer_patch(f, c->footer_raw);
}

/* --- fixed ----------------------------------------------------------------------------- */

static int write_fixed(struct change *c, struct img_err *err)
{
	struct vhd *v = c->l->state;
	struct io_file *f = &c->l->file;
	uint64_t size = c->footer.size, file_size;

	if (io_size(f, &file_size, err) < 0)
		return -1;
	/* The old footer, and whatever was before it, becomes content. */
	if (size > v->footer.size &&
	    io_zero(f, v->footer.size, u64_min(size, file_size) - v->footer.size, err) < 0)
		return -1;
	if (io_write(f, c->footer_raw, VHD_FOOTER_LEN, size, err) < 0 ||
	    (file_size > size + VHD_FOOTER_LEN && io_truncate(f, size + VHD_FOOTER_LEN, err) < 0))
		return -1;
	return io_sync(f, err);
}

static int resize_fixed(struct change *c, struct img_err *err)
{
	struct vhd *v = c->l->state;

	c->footer_off = c->footer.size;
	save(c, v->footer_off, VHD_FOOTER_LEN);
	save(c, c->footer.size, VHD_FOOTER_LEN);
	if (undo_store(&c->l->file, UNDO_ROLLBACK, c->old, c->nold, err) < 0)
		return -1;
	if (write_fixed(c, err) < 0) {
		undo_apply(&c->l->file, NULL);
		return -1;
	}
	return undo_finish(&c->l->file, err);
}

/* --- planning -------------------------------------------------------------------------- */

/* Whether the range holds nothing but padding: zeros, or ones. */
static int is_padding(struct img *l, uint64_t off, uint64_t len, bool *yes, struct img_err *err)
{
	uint8_t buf[SECTOR], ones[SECTOR];

	memset(ones, 0xff, sizeof(ones));
	*yes = true;
	while (*yes && len) {
		size_t n = (size_t)u64_min(len, SECTOR);

		if (io_read(&l->file, buf, n, off, err) < 0)
			return -1;
		*yes = bytes_are_zero(buf, n) || memcmp(buf, ones, n) == 0;
		off += n;
		len -= n;
	}
	return 0;
}

/* Room for the entries of the new size: there already, in the padding behind the BAT, or at the
 * end. */
static int plan_bat(struct change *c, struct img_err *err)
{
	struct vhd *v = c->l->state;
	uint64_t old_end = vhd_bat_end(v);
	uint64_t len = u64_round_up((uint64_t)c->blocks * 4, SECTOR), end = v->header.bat_off + len;
	bool fits = true;

	/* Behind the BAT of a XenServer file stands its batmap's header, found only there. */
	if (c->blocks < v->blocks && !c->map.present)
		c->header.entries = c->blocks;
	if (c->blocks <= v->header.entries)
		return 0;
	c->header.entries = c->blocks;
	if (old_end >= c->start && !c->map.present) { /* nothing is behind it */
		c->end = u64_max(c->end, end);
		return 0;
	}
	if (end > old_end)
		fits = !c->map.present;
	if (fits && end > old_end &&
	    (vhd_space_free(c->l, old_end, end - old_end, -1, &fits, err) < 0 ||
	     (fits && is_padding(c->l, old_end, end - old_end, &fits, err) < 0)))
		return -1;
	if (fits)
		return 0;
	c->bat_moves = true;
	c->header.bat_off = c->end;
	c->end += len;
	return 0;
}

/* The batmap goes where the BAT goes, grows with the disk, and knows of no block that is gone. */
static int plan_batmap(struct change *c, struct img_err *err)
{
	struct vhd *v = c->l->state;
	uint64_t need = u64_round_up(((uint64_t)c->blocks + 7) / 8, SECTOR);

	if (!c->map.present)
		return 0;
	c->map_len = u64_max(need, c->map.len);
	c->map_bits = vhd_batmap_load(c->l, &c->map, c->map_len, err);
	if (!c->map_bits)
		return -1;
	for (uint64_t b = u64_min(c->blocks, v->blocks); b < c->map_len * 8; b++)
		c->map_bits[b >> 3] &= (uint8_t) ~(0x80 >> (b & 7));
	/* The last block is about to lose bits, or to have more of them. */
	if (c->tail_entry)
		c->map_bits[(v->blocks - 1) >> 3] &= (uint8_t) ~(0x80 >> ((v->blocks - 1) & 7));
	c->map_off = c->map.off;
	if (c->bat_moves) {
		c->map.head_off = c->end;
		c->end += SECTOR;
	}
	if (c->bat_moves || c->map_len > c->map.len) {
		c->map_off = c->end;
		c->end += c->map_len;
	}
	vhd_batmap_seal(&c->map, c->map_off, c->map_bits, c->map_len);
	return 0;
}

/* The part of the last block behind the old end becomes content. */
static int plan_tail(struct change *c, struct img_err *err)
{
	struct vhd *v = c->l->state;
	uint64_t in_block = v->footer.size % v->block_size;

	if (c->footer.size <= v->footer.size || in_block == 0)
		return 0;
	c->tail_sec = (uint32_t)(in_block / SECTOR);
	return vhd_block_find(c->l, v->blocks - 1, &c->tail_entry, err);
}

/* Everything that is overwritten, except bytes that mean nothing now. */
static void plan_undo(struct change *c)
{
	struct vhd *v = c->l->state;
	uint64_t first = u64_min(c->blocks, v->blocks), last = u64_max(c->blocks, v->blocks);
	uint64_t from = v->header.bat_off + first * 4, to = v->header.bat_off + last * 4;

	save(c, 0, VHD_FOOTER_LEN);
	save(c, v->footer.data_off, VHD_HEADER_LEN);
	save(c, v->footer_off, VHD_FOOTER_LEN);
	save(c, c->start, c->end - c->start);
	if (!c->bat_moves)
		save(c, from, u64_round_up(to, SECTOR) - from);
	if (c->map_bits && !c->bat_moves)
		save(c, c->map.head_off, SECTOR);
	if (c->map_bits && c->map_off < c->start)
		save(c, c->map_off, c->map_len);
	if (c->tail_entry)
		save(c, c->tail_entry, v->bitmap_len);
}

static int plan_sparse(struct change *c, struct img_err *err)
{
	struct vhd *v = c->l->state;

	c->header = v->header;
	c->blocks = (uint32_t)((c->footer.size + v->block_size - 1) / v->block_size);
	c->start = c->end = u64_round_up(v->end, SECTOR);
	if (vhd_batmap_find(c->l, &c->map, err) < 0 || plan_tail(c, err) < 0 ||
	    plan_bat(c, err) < 0 || plan_batmap(c, err) < 0)
		return -1;
	if (c->end / SECTOR >= VHD_BAT_FREE)
		return img_err_set(err, IMG_CANTCREAT,
				   "%s: no room for a larger BAT: the file would reach %" PRIu64,
				   c->l->file.path, c->end);
	c->footer_off = c->end > c->start ? u64_max(v->footer_off, vhd_footer_place(c->end))
					  : v->footer_off;
	if (io_read(&c->l->file, c->header_raw, VHD_HEADER_LEN, v->footer.data_off, err) < 0)
		return -1;
	vhd_header_patch(&c->header, c->header_raw);
	plan_undo(c);
	return 0;
}

/* --- writing --------------------------------------------------------------------------- */

static int write_ones(struct io_file *f, uint64_t off, uint64_t end, struct img_err *err)
{
	uint8_t ones[STEP];

	memset(ones, 0xff, sizeof(ones));
	while (off < end) {
		size_t n = (size_t)u64_min(end - off, STEP);

		if (io_write(f, ones, n, off, err) < 0)
			return -1;
		off += n;
	}
	return 0;
}

/* Remembers where the blocks were whose entries are about to go. */
static int drop_blocks(struct change *c, struct img_err *err)
{
	struct vhd *v = c->l->state;

	if (c->blocks >= v->blocks)
		return 0;
	c->dropped = calloc(v->blocks - c->blocks, sizeof(c->dropped[0]));
	if (!c->dropped)
		return img_err_errno(err, ENOMEM, "%s", c->l->file.path);
	for (uint32_t b = c->blocks; b < v->blocks; b++) {
		if (vhd_block_find(c->l, b, &c->dropped[c->ndropped], err) < 0)
			return -1;
		c->ndropped += c->dropped[c->ndropped] != 0;
	}
	return 0;
}

/* Entries of blocks that are new, or no more, are free, whatever stood there. */
static int write_bat(struct change *c, struct img_err *err)
{
	struct vhd *v = c->l->state;
	struct io_file *f = &c->l->file;
	uint64_t from = (uint64_t)u64_min(c->blocks, v->blocks) * 4;
	uint64_t to = (uint64_t)u64_max(c->blocks, v->blocks) * 4;

	if (c->bat_moves) {
		if (io_copy(f, v->header.bat_off, f, c->header.bat_off, from, err) < 0)
			return -1;
		to = u64_round_up(to, SECTOR);
	} else if (c->header.entries > v->header.entries) {
		to = u64_round_up(to, SECTOR);
	}
	return write_ones(f, c->header.bat_off + from, c->header.bat_off + to, err);
}

static int write_batmap(struct change *c, struct img_err *err)
{
	if (!c->map_bits)
		return 0;
	if (io_write(&c->l->file, c->map_bits, c->map_len, c->map_off, err) < 0)
		return -1;
	return io_write(&c->l->file, c->map.head, SECTOR, c->map.head_off, err);
}

/* Nothing of what lay behind the old end may show: zeros in a base, the parent in a child. */
static int write_tail(struct change *c, struct img_err *err)
{
	struct vhd *v = c->l->state;
	uint32_t bits = v->block_size / SECTOR;
	uint8_t *map;
	int rc;

	if (!c->tail_entry)
		return 0;
	if (c->l->info.type == IMG_DYNAMIC)
		return io_zero(&c->l->file,
			       c->tail_entry + v->bitmap_len + (uint64_t)c->tail_sec * SECTOR,
			       (uint64_t)(bits - c->tail_sec) * SECTOR, err);
	map = malloc(v->bitmap_len);
	if (!map)
		return img_err_errno(err, ENOMEM, "%s", c->l->file.path);
	rc = io_read(&c->l->file, map, v->bitmap_len, c->tail_entry, err);
	for (uint32_t s = c->tail_sec; s < bits; s++)
		map[s >> 3] &= (uint8_t) ~(0x80 >> (s & 7));
	if (rc == 0)
		rc = io_write(&c->l->file, map, v->bitmap_len, c->tail_entry, err);
	free(map);
	return rc;
}

static int write_sparse(struct change *c, struct img_err *err)
{
	struct vhd *v = c->l->state;
	struct io_file *f = &c->l->file;
	uint64_t old = v->footer_off;

	if (io_write(f, c->footer_raw, VHD_FOOTER_LEN, c->footer_off, err) < 0)
		return -1;
	if (c->footer_off != old &&
	    io_zero(f, c->start, u64_max(c->end, old + VHD_FOOTER_LEN) - c->start, err) < 0)
		return -1;
	if (write_tail(c, err) < 0 || write_bat(c, err) < 0 || write_batmap(c, err) < 0 ||
	    io_write(f, c->header_raw, VHD_HEADER_LEN, v->footer.data_off, err) < 0 ||
	    io_write(f, c->footer_raw, VHD_FOOTER_LEN, 0, err) < 0)
		return -1;
	return io_sync(f, err);
}

/*
 * After the change: the space of blocks that are gone. Nothing leads there, so a crash only leaves
 * it taken. The footer has its copy at the front while its new place becomes the end.
 */
static int give_back(struct change *c, struct img_err *err)
{
	struct vhd *v = c->l->state;
	struct io_file *f = &c->l->file;
	uint64_t place, size, stride = (uint64_t)v->bitmap_len + v->block_size;
	bool unused;

	if (!c->ndropped)
		return 0;
	place = vhd_footer_place(v->end);
	if (io_size(f, &size, err) < 0)
		return -1;
	if (place + VHD_FOOTER_LEN < size) {
		if (io_write(f, v->footer_raw, VHD_FOOTER_LEN, place, err) < 0 ||
		    io_sync(f, err) < 0 || io_zero(f, v->end, place - v->end, err) < 0 ||
		    io_truncate(f, place + VHD_FOOTER_LEN, err) < 0 || io_sync(f, err) < 0)
			return -1;
		v->footer_off = place;
	}
	for (uint32_t i = 0; i < c->ndropped; i++) {
		if (vhd_space_no_metadata(c->l, c->dropped[i], stride, &unused, err) < 0 ||
		    (unused && io_punch(f, c->dropped[i], stride, err) < 0))
			return -1;
	}
	return 0;
}

/* What the layer knows of itself. */
static int publish(struct change *c, struct img_err *err)
{
	struct img *l = c->l;
	struct vhd *v = l->state;

	v->footer = c->footer;
	memcpy(v->footer_raw, c->footer_raw, VHD_FOOTER_LEN);
	v->footer_off = c->footer_off;
	v->seen_size = 0;
	l->info.size = c->footer.size;
	l->info.cylinders = c->footer.cylinders;
	l->info.heads = c->footer.heads;
	l->info.sectors = c->footer.sectors;
	if (l->info.type != IMG_FIXED) {
		v->header = c->header;
		v->blocks = l->info.blocks = c->blocks;
		memset(v->cache->tag, 0xff, sizeof(v->cache->tag));
		if (vhd_prepare_write(l, err) < 0 || give_back(c, err) < 0)
			return -1;
	}
	return io_size(&l->file, &l->info.file_size, err);
}

static int resize_sparse(struct change *c, struct img_err *err)
{
	if (vhd_heal(c->l, err) < 0 || vhd_prepare_write(c->l, err) < 0 ||
	    plan_sparse(c, err) < 0 || drop_blocks(c, err) < 0)
		return -1;
	if (undo_store(&c->l->file, UNDO_ROLLBACK, c->old, c->nold, err) < 0)
		return -1;
	if (write_sparse(c, err) < 0) {
		undo_apply(&c->l->file, NULL);
		return -1;
	}
	return undo_finish(&c->l->file, err);
}

int vhd_resize(struct img *l, uint64_t size, struct img_err *err)
{
	struct change c = {.l = l};
	int rc;

	if (size == 0 || size % SECTOR || size > IMG_VHD_MAX_SIZE)
		return img_err_set(
			err, IMG_USAGE,
			"%s: a VHD's size is a multiple of 512 up to 2040 GiB, not %" PRIu64,
			l->file.path, size);
	if (size == l->info.size)
		return 0;
	pthread_mutex_lock(&l->mutex);
	new_footer(&c, size);
	rc = l->info.type == IMG_FIXED ? resize_fixed(&c, err) : resize_sparse(&c, err);
	if (rc == 0)
		rc = publish(&c, err);
	pthread_mutex_unlock(&l->mutex);
	free(c.map_bits);
	free(c.dropped);
	return rc;
}
