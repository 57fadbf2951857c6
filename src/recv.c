/* SPDX-License-Identifier: BSD-2-Clause */
/* A stream becomes a disk, or nothing does. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "io.h"
#include "readback.h"
#include "receipt.h"
#include "recv.h"

/* The disk works while the stream comes in, instead of all at the end. */
enum { WRITEBACK = 16 << 20 };
/* Of zeros that a child must hold at once: each block that they touch is written to. */
enum { ZERO_STEP = 256 << 20 };

static int show(struct recv *r, struct img_err *err)
{
	if (!r->show)
		return 0; /* the pipe's reader asks for signals */
	if (cli_progress(&r->progress, r->done, r->begin.planned_bytes))
		return img_err_set(err, IMG_AGAIN, "%s: interrupted", r->file);
	return 0;
}

/* Before anything is written. */
static int prepare(struct recv *r, const struct stream_begin *begin, struct img_err *err)
{
	r->begin = *begin;
	if (recv_fits(r, err))
		return -1;
	/* An increment will be merged soon, and is read for that. */
	r->create.direct = begin->kind == STREAM_WHOLE;
	cli_progress_start(&r->progress, &r->common, r->file);
	return 0;
}

static int describe(const struct recv *r, struct partial_head *h, struct img_err *err)
{
	const struct stream_begin *b = &r->begin;

	memset(h, 0, sizeof(*h));
	memcpy(h->what.stream_id, b->stream_id, 16);
	h->what.compressed = b->compressed;
	h->what.kind = b->kind;
	h->what.size = b->size;
	h->what.has_source = b->has_source;
	memcpy(h->what.source, b->source, sizeof(b->source));
	memcpy(h->what.uuid, b->uuid, 16);
	memcpy(h->what.base_uuid, b->base_uuid, 16);
	h->type = r->create.type;
	h->block_size = r->create.block_size;
	memcpy(h->uuid, r->uuid, 16);
	h->began = (uint64_t)time(NULL);
	h->onto = r->onto;
	memcpy(h->base, r->base_id, sizeof(h->base));
	(void)img_identity_boot(h->boot);
	snprintf(h->parent, sizeof(h->parent), "%s", r->parent && !r->onto ? r->parent : "");
	return r->onto && partial_file_id(r->file, true, &h->file)
		       ? img_err_errno(err, errno, "%s", r->file)
		       : 0;
}

static bool is_in_the_way(const struct recv *r)
{
	struct stat st;

	return !r->force && !r->onto && lstat(r->file, &st) == 0;
}

/*
 * Of what is kept, or will be. Where FILE is there, also since another run made it while this one
 * waited, nothing will.
 */
static int take_hold(struct recv *r, struct img_err *err)
{
	if (partial_open(&r->partial, r->file, is_in_the_way(r) ? PARTIAL_FIND : PARTIAL_MAKE, err))
		return -1;
	r->exists = is_in_the_way(r);
	if (!r->exists)
		return r->partial ? 0 : partial_open(&r->partial, r->file, PARTIAL_MAKE, err);
	if (r->partial) {
		struct img_err ignored = {0};

		/* By a run that was killed before it said so. */
		r->published = partial_is_published(r->partial);
		if (!partial_mark(r->partial))
			(void)partial_remove(r->partial, false, &ignored);
		partial_close(r->partial);
		r->partial = NULL;
	}
	return 0;
}

static int on_begin(void *ctx, const struct stream_begin *begin, struct img_err *err)
{
	struct recv *r = ctx;
	struct partial_head head;

	/* First of all: FILE may be closed for what an earlier run has left. */
	if (take_hold(r, err))
		return -1;
	if (r->exists)
		return prepare(r, begin, err) || recv_there_begin(r, err) ? -1 : 0;
	if (prepare(r, begin, err))
		return -1;
	/* A difference is from the same disk: its child must be another one. */
	if (begin->has_uuid && !r->new_uuid && begin->kind != STREAM_DIFFERENCE && !r->onto)
		memcpy(r->uuid, begin->uuid, 16);
	else
		img_uuid_new(r->uuid);
	if (img_create_check(r->path, &r->create, err) || (r->onto && recv_close_file(r, err)))
		return -1;
	if (partial_mark(r->partial) && !r->common.quiet)
		cli_warn(
			"%s: what was there of it is dropped, the stream begins anew; vhd-send --resume goes on",
			r->file);
	r->create.partial = partial_image(r->partial);
	if (describe(r, &head, err) || partial_begin(r->partial, &head, err))
		return -1;
	return img_create_begin(&r->new, r->path, &r->create, err);
}

/* The same stream, and the same wishes as when it was begun? */
static int check_partial(struct recv *r, const struct stream_begin *begin, struct img_err *err)
{
	const struct partial_head *h;

	if (!r->partial || !partial_mark(r->partial))
		return img_err_set(err, IMG_AGAIN,
				   "%s: nothing is there to go on with; ask for the token again",
				   r->file);
	h = partial_get(r->partial);
	if (memcmp(h->what.stream_id, begin->stream_id, 16))
		return img_err_set(
			err, IMG_AGAIN,
			"%s: what is there is of another stream; ask for the token again", r->file);
	if (h->onto != r->onto || strcmp(h->parent, r->parent && !r->onto ? r->parent : ""))
		return img_err_set(err, IMG_USAGE, "%s: was begun with %s%s", r->file,
				   h->onto	? "--onto"
				   : *h->parent ? "--parent="
						: "neither --parent nor --onto",
				   h->parent);
	if (h->what.size != begin->size || h->what.kind != begin->kind)
		return img_err_set(err, IMG_PROTO, "the stream goes on as one of another disk");
	return 0;
}

/*
 * What is known of a base's content may not be enough to tell, so it must be the one that the first
 * part came for. A difference is compared with the disk that was sent; once FILE is there, or half
 * merged, it does not depend on this.
 */
static int check_base_same(struct recv *r, struct img_err *err)
{
	const struct partial_head *h = partial_get(r->partial);
	uint8_t boot[16] = {0};
	const bool told = r->verify_base || r->base_changed || r->begin.kind != STREAM_INCREMENT;

	if (partial_is_applied(r->partial) ||
	    (!r->onto && (told || partial_is_published(r->partial))))
		return 0;
	(void)img_identity_boot(boot);
	/* After power loss content may be newer than times. With --onto the base is closed. */
	if (!memcmp(h->base, r->base_id, sizeof(r->base_id)))
		return r->onto || !memcmp(h->boot, boot, sizeof(boot)) ? 0
								       : recv_compare_base(r, err);
	return img_err_set(err, IMG_DATA,
			   "%s: was written to since the first part was received; %svhd-recv "
			   "--abort drops that",
			   r->parent, r->onto ? "" : "--verify-base compares it, ");
}

static int on_resume(void *ctx, const struct stream_begin *begin, struct stream_mark *mark,
		     struct img_sum *content, struct img_err *err)
{
	struct recv *r = ctx;
	const struct partial_head *h;

	if (partial_open(&r->partial, r->file, PARTIAL_FIND, err) || check_partial(r, begin, err))
		return -1;
	if (!partial_is_published(r->partial) && is_in_the_way(r))
		return recv_exists(r, err);
	h = partial_get(r->partial);
	if (partial_is_applied(r->partial)) {
		/*
		 * FILE opens below its child only: there is nothing to prepare, the merge looks
		 * itself.
		 */
		r->begin = *begin;
		r->create.type = h->type;
		cli_progress_start(&r->progress, &r->common, r->file);
	} else if (prepare(r, begin, err)) {
		return -1;
	}
	if (check_base_same(r, err))
		return -1;
	if (r->type != TYPE_KEEP && h->type != r->create.type)
		return img_err_set(err, IMG_USAGE, "%s: was begun with --type=%s", r->file,
				   img_type_name(h->type));
	r->create.type = h->type;
	r->create.block_size = h->block_size;
	memcpy(r->uuid, h->uuid, 16);
	if (r->onto && !partial_is_applied(r->partial) && recv_close_file(r, err))
		return -1;
	*mark = *partial_mark(r->partial);
	r->published = partial_is_published(r->partial);
	if (partial_resume(r->partial, content, err))
		return -1;
	r->done = mark->data_bytes;
	r->create.partial = partial_image(r->partial);
	if (r->published)
		return 0;
	return img_create_resume(&r->new, r->path, &r->create, mark->off, partial_end(r->partial),
				 err);
}

static void on_chunks(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	struct recv *r = ctx;

	if (!r->exists)
		partial_chunks(r->partial, first, n, sum);
}

static int on_mark(void *ctx, const struct stream_mark *mark, struct img_err *err)
{
	struct recv *r = ctx;

	if (r->published || r->exists)
		return 0;
	return partial_set_mark(r->partial, r->new, mark, mark->off == r->begin.size, err);
}

static int on_data(void *ctx, uint64_t off, const void *buf, size_t len, struct img_err *err)
{
	struct recv *r = ctx;

	if (r->exists) {
		r->done += len;
		return recv_there_data(r, off, buf, len, err) || show(r, err) ? -1 : 0;
	}
	if (!r->new)
		return img_err_set(err, IMG_PROTO, "data behind the end of the disk");
	if (img_write(img_new_chain(r->new), buf, off, len, false, err))
		return -1;
	r->done += len;
	r->unwritten += len;
	if (r->unwritten >= WRITEBACK) {
		r->unwritten = 0;
		partial_writeback(r->partial, r->new);
	}
	return show(r, err);
}

/* A new file without a parent reads as zeros wherever nothing was written; a child must say so. */
static int on_zero(void *ctx, uint64_t off, uint64_t len, struct img_err *err)
{
	struct recv *r = ctx;
	uint64_t n;

	if (r->exists)
		return recv_there_data(r, off, NULL, len, err);
	if (!r->new)
		return img_err_set(err, IMG_PROTO, "zeros behind the end of the disk");
	for (; r->create.type == IMG_DIFFERENCING && len; off += n, len -= n) {
		n = u64_min(len, ZERO_STEP);
		if (img_zero(img_new_chain(r->new), off, n, false, err))
			return -1;
		/* One record may say it of millions of blocks. */
		if (cli_interrupted())
			return img_err_set(err, IMG_AGAIN, "%s: interrupted", r->file);
	}
	return 0;
}

/* A child must also find its parent from where it is now, which was named by the user. */
static int verify(struct recv *r, struct img_err *err)
{
	const char *path = r->new ? img_layer_real(img_new_chain(r->new), 0) : r->path;
	struct img_open opts = r->common.open;
	struct recv_dirs dirs = {.own = NULL};
	struct cli_progress progress;
	int rc;

	opts.raw = r->create.type == IMG_RAW;
	if (r->parent && recv_parent_in(r, r->parent, &opts, &dirs, err))
		return -1;
	cli_progress_start(&progress, &r->common, "verify");
	if (r->verify)
		rc = readback_check(path, &opts, &r->begin, &r->totals, &progress, err);
	else
		rc = readback_difference(path, &opts, &r->totals, &progress, err);
	cli_progress_end(&progress, r->begin.size);
	free(dirs.own);
	return rc;
}

/*
 * Asked for; and a difference in any case: it is from what the sums of its base were of, and that
 * base may have changed since. Before it is merged; afterwards nothing can be taken back.
 */
static bool is_verified(const struct recv *r)
{
	if (r->onto && partial_is_done(r->partial))
		return false;
	return r->verify || (r->begin.kind == STREAM_DIFFERENCE && !r->base_changed &&
			     !(r->onto && partial_is_applied(r->partial)));
}

/* All is in the image, and in the log what was summed on the way. */
static struct img_sums *take_sums(struct recv *r)
{
	struct img_sums *s = img_sums_begin_new(img_new_chain(r->new), r->base);

	if (s)
		partial_each(r->partial, img_sums_add, s);
	return s;
}

/* They are of the file under its name. That nobody has written to it since is seen by them. */
static void keep_sums(struct recv *r, struct img_sums *s)
{
	struct img_open opts = r->common.open;
	struct recv_dirs dirs = {0};
	struct img_chain *c = NULL;
	struct img_err ignored = {0};

	if (!s)
		return;
	opts.raw = r->create.type == IMG_RAW;
	if ((!r->base || recv_parent_in(r, r->parent, &opts, &dirs, &ignored) == 0) &&
	    img_open(&c, r->path, &opts, &ignored) == 0)
		img_sums_store(s, c);
	else
		img_sums_drop(s);
	img_close(c);
	free(dirs.own);
}

/* Everything was verified as it came; now it becomes a disk. */
static int finish(struct recv *r, struct img_err *err)
{
	struct img_new *new = r->new;
	struct img_sums *sums = NULL;

	if (r->exists) {
		r->verified = r->verify;
		return recv_there_end(r, err);
	}
	r->verified = r->verify && is_verified(r);
	if (is_verified(r)) {
		if ((new &&img_create_complete(new, err)) || verify(r, err)) {
			/* Once it is being merged, the disk opens below it only. */
			r->worthless = (err->code == IMG_IO || err->code == IMG_DATA) &&
				       !partial_is_applied(r->partial);
			return -1;
		}
	}
	if (new &&img_create_complete(new, err))
		return -1;
	if (new)
		sums = take_sums(r);
	r->new = NULL;
	if (new &&img_create_finish(new, err)) {
		img_sums_drop(sums);
		return -1;
	}
	/* The run that gave it its name may have died before that was durable. */
	if (r->published && io_sync_dir_of(r->path, err))
		return -1;
	keep_sums(r, sums);
	return r->onto ? recv_apply(r, err) : 0;
}

static int report(struct recv *r, struct img_err *err)
{
	struct receipt receipt = {.file = r->file,
				  .parent = r->onto ? NULL : r->parent,
				  .begin = &r->begin,
				  .totals = &r->totals,
				  .verified = r->verified};
	char *text;
	int rc = 0;

	if (r->onto && r->base_has_uuid)
		receipt.uuid = r->base_uuid;
	else if (!r->onto && r->create.type != IMG_RAW)
		receipt.uuid = r->uuid;
	text = receipt_json(&receipt);
	if (!text)
		return img_err_errno(err, ENOMEM, "%s", r->file);
	if (fputs(text, r->out) < 0 || fflush(r->out))
		rc = img_err_errno(err, errno == ENOSPC ? EIO : errno, "standard output");
	if (r->receipt && !rc)
		rc = receipt_store(r->receipt, text, r->force, err);
	free(text);
	return rc;
}

static int receive(struct recv *r, struct img_err *err)
{
	const struct stream_pipe from = {
		.fd = r->in, .name = "standard input", .stop = cli_interrupted};
	const struct stream_visitor visitor = {.ctx = r,
					       .apart = true,
					       .begin = on_begin,
					       .data = on_data,
					       .zero = on_zero,
					       .mark = on_mark,
					       .chunks = on_chunks,
					       .resume = on_resume};

	/* Before the work, not after it: the receipt needs somewhere to go. And no file may get
	 * a standard stream's number. */
	if (!cli_usable(r->in) || !cli_usable(fileno(r->out)))
		return img_err_set(err, IMG_IO, "standard input or standard output is closed");
	if (r->onto && !(r->path = r->child = partial_child(r->file)))
		return img_err_errno(err, ENOMEM, "%s", r->file);
	if (r->receipt && receipt_check(r->receipt, r->force, err))
		return -1;
	if (stream_read(&from, &visitor, &r->totals, err))
		return -1;
	if (r->show)
		cli_progress_end(&r->progress, r->done);
	return finish(r, err);
}

/* What was made durable stays, all else goes. */
static void clean_up(struct recv *r)
{
	struct img_err ignored = {0};

	if (!r->partial) {
		img_create_abort(r->new);
		return;
	}
	(void)partial_wait(r->partial, &ignored);
	if (!partial_mark(r->partial) || r->worthless) {
		bool says = partial_mark(r->partial);

		img_create_abort(r->new);
		/* What FILE is half merged with stays, and a log that tells nothing need not. */
		if (partial_remove(r->partial, true, &ignored) && !says)
			(void)partial_remove(r->partial, false, &ignored);
		if (r->onto)
			(void)img_receive_end(r->file, &ignored);
	} else {
		img_create_keep(r->new);
		r->kept = true;
	}
	r->new = NULL;
}

int recv_stream(struct recv *r, struct img_err *err)
{
	struct img_err ignored = {0};
	int rc = receive(r, err);

	if (rc) {
		clean_up(r);
		/* A link that broke is no fault of the stream where the same command goes on. */
		if (r->kept && r->totals.cut && err->code == IMG_PROTO)
			err->code = IMG_AGAIN;
		return -1;
	}
	/* While the receipt was not given the same command can ask for it again. */
	rc = report(r, err);
	if (!rc && r->partial)
		(void)partial_remove(r->partial, false, &ignored);
	return rc;
}

void recv_end(struct recv *r)
{
	partial_close(r->partial);
	img_close(r->base);
	img_close(r->there);
	free(r->there_buf);
	free(r->child);
}
