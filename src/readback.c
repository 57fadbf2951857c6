/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "readback.h"

int readback_sync(const char *path, struct img_err *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY), rc = 0;

	if (fd < 0)
		return img_err_errno(err, errno, "%s", path);
	if (fsync(fd))
		rc = img_err_errno(err, errno, "%s: fsync", path);
#ifdef HAVE_POSIX_FADVISE
	else
		(void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
#endif
	close(fd);
	return rc;
}

struct reading {
	struct stream_trail *trail;
	struct cli_progress *progress;
	uint64_t size;
};

static int add_run(void *ctx, const struct img_run *run, uint8_t *buf, struct img_err *err)
{
	struct reading *r = ctx;

	if (run->kind != IMG_BELOW_RUN)
		stream_trail_add(r->trail, run->off, buf, run->len);
	if (cli_progress(r->progress, run->off + run->len, r->size))
		return img_err_set(err, IMG_AGAIN, "interrupted");
	return 0;
}

/*
 * The prefix sum of all that the file itself holds: in an increment zeros and nothing are not
 * the same.
 */
static int check_increment(struct img_chain *c, const struct stream_totals *totals, bool *same,
			   struct cli_progress *progress, struct img_err *err)
{
	struct reading r = {stream_trail_new(), progress, img_size(c)};
	struct img_walk w = {.end = r.size,
			     .base = 1,
			     .unit = IMG_SUM_CHUNK,
			     .buf = aligned_alloc(4096, IMG_SUM_CHUNK),
			     .visit = add_run,
			     .ctx = &r};
	uint8_t sum[IMG_SUM_BYTES];
	int rc = -1;

	if (!r.trail || !w.buf)
		img_err_errno(err, ENOMEM, "no memory to verify with");
	else
		rc = img_walk(c, &w, err);
	if (rc == 0) {
		stream_trail_get(r.trail, sum);
		*same = memcmp(sum, totals->trail, sizeof(sum)) == 0;
	}
	stream_trail_free(r.trail);
	free(w.buf);
	return rc;
}

static int check_whole(struct img_chain *c, const struct stream_totals *totals, bool *same,
		       struct cli_progress *progress, struct img_err *err)
{
	char sum[IMG_SUM_STR];

	if (img_sum_chain(c, cli_progress, progress, sum, err))
		return -1;
	*same = strcmp(sum, totals->content_sum) == 0;
	return 0;
}

static int base_changed(const char *path, struct img_err *err)
{
	return img_err_set(err, IMG_DATA,
			   "%s: together with its base it is not the disk that was sent: the base "
			   "has changed since its sums were made",
			   path);
}

/*
 * A difference is only right together with the copy that it is from. That was not written here:
 * where the file holds what came and the disk is another one all the same, the copy is not what the
 * sender has its sums of.
 */
static int check_difference(struct img_chain *c, const char *path,
			    const struct stream_totals *totals, bool *same,
			    struct cli_progress *progress, struct img_err *err)
{
	bool right;

	if (check_increment(c, totals, same, progress, err))
		return -1;
	/* The rest of a stream may come without. */
	if (!*same || !*totals->content_sum)
		return 0;
	if (check_whole(c, totals, &right, progress, err))
		return -1;
	return right ? 0 : base_changed(path, err);
}

int readback_difference(const char *path, const struct img_open *opts,
			const struct stream_totals *totals, struct cli_progress *progress,
			struct img_err *err)
{
	const struct img_sum_how how = {.progress = cli_progress, .ctx = progress};
	struct img_chain *c = NULL;
	struct img_sum *s = NULL;
	char sum[IMG_SUM_STR] = "";
	int rc = -1;

	/* The rest of a stream may come without. */
	if (!*totals->content_sum)
		return 0;
	if (img_open(&c, path, opts, err))
		return -1;
	s = img_sum_new(img_size(c));
	if (!s)
		img_err_errno(err, ENOMEM, "%s", path);
	else
		rc = img_sum_first(c, (img_size(c) + IMG_SUM_CHUNK - 1) / IMG_SUM_CHUNK, false,
				   &how, s, err);
	if (rc == 0)
		img_sum_final(s, sum);
	img_sum_free(s);
	img_close(c);
	if (rc == 0 && strcmp(sum, totals->content_sum))
		rc = base_changed(path, err);
	return rc;
}

int readback_compare(const char *path, const struct img_open *opts,
		     const struct stream_begin *begin, const struct stream_totals *totals,
		     struct cli_progress *progress, bool *same, struct img_err *err)
{
	struct img_chain *c = NULL;
	int rc = 0;

	*same = false;
	if (readback_sync(path, err) || img_open(&c, path, opts, err))
		return -1;
	if (img_size(c) == begin->size && begin->kind == STREAM_WHOLE)
		rc = check_whole(c, totals, same, progress, err);
	else if (img_size(c) == begin->size && begin->kind == STREAM_INCREMENT)
		rc = check_increment(c, totals, same, progress, err);
	else if (img_size(c) == begin->size)
		rc = check_difference(c, path, totals, same, progress, err);
	img_close(c);
	return rc;
}

int readback_check(const char *path, const struct img_open *opts, const struct stream_begin *begin,
		   const struct stream_totals *totals, struct cli_progress *progress,
		   struct img_err *err)
{
	bool same;

	if (readback_compare(path, opts, begin, totals, progress, &same, err))
		return -1;
	if (same)
		return 0;
	return img_err_set(
		err, IMG_IO,
		"%s: reads back other than it was written; the storage is not to be trusted", path);
}
