/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Locks that QEMU and qemu-img see and whose locks we see: shared byte-range locks of the open
 * file description. A byte at PERM_BASE + bit says "I hold this permission", one at
 * DENY_BASE + bit says "nobody else may". A conflict is the other kind of byte held by
 * somebody else.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "io.h"

#define PERM_BASE 100
#define DENY_BASE 200
#define TEMPORARY_BYTE 300 /* ours alone */
#define PATIENCE 6	   /* pauses of a millisecond, each twice as long as the one before */

enum { P_READ = 1, P_WRITE = 2, P_UNCHANGED = 4, P_RESIZE = 8, P_ALL = 15 };
#define P_BITS 4

static const struct {
	unsigned hold, deny;
} modes[] = {
	[IO_UNLOCKED] = {0, 0},
	[IO_LOCK_SHARED] = {P_READ, P_WRITE | P_RESIZE},
	[IO_LOCK_EXCLUSIVE] = {P_READ | P_WRITE | P_RESIZE, P_ALL},
};

#ifdef F_OFD_SETLK

static int set_byte(int fd, short type, off_t at)
{
	struct flock fl = {.l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};

	return fcntl(fd, F_OFD_SETLK, &fl);
}

/* 1: somebody else holds a lock on the byte. -1: it cannot be told. */
static int byte_taken(int fd, off_t at)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};

	return fcntl(fd, F_OFD_GETLK, &fl) < 0 ? -1 : fl.l_type != F_UNLCK;
}

/* Sets the bytes of both masks and clears the other ones. */
static int apply(int fd, unsigned hold, unsigned deny, bool release)
{
	for (unsigned i = 0; i < P_BITS; i++) {
		unsigned bit = 1u << i;

		if ((hold & bit ? !release : release) &&
		    set_byte(fd, hold & bit ? F_RDLCK : F_UNLCK, PERM_BASE + (off_t)i) < 0)
			return -1;
		if ((deny & bit ? !release : release) &&
		    set_byte(fd, deny & bit ? F_RDLCK : F_UNLCK, DENY_BASE + (off_t)i) < 0)
			return -1;
	}
	return 0;
}

/* As byte_taken(). */
static int conflict(int fd, unsigned hold, unsigned deny)
{
	int taken = 0;

	for (unsigned i = 0; i < P_BITS && !taken; i++) {
		unsigned bit = 1u << i;

		if (hold & bit)
			taken = byte_taken(fd, DENY_BASE + (off_t)i);
		if ((deny & bit) && !taken)
			taken = byte_taken(fd, PERM_BASE + (off_t)i);
	}
	return taken;
}

/* Whether the descriptor described by FDINFO holds such a lock on the file (dev, ino). */
static bool fdinfo_holds(const char *fdinfo, const struct stat *st)
{
	char line[256];
	bool found = false;
	FILE *f = fopen(fdinfo, "re");

	if (!f)
		return false;
	while (!found && fgets(line, sizeof(line), f)) {
		unsigned maj, min;
		unsigned long long ino;

		found = sscanf(line, "lock: %*d: OFDLCK %*s %*s %*d %x:%x:%llu", &maj, &min,
			       &ino) == 3 &&
			ino == st->st_ino && maj == major(st->st_dev) && min == minor(st->st_dev);
	}
	fclose(f);
	return found;
}

static bool pid_holds(const char *pid, const struct stat *st)
{
	char path[600];
	struct dirent *d;
	bool found = false;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.20s/fdinfo", pid);
	dir = opendir(path);
	if (!dir)
		return false;
	while (!found && (d = readdir(dir))) {
		if (d->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/fdinfo/%.20s", pid, d->d_name);
		found = fdinfo_holds(path, st);
	}
	closedir(dir);
	return found;
}

/* The kernel does not tell the owner of such a lock: look at what every process has open. */
static void find_holder(int fd, char *out, size_t size)
{
	struct stat st;
	struct dirent *d;
	char path[64], comm[64] = "", self[24];
	DIR *dir = opendir("/proc");

	snprintf(out, size, "an unknown process");
	snprintf(self, sizeof(self), "%ld", (long)getpid());
	if (!dir || fstat(fd, &st) < 0)
		goto out;
	while ((d = readdir(dir))) {
		if (d->d_name[0] < '1' || d->d_name[0] > '9' || strcmp(d->d_name, self) == 0 ||
		    !pid_holds(d->d_name, &st))
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/comm", d->d_name);
		FILE *f = fopen(path, "re");
		if (f) {
			if (fgets(comm, sizeof(comm), f))
				comm[strcspn(comm, "\n")] = '\0';
			fclose(f);
		}
		snprintf(out, size, "process %.20s (%s)", d->d_name, comm[0] ? comm : "?");
		break;
	}
out:
	if (dir)
		closedir(dir);
}

/* First claims, then looks: of two that come together at least one sees the other. */
static int claim(struct io_file *f, enum io_lock lock, struct img_err *err)
{
	unsigned hold = modes[lock].hold, deny = modes[lock].deny;
	int taken, errnum;

	if (apply(f->fd, hold, deny, false) < 0)
		return img_err_errno(err, errno, "%s: cannot lock", f->path);
	taken = conflict(f->fd, hold, deny);
	errnum = errno;
	if (taken)
		apply(f->fd, modes[f->lock].hold, modes[f->lock].deny, true);
	if (taken < 0)
		return img_err_errno(err, errnum, "%s: cannot tell whether it is locked", f->path);
	return taken;
}

/*
 * A conflict may be over in a moment. Who looks at /proc/PID/fdinfo, as lsof and find_holder() do,
 * keeps a file alive, with its locks, beyond the close() of its owner. Two that come together may
 * each see the other. Then there is nothing that is using the file. While waiting nothing is
 * claimed, so that others are not kept out by those who wait.
 */
static int still_taken(int fd, enum io_lock lock)
{
	struct timespec pause = {0, 1000000 + (long)getpid() % 16 * 50000};
	int taken = 1;

	for (unsigned i = 0; taken == 1 && i < PATIENCE; i++) {
		nanosleep(&pause, NULL);
		pause.tv_nsec *= 2;
		taken = conflict(fd, modes[lock].hold, modes[lock].deny);
	}
	return taken;
}

int io_lock(struct io_file *f, enum io_lock lock, struct img_err *err)
{
	char who[128];
	int taken = claim(f, lock, err);

	for (unsigned i = 0; taken == 1 && i < PATIENCE; i++) {
		if (still_taken(f->fd, lock) == 1)
			break;
		taken = claim(f, lock, err);
	}
	if (taken < 0)
		return -1;
	if (taken) {
		find_holder(f->fd, who, sizeof(who));
		return img_err_set(err, IMG_AGAIN,
				   "%s: locked: %s is using it; try again when it is free", f->path,
				   who);
	}
	if (apply(f->fd, modes[lock].hold, modes[lock].deny, true) < 0)
		return img_err_errno(err, errno, "%s: cannot unlock", f->path);
	f->lock = lock;
	return 0;
}

int io_lock_temporary(int fd)
{
	if (set_byte(fd, F_WRLCK, TEMPORARY_BYTE) == 0)
		return 0;
	return errno == EAGAIN || errno == EACCES ? 1 : -1;
}

#else
#error "no open-file-description locks: another lock protocol is needed here"
#endif
