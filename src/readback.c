/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "bytes.h"
#include "readback.h"

/*
 * Two sums: of the content, what is absent counted as zeros, and of where there is content at
 * all: in an increment zeros and nothing are not the same.
 */
struct readback {
	uint64_t size;
	struct img_sum *content;
	uint64_t pos;
	uint64_t start, end; /* the present range, still growing */
	XXH3_state_t *ranges;
};

struct readback *readback_new(uint64_t size, struct img_err *err)
{
	struct readback *r = calloc(1, sizeof(*r));

	if (r) {
		r->size = size;
		r->content = img_sum_new(size);
		r->ranges = XXH3_createState();
	}
	if (!r || !r->content || !r->ranges) {
		readback_free(r);
		img_err_errno(err, ENOMEM, "no memory to verify with");
		return NULL;
	}
	XXH3_128bits_reset(r->ranges);
	return r;
}

void readback_free(struct readback *r)
{
	if (!r)
		return;
	img_sum_free(r->content);
	XXH3_freeState(r->ranges);
	free(r);
}

static void end_range(struct readback *r)
{
	uint8_t b[16];

	if (r->end == r->start)
		return;
	le64_put(b, r->start);
	le64_put(b + 8, r->end);
	XXH3_128bits_update(r->ranges, b, sizeof(b));
}

void readback_add(struct readback *r, const void *buf, uint64_t off, uint64_t len)
{
	if (off != r->end) {
		end_range(r);
		r->start = off;
	}
	r->end = off + len;
	if (off != r->pos)
		img_sum_zeros(r->content, off - r->pos);
	if (buf)
		img_sum_data(r->content, buf, (size_t)len);
	else
		img_sum_zeros(r->content, len);
	r->pos = off + len;
}

static void finish(struct readback *r, char content[IMG_SUM_STR], XXH128_hash_t *ranges)
{
	end_range(r);
	if (r->pos != r->size)
		img_sum_zeros(r->content, r->size - r->pos);
	img_sum_final(r->content, content);
	*ranges = XXH3_128bits_digest(r->ranges);
}

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

static int read_run(struct readback *r, struct img_chain *c, struct img_run run, uint8_t *buf,
		    struct img_err *err)
{
	while (run.len) {
		struct img_run part = run;

		part.len = u64_min(run.len, IMG_SUM_CHUNK - run.off % IMG_SUM_CHUNK);
		if (img_read_run(c, &part, buf, err))
			return -1;
		readback_add(r, buf, part.off, part.len);
		run.off += part.len;
		run.file_off += part.len;
		run.len -= part.len;
	}
	return 0;
}

/* Only the file's own: what a child does not have is BELOW. */
static int read_file(struct readback *r, struct img_chain *c, uint8_t *buf,
		     struct cli_progress *progress, struct img_err *err)
{
	struct img_run run;

	if (img_size(c) != r->size)
		return img_err_set(err, IMG_IO, "%s: has %llu bytes instead of %llu",
				   img_layer_path(c, 0), (unsigned long long)img_size(c),
				   (unsigned long long)r->size);
	for (uint64_t off = 0; off < r->size; off += run.len) {
		if (img_map(c, off, r->size - off, 1, &run, err))
			return -1;
		if (run.kind == IMG_DATA_RUN && read_run(r, c, run, buf, err))
			return -1;
		if (run.kind == IMG_ZERO_RUN)
			readback_add(r, NULL, run.off, run.len);
		if (cli_progress(progress, run.off + run.len, r->size))
			return img_err_set(err, IMG_AGAIN, "interrupted");
	}
	return 0;
}

int readback_check(struct readback *r, const char *path, const struct img_open *opts,
		   struct cli_progress *progress, struct img_err *err)
{
	struct readback *again = readback_new(r->size, err);
	char wrote[IMG_SUM_STR], read[IMG_SUM_STR];
	XXH128_hash_t wrote_ranges, read_ranges;
	struct img_chain *c = NULL;
	void *buf = NULL;
	int rc = -1;

	if (!again || drop_cache(path, err) || img_open(&c, path, opts, err))
		goto out;
	if (posix_memalign(&buf, 4096, IMG_SUM_CHUNK)) {
		img_err_errno(err, ENOMEM, "%s", path);
		goto out;
	}
	if (read_file(again, c, buf, progress, err))
		goto out;
	finish(r, wrote, &wrote_ranges);
	finish(again, read, &read_ranges);
	if (strcmp(wrote, read) || !XXH128_isEqual(wrote_ranges, read_ranges))
		img_err_set(err, IMG_IO,
			    "%s: reads back other than it was written (sum %s instead of %s); the "
			    "storage is not to be trusted",
			    path, read, wrote);
	else
		rc = 0;
out:
	free(buf);
	img_close(c);
	readback_free(again);
	return rc;
}
