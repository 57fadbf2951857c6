/* SPDX-License-Identifier: BSD-2-Clause */
/* --onto: FILE is closed while a child of it arrives, and then that is merged into it. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io.h"
#include "recv.h"

int recv_close_file(struct recv *r, struct img_err *err)
{
	struct img_receive rec = {.open = &r->common.open,
				  .child = r->child,
				  .partial = partial_image(r->partial),
				  .size = r->begin.size};

	memcpy(rec.uuid, r->uuid, 16);
	return img_receive_begin(r->base, &rec, err);
}

/* A run that was cut short while it removed the child. */
static int clean_up(struct recv *r, const struct img_open *opts, struct img_err *err)
{
	struct img_err e = {0};
	char *into = NULL;
	bool done = false;
	int rc = img_merge_clean_up(r->path, r->file, opts, &done, &into, &e);

	if (rc)
		*err = e;
	else if (done)
		img_err_clear(err);
	free(into);
	return done ? 0 : -1;
}

/* The child is whole: now it is merged, which may be interrupted and done again at any point. */
static int apply(struct recv *r, struct img_err *err)
{
	struct img_open opts = r->common.open;
	struct recv_dirs dirs;
	struct cli_progress progress;
	const struct img_merge merge = {
		.open = &opts, .del = true, .progress = cli_progress, .ctx = &progress};
	struct img_merge_stats stats;
	struct img_chain *c = NULL;
	uint8_t id[IMG_SUM_BYTES];
	int rc = -1;

	img_close(r->base);
	r->base = NULL;
	if (recv_parent_in(r, r->file, &opts, &dirs, err))
		return -1;
	opts.writable = opts.merge = true;
	cli_progress_start(&progress, &r->common, "merge");
	if (img_open(&c, r->path, &opts, err)) {
		if (err->code == IMG_NOINPUT && partial_is_applied(r->partial))
			rc = clean_up(r, &opts, err);
		goto out;
	}
	/* Since the locks of the base were given up. */
	if (img_identity(c, 1, img_layers(c), id, err))
		goto out;
	if (!partial_is_applied(r->partial) && memcmp(id, r->base_id, sizeof(id))) {
		img_err_set(err, IMG_AGAIN, "%s: was written to by somebody else just now",
			    r->file);
		goto out;
	}
	if (!partial_is_applied(r->partial) && img_merge_plan(c, &merge, &stats, err))
		goto out;
	if (partial_apply(r->partial, err) || img_merge(c, &merge, &stats, err))
		goto out;
	rc = 0;
out:
	cli_progress_end(&progress, 0);
	img_close(c);
	free(dirs.own);
	return rc;
}

/* An earlier run may have removed it already. */
static int drop_child(struct recv *r, struct img_err *err)
{
	struct stat st;

	img_sums_remove(r->path);
	return lstat(r->path, &st) == 0 || errno != ENOENT ? io_unlink(r->path, err) : 0;
}

/* Of FILE, for the receipt. Whoever uses it already may go on. */
static int tell_uuid(struct recv *r, struct img_err *err)
{
	struct img_open opts = r->common.open;
	struct img_chain *c = NULL;

	opts.maybe_raw = opts.single = opts.unlocked = true;
	if (img_open(&c, r->file, &opts, err))
		return -1;
	r->base_has_uuid = img_layer_info(c, 0)->has_uuid;
	memcpy(r->base_uuid, img_layer_info(c, 0)->uuid, 16);
	img_close(c);
	return 0;
}

/*
 * The child goes before FILE is opened again, unless a merge by hand left it there and says so.
 * Where it is there all the same, or FILE is another file, somebody has put FILE back.
 */
static int check_merged(const struct recv *r, struct img_err *err)
{
	const uint64_t want = partial_get(r->partial)->file;
	bool same = true;
	struct stat st;
	uint64_t id;

	if (partial_file_id(r->file, true, &id))
		return img_err_errno(err, errno, "%s", r->file);
	if (lstat(r->path, &st) == 0 && img_receive_kept(r->file, r->uuid, &same, err))
		return -1;
	if (same && (!want || id == want))
		return 0;
	return img_err_set(err, IMG_DATA,
			   "%s: was put back, or replaced, since what came was being merged into "
			   "it, and does not hold it; vhd-recv --abort drops that",
			   r->file);
}

/*
 * FILE is closed before the merge begins and opened again by its end: where it is open, a run that
 * had begun has ended.
 */
static int is_merged(const struct recv *r, bool *yes, struct img_err *err)
{
	enum img_receiving state;

	if (img_receive_state(r->file, &state, err))
		return -1;
	*yes = partial_is_applied(r->partial) && state == IMG_RECEIVING_NOT;
	return *yes ? check_merged(r, err) : 0;
}

int recv_apply(struct recv *r, struct img_err *err)
{
	bool merged;

	/* FILE is there, and opens, before the child goes. */
	if (is_merged(r, &merged, err) || (!merged && apply(r, err)) || tell_uuid(r, err) ||
	    partial_done(r->partial, err))
		return -1;
	return drop_child(r, err);
}
