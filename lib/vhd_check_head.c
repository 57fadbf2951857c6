/* SPDX-License-Identifier: BSD-2-Clause */
/* The dynamic header (vhd-format §7), and what of it can be proven by the rest of the file. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhd_check.h"

#define USUAL_PLACE VHD_FOOTER_LEN
#define BAT_CHUNK 16384u

static uint64_t needed(const struct check *c, uint32_t block_size)
{
	return vhd_blocks(c->footer.size, block_size);
}

static bool bat_place_ok(const struct check *c, uint64_t off, uint64_t n)
{
	return vhd_bat_place_ok(off, n, c->footer.data_off, c->end_off);
}

static bool entry_ok(const struct check *c, const struct vhd_header *h, uint64_t need, uint32_t e)
{
	uint64_t off = (uint64_t)e * SECTOR,
		 end = off + vhd_bitmap_len(h->block_size) + h->block_size;
	uint64_t bat_end = h->bat_off + u64_round_up(need * 4, SECTOR), head = c->footer.data_off;

	return e == VHD_BAT_FREE || (off >= VHD_FOOTER_LEN && end <= c->end_off &&
				     !(off < head + VHD_HEADER_LEN && end > head) &&
				     !(off < bat_end && end > h->bat_off));
}

/* How the entries look under a header. */
struct fit {
	bool placed;	    /* the table itself can be where it is */
	uint64_t used, bad; /* entries that are not free; and of these, those that lead nowhere */
};

static int bat_fit(struct check *c, const struct vhd_header *h, struct fit *fit,
		   struct img_err *err)
{
	uint64_t need;
	uint32_t *buf;
	int rc = 0;

	*fit = (struct fit){0};
	if (!img_block_size_ok(h->block_size))
		return 0;
	need = needed(c, h->block_size);
	if (h->entries < need || !bat_place_ok(c, h->bat_off, h->entries))
		return 0;
	buf = malloc(BAT_CHUNK * sizeof(*buf));
	if (!buf)
		return img_err_errno(err, ENOMEM, "%s", c->file.path);
	fit->placed = true;
	for (uint32_t first = 0; rc == 0 && first < need; first += BAT_CHUNK) {
		uint32_t n = (uint32_t)u64_min(need - first, BAT_CHUNK);

		rc = check_bat_read(c, h->bat_off, first, n, buf, err);
		for (uint32_t i = 0; rc == 0 && i < n; i++) {
			fit->used += buf[i] != VHD_BAT_FREE;
			fit->bad += !entry_ok(c, h, need, buf[i]);
		}
	}
	free(buf);
	return rc;
}

static int bat_fits(struct check *c, const struct vhd_header *h, bool *yes, struct img_err *err)
{
	struct fit fit;

	if (bat_fit(c, h, &fit, err) < 0)
		return -1;
	*yes = fit.placed && fit.bad == 0;
	return 0;
}

/* --- proofs ------------------------------------------------------------------------------- */

/* A change of one field, and the fault that it mends. */
struct guess {
	enum fault_id id;
	unsigned off, len;
	uint64_t value;
};

static void put_guess(uint8_t raw[VHD_HEADER_LEN], const struct guess *g)
{
	if (g->len == 4)
		be32_put(raw + g->off, (uint32_t)g->value);
	else
		be64_put(raw + g->off, g->value);
}

static uint64_t get_field(const uint8_t raw[VHD_HEADER_LEN], const struct guess *g)
{
	return g->len == 4 ? be32_get(raw + g->off) : be64_get(raw + g->off);
}

/*
 * A value with which the checksum comes out right, and the table makes sense, is the one that
 * was there.
 */
static int try_guess(struct check *c, const struct guess *g, bool *ok, struct img_err *err)
{
	uint8_t raw[VHD_HEADER_LEN];
	struct vhd_header h;

	*ok = false;
	memcpy(raw, c->header_raw, sizeof(raw));
	put_guess(raw, g);
	if (memcmp(raw, c->header_raw, sizeof(raw)) == 0 || vhd_header_decode(raw, &h) != VHD_OK)
		return 0;
	return bat_fits(c, &h, ok, err);
}

static void accept(struct check *c, const struct guess *g)
{
	struct img_fault f = fault_make(c, g->id, c->footer.data_off + g->off);

	FOUND(&f, "0x%" PRIx64, get_field(c->header_raw, g));
	EXPECTED(&f, "0x%" PRIx64, g->value);
	f.mendable = c->mend.header = true;
	put_guess(c->header_raw, g);
	fault_report(c, &f);
}

/* The header's checksum is wrong: is one field to blame? */
static int prove_by_checksum(struct check *c, bool *ok, struct img_err *err)
{
	uint32_t bs = be32_get(c->header_raw + 32);
	struct guess all[32] = {
		{F_HEADER_MISSING, 0, 8, 0x6378737061727365 /* "cxsparse" */},
		{F_HEADER_UNUSED_OFFSET, 8, 8, ~0ull},
		{F_HEADER_BAT_OFFSET, 16, 8, c->footer.data_off + VHD_HEADER_LEN},
		{F_HEADER_BAD_VERSION, 24, 4, 0x00010000},
	};
	size_t n = 4;

	if (img_block_size_ok(bs) && needed(c, bs) <= UINT32_MAX)
		all[n++] = (struct guess){F_HEADER_ENTRIES, 28, 4, needed(c, bs)};
	for (uint32_t size = IMG_BLOCK_MIN; size <= IMG_BLOCK_MAX; size <<= 1)
		all[n++] = (struct guess){F_HEADER_BLOCK_SIZE, 32, 4, size};
	*ok = false;
	for (size_t i = 0; i < n && !*ok; i++) {
		if (try_guess(c, &all[i], ok, err) < 0)
			return -1;
		if (*ok)
			accept(c, &all[i]);
	}
	return 0;
}

/* A table of free entries could be padding: only one that leads to blocks is beyond doubt. */
static int bat_here(struct check *c, const struct vhd_header *h, bool *yes, struct img_err *err)
{
	struct fit fit;

	if (bat_fit(c, h, &fit, err) < 0)
		return -1;
	*yes = fit.placed && fit.bad == 0 &&
	       (fit.used || c->end_off < h->bat_off + (uint64_t)h->entries * 4 + h->block_size);
	return 0;
}

/* The checksum is right, or says nothing: of size, block size and entries two prove the third. */
static int prove_by_fields(struct check *c, struct vhd_header *h, bool *ok, struct img_err *err)
{
	struct guess g = {F_HEADER_BLOCK_SIZE, 32, 4, 0};
	struct vhd_header t = *h;
	unsigned fits = 0;

	*ok = true;
	if (!img_block_size_ok(h->block_size)) {
		for (t.block_size = IMG_BLOCK_MIN; t.block_size <= IMG_BLOCK_MAX;
		     t.block_size <<= 1) {
			if (needed(c, t.block_size) != h->entries)
				continue;
			if (bat_fits(c, &t, ok, err) < 0)
				return -1;
			fits += *ok;
			g.value = *ok ? t.block_size : g.value;
		}
		*ok = fits == 1;
		t.block_size = (uint32_t)g.value;
	} else if (needed(c, h->block_size) > h->entries) {
		g = (struct guess){F_HEADER_ENTRIES, 28, 4, needed(c, h->block_size)};
		t.entries = (uint32_t)g.value;
		if (g.value > UINT32_MAX)
			*ok = false;
		else if (bat_fits(c, &t, ok, err) < 0)
			return -1;
	} else if (!bat_place_ok(c, h->bat_off, h->entries) &&
		   bat_place_ok(c, h->bat_off, needed(c, h->block_size))) {
		/* More than the file can hold. */
		g = (struct guess){F_HEADER_ENTRIES, 28, 4, needed(c, h->block_size)};
		t.entries = (uint32_t)g.value;
		if (bat_fits(c, &t, ok, err) < 0)
			return -1;
	} else if (!bat_place_ok(c, h->bat_off, h->entries)) {
		g = (struct guess){F_HEADER_BAT_OFFSET, 16, 8, c->footer.data_off + VHD_HEADER_LEN};
		t.bat_off = g.value;
		if (bat_here(c, &t, ok, err) < 0)
			return -1;
	} else {
		return 0;
	}
	if (*ok) {
		accept(c, &g);
		*h = t;
		return 0;
	}
	struct img_fault f = fault_make(c, g.id, c->footer.data_off + g.off);

	FOUND(&f, "0x%" PRIx64, get_field(c->header_raw, &g));
	if (g.id == F_HEADER_ENTRIES)
		EXPECTED(&f, "0x%" PRIx64 " for the size of the disk", g.value);
	fault_report(c, &f);
	return 0;
}

/* --- finding and reading it ------------------------------------------------------------------ */

static int read_header(struct check *c, uint64_t off, bool *got, enum vhd_verdict *is,
		       struct img_err *err)
{
	size_t n = 0;

	*got = false;
	if (off > INT64_MAX - VHD_HEADER_LEN)
		return 0;
	if (io_read_upto(&c->file, c->header_raw, VHD_HEADER_LEN, off, &n, err) < 0)
		return -1;
	*got = n == VHD_HEADER_LEN && off >= VHD_FOOTER_LEN;
	if (*got)
		*is = vhd_header_decode(c->header_raw, &c->header);
	return 0;
}

/* When the footer leads to no header: is there one at the place where all writers put it? */
static int find_header(struct check *c, enum vhd_verdict *is, bool *found, struct img_err *err)
{
	bool got, usual;
	enum vhd_verdict first = VHD_NO_COOKIE;
	struct img_fault f;

	if (read_header(c, c->footer.data_off, &got, &first, err) < 0)
		return -1;
	*is = first;
	*found = true;
	if (got && (first != VHD_NO_COOKIE || c->footer.data_off == USUAL_PLACE))
		return 0;
	if (read_header(c, USUAL_PLACE, &usual, is, err) < 0)
		return -1;
	f = fault_make(c, F_HEADER_OUTSIDE, c->end_off + 16);
	FOUND(&f, "%" PRIu64, c->footer.data_off);
	EXPECTED(&f, "%s", usual && *is == VHD_OK ? "512" : "the offset of the header");
	f.mendable = usual && *is == VHD_OK;
	if (f.mendable) {
		c->mend.footers = true;
		c->footer.data_off = USUAL_PLACE;
		be64_put(c->footer_raw + 16, USUAL_PLACE);
	}
	fault_report(c, &f);
	*found = f.mendable;
	return 0;
}

static void report_header(struct check *c, enum vhd_verdict is, bool mendable)
{
	enum fault_id id = is == VHD_NO_COOKIE	   ? F_HEADER_MISSING
			   : is == VHD_BAD_VERSION ? F_HEADER_BAD_VERSION
						   : F_HEADER_BAD_CHECKSUM;
	unsigned at = is == VHD_NO_COOKIE ? 0 : is == VHD_BAD_VERSION ? 24 : 36;
	struct img_fault f = fault_make(c, id, c->footer.data_off + at);

	FOUND(&f, "0x%08" PRIx32, be32_get(c->header_raw + at));
	if (mendable)
		EXPECTED(&f, "another one: all fields fit the file");
	f.mendable = mendable;
	c->mend.header |= mendable;
	fault_report(c, &f);
}

/*
 * No single field explains the checksum: it is itself what is wrong, when nearly all of the
 * table fits.
 */
static int judge_checksum(struct check *c, bool *ok, struct img_err *err)
{
	struct fit fit;

	if (prove_by_fields(c, &c->header, ok, err) < 0)
		return -1;
	if (*ok) {
		if (bat_fit(c, &c->header, &fit, err) < 0)
			return -1;
		*ok = fit.placed && fit.bad * 4 <= fit.used;
	}
	report_header(c, VHD_BAD_CHECKSUM, *ok);
	return 0;
}

/* Leaves a header to go on with, or has_header false. */
static int judge_header(struct check *c, enum vhd_verdict is, struct img_err *err)
{
	bool ok = is == VHD_OK;

	if (!ok && prove_by_checksum(c, &ok, err) < 0)
		return -1;
	if (!ok && is == VHD_BAD_CHECKSUM) {
		if (judge_checksum(c, &ok, err) < 0)
			return -1;
	} else if (!ok) {
		report_header(c, is, false);
	} else {
		vhd_header_decode(c->header_raw, &c->header);
		if (prove_by_fields(c, &c->header, &ok, err) < 0)
			return -1;
	}
	c->has_header = ok;
	return 0;
}

static void check_minor(struct check *c)
{
	static const uint8_t none[VHD_NAME_UNITS * 2];
	struct img_fault f;
	bool parent = !bytes_are_zero(c->header.parent_uuid, 16) ||
		      memcmp(c->header.parent_name, none, sizeof(none)) != 0;

	if (be64_get(c->header_raw + 8) != ~0ull)
		accept(c, &(struct guess){F_HEADER_UNUSED_OFFSET, 8, 8, ~0ull});
	if (!bytes_are_zero(c->header_raw + 60, 4) || !bytes_are_zero(c->header_raw + 768, 256)) {
		f = fault_make(c, F_HEADER_RESERVED, c->footer.data_off + 768);
		fault_report(c, &f);
	}
	for (int i = 0; i < VHD_LOCATORS; i++)
		parent |= c->header.loc[i].code != VHD_NONE;
	if (c->footer.type == VHD_DYNAMIC && parent) {
		f = fault_make(c, F_HEADER_PARENT_UNUSED, c->footer.data_off + 40);
		fault_report(c, &f);
	}
}

int check_header(struct check *c, struct img_err *err)
{
	enum vhd_verdict is = VHD_NO_COOKIE;
	bool found = false;
	uint64_t need;

	if (!c->has_footer || c->footer.type == VHD_FIXED)
		return 0;
	if (find_header(c, &is, &found, err) < 0 || (found && judge_header(c, is, err) < 0))
		return -1;
	if (!c->has_header)
		return 0;
	check_minor(c);
	need = needed(c, c->header.block_size);
	c->blocks = (uint32_t)need;
	c->bitmap_len = vhd_bitmap_len(c->header.block_size);
	c->stride = (uint64_t)c->bitmap_len + c->header.block_size;
	check_area_add(c, c->footer.data_off, VHD_HEADER_LEN, VHD_HEADER_LEN, "the header");
	/* Virtual PC leaves a sector more than the entries need (§9). */
	check_area_add(c, c->header.bat_off, u64_round_up(need * 4, SECTOR),
		       u64_round_up((uint64_t)c->header.entries * 4, SECTOR) + SECTOR, "the BAT");
	return 0;
}
