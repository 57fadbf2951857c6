/* SPDX-License-Identifier: BSD-2-Clause */
/* Before a merge: what it will do, and every reason why it must not. Nothing is changed here. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "merge.h"

void merge_block(struct merge *m, int code, const char *fmt, ...)
{
	size_t n = strlen(m->blockers);
	va_list ap;

	if (!m->blocked)
		m->blocked = code;
	else if (n + 1 < sizeof(m->blockers))
		m->blockers[n++] = '\n';
	va_start(ap, fmt);
	vsnprintf(m->blockers + n, sizeof(m->blockers) - n, fmt, ap);
	va_end(ap);
}

int merge_paths_add(struct merge_paths *p, const char *path, struct img_err *err)
{
	char **more = realloc(p->path, (p->n + 1) * sizeof(*more));

	if (!more)
		return img_err_errno(err, ENOMEM, "%s", path);
	p->path = more;
	p->path[p->n] = strdup(path);
	if (!p->path[p->n])
		return img_err_errno(err, ENOMEM, "%s", path);
	p->n++;
	return 0;
}

void merge_paths_free(struct merge_paths *p)
{
	while (p->n)
		free(p->path[--p->n]);
	free(p->path);
	p->path = NULL;
}

/* The layers and their parents must be what the merge relies on. */
static void check_layers(struct merge *m)
{
	for (unsigned i = 0; i <= m->to; i++) {
		const struct img *l = m->c->layer[i], *above = i ? m->c->layer[i - 1] : NULL;

		/*
		 * A child may have grown. So may the target, while the leaf was being merged
		 * into it.
		 */
		if (above && l->info.size > above->info.size &&
		    !(m->begun && l == m->target && l->info.size <= m->leaf->info.size))
			merge_block(m, IMG_DATA,
				    "%s: %" PRIu64 " bytes, its parent %s has %" PRIu64
				    ": nobody could tell what becomes of the rest",
				    above->file.path, above->info.size, l->file.path, l->info.size);
		if (l->info.saved_state && !m->c->ignore_saved_state)
			merge_block(m, IMG_DATA,
				    "%s: a saved state of a virtual machine depends on it (footer "
				    "byte 84): merged only with --force",
				    l->file.path);
	}
}

/*
 * A raw disk is known to its child by its size only: the size that the child has or was made
 * with.
 */
static void check_raw_target(struct merge *m)
{
	const struct img *above = m->c->layer[m->to - 1];
	uint64_t size = m->leaf->info.size;

	if (m->target->info.has_uuid || m->target->info.size >= size || above->info.size == size ||
	    above->info.original_size == size)
		return;
	merge_block(m, IMG_PREFLIGHT,
		    "%s: a raw disk: once it has %" PRIu64
		    " bytes, its child %s would not find it any more; merge into that one first",
		    m->target->file.path, size, above->file.path);
}

/* A target that ends before its parent does hides the rest of it; grown, it would show that. */
static void check_hidden(struct merge *m)
{
	const struct img *below = m->to + 1 < m->c->n ? m->c->layer[m->to + 1] : NULL;
	uint64_t size = m->leaf->info.size;

	if (below && m->target->info.size < size && below->info.size > m->target->info.size)
		merge_block(m, IMG_PREFLIGHT,
			    "%s: has to grow to %" PRIu64
			    " bytes, and would show what it hides of its larger parent %s",
			    m->target->file.path, size, below->file.path);
}

static void check_sound(struct merge *m)
{
	for (unsigned i = 0; i <= m->to; i++) {
		const struct img_info *info = &m->c->layer[i]->info;

		if (info->unsound)
			merge_block(m, IMG_DATA, "%s: %s: repair it before the merge",
				    m->c->layer[i]->file.path, info->warning);
	}
}

/* A child of a layer that changes, and that is not of this chain. */
struct stranger {
	struct merge *m;
	const struct img *parent;
};

static int note_stranger(void *ctx, const char *path, struct img_err *err)
{
	struct stranger *s = ctx;

	(void)err;
	if (s->parent == s->m->target && s->m->kept && strcmp(path, s->m->kept) == 0)
		merge_block(s->m, IMG_PREFLIGHT,
			    "%s: was merged into %s before, and is still there; it would not show "
			    "any more what it shows now: delete it first",
			    path, s->parent->file.path);
	else
		merge_block(s->m, IMG_PREFLIGHT,
			    "%s: is a child of %s too, and would not show any more what it shows "
			    "now; merge or delete it first",
			    path, s->parent->file.path);
	return 0;
}

/* It has to be written, so it must not be in use. */
static int note_grandchild(void *ctx, const char *path, struct img_err *err)
{
	struct merge *m = ctx;
	struct img_err e = {0};
	struct img *l;

	if (img_layer_open(&l, path, true, false, RAW_NEVER, &e) < 0) {
		merge_block(m, e.code, "%s (a child of %s that needs a new parent)", e.msg,
			    m->leaf->file.path);
		return 0;
	}
	img_layer_close(l);
	m->stats->reparented++;
	return merge_paths_add(&m->grand, path, err);
}

static int check_strangers(struct merge *m, struct img_err *err)
{
	for (unsigned i = 1; i <= m->to; i++) {
		struct stranger s = {m, m->c->layer[i]};

		if (img_kin_each(m->c, m->c->layer[i], m->opts->open, note_stranger, &s, err) < 0)
			return -1;
	}
	return 0;
}

/* An upper bound of what the merge writes to space that the target does not have yet. */
static void check_space(struct merge *m)
{
	struct img_merge_stats *s = m->stats;
	struct img *target = m->target;
	uint64_t need = s->bytes + s->new_blocks * SECTOR + (1u << 20);
	struct statvfs fs;

	if (s->new_blocks == 0 && target->info.allocated >= target->info.file_size)
		need = 1u << 20;
	if (target->file.block_device || fstatvfs(target->file.fd, &fs) < 0)
		return;
	s->space_free = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (need > s->space_free)
		merge_block(m, IMG_CANTCREAT,
			    "%s: the merge may need %" PRIu64 " bytes, the file system has %" PRIu64
			    " free",
			    target->file.path, need, s->space_free);
}

static int run_place(struct merge *m, const struct img_run *r, struct img_err *err)
{
	uint64_t off = r->off, len = r->len, file_off, n;

	m->stats->bytes += len;
	for (; len; off += n, len -= n)
		if (m->target->ops->absorb_place(m->target, off, len, &file_off, &n, err) < 0)
			return -1;
	return 0;
}

int merge_place(struct merge *m, struct img_err *err)
{
	m->stats->bytes = 0;
	if (m->target->ops->absorb_begin(m->target, m->leaf->info.size, err) < 0 ||
	    merge_walk(m, run_place, err) < 0)
		return -1;
	return m->target->ops->absorb_extend(m->target, m->stats, true, err);
}

/* What an earlier run has left: the target's marker, or those of the layers between. */
static int look_for_markers(struct merge *m, struct img_err *err)
{
	struct img_marker marker;

	for (unsigned i = 1; i <= m->to; i++) {
		if (img_marker_read(m->c->layer[i]->file.real, &marker, err) < 0)
			return -1;
		if (memcmp(marker.leaf_uuid, m->leaf->info.uuid, 16) == 0)
			m->begun |= marker.state == IMG_MARKER_MERGING ||
				    marker.state == IMG_MARKER_MIDDLE;
	}
	/* Then nobody else could have written to it. */
	if (marker.state == IMG_MARKER_MERGING)
		return 0;
	if (marker.state != IMG_MARKER_MERGED &&
	    img_kept_read(m->target->file.real, &marker, err) < 0)
		return -1;
	return marker.state == IMG_MARKER_NONE ? 0 : merge_again(m, &marker, err);
}

int merge_plan(struct merge *m, struct img_err *err)
{
	if (look_for_markers(m, err) < 0)
		return -1;
	check_layers(m);
	check_raw_target(m);
	check_hidden(m);
	/* What is unfinished leaves footers to be mended. */
	if (!m->begun)
		check_sound(m);
	if (!m->merged && check_strangers(m, err) < 0)
		return -1;
	if (m->opts->del && img_kin_each(m->c, m->leaf, m->opts->open, note_grandchild, m, err) < 0)
		return -1;
	/* Sizes that do not fit would make places that do not exist. */
	if (!m->merged && (!m->blocked || m->leaf->info.size >= m->target->info.size)) {
		if (merge_place(m, err) < 0)
			return -1;
		check_space(m);
	}
	return m->blocked ? img_err_set(err, m->blocked, "%s\nnothing was changed", m->blockers)
			  : 0;
}
