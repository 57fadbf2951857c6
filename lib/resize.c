/* SPDX-License-Identifier: BSD-2-Clause */
/* Whether a disk may have another size: children, saved machines, content behind the new end. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "img_impl.h"

#define BUF_LEN (1u << 20)

static int check_size(const char *path, uint64_t size, struct img_err *err)
{
	if (size == 0 || size % SECTOR)
		return img_err_set(err, IMG_USAGE,
				   "%s: the size must be a multiple of 512, not %" PRIu64, path,
				   size);
	if (size > IMG_VHD_MAX_SIZE)
		return img_err_set(err, IMG_USAGE,
				   "%s: %" PRIu64 " bytes: a VHD holds at most 2040 GiB (%llu)",
				   path, size, IMG_VHD_MAX_SIZE);
	return 0;
}

static int note_child(void *ctx, const char *path, struct img_err *err)
{
	const struct img *l = ctx;

	return img_err_set(
		err, IMG_PREFLIGHT,
		"%s: %s is its child and would have another size; resized only with --force",
		l->file.path, path);
}

static int check_dependants(struct img_chain *c, const struct img_open *opts, struct img_err *err)
{
	struct img *l = c->layer[0];

	if (l->info.saved_state)
		return img_err_set(err, IMG_PREFLIGHT,
				   "%s: a saved state of a virtual machine depends on it (footer "
				   "byte 84); resized only with --force",
				   l->file.path);
	return img_kin_each(c, l, opts, note_child, l, err);
}

/* A merge that was cut short goes on from the sizes that it began with. */
static int check_merge(struct img_chain *c, struct img_err *err)
{
	struct img_marker m;

	for (unsigned i = 0; i < c->n; i++) {
		if (img_marker_read(c->layer[i]->file.real, &m, err) < 0)
			return -1;
		if (m.state != IMG_MARKER_NONE)
			return img_err_set(
				err, IMG_AGAIN,
				"%s: a merge was cut short; finish it first with: vhd-merge %s",
				c->layer[i]->file.path, m.leaf);
	}
	return 0;
}

struct tail {
	struct img_chain *c;
	uint64_t size; /* where it begins */
	int (*progress)(void *, uint64_t, uint64_t);
	void *ctx;
};

static int found(const struct tail *t, uint64_t off, const uint8_t *buf, struct img_err *err)
{
	while (*buf == 0) {
		buf++;
		off++;
	}
	return img_err_set(err, IMG_PREFLIGHT,
			   "%s: there is data at offset %" PRIu64 ", behind the new end at %" PRIu64
			   "; nothing was changed",
			   t->c->layer[0]->file.path, off, t->size);
}

static int check_run(void *ctx, const struct img_run *run, uint8_t *buf, struct img_err *err)
{
	const struct tail *t = ctx;

	if (buf && !bytes_are_zero(buf, run->len))
		return found(t, run->off, buf, err);
	if (t->progress && t->progress(t->ctx, run->off + run->len - t->size, t->c->size - t->size))
		return img_err_set(err, IMG_AGAIN, "%s: interrupted; nothing was changed",
				   t->c->layer[0]->file.path);
	return 0;
}

/* Everything behind the new end must read as zeros, through all layers. */
static int check_tail(struct img_chain *c, uint64_t size,
		      int (*progress)(void *, uint64_t, uint64_t), void *ctx, struct img_err *err)
{
	struct tail tail = {.c = c, .size = size, .progress = progress, .ctx = ctx};
	struct img_walk w = {.off = size,
			     .end = c->size,
			     .base = c->n,
			     .unit = BUF_LEN,
			     .buf = aligned_alloc(4096, BUF_LEN),
			     .visit = check_run,
			     .ctx = &tail};
	int rc = w.buf ? img_walk(c, &w, err)
		       : img_err_errno(err, ENOMEM, "%s", c->layer[0]->file.path);

	free(w.buf);
	return rc;
}

int img_resize(const char *path, const struct img_open *opts, struct img_resize *r,
	       int (*progress)(void *ctx, uint64_t done, uint64_t planned), void *ctx,
	       struct img_err *err)
{
	struct img_open o = *opts;
	struct img_chain *c;
	struct img *l;
	int rc = -1;

	if (check_size(path, r->size, err) < 0)
		return -1;
	o.writable = true;
	o.single = false;
	if (img_open(&c, path, &o, err) < 0)
		return -1;
	l = c->layer[0];
	r->old_size = l->info.size;
	r->old_file_size = r->file_size = l->info.file_size;
	if (r->size == r->old_size)
		rc = 0;
	else if (check_merge(c, err) == 0 && (r->force || check_dependants(c, opts, err) == 0) &&
		 (r->size > r->old_size || check_tail(c, r->size, progress, ctx, err) == 0))
		rc = r->dry_run ? 0 : l->ops->resize(l, r->size, err);
	r->file_size = l->info.file_size;
	img_close(c);
	return rc;
}
