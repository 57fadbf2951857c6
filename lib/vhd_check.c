/* SPDX-License-Identifier: BSD-2-Clause */
/* Checking: the order of the checks, and the way up a chain. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "vhd_check.h"

static int (*const checks[])(struct check *c, struct img_err *err) = {
	check_leftovers, check_footers, check_size,  check_header,  check_geometry, check_locators,
	check_batmap,	 check_bat,	check_space, check_bitmaps, check_link,
};

/* What it takes to find the next layer. */
static int (*const steps[])(struct check *c, struct img_err *err) = {check_footers, check_header};

int check_run(struct check *c, struct img_err *err)
{
	size_t n = c->quiet ? sizeof(steps) / sizeof(steps[0]) : sizeof(checks) / sizeof(checks[0]);

	if (io_size(&c->file, &c->file_size, err) < 0)
		return -1;
	c->end_off = c->file_size;
	for (size_t i = 0; i < n; i++)
		if ((c->quiet ? steps : checks)[i](c, err) < 0)
			return -1;
	fault_release(c);
	if (c->quiet && c->has_header && c->footer.type == VHD_DIFFERENCING)
		return check_find_parent(c, err);
	return 0;
}

void check_free(struct check *c)
{
	for (size_t i = 0; i < c->mend.nbytes; i++)
		free(c->mend.bytes[i].buf);
	free(c->mend.entries);
	free(c->mend.copies);
	free(c->placed);
	free(c->batmap);
	free(c->full);
	img_parent_free(&c->link);
	io_close(&c->file);
}

/* --- mends ---------------------------------------------------------------------------------- */

static int grow(void *array, size_t n, size_t size, struct img_err *err)
{
	void **p = array, *bigger;

	/* Full at each power of two. */
	if (n & (n - 1))
		return 0;
	bigger = reallocarray(*p, n ? 2 * n : 1, size);
	if (!bigger)
		return img_err_errno(err, ENOMEM, "too many faults to mend");
	*p = bigger;
	return 0;
}

int mend_entry(struct check *c, uint32_t block, uint32_t n, uint32_t entry, struct img_err *err)
{
	struct mend *m = &c->mend;
	struct mend_entry *last = m->nentries ? &m->entries[m->nentries - 1] : NULL;

	if (last && last->entry == entry && last->block + last->n == block) {
		last->n += n;
		return 0;
	}
	if (grow(&m->entries, m->nentries, sizeof(*m->entries), err) < 0)
		return -1;
	m->entries[m->nentries++] = (struct mend_entry){block, n, entry};
	return 0;
}

int mend_copy(struct check *c, uint32_t block, uint64_t from, struct img_err *err)
{
	struct mend *m = &c->mend;

	if (grow(&m->copies, m->ncopies, sizeof(*m->copies), err) < 0)
		return -1;
	m->copies[m->ncopies++] = (struct mend_copy){.block = block, .from = from};
	m->footers = m->move_end = true;
	return 0;
}

int mend_bytes(struct check *c, uint64_t off, uint8_t *buf, size_t len, struct img_err *err)
{
	struct mend *m = &c->mend;

	if (m->nbytes == sizeof(m->bytes) / sizeof(m->bytes[0])) {
		free(buf);
		return img_err_set(err, IMG_BUG, "%s: too many pieces to mend", c->file.path);
	}
	m->bytes[m->nbytes++] = (struct mend_bytes){off, buf, len};
	return 0;
}

/* --- the chain ------------------------------------------------------------------------------ */

struct seen {
	dev_t dev;
	ino_t ino;
};

static bool seen_before(struct seen *seen, unsigned n, const struct check *c)
{
	struct stat st;

	if (fstat(c->file.fd, &st) < 0)
		return false;
	for (unsigned i = 0; i < n; i++)
		if (seen[i].dev == st.st_dev && seen[i].ino == st.st_ino)
			return true;
	seen[n] = (struct seen){st.st_dev, st.st_ino};
	return false;
}

static bool is_raw_parent(const struct check *c)
{
	return bytes_are_zero(c->header.parent_uuid, sizeof(c->header.parent_uuid));
}

static const char *parent_path(const struct check *c)
{
	return c->link.path			  ? c->link.path
	       : c->opts->chain && !c->link.wrong ? c->link.damaged
						  : NULL;
}

static int check_parent(struct check *l, const char *path, const struct img_open *o,
			struct img_err *err)
{
	io_init(&l->file);
	if (io_open(&l->file, path, false, err) < 0)
		return -1;
	return l->quiet || o->unlocked ? 0 : io_lock(&l->file, IO_LOCK_SHARED, err);
}

/* Without --chain the layers only have to lead on: where one cannot be read, the way ends. */
int check_parents(struct check *c, struct img_err *err)
{
	struct seen seen[IMG_MAX_LAYERS + 1];
	struct img_check_result dummy = {0};
	struct check last = {0};
	const struct check *from = c;
	struct img_err e = {0};
	unsigned n = 1;
	int rc = 0;

	io_init(&last.file);
	(void)seen_before(seen, 0, c);
	c->res->layers++;
	while (rc == 0 && from->has_header && from->footer.type == VHD_DIFFERENCING &&
	       parent_path(from)) {
		struct check l = {.opts = c->opts,
				  .res = c->opts->chain ? c->res : &dummy,
				  .quiet = !c->opts->chain,
				  .child_uuid = from->footer.uuid};

		rc = check_parent(&l, parent_path(from), &c->opts->open, &e);
		if (rc == 0 && seen_before(seen, n, &l)) {
			check_report_loop(c, l.file.path);
			rc = 1;
		} else if (rc == 0 && ++n > IMG_MAX_LAYERS) {
			check_report_depth(c, IMG_MAX_LAYERS);
			rc = 1;
		} else if (rc == 0) {
			c->res->layers += c->opts->chain;
			rc = is_raw_parent(from) ? 0 : check_run(&l, &e);
		}
		check_free(&last);
		last = l;
		from = &last;
	}
	check_free(&last);
	return rc < 0 && c->opts->chain ? img_err_set(err, e.code, "%s", e.msg) : 0;
}

int img_check(const char *path, const struct img_check *opts, struct img_check_result *res,
	      struct img_err *err)
{
	struct check c = {.opts = opts, .res = res};
	int rc = -1;

	memset(res, 0, sizeof(*res));
	io_init(&c.file);
	if (io_open(&c.file, path, false, err) == 0 &&
	    (opts->open.unlocked || io_lock(&c.file, IO_LOCK_SHARED, err) == 0) &&
	    check_run(&c, err) == 0)
		rc = check_parents(&c, err);
	check_free(&c);
	return rc;
}
