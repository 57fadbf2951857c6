/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * LD_PRELOAD: a storage that fails. FAULT_READ=N: the Nth pread() of 4 KiB or more fails with EIO;
 * FAULT_FLIP=N: a bit of the Nth such pwrite() is lost on the way, FAULT_SYNC=1: fsync fails.
 * FAULT_THREAD=N: the Nth and later threads cannot be made, FAULT_PACK=N: zstd has no memory for
 * the Nth record.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int due(const char *name)
{
	static int reads, writes;
	const char *s = getenv(name);
	int *count = strcmp(name, "FAULT_READ") ? &writes : &reads;

	return s && ++*count == atoi(s);
}

ssize_t pread64(int fd, void *buf, size_t n, off64_t off)
{
	ssize_t (*real)(int, void *, size_t, off64_t) =
		(ssize_t(*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, "pread64");

	if (n >= 4096 && due("FAULT_READ")) {
		errno = EIO;
		return -1;
	}
	return real(fd, buf, n, off);
}

ssize_t pread(int fd, void *buf, size_t n, off_t off)
{
	return pread64(fd, buf, n, off);
}

ssize_t pwrite64(int fd, const void *buf, size_t n, off64_t off)
{
	ssize_t (*real)(int, const void *, size_t, off64_t) =
		(ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
	ssize_t rc;
	uint8_t *copy;

	if (n < 4096 || !due("FAULT_FLIP"))
		return real(fd, buf, n, off);
	copy = malloc(n);
	if (!copy)
		return -1;
	memcpy(copy, buf, n);
	copy[n / 2] ^= 4;
	rc = real(fd, copy, n, off);
	free(copy);
	return rc;
}

ssize_t pwrite(int fd, const void *buf, size_t n, off_t off)
{
	return pwrite64(fd, buf, n, off);
}

int fsync(int fd)
{
	int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");

	if (getenv("FAULT_SYNC")) {
		errno = EIO;
		return -1;
	}
	return real(fd);
}

int fdatasync(int fd)
{
	return fsync(fd);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	static int made;
	int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) =
		(int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))dlsym(
			RTLD_NEXT, "pthread_create");
	const char *s = getenv("FAULT_THREAD");

	if (s && ++made >= atoi(s))
		return EAGAIN;
	return real(thread, attr, fn, arg);
}

size_t ZSTD_compress2(void *ctx, void *dst, size_t room, const void *src, size_t len)
{
	static int records;
	size_t (*real)(void *, void *, size_t, const void *, size_t) =
		(size_t(*)(void *, void *, size_t, const void *, size_t))dlsym(RTLD_NEXT,
									       "ZSTD_compress2");
	const char *s = getenv("FAULT_PACK");

	if (s && __atomic_add_fetch(&records, 1, __ATOMIC_RELAXED) == atoi(s))
		return (size_t)-64; /* ZSTD_error_memory_allocation */
	return real(ctx, dst, room, src, len);
}
