/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Merge markers: a file beside a disk that says why the disk must not be opened by itself.
 * While a merge is under way its target is neither the old disk nor the new one, and the layers
 * between it and the leaf show parts of newer data from then on: each opens only below the
 * layer that hides this. Once the target is whole, its marker may stay for a while as "merged",
 * so that a run that was interrupted while it removed files can be finished. While a child that
 * will be merged is still being received, the target is the old disk yet, and nobody may change it.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "img_impl.h"

#define MAGIC "qsm-merge 1\n"

static const char *const states[] = { "merging", "middle", "merged", "receiving" };

static char *marker_path(const char *real)
{
	char *path;

	return asprintf(&path, "%s" IMG_MARKER_SUFFIX, real) < 0 ? NULL : path;
}

/* "KEY 32 hex digits\n" at *P, which moves behind it. */
static bool parse_uuid(const char **p, const char *key, uint8_t uuid[16])
{
	size_t n = strlen(key);

	if (strncmp(*p, key, n) != 0)
		return false;
	*p += n;
	for (int i = 0; i < 16; i++, *p += 2) {
		unsigned byte;

		if (sscanf(*p, "%2x", &byte) != 1 || !(*p)[1])
			return false;
		uuid[i] = (uint8_t)byte;
	}
	return *(*p)++ == '\n';
}

static bool parse_state(const char **p, enum img_marker_state *state)
{
	for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++) {
		size_t n = strlen(states[i]);

		if (strncmp(*p, "state ", 6) == 0 && strncmp(*p + 6, states[i], n) == 0 &&
		    (*p)[6 + n] == '\n') {
			*p += 6 + n + 1;
			*state = (enum img_marker_state)(i + IMG_MARKER_MERGING);
			return true;
		}
	}
	return false;
}

static int parse(const char *path, const char *text, struct img_marker *m, struct img_err *err)
{
	const char *p = text + strlen(MAGIC);

	if (strncmp(text, MAGIC, strlen(MAGIC)) != 0 || !parse_uuid(&p, "child-uuid ", m->child_uuid) ||
	    !parse_uuid(&p, "leaf-uuid ", m->leaf_uuid) || !parse_state(&p, &m->state) ||
	    strncmp(p, "leaf ", 5) != 0)
		return img_err_set(err, IMG_DATA,
				   "%s: not a merge marker; the disk beside it may be half merged", path);
	snprintf(m->leaf, sizeof(m->leaf), "%s", p + 5);
	return 0;
}

int img_marker_read(const char *real, struct img_marker *m, struct img_err *err)
{
	char *path = marker_path(real), text[4096 + 256] = "";
	struct io_file f;
	struct stat st;
	size_t got;
	int rc = 0;

	memset(m, 0, sizeof(*m));
	if (!path)
		return img_err_errno(err, ENOMEM, "%s", real);
	/* No marker can have a name that is too long: the merge that would make it is refused. */
	if (lstat(path, &st) == 0 || (errno != ENOENT && errno != ENAMETOOLONG)) {
		rc = io_open(&f, path, false, err);
		if (rc == 0) {
			rc = io_read_upto(&f, text, sizeof(text) - 1, 0, &got, err);
			io_close(&f);
		}
		if (rc == 0)
			rc = parse(path, text, m, err);
	}
	free(path);
	return rc;
}

static void hex(const uint8_t uuid[16], char out[33])
{
	for (int i = 0; i < 16; i++)
		snprintf(out + 2 * i, 3, "%02x", uuid[i]);
}

int img_marker_store(const char *real, const struct img_marker *m, struct img_err *err)
{
	char *path = marker_path(real), *text = NULL, child[33], last[33];
	int rc;

	hex(m->child_uuid, child);
	hex(m->leaf_uuid, last);
	if (!path || asprintf(&text, MAGIC "child-uuid %s\nleaf-uuid %s\nstate %s\nleaf %s", child, last,
			      states[m->state - IMG_MARKER_MERGING], m->leaf) < 0)
		rc = img_err_errno(err, ENOMEM, "%s", real);
	else
		rc = io_store(path, text, strlen(text), 0600, err);
	free(text);
	free(path);
	return rc;
}

int img_marker_write(const struct img *l, const struct img *above, const struct img *leaf,
		     enum img_marker_state state, struct img_err *err)
{
	struct img_marker m = { .state = state };

	memcpy(m.child_uuid, above->info.uuid, 16);
	memcpy(m.leaf_uuid, leaf->info.uuid, 16);
	snprintf(m.leaf, sizeof(m.leaf), "%s", leaf->file.real);
	return img_marker_store(l->file.real, &m, err);
}

int img_marker_remove(const char *real, struct img_err *err)
{
	char *path = marker_path(real);
	struct stat st;
	int rc = 0;

	if (!path)
		return img_err_errno(err, ENOMEM, "%s", real);
	if (lstat(path, &st) == 0)
		rc = io_unlink(path, err);
	free(path);
	return rc;
}

/* Nothing of it has changed yet: to look at it does no harm. */
static int check_receiving(struct img *l, const struct img_open *opts, struct img_err *err)
{
	if (opts->receiver)
		return 0;
	if (opts->unlocked) {
		img_warn(l, "a stream is being received onto it, or was interrupted");
		return 0;
	}
	return img_err_set(err, IMG_AGAIN,
			   "%s: a stream is being received onto it (vhd-recv --onto), or was interrupted: "
			   "the same command goes on, and vhd-recv --abort %s leaves the disk as it is",
			   l->file.path, l->file.path);
}

int img_marker_check(struct img *l, const struct img *child, const struct img_open *opts,
		     struct img_err *err)
{
	struct img_marker m;

	if (img_marker_read(l->file.real, &m, err) < 0)
		return -1;
	if (m.state == IMG_MARKER_NONE || m.state == IMG_MARKER_MERGED ||
	    (child && memcmp(child->info.uuid, m.child_uuid, 16) == 0))
		return 0;
	if (m.state == IMG_MARKER_RECEIVING)
		return check_receiving(l, opts, err);
	if (m.state == IMG_MARKER_MIDDLE)
		return img_err_set(err, IMG_DATA,
				   "%s: no disk by itself any more: it was merged as a part of %s, and opens only below that",
				   l->file.path, m.leaf);
	return img_err_set(err, IMG_AGAIN,
			   "%s: half merged: neither the old disk nor the new one; finish it with: vhd-merge --to=%s %s",
			   l->file.path, l->file.real, m.leaf);
}
