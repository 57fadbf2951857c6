/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/falloc.h>
#include <linux/fs.h>
#endif

#include "bytes.h"

#ifndef O_PATH
#define O_PATH O_RDONLY
#endif
#ifndef O_DIRECT
#define O_DIRECT 0
#endif
#define COPY_BUF (1u << 20)

/* No file system asks for a coarser alignment; smaller writes would wait for the disk too often. */
enum { DIRECT_ALIGN = 4096, DIRECT_MIN = 256 << 10 };

void io_init(struct io_file *f)
{
	memset(f, 0, sizeof(*f));
	f->fd = f->direct = -1;
	pthread_mutex_init(&f->mutex, NULL);
	pthread_cond_init(&f->done, NULL);
}

/* Only what holds still under positional I/O: a FIFO would block, a device node may do anything. */
static int check_kind(struct io_file *f, struct img_err *err)
{
	struct stat st;

	if (fstat(f->fd, &st) < 0)
		return img_err_errno(err, errno, "%s: cannot stat", f->path);
	if (S_ISREG(st.st_mode))
		return 0;
	if (S_ISBLK(st.st_mode)) {
		f->block_device = true;
		return 0;
	}
	return img_err_set(err, IMG_DATA,
			   "%s: neither a regular file nor a block device (mode 0%o)", f->path,
			   (unsigned)st.st_mode);
}

/*
 * Opens the file that has the resolved name REAL now. A folder on the way that has become a link
 * since the name was resolved (ELOOP, ENOTDIR) leads nowhere.
 */
static int open_resolved(const char *real, int flags)
{
	char *names = strdup(real), *rest = names, *name = names ? strsep(&rest, "/") : NULL;
	int dir = names ? open("/", O_PATH | O_DIRECTORY | O_CLOEXEC) : -1, fd = -1, saved;

	while (dir >= 0 && (name = strsep(&rest, "/"))) {
		fd = openat(dir, name,
			    O_NOFOLLOW | O_CLOEXEC | (rest ? O_PATH | O_DIRECTORY : flags));
		saved = errno;
		close(dir);
		errno = saved;
		dir = rest ? fd : -1;
	}
	free(names);
	return fd;
}

int io_open(struct io_file *f, const char *path, bool writable, struct img_err *err)
{
	io_init(f);
	f->path = strdup(path);
	if (!f->path)
		return img_err_errno(err, ENOMEM, "%s", path);
	f->writable = writable;
	f->real = realpath(path, NULL);
	/* O_NONBLOCK: opening a FIFO must not wait for its other end. */
	if (f->real)
		f->fd = open_resolved(f->real,
				      (writable ? O_RDWR : O_RDONLY) | O_NOCTTY | O_NONBLOCK);
	if (f->real && f->fd < 0 && (errno == ELOOP || errno == ENOTDIR)) {
		img_err_set(err, IMG_DATA, "%s: replaced by a link while it was opened", path);
		goto fail;
	}
	if (f->fd < 0) {
		img_err_errno(err, errno, "%s: cannot open", path);
		goto fail;
	}
	if (check_kind(f, err) < 0)
		goto fail;
	return 0;
fail:
	io_close(f);
	return -1;
}

void io_close(struct io_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	if (f->direct >= 0)
		close(f->direct);
	free(f->path);
	free(f->real);
	pthread_mutex_destroy(&f->mutex);
	pthread_cond_destroy(&f->done);
	io_init(f);
}

int io_size(struct io_file *f, uint64_t *size, struct img_err *err)
{
	struct stat st;

#ifdef BLKGETSIZE64
	if (f->block_device) {
		if (ioctl(f->fd, BLKGETSIZE64, size) < 0)
			return img_err_errno(err, errno, "%s: cannot get the device's size",
					     f->path);
		return 0;
	}
#endif
	if (fstat(f->fd, &st) < 0)
		return img_err_errno(err, errno, "%s: cannot stat", f->path);
	*size = (uint64_t)st.st_size;
	return 0;
}

static bool in_range(uint64_t off, uint64_t len)
{
	uint64_t end;

	return u64_add(off, len, &end) && end <= INT64_MAX;
}

int io_read_upto(struct io_file *f, void *buf, size_t len, uint64_t off, size_t *got,
		 struct img_err *err)
{
	uint8_t *p = buf;

	*got = 0;
	if (!in_range(off, len))
		return img_err_set(err, IMG_DATA, "%s: offset %" PRIu64 " is beyond any file",
				   f->path, off);
	while (*got < len) {
		ssize_t n = pread(f->fd, p + *got, len - *got, (off_t)(off + *got));

		if (n == 0)
			break;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return img_err_errno(err, errno, "%s: read of %zu bytes at offset %" PRIu64,
					     f->path, len - *got, off + *got);
		*got += (size_t)n;
	}
	return 0;
}

int io_read(struct io_file *f, void *buf, size_t len, uint64_t off, struct img_err *err)
{
	size_t got;

	if (io_read_upto(f, buf, len, off, &got, err) < 0)
		return -1;
	if (got < len)
		return img_err_set(err, IMG_DATA,
				   "%s: the file ends at %" PRIu64 ", %zu bytes at offset %" PRIu64
				   " were expected: it was cut off",
				   f->path, off + got, len, off);
	return 0;
}

static int check_alive(struct io_file *f, struct img_err *err)
{
	if (f->failed)
		return img_err_set(err, IMG_IO,
				   "%s: an earlier sync failed (%s): what was written since the "
				   "last good one may be lost",
				   f->path, strerror(f->failed));
	return 0;
}

void io_direct(struct io_file *f)
{
	struct stat a, b;

	if (!O_DIRECT || f->direct >= 0 || !f->real)
		return;
	f->direct = open_resolved(f->real, O_WRONLY | O_DIRECT | O_NOCTTY | O_NONBLOCK);
	if (f->direct < 0)
		return;
	if (fstat(f->fd, &a) == 0 && fstat(f->direct, &b) == 0 && io_same(&a, &b))
		return;
	close(f->direct);
	f->direct = -1;
}

static bool fits_direct(const struct io_file *f, const void *buf, size_t len, uint64_t off)
{
	return f->direct >= 0 && len >= DIRECT_MIN && len % DIRECT_ALIGN == 0 &&
	       off % DIRECT_ALIGN == 0 && (uintptr_t)buf % DIRECT_ALIGN == 0;
}

/* pwrite(), past the page cache where that can be. */
static ssize_t put(struct io_file *f, const void *buf, size_t len, uint64_t off)
{
	if (fits_direct(f, buf, len, off)) {
		ssize_t n = pwrite(f->direct, buf, len, (off_t)off);

		/* A file system may find out only now that it cannot. */
		if (n >= 0 || errno != EINVAL)
			return n;
		close(f->direct);
		f->direct = -1;
	}
	return pwrite(f->fd, buf, len, (off_t)off);
}

int io_write(struct io_file *f, const void *buf, size_t len, uint64_t off, struct img_err *err)
{
	const uint8_t *p = buf;
	size_t done = 0;

	if (check_alive(f, err) < 0)
		return -1;
	if (!in_range(off, len))
		return img_err_set(err, IMG_DATA, "%s: offset %" PRIu64 " is beyond any file",
				   f->path, off);
	while (done < len) {
		ssize_t n = put(f, p + done, len - done, off + done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return img_err_errno(err, n < 0 ? errno : EIO,
					     "%s: write of %zu bytes at offset %" PRIu64, f->path,
					     len - done, off + done);
		done += (size_t)n;
	}
	return 0;
}

static int write_zeros(struct io_file *f, uint64_t off, uint64_t len, struct img_err *err)
{
	static const uint8_t zeros[64 << 10];

	while (len) {
		size_t n = (size_t)u64_min(len, sizeof(zeros));

		if (io_write(f, zeros, n, off, err) < 0)
			return -1;
		off += n;
		len -= n;
	}
	return 0;
}

static int grow_to(struct io_file *f, uint64_t end, struct img_err *err)
{
	uint64_t size;

	if (io_size(f, &size, err) < 0)
		return -1;
	return size >= end ? 0 : io_truncate(f, end, err);
}

int io_zero(struct io_file *f, uint64_t off, uint64_t len, struct img_err *err)
{
	uint64_t size, end;

	if (check_alive(f, err) < 0 || io_size(f, &size, err) < 0)
		return -1;
	if (!in_range(off, len))
		return img_err_set(err, IMG_DATA, "%s: offset %" PRIu64 " is beyond any file",
				   f->path, off);
	end = off + len;
	if (off < size) {
		uint64_t inside = u64_min(end, size) - off;

		/* Small ranges are cheaper written than punched, and stay allocated. */
		if (inside < COPY_BUF / 16) {
			if (write_zeros(f, off, inside, err) < 0)
				return -1;
		} else if (io_punch(f, off, inside, err) < 0) {
			return -1;
		}
	}
	return f->block_device ? 0 : grow_to(f, end, err);
}

int io_punch(struct io_file *f, uint64_t off, uint64_t len, struct img_err *err)
{
	if (check_alive(f, err) < 0)
		return -1;
#if defined(HAVE_FALLOCATE) && defined(FALLOC_FL_PUNCH_HOLE)
	for (;;) {
		if (fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off,
			      (off_t)len) == 0)
			return 0;
		if (errno == EINTR)
			continue;
		if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL)
			break;
		return img_err_errno(err, errno, "%s: cannot punch %" PRIu64 " bytes at %" PRIu64,
				     f->path, len, off);
	}
#endif
	return write_zeros(f, off, len, err);
}

static int copy_by_buffer(struct io_file *from, uint64_t from_off, struct io_file *to,
			  uint64_t to_off, uint64_t len, struct img_err *err)
{
	uint8_t *buf = malloc((size_t)u64_min(len, COPY_BUF));
	int rc = -1;

	if (!buf)
		return img_err_errno(err, ENOMEM, "%s", from->path);
	while (len) {
		size_t n = (size_t)u64_min(len, COPY_BUF);

		if (io_read(from, buf, n, from_off, err) < 0 ||
		    io_write(to, buf, n, to_off, err) < 0)
			goto out;
		from_off += n;
		to_off += n;
		len -= n;
	}
	rc = 0;
out:
	free(buf);
	return rc;
}

int io_copy(struct io_file *from, uint64_t from_off, struct io_file *to, uint64_t to_off,
	    uint64_t len, struct img_err *err)
{
	if (check_alive(to, err) < 0)
		return -1;
#ifdef HAVE_COPY_FILE_RANGE
	/* Below this size two plain calls are cheaper than the kernel's splice machinery. */
	while (len >= (64 << 10)) {
		loff_t in = (loff_t)from_off, out = (loff_t)to_off;
		ssize_t n = copy_file_range(from->fd, &in, to->fd, &out, len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break; /* the plain way finds out, and reports, why */
		from_off += (uint64_t)n;
		to_off += (uint64_t)n;
		len -= (uint64_t)n;
	}
#endif
	return copy_by_buffer(from, from_off, to, to_off, len, err);
}

/*
 * A question may cost the file system time for every extent, or page, of what it answers about,
 * so an answer is kept. Only "data" is: a hole that is punched meanwhile then counts as data,
 * which reads as the same zeros.
 */
static bool known_data(struct io_file *f, uint64_t off, uint64_t *len)
{
	bool known;

	pthread_mutex_lock(&f->mutex);
	known = off >= f->data && off < f->data_end;
	if (known)
		*len = u64_min(*len, f->data_end - off);
	pthread_mutex_unlock(&f->mutex);
	return known;
}

static void keep_data(struct io_file *f, uint64_t off, uint64_t end)
{
	pthread_mutex_lock(&f->mutex);
	f->data = off;
	f->data_end = end;
	pthread_mutex_unlock(&f->mutex);
}

int io_extent(struct io_file *f, uint64_t off, uint64_t *len, bool *hole, struct img_err *err)
{
	off_t at;

	*hole = false;
	if (f->block_device || known_data(f, off, len))
		return 0;
	at = lseek(f->fd, (off_t)off, SEEK_DATA);
	if (at < 0 && errno == ENXIO) {
		*hole = true; /* nothing but hole up to the end of the file */
		return 0;
	}
	if (at < 0)
		return errno == EINVAL || errno == EOPNOTSUPP
			       ? 0
			       : img_err_errno(err, errno, "%s: cannot seek for data", f->path);
	if ((uint64_t)at > off) {
		*hole = true;
		*len = u64_min(*len, (uint64_t)at - off);
		return 0;
	}
	at = lseek(f->fd, (off_t)off, SEEK_HOLE);
	if (at >= 0 && (uint64_t)at > off) {
		*len = u64_min(*len, (uint64_t)at - off);
		keep_data(f, off, (uint64_t)at);
	}
	return 0;
}

int io_truncate(struct io_file *f, uint64_t size, struct img_err *err)
{
	if (check_alive(f, err) < 0)
		return -1;
	while (ftruncate(f->fd, (off_t)size) < 0)
		if (errno != EINTR)
			return img_err_errno(err, errno, "%s: cannot set the size to %" PRIu64,
					     f->path, size);
	return 0;
}

int io_sync(struct io_file *f, struct img_err *err)
{
	uint64_t need;

	pthread_mutex_lock(&f->mutex);
	need = f->started + 1; /* only a sync that begins after now covers our writes */
	while (f->finished < need && !f->failed) {
		if (f->syncing) {
			pthread_cond_wait(&f->done, &f->mutex);
			continue;
		}
		uint64_t mine = ++f->started;
		int rc;

		f->syncing = true;
		pthread_mutex_unlock(&f->mutex);
		do
			rc = fdatasync(f->fd);
		while (rc < 0 && errno == EINTR);
		int errnum = errno;

		pthread_mutex_lock(&f->mutex);
		f->syncing = false;
		f->finished = mine;
		if (rc < 0) {
			f->failed = errnum;
#ifdef POSIX_FADV_DONTNEED
			/*
			 * The kernel may call lost pages clean: whoever reads next shall see
			 * the disk.
			 */
			(void)posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED);
#endif
		}
		pthread_cond_broadcast(&f->done);
	}
	pthread_mutex_unlock(&f->mutex);
	return f->failed ? img_err_set(err, IMG_IO, "%s: sync failed: %s", f->path,
				       strerror(f->failed))
			 : 0;
}

void io_writeback(struct io_file *f, uint64_t off, uint64_t len)
{
#ifdef HAVE_SYNC_FILE_RANGE
	(void)sync_file_range(f->fd, (off_t)off, (off_t)len, SYNC_FILE_RANGE_WRITE);
#else
	(void)f, (void)off, (void)len;
#endif
}

int io_stream_write(int fd, const void *buf, size_t len, const char *path, struct img_err *err)
{
	const uint8_t *p = buf;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EPIPE)
			return img_err_set(err, IMG_UNAVAIL, "%s: the reader is gone", path);
		if (n < 0)
			return img_err_set(err, IMG_IO, "%s: write: %s", path, strerror(errno));
		p += n;
		len -= (size_t)n;
	}
	return 0;
}
