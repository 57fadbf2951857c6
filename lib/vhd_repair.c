/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Mending what the checks have proven. All that will be written is known before the first
 * write; then the old bytes are saved (undo.h), and from there to the end the disk opens as it
 * was before. So the order of the writes does not matter, and a repair that was cut short
 * starts from the beginning.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "undo.h"
#include "vhd_check.h"

#define MERGE_GAP 4096u /* ranges closer than this are saved as one */

/* --- the parent's names --------------------------------------------------------------------- */

static unsigned free_slot(const struct vhd_header *h)
{
	unsigned slot = 0;

	while (slot < VHD_LOCATORS && h->loc[slot].code != VHD_NONE)
		slot++;
	return slot;
}

/*
 * A locator behind all that the file holds: what its old place is worth is just what is in
 * doubt.
 */
static int mend_locator(struct check *c, uint32_t code, const uint8_t *text, size_t len,
			struct img_err *err)
{
	uint64_t off = u64_round_up(c->mend.end, SECTOR), room = u64_round_up(len, SECTOR);
	unsigned slot = free_slot(&c->header);
	uint8_t *buf = slot < VHD_LOCATORS ? calloc(1, room) : NULL;

	if (!buf)
		return slot < VHD_LOCATORS ? img_err_errno(err, ENOMEM, "%s", c->file.path) : 0;
	memcpy(buf, text, len);
	c->header.loc[slot] = (struct vhd_locator){code, (uint32_t)room, (uint32_t)len, off};
	c->mend.end = off + room;
	return mend_bytes(c, off, buf, room, err);
}

/*
 * What we write anew, and rubbish. *URL: XenServer, which reads MacX first, has written the
 * names.
 */
static void drop_locators(struct check *c, bool *url)
{
	*url = false;
	for (int i = 0; i < VHD_LOCATORS; i++) {
		struct vhd_locator *loc = &c->header.loc[i];

		*url |= loc->code == VHD_MACX;
		if (check_locator_known(loc->code) || loc->len == 0 || loc->off > c->file_size ||
		    loc->len > c->file_size - loc->off)
			*loc = (struct vhd_locator){0};
	}
}

static int mend_link(struct check *c, struct img_err *err)
{
	uint8_t name[VHD_NAME_UNITS * 2], *rel = NULL, *abs = NULL;
	size_t rel_len, abs_len;
	char *url = NULL;
	bool with_url;
	int rc = -1;

	/* A name that a VHD cannot hold is no reason not to mend the rest. */
	if (vhd_parent_names(c->file.real, c->link.path, &rel, &rel_len, &abs, &abs_len, name,
			     NULL) < 0)
		return 0;
	memcpy(c->header.parent_name, name, sizeof(name));
	drop_locators(c, &with_url);
	if (with_url && !(url = vhd_parent_url(c->file.real, c->link.path)))
		img_err_errno(err, ENOMEM, "%s", c->file.path);
	else if ((!url || mend_locator(c, VHD_MACX, (uint8_t *)url, strlen(url), err) == 0) &&
		 mend_locator(c, VHD_W2RU, rel, rel_len, err) == 0 &&
		 mend_locator(c, VHD_W2KU, abs, abs_len, err) == 0)
		rc = 0;
	c->mend.header = c->mend.footers = c->mend.move_end = true;
	free(url);
	free(rel);
	free(abs);
	return rc;
}

/* --- where everything goes ------------------------------------------------------------------ */

static int place_copies(struct check *c, struct img_err *err)
{
	struct mend *m = &c->mend;

	for (size_t i = 0; i < m->ncopies; i++) {
		uint64_t data = u64_round_up(m->end + c->bitmap_len, 4096);

		m->copies[i].to = data - c->bitmap_len;
		m->end = data + c->header.block_size;
		if (m->end / SECTOR >= UINT32_MAX)
			return img_err_set(err, IMG_CANTCREAT,
					   "%s: no room for another copy of %zu blocks within 2 "
					   "TiB; nothing was changed",
					   c->file.path, m->ncopies);
		if (mend_entry(c, m->copies[i].block, 1, (uint32_t)(m->copies[i].to / SECTOR),
			       err) < 0)
			return -1;
	}
	return 0;
}

static bool is_fixed(const struct check *c)
{
	return c->footer.type == VHD_FIXED;
}

/* What was the end footer, or its remains, is not carried along as data. */
static void place_footer(struct check *c)
{
	struct mend *m = &c->mend;

	if (is_fixed(c) || !m->move_end)
		m->footer_off = c->end_off;
	else
		m->footer_off = vhd_footer_place(m->end);
}

static int plan(struct check *c, struct img_err *err)
{
	/* Without the BAT nobody knows where the file ends. */
	if (!is_fixed(c) && !c->has_bat && c->mend.move_end) {
		c->mend.move_end = false;
		c->mend.front_only = true;
		/* The front copy may be what all the rest was read from. */
		c->mend.footers &= c->front_bad;
	}
	c->mend.link &= c->has_bat;
	if (c->mend.link && mend_link(c, err) < 0)
		return -1;
	if (place_copies(c, err) < 0)
		return -1;
	place_footer(c);
	if (c->mend.footers)
		vhd_footer_seal(c->footer_raw);
	if (c->mend.header)
		vhd_header_patch(&c->header, c->header_raw);
	return 0;
}

static bool nothing_to_do(const struct mend *m)
{
	return !m->footers && !m->header && !m->nentries && !m->ncopies && !m->nbytes;
}

static int check_space_for(struct check *c, struct img_err *err)
{
	struct statvfs fs;
	uint64_t need = c->mend.ncopies * c->stride + (2u << 20);

	if (fstatvfs(c->file.fd, &fs) < 0 || need <= (uint64_t)fs.f_bavail * fs.f_frsize)
		return 0;
	return img_err_set(err, IMG_CANTCREAT,
			   "%s: the repair may need %" PRIu64 " bytes, the file system has %" PRIu64
			   " free; nothing was changed",
			   c->file.path, need, (uint64_t)fs.f_bavail * fs.f_frsize);
}

/* --- the old bytes -------------------------------------------------------------------------- */

struct ranges {
	struct undo_range *r;
	size_t n;
};

static void add_range(struct ranges *s, uint64_t off, uint64_t len)
{
	if (len)
		s->r[s->n++] = (struct undo_range){off, len};
}

static int cmp_range(const void *a, const void *b)
{
	const struct undo_range *x = a, *y = b;

	return (x->off > y->off) - (x->off < y->off);
}

static void merge_ranges(struct ranges *s)
{
	size_t n = 0;

	qsort(s->r, s->n, sizeof(s->r[0]), cmp_range);
	for (size_t i = 0; i < s->n; i++) {
		uint64_t end = s->r[i].off + s->r[i].len;

		if (n && s->r[i].off <= s->r[n - 1].off + s->r[n - 1].len + MERGE_GAP)
			s->r[n - 1].len =
				u64_max(s->r[n - 1].off + s->r[n - 1].len, end) - s->r[n - 1].off;
		else
			s->r[n++] = s->r[i];
	}
	s->n = n;
}

/* Everything that apply() writes. */
static int collect(struct check *c, struct ranges *s, struct img_err *err)
{
	const struct mend *m = &c->mend;

	*s = (struct ranges){calloc(m->nentries + m->ncopies + m->nbytes + 8, sizeof(s->r[0])), 0};
	if (!s->r)
		return img_err_errno(err, ENOMEM, "%s", c->file.path);
	if (m->footers && !is_fixed(c))
		add_range(s, 0, VHD_FOOTER_LEN);
	if (m->footers && !m->front_only)
		add_range(s, u64_min(m->footer_off, c->end_off), INT64_MAX - m->footer_off);
	if (m->header)
		add_range(s, c->footer.data_off, VHD_HEADER_LEN);
	if (m->move_end && m->end < m->footer_off)
		add_range(s, m->end, m->footer_off - m->end);
	if (m->cut_to > m->cut_from)
		add_range(s, m->cut_from, m->cut_to - m->cut_from);
	for (size_t i = 0; i < m->nentries; i++)
		add_range(s, c->header.bat_off + (uint64_t)m->entries[i].block * 4,
			  (uint64_t)m->entries[i].n * 4);
	for (size_t i = 0; i < m->ncopies; i++)
		add_range(s, m->copies[i].to, c->stride);
	for (size_t i = 0; i < m->nbytes; i++)
		add_range(s, m->bytes[i].off, m->bytes[i].len);
	for (size_t i = 0; i < s->n; i++)
		if (s->r[i].len > INT64_MAX - s->r[i].off)
			s->r[i].len = INT64_MAX - s->r[i].off;
	merge_ranges(s);
	for (size_t i = 0; i < s->n; i++)
		c->res->changed += s->r[i].off < c->file_size
					   ? u64_min(s->r[i].len, c->file_size - s->r[i].off)
					   : 0;
	return 0;
}

/* --- the new ones --------------------------------------------------------------------------- */

static int put_entries(struct check *c, const struct mend_entry *e, struct img_err *err)
{
	uint8_t buf[4096];

	for (uint32_t done = 0; done < e->n;) {
		uint32_t n = (uint32_t)u64_min(e->n - done, sizeof(buf) / 4);

		for (uint32_t i = 0; i < n; i++)
			be32_put(buf + 4 * (size_t)i, e->entry);
		if (io_write(&c->file, buf, 4 * (size_t)n,
			     c->header.bat_off + ((uint64_t)e->block + done) * 4, err) < 0)
			return -1;
		done += n;
	}
	return 0;
}

/* Zeros up to the new footer, in what did not belong to anything; then the footers. */
static int put_footers(struct check *c, struct img_err *err)
{
	const struct mend *m = &c->mend;

	if (!m->footers)
		return 0;
	if (!is_fixed(c) && m->move_end && m->end < m->footer_off &&
	    io_zero(&c->file, m->end, m->footer_off - m->end, err) < 0)
		return -1;
	if (!is_fixed(c) && io_write(&c->file, c->footer_raw, VHD_FOOTER_LEN, 0, err) < 0)
		return -1;
	if (m->front_only)
		return 0;
	if (io_write(&c->file, c->footer_raw, VHD_FOOTER_LEN, m->footer_off, err) < 0)
		return -1;
	return c->file.block_device ? 0
				    : io_truncate(&c->file, m->footer_off + VHD_FOOTER_LEN, err);
}

static int apply(struct check *c, struct img_err *err)
{
	const struct mend *m = &c->mend;

	/* First what is read below, then what is copied from it. */
	if (m->cut_to > m->cut_from &&
	    io_zero(&c->file, m->cut_from, m->cut_to - m->cut_from, err) < 0)
		return -1;
	for (size_t i = 0; i < m->ncopies; i++)
		if (io_copy(&c->file, m->copies[i].from, &c->file, m->copies[i].to, c->stride,
			    err) < 0)
			return -1;
	for (size_t i = 0; i < m->nentries; i++)
		if (put_entries(c, &m->entries[i], err) < 0)
			return -1;
	for (size_t i = 0; i < m->nbytes; i++)
		if (io_write(&c->file, m->bytes[i].buf, m->bytes[i].len, m->bytes[i].off, err) < 0)
			return -1;
	if (m->header &&
	    io_write(&c->file, c->header_raw, VHD_HEADER_LEN, c->footer.data_off, err) < 0)
		return -1;
	return put_footers(c, err);
}

static int execute(struct check *c, struct ranges *s, struct img_err *err)
{
	if (check_space_for(c, err) < 0 || undo_store(&c->file, UNDO_KEEP, s->r, s->n, err) < 0)
		return -1;
	if (apply(c, err) < 0 || io_sync(&c->file, err) < 0) {
		undo_apply(&c->file, NULL);
		return -1;
	}
	if (undo_finish(&c->file, err) < 0 ||
	    undo_newest(c->file.real, c->res->undo, sizeof(c->res->undo), err) < 0)
		return -1;
	c->res->repaired = true;
	return 0;
}

/* --- from outside --------------------------------------------------------------------------- */

/* What arrives for the disk is for the one that it is now. */
static int not_receiving(const char *path, struct img_err *err)
{
	enum img_receiving state;

	if (img_receive_state(path, &state, err) < 0)
		return -1;
	return state != IMG_RECEIVING
		       ? 0
		       : img_err_set(
				 err, IMG_AGAIN,
				 "%s: a stream is being received onto it; finish that first, or vhd-recv --abort %s",
				 path, path);
}

/* What an earlier run left half done is put back first. */
static int settle(struct check *c, const struct img_check *opts, struct img_err *err)
{
	bool pending;

	struct img_fault f = fault_make(c, F_ROLLBACK_PENDING, NOWHERE);

	if (opts->dry_run)
		return 0;
	if (not_receiving(c->file.path, err) < 0)
		return -1;
	if (undo_pending(c->file.real, &pending, err) < 0)
		return -1;
	if (!pending)
		return 0;
	f.mendable = true;
	fault_report(c, &f);
	return undo_apply(&c->file, err);
}

static int mend_file(struct check *c, const struct img_check *opts, struct img_err *err)
{
	struct ranges s = {0};
	int rc = -1;

	if (c->doubtful)
		return 0;
	if (plan(c, err) < 0)
		return -1;
	if (nothing_to_do(&c->mend))
		return 0;
	if (collect(c, &s, err) == 0)
		rc = opts->dry_run ? 0 : execute(c, &s, err);
	free(s.r);
	return rc;
}

/*
 * What the file itself had was reported before it was mended; of its parents nobody has heard
 * yet.
 */
struct filter {
	const struct img_check *opts;
	const char *path;
};

static void parents_only(void *ctx, const struct img_fault *f)
{
	struct filter *x = ctx;

	if (strcmp(f->path, x->path) != 0)
		x->opts->fault(x->opts->ctx, f);
}

static int filter_progress(void *ctx, uint64_t done, uint64_t planned)
{
	struct filter *x = ctx;

	return x->opts->progress(x->opts->ctx, done, planned);
}

static int check_again(const char *path, const struct img_check *opts,
		       struct img_check_result *after, struct img_err *err)
{
	struct filter x = {opts, path};
	struct img_check o = *opts;

	o.fault = parents_only;
	o.progress = opts->progress ? filter_progress : NULL;
	o.ctx = &x;
	return img_check(path, &o, after, err);
}

int img_repair(const char *path, const struct img_check *opts, struct img_check_result *res,
	       struct img_check_result *after, struct img_err *err)
{
	struct img_check o = *opts;
	struct check c = {.opts = &o, .res = res};
	int rc = -1;

	memset(res, 0, sizeof(*res));
	memset(after, 0, sizeof(*after));
	o.no_bitmaps = false; /* the batmap is made from them, and data behind the last block is not
				 cut off */
	io_init(&c.file);
	if (io_open(&c.file, path, !opts->dry_run, err) == 0 &&
	    io_lock(&c.file, opts->dry_run ? IO_LOCK_SHARED : IO_LOCK_EXCLUSIVE, err) == 0 &&
	    settle(&c, opts, err) == 0 && check_run(&c, err) == 0 && mend_file(&c, opts, err) == 0)
		rc = 0;
	res->layers = 1;
	check_free(&c);
	return rc < 0 || opts->dry_run ? rc : check_again(path, opts, after, err);
}

int img_undo(const char *path, bool force, struct img_err *err)
{
	struct io_file f;
	int rc;

	if (io_open(&f, path, true, err) < 0)
		return -1;
	rc = io_lock(&f, IO_LOCK_EXCLUSIVE, err);
	if (rc == 0)
		rc = not_receiving(path, err);
	if (rc == 0)
		rc = undo_revert(&f, force, err);
	io_close(&f);
	return rc;
}
