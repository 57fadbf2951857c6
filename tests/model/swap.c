/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * LD_PRELOAD: somebody exchanges the names SWAP_A and SWAP_B at the worst moments. Before every
 * call that takes a name it is settled which of the two stands where: by a random bit (seed
 * SWAP_SEED); with seed 0, names are resolved while they are right and used while they are not.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static void settle(bool resolving)
{
	static bool swapped;
	static unsigned seed;
	const char *a = getenv("SWAP_A"), *b = getenv("SWAP_B"), *s = getenv("SWAP_SEED");
	int saved = errno;
	bool want;

	if (!a || !b || !s)
		return;
	if (!seed)
		seed = (unsigned)atoi(s) + 1;
	want = atoi(s) ? rand_r(&seed) & 64 : !resolving;
	if (want != swapped && renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) < 0)
		abort();
	swapped = want;
	errno = saved;
}

/* The next tool begins with the names where they were. */
__attribute__((destructor)) static void restore(void)
{
	if (getenv("SWAP_SEED")) {
		setenv("SWAP_SEED", "0", 1);
		settle(true);
	}
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

char *realpath(const char *path, char *out)
{
	settle(true);
	return NEXT(realpath)(path, out);
}

#define OPEN(name)                                                                                 \
	int name(const char *path, int flags, ...)                                                 \
	{                                                                                          \
		va_list ap;                                                                        \
		mode_t mode;                                                                       \
                                                                                                   \
		va_start(ap, flags);                                                               \
		mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;                     \
		va_end(ap);                                                                        \
		settle(false);                                                                     \
		return NEXT(name)(path, flags, mode);                                              \
	}
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                               \
	int name(int dir, const char *path, int flags, ...)                                        \
	{                                                                                          \
		va_list ap;                                                                        \
		mode_t mode;                                                                       \
                                                                                                   \
		va_start(ap, flags);                                                               \
		mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;                     \
		va_end(ap);                                                                        \
		settle(false);                                                                     \
		return NEXT(name)(dir, path, flags, mode);                                         \
	}
OPENAT(openat)
OPENAT(openat64)

#define STAT(name, type)                                                                           \
	int name(const char *path, struct type *st)                                                \
	{                                                                                          \
		settle(false);                                                                     \
		return NEXT(name)(path, st);                                                       \
	}
STAT(stat, stat)
STAT(lstat, stat)
STAT(stat64, stat64)
STAT(lstat64, stat64)
