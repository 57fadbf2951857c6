/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * FILE is there already. Perhaps an earlier run made it of the same disk, and was killed, or its
 * answer was lost. Then the same command proves it, and gives the receipt: nothing is written, the
 * stream is compared with FILE as it comes. The first difference ends that: FILE exists.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "bytes.h"
#include "io.h"
#include "readback.h"
#include "recv.h"

int recv_exists(const struct recv *r, struct img_err *err)
{
	struct stat st;
	bool plain = stat(r->file, &st) < 0 || S_ISREG(st.st_mode);

	return img_err_set(err, IMG_CANTCREAT, "%s: exists%s", r->file,
			   plain ? "; --force replaces it"
				 : " and is no regular file; not replaced");
}

static int differs(const struct recv *r, uint64_t off, struct img_err *err)
{
	return img_err_set(
		err, IMG_CANTCREAT,
		"%s: exists, and is another disk than the stream's from byte %llu on; --force replaces it",
		r->file, (unsigned long long)off);
}

static int open_there(struct recv *r, struct img_open *opts, struct recv_dirs *dirs,
		      struct img_err *err)
{
	*opts = r->common.open;
	opts->raw = r->create.type == IMG_RAW;
	return r->parent ? recv_parent_in(r, r->parent, opts, dirs, err) : 0;
}

/* As far as can be told before the first byte. */
static bool may_be(const struct recv *r)
{
	const struct stream_begin *b = &r->begin;
	const struct img_info *i = img_layer_info(r->there, 0);

	if (img_size(r->there) != b->size || i->type != r->create.type)
		return false;
	if (b->has_uuid && i->has_uuid && memcmp(i->uuid, b->uuid, 16))
		return false;
	/* The link may lead to another version of the base. */
	return b->kind == STREAM_WHOLE ||
	       (!memcmp(i->parent_uuid, b->base_uuid, 16) &&
		io_same_file(img_layer_real(r->there, 1), img_layer_real(r->base, 0)));
}

int recv_there_begin(struct recv *r, struct img_err *err)
{
	struct recv_dirs dirs = {.own = NULL};
	struct img_err why = {0};
	struct img_open opts;
	int rc;

	/* With a UUID of its own it would be another one every time. */
	if (r->new_uuid || r->begin.kind == STREAM_DIFFERENCE)
		return recv_exists(r, err);
	rc = open_there(r, &opts, &dirs, &why) || img_open(&r->there, r->file, &opts, &why);
	free(dirs.own);
	if (rc || !may_be(r))
		return recv_exists(r, err);
	memcpy(r->uuid, img_layer_info(r->there, 0)->uuid, 16);
	r->there_buf = aligned_alloc(4096, STREAM_PIECE);
	return r->there_buf ? 0 : img_err_errno(err, ENOMEM, "%s", r->file);
}

int recv_there_data(struct recv *r, uint64_t off, const uint8_t *buf, uint64_t len,
		    struct img_err *err)
{
	struct img_run run;

	for (uint64_t n; len; off += n, buf = buf ? buf + n : NULL, len -= n) {
		n = u64_min(len, STREAM_PIECE);
		if (!buf) {
			if (img_map(r->there, off, len, img_layers(r->there), &run, err))
				return -1;
			n = u64_min(run.len, run.kind == IMG_DATA_RUN ? STREAM_PIECE : len);
			if (run.kind != IMG_DATA_RUN)
				continue;
		}
		if (img_read(r->there, r->there_buf, off, n, err))
			return -1;
		if (buf ? memcmp(buf, r->there_buf, n) != 0 : !bytes_are_zero(r->there_buf, n))
			return differs(r, off, err);
	}
	return 0;
}

/* Of the run that made FILE and was killed before it said so. */
static void forget_log(const struct recv *r)
{
	struct img_err ignored = {0};
	struct partial *p;

	if (partial_open(&p, r->file, PARTIAL_FIND, &ignored) == 0 && p && partial_is_published(p))
		(void)partial_remove(p, false, &ignored);
	partial_close(p);
}

int recv_there_end(struct recv *r, struct img_err *err)
{
	struct recv_dirs dirs = {.own = NULL};
	struct cli_progress progress;
	struct img_open opts;
	bool same = true;
	int rc = 0;

	/* The run that made it may have died before that was durable. */
	if (readback_sync(r->file, err) || io_sync_dir_of(r->file, err) ||
	    open_there(r, &opts, &dirs, err))
		return -1;
	cli_progress_start(&progress, &r->common, "verify");
	/* An increment is only the same if FILE itself has no more than that. */
	if (r->verify || r->begin.kind != STREAM_WHOLE)
		rc = readback_compare(r->file, &opts, &r->begin, &r->totals, &progress, &same, err);
	free(dirs.own);
	if (rc == 0 && !same)
		rc = recv_exists(r, err);
	if (rc == 0 && r->published)
		forget_log(r);
	return rc;
}
