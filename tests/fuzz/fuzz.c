/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

uint8_t fuzz_u8(struct fuzz_in *in)
{
	if (in->n == 0)
		return 0;
	in->n--;
	return *in->p++;
}

uint16_t fuzz_u16(struct fuzz_in *in)
{
	unsigned low = fuzz_u8(in);

	return (uint16_t)(low | (unsigned)fuzz_u8(in) << 8);
}

uint32_t fuzz_u32(struct fuzz_in *in)
{
	uint32_t low = fuzz_u16(in);

	return low | (uint32_t)fuzz_u16(in) << 16;
}

static char *folder;

/* More than most inputs need; with less left, what went wrong may be the want of it. */
#define ROOM (16u << 20)
#define ROOM_NAMES 256

static bool has_room(const char *path, uint64_t room)
{
	struct statvfs v;

	return statvfs(path, &v) < 0 || ((uint64_t)v.f_bavail * v.f_frsize >= room &&
					 (v.f_files == 0 || v.f_favail >= ROOM_NAMES));
}

/* As has_room(), once nobody else has anything there. */
static bool may_have_room(const char *path, uint64_t room)
{
	struct statvfs v;

	return statvfs(path, &v) < 0 || (uint64_t)v.f_blocks * v.f_frsize >= room;
}

static bool says_full(const struct img_err *err)
{
	return err && err->code &&
	       (strstr(err->msg, strerror(ENOSPC)) || strstr(err->msg, strerror(EDQUOT)));
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type;
	return ftw->level ? remove(path) : 0;
}

void fuzz_dir_clear(void)
{
	(void)nftw(fuzz_dir(), remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static void remove_folder(void)
{
	fuzz_dir_clear();
	(void)rmdir(folder);
}

/* No crash: nothing can be said of an input that found the disk full. */
static __attribute__((noreturn)) void no_room(const struct img_err *err)
{
	fprintf(stderr, "\n== NO ROOM in %s\n", folder);
	if (err && err->code)
		fprintf(stderr, "   error %d: %s\n", err->code, err->msg);
	remove_folder();
	_exit(IMG_CANTCREAT);
}

void fuzz_room(uint64_t room)
{
	const struct timespec moment = {0, 100000000};

	if (has_room(fuzz_dir(), room))
		return;
	fuzz_dir_clear();
	for (int i = 0; !has_room(folder, room); i++) {
		if (i == 300 || !may_have_room(folder, room))
			no_room(NULL);
		nanosleep(&moment, NULL);
	}
}

const char *fuzz_dir(void)
{
	const char *base = getenv("TMPDIR");
	char *path, *made;

	if (folder)
		return folder;
	if (!base)
		base = access("/dev/shm", W_OK) == 0 && has_room("/dev/shm", ROOM) ? "/dev/shm"
										   : "/tmp";
	if (asprintf(&path, "%s/qsm-fuzz.XXXXXX", base) < 0)
		abort();
	made = mkdtemp(path);
	folder = made ? realpath(made, NULL) : NULL;
	if (!folder)
		fuzz_die(NULL, "cannot make a folder in %s", base);
	free(path);
	atexit(remove_folder);
	return folder;
}

const char *fuzz_path(const char *name)
{
	static char buf[8][4096 + 300];
	static unsigned next;
	char *path = buf[next++ % 8];

	snprintf(path, sizeof(buf[0]), "%s/%s", fuzz_dir(), name);
	return path;
}

void fuzz_file(const char *name, const void *buf, size_t len)
{
	int fd = open(fuzz_path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, buf, len) != (ssize_t)len || close(fd) < 0)
		fuzz_die(NULL, "cannot write %s", name);
}

bool fuzz_exists(const char *name)
{
	return access(fuzz_path(name), F_OK) == 0;
}

FUZZ_UNCOUNTED void fuzz_pattern(uint8_t *buf, size_t len, uint32_t seed)
{
	uint32_t x = seed * 2654435761u | 1;

	for (size_t i = 0; i < len; i++) {
		x = x * 1664525u + 1013904223u;
		buf[i] = (uint8_t)(x >> 24) | (i % 512 == 0);
	}
}

void fuzz_die(const struct img_err *err, const char *fmt, ...)
{
	va_list ap;

	if (folder && (says_full(err) || !has_room(folder, ROOM)))
		no_room(err);
	va_start(ap, fmt);
	fputs("\n== WRONG: ", stderr);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	if (err && err->code)
		fprintf(stderr, "\n   error %d: %s", err->code, err->msg);
	fputc('\n', stderr);
	abort();
}
