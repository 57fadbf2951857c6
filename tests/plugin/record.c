/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * LD_PRELOAD recorder: what a process does to its files and their names, in order, with the time
 * that each call began and ended, appended to the file $QSM_RECORD. powercut.py plays prefixes of
 * such a recording back as a disk might hold them after a power cut. Several processes may
 * record into one file.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OP_WRITE = 1, OP_SYNC, OP_TRUNCATE, OP_PUNCH, OP_SYMLINK, OP_RENAME, OP_UNLINK };

/* Host byte order: the reader is on the same machine. */
struct event {
	uint32_t op, len; /* LEN bytes follow */
	uint64_t dev, ino, off, size, begin, end;
};

static int log_fd = -1;

__attribute__((constructor)) static void open_log(void)
{
	const char *path = getenv("QSM_RECORD");

	if (path)
		log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void *next_symbol(const char *name)
{
	void *p = dlsym(RTLD_NEXT, name);

	if (!p)
		abort();
	return p;
}
#define NEXT(name) ((__typeof__(name) *)next_symbol(#name))

/* One writev with O_APPEND: events of several threads and processes do not mix. */
static void emit(struct event *e, const struct stat *st, const void *data, size_t len)
{
	struct iovec v[2] = {{e, sizeof(*e)}, {(void *)data, len}};
	int saved = errno;

	if (log_fd < 0)
		return;
	e->end = now();
	e->dev = st->st_dev;
	e->ino = st->st_ino;
	e->len = (uint32_t)len;
	if (writev(log_fd, v, 2) != (ssize_t)(sizeof(*e) + len))
		abort();
	errno = saved;
}

static int file_of(int fd, struct stat *st)
{
	return log_fd >= 0 && fstat(fd, st) == 0 && (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode));
}

static ssize_t record_pwrite(int fd, const void *buf, size_t len, off_t off)
{
	struct event e = {.op = OP_WRITE, .off = (uint64_t)off, .begin = now()};
	ssize_t n = NEXT(pwrite64)(fd, buf, len, off);
	struct stat st;

	if (n > 0 && file_of(fd, &st))
		emit(&e, &st, buf, (size_t)n);
	return n;
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off)
{
	return record_pwrite(fd, buf, len, off);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t off)
{
	return record_pwrite(fd, buf, len, off);
}

static int record_truncate(int fd, off_t size)
{
	struct event e = {.op = OP_TRUNCATE, .size = (uint64_t)size, .begin = now()};
	int r = NEXT(ftruncate64)(fd, size);
	struct stat st;

	if (r == 0 && file_of(fd, &st))
		emit(&e, &st, NULL, 0);
	return r;
}

int ftruncate(int fd, off_t size)
{
	return record_truncate(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
	return record_truncate(fd, size);
}

/* Only what the library uses can be recorded; anything else would be a hole in the recording. */
static int record_fallocate(int fd, int mode, off_t off, off_t len)
{
	struct event e = {
		.op = OP_PUNCH, .off = (uint64_t)off, .size = (uint64_t)len, .begin = now()};
	struct stat st;
	int r;

	if (!(mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) ||
	    !(mode & FALLOC_FL_KEEP_SIZE)) {
		errno = EOPNOTSUPP;
		return -1;
	}
	r = NEXT(fallocate64)(fd, mode, off, len);
	if (r == 0 && file_of(fd, &st))
		emit(&e, &st, NULL, 0);
	return r;
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
	return record_fallocate(fd, mode, off, len);
}

int fallocate64(int fd, int mode, off64_t off, off64_t len)
{
	return record_fallocate(fd, mode, off, len);
}

/* Makes the library copy by read and write. */
ssize_t copy_file_range(int in, off64_t *in_off, int out, off64_t *out_off, size_t len,
			unsigned flags)
{
	(void)in, (void)in_off, (void)out, (void)out_off, (void)len, (void)flags;
	errno = EOPNOTSUPP;
	return -1;
}

static int record_sync(int (*sync_)(int), int fd)
{
	struct event e = {.op = OP_SYNC, .begin = now()};
	int r = sync_(fd);
	struct stat st;

	if (r == 0 && file_of(fd, &st))
		emit(&e, &st, NULL, 0);
	return r;
}

int fsync(int fd)
{
	return record_sync(NEXT(fsync), fd);
}

int fdatasync(int fd)
{
	return record_sync(NEXT(fdatasync), fd);
}

/* DATA: target, NUL, path */
int symlink(const char *target, const char *path)
{
	struct event e = {.op = OP_SYMLINK, .begin = now()};
	int r = NEXT(symlink)(target, path);
	struct stat st;
	char *both;
	int n;

	if (r == 0 && lstat(path, &st) == 0 &&
	    (n = asprintf(&both, "%s%c%s", target, 0, path)) >= 0) {
		emit(&e, &st, both, (size_t)n);
		free(both);
	}
	return r;
}

static void emit_rename(struct event *e, const char *from, const char *to)
{
	struct stat st;
	char *both;
	int n;

	if (lstat(to, &st) == 0 && (n = asprintf(&both, "%s%c%s", from, 0, to)) >= 0) {
		emit(e, &st, both, (size_t)n);
		free(both);
	}
}

int rename(const char *from, const char *to)
{
	struct event e = {.op = OP_RENAME, .begin = now()};
	int r = NEXT(rename)(from, to);

	if (r == 0)
		emit_rename(&e, from, to);
	return r;
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
	struct event e = {.op = OP_RENAME, .begin = now()};
	int r = NEXT(renameat2)(from_fd, from, to_fd, to, flags);

	if (r == 0)
		emit_rename(&e, from, to);
	return r;
}

int unlink(const char *path)
{
	struct event e = {.op = OP_UNLINK, .begin = now()};
	struct stat st;
	int known = lstat(path, &st) == 0;
	int r = NEXT(unlink)(path);

	if (r == 0 && known)
		emit(&e, &st, path, strlen(path));
	return r;
}
