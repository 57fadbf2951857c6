/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Names of parents. First half: any bytes as the locators and the name of a header; what comes out
 * of UTF-16 is UTF-8, and bounded. Second half: two files anywhere in a tree; what is recorded for
 * them must lead from the child back to the parent.
 *
 * Input: a mode, then (decoding) a header's name and entries with their data, or (round trip) path
 * components.
 */
#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bytes.h"
#include "fuzz.h"
#include "vhd.h"

/* A layer with this header, whose file holds what the locators lead to. */
struct layer {
	struct img l;
	struct vhd v;
};

static void layer_open(struct layer *y)
{
	struct img_err err = {0};

	memset(y, 0, sizeof(*y));
	if (io_open(&y->l.file, fuzz_path("locators"), false, &err) < 0)
		fuzz_die(&err, "no file for locators");
	y->l.state = &y->v;
}

static void layer_close(struct layer *y)
{
	free(y->v.parent_name);
	io_close(&y->l.file);
}

/* Well-formed as iconv has it: lead bytes with their tails, nothing overlong, no surrogate. */
static bool is_utf8(const char *s)
{
	const uint8_t *p = (const uint8_t *)s;

	while (*p) {
		unsigned n = *p < 0x80 ? 0 : *p >= 0xf0 ? 3 : *p >= 0xe0 ? 2 : 1;
		uint32_t c = n ? *p & (0x3fu >> n) : *p;
		uint32_t least = n == 0 ? 0 : n == 1 ? 0x80 : n == 2 ? 0x800 : 0x10000;

		if ((*p & 0xc0) == 0x80 || *p > 0xf4)
			return false;
		for (p++; n; n--, p++) {
			if ((*p & 0xc0) != 0x80)
				return false;
			c = c << 6 | (*p & 0x3f);
		}
		if (c < least || (c >= 0xd800 && c < 0xe000) || c > 0x10ffff)
			return false;
	}
	return true;
}

static void try_text(struct fuzz_in *in)
{
	for (int big = 0; big < 2; big++) {
		/* Exactly as large as it is said to be, so that one byte too many is seen. */
		uint8_t *exact = malloc(in->n ? in->n : 1);
		char *text;

		memcpy(exact, in->p, in->n);
		text = vhd_utf16_get(exact, in->n, big);
		if (text && (!is_utf8(text) || strlen(text) > in->n / 2 * 3))
			fuzz_die(NULL, "text that is not UTF-8 or too long");
		free(text);
		free(exact);
	}
}

static void check_candidates(char **names)
{
	unsigned n = 0;

	for (; names[n]; n++)
		if (strlen(names[n]) > 3 * 65536)
			fuzz_die(NULL, "a name of %zu bytes", strlen(names[n]));
	if (n > VHD_LOCATORS + 2)
		fuzz_die(NULL, "%u candidates", n);
}

static void free_list(char **names)
{
	for (int i = 0; names && names[i]; i++)
		free(names[i]);
	free(names);
}

static void decode(struct fuzz_in *in)
{
	static const uint32_t codes[] = {VHD_NONE, VHD_W2RU, VHD_W2KU,	VHD_MACX,
					 VHD_WI2R, VHD_WI2K, 0x41414141};
	struct img_err err = {0};
	struct layer y;
	char **names;
	unsigned n;

	try_text(in);
	n = fuzz_u8(in) % (VHD_LOCATORS + 1);
	struct vhd_locator loc[VHD_LOCATORS] = {0};

	for (unsigned i = 0; i < n; i++) {
		unsigned kind = fuzz_u8(in);

		loc[i].code = kind < 0xf0 ? codes[kind % 7] : fuzz_u32(in);
		loc[i].space = fuzz_u16(in);
		loc[i].len = kind & 0x40 ? fuzz_u32(in) : fuzz_u8(in);
		loc[i].off = kind & 0x20 ? (uint64_t)fuzz_u32(in) << (kind & 31) : fuzz_u8(in);
	}
	fuzz_file("locators", in->p, in->n);
	layer_open(&y);
	memcpy(y.v.header.loc, loc, sizeof(loc));
	y.v.parent_name = vhd_utf16_get(in->p, in->n < 512 ? in->n : 512, true);
	names = vhd_parent_candidates(&y.l, &err);
	if (!names)
		fuzz_die(&err, "no list of candidates");
	check_candidates(names);
	free_list(names);
	layer_close(&y);
}

/* One part of a path out of the input; what no VHD can carry, or no file system, is left out. */
static size_t take_part(struct fuzz_in *in, char *out, size_t room)
{
	static const char *const odd[] = {"a",	   "b c", "ä",	 "日本", "..x",	 "x.",	"C:",
					  "file:", "😀",	  "'\"", "-f",	 "a\nb", "%41", "~"};
	unsigned kind = fuzz_u8(in), len = kind >> 4;
	size_t n = 0;

	if (kind % 16 < 14)
		n = (size_t)snprintf(out, room, "%s", odd[kind % 16]);
	for (; len && n + 1 < room && in->n; len--) {
		char c = (char)fuzz_u8(in);

		if (c && c != '/' && c != '\\')
			out[n++] = c;
	}
	out[n] = '\0';
	if (n == 0 || strcmp(out, ".") == 0 || strcmp(out, "..") == 0 || !is_utf8(out))
		n = (size_t)snprintf(out, room, "p");
	return n;
}

/* Makes the folders of a path below ROOT and a file at its end. */
static bool make_path(struct fuzz_in *in, const char *root, char *path, size_t room)
{
	unsigned depth = fuzz_u8(in) % 6;
	size_t n = (size_t)snprintf(path, room, "%s", root);
	int fd;

	for (unsigned i = 0; i <= depth; i++) {
		path[n++] = '/';
		n += take_part(in, path + n, 120);
		if (i < depth && mkdir(path, 0700) < 0 && access(path, X_OK) < 0)
			return false;
	}
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static void same_file(const char *want, const char *dir, const char *name, const char *which)
{
	char path[9000];
	char *real;

	snprintf(path, sizeof(path), "%s%s%s", name[0] == '/' ? "" : dir, name[0] == '/' ? "" : "/",
		 name);
	real = realpath(path, NULL);
	if (!real || strcmp(real, want) != 0)
		fuzz_die(NULL, "the %s name '%s' seen from %s is not %s", which, name, dir, want);
	free(real);
}

static bool has_ascii(const char *s)
{
	while (*s & 0x80)
		s++;
	return *s;
}

static void round_trip(struct fuzz_in *in)
{
	char child[4096], parent[4096];
	uint8_t *rel, *abs, name[VHD_NAME_UNITS * 2], data[32768];
	size_t rel_len, abs_len;
	struct img_err err = {0};
	struct layer y;
	char **names, *dir;

	fuzz_dir_clear();
	if (!make_path(in, fuzz_dir(), child, sizeof(child)) ||
	    !make_path(in, fuzz_dir(), parent, sizeof(parent)))
		return;
	if (vhd_parent_names(child, parent, &rel, &rel_len, &abs, &abs_len, name, &err) < 0)
		fuzz_die(&err, "the names of %s cannot be recorded in %s", parent, child);
	if (rel_len + abs_len > sizeof(data) || rel_len % 2 || abs_len % 2)
		fuzz_die(NULL, "names of %zu and %zu bytes", rel_len, abs_len);
	memcpy(data, rel, rel_len);
	memcpy(data + rel_len, abs, abs_len);
	fuzz_file("locators", data, rel_len + abs_len);
	layer_open(&y);
	y.v.header.loc[1] = (struct vhd_locator){VHD_W2RU, 512, (uint32_t)rel_len, 0};
	y.v.header.loc[0] = (struct vhd_locator){VHD_W2KU, 512, (uint32_t)abs_len, rel_len};
	y.v.parent_name = vhd_utf16_get(name, sizeof(name), true);
	names = vhd_parent_candidates(&y.l, &err);
	if (!names || !names[0] || !names[1] || !names[2])
		fuzz_die(&err, "a name got lost");
	dir = io_dirname(child);
	same_file(parent, dir, names[0], "relative");
	same_file(parent, dir, names[1], "absolute");
	/* Without any ASCII it cannot be told from text of the other byte order. */
	if (has_ascii(io_basename(parent)) && strcmp(names[2], io_basename(parent)) != 0)
		fuzz_die(NULL, "the header names '%s', not %s", names[2], io_basename(parent));
	free(dir);
	free_list(names);
	layer_close(&y);
	free(rel);
	free(abs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};

	if (size > 8192)
		return 0;
	fuzz_room(1 << 20);
	if (fuzz_u8(&in) & 1)
		round_trip(&in);
	else
		decode(&in);
	return 0;
}
