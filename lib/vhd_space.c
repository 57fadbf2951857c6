/* SPDX-License-Identifier: BSD-2-Clause */
/* What lies where in a VHD file: places for more blocks, the end of the content, the footers'
 * places. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhd.h"

#define PAGE 4096u

/* Data on a 4 KiB boundary, the bitmap in the sectors before it (§12). */
int vhd_next_place(struct img *l, uint64_t *end, uint64_t *off, struct img_err *err)
{
	struct vhd *v = l->state;
	uint64_t data = u64_round_up(*end + v->bitmap_len, PAGE);

	*off = data - v->bitmap_len;
	if (*off / SECTOR >= VHD_BAT_FREE)
		return img_err_set(
			err, IMG_CANTCREAT,
			"%s: full: a block at offset %" PRIu64
			" is beyond what a BAT entry can name; convert the disk to compact it",
			l->file.path, *off);
	*end = data + v->block_size;
	return 0;
}

/* The footer ends a 4 KiB unit, as Windows has it. */
uint64_t vhd_footer_place(uint64_t end)
{
	return u64_round_up(end + VHD_FOOTER_LEN, PAGE) - VHD_FOOTER_LEN;
}

/* Places of all blocks, to find the end of the file's content and overlaps. */
struct places {
	uint64_t *off;
	uint32_t n;
};

static int add_place(void *ctx, uint32_t block, uint64_t off, struct img_err *err)
{
	struct places *p = ctx;

	(void)block, (void)err;
	p->off[p->n++] = off;
	return 0;
}

static int cmp_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Below 512 the reserved space of a locator counts sectors (§8.4). */
uint64_t vhd_locator_room(const struct vhd_locator *loc)
{
	return loc->space < SECTOR ? (uint64_t)loc->space * SECTOR : loc->space;
}

uint64_t vhd_bat_end(const struct vhd *v)
{
	return v->header.bat_off + u64_round_up((uint64_t)v->header.entries * 4, SECTOR);
}

/* The end of all that is not a block: header, BAT with its padding, locators, batmap (§9, §13). */
static int metadata_end(struct img *l, uint64_t *out, struct img_err *err)
{
	const struct vhd *v = l->state;
	uint64_t end = u64_max(v->footer.data_off + VHD_HEADER_LEN, vhd_bat_end(v)), size;
	struct vhd_batmap map;

	if (io_size(&l->file, &size, err) < 0 || vhd_batmap_find(l, &map, err) < 0)
		return -1;
	for (int i = 0; i < VHD_LOCATORS; i++) {
		const struct vhd_locator *loc = &v->header.loc[i];
		uint64_t e = loc->off + u64_max(vhd_locator_room(loc), loc->len);

		if (loc->code && loc->off < size && e <= size)
			end = u64_max(end, e);
	}
	if (map.present)
		end = u64_max(end, u64_max(map.head_off + SECTOR, map.off + map.len));
	*out = end;
	return 0;
}

static int check_overlaps(struct img *l, struct places *p, struct img_err *err)
{
	const struct vhd *v = l->state;
	uint64_t stride = (uint64_t)v->bitmap_len + v->block_size;

	qsort(p->off, p->n, sizeof(p->off[0]), cmp_u64);
	for (uint32_t i = 1; i < p->n; i++)
		if (p->off[i] - p->off[i - 1] < stride)
			return img_err_set(err, IMG_DATA,
					   "%s: BAT: the blocks at offsets %" PRIu64 " and %" PRIu64
					   " overlap; not opened for writing",
					   l->file.path, p->off[i - 1], p->off[i]);
	return 0;
}

/* Rewrites the footers that are missing or differ from the one that is believed (§14). */
int vhd_heal(struct img *l, struct img_err *err)
{
	struct vhd *v = l->state;
	uint8_t buf[VHD_FOOTER_LEN];
	uint64_t size, place;
	size_t got;

	if (v->healed || l->building)
		return 0;
	if (io_size(&l->file, &size, err) < 0)
		return -1;
	place = size >= v->end + VHD_FOOTER_LEN && size % SECTOR == 0 ? size - VHD_FOOTER_LEN
								      : vhd_footer_place(v->end);
	v->footer_off = place;
	if (io_read_upto(&l->file, buf, sizeof(buf), place, &got, err) < 0)
		return -1;
	if (got != sizeof(buf) || memcmp(buf, v->footer_raw, sizeof(buf)) != 0) {
		/* Junk that was no footer stays where it is: ours goes behind it. */
		if (got == sizeof(buf) && !bytes_are_zero(buf, sizeof(buf)) &&
		    memcmp(buf, "conectix", 8) != 0)
			v->footer_off = place = vhd_footer_place(size);
		if (io_write(&l->file, v->footer_raw, sizeof(buf), place, err) < 0 ||
		    io_sync(&l->file, err) < 0)
			return -1;
	}
	if (io_read(&l->file, buf, sizeof(buf), 0, err) < 0)
		return -1;
	if (memcmp(buf, v->footer_raw, sizeof(buf)) != 0 &&
	    (io_write(&l->file, v->footer_raw, sizeof(buf), 0, err) < 0 ||
	     io_sync(&l->file, err) < 0))
		return -1;
	v->healed = true;
	return 0;
}

int vhd_prepare_write(struct img *l, struct img_err *err)
{
	struct vhd *v = l->state;
	struct places p = {0};
	int rc;

	if (l->info.type == IMG_FIXED)
		return 0;
	p.off = malloc(((size_t)v->blocks + 1) * sizeof(p.off[0]));
	if (!p.off)
		return img_err_errno(err, ENOMEM, "%s", l->file.path);
	rc = vhd_bat_each(l, add_place, &p, err);
	if (rc == 0)
		rc = check_overlaps(l, &p, err);
	if (rc == 0)
		rc = metadata_end(l, &v->end, err);
	if (rc == 0 && p.n)
		v->end = u64_max(v->end, p.off[p.n - 1] + v->bitmap_len + v->block_size);
	free(p.off);
	return rc;
}

/* Whether a range meets none of the file's structures. */
struct question {
	uint64_t off, end, stride;
	bool taken;
};

static void ask(struct question *q, uint64_t off, uint64_t len)
{
	uint64_t end;

	if (len && off < q->end && (!u64_add(off, len, &end) || end > q->off))
		q->taken = true;
}

static int ask_block(void *ctx, uint32_t block, uint64_t off, struct img_err *err)
{
	struct question *q = ctx;

	(void)block, (void)err;
	ask(q, off, q->stride);
	return 0;
}

static int ask_metadata(struct img *l, struct question *q, int except, struct img_err *err)
{
	const struct vhd *v = l->state;
	struct vhd_batmap map;
	uint64_t size;

	if (io_size(&l->file, &size, err) < 0 || vhd_batmap_find(l, &map, err) < 0)
		return -1;
	if (q->end < q->off || q->end > size)
		q->taken = true;
	ask(q, 0, VHD_FOOTER_LEN);
	ask(q, v->footer.data_off, VHD_HEADER_LEN);
	ask(q, v->header.bat_off, vhd_bat_end(v) - v->header.bat_off);
	ask(q, v->footer_off, size - v->footer_off);
	for (int i = 0; i < VHD_LOCATORS; i++)
		if (i != except && v->header.loc[i].code)
			ask(q, v->header.loc[i].off, v->header.loc[i].len);
	if (map.present) {
		ask(q, map.head_off, SECTOR);
		ask(q, map.off, map.len);
	}
	return 0;
}

int vhd_space_no_metadata(struct img *l, uint64_t off, uint64_t len, bool *yes, struct img_err *err)
{
	struct question q = {.off = off, .end = off + len};

	if (ask_metadata(l, &q, -1, err) < 0)
		return -1;
	*yes = !q.taken;
	return 0;
}

int vhd_space_free(struct img *l, uint64_t off, uint64_t len, int except, bool *yes,
		   struct img_err *err)
{
	const struct vhd *v = l->state;
	struct question q = {
		.off = off, .end = off + len, .stride = (uint64_t)v->bitmap_len + v->block_size};

	if (ask_metadata(l, &q, except, err) < 0 ||
	    (!q.taken && vhd_bat_each(l, ask_block, &q, err) < 0))
		return -1;
	*yes = !q.taken;
	return 0;
}
