/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Guest writes to a VHD.
 *
 * The death of this process must not lose what was acknowledged, so every bit and BAT entry is
 * written before a request returns. Power loss must not show a sector that is neither old nor
 * new, so data is synced before the bit or entry that shows it is written at all. Syncs are
 * shared by all requests that wait at the same time (io_sync). A request that only touches
 * sectors that are shown already costs no sync.
 *
 * A new block: footer at its new end, zeros over what stood there (the old footer), data, sync,
 * bitmap bits and BAT entry. Between the two a block is "pending": it has a place that other
 * requests use as well, but nothing on disk leads to it.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "vhd.h"

int vhd_bitmap_mark(struct img *l, uint64_t entry, uint32_t sec, uint32_t nsec, bool always,
		    struct img_err *err)
{
	const uint32_t per = SECTOR * 8;
	uint8_t buf[SECTOR];
	const uint8_t *s;

	while (nsec) {
		uint32_t n = per - sec % per, run;
		uint64_t at = entry + sec / per * SECTOR;
		bool set;

		if (n > nsec)
			n = nsec;
		if (vhd_meta_read(l, at, &s, err) < 0)
			return -1;
		run = bitmap_run(s, sec % per, n, &set);
		if (always || !set || run < n) {
			memcpy(buf, s, SECTOR);
			bitmap_set(buf, sec % per, n);
			if (vhd_meta_write(l, at, buf, err) < 0)
				return -1;
		}
		sec += n;
		nsec -= n;
	}
	return 0;
}

int vhd_bat_set(struct img *l, uint32_t block, uint64_t off, struct img_err *err)
{
	struct vhd *v = l->state;
	uint64_t at = v->header.bat_off + (uint64_t)block * 4;
	uint64_t sector = at & ~(uint64_t)(SECTOR - 1);
	uint8_t buf[SECTOR];
	const uint8_t *s;

	if (vhd_meta_read(l, sector, &s, err) < 0)
		return -1;
	memcpy(buf, s, SECTOR);
	be32_put(buf + at % SECTOR, (uint32_t)(off / SECTOR));
	return vhd_meta_write(l, sector, buf, err);
}

/* Every bit of a dynamic block says "written": its bytes are zeros until they are (§10). */
static int write_full_bitmap(struct img *l, uint64_t off, struct img_err *err)
{
	struct vhd *v = l->state;
	uint32_t bits = v->block_size / SECTOR;
	uint8_t buf[SECTOR];

	for (uint32_t at = 0; at < v->bitmap_len; at += SECTOR) {
		uint32_t n = bits - at * 8 < SECTOR * 8 ? bits - at * 8 : SECTOR * 8;

		memset(buf, 0, sizeof(buf));
		bitmap_set(buf, 0, n);
		if (vhd_meta_write(l, off + at, buf, err) < 0)
			return -1;
	}
	return 0;
}

/* Moves the end footer behind END; the space up to there reads as zeros. */
static int extend_file(struct img *l, uint64_t end, struct img_err *err)
{
	struct vhd *v = l->state;
	uint64_t size, footer = vhd_footer_place(end);

	if (io_size(&l->file, &size, err) < 0)
		return -1;
	if (footer > v->footer_off) {
		/* The new footer first: at no moment is the file without one at its end. */
		if (io_write(&l->file, v->footer_raw, VHD_FOOTER_LEN, footer, err) < 0) {
			io_truncate(&l->file, size, NULL);
			return -1;
		}
		v->footer_off = footer;
	}
	return io_zero(&l->file, v->end, u64_min(end, u64_max(size, v->end)) - v->end, err);
}

static int allocate(struct img *l, uint32_t block, struct vhd_pending **out, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_pending *p = calloc(1, sizeof(*p));
	uint64_t end = v->end, old_footer = v->footer_off;

	if (!p)
		return img_err_errno(err, ENOMEM, "%s", l->file.path);
	p->block = block;
	if (vhd_next_place(l, &end, &p->off, err) < 0 || extend_file(l, end, err) < 0)
		goto fail;
	if (v->footer_off != old_footer && old_footer >= end &&
	    io_zero(&l->file, old_footer, VHD_FOOTER_LEN, err) < 0)
		goto fail;
	v->end = end;
	/* Cached sectors of this area are from before it was zeroed. */
	for (uint32_t i = 0; i < VHD_CACHE_SECTORS; i++)
		if (v->cache->tag[i] >= p->off && v->cache->tag[i] < end)
			v->cache->tag[i] = ~0ull;
	if (l->info.type == IMG_DYNAMIC && write_full_bitmap(l, p->off, err) < 0)
		goto fail;
	p->next = v->pending;
	v->pending = p;
	*out = p;
	return 0;
fail:
	free(p);
	return -1;
}

static struct vhd_pending *find_pending(struct vhd *v, uint32_t block)
{
	struct vhd_pending *p = v->pending;

	while (p && p->block != block)
		p = p->next;
	return p;
}

void vhd_pending_free(struct vhd *v)
{
	while (v->pending) {
		struct vhd_pending *p = v->pending;

		v->pending = p->next;
		free(p);
	}
}

/* The part of a request that lies in one block. */
struct piece {
	uint32_t block, sec, nsec;
	uint64_t off, len; /* within the request: from its start */
	uint64_t entry;	   /* where the block is; 0: nowhere, and nothing needs to be */
	bool fresh;	   /* allocated by this request: zeros already */
	bool shown;	   /* all its sectors were visible before */
};

static struct piece first_piece(const struct vhd *v, uint64_t off, uint64_t done, uint64_t len)
{
	uint64_t at = off + done, in_block = at % v->block_size;
	struct piece p = {.block = (uint32_t)(at / v->block_size), .off = done};

	p.len = u64_min(len - done, v->block_size - in_block);
	p.sec = (uint32_t)(in_block / SECTOR);
	p.nsec = (uint32_t)(p.len / SECTOR);
	return p;
}

/* Finds or makes the block's place. Mutex held. */
static int locate(struct img *l, struct piece *p, bool zeros, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_pending *pending;
	uint32_t run;
	bool set;

	if (vhd_heal(l, err) < 0 || vhd_block_find(l, p->block, &p->entry, err) < 0)
		return -1;
	if (p->entry) {
		if (vhd_bitmap_run(l, p->entry, p->sec, p->nsec, &run, &set, err) < 0)
			return -1;
		p->shown = set && run == p->nsec;
		return 0;
	}
	pending = find_pending(v, p->block);
	/* Zeros in a block that a base does not have: they are what is read there. */
	if (!pending && zeros && l->info.type == IMG_DYNAMIC)
		return 0;
	if (!pending) {
		if (allocate(l, p->block, &pending, err) < 0)
			return -1;
		p->fresh = true;
	}
	p->entry = pending->off;
	return 0;
}

static int write_piece(struct img *l, const uint8_t *buf, struct piece *p, struct img_err *err)
{
	struct vhd *v = l->state;
	uint64_t at;
	int rc;

	pthread_mutex_lock(&l->mutex);
	rc = locate(l, p, !buf, err);
	pthread_mutex_unlock(&l->mutex);
	if (rc < 0 || !p->entry)
		return rc;
	at = p->entry + v->bitmap_len + (uint64_t)p->sec * SECTOR;
	if (buf)
		return io_write(&l->file, buf + p->off, p->len, at, err);
	return p->fresh ? 0 : io_zero(&l->file, at, p->len, err);
}

/* Bits, then the BAT entry if there is none yet. The data is on disk. */
static int show_piece(struct img *l, const struct piece *p, struct img_err *err)
{
	struct vhd *v = l->state;
	struct vhd_pending **pp;
	int rc = 0;

	pthread_mutex_lock(&l->mutex);
	rc = vhd_bitmap_mark(l, p->entry, p->sec, p->nsec, false, err);
	for (pp = &v->pending; *pp && (*pp)->block != p->block;)
		pp = &(*pp)->next;
	if (rc == 0 && *pp) {
		rc = vhd_bat_set(l, p->block, p->entry, err);
		if (rc == 0) {
			struct vhd_pending *done = *pp;

			*pp = done->next;
			free(done);
		}
	}
	pthread_mutex_unlock(&l->mutex);
	return rc;
}

#define MAX_PIECES 64

static int write_some(struct img *l, const uint8_t *buf, uint64_t off, uint64_t len, uint64_t *done,
		      struct img_err *err)
{
	struct vhd *v = l->state;
	struct piece pieces[MAX_PIECES];
	bool sync = false;
	int n = 0;

	for (; *done < len && n < MAX_PIECES; n++) {
		pieces[n] = first_piece(v, off, *done, len);
		if (write_piece(l, buf, &pieces[n], err) < 0)
			return -1;
		sync |= pieces[n].entry && !pieces[n].shown;
		*done += pieces[n].len;
	}
	if (!sync)
		return 0;
	if (io_sync(&l->file, err) < 0)
		return -1;
	for (int i = 0; i < n; i++)
		if (pieces[i].entry && !pieces[i].shown && show_piece(l, &pieces[i], err) < 0)
			return -1;
	return 0;
}

int vhd_write(struct img *l, const uint8_t *buf, uint64_t off, uint64_t len, struct img_err *err)
{
	uint64_t done = 0;

	if (l->info.type == IMG_FIXED)
		return buf ? io_write(&l->file, buf, len, off, err)
			   : io_zero(&l->file, off, len, err);
	if (((struct vhd *)l->state)->build)
		return vhd_build_write(l, buf, off, len, err);
	while (done < len)
		if (write_some(l, buf, off, len, &done, err) < 0)
			return -1;
	return 0;
}

int vhd_trim(struct img *l, uint64_t off, uint64_t len, struct img_err *err)
{
	struct vhd *v = l->state;
	int rc = 0;

	if (l->info.type == IMG_FIXED)
		return io_punch(&l->file, off, len, err);
	for (uint64_t done = 0; rc == 0 && done < len;) {
		struct piece p = first_piece(v, off, done, len);
		uint32_t run = 0;
		bool set = true;

		pthread_mutex_lock(&l->mutex);
		rc = vhd_block_find(l, p.block, &p.entry, err);
		if (rc == 0 && p.entry)
			rc = vhd_bitmap_run(l, p.entry, p.sec, p.nsec, &run, &set, err);
		pthread_mutex_unlock(&l->mutex);
		if (rc == 0 && p.entry)
			p.len = u64_min(p.len, (uint64_t)run * SECTOR);
		if (rc == 0 && p.entry && set)
			rc = io_punch(&l->file, p.entry + v->bitmap_len + (uint64_t)p.sec * SECTOR,
				      p.len, err);
		done += p.len;
	}
	return rc;
}
