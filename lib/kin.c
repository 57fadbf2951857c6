/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The other children of a disk, as far as they can be found: a parent does not know its
 * children, so the folders are read in which they may lie.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "img_impl.h"
#include "undo.h"
#include "vhd.h"

/* A raw parent has no identity: its children are those that name a file of its name. */
static bool names_raw(struct img *child, const struct img *parent)
{
	char **names = vhd_parent_candidates(child, NULL);
	bool yes = false;

	for (int i = 0; names && names[i]; i++) {
		yes |= strcmp(io_basename(names[i]), io_basename(parent->file.real)) == 0;
		free(names[i]);
	}
	free(names);
	return yes;
}

static bool is_child(struct img *l, const struct img *parent)
{
	static const uint8_t none[16];

	if (l->info.type != IMG_DIFFERENCING)
		return false;
	if (parent->info.has_uuid)
		return memcmp(l->info.parent_uuid, parent->info.uuid, 16) == 0;
	return memcmp(l->info.parent_uuid, none, 16) == 0 && names_raw(l, parent);
}

enum { PARENT_UUID = 40 }; /* in the header, vhd-format §7 */

/* As the footer at OFF says where the header is, whatever its checksum says of that. */
static uint64_t header_off(struct io_file *f, uint64_t off)
{
	uint8_t buf[VHD_FOOTER_LEN];
	struct vhd_footer footer = {0};

	if (io_read(f, buf, sizeof(buf), off, NULL) < 0)
		return 0;
	(void)vhd_footer_decode(buf, &footer);
	return footer.data_off;
}

static bool header_names(struct io_file *f, uint64_t off, const struct img *parent)
{
	static const uint8_t none[16];
	uint8_t buf[VHD_HEADER_LEN];
	enum vhd_verdict verdict;
	struct vhd_header h;
	char *name;
	bool yes;

	if (!off || io_read(f, buf, sizeof(buf), off, NULL) < 0)
		return false;
	/* No 16 bytes are there by chance. */
	if (parent->info.has_uuid)
		return memcmp(buf + PARENT_UUID, parent->info.uuid, 16) == 0;
	verdict = vhd_header_decode(buf, &h);
	if ((verdict != VHD_OK && verdict != VHD_BAD_CHECKSUM) ||
	    memcmp(h.parent_uuid, none, 16) != 0)
		return false;
	name = vhd_utf16_get(h.parent_name, sizeof(h.parent_name), true);
	yes = name && strcmp(io_basename(name), io_basename(parent->file.real)) == 0;
	free(name);
	return yes;
}

/*
 * A disk that does not open: it may be mended, so it counts as long as there is a header that says
 * whose child it is. What is still being made, or was, is not a disk yet.
 */
static bool was_child(const char *path, const struct img *parent)
{
	const char *base = io_basename(path), *dot = strrchr(base, '.');
	uint64_t size, at[3] = {VHD_FOOTER_LEN};
	bool yes = false;
	struct io_file f;

	if ((base[0] == '.' && dot && strcmp(dot, ".tmp") == 0) ||
	    io_open(&f, path, false, NULL) < 0)
		return false;
	if (io_size(&f, &size, NULL) == 0 && size >= VHD_FOOTER_LEN) {
		at[1] = header_off(&f, 0);
		at[2] = header_off(&f, size - VHD_FOOTER_LEN);
	}
	for (int i = 0; i < 3; i++)
		yes |= header_names(&f, at[i], parent);
	io_close(&f);
	return yes;
}

static bool in_chain(const struct img_chain *c, const struct stat *st)
{
	struct stat have;

	for (unsigned i = 0; i < c->n; i++)
		if (fstat(c->layer[i]->file.fd, &have) == 0 && have.st_dev == st->st_dev &&
		    have.st_ino == st->st_ino)
			return true;
	return false;
}

/* SETTLE: a change of its link that was cut short is undone first, as the next open would do. */
static int try_file(const struct img_chain *c, const struct img *parent, const char *path,
		    bool settle, img_kin_fn *fn, void *ctx, struct img_err *err)
{
	struct img_err ignored = {0};
	struct stat st;
	struct img *l;
	char *real;
	bool done;
	int rc = 0;

	if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || in_chain(c, &st))
		return 0;
	if (settle)
		(void)undo_settle(path, &done, NULL);
	if (img_layer_open(&l, path, false, true, RAW_NEVER, &ignored) < 0) {
		real = was_child(path, parent) ? realpath(path, NULL) : NULL;
		rc = real ? fn(ctx, real, err) : 0;
		free(real);
		return rc;
	}
	if (is_child(l, parent))
		rc = fn(ctx, l->file.real, err);
	img_layer_close(l);
	return rc;
}

static int search_dir(const struct img_chain *c, const struct img *parent, const char *dir,
		      bool settle, img_kin_fn *fn, void *ctx, struct img_err *err)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	char *path;
	int rc = 0;

	while (d && rc == 0 && (errno = 0, e = readdir(d))) {
		if (asprintf(&path, "%s/%s", dir, e->d_name) < 0) {
			rc = img_err_errno(err, ENOMEM, "%s", dir);
			break;
		}
		rc = try_file(c, parent, path, settle, fn, ctx, err);
		free(path);
	}
	/* A folder that is not there holds none. */
	if (rc == 0 && errno && (d || errno != ENOENT))
		rc = img_err_errno(
			err, errno,
			"%s: cannot be read, so nobody knows whether %s has another child there",
			dir, parent->file.path);
	if (d)
		closedir(d);
	return rc;
}

/* The folders without repetition: the parent's, the leaf's, those that may hold parents. */
static int kin_dirs(const struct img_chain *c, const struct img *parent,
		    const struct img_open *opts, char **dirs)
{
	size_t n = 0, given = opts ? opts->nparent_dirs : 0;

	for (size_t i = 0; i < given + 2; i++) {
		char *name = i == 0   ? io_dirname(parent->file.real)
			     : i == 1 ? io_dirname(c->layer[0]->file.real)
				      : realpath(opts->parent_dirs[i - 2], NULL);
		bool seen = !name;

		for (size_t k = 0; k < n; k++)
			seen |= name && strcmp(name, dirs[k]) == 0;
		if (seen)
			free(name);
		else
			dirs[n++] = name;
	}
	return (int)n;
}

int img_kin_each(const struct img_chain *c, const struct img *parent, const struct img_open *opts,
		 img_kin_fn *fn, void *ctx, struct img_err *err)
{
	char **dirs = calloc((opts ? opts->nparent_dirs : 0) + 2, sizeof(*dirs));
	int rc = 0, n;

	if (!dirs)
		return img_err_errno(err, ENOMEM, "%s", parent->file.path);
	n = kin_dirs(c, parent, opts, dirs);
	for (int i = 0; i < n; i++) {
		if (rc == 0)
			rc = search_dir(c, parent, dirs[i], opts && !opts->unlocked, fn, ctx, err);
		free(dirs[i]);
	}
	free(dirs);
	return rc;
}
