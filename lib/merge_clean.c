/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * After a merge: the target is whole and durable, and shows what the leaf shows. What goes,
 * goes in an order that can be continued: the children of the leaf get their new parent before
 * it is removed; the merged file nearest to the target is removed first, so that what is left
 * over does not open instead of showing something wrong. The target's marker goes last.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "merge.h"

/* The merged layer L and its marker. */
static int remove_layer(struct img *l, struct img_err *err)
{
	img_sums_remove(l->file.real);
	if (io_unlink(l->file.real, err) < 0)
		return -1;
	return img_marker_remove(l->file.real, err);
}

/*
 * What says that TARGET was merged from the disk LEAF. First that it was kept, once: a run that is
 * cut short here begins with the other one.
 */
static int forget(const char *target, const uint8_t leaf[16], struct img_err *err)
{
	struct img_marker m;

	if (img_kept_read(target, &m, NULL) == 0 && m.state == IMG_MARKER_KEPT &&
	    memcmp(m.leaf_uuid, leaf, 16) == 0 && img_kept_remove(target, err) < 0)
		return -1;
	return img_marker_remove(target, err);
}

/* Layers FROM - 1 up to the leaf, then what says that TARGET was merged. */
static int remove_layers(struct img_chain *c, unsigned from, const char *target,
			 struct img_err *err)
{
	uint8_t leaf[16];

	memcpy(leaf, c->layer[0]->info.uuid, sizeof(leaf));
	while (from)
		if (remove_layer(c->layer[--from], err) < 0)
			return -1;
	return forget(target, leaf, err);
}

/* Force: the new parent has another UUID, and shows what the old one showed. */
static int give_new_parent(struct merge *m, const char *path, struct img_err *err)
{
	struct img_open o = {0};

	if (m->opts->open)
		o = *m->opts->open;
	o.unlocked = true; /* the target's lock is ours */
	return img_reparent(path, m->target->file.real, &o, true, err);
}

/*
 * Somebody may write to the target from now on: what was merged must be known before. Where that is
 * so already, an earlier run may have removed the marker and failed to make that durable: only one
 * that is made anew can be removed for good.
 */
static int keep_layers(struct merge *m, struct img_err *err)
{
	if (img_absorbed_note(m->c, m->to, m->merged ? IMG_MARKER_MERGED : IMG_MARKER_KEPT, err) <
	    0)
		return -1;
	return img_marker_remove(m->target->file.real, err);
}

int merge_clean(struct merge *m, struct img_err *err)
{
	if (!m->opts->del)
		return keep_layers(m, err);
	if (img_absorbed_note(m->c, m->to, IMG_MARKER_MERGED, err) < 0)
		return -1;
	for (size_t i = 0; i < m->grand.n; i++)
		if (give_new_parent(m, m->grand.path[i], err) < 0)
			return -1;
	return remove_layers(m->c, m->to, m->target->file.real, err);
}

/*
 * Whether the disk at TARGET was merged from the disk LEAF (a path that need not be there any
 * more).
 */
static bool merged_from(const char *target, const char *leaf, struct img_marker *m)
{
	char *dir = io_dirname(leaf), *real = dir ? realpath(dir, NULL) : NULL, *path = NULL;
	bool yes = false;

	if (real && asprintf(&path, "%s/%s", real, io_basename(leaf)) >= 0)
		yes = img_marker_read(target, m, NULL) == 0 && m->state == IMG_MARKER_MERGED &&
		      strcmp(m->leaf, path) == 0;
	else
		path = NULL;
	free(path);
	free(real);
	free(dir);
	return yes;
}

/*
 * Calls FN with each disk of the folder DIR that a marker lies beside, there or not, until it
 * returns true.
 */
static void each_marked(const char *dir, bool (*fn)(void *ctx, const char *path), void *ctx)
{
	const size_t suffix = strlen(IMG_MARKER_SUFFIX);
	DIR *d = opendir(dir);
	struct dirent *e;
	bool stop = false;
	char *path;

	while (d && !stop && (e = readdir(d))) {
		size_t n = strlen(e->d_name);

		if (n <= suffix || strcmp(e->d_name + n - suffix, IMG_MARKER_SUFFIX) != 0)
			continue;
		if (asprintf(&path, "%s/%.*s", dir, (int)(n - suffix), e->d_name) < 0)
			break;
		stop = fn(ctx, path);
		free(path);
	}
	if (d)
		closedir(d);
}

struct find {
	const char *leaf;
	struct img_marker marker;
	char *found;
};

static bool note_merged(void *ctx, const char *path)
{
	struct find *f = ctx;
	struct stat st;

	/* While the disk itself is not there, nothing that it was made from goes. */
	if (stat(path, &st) == 0 && merged_from(path, f->leaf, &f->marker))
		f->found = strdup(path);
	return f->found;
}

/* A layer between, of the same merge, that was removed while its marker was not. */
static bool drop_orphan(void *ctx, const char *path)
{
	const struct img_marker *merge = ctx;
	struct img_marker m;
	struct stat st;

	if (lstat(path, &st) < 0 && errno == ENOENT && img_marker_read(path, &m, NULL) == 0 &&
	    m.state == IMG_MARKER_MIDDLE && memcmp(m.leaf_uuid, merge->leaf_uuid, 16) == 0 &&
	    strcmp(m.leaf, merge->leaf) == 0)
		(void)img_marker_remove(path, NULL);
	return false;
}

static void drop_orphans(const char *beside, struct img_marker *merge)
{
	char *dir = io_dirname(beside);

	if (dir)
		each_marked(dir, drop_orphan, merge);
	free(dir);
}

/*
 * What is still there of the chain above TARGET, which names no file that is not checked to be
 * of this chain.
 */
static int remove_rest(const char *leaf, const char *target, const struct img_marker *m,
		       const struct img_open *open, struct img_err *err)
{
	struct img_open o = *open;
	struct img_chain *c;
	struct stat st;
	int rc;

	/* Who removed it may have had no time to make that durable. */
	if (lstat(leaf, &st) < 0 && errno == ENOENT)
		return io_sync_dir_of(leaf, err) < 0 ? -1 : forget(target, m->leaf_uuid, err);
	o.writable = o.merge = o.partial = true;
	o.merge_to = target;
	if (img_open(&c, leaf, &o, err) < 0)
		return -1;
	if (memcmp(c->layer[0]->info.uuid, m->leaf_uuid, 16) != 0)
		rc = img_err_set(err, IMG_DATA, "%s: not the disk that %s was merged from", leaf,
				 target);
	else
		rc = remove_layers(c, c->merge_to ? c->merge_to : c->n, target, err);
	img_close(c);
	return rc;
}

int img_merge_clean_up(const char *leaf, const char *target, const struct img_open *open,
		       bool *done, char **into, struct img_err *err)
{
	struct find f = {.leaf = leaf};
	char *dir = io_dirname(leaf);
	int rc = 0;

	if (target)
		f.found = realpath(target, NULL);
	else if (dir)
		each_marked(dir, note_merged, &f);
	*done = false;
	*into = f.found;
	if (f.found && merged_from(f.found, leaf, &f.marker)) {
		drop_orphans(leaf, &f.marker);
		drop_orphans(f.found, &f.marker);
		rc = remove_rest(leaf, f.found, &f.marker, open, err);
		*done = rc == 0;
	}
	free(dir);
	if (!*done) {
		free(*into);
		*into = NULL;
	}
	return rc;
}
