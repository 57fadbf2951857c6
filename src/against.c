/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <uuid.h>

#include "against.h"
#include "stream.h"

struct against {
	FILE *f;
	const char *path;
	uint64_t size, seed, line;
	bool has_uuid;
	uint8_t uuid[16];
	struct img_sum *all; /* of the lines, for the last one */
	uint8_t sum[IMG_SUM_BYTES];
	uint64_t left; /* chunks that the present line still speaks of */
	uint64_t chunks;
};

static int bad(const struct against *a, const char *why, struct img_err *err)
{
	return img_err_set(err, IMG_DATA, "%s: line %" PRIu64 ": %s", a->path, a->line, why);
}

static int read_line(struct against *a, char *buf, int size, struct img_err *err)
{
	a->line++;
	if (!fgets(buf, size, a->f))
		return ferror(a->f) ? img_err_errno(err, errno, "%s", a->path)
				    : bad(a, "the sums are cut", err);
	if (!strchr(buf, '\n'))
		return bad(a, "is no sum", err);
	*strchr(buf, '\n') = '\0';
	return 0;
}

static int read_head(struct against *a, struct img_err *err)
{
	char buf[256], uuid[64], tail;
	uuid_t parsed;

	if (read_line(a, buf, sizeof(buf), err))
		return -1;
	if (sscanf(buf, "vhd-sums 1 %20" SCNu64 " %20" SCNu64 " %60s%c", &a->size, &a->seed, uuid,
		   &tail) != 3 ||
	    a->size > STREAM_MAX_SIZE)
		return bad(a, "these are no sums of vhd-sum --blocks", err);
	a->has_uuid = strcmp(uuid, "-") != 0;
	if (a->has_uuid && uuid_parse(uuid, parsed) != 0)
		return bad(a, "the UUID is none", err);
	if (a->has_uuid)
		memcpy(a->uuid, parsed, 16);
	a->chunks = (a->size + IMG_SUM_CHUNK - 1) / IMG_SUM_CHUNK;
	a->all = img_sum_new(a->size);
	return a->all ? 0 : img_err_errno(err, ENOMEM, "%s", a->path);
}

int against_open(struct against **out, const char *path, struct img_err *err)
{
	struct against *a = calloc(1, sizeof(*a));

	*out = a;
	if (!a)
		return img_err_errno(err, ENOMEM, "%s", path);
	a->path = strcmp(path, "-") ? path : "standard input";
	a->f = strcmp(path, "-") ? fopen(path, "re") : stdin;
	if (!a->f)
		return img_err_errno(err, errno, "%s", path);
	return read_head(a, err);
}

void against_close(struct against *a)
{
	if (!a)
		return;
	if (a->f && a->f != stdin)
		fclose(a->f);
	img_sum_free(a->all);
	free(a);
}

uint64_t against_size(const struct against *a)
{
	return a->size;
}

uint64_t against_seed(const struct against *a)
{
	return a->seed;
}

bool against_uuid(const struct against *a, uint8_t uuid[16])
{
	if (a->has_uuid)
		memcpy(uuid, a->uuid, 16);
	return a->has_uuid;
}

bool against_content(struct against *a, char sum[IMG_SUM_STR])
{
	char last[4 + IMG_SUM_STR + 1] = "";
	const long len = sizeof(last) - 1; /* "end SUM" and the end of the line */
	long at = a->seed || a->f == stdin ? -1 : ftell(a->f);
	bool good;

	if (at < 0 || fseek(a->f, -len, SEEK_END))
		return false;
	good = fread(last, 1, (size_t)len, a->f) == (size_t)len && !strncmp(last, "end ", 4) &&
	       strspn(last + 4, "0123456789abcdef") == IMG_SUM_STR - 1;
	/* Where there is no way back the next line is none, which is told. */
	(void)!fseek(a->f, at, SEEK_SET);
	if (good)
		snprintf(sum, IMG_SUM_STR, "%.*s", IMG_SUM_STR - 1, last + 4);
	return good;
}

static bool sum_get(const char *s, uint8_t sum[IMG_SUM_BYTES])
{
	if (strspn(s, "0123456789abcdef") != 2 * IMG_SUM_BYTES)
		return false;
	for (size_t i = 0; i < IMG_SUM_BYTES; i++) {
		unsigned v;

		sscanf(s + 2 * i, "%2x", &v);
		sum[i] = (uint8_t)v;
	}
	return true;
}

static int read_sum(struct against *a, struct img_err *err)
{
	char buf[128], *end = NULL;

	if (read_line(a, buf, sizeof(buf), err))
		return -1;
	if (!sum_get(buf, a->sum))
		return bad(a, "is no sum", err);
	a->left = 1;
	if (buf[2 * IMG_SUM_BYTES] == ' ') {
		a->left = strtoull(buf + 2 * IMG_SUM_BYTES + 1, &end, 10);
		if (*end || end == buf + 2 * IMG_SUM_BYTES + 1)
			return bad(a, "is no sum", err);
	} else if (buf[2 * IMG_SUM_BYTES]) {
		return bad(a, "is no sum", err);
	}
	if (!a->left || a->left > a->chunks)
		return bad(a, "speaks of more chunks than the disk has", err);
	a->chunks -= a->left;
	img_sum_known(a->all, a->sum, a->left);
	return 0;
}

int against_next(struct against *a, uint8_t sum[IMG_SUM_BYTES], struct img_err *err)
{
	if (!a->left && read_sum(a, err))
		return -1;
	a->left--;
	memcpy(sum, a->sum, IMG_SUM_BYTES);
	return 0;
}

int against_end(struct against *a, struct img_err *err)
{
	char buf[128], want[IMG_SUM_STR];

	if (read_line(a, buf, sizeof(buf), err))
		return -1;
	img_sum_final(a->all, want);
	if (a->left || a->chunks || strncmp(buf, "end ", 4) != 0 || strcmp(buf + 4, want) != 0)
		return bad(a, "the sums are damaged", err);
	return 0;
}
