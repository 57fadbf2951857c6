/* SPDX-License-Identifier: BSD-2-Clause */
/* How a child names its parent: locators and the header's name (vhd-format §7, §8). */
#include "config.h"

#include <errno.h>
#include <iconv.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhd.h"

#define LOCATOR_MAX 65536u

/* malloc'd result of a whole conversion; NULL: not text in that encoding. */
static char *convert(const char *to, const char *from, const void *in, size_t in_len,
		     size_t *out_len)
{
	size_t room = in_len * 3 + 4, left = room - 2;
	char *buf = malloc(room), *src = (char *)(uintptr_t)in, *dst = buf;
	iconv_t cd = iconv_open(to, from);

	if (cd == (iconv_t)-1 || !buf || iconv(cd, &src, &in_len, &dst, &left) == (size_t)-1) {
		free(buf);
		buf = NULL;
	} else {
		*out_len = (size_t)(dst - buf);
		dst[0] = dst[1] = '\0';
	}
	if (cd != (iconv_t)-1)
		iconv_close(cd);
	return buf;
}

/*
 * Whether text is in the other byte order than it should be (§7, §8.3): it has ASCII only then. Its
 * first unit alone does not tell, U+4E00 looks like a swapped N.
 */
static bool is_swapped(const uint8_t *p, size_t len, bool big_endian)
{
	size_t as_big = 0, as_little = 0;

	for (size_t i = 0; i < len; i += 2) {
		as_big += !p[i] && p[i + 1] < 0x80;
		as_little += p[i] < 0x80 && !p[i + 1];
	}
	return big_endian ? as_big == 0 && as_little > 0 : as_little == 0 && as_big > 0;
}

char *vhd_utf16_get(const uint8_t *p, size_t bytes, bool big_endian)
{
	size_t len = 0, out;

	while (len + 1 < bytes && (p[len] || p[len + 1]))
		len += 2;
	if (is_swapped(p, len, big_endian))
		big_endian = !big_endian;
	return len ? convert("UTF-8", big_endian ? "UTF-16BE" : "UTF-16LE", p, len, &out) : NULL;
}

/* A Windows or URL path as a Unix one, in place. */
static char *to_unix(char *s)
{
	char *p = s;

	if (strncmp(p, "file://", 7) == 0)
		p += 7;
	if (p[0] && p[1] == ':' && ((p[0] | 32) >= 'a' && (p[0] | 32) <= 'z'))
		p += 2;
	memmove(s, p, strlen(p) + 1);
	for (p = s; *p; p++)
		if (*p == '\\')
			*p = '/';
	while (strncmp(s, "./", 2) == 0)
		memmove(s, s + 2, strlen(s + 2) + 1);
	return s;
}

/* Text of one locator, still in its own notation; NULL when it is unusable. */
static char *locator_text(struct img *l, const struct vhd_locator *loc)
{
	uint64_t end, size;
	char *text = NULL;
	uint8_t *buf;

	if (loc->len == 0 || loc->len > LOCATOR_MAX || io_size(&l->file, &size, NULL) < 0 ||
	    !u64_add(loc->off, loc->len, &end) || end > size)
		return NULL;
	buf = calloc(1, loc->len + 1);
	if (!buf || io_read(&l->file, buf, loc->len, loc->off, NULL) < 0)
		goto out;
	if (loc->code == VHD_W2RU || loc->code == VHD_W2KU)
		text = vhd_utf16_get(buf, loc->len & ~1u, false);
	else if (loc->code == VHD_MACX || loc->code == VHD_WI2R || loc->code == VHD_WI2K)
		text = strdup((char *)buf);
out:
	free(buf);
	return text;
}

/*
 * Relative locators first, the header's name (raw and as a path), then absolute ones (§8.6);
 * whether a text is relative is seen from the text alone (§8.5).
 */
char **vhd_parent_candidates(struct img *l, struct img_err *err)
{
	static const uint32_t order[] = {VHD_W2RU, VHD_MACX, VHD_WI2R, VHD_W2KU, VHD_WI2K};
	const struct vhd *v = l->state;
	char **list = calloc(VHD_LOCATORS + 3, sizeof(*list));
	int n = 0;

	if (!list) {
		img_err_errno(err, ENOMEM, "%s", l->file.path);
		return NULL;
	}
	for (size_t o = 0; o < sizeof(order) / sizeof(order[0]); o++)
		for (int i = 0; i < VHD_LOCATORS; i++) {
			char *text = v->header.loc[i].code == order[o]
					     ? locator_text(l, &v->header.loc[i])
					     : NULL;
			if (text && n < VHD_LOCATORS)
				list[n++] = to_unix(text);
			else
				free(text);
		}
	if (v->parent_name) {
		char *raw = strdup(v->parent_name), *path = strdup(v->parent_name);

		/* A Unix name may hold a backslash: as it stands, too. */
		if (raw)
			list[n++] = raw;
		if (path)
			list[n++] = to_unix(path);
	}
	return list;
}

/* The way from folder FROM to file TO, both absolute and resolved. */
static char *relative_path(const char *from, const char *to)
{
	size_t len = strlen(from), common = 0, ups = 0;
	char *out, *p;

	if (from[len - 1] == '/')
		len--; /* the root: from now on every folder is FROM[0..len) and a slash */
	for (size_t i = 0; i <= len && to[i] == (i < len ? from[i] : '/'); i++)
		if (to[i] == '/')
			common = i + 1;
	for (size_t i = common; i <= len; i++)
		ups += i == len || from[i] == '/';
	out = malloc(3 * ups + strlen(to + common) + 3);
	if (!out)
		return NULL;
	p = ups ? out : stpcpy(out, "./");
	while (ups--)
		p = stpcpy(p, "../");
	stpcpy(p, to + common);
	return out;
}

static uint8_t *windows_text(const char *unix_path, size_t *len)
{
	char *copy = strdup(unix_path), *out;

	if (!copy)
		return NULL;
	for (char *p = copy; *p; p++)
		if (*p == '/')
			*p = '\\';
	out = convert("UTF-16LE", "UTF-8", copy, strlen(copy), len);
	free(copy);
	return (uint8_t *)out;
}

/* The header's name: the last part of the path, cut at a character, NUL-terminated. */
static int header_name(const char *base, uint8_t name[VHD_NAME_UNITS * 2])
{
	size_t len, max = (VHD_NAME_UNITS - 1) * 2;
	char *text = convert("UTF-16BE", "UTF-8", base, strlen(base), &len);

	memset(name, 0, VHD_NAME_UNITS * 2);
	if (!text)
		return -1;
	if (len > max) {
		len = max;
		/* Never half a surrogate pair. */
		if (((uint8_t)text[len - 2] & 0xfc) == 0xd8)
			len -= 2;
	}
	memcpy(name, text, len);
	free(text);
	return 0;
}

int vhd_parent_names(const char *child, const char *parent, uint8_t **rel, size_t *rel_len,
		     uint8_t **abs, size_t *abs_len, uint8_t name[VHD_NAME_UNITS * 2],
		     struct img_err *err)
{
	char *dir = io_dirname(child), *real_dir = dir ? realpath(dir, NULL) : NULL;
	char *real = realpath(parent, NULL), *way = NULL;
	int rc = -1;

	*rel = *abs = NULL;
	if (!real || !real_dir) {
		img_err_errno(err, errno, "%s", real ? child : parent);
		goto out;
	}
	way = relative_path(real_dir, real);
	*rel = way ? windows_text(way, rel_len) : NULL;
	*abs = windows_text(real, abs_len);
	if (!*rel || !*abs || header_name(io_basename(real), name) < 0) {
		img_err_set(err, IMG_DATA,
			    "%s: the name is not UTF-8; a VHD child cannot record it", real);
		goto out;
	}
	rc = 0;
out:
	if (rc < 0) {
		free(*rel);
		free(*abs);
		*rel = *abs = NULL;
	}
	free(way);
	free(dir);
	free(real_dir);
	free(real);
	return rc;
}

char *vhd_parent_url(const char *child, const char *parent)
{
	char *dir = io_dirname(child), *way = dir ? relative_path(dir, parent) : NULL, *url = NULL;

	if (way && asprintf(&url, "file://%s", way) < 0)
		url = NULL;
	free(way);
	free(dir);
	return url;
}
