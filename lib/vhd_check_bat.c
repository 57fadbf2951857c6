/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The BAT (vhd-format §9): where the blocks are, whether two claim the same place, and what
 * nobody claims. 8 bytes of memory for each block in the file; sorted in place.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhd_check.h"

#define CHUNK 16384u /* entries read at once */

void check_area_add(struct check *c, uint64_t off, uint64_t len, uint64_t owned, const char *what)
{
	if (c->nareas < sizeof(c->areas) / sizeof(c->areas[0]))
		c->areas[c->nareas++] =
			(struct area){off, off + len, off + u64_max(len, owned), what};
}

const struct area *check_area_at(const struct check *c, uint64_t off, uint64_t end)
{
	for (unsigned i = 0; i < c->nareas; i++)
		if (off < c->areas[i].end && end > c->areas[i].off)
			return &c->areas[i];
	return NULL;
}

int check_bat_read(struct check *c, uint64_t bat_off, uint32_t first, uint32_t n, uint32_t *out,
		   struct img_err *err)
{
	const uint8_t *p = (const uint8_t *)out;

	if (io_read(&c->file, out, (size_t)n * 4, bat_off + (uint64_t)first * 4, err) < 0)
		return -1;
	for (uint32_t i = 0; i < n; i++)
		out[i] = be32_get(p + 4 * (size_t)i);
	return 0;
}

/* --- single entries ------------------------------------------------------------------------- */

/* Neighbouring entries with the same fault and value, such as a sector of zeros, are one report. */
struct run {
	bool open;
	enum fault_id id;
	uint32_t first, n, entry;
	const char *where;
};

static void flush_run(struct check *c, struct run *r)
{
	uint64_t off = (uint64_t)r->entry * SECTOR, bs = c->header.block_size, last;
	struct img_fault f;

	if (!r->open)
		return;
	r->open = false;
	last = (uint64_t)(r->first + r->n) * bs - 1;
	f = fault_make(c, r->id, c->header.bat_off + (uint64_t)r->first * 4);
	f.block = r->first;
	f.blocks = r->n;
	f.mendable = true;
	FOUND(&f, "sector %" PRIu32 ": %" PRIu64 "-%" PRIu64 "%s%s", r->entry, off,
	      off + c->stride - 1, r->where ? ", in " : "", r->where ? r->where : "");
	EXPECTED(&f, "the block to end by %" PRIu64 ", clear of the file's structures", c->end_off);
	LOSS(&f, "disk bytes %" PRIu64 "-%" PRIu64, (uint64_t)r->first * bs,
	     u64_min(last, c->footer.size - 1));
	fault_report(c, &f);
}

static int bad_entries(struct check *c, struct run *r, enum fault_id id, uint32_t block, uint32_t n,
		       uint32_t entry, const char *where, struct img_err *err)
{
	if (r->open && r->id == id && r->entry == entry && r->first + r->n == block) {
		r->n += n;
	} else {
		flush_run(c, r);
		*r = (struct run){true, id, block, n, entry, where};
	}
	return mend_entry(c, block, n, VHD_BAT_FREE, err);
}

/* The file ends within the block: what is missing reads as zeros from now on. */
static void report_cut(struct check *c, uint32_t block, uint64_t off)
{
	struct img_fault f = fault_make(c, F_BLOCK_CUT, c->end_off);
	uint64_t start = (uint64_t)block * c->header.block_size, have = 0;

	if (c->end_off > off + c->bitmap_len)
		have = c->end_off - off - c->bitmap_len;
	f.block = block;
	f.blocks = 1;
	f.mendable = true;
	FOUND(&f, "%" PRIu64 " of %" PRIu64 " bytes from %" PRIu64 " on", c->end_off - off,
	      c->stride, off);
	EXPECTED(&f, "the block to end at %" PRIu64, off + c->stride);
	if (start + have < c->footer.size)
		LOSS(&f, "disk bytes %" PRIu64 "-%" PRIu64, start + have,
		     u64_min(start + c->header.block_size, c->footer.size) - 1);
	c->mend.cut_from = c->end_off;
	c->mend.cut_to = u64_max(c->mend.cut_to, off + c->stride);
	c->mend.move_end = c->mend.footers = true;
	fault_report(c, &f);
}

static int take_entry(struct check *c, struct run *r, uint32_t block, uint32_t entry,
		      struct img_err *err)
{
	uint64_t off = (uint64_t)entry * SECTOR, end = off + c->stride;
	const struct area *a;

	if (entry == VHD_BAT_FREE)
		return 0;
	if (off < c->end_off && (a = check_area_at(c, off, end)))
		return bad_entries(c, r, F_BAT_IN_METADATA, block, 1, entry, a->what, err);
	if (end / SECTOR > UINT32_MAX)
		return bad_entries(c, r, F_BAT_WRAPS, block, 1, entry, NULL, err);
	if (off >= c->end_off)
		return bad_entries(c, r, F_BAT_OUT_OF_FILE, block, 1, entry, NULL, err);
	if (end > c->end_off)
		report_cut(c, block, off);
	c->placed[c->nplaced++] = (uint64_t)entry << 32 | block;
	return 0;
}

/*
 * Calls FN for the entries FIRST to END, a chunk at a time; E is NULL for the zeros of a hole,
 * which a file that claims a huge table has without any cost: they must not cost us anything
 * either.
 */
typedef int chunk_fn(struct check *c, void *ctx, uint32_t first, uint32_t n, const uint32_t *e,
		     struct img_err *err);

static int each_chunk(struct check *c, uint32_t first, uint32_t end, uint32_t *buf, chunk_fn *fn,
		      void *ctx, struct img_err *err)
{
	while (first < end) {
		uint64_t len = (uint64_t)(end - first) * 4;
		uint32_t n;
		bool hole;

		if (io_extent(&c->file, c->header.bat_off + (uint64_t)first * 4, &len, &hole, err) <
		    0)
			return -1;
		hole = hole && len >= 4;
		n = (uint32_t)(hole ? len / 4 : u64_min((len + 3) / 4, CHUNK));
		if ((!hole && check_bat_read(c, c->header.bat_off, first, n, buf, err) < 0) ||
		    fn(c, ctx, first, n, hole ? NULL : buf, err) < 0)
			return -1;
		first += n;
	}
	return 0;
}

/* Memory is only for those that can be blocks. */
static bool may_be_placed(const struct check *c, uint32_t entry)
{
	uint64_t off = (uint64_t)entry * SECTOR;

	return entry != VHD_BAT_FREE && off < c->end_off && !check_area_at(c, off, off + c->stride);
}

static int count_chunk(struct check *c, void *ctx, uint32_t first, uint32_t n, const uint32_t *e,
		       struct img_err *err)
{
	size_t *used = ctx;

	(void)first, (void)err;
	for (uint32_t i = 0; e && i < n; i++)
		*used += may_be_placed(c, e[i]);
	return 0;
}

static int take_chunk(struct check *c, void *ctx, uint32_t first, uint32_t n, const uint32_t *e,
		      struct img_err *err)
{
	if (!e)
		return bad_entries(c, ctx, F_BAT_IN_METADATA, first, n, 0,
				   check_area_at(c, 0, 1)->what, err);
	for (uint32_t i = 0; i < n; i++)
		if (take_entry(c, ctx, first + i, e[i], err) < 0)
			return -1;
	return 0;
}

/* --- behind the entries that the size needs ------------------------------------------------- */

struct extra {
	uint32_t first, n;
};

static int extra_chunk(struct check *c, void *ctx, uint32_t first, uint32_t n, const uint32_t *e,
		       struct img_err *err)
{
	struct extra *x = ctx;

	(void)c, (void)err;
	for (uint32_t i = 0; e && i < n; i++)
		if (e[i] != VHD_BAT_FREE && e[i] != 0 && x->n++ == 0)
			x->first = first + i;
	return 0;
}

static int check_extra(struct check *c, uint32_t *buf, struct img_err *err)
{
	struct extra x = {0};
	struct img_fault f;

	if (each_chunk(c, c->blocks, c->header.entries, buf, extra_chunk, &x, err) < 0)
		return -1;
	if (x.n == 0)
		return 0;
	f = fault_make(c, F_BAT_BEYOND_DISK, c->header.bat_off + (uint64_t)x.first * 4);
	FOUND(&f, "%" PRIu32 " entries in use, the first is %" PRIu32, x.n, x.first);
	EXPECTED(&f, "%" PRIu32 " entries for %" PRIu64 " bytes", c->blocks, c->footer.size);
	fault_report(c, &f);
	return 0;
}

/* --- overlaps ------------------------------------------------------------------------------- */

static void sift_down(uint64_t *v, size_t i, size_t n)
{
	uint64_t x = v[i];

	for (size_t child; (child = 2 * i + 1) < n; i = child) {
		if (child + 1 < n && v[child + 1] > v[child])
			child++;
		if (v[child] <= x)
			break;
		v[i] = v[child];
	}
	v[i] = x;
}

/* Heap sort: no memory of its own, and no input makes it slow. Most tables are in order already. */
static void sort(uint64_t *v, size_t n)
{
	size_t i = 1;

	while (i < n && v[i - 1] < v[i])
		i++;
	if (i >= n)
		return;
	for (i = n / 2; i-- > 0;)
		sift_down(v, i, n);
	while (n-- > 1) {
		uint64_t t = v[0];

		v[0] = v[n];
		v[n] = t;
		sift_down(v, 0, n);
	}
}

/*
 * Which of the two is wrong cannot be known: both keep what they show now, each in its own
 * place.
 */
static int report_overlap(struct check *c, uint64_t owner, uint64_t other, struct img_err *err)
{
	uint32_t a = placed_block(owner), b = placed_block(other);
	uint64_t bs = c->header.block_size;
	struct img_fault f = fault_make(c, F_BAT_OVERLAP, c->header.bat_off + (uint64_t)b * 4);

	f.block = b;
	f.blocks = 1;
	f.mendable = true;
	FOUND(&f, "blocks %" PRIu32 " at %" PRIu64 " and %" PRIu32 " at %" PRIu64, a,
	      placed_off(owner), b, placed_off(other));
	EXPECTED(&f, "at least %" PRIu64 " bytes between them", c->stride);
	LOSS(&f,
	     "one of disk bytes %" PRIu64 "-%" PRIu64 " (block %" PRIu32 ") and %" PRIu64
	     "-%" PRIu64 " (block %" PRIu32 ") is not what was written there",
	     a * bs, u64_min((a + 1ull) * bs, c->footer.size) - 1, a, b * bs,
	     u64_min((b + 1ull) * bs, c->footer.size) - 1, b);
	fault_report(c, &f);
	return mend_copy(c, b, placed_off(other), err);
}

static int check_overlaps(struct check *c, struct img_err *err)
{
	size_t owner = 0;

	sort(c->placed, c->nplaced);
	for (size_t i = 1; i < c->nplaced; i++) {
		if (placed_off(c->placed[i]) - placed_off(c->placed[owner]) >= c->stride)
			owner = i;
		else if (report_overlap(c, c->placed[owner], c->placed[i], err) < 0)
			return -1;
	}
	return 0;
}

static void check_alignment(struct check *c)
{
	struct img_fault f = fault_make(c, F_BLOCK_UNALIGNED, NOWHERE);
	size_t odd = 0;

	for (size_t i = 0; i < c->nplaced; i++)
		if ((placed_off(c->placed[i]) + c->bitmap_len) % 4096 && odd++ == 0) {
			f.offset = placed_off(c->placed[i]) + c->bitmap_len;
			f.block = placed_block(c->placed[i]);
			f.blocks = 1;
		}
	if (odd == 0)
		return;
	FOUND(&f, "%zu of %zu blocks", odd, c->nplaced);
	fault_report(c, &f);
}

int check_bat(struct check *c, struct img_err *err)
{
	struct run r = {0};
	uint32_t *buf;
	size_t used = 0;
	int rc = -1;

	if (!c->has_header)
		return 0;
	buf = malloc(CHUNK * sizeof(*buf));
	if (!buf)
		return img_err_errno(err, ENOMEM, "%s", c->file.path);
	if (each_chunk(c, 0, c->blocks, buf, count_chunk, &used, err) < 0)
		goto out;
	c->placed = malloc((used + 1) * sizeof(*c->placed));
	if (!c->placed) {
		img_err_errno(err, ENOMEM, "%s: %zu blocks", c->file.path, used);
		goto out;
	}
	if (each_chunk(c, 0, c->blocks, buf, take_chunk, &r, err) < 0)
		goto out;
	flush_run(c, &r);
	if (check_extra(c, buf, err) < 0 || check_overlaps(c, err) < 0)
		goto out;
	check_alignment(c);
	c->has_bat = true;
	c->res->blocks = c->blocks;
	c->res->used = c->nplaced;
	rc = 0;
out:
	free(buf);
	return rc;
}
