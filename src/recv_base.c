/* SPDX-License-Identifier: BSD-2-Clause */
/* The base of an increment, or the type of a whole disk: looked at before anything is written. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "bytes.h"
#include "io.h"
#include "recv.h"

/* By identity, size and, if asked, content: never by name. */
static int check_base_identity(const struct recv *r, struct img_err *err)
{
	static const uint8_t raw[16];
	const struct img_info *p = img_layer_info(r->base, 0);
	char want[IMG_UUID_STR] = "none (raw)", found[IMG_UUID_STR] = "none (raw)";

	if (memcmp(r->begin.base_uuid, raw, 16))
		img_uuid_str(r->begin.base_uuid, want);
	if (p->has_uuid)
		img_uuid_str(p->uuid, found);
	if (strcmp(want, found))
		return img_err_set(err, IMG_DATA,
				   "%s: is not the base of this increment: UUID %s, wanted %s",
				   r->parent, found, want);
	if (p->size != r->begin.base_size)
		return img_err_set(err, IMG_DATA,
				   "%s: is not the base of this increment: %llu bytes, wanted %llu",
				   r->parent, (unsigned long long)p->size,
				   (unsigned long long)r->begin.base_size);
	if (r->begin.kind == STREAM_INCREMENT && r->begin.has_uuid &&
	    !memcmp(r->begin.uuid, r->begin.base_uuid, 16))
		return img_err_set(err, IMG_PROTO, "the stream's disk %s is its own base", want);
	return 0;
}

static int sum_base(struct recv *r, bool known, uint64_t limit, struct img_sum_result *sum,
		    struct img_err *err)
{
	struct cli_progress progress;
	const struct img_sum_how how = {
		.known = known, .limit = limit, .progress = cli_progress, .ctx = &progress};
	int rc;

	cli_progress_start(&progress, &r->common, r->parent);
	rc = img_sum_disk(r->base, &how, sum, err);
	if (!limit || progress.shown)
		cli_progress_end(&progress, img_size(r->base));
	return rc;
}

static int check_sum(const struct recv *r, const struct img_sum_result *sum, struct img_err *err)
{
	if (sum->done && strcmp(sum->sum, r->begin.base_sum))
		return img_err_set(err, IMG_DATA,
				   "%s: is not the base of this increment: content sum %s, wanted "
				   "%s; it was changed since",
				   r->parent, sum->sum, r->begin.base_sum);
	return 0;
}

int recv_compare_base(struct recv *r, struct img_err *err)
{
	struct img_sum_result sum = {.done = false};

	if (!*r->begin.base_sum)
		return img_err_set(
			err, IMG_DATA,
			"%s: the system was started again since the first part was "
			"received, and nothing tells whether it was written to; send the "
			"rest with vhd-send --verify-base, or vhd-recv --abort drops that",
			r->parent);
	return sum_base(r, true, 0, &sum, err) || check_sum(r, &sum, err) ? -1 : 0;
}

/*
 * A UUID does not tell versions of a disk apart. Unasked the content is compared where it is known,
 * or costs little to read.
 */
static int check_base_sum(struct recv *r, struct img_err *err)
{
	struct img_sum_result sum = {.done = false};
	struct img_err unasked = {0};

	if (!*r->begin.base_sum && r->verify_base)
		return img_err_set(err, IMG_DATA,
				   "the stream does not tell the content sum of its base; send it "
				   "with vhd-send --verify-base");
	if (!*r->begin.base_sum || r->base_changed)
		return 0;
	if (r->verify_base && sum_base(r, false, 0, &sum, err))
		return -1;
	if (!r->verify_base &&
	    sum_base(r, true, cli_cheap_sum(r->begin.planned_bytes), &sum, &unasked)) {
		if (cli_interrupted())
			return img_err_set(err, IMG_AGAIN, "%s: interrupted", r->file);
		cli_warn("%s: its content cannot be compared: %s", r->parent, unasked.msg);
		return 0;
	}
	return check_sum(r, &sum, err);
}

static int open_base(struct recv *r, struct img_err *err)
{
	static const uint8_t raw[16];
	struct img_open opts = r->common.open;
	struct img_err absent = {0};
	struct stat st;

	if (!r->parent) {
		char uuid[IMG_UUID_STR];

		img_uuid_str(r->begin.base_uuid, uuid);
		return img_err_set(
			err, IMG_USAGE,
			"the stream is an increment; name its base (UUID %s) here with --parent=FILE",
			uuid);
	}
	opts.raw = !memcmp(r->begin.base_uuid, raw, 16);
	opts.receiver = r->onto;
	if (img_open(&r->base, r->parent, &opts, err) || check_base_identity(r, err) ||
	    check_base_sum(r, err))
		return -1;
	if (!r->onto && stat(r->file, &st) == 0 && img_find_layer(r->base, r->file, &absent) >= 0)
		return img_err_set(err, IMG_USAGE,
				   "%s: is a part of the base and cannot be replaced", r->file);
	if (r->receipt && img_find_layer(r->base, r->receipt, &absent) >= 0)
		return img_err_set(err, IMG_USAGE, "%s: is a part of the base, and no receipt",
				   r->receipt);
	cli_warn_chain(&r->common, r->base);
	if (img_identity(r->base, 0, img_layers(r->base), r->base_id, err))
		return -1;
	r->create.type = IMG_DIFFERENCING;
	r->create.parent_path = r->parent;
	r->create.parent_uuid = r->begin.base_uuid;
	r->create.parent_size = r->begin.base_size;
	return 0;
}

static int choose_type(struct recv *r, struct img_err *err)
{
	if (r->parent)
		return img_err_set(err, IMG_USAGE,
				   "the stream is a whole disk, it has no parent; leave %s out",
				   r->onto ? "--onto" : "--parent");
	if (r->type != TYPE_KEEP)
		r->create.type = (enum img_type)r->type;
	else
		r->create.type = r->begin.type == IMG_DIFFERENCING ? IMG_DYNAMIC : r->begin.type;
	return 0;
}

/* What no VHD can be is the stream's fault, not the command line's. */
static int check_size(const struct recv *r, struct img_err *err)
{
	const uint64_t size = r->begin.size;

	if (r->create.type == IMG_RAW)
		return 0;
	if (!size || size % SECTOR || size > IMG_VHD_MAX_SIZE)
		return img_err_set(
			err, IMG_DATA,
			"a disk of %llu bytes does not fit a VHD, which has 512 bytes to "
			"2040 GiB in sectors of 512%s",
			(unsigned long long)size, r->parent ? "" : "; receive it with --type=raw");
	return 0;
}

int recv_parent_in(const struct recv *r, const char *parent, struct img_open *opts,
		   struct recv_dirs *d, struct img_err *err)
{
	const struct img_open *common = &r->common.open;
	char *real = realpath(parent, NULL);

	d->own = real ? io_dirname(real) : NULL;
	free(real);
	if (!d->own)
		return img_err_errno(err, errno, "%s", parent);
	if (common->nparent_dirs)
		memcpy(d->dir, common->parent_dirs, common->nparent_dirs * sizeof(d->dir[0]));
	d->dir[common->nparent_dirs] = d->own;
	opts->parent_dirs = d->dir;
	opts->nparent_dirs = common->nparent_dirs + 1;
	return 0;
}

int recv_fits(struct recv *r, struct img_err *err)
{
	const struct stream_begin *begin = &r->begin;

	r->create.size = begin->size;
	r->create.force = r->force;
	if ((begin->kind == STREAM_WHOLE ? choose_type(r, err) : open_base(r, err)) ||
	    check_size(r, err))
		return -1;
	if (r->create.type == IMG_DYNAMIC || r->create.type == IMG_DIFFERENCING)
		r->create.block_size = begin->block_size;
	r->create.uuid = r->uuid;
	return 0;
}
