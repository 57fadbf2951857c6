/* SPDX-License-Identifier: BSD-2-Clause */
/* May a stream that was cut go on? By its token, and by the disk where files tell nothing. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "send.h"

/* Is the token one of this disk, and of what is to be sent of it? */
static int check_token(const struct send *s, struct img_err *err)
{
	const struct stream_token *t = &s->token;
	const struct stream_begin *b = &s->begin;
	static const uint8_t none[16];
	char uuid[IMG_UUID_STR], with[80] = "without --from";

	if (t->size != b->size || memcmp(t->uuid, b->has_uuid ? b->uuid : none, 16)) {
		img_uuid_str(t->uuid, uuid);
		return img_err_set(err, IMG_DATA,
				   "%s: the token is of another disk, UUID %s, %" PRIu64
				   " bytes; vhd-recv --abort drops what came of that",
				   s->disk, uuid, t->size);
	}
	if (t->kind != b->kind || memcmp(t->base_uuid, b->base_uuid, 16)) {
		img_uuid_str(t->base_uuid, uuid);
		if (t->kind != STREAM_WHOLE)
			snprintf(with, sizeof(with), "with --%s of UUID %s",
				 t->kind == STREAM_INCREMENT ? "from" : "against", uuid);
		return img_err_set(
			err, IMG_USAGE,
			"%s: the token is of a transfer %s; the same options must be given",
			s->disk, with);
	}
	if (t->append && !t->compressed && s->level)
		return img_err_set(
			err, IMG_USAGE,
			"the stored stream is not compressed, so the rest of it cannot be");
	return 0;
}

static int changed(const struct send *s, const char *how, struct img_err *err)
{
	return img_err_set(err, IMG_DATA,
			   "%s: %s since its first part was sent; drop that with vhd-recv --abort "
			   "and send it from the start",
			   s->disk, how);
}

/* What was sent is read again, for the prefix sum and the content sum. */
struct reading {
	struct send *s;
	struct stream_trail *trail;
};

static int add_run(void *ctx, const struct img_run *run, uint8_t *buf, struct img_err *err)
{
	struct reading *r = ctx;
	struct send *s = r->s;

	if (run->kind != IMG_BELOW_RUN)
		stream_trail_add(r->trail, run->off, buf, run->len);
	if (s->content && buf)
		img_sum_data(s->content, buf, (size_t)run->len);
	else if (s->content)
		img_sum_zeros(s->content, run->len);
	if (cli_progress(&s->progress, run->off, s->token.mark.off))
		return img_err_set(err, IMG_AGAIN, "interrupted");
	return 0;
}

static int compare(struct send *s, struct stream_trail *trail, const struct img_walk *w,
		   struct img_err *err)
{
	uint8_t sum[IMG_SUM_BYTES];

	cli_progress_start(&s->progress, &s->common, "what was sent");
	if (img_walk(s->chain, w, err))
		return -1;
	cli_progress_end(&s->progress, w->end);
	stream_trail_get(trail, sum);
	if (memcmp(sum, s->token.mark.trail, sizeof(sum)))
		return changed(s, "was changed", err);
	return 0;
}

static int reread(struct send *s, struct img_err *err)
{
	struct reading r = {s, stream_trail_new()};
	struct img_walk w = {.end = s->token.mark.off,
			     .base = s->base,
			     .unit = STREAM_PIECE,
			     .buf = aligned_alloc(4096, STREAM_PIECE),
			     .visit = add_run,
			     .ctx = &r};
	int rc = -1;

	if (r.trail && w.buf)
		rc = compare(s, r.trail, &w, err);
	else
		img_err_errno(err, ENOMEM, "%s", s->disk);
	stream_trail_free(r.trail);
	free(w.buf);
	return rc;
}

/*
 * The sums of what was sent, where they are known. The rest of a stored stream needs the content
 * sum of all, so there what is not known is read.
 */
static int sum_sent(struct send *s, struct img_err *err)
{
	const uint64_t off = s->token.mark.off;
	const struct img_sum_how how = {.progress = cli_progress, .ctx = &s->progress};
	int rc;

	cli_progress_start(&s->progress, &s->common, "what was sent");
	rc = img_sum_first(s->chain, off / IMG_SUM_CHUNK + (off % IMG_SUM_CHUNK != 0),
			   !s->token.append, &how, s->content, err);
	if (rc || s->progress.shown)
		cli_progress_end(&s->progress, rc ? 0 : off);
	return rc;
}

/* Nobody wrote to the files since, or what was sent is read again and compared. */
static int prove_same(struct send *s, struct img_err *err)
{
	const struct stream_token *t = &s->token;
	const bool same = t->has_source && !memcmp(t->source, s->begin.source, sizeof(t->source));

	if (s->against)
		return same ? 0 : changed(s, "was written to", err);
	if (s->from)
		return same ? 0 : reread(s, err);
	s->content = img_sum_new(s->begin.size);
	if (!s->content)
		return img_err_errno(err, ENOMEM, "%s", s->disk);
	img_sum_watch(s->content, img_sums_add, s->kept);
	return same ? sum_sent(s, err) : reread(s, err);
}

int send_prove(struct send *s, struct img_err *err)
{
	return check_token(s, err) || prove_same(s, err) ? -1 : 0;
}
