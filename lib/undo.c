/* SPDX-License-Identifier: BSD-2-Clause */
/* When old bytes are saved, put back and forgotten: the names that their sidecar has on its way. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "undo_sidecar.h"

#define MAX_NAMES 999u

static char *sidecar_name(const char *real, const char *suffix, unsigned n)
{
	char *path;
	int rc = n < 2 ? asprintf(&path, "%s.%s", real, suffix)
		       : asprintf(&path, "%s.%s.%u", real, suffix, n);

	return rc < 0 ? NULL : path;
}

static char *rollback_name(const char *real)
{
	return sidecar_name(real, "rollback", 0);
}

/* What cannot be looked for may be there: whoever opens it then learns more. */
static bool exists(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0 || (errno != ENOENT && errno != ENAMETOOLONG);
}

/* The number of the newest FILE.undo, 0: none. */
static int newest(const char *real, unsigned *number, struct img_err *err)
{
	*number = 0;
	for (unsigned n = 1; n <= MAX_NAMES; n++) {
		char *path = sidecar_name(real, "undo", n);

		if (!path)
			return img_err_errno(err, ENOMEM, "%s", real);
		if (exists(path))
			*number = n;
		free(path);
	}
	return 0;
}

/* What is finished goes out of the way: forgotten, or to its name as FILE.undo. */
static int tidy(const char *real, const char *path, struct img_err *err)
{
	enum sidecar_state state;
	unsigned n;
	char *to;
	int rc;

	if (sidecar_state(path, &state, err) < 0)
		return -1;
	if (state == SIDECAR_WANTED)
		return 0;
	if (state == SIDECAR_VOID)
		return io_unlink(path, err);
	if (newest(real, &n, err) < 0)
		return -1;
	to = sidecar_name(real, "undo", n + 1);
	rc = to ? io_rename_new(path, to, err) : img_err_errno(err, ENOMEM, "%s", real);
	free(to);
	return rc;
}

int undo_store(struct io_file *f, enum undo_kind kind, const struct undo_range *r, size_t n,
	       struct img_err *err)
{
	char *path = rollback_name(f->real);
	int rc = -1;

	if (!path)
		return img_err_errno(err, ENOMEM, "%s", f->path);
	if (f->block_device)
		img_err_set(
			err, IMG_DATA,
			"%s: a block device: there is no place beside it to save what is changed",
			f->path);
	else if (tidy(f->real, path, err) < 0)
		;
	else if (exists(path))
		img_err_set(err, IMG_AGAIN,
			    "%s: an earlier change was not finished; vhd-check --undo ends it",
			    f->path);
	else
		rc = sidecar_save(path, f, kind, r, n, err);
	free(path);
	return rc;
}

/* Puts back what PATH holds, and removes it. Doing it again does the same. */
static int apply(struct io_file *f, const char *path, bool force, struct img_err *err)
{
	struct sidecar s;
	int rc = -1;

	if (sidecar_open(&s, f, path, false, err) == 0 &&
	    (force || sidecar_check_identity(&s, f, err) == 0) &&
	    sidecar_restore(&s, f, err) == 0 && io_sync(f, err) == 0)
		rc = io_unlink(path, err);
	sidecar_free(&s);
	return rc;
}

int undo_pending(const char *real, bool *yes, struct img_err *err)
{
	char *path = rollback_name(real);
	enum sidecar_state state;
	int rc = 0;

	if (!path)
		return img_err_errno(err, ENOMEM, "%s", real);
	*yes = exists(path);
	if (*yes) {
		rc = sidecar_state(path, &state, err);
		*yes = state == SIDECAR_WANTED;
	}
	free(path);
	return rc;
}

static int apply_pending(struct io_file *f, bool force, struct img_err *err)
{
	char *path = rollback_name(f->real);
	int rc = 0;

	if (!path)
		return img_err_errno(err, ENOMEM, "%s", f->path);
	rc = tidy(f->real, path, err);
	if (rc == 0 && exists(path))
		rc = apply(f, path, force, err);
	free(path);
	return rc;
}

int undo_apply(struct io_file *f, struct img_err *err)
{
	return apply_pending(f, false, err);
}

void undo_tidy(struct io_file *f)
{
	char *path = rollback_name(f->real);
	struct img_err ignored = {0};

	if (path && exists(path))
		(void)tidy(f->real, path, &ignored);
	free(path);
}

int undo_settle(const char *real, bool *done, struct img_err *err)
{
	struct io_file f;
	int rc = -1;

	*done = false;
	if (undo_pending(real, done, err) < 0)
		return -1;
	if (!*done)
		return 0;
	if (io_open(&f, real, true, err) < 0)
		return -1;
	/* Whoever holds the lock may be the one who is changing the file right now. */
	if (io_lock(&f, IO_LOCK_EXCLUSIVE, err) == 0)
		rc = undo_apply(&f, err);
	io_close(&f);
	return rc;
}

int undo_newest(const char *real, char *name, size_t size, struct img_err *err)
{
	unsigned n;
	char *path;

	name[0] = '\0';
	if (newest(real, &n, err) < 0 || n == 0)
		return n == 0 ? 0 : -1;
	path = sidecar_name(real, "undo", n);
	if (!path)
		return img_err_errno(err, ENOMEM, "%s", real);
	snprintf(name, size, "%s", path);
	free(path);
	return 0;
}

int undo_finish(struct io_file *f, struct img_err *err)
{
	char *path = rollback_name(f->real);
	struct sidecar s;
	int rc = -1;

	if (!path)
		return img_err_errno(err, ENOMEM, "%s", f->path);
	if (sidecar_open(&s, f, path, true, err) == 0)
		rc = sidecar_end(&s, f, err);
	sidecar_free(&s);
	if (rc == 0)
		rc = tidy(f->real, path, err);
	free(path);
	return rc;
}

static int check_unchanged(struct io_file *f, const char *path, struct img_err *err)
{
	struct sidecar s;
	int rc = -1;

	if (sidecar_open(&s, f, path, false, err) == 0 && sidecar_check_identity(&s, f, err) == 0)
		rc = sidecar_check_unchanged(&s, f, err);
	sidecar_free(&s);
	return rc;
}

int undo_revert(struct io_file *f, bool force, struct img_err *err)
{
	char *from = NULL, *to = rollback_name(f->real);
	unsigned n;
	int rc = -1;

	if (!to || tidy(f->real, to, err) < 0 || newest(f->real, &n, err) < 0) {
		img_err_errno(err, ENOMEM, "%s", f->path);
		goto out;
	}
	if (exists(to)) {
		rc = apply_pending(f, force, err);
		goto out;
	}
	if (n == 0) {
		img_err_set(err, IMG_NOINPUT, "%s: nothing to undo: there is no %s.undo", f->path,
			    f->real);
		goto out;
	}
	from = sidecar_name(f->real, "undo", n);
	/* Under the other name it is finished by the next one who opens the disk, should we die. */
	if (!from)
		img_err_errno(err, ENOMEM, "%s", f->path);
	else if ((force || check_unchanged(f, from, err) == 0) &&
		 io_rename_new(from, to, err) == 0 && sidecar_drop_tail(to, err) == 0)
		rc = apply_pending(f, force, err);
out:
	free(from);
	free(to);
	return rc;
}
