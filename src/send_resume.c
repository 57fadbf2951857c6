/* SPDX-License-Identifier: BSD-2-Clause */
/* May a stream that was cut go on? By its token, and by the disk where files tell nothing. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
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
				   "%s: the token is of another disk, UUID %s, %" PRIu64 " bytes",
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

/* What the prefix sum and the content sum need of a run below the token's position. */
static int reread_run(struct send *s, struct img_run run, struct stream_trail *trail, uint8_t *buf,
		      struct img_err *err)
{
	const bool data = run.kind == IMG_DATA_RUN;

	for (uint64_t n; run.len; run.off += n, run.file_off += n, run.len -= n) {
		struct img_run part = run;

		n = part.len = u64_min(run.len, STREAM_PIECE - run.off % STREAM_PIECE);
		if (data && img_read_run(s->chain, &part, buf, err))
			return -1;
		stream_trail_add(trail, part.off, data ? buf : NULL, n);
		if (s->content && data)
			img_sum_data(s->content, buf, (size_t)n);
		else if (s->content)
			img_sum_zeros(s->content, n);
	}
	return 0;
}

static int reread(struct send *s, struct stream_trail *trail, uint8_t *buf, struct img_err *err)
{
	const uint64_t end = s->token.mark.off;
	struct img_run run;

	cli_progress_start(&s->progress, &s->common, "what was sent");
	for (uint64_t off = 0; off < end; off += run.len) {
		if (img_map(s->chain, off, end - off, s->base, &run, err))
			return -1;
		if (run.kind != IMG_BELOW_RUN && reread_run(s, run, trail, buf, err))
			return -1;
		if (cli_progress(&s->progress, off, end))
			return img_err_set(err, IMG_AGAIN, "interrupted");
	}
	cli_progress_end(&s->progress, end);
	return 0;
}

/* What was sent is read again; TRAIL and BUF are the caller's. */
static int compare(struct send *s, struct stream_trail *trail, uint8_t *buf, struct img_err *err)
{
	uint8_t sum[IMG_SUM_BYTES];

	if (reread(s, trail, buf, err))
		return -1;
	stream_trail_get(trail, sum);
	if (memcmp(sum, s->token.mark.trail, sizeof(sum)))
		return img_err_set(err, IMG_DATA,
				   "%s: was changed since its first part was sent; drop that with "
				   "vhd-recv --abort and send it from the start",
				   s->disk);
	return 0;
}

/*
 * Nobody wrote to the files since, or what was sent is read again and compared. The rest of a
 * stored stream needs the content sum of all, so there it is read in any case.
 */
static int prove_same(struct send *s, struct img_err *err)
{
	const struct stream_token *t = &s->token;
	const bool summed = t->append && !s->from;
	struct stream_trail *trail;
	void *buf = NULL;
	int rc = -1;

	if (t->has_source && !memcmp(t->source, s->begin.source, sizeof(t->source)) &&
	    (!summed || s->against))
		return 0;
	if (s->against)
		return img_err_set(err, IMG_DATA,
				   "%s: was written to since its first part was sent; drop that with "
				   "vhd-recv --abort and send it from the start",
				   s->disk);
	if (summed)
		s->content = img_sum_new(s->begin.size);
	trail = stream_trail_new();
	if (!trail || (summed && !s->content) || posix_memalign(&buf, 4096, STREAM_PIECE))
		img_err_errno(err, ENOMEM, "%s", s->disk);
	else
		rc = compare(s, trail, buf, err);
	stream_trail_free(trail);
	free(buf);
	return rc;
}

int send_prove(struct send *s, struct img_err *err)
{
	return check_token(s, err) || prove_same(s, err) ? -1 : 0;
}
