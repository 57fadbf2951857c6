/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "readback.h"

/* From the disk, not from memory. Where caches cannot be dropped this is only the weaker check. */
static int drop_cache(const char *path, struct img_err *err)
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

static int read_run(struct stream_trail *t, struct img_chain *c, struct img_run run, uint8_t *buf,
		    struct img_err *err)
{
	while (run.len) {
		struct img_run part = run;

		part.len = u64_min(run.len, IMG_SUM_CHUNK - run.off % IMG_SUM_CHUNK);
		if (img_read_run(c, &part, buf, err))
			return -1;
		stream_trail_add(t, part.off, buf, part.len);
		run.off += part.len;
		run.file_off += part.len;
		run.len -= part.len;
	}
	return 0;
}

/*
 * The prefix sum of all that the file itself holds: in an increment zeros and nothing are not
 * the same.
 */
static int read_file(struct stream_trail *t, struct img_chain *c, uint8_t *buf,
		     struct cli_progress *progress, struct img_err *err)
{
	const uint64_t size = img_size(c);
	struct img_run run;

	for (uint64_t off = 0; off < size; off += run.len) {
		if (img_map(c, off, size - off, 1, &run, err))
			return -1;
		if (run.kind == IMG_DATA_RUN && read_run(t, c, run, buf, err))
			return -1;
		if (run.kind == IMG_ZERO_RUN)
			stream_trail_add(t, run.off, NULL, run.len);
		if (cli_progress(progress, run.off + run.len, size))
			return img_err_set(err, IMG_AGAIN, "interrupted");
	}
	return 0;
}

static int check_increment(struct img_chain *c, const struct stream_totals *totals, bool *same,
			   struct cli_progress *progress, struct img_err *err)
{
	struct stream_trail *t = stream_trail_new();
	uint8_t sum[IMG_SUM_BYTES];
	void *buf = NULL;
	int rc = -1;

	if (!t || posix_memalign(&buf, 4096, IMG_SUM_CHUNK))
		img_err_errno(err, ENOMEM, "no memory to verify with");
	else
		rc = read_file(t, c, buf, progress, err);
	if (rc == 0) {
		stream_trail_get(t, sum);
		*same = memcmp(sum, totals->trail, sizeof(sum)) == 0;
	}
	stream_trail_free(t);
	free(buf);
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

int readback_check(const char *path, const struct img_open *opts, const struct stream_begin *begin,
		   const struct stream_totals *totals, struct cli_progress *progress,
		   struct img_err *err)
{
	struct img_chain *c = NULL;
	bool same = false;
	int rc = -1;

	if (drop_cache(path, err) || img_open(&c, path, opts, err))
		return -1;
	if (img_size(c) == begin->size)
		/* A difference is only right together with the copy that it is from. */
		rc = begin->kind == STREAM_INCREMENT
			     ? check_increment(c, totals, &same, progress, err)
			     : check_whole(c, totals, &same, progress, err);
	else
		rc = 0;
	if (rc == 0 && !same)
		rc = img_err_set(err, IMG_IO,
				 "%s: reads back other than it was written; the storage is not to be "
				 "trusted",
				 path);
	img_close(c);
	return rc;
}
