/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Chains: a leaf and its parents. A child names its parent and may come from anywhere, so a
 * parent is opened only where the user said parents may be, only if it is a regular file, and
 * only if it is the one (UUID; size for a raw one).
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <dirent.h>
#include <sys/stat.h>

#include "img_impl.h"
#include "undo.h"
#include "vhd.h"

/* What was tried and why not, for the message when nothing fits. */
struct search {
	struct img *child;
	const struct img_open *opts;
	char *dir;	/* the child's real folder */
	char *found;	/* real path of the one that fits */
	struct stat st; /* the file that was looked at under that path */
	char tried[1400];
	int code; /* what to report when none fits */
	struct img_parent seen;
};

static void note(struct search *s, const char *path, const char *why)
{
	size_t n = strlen(s->tried);

	snprintf(s->tried + n, sizeof(s->tried) - n, "\n  %.300s: %.300s", path, why);
}

static bool below(const char *path, const char *dir)
{
	size_t n = strlen(dir);

	while (n > 1 && dir[n - 1] == '/')
		n--;
	return strncmp(path, dir, n) == 0 && (path[n] == '/' || (n == 1 && dir[0] == '/'));
}

/* Whether the user allowed parents where REAL lies. */
static bool allowed(const struct search *s, const char *real)
{
	char *dir = io_dirname(real);
	bool ok = s->opts->parent_anywhere || (dir && strcmp(dir, s->dir) == 0);

	free(dir);
	for (size_t i = 0; !ok && i < s->opts->nparent_dirs; i++) {
		char *d = realpath(s->opts->parent_dirs[i], NULL);

		ok = d && below(real, d);
		free(d);
	}
	return ok;
}

/*
 * Between the look at a name and the open, somebody may have put a link in its place or in that
 * of a folder on the way. io_open() follows no link in the name that it reports, so that name must
 * be the allowed one, and the file the one that was looked at.
 */
static int check_opened(const struct img *p, const char *real, const struct stat *want,
			struct img_err *err)
{
	struct stat st;

	if (fstat(p->file.fd, &st) == 0 && S_ISREG(st.st_mode) && strcmp(p->file.real, real) == 0 &&
	    io_same(&st, want))
		return 0;
	return img_err_set(err, IMG_DATA, "%s: replaced while it was opened", real);
}

/* Size is all the identity that a raw parent has. A child that has grown since remembers it. */
static bool raw_size_fits(const struct img_info *child, uint64_t size)
{
	return size == child->size || size == child->original_size;
}

/* Whether REAL is the parent that the child wants. */
static bool identity_fits(struct search *s, const char *real)
{
	static const uint8_t none[16];
	const struct img_info *ci = &s->child->info;
	bool raw = memcmp(ci->parent_uuid, none, 16) == 0, fits = false;
	char want[IMG_UUID_STR], got[IMG_UUID_STR], why[512];
	struct img_err e = {0};
	struct img *p;
	bool done;

	/* A change that was cut short must not hide whose file it is. */
	if (!s->opts->unlocked && !s->opts->parents_unlocked)
		(void)undo_settle(real, &done, NULL);
	if (img_layer_open(&p, real, false, true, raw ? RAW_ALWAYS : RAW_NEVER, &e) < 0) {
		note(s, real, e.msg);
		s->code = e.code == IMG_NOINPUT ? s->code : e.code;
		if (e.code == IMG_DATA && !s->seen.damaged)
			s->seen.damaged = strdup(real);
		return false;
	}
	if (check_opened(p, real, &s->st, &e) < 0) {
		snprintf(why, sizeof(why), "replaced while it was looked at");
	} else if (raw) {
		fits = raw_size_fits(ci, p->info.size);
		snprintf(why, sizeof(why),
			 "raw parent of %" PRIu64 " bytes, the child has %" PRIu64, p->info.size,
			 ci->size);
	} else {
		fits = memcmp(p->info.uuid, ci->parent_uuid, 16) == 0;
		img_uuid_str(ci->parent_uuid, want);
		img_uuid_str(p->info.uuid, got);
		snprintf(why, sizeof(why), "its UUID is %s, the child wants %s", got, want);
	}
	s->seen.size = p->info.size;
	s->seen.original_size = p->info.original_size;
	s->seen.mtime = s->st.st_mtime;
	img_layer_close(p);
	if (!fits) {
		note(s, real, why);
		s->code = IMG_DATA;
		s->seen.wrong = true;
	}
	return fits;
}

/* True ends the search. */
static bool try_path(struct search *s, const char *path)
{
	char *real = realpath(path, NULL), *dir, hint[512];
	bool ok = false;

	if (!real) {
		note(s, path, strerror(errno));
		return false;
	}
	if (lstat(real, &s->st) < 0 || !S_ISREG(s->st.st_mode)) {
		note(s, path, "not a regular file");
		s->code = IMG_DATA;
	} else if (!allowed(s, real)) {
		dir = io_dirname(real);
		snprintf(hint, sizeof(hint),
			 "outside the child's folder; --parent-dir=%s would allow it",
			 dir ? dir : "DIR");
		free(dir);
		note(s, real, hint);
		s->code = IMG_DATA;
		s->seen.refused = true;
	} else {
		ok = identity_fits(s, real);
	}
	if (ok)
		s->found = real;
	else
		free(real);
	return ok;
}

/* DIR/NAME, then any entry of DIR that differs only in case (Windows does not care). */
static bool try_in(struct search *s, const char *dir, const char *name, bool any_case)
{
	struct dirent *d;
	char *path = NULL;
	bool ok = false;
	DIR *dp;

	if (!any_case) {
		if (asprintf(&path, "%s/%s", dir, name) >= 0)
			ok = try_path(s, path);
		free(path);
		return ok;
	}
	dp = opendir(dir);
	while (dp && !ok && (d = readdir(dp))) {
		if (strcasecmp(d->d_name, name) != 0 || strcmp(d->d_name, name) == 0)
			continue;
		if (asprintf(&path, "%s/%s", dir, d->d_name) >= 0)
			ok = try_path(s, path);
		free(path);
		path = NULL;
	}
	if (dp)
		closedir(dp);
	return ok;
}

/* The recorded names, as they stand and by their last part, in every place that is allowed. */
static bool search_candidates(struct search *s, char *const *names)
{
	for (int i = 0; names[i]; i++)
		if (names[i][0] != '/' && try_in(s, s->dir, names[i], false))
			return true;
	for (int i = 0; names[i]; i++) {
		const char *base = io_basename(names[i]);

		if (i && strcmp(base, io_basename(names[i - 1])) == 0)
			continue;
		if (strcmp(base, names[i]) != 0 && try_in(s, s->dir, base, false))
			return true;
		for (size_t d = 0; d < s->opts->nparent_dirs; d++)
			if (try_in(s, s->opts->parent_dirs[d], base, false))
				return true;
		if (try_in(s, s->dir, base, true))
			return true;
	}
	for (int i = 0; names[i]; i++)
		if (names[i][0] == '/' && try_path(s, names[i]))
			return true;
	return false;
}

/* The layer that is this file; -1: none. */
static int layer_of(const struct img_chain *c, const struct stat *want)
{
	struct stat st;

	for (unsigned i = 0; i < c->n; i++)
		if (fstat(c->layer[i]->file.fd, &st) == 0 && io_same(&st, want))
			return (int)i;
	return -1;
}

/*
 * Before the parent is locked: a loop would meet our own lock and not be told from somebody
 * else's.
 */
static int check_loop(const struct img_chain *c, const char *path, struct img_err *err)
{
	struct stat want;

	if (stat(path, &want) < 0)
		return img_err_errno(err, errno, "%s", path);
	if (layer_of(c, &want) >= 0)
		return img_err_set(err, IMG_DATA, "%s: loop: it is its own ancestor, through %s",
				   path, c->layer[c->n - 1]->file.path);
	return 0;
}

/* Whether the parent at PATH is one that a merge writes to: the target, or a layer above it. */
static int merge_wants(struct img_chain *c, const char *path, const struct img_open *opts,
		       bool *writable, struct img_err *err)
{
	struct stat want, st;

	*writable = false;
	if (!opts->merge || c->merge_to)
		return 0;
	*writable = opts->writable;
	if (!opts->merge_to) {
		c->merge_to = 1;
		return 0;
	}
	if (stat(opts->merge_to, &want) < 0)
		return img_err_errno(err, errno, "%s", opts->merge_to);
	if (stat(path, &st) == 0 && io_same(&st, &want))
		c->merge_to = c->n;
	return 0;
}

/* Looks for the parent of the layer; S.found is its real path. */
static int find_parent(struct search *s, struct img_err *err)
{
	struct img *l = s->child;
	char **names = vhd_parent_candidates(l, err);
	int rc = -1;

	s->dir = io_dirname(l->file.real);
	if (names && s->dir && search_candidates(s, names))
		rc = 0;
	else
		img_err_set(err, s->code, "%s: its parent '%s' was not found or is not the one:%s",
			    l->file.path, names && names[0] ? names[0] : "(unnamed)",
			    s->tried[0] ? s->tried : " the child names none");
	for (int i = 0; names && names[i]; i++)
		free(names[i]);
	free(names);
	return rc;
}

int img_parent_find(struct img *child, const struct img_open *opts, struct img_parent *out,
		    struct img_err *err)
{
	struct search s = {.child = child, .opts = opts, .code = IMG_NOINPUT};
	struct img_err e = {0};

	(void)find_parent(&s, &e);
	free(s.dir);
	*out = s.seen;
	out->path = s.found;
	memcpy(out->tried, s.tried, sizeof(out->tried));
	if (e.code == IMG_AGAIN || e.code == IMG_IO)
		return img_err_set(err, e.code, "%s", e.msg);
	return 0;
}

void img_parent_free(struct img_parent *p)
{
	free(p->path);
	free(p->damaged);
	*p = (struct img_parent){0};
}

/* The parent that the caller names for the leaf. */
static int given_parent(struct search *s, const char *path, struct img_err *err)
{
	s->found = realpath(path, NULL);
	if (!s->found)
		return img_err_errno(err, errno, "%s", path);
	if (lstat(s->found, &s->st) < 0)
		return img_err_errno(err, errno, "%s", path);
	if (!S_ISREG(s->st.st_mode))
		return img_err_set(err, IMG_DATA, "%s: not a regular file", path);
	return 0;
}

/* The parent of the last layer so far. */
static int open_parent(struct img **out, struct img_chain *c, const struct img_open *opts,
		       struct img_err *err)
{
	static const uint8_t none[16];
	struct img *l = c->layer[c->n - 1];
	bool given = opts->parent && c->n == 1, raw = memcmp(l->info.parent_uuid, none, 16) == 0;
	struct search s = {.child = l, .opts = opts, .code = IMG_NOINPUT};
	bool writable = false;
	int rc = given ? given_parent(&s, opts->parent, err) : find_parent(&s, err);

	*out = NULL;
	if (rc == 0)
		rc = check_loop(c, s.found, err);
	if (rc == 0)
		rc = merge_wants(c, s.found, opts, &writable, err);
	if (rc == 0)
		rc = img_layer_open(out, s.found, writable,
				    opts->unlocked || opts->parents_unlocked,
				    given ? RAW_MAYBE
				    : raw ? RAW_ALWAYS
					  : RAW_NEVER,
				    err);
	if (rc == 0 && check_opened(*out, s.found, &s.st, err) < 0) {
		img_layer_close(*out);
		*out = NULL;
		rc = -1;
	}
	free(s.dir);
	free(s.found);
	free(s.seen.damaged);
	return rc;
}

static int check_new_layer(struct img_chain *c, struct img *l, const struct img_open *opts,
			   struct img_err *err)
{
	if (c->n == IMG_MAX_LAYERS)
		return img_err_set(err, IMG_DATA, "%s: the chain has more than %d layers",
				   c->layer[0]->file.path, IMG_MAX_LAYERS);
	if (img_marker_check(l, c->n ? c->layer[c->n - 1] : NULL, opts, err) < 0)
		return -1;
	if (c->n && l->info.size != c->layer[c->n - 1]->info.size)
		img_warn(l, "%" PRIu64 " bytes, but its child %s has %" PRIu64, l->info.size,
			 c->layer[c->n - 1]->file.path, c->layer[c->n - 1]->info.size);
	return 0;
}

/* Adds L and then its parents; on failure the caller closes C, which owns what it has. */
static int add_layers(struct img_chain *c, struct img *l, const struct img_open *opts,
		      struct img_err *err)
{
	while (l) {
		struct img *parent = NULL;

		if (check_new_layer(c, l, opts, err) < 0) {
			img_layer_close(l);
			return -1;
		}
		c->layer[c->n++] = l;
		/* Damage is found now, not in the middle of a copy or a merge. */
		if (!opts->single && l->ops->check(l, err) < 0)
			return -1;
		if (!opts->single && l->info.has_parent && open_parent(&parent, c, opts, err) < 0) {
			if (!opts->partial || !err || err->code != IMG_NOINPUT)
				return -1;
			img_err_clear(err);
		}
		if (parent)
			l->parent_size = parent->info.size;
		l = parent;
	}
	return 0;
}

int img_open(struct img_chain **out, const char *path, const struct img_open *opts,
	     struct img_err *err)
{
	struct img_chain *c = calloc(1, sizeof(*c));
	enum img_raw raw = opts->raw ? RAW_ALWAYS : opts->maybe_raw ? RAW_MAYBE : RAW_NEVER;
	struct img *leaf;

	*out = NULL;
	if (!c)
		return img_err_errno(err, ENOMEM, "%s", path);
	if (img_layer_open(&leaf, path, opts->writable, opts->unlocked, raw, err) < 0 ||
	    add_layers(c, leaf, opts, err) < 0) {
		img_close(c);
		return -1;
	}
	if (opts->merge && opts->merge_to && !c->merge_to && !opts->partial) {
		img_err_set(err, IMG_DATA, "%s: is not an ancestor of %s", opts->merge_to, path);
		img_close(c);
		return -1;
	}
	/* A merge has use for them first. */
	if (opts->writable && !opts->merge) {
		img_sums_remove(c->layer[0]->file.real);
		img_absorbed_written(c);
	}
	c->size = c->layer[0]->info.size;
	c->ignore_saved_state = opts->ignore_saved_state;
	*out = c;
	return 0;
}

void img_close(struct img_chain *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < c->n; i++)
		img_layer_close(c->layer[i]);
	free(c);
}

uint64_t img_size(const struct img_chain *c)
{
	return c->size;
}

unsigned img_layers(const struct img_chain *c)
{
	return c->n;
}

const struct img_info *img_layer_info(const struct img_chain *c, unsigned layer)
{
	return &c->layer[layer]->info;
}

const char *img_layer_path(const struct img_chain *c, unsigned layer)
{
	return c->layer[layer]->file.path;
}

const char *img_layer_real(const struct img_chain *c, unsigned layer)
{
	return c->layer[layer]->file.real;
}

int img_find_layer(const struct img_chain *c, const char *path, struct img_err *err)
{
	struct stat want;
	int layer;

	if (stat(path, &want) < 0)
		return img_err_errno(err, errno, "%s", path);
	layer = layer_of(c, &want);
	if (layer < 0)
		img_err_set(err, IMG_DATA, "%s is not an ancestor of %s", path,
			    c->layer[0]->file.path);
	return layer;
}

int img_snapshot(const char *parent, const char *child, const struct img_open *opts, bool force,
		 struct img_err *err)
{
	struct img_chain *c;
	struct img_create o = {.type = IMG_DIFFERENCING, .force = force};
	static const uint8_t none[16];
	struct stat st;
	int rc;

	if (img_open(&c, parent, opts, err) < 0)
		return -1;
	const struct img_info *i = img_layer_info(c, 0);

	o.size = c->size;
	o.block_size = i->block_size;
	o.parent_path = c->layer[0]->file.real;
	o.parent_uuid = i->has_uuid ? i->uuid : none;
	if (fstat(c->layer[0]->file.fd, &st) == 0 && st.st_mtime > VHD_EPOCH)
		o.parent_timestamp = (uint32_t)(st.st_mtime - VHD_EPOCH);
	rc = i->size % SECTOR ? img_err_set(err, IMG_DATA,
					    "%s: size %" PRIu64
					    " is no multiple of 512, a VHD child cannot have it",
					    parent, i->size)
			      : 0;
	if (rc == 0 && c->n == IMG_MAX_LAYERS)
		rc = img_err_set(err, IMG_DATA, "%s: the chain has %d layers already", parent,
				 IMG_MAX_LAYERS);
	if (rc == 0)
		rc = img_create(child, &o, err);
	img_close(c);
	return rc;
}

int img_push_open(struct img_chain *c, const char *child, struct img **layer, struct img_err *err)
{
	struct img *l, *leaf = c->layer[0];
	struct img_ext ext = {0};
	int rc = -1;

	if (img_layer_open(&l, child, true, false, RAW_NEVER, err) < 0)
		return -1;
	if (c->n == IMG_MAX_LAYERS)
		img_err_set(err, IMG_DATA, "%s: the chain has %d layers already", child,
			    IMG_MAX_LAYERS);
	else if (l->info.type != IMG_DIFFERENCING || l->info.size != leaf->info.size ||
		 memcmp(l->info.parent_uuid, leaf->info.uuid, 16) != 0)
		img_err_set(err, IMG_DATA, "%s: not a differencing child of %s", child,
			    leaf->file.path);
	else
		rc = 0;
	for (uint64_t off = 0; rc == 0 && off < l->info.size; off += ext.len) {
		rc = l->ops->map(l, off, l->info.size - off, &ext, err);
		if (rc == 0 && ext.kind != EXT_HOLE)
			rc = img_err_set(err, IMG_DATA,
					 "%s: not empty: it has data at offset %" PRIu64, child,
					 off);
	}
	if (rc < 0) {
		img_layer_close(l);
	} else {
		img_sums_remove(l->file.real);
		*layer = l;
	}
	return rc;
}

int img_push(struct img_chain *c, struct img *layer, struct img_err *err)
{
	/* From here on the old leaf is a parent, which others may read. */
	if (io_lock(&c->layer[0]->file, IO_LOCK_SHARED, err) < 0)
		return -1;
	c->layer[0]->file.writable = false;
	memmove(c->layer + 1, c->layer, c->n * sizeof(c->layer[0]));
	c->layer[0] = layer;
	c->n++;
	return 0;
}

void img_push_cancel(struct img *layer)
{
	img_layer_close(layer);
}
