/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * LD_PRELOAD: the Nth call of a kind fails, once. NTH_KIND, NTH=N (0: none), NTH_ERRNO: what it
 * fails with. At the end the number of calls of that kind is written to the file NTH_COUNT; a tool
 * that is killed leaves none.
 *
 *   memory  allocations; always ENOMEM
 *   file    opening, looking, reading, locking
 *   write   all that changes a file or a folder, and syncs
 *   eintr   a signal comes in the middle: EINTR
 *   short   only a part is read or written
 *   plain   not the Nth but all: a file system that has no holes, no copies and no renameat2
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char kind[8], count_path[4096];
static long nth, calls;
static int error = EIO, started;

static void start(void)
{
	const char *k = getenv("NTH_KIND"), *n = getenv("NTH"), *e = getenv("NTH_ERRNO");
	const char *p = getenv("NTH_COUNT");

	if (!k || !n || !p)
		return;
	snprintf(kind, sizeof(kind), "%s", k);
	snprintf(count_path, sizeof(count_path), "%s", p);
	nth = atol(n);
	if (e)
		error = atoi(e);
	/* Programs that it starts live in peace. */
	unsetenv("NTH_KIND");
	unsetenv("LD_PRELOAD");
	started = 1;
}

static void stop(void)
{
	char text[32];
	int fd, n;

	if (!started)
		return;
	started = 0;
	fd = open(count_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	n = snprintf(text, sizeof(text), "%ld\n", calls);
	if (fd >= 0 && write(fd, text, (size_t)n) == n)
		close(fd);
}

/* Between the first line of main() and its end, not in what surrounds it: a profiler, say. */
static int (*real_main)(int, char **, char **);

static int counted_main(int argc, char **argv, char **envp)
{
	int rc;

	start();
	rc = real_main(argc, argv, envp);
	stop();
	return rc;
}

int __libc_start_main(int (*main)(int, char **, char **), int argc, char **argv, void (*init)(void),
		      void (*fini)(void), void (*rtld_fini)(void), void *stack_end);
int __libc_start_main(int (*main)(int, char **, char **), int argc, char **argv, void (*init)(void),
		      void (*fini)(void), void (*rtld_fini)(void), void *stack_end)
{
	int (*real)(int (*)(int, char **, char **), int, char **, void (*)(void), void (*)(void),
		    void (*)(void), void *) =
		(int (*)(int (*)(int, char **, char **), int, char **, void (*)(void),
			 void (*)(void), void (*)(void), void *))dlsym(RTLD_NEXT,
								       "__libc_start_main");

	real_main = main;
	return real(counted_main, argc, argv, init, fini, rtld_fini, stack_end);
}

void exit(int status)
{
	void (*real)(int) = (void (*)(int))dlsym(RTLD_NEXT, "exit");

	stop();
	real(status);
	abort(); /* it never returns */
}

static int due(const char *what)
{
	int yes;

	if (!started || strcmp(kind, what) != 0)
		return 0;
	pthread_mutex_lock(&lock);
	yes = ++calls == nth;
	pthread_mutex_unlock(&lock);
	if (yes)
		errno = strcmp(what, "memory") == 0  ? ENOMEM
			: strcmp(what, "eintr") == 0 ? EINTR
						     : error;
	return yes;
}

/* For what not every file system has. */
static int missing(int errnum)
{
	if (!started || strcmp(kind, "plain") != 0)
		return 0;
	calls++;
	errno = errnum;
	return 1;
}

/* glibc's own names: looking these up would allocate. */
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t m);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);

void *malloc(size_t n)
{
	return due("memory") ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t m)
{
	return due("memory") ? NULL : __libc_calloc(n, m);
}

void *realloc(void *p, size_t n)
{
	return due("memory") ? NULL : __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
	return due("memory") ? NULL : __libc_memalign(align, n);
}

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

/* One call of 1 to 6 arguments, BAD when FAILS; CALL2: under the name for large files as well. */
#define CALL_IF(fails, bad, type, name, params, args)                                              \
	type name params;                                                                          \
	type name params                                                                           \
	{                                                                                          \
		static type(*real) params;                                                         \
		if (!real)                                                                         \
			real = REAL(#name, type(*) params);                                        \
		return (fails) ? (bad) : real args;                                                \
	}
#define CALL(what, bad, type, name, params, args) CALL_IF(due(what), bad, type, name, params, args)
#define CALL2(fails, bad, type, name, params, args)                                                \
	CALL_IF(fails, bad, type, name, params, args)                                              \
	CALL_IF(fails, bad, type, name##64, params, args)
#define HALF(n) (n > 1 && due("short") ? n / 2 : n)

CALL2(due("file") || due("eintr"), -1, ssize_t, pread, (int fd, void *buf, size_t n, off_t off),
      (fd, buf, HALF(n), off))
CALL2(due("file") || (whence > SEEK_END && missing(EINVAL)), -1, off_t, lseek,
      (int fd, off_t off, int whence), (fd, off, whence))
CALL("file", NULL, char *, realpath, (const char *path, char *out), (path, out))
CALL("file", NULL, DIR *, opendir, (const char *path), (path))
CALL("file", -1, int, fstat, (int fd, struct stat *st), (fd, st))
CALL("file", -1, int, fstat64, (int fd, struct stat64 *st), (fd, st))
CALL("file", -1, int, stat, (const char *path, struct stat *st), (path, st))
CALL("file", -1, int, stat64, (const char *path, struct stat64 *st), (path, st))
CALL("file", -1, int, lstat, (const char *path, struct stat *st), (path, st))
CALL("file", -1, int, lstat64, (const char *path, struct stat64 *st), (path, st))
CALL("file", -1, int, fstatvfs, (int fd, struct statvfs *st), (fd, st))
CALL("file", -1, int, fstatvfs64, (int fd, struct statvfs64 *st), (fd, st))

CALL2(due("write") || due("eintr"), -1, ssize_t, pwrite,
      (int fd, const void *buf, size_t n, off_t off), (fd, buf, HALF(n), off))
CALL2(due("write") || due("eintr"), -1, int, ftruncate, (int fd, off_t n), (fd, n))
CALL2(due("write") || due("eintr") || missing(EOPNOTSUPP), -1, int, fallocate,
      (int fd, int mode, off_t off, off_t n), (fd, mode, off, n))
CALL("write", -1, int, fsync, (int fd), (fd))
CALL_IF(due("write") || due("eintr"), -1, int, fdatasync, (int fd), (fd))
CALL("write", -1, int, fchmod, (int fd, mode_t mode), (fd, mode))
CALL("write", -1, int, fchown, (int fd, uid_t u, gid_t g), (fd, u, g))
CALL("write", -1, int, unlink, (const char *path), (path))
CALL("write", -1, int, symlink, (const char *to, const char *path), (to, path))
CALL("write", -1, int, link, (const char *from, const char *to), (from, to))
CALL("write", -1, int, rename, (const char *from, const char *to), (from, to))
CALL_IF(due("write") || missing(ENOSYS), -1, int, renameat2,
	(int d1, const char *from, int d2, const char *to, unsigned flags),
	(d1, from, d2, to, flags))
CALL_IF(due("write") || due("eintr") || missing(EXDEV), -1, ssize_t, copy_file_range,
	(int in, off64_t *in_off, int out, off64_t *out_off, size_t n, unsigned flags),
	(in, in_off, out, out_off, HALF(n), flags))

/* Opening to create counts as a write. */
#define OPEN(name)                                                                                 \
	int name(const char *path, int flags, ...);                                                \
	int name(const char *path, int flags, ...)                                                 \
	{                                                                                          \
		static int (*real)(const char *, int, ...);                                        \
		mode_t mode = 0;                                                                   \
		va_list ap;                                                                        \
		if (flags & O_CREAT) {                                                             \
			va_start(ap, flags);                                                       \
			mode = va_arg(ap, mode_t);                                                 \
			va_end(ap);                                                                \
		}                                                                                  \
		if (!real)                                                                         \
			real = REAL(#name, int (*)(const char *, int, ...));                       \
		return due(flags & O_CREAT ? "write" : "file") ? -1 : real(path, flags, mode);     \
	}
OPEN(open)
OPEN(open64)

/* Only locks. */
#define FCNTL(name)                                                                                \
	int name(int fd, int cmd, ...);                                                            \
	int name(int fd, int cmd, ...)                                                             \
	{                                                                                          \
		static int (*real)(int, int, ...);                                                 \
		va_list ap;                                                                        \
		void *arg;                                                                         \
		va_start(ap, cmd);                                                                 \
		arg = va_arg(ap, void *);                                                          \
		va_end(ap);                                                                        \
		if (!real)                                                                         \
			real = REAL(#name, int (*)(int, int, ...));                                \
		return (cmd == F_OFD_SETLK || cmd == F_OFD_GETLK) && due("file")                   \
			       ? -1                                                                \
			       : real(fd, cmd, arg);                                               \
	}
FCNTL(fcntl)
FCNTL(fcntl64)
