/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Children of a disk. A parent knows nothing of them, so the files beside it and in the folders
 * that the user named are asked for their parent's UUID.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "img_impl.h"

/* A raw parent has no UUID: its name must do. */
static bool names_it(const struct img *l, const struct img *parent)
{
	static const uint8_t none[16];
	const char *name = l->info.parent_name, *base;

	if (!l->info.has_parent)
		return false;
	if (parent->info.has_uuid)
		return memcmp(l->info.parent_uuid, parent->info.uuid, 16) == 0;
	if (memcmp(l->info.parent_uuid, none, 16) != 0 || !name)
		return false;
	base = strrchr(name, '\\');
	return strcmp(io_basename(base ? base + 1 : name), io_basename(parent->file.real)) == 0;
}

static bool in_chain(const struct img_chain *c, const struct stat *st)
{
	struct stat other;

	for (unsigned i = 0; i < c->n; i++)
		if (fstat(c->layer[i]->file.fd, &other) == 0 && other.st_dev == st->st_dev &&
		    other.st_ino == st->st_ino)
			return true;
	return false;
}

/* A file that cannot be read, or is no VHD, is nobody's child. */
static bool is_child(const struct img_chain *c, const struct img *parent, const char *path)
{
	struct img_err ignored = { 0 };
	struct stat st;
	struct img *l;
	bool yes;

	/* Anything but a file could hang or do harm when it is opened. */
	if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || in_chain(c, &st) ||
	    img_layer_open(&l, path, false, true, RAW_NEVER, &ignored) < 0)
		return false;
	yes = names_it(l, parent);
	img_layer_close(l);
	return yes;
}

static int search_dir(const struct img_chain *c, const struct img *parent, const char *dir, char **child,
		      struct img_err *err)
{
	struct dirent *d;
	DIR *dp = opendir(dir);

	if (!dp)
		return errno == ENOENT || errno == EACCES ? 0 : img_err_errno(err, errno, "%s", dir);
	while (!*child && (d = readdir(dp))) {
		char *path;

		if (asprintf(&path, "%s/%s", dir, d->d_name) < 0) {
			closedir(dp);
			return img_err_errno(err, ENOMEM, "%s", dir);
		}
		if (is_child(c, parent, path))
			*child = path;
		else
			free(path);
	}
	closedir(dp);
	return 0;
}

int img_find_child(const struct img_chain *c, unsigned layer, const struct img_open *opts, char **child,
		   struct img_err *err)
{
	const struct img *parent = c->layer[layer];
	char *dir = io_dirname(parent->file.real);
	int rc;

	*child = NULL;
	if (!dir)
		return img_err_errno(err, ENOMEM, "%s", parent->file.path);
	rc = search_dir(c, parent, dir, child, err);
	for (size_t i = 0; rc == 0 && !*child && i < opts->nparent_dirs; i++)
		rc = search_dir(c, parent, opts->parent_dirs[i], child, err);
	free(dir);
	return rc;
}
