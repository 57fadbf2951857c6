/* SPDX-License-Identifier: BSD-2-Clause */
/* The second half of --onto: the child that was received is merged into FILE. */
#include "config.h"

#include <string.h>
#include <sys/stat.h>

#include "io.h"
#include "recv.h"

/* The child is whole: now it is merged, which may be interrupted and done again at any point. */
static int apply(struct recv *r, struct img_err *err)
{
	struct img_open opts = r->common.open;
	struct cli_progress progress;
	const struct img_merge merge = {.open = &opts, .progress = cli_progress, .ctx = &progress};
	struct img_merge_stats stats;
	struct img_chain *c = NULL;
	uint8_t id[IMG_SUM_BYTES];
	int rc = -1;

	img_close(r->base);
	r->base = NULL;
	opts.writable = opts.merge = true;
	cli_progress_start(&progress, &r->common, "merge");
	if (img_open(&c, r->path, &opts, err))
		goto out;
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
	rc = partial_done(r->partial, err);
out:
	cli_progress_end(&progress, 0);
	img_close(c);
	return rc;
}

/* An earlier run may have removed it already. */
static int drop_child(struct recv *r, struct img_err *err)
{
	struct stat st;

	return lstat(r->path, &st) == 0 ? io_unlink(r->path, err) : 0;
}

/* Of FILE, for the receipt. */
static int tell_uuid(struct recv *r, struct img_err *err)
{
	struct img_open opts = r->common.open;
	struct img_chain *c = NULL;

	opts.maybe_raw = opts.single = true;
	if (img_open(&c, r->file, &opts, err))
		return -1;
	r->base_has_uuid = img_layer_info(c, 0)->has_uuid;
	memcpy(r->base_uuid, img_layer_info(c, 0)->uuid, 16);
	img_close(c);
	return 0;
}

int recv_apply(struct recv *r, struct img_err *err)
{
	if (!partial_is_done(r->partial) && apply(r, err))
		return -1;
	return drop_child(r, err) || tell_uuid(r, err) ? -1 : 0;
}
