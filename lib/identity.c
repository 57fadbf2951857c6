/* SPDX-License-Identifier: BSD-2-Clause */
/* Whether the files of a chain are the ones that they were, without reading them. */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "img_impl.h"
#include "sums.h"

enum { ENTRY = 16 + 6 * 8 };

static void time_put(uint8_t *p, const struct timespec *t)
{
	le64_put(p, (uint64_t)t->tv_sec);
	le64_put(p + 8, (uint64_t)t->tv_nsec);
}

/*
 * The device is left out: its number may change when the host starts again, and inode and times
 * do not agree by chance.
 */
int img_identity(struct img_chain *c, unsigned from, unsigned to, uint8_t out[IMG_SUM_BYTES],
		 struct img_err *err)
{
	uint8_t buf[IMG_SUM_BYTES + ENTRY] = {0};
	XXH128_canonical_t sum;
	struct stat st;

	for (unsigned i = from; i < to && i < c->n; i++) {
		const struct img *l = c->layer[i];
		uint8_t *p = buf + IMG_SUM_BYTES;

		if (fstat(l->file.fd, &st) < 0)
			return img_err_errno(err, errno, "%s: cannot stat", l->file.path);
		memcpy(p, l->info.uuid, 16);
		le64_put(p + 16, st.st_ino);
		le64_put(p + 24, (uint64_t)st.st_size);
		time_put(p + 32, &st.st_mtim);
		time_put(p + 48, &st.st_ctim);
		XXH128_canonicalFromHash(&sum, XXH3_128bits(buf, sizeof(buf)));
		memcpy(buf, sum.digest, IMG_SUM_BYTES);
	}
	memcpy(out, buf, IMG_SUM_BYTES);
	return 0;
}

bool img_identity_boot(uint8_t id[IMG_SUM_BYTES])
{
	uint8_t buf[IMG_SUM_BYTES + 16];
	XXH128_canonical_t sum;

	if (!sums_boot(buf + IMG_SUM_BYTES))
		return false;
	memcpy(buf, id, IMG_SUM_BYTES);
	XXH128_canonicalFromHash(&sum, XXH3_128bits(buf, sizeof(buf)));
	memcpy(id, sum.digest, IMG_SUM_BYTES);
	return true;
}
