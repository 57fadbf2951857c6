/* SPDX-License-Identifier: BSD-2-Clause */
/* Bytes of the file that nothing owns, and what lies in them. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhd_check.h"

#define BUF_LEN (256u << 10)
#define PAGE 4096u

/* Where in the range there is anything but zeros, in whole sectors; FIRST is END when nowhere. */
struct scan {
	uint64_t first, last; /* LAST is behind it */
	bool first_only;
};

static void scan_buf(struct scan *s, const uint8_t *buf, uint64_t off, size_t n)
{
	for (size_t i = 0; i < n; i += SECTOR) {
		size_t len = n - i < SECTOR ? n - i : SECTOR;

		if (bytes_are_zero(buf + i, len))
			continue;
		s->first = u64_min(s->first, off + i);
		s->last = off + i + len;
	}
}

static int scan_data(struct check *c, uint64_t off, uint64_t end, struct scan *s,
		     struct img_err *err)
{
	uint8_t *buf = malloc(BUF_LEN);
	int rc = -1;

	s->first = end;
	s->last = off;
	if (!buf)
		return img_err_errno(err, ENOMEM, "%s", c->file.path);
	while (off < end && !(s->first_only && s->first < end)) {
		uint64_t n = end - off;
		bool hole;

		if (io_extent(&c->file, off, &n, &hole, err) < 0)
			goto out;
		if (!hole) {
			n = u64_min(n, BUF_LEN);
			if (io_read(&c->file, buf, (size_t)n, off, err) < 0)
				goto out;
			if (!bytes_are_zero(buf, (size_t)n))
				scan_buf(s, buf, off, (size_t)n);
		}
		off += n;
	}
	rc = 0;
out:
	free(buf);
	return rc;
}

int check_zero(struct check *c, uint64_t off, uint64_t len, bool *zero, struct img_err *err)
{
	struct scan s = {.first_only = true};

	if (scan_data(c, off, off + len, &s, err) < 0)
		return -1;
	*zero = s.first == off + len;
	return 0;
}

/* Something in the gap that could have been a block: a bitmap that is not empty, before data. */
static int report_orphan(struct check *c, uint64_t at, bool *is, struct img_err *err)
{
	struct scan data = {.first_only = true};
	uint8_t bitmap[SECTOR];
	struct img_fault f;
	unsigned bits = 0;

	*is = false;
	if (io_read(&c->file, bitmap, sizeof(bitmap), at, err) < 0)
		return -1;
	for (size_t i = 0; i < sizeof(bitmap); i++)
		bits += (unsigned)__builtin_popcount(bitmap[i]);
	if (bits == 0)
		return 0;
	if (scan_data(c, at + c->bitmap_len, at + c->stride, &data, err) < 0)
		return -1;
	if (data.first == at + c->stride)
		return 0;
	*is = true;
	f = fault_make(c, F_ORPHAN_BLOCK, at);
	FOUND(&f, "a bitmap with %u bits%s and data from %" PRIu64 " on", bits,
	      c->bitmap_len > SECTOR ? " or more" : "", data.first);
	fault_report(c, &f);
	return 0;
}

/*
 * A block could begin at the start of the gap, or where its data is aligned. *END: of the last
 * one.
 */
static int find_orphans(struct check *c, uint64_t from, uint64_t to, uint64_t *end,
			struct img_err *err)
{
	bool is;

	while (to - from >= c->stride) {
		uint64_t aligned = u64_round_up(from + c->bitmap_len, PAGE) - c->bitmap_len;

		if (report_orphan(c, from, &is, err) < 0)
			return -1;
		if (!is && aligned != from && to - aligned >= c->stride &&
		    report_orphan(c, from = aligned, &is, err) < 0)
			return -1;
		from = u64_min(to, from + c->stride);
		*end = is ? from : *end;
	}
	return 0;
}

static int report_gap(struct check *c, uint64_t from, uint64_t to, bool trailing,
		      struct img_err *err)
{
	struct img_fault f = fault_make(c, trailing ? F_SPACE_TRAILING : F_SPACE_LEAKED, from);
	struct scan data = {0};
	uint64_t kept = from;

	c->res->leaked += to - from;
	if (!c->opts->no_bitmaps && find_orphans(c, from, to, &kept, err) < 0)
		return -1;
	if (!trailing && to - from >= c->stride)
		f.severity = IMG_WARNING;
	FOUND(&f, "%" PRIu64 " bytes up to %" PRIu64, to - from, to);
	if (trailing) {
		/* Data that may be a lost block is not cut off; unless it is looked for nobody
		 * knows. */
		data.last = from;
		if (!c->opts->no_bitmaps && scan_data(c, from, to, &data, err) < 0)
			return -1;
		kept = u64_max(kept, data.last);
		f.mendable = !c->opts->no_bitmaps && to >= u64_round_up(kept, PAGE) + GAP_MIN;
		EXPECTED(&f, "the footer at %" PRIu64, vhd_footer_place(from));
		if (f.mendable)
			c->mend.footers = c->mend.move_end = true;
		c->mend.end = kept;
	}
	fault_report(c, &f);
	return 0;
}

static int cmp_area(const void *a, const void *b)
{
	const struct area *x = a, *y = b;

	return (x->off > y->off) - (x->off < y->off);
}

int check_space(struct check *c, struct img_err *err)
{
	struct area areas[sizeof(c->areas) / sizeof(c->areas[0])];
	uint64_t end = 0;
	unsigned a = 0;
	size_t b = 0;

	if (!c->has_bat)
		return 0;
	memcpy(areas, c->areas, sizeof(areas));
	qsort(areas, c->nareas, sizeof(areas[0]), cmp_area);
	while (a < c->nareas || b < c->nplaced) {
		bool block = a == c->nareas ||
			     (b < c->nplaced && placed_off(c->placed[b]) < areas[a].off);
		uint64_t off = block ? placed_off(c->placed[b]) : areas[a].off;
		uint64_t next = block ? off + c->stride : areas[a].owned;

		if (off >= end + GAP_MIN && report_gap(c, end, off, false, err) < 0)
			return -1;
		end = u64_max(end, next);
		a += !block;
		b += block;
	}
	c->mend.end = end;
	if (c->end_off >= end + GAP_MIN)
		return report_gap(c, end, c->end_off, true, err);
	return 0;
}
