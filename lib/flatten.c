/* SPDX-License-Identifier: BSD-2-Clause */
/* A merge into a new file: the chain itself is only read. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "img_impl.h"

#define BUF_LEN (4u << 20)

struct flatten {
	struct img_chain *in, *out;
	unsigned base; /* the layers from here on stay below */
	const struct img_merge *opts;
	struct img_merge_stats *stats;
};

static int write_run(struct flatten *f, const struct img_run *r, const uint8_t *buf,
		     struct img_err *err)
{
	const bool child = f->base < f->in->n;

	/* A hole in what a layer has must hide what is below; on a base it is what reads anyway. */
	if (r->kind == IMG_ZERO_RUN)
		return child ? img_zero(f->out, r->off, r->len, false, err) : 0;
	if (r->kind == IMG_BELOW_RUN)
		return 0;
	f->stats->bytes += r->len;
	if (!child && bytes_are_zero(buf, r->len))
		return 0;
	return img_write(f->out, buf, r->off, r->len, false, err);
}

static int copy_run(void *ctx, const struct img_run *r, uint8_t *buf, struct img_err *err)
{
	struct flatten *f = ctx;

	if (write_run(f, r, buf, err) < 0)
		return -1;
	if (f->opts->progress && f->opts->progress(f->opts->ctx, r->off + r->len, f->in->size))
		return img_err_set(err, IMG_AGAIN, "interrupted; nothing was made");
	return 0;
}

static int copy(struct flatten *f, const char *path, struct img_err *err)
{
	/* Pieces end where blocks do. */
	struct img_walk w = {.end = f->in->size,
			     .base = f->base,
			     .unit = BUF_LEN,
			     .buf = aligned_alloc(4096, BUF_LEN),
			     .visit = copy_run,
			     .ctx = f};
	int rc = w.buf ? img_walk(f->in, &w, err) : img_err_errno(err, ENOMEM, "%s", path);

	free(w.buf);
	return rc;
}

static void options(struct flatten *f, struct img_create *o)
{
	static const uint8_t none[16];
	const struct img *last = f->in->layer[f->base - 1];

	o->type = IMG_DYNAMIC;
	o->size = u64_round_up(f->in->size, SECTOR);
	o->block_size = last->info.block_size;
	if (f->base == f->in->n)
		return;
	o->type = IMG_DIFFERENCING;
	o->parent_path = f->in->layer[f->base]->file.real;
	o->parent_size = f->in->layer[f->base]->info.size;
	o->parent_uuid =
		f->in->layer[f->base]->info.has_uuid ? f->in->layer[f->base]->info.uuid : none;
}

/* A disk that only opens below one certain child has no room for another. */
static int check_below(const struct flatten *f, struct img_err *err)
{
	struct img_marker m;

	if (f->base == f->in->n)
		return 0;
	if (img_marker_read(f->in->layer[f->base]->file.real, &m, err) < 0)
		return -1;
	if (m.state == IMG_MARKER_NONE || m.state == IMG_MARKER_MERGED)
		return 0;
	return img_err_set(
		err, IMG_PREFLIGHT,
		"%s: a merge of %s has changed it or is changing it; it can have no other child",
		f->in->layer[f->base]->file.path, m.leaf);
}

int img_flatten(struct img_chain *c, unsigned last, const char *path, bool force,
		const struct img_merge *opts, struct img_merge_stats *stats, struct img_err *err)
{
	struct flatten f = {.in = c, .base = last + 1, .opts = opts, .stats = stats};
	struct img_create o = {.force = force};
	struct img_new *n;

	memset(stats, 0, sizeof(*stats));
	stats->layers = last + 1;
	if (check_below(&f, err) < 0)
		return -1;
	options(&f, &o);
	if (img_create_begin(&n, path, &o, err) < 0)
		return -1;
	f.out = img_new_chain(n);
	if (copy(&f, path, err) == 0)
		return img_create_finish(n, err);
	img_create_abort(n);
	return -1;
}
