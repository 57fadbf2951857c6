/* SPDX-License-Identifier: BSD-2-Clause */
/* Before a child arrives that will be merged: may it be, and now nobody else opens the disk. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "img_impl.h"

struct other {
	const struct img *parent;
	const struct img_receive *r;
};

/* What an earlier run has left of the same child is none. */
static int note_other(void *ctx, const char *path, struct img_err *err)
{
	const struct other *o = ctx;

	if (io_same_file(path, o->r->child) || io_same_file(path, o->r->partial))
		return 0;
	return img_err_set(err, IMG_PREFLIGHT,
			   "%s: is a child of %s, and would not show any more what it shows now; "
			   "merge or delete it first",
			   path, o->parent->file.path);
}

/* What merge_plan() would say when all has come. */
static int check_sizes(const struct img_chain *c, uint64_t size, struct img_err *err)
{
	const struct img *l = c->layer[0], *below = c->n > 1 ? c->layer[1] : NULL;

	if (size < l->info.size)
		return img_err_set(err, IMG_DATA,
				   "%s: %" PRIu64 " bytes, and would have %" PRIu64
				   ": nobody could tell what becomes of the rest",
				   l->file.path, l->info.size, size);
	if (size > l->info.size && !l->info.has_uuid)
		return img_err_set(err, IMG_PREFLIGHT,
				   "%s: a raw disk, which nothing but its size of %" PRIu64
				   " bytes tells from others: it cannot grow to %" PRIu64 " here",
				   l->file.path, l->info.size, size);
	if (below && size > l->info.size && below->info.size > l->info.size)
		return img_err_set(err, IMG_PREFLIGHT,
				   "%s: has to grow to %" PRIu64
				   " bytes, and would show what it hides of its larger parent %s",
				   l->file.path, size, below->file.path);
	return 0;
}

static int check(struct img_chain *c, const struct img_receive *r, struct img_err *err)
{
	const struct img *l = c->layer[0];
	struct other o = {l, r};

	if (check_sizes(c, r->size, err) < 0)
		return -1;
	if (faccessat(AT_FDCWD, l->file.path, W_OK, AT_EACCESS) < 0)
		return img_err_errno(err, errno, "%s: cannot be written to", l->file.path);
	if (l->info.saved_state)
		return img_err_set(
			err, IMG_PREFLIGHT,
			"%s: a saved state of a virtual machine depends on it (footer byte 84)",
			l->file.path);
	if (l->info.unsound)
		return img_err_set(err, IMG_DATA, "%s: %s: repair it first", l->file.path,
				   l->info.warning);
	return img_kin_each(c, l, r->open, note_other, &o, err);
}

static int real_name(const char *path, char *out, size_t size, struct img_err *err)
{
	char *dir = io_dirname(path), *real = dir ? realpath(dir, NULL) : NULL;
	int rc = 0;

	if (!real)
		rc = img_err_errno(err, errno, "%s", path);
	else if (snprintf(out, size, "%s/%s", real, io_basename(path)) >= (int)size)
		rc = img_err_errno(err, ENAMETOOLONG, "%s", path);
	free(real);
	free(dir);
	return rc;
}

int img_receive_begin(struct img_chain *c, const struct img_receive *r, struct img_err *err)
{
	const char *real = c->layer[0]->file.real;
	struct img_marker m = {.state = IMG_MARKER_RECEIVING}, have;

	memcpy(m.child_uuid, r->uuid, 16);
	memcpy(m.leaf_uuid, r->uuid, 16);
	if (check(c, r, err) < 0 || real_name(r->child, m.leaf, sizeof(m.leaf), err) < 0 ||
	    img_marker_read(real, &have, err) < 0)
		return -1;
	/* Files of a merge that is done are still being removed: they must be gone first. */
	if (have.state == IMG_MARKER_MERGED)
		return img_err_set(
			err, IMG_AGAIN,
			"%s: a merge was cut short; finish it first with: vhd-merge --to=%s %s",
			c->layer[0]->file.path, real, have.leaf);
	if (img_kept_read(real, &have, err) < 0)
		return -1;
	if (have.state == IMG_MARKER_KEPT && img_absorbed_there(&have))
		return img_err_set(err, IMG_PREFLIGHT,
				   "%s: was merged into %s before, and is still there; it would "
				   "not show any more what it shows now: delete it first",
				   have.leaf, c->layer[0]->file.path);
	return img_marker_store(real, &m, err);
}

/*
 * The disk may be gone, or moved away, and its marker still be there. Where its name is a link that
 * leads nowhere nobody knows.
 */
static int read_marker(const char *path, char **real, struct img_marker *m, struct img_err *err)
{
	char *dir, *folder;
	struct stat st;

	*m = (struct img_marker){.state = IMG_MARKER_NONE};
	*real = realpath(path, NULL);
	if (*real)
		return img_marker_read(*real, m, err);
	if (errno != ENOENT && errno != ENOTDIR)
		return img_err_errno(err, errno, "%s", path);
	if (lstat(path, &st) == 0)
		return img_err_set(err, IMG_NOINPUT,
				   "%s: is a link, and what it leads to is not there", path);
	dir = io_dirname(path);
	folder = dir ? realpath(dir, NULL) : NULL;
	if (folder && asprintf(real, "%s/%s", folder, io_basename(path)) < 0)
		*real = NULL;
	free(folder);
	free(dir);
	return *real ? img_marker_read(*real, m, err) : 0;
}

int img_receive_state(const char *path, enum img_receiving *state, struct img_err *err)
{
	struct img_marker m;
	char *real;
	int rc = read_marker(path, &real, &m, err);

	*state = m.state == IMG_MARKER_NONE	   ? IMG_RECEIVING_NOT
		 : m.state == IMG_MARKER_RECEIVING ? IMG_RECEIVING
						   : IMG_RECEIVING_MERGE;
	free(real);
	return rc;
}

int img_receive_kept(const char *path, const uint8_t uuid[16], bool *yes, struct img_err *err)
{
	struct img_marker m;
	char *real = realpath(path, NULL);
	int rc = real ? img_kept_read(real, &m, err) : img_err_errno(err, errno, "%s", path);

	*yes = rc == 0 && m.state == IMG_MARKER_KEPT && !memcmp(m.leaf_uuid, uuid, 16);
	free(real);
	return rc;
}

int img_receive_end(const char *path, struct img_err *err)
{
	struct img_marker m;
	char *real;
	int rc = read_marker(path, &real, &m, err);

	if (rc == 0 && m.state == IMG_MARKER_RECEIVING)
		rc = img_marker_remove(real, err);
	free(real);
	return rc;
}
