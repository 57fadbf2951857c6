/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Folding layers into an ancestor, in place. They mask every sector that is being moved, so
 * what the guest sees through the leaf never changes; that needs the target's footers, header
 * and BAT to be sound at every moment. While the merge is under way the target alone is neither
 * the old disk nor the new one: markers say so (marker.c). The order of all this, and why, is
 * in HACKING.md.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "merge.h"

#define COPY_MAX (64u << 10) /* above it the kernel copies */
#define WRITEBACK_STEP (32u << 20)

unsigned img_merge_target(const struct img_chain *c)
{
	return c->merge_to;
}

int merge_walk(struct merge *m, merge_run *run, struct img_err *err)
{
	uint64_t size = m->leaf->info.size, off = 0;
	struct img_run r;

	while (off < size) {
		if (img_map_dense(m->c, off, size - off, m->to, &r, err) < 0 ||
		    (r.kind == IMG_DATA_RUN && run(m, &r, err) < 0))
			return -1;
		off += r.len;
	}
	return 0;
}

static int run_mark(struct merge *m, const struct img_run *r, struct img_err *err)
{
	return m->target->ops->absorb_mark(m->target, r->off, r->len, err);
}

/* Starts writing out as soon as there is a fair amount, so that the final sync is short. */
static void note_written(struct merge *m, uint64_t to, uint64_t len)
{
	if (m->unwritten == 0)
		m->first_unwritten = to;
	m->first_unwritten = u64_min(m->first_unwritten, to);
	m->unwritten += len;
	if (m->unwritten >= WRITEBACK_STEP) {
		io_writeback(&m->target->file, m->first_unwritten, 0);
		m->unwritten = 0;
	}
}

static int copy_piece(struct merge *m, struct io_file *from, uint64_t at, uint64_t to, uint64_t len,
		      struct img_err *err)
{
	uint64_t n;
	int rc;

	for (; len; at += n, to += n, len -= n) {
		bool hole = false; /* small pieces are not asked for */

		n = len;
		if (len >= COPY_MAX && io_extent(from, at, &n, &hole, err) < 0)
			return -1;
		if (hole)
			rc = io_zero(&m->target->file, to, n, err);
		else if (n > COPY_MAX)
			rc = io_copy(from, at, &m->target->file, to, n, err);
		else
			rc = io_read(from, m->buf, n, at, err) < 0
				     ? -1
				     : io_write(&m->target->file, m->buf, n, to, err);
		if (rc < 0)
			return -1;
		note_written(m, to, n);
	}
	return 0;
}

static int run_copy(struct merge *m, const struct img_run *r, struct img_err *err)
{
	uint64_t off = r->off, len = r->len, at = r->file_off, to, n;

	m->done += len;
	for (; len; off += n, len -= n, at += n)
		if (m->target->ops->absorb_place(m->target, off, len, &to, &n, err) < 0 ||
		    copy_piece(m, &m->c->layer[r->layer]->file, at, to, n, err) < 0)
			return -1;
	if (m->opts->progress && m->opts->progress(m->opts->ctx, m->done, m->stats->bytes))
		return img_err_set(err, IMG_AGAIN,
				   "%s: interrupted; the same command finishes the merge",
				   m->leaf->file.path);
	return 0;
}

/* The layers between first: without the target's they say too much, never too little. */
static int write_markers(struct merge *m, struct img_err *err)
{
	for (unsigned i = 1; i < m->to; i++)
		if (img_marker_write(m->c->layer[i], m->c->layer[i - 1], m->leaf, IMG_MARKER_MIDDLE,
				     err) < 0)
			return -1;
	return img_marker_write(m->target, m->c->layer[m->to - 1], m->leaf, IMG_MARKER_MERGING,
				err);
}

/*
 * The child has grown: so does the target. What is new in it reads as zeros, as it does through
 * the child.
 */
static int grow(struct merge *m, struct img_err *err)
{
	if (m->target->info.size >= m->leaf->info.size)
		return 0;
	if (m->target->ops->resize(m->target, m->leaf->info.size, err) < 0)
		return -1;
	return merge_place(m, err);
}

static int fold(struct merge *m, struct img_err *err)
{
	struct img *target = m->target;

	if (write_markers(m, err) < 0 || grow(m, err) < 0 ||
	    target->ops->absorb_extend(target, m->stats, false, err) < 0)
		return -1;
	if (merge_walk(m, run_copy, err) < 0 || io_sync(&target->file, err) < 0)
		return -1;
	if (merge_walk(m, run_mark, err) < 0 || target->ops->absorb_publish(target, err) < 0)
		return -1;
	return 0;
}

static int execute(struct merge *m, struct img_err *err)
{
	struct img_sums *sums = img_sums_before_merge(m->c, m->to);

	if (fold(m, err) < 0) {
		img_sums_drop(sums);
		return -1;
	}
	img_sums_after_merge(sums, m->c, m->to);
	return merge_clean(m, err);
}

static int merge_init(struct merge *m, struct img_err *err)
{
	memset(m->stats, 0, sizeof(*m->stats));
	m->to = m->c->merge_to;
	m->leaf = m->c->layer[0];
	if (!m->to)
		return img_err_set(err, IMG_DATA, "%s: has no parent to be merged into",
				   m->leaf->file.path);
	m->target = m->c->layer[m->to];
	m->stats->layers = m->to;
	return 0;
}

static void merge_free(struct merge *m)
{
	if (m->target)
		m->target->ops->absorb_end(m->target);
	merge_paths_free(&m->grand);
	free(m->kept);
	free(m->buf);
}

int img_merge_plan(struct img_chain *c, const struct img_merge *opts, struct img_merge_stats *stats,
		   struct img_err *err)
{
	struct merge m = {.c = c, .opts = opts, .stats = stats};
	int rc = merge_init(&m, err) < 0 ? -1 : merge_plan(&m, err);

	merge_free(&m);
	return rc;
}

int img_merge(struct img_chain *c, const struct img_merge *opts, struct img_merge_stats *stats,
	      struct img_err *err)
{
	struct merge m = {.c = c, .opts = opts, .stats = stats};
	int rc = -1;

	m.buf = aligned_alloc(4096, COPY_MAX);
	if (!m.buf)
		img_err_errno(err, ENOMEM, "merge");
	else if (merge_init(&m, err) == 0 && merge_plan(&m, err) == 0)
		rc = m.merged ? merge_clean(&m, err) : execute(&m, err);
	merge_free(&m);
	return rc;
}
