/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Merge markers: a file beside a disk that says why the disk must not be opened by itself.
 * While a merge is under way its target is neither the old disk nor the new one, and the layers
 * between it and the leaf show parts of newer data from then on: each opens only below the
 * layer that hides this. Once the target is whole, its marker may stay for a while as "merged",
 * so that a run that was interrupted while it removed files can be finished. While a child that
 * will be merged is still being received, the target is the old disk yet, and nobody may change it.
 *
 * Another file says that a child was merged and is still there (absorbed.c); both have one form.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "img_impl.h"

#define MAGIC "qsm-merge 1\n"

static const char *const states[] = {"merging", "middle", "merged", "receiving", "kept"};

/* What is kept lies under a name of its own: it may be there beside any other state. */
static char *marker_path(const char *real, enum img_marker_state state)
{
	char *path;

	return asprintf(&path, "%s%s", real,
			state == IMG_MARKER_KEPT ? IMG_KEPT_SUFFIX : IMG_MARKER_SUFFIX) < 0
		       ? NULL
		       : path;
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

/* Only what is merged has them. */
static bool parse_identities(const char **p, struct img_marker *m)
{
	return strncmp(*p, "target ", 7) != 0 ||
	       (parse_uuid(p, "target ", m->target) && parse_uuid(p, "above ", m->above) &&
		parse_uuid(p, "boot ", m->boot) &&
		(strncmp(*p, "file ", 5) != 0 || parse_uuid(p, "file ", m->file)));
}

static int parse(const char *path, const char *text, struct img_marker *m, struct img_err *err)
{
	const char *p = text + strlen(MAGIC);

	if (strncmp(text, MAGIC, strlen(MAGIC)) != 0 ||
	    !parse_uuid(&p, "child-uuid ", m->child_uuid) ||
	    !parse_uuid(&p, "leaf-uuid ", m->leaf_uuid) || !parse_state(&p, &m->state) ||
	    !parse_identities(&p, m) || strncmp(p, "leaf ", 5) != 0)
		return img_err_set(err, IMG_DATA,
				   "%s: not a merge marker; the disk beside it may be half merged",
				   path);
	snprintf(m->leaf, sizeof(m->leaf), "%s", p + 5);
	return 0;
}

static int read_marker(const char *real, enum img_marker_state kind, struct img_marker *m,
		       struct img_err *err)
{
	char *path = marker_path(real, kind), text[4096 + 512] = "";
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
			rc = fstat(f.fd, &m->st) < 0
				     ? img_err_errno(err, errno, "%s", path)
				     : io_read_upto(&f, text, sizeof(text) - 1, 0, &got, err);
			m->plain = S_ISREG(st.st_mode) && st.st_ino == m->st.st_ino;
			io_close(&f);
		}
		if (rc == 0)
			rc = parse(path, text, m, err);
	}
	free(path);
	return rc;
}

int img_marker_read(const char *real, struct img_marker *m, struct img_err *err)
{
	return read_marker(real, IMG_MARKER_NONE, m, err);
}

int img_kept_read(const char *real, struct img_marker *m, struct img_err *err)
{
	if (read_marker(real, IMG_MARKER_KEPT, m, err) == 0 &&
	    (m->state == IMG_MARKER_NONE || m->state == IMG_MARKER_KEPT))
		return 0;
	m->state = IMG_MARKER_NONE;
	return img_err_set(err, IMG_DATA,
			   "%s" IMG_KEPT_SUFFIX
			   ": does not say what was merged into the disk beside it",
			   real);
}

static void hex(const uint8_t uuid[16], char out[33])
{
	for (int i = 0; i < 16; i++)
		snprintf(out + 2 * i, 3, "%02x", uuid[i]);
}

/* Whoever may open the disk may read why not, or what to know of it. */
static int store(const char *path, const char *real, const char *text, struct img_err *err)
{
	struct io_file f;
	struct io_new n;
	struct stat st;
	int rc = -1;

	if (stat(real, &st) < 0)
		return img_err_errno(err, errno, "%s", real);
	if (io_create(&n, &f, path, true, err) < 0)
		return -1;
	if (io_access_like(&f, &st, err) == 0 && io_write(&f, text, strlen(text), 0, err) == 0)
		rc = io_publish(&n, true, err);
	io_discard(&n);
	io_close(&f);
	return rc;
}

static char *identities(const struct img_marker *m)
{
	char target[33], above[33], boot[33], file[33], *text;

	if (m->state != IMG_MARKER_MERGED && m->state != IMG_MARKER_KEPT)
		return strdup("");
	hex(m->target, target);
	hex(m->above, above);
	hex(m->boot, boot);
	hex(m->file, file);
	return asprintf(&text, "target %s\nabove %s\nboot %s\nfile %s\n", target, above, boot,
			file) < 0
		       ? NULL
		       : text;
}

int img_marker_store(const char *real, const struct img_marker *m, struct img_err *err)
{
	char *path = marker_path(real, m->state), *more = identities(m), *text = NULL, child[33],
	     last[33];
	int rc;

	hex(m->child_uuid, child);
	hex(m->leaf_uuid, last);
	if (!path || !more ||
	    asprintf(&text, MAGIC "child-uuid %s\nleaf-uuid %s\nstate %s\n%sleaf %s", child, last,
		     states[m->state - IMG_MARKER_MERGING], more, m->leaf) < 0)
		rc = img_err_errno(err, ENOMEM, "%s", real);
	else
		rc = store(path, real, text, err);
	free(text);
	free(more);
	free(path);
	return rc;
}

int img_marker_write(const struct img *l, const struct img *above, const struct img *leaf,
		     enum img_marker_state state, struct img_err *err)
{
	struct img_marker m = {.state = state};

	memcpy(m.child_uuid, above->info.uuid, 16);
	memcpy(m.leaf_uuid, leaf->info.uuid, 16);
	snprintf(m.leaf, sizeof(m.leaf), "%s", leaf->file.real);
	return img_marker_store(l->file.real, &m, err);
}

static int remove_marker(const char *real, enum img_marker_state kind, struct img_err *err)
{
	char *path = marker_path(real, kind);
	struct stat st;
	int rc = 0;

	if (!path)
		return img_err_errno(err, ENOMEM, "%s", real);
	if (lstat(path, &st) == 0)
		rc = io_unlink(path, err);
	else if (errno != ENOENT && errno != ENAMETOOLONG)
		rc = img_err_errno(err, errno, "%s: cannot be looked for", path);
	free(path);
	return rc;
}

int img_marker_remove(const char *real, struct img_err *err)
{
	return remove_marker(real, IMG_MARKER_NONE, err);
}

int img_kept_remove(const char *real, struct img_err *err)
{
	return remove_marker(real, IMG_MARKER_KEPT, err);
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
	return img_err_set(
		err, IMG_AGAIN,
		"%s: a stream is being received onto it (vhd-recv --onto), or was interrupted: "
		"the same command goes on, and vhd-recv --abort %s leaves the disk as it is",
		l->file.path, l->file.path);
}

int img_marker_check(struct img *l, struct img *child, const struct img_open *opts,
		     struct img_err *err)
{
	struct img_marker m;

	if (img_marker_read(l->file.real, &m, err) < 0)
		return -1;
	if (m.state == IMG_MARKER_NONE || m.state == IMG_MARKER_MERGED ||
	    m.state == IMG_MARKER_RECEIVING)
		img_absorbed_warn(l, child, opts);
	if (m.state == IMG_MARKER_NONE || m.state == IMG_MARKER_MERGED ||
	    (child && memcmp(child->info.uuid, m.child_uuid, 16) == 0))
		return 0;
	if (m.state == IMG_MARKER_RECEIVING)
		return check_receiving(l, opts, err);
	if (m.state == IMG_MARKER_MIDDLE)
		return img_err_set(err, IMG_DATA,
				   "%s: no disk by itself any more: it was merged as a part of %s, "
				   "and opens only below that",
				   l->file.path, m.leaf);
	return img_err_set(
		err, IMG_AGAIN,
		"%s: half merged: neither the old disk nor the new one; finish it with: vhd-merge --to=%s %s",
		l->file.path, l->file.real, m.leaf);
}

/* Of a disk that is replaced, or that is gone. */
int img_marker_check_new(const char *path, struct img_err *err)
{
	char *dir = io_dirname(path), *folder = dir ? realpath(dir, NULL) : NULL, *real = NULL;
	struct img_marker m = {.state = IMG_MARKER_NONE};
	int rc = 0;

	/* Without a folder nothing can be made, which is said where it is tried. */
	if (folder && asprintf(&real, "%s/%s", folder, io_basename(path)) < 0)
		real = NULL;
	if (real)
		rc = img_marker_read(real, &m, err);
	if (m.state == IMG_MARKER_RECEIVING)
		rc = img_err_set(
			err, IMG_AGAIN,
			"%s: not replaced: a stream is being received onto it, or was interrupted; "
			"vhd-recv --abort ends that",
			path);
	else if (m.state == IMG_MARKER_MERGED && img_absorbed_there(&m))
		rc = img_err_set(err, IMG_AGAIN,
				 "%s: not replaced: a merge was cut short; finish it first with: "
				 "vhd-merge --delete --to=%s %s",
				 path, path, m.leaf);
	else if (m.state != IMG_MARKER_NONE && m.state != IMG_MARKER_MERGED)
		rc = img_err_set(err, IMG_CANTCREAT,
				 "%s: not made: the disk of this name is half merged with %s, and "
				 "a new one would be taken for it; "
				 "finish that with vhd-merge, or remove %s" IMG_MARKER_SUFFIX
				 " if neither is needed any more",
				 path, m.leaf, path);
	free(real);
	free(folder);
	free(dir);
	return rc;
}
