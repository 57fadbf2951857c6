/* SPDX-License-Identifier: BSD-2-Clause */
/* The only walk through the layers of a chain. */
#include "img_impl.h"

#include <inttypes.h>

/* Below this a question to the file system about holes costs more than reading zeros. */
#define EXTENT_MIN (32u << 10)

/* What the layers above BASE have at OFF: one run, not yet the longest. */
static int map_once(struct img_chain *c, uint64_t off, uint64_t len, unsigned base, bool holes,
		    struct img_run *run, struct img_err *err)
{
	struct img_ext ext;
	bool hole = false;

	*run = (struct img_run){base < c->n ? IMG_BELOW_RUN : IMG_ZERO_RUN, 0, off, len, 0};
	for (unsigned i = 0; i < c->n && i < base; i++) {
		struct img *l = c->layer[i];

		/* A parent that is shorter than its child reads as zeros beyond its end. */
		if (off >= l->info.size) {
			run->kind = IMG_ZERO_RUN;
			return 0;
		}
		run->len = u64_min(run->len, l->info.size - off);
		if (l->ops->map(l, off, run->len, &ext, err) < 0)
			return -1;
		run->len = ext.len;
		if (ext.kind == EXT_HOLE)
			continue;
		run->kind = ext.kind == EXT_ZERO ? IMG_ZERO_RUN : IMG_DATA_RUN;
		if (holes && ext.kind == EXT_DATA && run->len >= EXTENT_MIN &&
		    io_extent(&l->file, ext.file_off, &run->len, &hole, err) < 0)
			return -1;
		if (hole)
			run->kind = IMG_ZERO_RUN;
		run->layer = i;
		run->file_off = ext.file_off;
		return 0;
	}
	return 0;
}

static int map(struct img_chain *c, uint64_t off, uint64_t len, unsigned base, bool holes,
	       struct img_run *run, struct img_err *err)
{
	struct img_run more;

	if (off > c->size || len > c->size - off || len == 0)
		return img_err_set(err, IMG_BUG,
				   "%s: map of %" PRIu64 " bytes at %" PRIu64
				   " of a disk of %" PRIu64,
				   c->layer[0]->file.path, len, off, c->size);
	if (map_once(c, off, len, base, holes, run, err) < 0)
		return -1;
	while (run->len < len && run->kind != IMG_DATA_RUN) {
		if (map_once(c, off + run->len, len - run->len, base, holes, &more, err) < 0)
			return -1;
		if (more.kind != run->kind)
			break;
		run->len += more.len;
	}
	return 0;
}

int img_map(struct img_chain *c, uint64_t off, uint64_t len, unsigned base, struct img_run *run,
	    struct img_err *err)
{
	return map(c, off, len, base, true, run, err);
}

int img_map_dense(struct img_chain *c, uint64_t off, uint64_t len, unsigned base,
		  struct img_run *run, struct img_err *err)
{
	return map(c, off, len, base, false, run, err);
}

static int walk_data(struct img_chain *c, const struct img_walk *w, struct img_run run,
		     struct img_err *err)
{
	struct img_run piece = run;

	for (; run.len; run.off += piece.len, run.file_off += piece.len, run.len -= piece.len) {
		piece = run;
		piece.len = u64_min(run.len, w->unit - run.off % w->unit);
		if (img_read_run(c, &piece, w->buf, err) < 0 ||
		    w->visit(w->ctx, &piece, w->buf, err) < 0)
			return -1;
	}
	return 0;
}

int img_walk(struct img_chain *c, const struct img_walk *w, struct img_err *err)
{
	struct img_run run;

	for (uint64_t off = w->off; off < w->end; off += run.len) {
		if (img_map(c, off, w->end - off, w->base, &run, err) < 0)
			return -1;
		if (run.kind == IMG_DATA_RUN ? walk_data(c, w, run, err) < 0
					     : w->visit(w->ctx, &run, NULL, err) < 0)
			return -1;
	}
	return 0;
}
