/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"
#include "receipt.h"

static void put_text(FILE *f, const char *name, const char *value)
{
	fprintf(f, ",\"%s\":", name);
	if (value && *value)
		cli_json_string(f, value);
	else
		fputs("null", f);
}

static void put_number(FILE *f, const char *name, uint64_t value)
{
	fprintf(f, ",\"%s\":%" PRIu64, name, value);
}

char *receipt_json(const struct receipt *r)
{
	const struct stream_totals *t = r->totals;
	char uuid[IMG_UUID_STR] = "", *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return NULL;
	if (r->uuid)
		img_uuid_str(r->uuid, uuid);
	fputs("{\"version\":1", f);
	put_text(f, "kind", stream_kind_name(r->begin->kind));
	put_text(f, "uuid", uuid);
	put_number(f, "size", r->begin->size);
	put_text(f, "content_sum", t->content_sum);
	put_text(f, "stream_sum", t->stream_sum);
	put_number(f, "bytes", t->wire_bytes);
	put_number(f, "records", t->records);
	put_number(f, "data_bytes", t->data_bytes);
	put_number(f, "zero_bytes", t->zero_bytes);
	put_text(f, "file", r->file);
	put_text(f, "parent", r->parent);
	if (r->verified)
		fputs(",\"verified\":true", f);
	fputs("}\n", f);
	if (fclose(f)) {
		free(text);
		return NULL;
	}
	return text;
}

int receipt_check(const char *path, bool force, struct img_err *err)
{
	struct stat st;

	if (stat(path, &st))
		return errno == ENOENT ? 0 : img_err_errno(err, errno, "%s", path);
	if (S_ISREG(st.st_mode) && st.st_size && !force)
		return img_err_set(err, IMG_CANTCREAT, "%s: exists; --force replaces it", path);
	return 0;
}

int receipt_store(const char *path, const char *text, struct img_err *err)
{
	size_t len = strlen(text);
	struct stat st;
	int fd, rc;

	if (stat(path, &st) || S_ISREG(st.st_mode))
		return io_store(path, text, len, 0644, err);
	fd = open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return img_err_errno(err, errno, "%s", path);
	rc = io_stream_write(fd, text, len, path, err);
	if (close(fd) && !rc)
		rc = img_err_errno(err, errno, "%s", path);
	return rc;
}
