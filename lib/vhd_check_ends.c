/* SPDX-License-Identifier: BSD-2-Clause */
/* The two footers, and what they say of the disk (vhd-format §2, §4, §6, §14). */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "vhd_check.h"

#define SEARCH (1u << 20) /* how far a footer is looked for before the end of the file */

struct ends {
	uint8_t front[VHD_FOOTER_LEN], end[VHD_FOOTER_LEN];
	enum vhd_verdict front_is, end_is;
	struct vhd_footer f, e;
	uint64_t end_off;
	bool short_end, misplaced, fixed;
};

static int decode_at(struct check *c, uint64_t off, size_t len, uint8_t raw[VHD_FOOTER_LEN],
		     enum vhd_verdict *is, struct vhd_footer *f, struct img_err *err)
{
	memset(raw, 0, VHD_FOOTER_LEN);
	if (io_read(&c->file, raw, len, off, err) < 0)
		return -1;
	*is = vhd_footer_decode(raw, f);
	return 0;
}

/*
 * A footer before bytes that do not belong to the file. The data of a guest may hold footers as
 * well: it must be a copy of the front one, or end a fixed disk that is as long as it says.
 */
static int search_end(struct check *c, struct ends *s, struct img_err *err)
{
	uint64_t first =
		c->file_size > SEARCH ? (c->file_size - SEARCH) & ~(uint64_t)(SECTOR - 1) : SECTOR;
	uint64_t off = c->file_size & ~(uint64_t)(SECTOR - 1);
	uint8_t raw[VHD_FOOTER_LEN];
	enum vhd_verdict is;
	struct vhd_footer f;

	while (off >= first + SECTOR) {
		off -= SECTOR;
		if (off + VHD_FOOTER_LEN > c->file_size)
			continue;
		if (decode_at(c, off, VHD_FOOTER_LEN, raw, &is, &f, err) < 0)
			return -1;
		if (is != VHD_OK)
			continue;
		if (f.type == VHD_FIXED
			    ? f.size != off
			    : s->front_is != VHD_OK || memcmp(raw, s->front, sizeof(raw)) != 0)
			continue;
		memcpy(s->end, raw, sizeof(raw));
		s->e = f;
		s->end_is = VHD_OK;
		s->end_off = off;
		s->misplaced = true;
		return 0;
	}
	return 0;
}

static int read_ends(struct check *c, struct ends *s, struct img_err *err)
{
	uint64_t size = c->file_size;

	memset(s, 0, sizeof(*s));
	s->front_is = s->end_is = VHD_NO_COOKIE;
	s->end_off = size;
	if (size >= VHD_FOOTER_LEN &&
	    (decode_at(c, 0, VHD_FOOTER_LEN, s->front, &s->front_is, &s->f, err) < 0 ||
	     decode_at(c, size - VHD_FOOTER_LEN, VHD_FOOTER_LEN, s->end, &s->end_is, &s->e, err) <
		     0))
		return -1;
	if (s->end_is != VHD_NO_COOKIE) {
		s->end_off = size - VHD_FOOTER_LEN;
	} else if (size >= VHD_FOOTER_LEN - 1) {
		uint64_t off = size - (VHD_FOOTER_LEN - 1);

		if (decode_at(c, off, VHD_FOOTER_LEN - 1, s->end, &s->end_is, &s->e, err) < 0)
			return -1;
		s->short_end = s->end_is != VHD_NO_COOKIE;
		if (s->short_end)
			s->end_off = off;
	}
	if (s->end_is == VHD_NO_COOKIE && search_end(c, s, err) < 0)
		return -1;
	/* What a fixed disk begins with is the guest's, even if it is a VHD. */
	s->fixed =
		s->end_is == VHD_OK && s->e.type == VHD_FIXED &&
		(s->e.size == s->end_off || (s->front_is != VHD_OK && s->front_is != VHD_POISONED));
	if (s->fixed || (s->front_is == VHD_OK && s->f.type == VHD_FIXED))
		s->front_is = VHD_NO_COOKIE;
	return 0;
}

/*
 * Whether the header that F leads to fits it. LAX: of both the checksum may be wrong, but all
 * fields agree.
 */
static int footer_fits(struct check *c, const struct vhd_footer *f, bool lax, bool *yes,
		       struct img_err *err)
{
	enum vhd_verdict is;
	uint8_t buf[VHD_HEADER_LEN];
	struct vhd_header h;
	size_t got;

	*yes = false;
	if (f->type == VHD_FIXED || f->data_off > INT64_MAX)
		return 0;
	if (io_read_upto(&c->file, buf, sizeof(buf), f->data_off, &got, err) < 0)
		return -1;
	is = got == sizeof(buf) ? vhd_header_decode(buf, &h) : VHD_NO_COOKIE;
	*yes = (is == VHD_OK || (lax && is == VHD_BAD_CHECKSUM)) &&
	       img_block_size_ok(h.block_size) && vhd_blocks(f->size, h.block_size) <= h.entries;
	return 0;
}

/* Of two valid ones: the same choice that vhd_open() makes, unless that one cannot be. */
static int choose(struct check *c, struct ends *s, bool *end, struct img_err *err)
{
	bool end_fits, front_fits;

	if (footer_fits(c, &s->e, false, &end_fits, err) < 0 ||
	    footer_fits(c, &s->f, false, &front_fits, err) < 0)
		return -1;
	*end = s->e.type == s->f.type && memcmp(s->e.uuid, s->f.uuid, 16) == 0 &&
	       s->e.data_off == s->f.data_off;
	if (!*end ? end_fits && !front_fits : front_fits && !end_fits)
		*end = !*end;
	return 0;
}

/* The names of the fields in which the copies differ. */
static void differences(const struct ends *s, char *out)
{
	static const struct {
		unsigned off, len;
		const char *name;
	} fields[] = {
		{8, 4, "features"},	  {12, 4, "version"},	 {16, 8, "data offset"},
		{24, 4, "time"},	  {28, 8, "creator"},	 {36, 4, "host"},
		{40, 8, "original size"}, {48, 8, "size"},	 {56, 4, "geometry"},
		{60, 4, "type"},	  {68, 16, "UUID"},	 {84, 1, "saved state"},
		{85, 1, "hidden"},	  {86, 426, "reserved"},
	};
	size_t n = 0;

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		if (memcmp(s->front + fields[i].off, s->end + fields[i].off, fields[i].len) != 0)
			n += (size_t)snprintf(out + n, IMG_FAULT_TEXT - n, "%s%s", n ? ", " : "",
					      fields[i].name);
}

/* A wrong checksum over fields that the file bears out was made by an editor. */
static int plausible(struct check *c, const struct ends *s, const struct vhd_footer *f, bool *yes,
		     struct img_err *err)
{
	if (f->type == VHD_FIXED) {
		*yes = f->size == s->end_off && f->data_off == ~0ull;
		return 0;
	}
	*yes = false;
	if (s->front_is == VHD_BAD_CHECKSUM && s->end_is == VHD_BAD_CHECKSUM &&
	    memcmp(s->front, s->end, VHD_FOOTER_LEN) != 0)
		return 0;
	return footer_fits(c, f, true, yes, err);
}

static void believe(struct check *c, const struct vhd_footer *f, const uint8_t raw[VHD_FOOTER_LEN])
{
	c->has_footer = true;
	c->footer = *f;
	memcpy(c->footer_raw, raw, VHD_FOOTER_LEN);
}

/* Decides which copy to go on with; *MENDABLE: it is beyond doubt. */
static int pick(struct check *c, struct ends *s, bool *mendable, struct img_err *err)
{
	bool end = s->end_is == VHD_OK, front = s->front_is == VHD_OK;

	*mendable = end || front;
	if (end && front && choose(c, s, &end, err) < 0)
		return -1;
	if (!*mendable) {
		end = s->end_is == VHD_BAD_CHECKSUM;
		if (!end && s->front_is != VHD_BAD_CHECKSUM)
			return 0;
		if (plausible(c, s, end ? &s->e : &s->f, mendable, err) < 0)
			return -1;
	}
	believe(c, end ? &s->e : &s->f, end ? s->end : s->front);
	return 0;
}

/* The fault of one copy that is not valid. */
static void report_copy(struct check *c, enum vhd_verdict is, const uint8_t raw[VHD_FOOTER_LEN],
			uint64_t off, bool end, bool mendable)
{
	static const enum fault_id ids[][2] = {
		[VHD_NO_COOKIE] = {F_FOOTER_FRONT_MISSING, F_FOOTER_END_MISSING},
		[VHD_BAD_VERSION] = {F_FOOTER_FRONT_BAD_VERSION, F_FOOTER_END_BAD_VERSION},
		[VHD_BAD_TYPE] = {F_FOOTER_FRONT_BAD_TYPE, F_FOOTER_END_BAD_TYPE},
		[VHD_BAD_CHECKSUM] = {F_FOOTER_FRONT_BAD_CHECKSUM, F_FOOTER_END_BAD_CHECKSUM},
	};
	uint8_t sealed[VHD_FOOTER_LEN];
	struct img_fault f;

	if (is == VHD_OK)
		return;
	f = fault_make(c, ids[is][end], off);
	f.mendable = mendable;
	memcpy(sealed, raw, sizeof(sealed));
	vhd_footer_seal(sealed);
	if (is == VHD_BAD_CHECKSUM) {
		FOUND(&f, "0x%08" PRIx32, be32_get(raw + 64));
		EXPECTED(&f, "0x%08" PRIx32 " for these fields", be32_get(sealed + 64));
	} else if (is == VHD_BAD_VERSION) {
		FOUND(&f, "0x%08" PRIx32, be32_get(raw + 12));
		EXPECTED(&f, "0x00010000");
	} else if (is == VHD_BAD_TYPE) {
		FOUND(&f, "%" PRIu32, be32_get(raw + 60));
		EXPECTED(&f, "2, 3 or 4");
	}
	c->mend.footers |= mendable;
	c->front_bad |= !end;
	if (end)
		fault_hold(c, &f);
	else
		fault_report(c, &f);
}

static void report_placing(struct check *c, const struct ends *s)
{
	struct img_fault f;

	if (s->misplaced) {
		f = fault_make(c, F_FOOTER_END_MISPLACED, s->end_off);
		FOUND(&f, "the file goes on to %" PRIu64, c->file_size);
		EXPECTED(&f, "its end at %" PRIu64, s->end_off + VHD_FOOTER_LEN);
	} else if (s->short_end) {
		f = fault_make(c, F_FOOTER_END_SHORT, s->end_off);
		FOUND(&f, "511 bytes");
		EXPECTED(&f, "512");
	} else {
		return;
	}
	f.mendable = true;
	c->mend.footers = c->mend.move_end = true;
	fault_hold(c, &f);
}

static void report_difference(struct check *c, const struct ends *s)
{
	struct img_fault f = fault_make(c, F_FOOTER_COPIES_DIFFER, 0);

	if (s->front_is != VHD_OK || s->end_is != VHD_OK ||
	    memcmp(s->front, s->end, VHD_FOOTER_LEN) == 0)
		return;
	differences(s, f.found);
	EXPECTED(&f, "equal copies; the one at %s is believed",
		 memcmp(c->footer_raw, s->end, VHD_FOOTER_LEN) == 0 ? "the end" : "offset 0");
	f.mendable = c->mend.footers = true;
	fault_report(c, &f);
}

static void report_none(struct check *c, const struct ends *s)
{
	bool poisoned = s->front_is == VHD_POISONED || s->end_is == VHD_POISONED;
	struct img_fault f = fault_make(c, poisoned ? F_FOOTER_POISONED : F_FOOTER_NONE,
					s->end_is == VHD_POISONED ? s->end_off : 0);

	FOUND(&f, "%s, %s", vhd_verdict_str(s->front_is), vhd_verdict_str(s->end_is));
	if (memcmp(s->front, "vhdxfile", 8) == 0)
		FOUND(&f, "a VHDX file, which is not supported");
	else if (poisoned)
		f.found[0] = '\0';
	else
		EXPECTED(&f, "a footer at offset 0 or at the end");
	fault_report(c, &f);
}

int check_footers(struct check *c, struct img_err *err)
{
	struct ends s;
	bool mendable = false;

	if (read_ends(c, &s, err) < 0)
		return -1;
	if (s.front_is != VHD_POISONED && s.end_is != VHD_POISONED &&
	    pick(c, &s, &mendable, err) < 0)
		return -1;
	if (!c->has_footer) {
		report_none(c, &s);
		return 0;
	}
	c->doubtful = !mendable;
	c->end_off = s.end_off;
	c->has_end = s.end_is != VHD_NO_COOKIE;
	report_placing(c, &s);
	report_copy(c, s.end_is, s.end, s.end_off, true, mendable);
	if (c->footer.type != VHD_FIXED) {
		report_copy(c, s.front_is, s.front, 0, false, mendable);
		report_difference(c, &s);
		check_area_add(c, 0, VHD_FOOTER_LEN, VHD_FOOTER_LEN, "the front footer");
	}
	if (!c->has_end)
		c->mend.move_end = c->mend.footers;
	return 0;
}

static void check_features(struct check *c)
{
	struct img_fault f = fault_make(c, F_FOOTER_FEATURES, 8);

	if (c->footer.features & 2)
		return;
	FOUND(&f, "0x%" PRIx32, c->footer.features);
	EXPECTED(&f, "0x%" PRIx32, c->footer.features | 2);
	f.mendable = c->mend.footers = true;
	c->footer.features |= 2;
	be32_put(c->footer_raw + 8, c->footer.features);
	fault_report(c, &f);
}

static void check_odd_bytes(struct check *c)
{
	static const uint8_t none[16];
	struct img_fault f;

	if (!bytes_are_zero(c->footer_raw + 86, VHD_FOOTER_LEN - 86)) {
		f = fault_make(c, F_FOOTER_RESERVED, c->end_off + 86);
		fault_report(c, &f);
	}
	if (c->footer.saved) {
		f = fault_make(c, F_FOOTER_SAVED_STATE, c->end_off + 84);
		FOUND(&f, "%u", c->footer.saved);
		EXPECTED(&f, "0");
		fault_report(c, &f);
	}
	if (memcmp(c->footer.uuid, none, 16) == 0) {
		f = fault_make(c, F_FOOTER_UUID_NONE, c->end_off + 68);
		fault_report(c, &f);
	}
}

static void check_fixed(struct check *c)
{
	struct img_fault f;

	if (c->footer.data_off != ~0ull) {
		f = fault_make(c, F_FOOTER_DATA_OFFSET, c->end_off + 16);
		FOUND(&f, "0x%" PRIx64, c->footer.data_off);
		EXPECTED(&f, "0xffffffffffffffff");
		f.mendable = c->mend.footers = true;
		be64_put(c->footer_raw + 16, ~0ull);
		fault_report(c, &f);
	}
	if (c->footer.size == c->end_off)
		return;
	f = fault_make(c, c->footer.size > c->end_off ? F_FIXED_CUT : F_FIXED_SLACK,
		       u64_min(c->footer.size, c->end_off));
	FOUND(&f, "%" PRIu64 " bytes of data", c->end_off);
	EXPECTED(&f, "%" PRIu64, c->footer.size);
	if (c->footer.size > c->end_off)
		LOSS(&f, "disk bytes %" PRIu64 "-%" PRIu64, c->end_off, c->footer.size - 1);
	fault_report(c, &f);
}

int check_size(struct check *c, struct img_err *err)
{
	struct img_fault f;

	(void)err;
	if (!c->has_footer)
		return 0;
	check_features(c);
	check_odd_bytes(c);
	if (c->footer.size % SECTOR) {
		f = fault_make(c, F_SIZE_NOT_SECTORS, c->end_off + 48);
		FOUND(&f, "%" PRIu64, c->footer.size);
		EXPECTED(&f, "a multiple of 512");
		fault_report(c, &f);
		c->footer.size -= c->footer.size % SECTOR;
	}
	if (c->footer.size > IMG_VHD_MAX_SIZE) {
		f = fault_make(c, F_SIZE_TOO_BIG, c->end_off + 48);
		FOUND(&f, "%" PRIu64, c->footer.size);
		EXPECTED(&f, "at most %llu", IMG_VHD_MAX_SIZE);
		fault_report(c, &f);
	}
	if (c->footer.original_size != c->footer.size) {
		f = fault_make(c, F_SIZE_ORIGINAL_DIFFERS, c->end_off + 40);
		FOUND(&f, "made with %" PRIu64, c->footer.original_size);
		EXPECTED(&f, "%" PRIu64, c->footer.size);
		fault_report(c, &f);
	}
	if (c->footer.type == VHD_FIXED)
		check_fixed(c);
	return 0;
}

/* A geometry is informational; what it may be is what some program makes of the size (§4, §6). */
int check_geometry(struct check *c, struct img_err *err)
{
	static const char *const sized[] = {"win ", "qem2", "d2v ", "CTXS", "tap"};
	const struct vhd_footer *t = &c->footer;
	uint64_t product = (uint64_t)t->cylinders * t->heads * t->sectors * SECTOR;
	bool max = t->cylinders == 65535 && t->heads == 16 && t->sectors == 255, trusted = max;
	/* While the size is in doubt, so is the geometry. */
	bool sure = t->type == VHD_FIXED ? t->size == c->end_off : c->has_header;
	struct img_fault f;
	uint16_t cyl;
	uint8_t heads, sectors;

	(void)err;
	if (!c->has_footer || !sure)
		return 0;
	vhd_geometry(t->size, &cyl, &heads, &sectors);
	for (size_t i = 0; i < sizeof(sized) / sizeof(sized[0]); i++)
		trusted |= memcmp(t->creator, sized[i], strlen(sized[i])) == 0;
	if (!max && (cyl != t->cylinders || heads != t->heads || sectors != t->sectors)) {
		f = fault_make(c, F_GEOMETRY_WRONG, c->end_off + 56);
		FOUND(&f, "%u/%u/%u", t->cylinders, t->heads, t->sectors);
		EXPECTED(&f, "%u/%u/%u", cyl, heads, sectors);
		f.mendable = c->mend.footers = true;
		be16_put(c->footer_raw + 56, cyl);
		c->footer_raw[58] = heads;
		c->footer_raw[59] = sectors;
	} else if (!trusted && product != t->size) {
		f = fault_make(c, F_GEOMETRY_SIZE_DISPUTE, c->end_off + 56);
		FOUND(&f, "%" PRIu64 " bytes by the geometry", product);
		EXPECTED(&f, "%" PRIu64, t->size);
	} else {
		return 0;
	}
	fault_report(c, &f);
	return 0;
}
