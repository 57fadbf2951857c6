/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bytes.h"

#define CALL(ret, name, ...)                                                                       \
	ret __real_##name(__VA_ARGS__);                                                            \
	ret __wrap_##name(__VA_ARGS__);                                                            \
	ret __wrap_##name(__VA_ARGS__)

static struct {
	const char *root; /* NULL: not recording */
	const char *pool;
	const struct fs *base;
	struct tape *t;
	struct fault f;
	unsigned calls;
	bool hit;
	dev_t dev;
	ino_t ino[FS_NODES]; /* by node; 0: gone */
} rec;

void record_start(const char *root, const char *pool, const struct fs *base, struct tape *t,
		  struct fault f)
{
	struct stat st;
	char path[2 * FS_PATH];

	if (t->n == 0) {
		memset(rec.ino, 0, sizeof(rec.ino));
		for (int i = 0; i < base->names; i++) {
			snprintf(path, sizeof(path), "%s/%s", root, base->name[i].path);
			if (lstat(path, &st) < 0)
				die("%s: %s", path, strerror(errno));
			rec.ino[base->name[i].node] = st.st_ino;
			rec.dev = st.st_dev;
		}
		if (stat(root, &st) < 0)
			die("%s: %s", root, strerror(errno));
		rec.dev = st.st_dev;
		t->nodes = base->nodes;
	}
	rec.root = root;
	rec.pool = pool;
	rec.base = base;
	rec.t = t;
	rec.f = f;
	rec.calls = 0;
	rec.hit = false;
}

unsigned record_stop(void)
{
	rec.root = NULL;
	tape_seal(rec.t);
	return rec.calls;
}

bool record_fault_hit(void)
{
	return rec.hit;
}

/* The name below the root, without links on its way; "" for the root itself; false: elsewhere. */
static bool inside(const char *path, char rel[FS_PATH])
{
	char dir[2 * FS_PATH], real[4096];
	const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
	size_t n = strlen(rec.root);

	snprintf(dir, sizeof(dir), "%.*s", slash ? (int)u64_max(1, (uint64_t)(slash - path)) : 1,
		 slash ? path : ".");
	if (!realpath(dir, real) || strncmp(real, rec.root, n) != 0 ||
	    (real[n] && real[n] != '/')) {
		rel[0] = '\0';
		return realpath(path, real) && strcmp(real, rec.root) == 0;
	}
	snprintf(rel, FS_PATH, "%s%s%s", real[n] ? real + n + 1 : "", real[n] ? "/" : "", base);
	return true;
}

static void inside_or_die(const char *call, const char *path, char rel[FS_PATH])
{
	if (!inside(path, rel))
		die("%s of %s, outside of the folder under test", call, path);
}

/* The node of an open file; -1: a folder (REL is its name then) or not ours. */
static int node_of(int fd, struct stat *st)
{
	if (fstat(fd, st) < 0)
		die("fstat: %s", strerror(errno));
	if (!S_ISREG(st->st_mode))
		return -1;
	for (int i = 0; i < FS_NODES; i++)
		if (rec.ino[i] == st->st_ino && st->st_dev == rec.dev)
			return i;
	die("a file is changed that is not in the folder under test");
}

static int new_node(ino_t ino)
{
	int i = rec.t->nodes++;

	if (i == FS_NODES)
		die("too many files");
	for (int k = 0; k < i; k++)
		if (rec.ino[k] == ino)
			rec.ino[k] = 0; /* the number of a file that is gone */
	rec.ino[i] = ino;
	return i;
}

static int node_of_name(const char *path)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return -1;
	for (int i = 0; i < FS_NODES; i++)
		if (rec.ino[i] == st.st_ino)
			return i;
	return -1;
}

/* Counts the call; true: it fails with errno set. KILL does not come back. */
static bool due(bool write)
{
	if (!rec.root || ++rec.calls != rec.f.at || rec.f.kind == FAULT_NONE)
		return false;
	rec.hit = true;
	if (rec.f.kind == FAULT_KILL && !(write && rec.f.half))
		raise(SIGKILL);
	errno = rec.f.errnum;
	return true;
}

static struct event *add_event(enum event_kind kind)
{
	struct event *e = tape_add(rec.t, kind);

	e->call = rec.calls;
	return e;
}

void record_note(uint64_t number)
{
	if (rec.root)
		add_event(EV_NOTE)->off = number;
}

static void add_data(enum event_kind kind, int node, uint64_t off, uint64_t len, const void *data)
{
	struct event *e = add_event(kind);

	e->node = node;
	e->off = off;
	e->len = len;
	if (data) {
		e->data = malloc(len ? len : 1);
		if (!e->data)
			die("out of memory");
		memcpy(e->data, data, len);
	}
}

CALL(ssize_t, pwrite, int fd, const void *buf, size_t len, off_t off)
{
	struct stat st;
	ssize_t n;
	bool bad = due(true);

	if (!rec.root)
		return __real_pwrite(fd, buf, len, off);
	if (bad && !rec.f.half)
		return -1;
	if (bad)
		len = len / 2 / SECTOR * SECTOR; /* no page is left half written */
	n = len ? __real_pwrite(fd, buf, len, off) : 0;
	if (n > 0)
		add_data(EV_WRITE, node_of(fd, &st), (uint64_t)off, (uint64_t)n, buf);
	if (bad && rec.f.kind == FAULT_KILL)
		raise(SIGKILL);
	if (bad) {
		errno = rec.f.errnum;
		/* A full disk takes what it can first; the next call gets the error. */
		if (n > 0 && rec.f.errnum != EIO) {
			rec.f.at = rec.calls + 1;
			rec.f.half = false;
			return n;
		}
		return -1;
	}
	return n;
}

CALL(int, ftruncate, int fd, off_t size)
{
	struct stat st;
	int rc;

	if (due(false))
		return -1;
	rc = __real_ftruncate(fd, size);
	if (rec.root && rc == 0)
		add_data(EV_SIZE, node_of(fd, &st), 0, (uint64_t)size, NULL);
	return rc;
}

CALL(int, fallocate, int fd, int mode, off_t off, off_t len)
{
	struct stat st;
	int rc, node;

	if (due(false))
		return -1;
	rc = __real_fallocate(fd, mode, off, len);
	if (!rec.root || rc < 0)
		return rc;
	node = node_of(fd, &st);
	if (mode & ~(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE))
		die("fallocate with mode %d", mode);
	if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		add_data(EV_ZERO, node, (uint64_t)off, (uint64_t)len, NULL);
	if (!(mode & FALLOC_FL_KEEP_SIZE))
		add_data(EV_SIZE, node, 0, (uint64_t)st.st_size, NULL);
	return rc;
}

/* What a copy inside the kernel wrote: read back. */
static void add_copy(int fd, uint64_t off, uint64_t len)
{
	struct stat st;
	uint8_t *buf = malloc(len);

	if (!buf || pread(fd, buf, len, (off_t)off) != (ssize_t)len)
		die("copied bytes cannot be read: %s", strerror(errno));
	add_data(EV_WRITE, node_of(fd, &st), off, len, buf);
	free(buf);
}

CALL(ssize_t, copy_file_range, int in, loff_t *in_off, int out, loff_t *out_off, size_t len,
     unsigned flags)
{
	loff_t at = out_off ? *out_off : 0;
	ssize_t n;

	if (due(false))
		return -1;
	if (rec.root && !out_off)
		die("copy_file_range without an offset");
	n = __real_copy_file_range(in, in_off, out, out_off, len, flags);
	if (rec.root && n > 0)
		add_copy(out, (uint64_t)at, (uint64_t)n);
	return n;
}

/* The folder under test is in memory, where nothing can be cloned: done by copying, as strict as
 * XFS. */
static int clone_range(int fd, const struct file_clone_range *r)
{
	struct stat from, to;
	uint64_t len = r->src_length;
	uint8_t *buf;

	if (fstat((int)r->src_fd, &from) < 0 || fstat(fd, &to) < 0)
		return -1;
	if (len == 0)
		len = (uint64_t)from.st_size - r->src_offset;
	if ((r->src_offset | r->dest_offset) % 4096 ||
	    r->src_offset + len > (uint64_t)from.st_size ||
	    (len % 4096 && (r->src_offset + len != (uint64_t)from.st_size ||
			    r->dest_offset + len < (uint64_t)to.st_size))) {
		errno = EINVAL;
		return -1;
	}
	buf = malloc(len);
	if (!buf || pread((int)r->src_fd, buf, len, (off_t)r->src_offset) != (ssize_t)len ||
	    __real_pwrite(fd, buf, len, (off_t)r->dest_offset) != (ssize_t)len)
		die("clone: %s", strerror(errno));
	free(buf);
	add_copy(fd, r->dest_offset, len);
	return 0;
}

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (rec.root && request == FICLONERANGE)
		return due(false) ? -1 : clone_range(fd, arg);
	if (rec.root && request == FICLONE) {
		struct file_clone_range r = {.src_fd = (int)(intptr_t)arg};

		return due(false) ? -1 : clone_range(fd, &r);
	}
	return __real_ioctl(fd, request, arg);
}

static int sync_fd(int fd, int (*call)(int))
{
	struct stat st;
	bool bad = due(false);
	int rc = bad ? -1 : call(fd), node, errnum = errno;
	struct event *e;

	if (!rec.root)
		return rc;
	node = node_of(fd, &st);
	if (node < 0) {
		char link[64], path[4096];
		ssize_t n;

		if (!S_ISDIR(st.st_mode))
			return rc;
		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		n = readlink(link, path, sizeof(path) - 1);
		path[n > 0 ? n : 0] = '\0';
		e = add_event(EV_SYNC_DIR);
		inside_or_die("sync", path, e->path);
	} else {
		e = add_event(EV_SYNC);
		e->node = node;
	}
	e->failed = rc < 0;
	errno = errnum;
	return rc;
}

/* Who works holds it: nobody else does anything until its holder waits for something. */
static pthread_mutex_t baton = PTHREAD_MUTEX_INITIALIZER;
static bool late;

void record_threads(bool how)
{
	if (how && !late)
		pthread_mutex_lock(&baton);
	if (!how && late)
		pthread_mutex_unlock(&baton);
	late = how;
}

struct work {
	void *(*fn)(void *);
	void *arg;
};

static void *with_baton(void *arg)
{
	struct work w = *(struct work *)arg;
	void *result;

	free(arg);
	pthread_mutex_lock(&baton);
	result = w.fn(w.arg);
	pthread_mutex_unlock(&baton);
	return result;
}

CALL(int, pthread_create, pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	struct work *w = late ? malloc(sizeof(*w)) : NULL;

	if (!w)
		return EAGAIN;
	*w = (struct work){fn, arg};
	return __real_pthread_create(t, attr, with_baton, w);
}

CALL(int, pthread_join, pthread_t t, void **result)
{
	int rc;

	if (late)
		pthread_mutex_unlock(&baton);
	rc = __real_pthread_join(t, result);
	if (late)
		pthread_mutex_lock(&baton);
	return rc;
}

CALL(int, pthread_cond_wait, pthread_cond_t *cond, pthread_mutex_t *mutex)
{
	int rc;

	if (!late)
		return __real_pthread_cond_wait(cond, mutex);
	pthread_mutex_unlock(&baton);
	rc = __real_pthread_cond_wait(cond, mutex);
	/* In this order, as everybody else takes them. */
	pthread_mutex_unlock(mutex);
	pthread_mutex_lock(&baton);
	pthread_mutex_lock(mutex);
	return rc;
}

CALL(int, fsync, int fd)
{
	return sync_fd(fd, __real_fsync);
}

CALL(int, fdatasync, int fd)
{
	return sync_fd(fd, __real_fdatasync);
}

/* Our own calls are not recorded. */
static bool pool_link(const char *path, mode_t mode)
{
	const char *root = rec.root;
	bool ok;

	rec.root = NULL;
	ok = fs_pool_link(rec.pool, rec.t->nodes, path, mode);
	rec.root = root;
	return ok;
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...)
{
	struct stat st;
	mode_t mode = 0;
	bool absent;
	va_list ap;
	int fd;

	if (flags & O_CREAT) {
		va_start(ap, flags);
		mode = va_arg(ap, mode_t);
		va_end(ap);
	}
	if (!rec.root || !(flags & (O_CREAT | O_TRUNC)))
		return __real_open(path, flags, mode);
	if (due(false))
		return -1;
	absent = lstat(path, &st) < 0;
	/* With the inode that it will have whenever this state is made. */
	if (absent && !pool_link(path, mode))
		return -1;
	fd = __real_open(path, absent ? flags & ~O_EXCL : flags, mode);
	if (fd < 0)
		return fd;
	if (absent) {
		struct event *e = add_event(EV_CREATE);

		inside_or_die("creation", path, e->path);
		if (fstat(fd, &st) < 0)
			die("fstat: %s", strerror(errno));
		e->node = new_node(st.st_ino);
	} else if (flags & O_TRUNC) {
		add_data(EV_SIZE, node_of(fd, &st), 0, 0, NULL);
	}
	return fd;
}

static int rename_done(const char *from, const char *to)
{
	struct event *e = add_event(EV_RENAME);

	inside_or_die("rename", from, e->path);
	inside_or_die("rename", to, e->to);
	const char *a = strrchr(e->path, '/'), *b = strrchr(e->to, '/');

	if ((a ? a - e->path : 0) != (b ? b - e->to : 0) ||
	    (a && strncmp(e->path, e->to, (size_t)(a - e->path)) != 0))
		die("rename from folder to folder: %s, %s", from, to);
	return 0;
}

CALL(int, rename, const char *from, const char *to)
{
	if (due(false))
		return -1;
	if (__real_rename(from, to) < 0)
		return -1;
	return rec.root ? rename_done(from, to) : 0;
}

CALL(int, renameat2, int fd, const char *from, int fd2, const char *to, unsigned flags)
{
	if (due(false))
		return -1;
	if (rec.root && (fd != AT_FDCWD || fd2 != AT_FDCWD || flags & ~(unsigned)RENAME_NOREPLACE))
		die("renameat2 with folders or flags %u", flags);
	if (__real_renameat2(fd, from, fd2, to, flags) < 0)
		return -1;
	return rec.root ? rename_done(from, to) : 0;
}

CALL(int, link, const char *from, const char *to)
{
	struct event *e;

	if (due(false))
		return -1;
	if (__real_link(from, to) < 0)
		return -1;
	if (!rec.root)
		return 0;
	e = add_event(EV_LINK);
	inside_or_die("link", to, e->path);
	e->node = node_of_name(to);
	return 0;
}

/*
 * Whoever cannot remove the sums of a disk writes to it all the same: times tell it too, but not in
 * this model, which takes them at their worst (kept.c).
 */
static bool must_go(const char *path)
{
	size_t len = strlen(path);

	return len > 5 && strcmp(path + len - 5, ".sums") == 0;
}

CALL(int, unlink, const char *path)
{
	if (!must_go(path) && due(false))
		return -1;
	if (__real_unlink(path) < 0)
		return -1;
	if (rec.root)
		inside_or_die("unlink", path, add_event(EV_UNLINK)->path);
	return 0;
}

CALL(int, symlink, const char *target, const char *path)
{
	struct event *e;
	struct stat st;

	if (due(false))
		return -1;
	if (__real_symlink(target, path) < 0)
		return -1;
	if (!rec.root)
		return 0;
	if (lstat(path, &st) < 0)
		die("%s: %s", path, strerror(errno));
	add_data(EV_CREATE, new_node(st.st_ino), 0, strlen(target), target);
	e = &rec.t->ev[rec.t->n - 1];
	inside_or_die("symlink", path, e->path);
	return 0;
}

/* Streams go elsewhere: no file of the folder under test may be written this way. */
static void not_ours(int fd, const char *call)
{
	struct stat st;

	if (rec.root && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_dev == rec.dev)
		die("%s to a regular file is not recorded", call);
}

CALL(ssize_t, write, int fd, const void *buf, size_t len)
{
	not_ours(fd, "write");
	return __real_write(fd, buf, len);
}

CALL(ssize_t, writev, int fd, const struct iovec *iov, int n)
{
	not_ours(fd, "writev");
	return __real_writev(fd, iov, n);
}

/*
 * After a failed sync the cache is dropped: from now on everybody sees what is on the disk, half of
 * the lost writes, and that is what a power cut leaves of them, too.
 */
static void drop_cache(int fd, int node)
{
	struct fs now;
	char path[64];
	bool lost = false;

	tape_seal(rec.t);
	for (unsigned i = 0; i < rec.t->n; i++) {
		struct event *e = &rec.t->ev[i];

		if (e->kind >= EV_SYNC || e->node != node || e->fate != FATE_OPEN ||
		    e->covered >= rec.t->n || !rec.t->ev[e->covered].failed)
			continue;
		e->fate = (i * 2654435761u + rec.f.at) >> 7 & 1 ? FATE_THERE : FATE_GONE;
		lost = true;
	}
	if (!lost)
		return;
	fs_replay(&now, rec.base, rec.t, rec.t->n, (struct choice){TAKE_ALL, 0});
	/* Who drops it may only be reading. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	fd = __real_open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || __real_ftruncate(fd, (off_t)now.node[node].size) < 0 ||
	    __real_pwrite(fd, now.node[node].data, now.node[node].size, 0) !=
		    (ssize_t)now.node[node].size)
		die("the cache cannot be dropped: %s", strerror(errno));
	close(fd);
	fs_free(&now);
}

CALL(int, posix_fadvise, int fd, off_t off, off_t len, int advice)
{
	struct stat st;

	if (rec.root && advice == POSIX_FADV_DONTNEED && fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
		drop_cache(fd, node_of(fd, &st));
	return __real_posix_fadvise(fd, off, len, advice);
}

int __wrap_posix_fadvise64(int fd, off_t off, off_t len, int advice);
int __wrap_posix_fadvise64(int fd, off_t off, off_t len, int advice)
{
	return __wrap_posix_fadvise(fd, off, len, advice);
}

/* The names that glibc gives the same calls for 64-bit offsets. */
ssize_t __wrap_pwrite64(int fd, const void *buf, size_t len, off_t off);
ssize_t __wrap_pwrite64(int fd, const void *buf, size_t len, off_t off)
{
	return __wrap_pwrite(fd, buf, len, off);
}

int __wrap_ftruncate64(int fd, off_t size);
int __wrap_ftruncate64(int fd, off_t size)
{
	return __wrap_ftruncate(fd, size);
}

int __wrap_fallocate64(int fd, int mode, off_t off, off_t len);
int __wrap_fallocate64(int fd, int mode, off_t off, off_t len)
{
	return __wrap_fallocate(fd, mode, off, len);
}

int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
	va_list ap;
	mode_t mode = 0;

	if (flags & O_CREAT) {
		va_start(ap, flags);
		mode = va_arg(ap, mode_t);
		va_end(ap);
	}
	return __wrap_open(path, flags, mode);
}
