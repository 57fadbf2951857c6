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

/* A link is followed: /dev/stderr is one, and must stay one. */
static bool is_written_in_place(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0 && !S_ISREG(st.st_mode);
}

static int check_folder(const char *path)
{
	char *dir = io_dirname(path);
	int rc = dir ? faccessat(AT_FDCWD, dir, W_OK | X_OK, AT_EACCESS) : -1;

	free(dir);
	return rc;
}

int receipt_check(const char *path, bool force, struct img_err *err)
{
	struct stat st = {0};
	int rc;

	if (stat(path, &st) && errno != ENOENT)
		return img_err_set(err, IMG_CANTCREAT, "%s: cannot create: %s", path,
				   strerror(errno));
	if (S_ISREG(st.st_mode) && st.st_size && !force)
		return img_err_set(err, IMG_CANTCREAT, "%s: exists; --force replaces it", path);
	if (S_ISDIR(st.st_mode))
		return img_err_set(err, IMG_CANTCREAT, "%s: is a folder", path);
	rc = is_written_in_place(path)
		     ? !st.st_mode ? 0 : faccessat(AT_FDCWD, path, W_OK, AT_EACCESS)
		     : check_folder(path);
	if (rc && (errno == ENOENT || errno == ENOTDIR))
		return img_err_set(err, IMG_CANTCREAT, "%s: cannot create: %s", path,
				   strerror(errno));
	return rc ? img_err_errno(err, errno, "%s: cannot be written", path) : 0;
}

static int write_in_place(const char *path, const char *text, bool force, struct img_err *err)
{
	const int how = force ? O_TRUNC : O_APPEND;
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY | how, 0644), rc;

	if (fd < 0)
		return img_err_errno(err, errno, "%s", path);
	rc = io_stream_write(fd, text, strlen(text), path, err);
	if (!rc && fsync(fd) && errno != EINVAL && errno != EROFS)
		rc = img_err_errno(err, errno, "%s: sync failed", path);
	if (close(fd) && !rc)
		rc = img_err_errno(err, errno, "%s", path);
	return rc;
}

int receipt_store(const char *path, const char *text, bool force, struct img_err *err)
{
	/* Somebody may have taken the name meanwhile. */
	if (receipt_check(path, force, err))
		return -1;
	return is_written_in_place(path) ? write_in_place(path, text, force, err)
					 : io_store(path, text, strlen(text), 0644, err);
}
