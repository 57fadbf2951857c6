/* SPDX-License-Identifier: BSD-2-Clause */
/* What the stream says of itself: the disk, and the base of an increment or the stale copy. */
#include "config.h"

#include <inttypes.h>
#include <string.h>

#include "send.h"

static int describe_base(struct send *s, struct img_err *err)
{
	const struct img_info *base;
	int layer = img_find_layer(s->chain, s->from, err);

	if (layer < 0)
		return img_err_set(err, IMG_DATA, "%s: is not in the chain of %s", s->from,
				   s->disk);
	if (layer == 0)
		return img_err_set(err, IMG_USAGE, "%s: nothing lies between it and %s", s->from,
				   s->disk);
	s->base = (unsigned)layer;
	base = img_layer_info(s->chain, s->base);
	s->begin.kind = STREAM_INCREMENT;
	s->begin.base_size = base->size;
	if (base->has_uuid)
		memcpy(s->begin.base_uuid, base->uuid, 16);
	return 0;
}

static int describe_stale(struct send *s, struct img_err *err)
{
	if (against_open(&s->against, s->sums, err))
		return -1;
	if (against_size(s->against) != s->begin.size)
		return img_err_set(err, IMG_DATA,
				   "%s: are of a disk of %" PRIu64 " bytes, %s has %" PRIu64,
				   s->sums, against_size(s->against), s->disk, s->begin.size);
	s->begin.kind = STREAM_DIFFERENCE;
	s->begin.base_size = s->begin.size;
	(void)against_uuid(s->against, s->begin.base_uuid);
	(void)against_content(s->against, s->begin.base_sum);
	return 0;
}

int send_describe(struct send *s, struct img_err *err)
{
	const struct img_info *leaf = img_layer_info(s->chain, 0);
	struct stream_begin *b = &s->begin;

	b->size = img_size(s->chain);
	if (b->size > STREAM_MAX_SIZE)
		return img_err_set(err, IMG_DATA,
				   "%s: has %" PRIu64 " bytes, a stream takes no disk above 64 TiB",
				   s->disk, b->size);
	b->type = leaf->type;
	b->has_uuid = leaf->has_uuid;
	memcpy(b->uuid, leaf->uuid, 16);
	b->has_parent = leaf->has_parent;
	memcpy(b->parent_uuid, leaf->parent_uuid, 16);
	b->block_size = leaf->block_size;
	b->cylinders = leaf->cylinders;
	b->heads = leaf->heads;
	b->sectors = leaf->sectors;
	memcpy(b->creator, leaf->creator, sizeof(b->creator));
	b->creator_version = leaf->creator_version;
	b->timestamp = leaf->timestamp;
	s->base = img_layers(s->chain);
	if ((s->from && describe_base(s, err)) || (s->sums && describe_stale(s, err)))
		return -1;
	if (img_identity(s->chain, 0, s->base, b->source, err))
		return -1;
	/* What comes of a difference is compared with the disk, whatever the files say. */
	b->has_source = s->sums || img_identity_boot(b->source);
	return 0;
}

static int sum_base(struct send *s, struct img_err *err)
{
	const struct img_sum_how how = {.known = !s->verify_base,
					.limit = cli_cheap_sum(s->begin.planned_bytes),
					.progress = cli_progress,
					.ctx = &s->progress};
	struct img_open opts = s->common.open;
	struct img_sum_result sum = {.done = false};
	struct img_chain *c = NULL;
	int rc = -1;

	opts.raw = img_layer_info(s->chain, s->base)->type == IMG_RAW;
	cli_progress_start(&s->progress, &s->common, "base");
	if (img_open(&c, img_layer_path(s->chain, s->base), &opts, err) == 0)
		rc = img_sum_disk(c, &how, &sum, err);
	if (rc == 0 && sum.done)
		memcpy(s->begin.base_sum, sum.sum, sizeof(sum.sum));
	if (s->verify_base || s->progress.shown)
		cli_progress_end(&s->progress, rc ? 0 : img_size(c));
	img_close(c);
	return rc;
}

int send_tell_base(struct send *s, struct img_err *err)
{
	struct img_err unasked = {0};

	if (!s->from || (s->dry == DRY_MAP && !s->verify_base))
		return 0;
	if (s->verify_base)
		return sum_base(s, err);
	/* What cannot be read there is no part of the increment. */
	if (sum_base(s, &unasked) && cli_interrupted())
		return img_err_set(err, IMG_AGAIN, "interrupted");
	return 0;
}
