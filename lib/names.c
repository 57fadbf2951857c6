/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Durable changes of names: nothing appears before it is whole, and a change survives power
 * loss.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"

const char *io_basename(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

char *io_dirname(const char *path)
{
	const char *base = io_basename(path);

	if (base == path)
		return strdup(".");
	if (base == path + 1)
		return strdup("/");
	return strndup(path, (size_t)(base - path - 1));
}

bool io_same(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool io_same_file(const char *a, const char *b)
{
	struct stat sa, sb;

	return stat(a, &sa) == 0 && stat(b, &sb) == 0 && io_same(&sa, &sb);
}

int io_id_get(int dir, const char *name, int flags, struct io_id *id)
{
	struct stat st;
#ifdef STATX_BTIME
	struct statx sx;

	if (statx(dir, name, flags, STATX_INO | STATX_BTIME, &sx) == 0) {
		id->ino = sx.stx_ino;
		id->birth =
			sx.stx_mask & STATX_BTIME
				? (uint64_t)sx.stx_btime.tv_sec * 1000000000u + sx.stx_btime.tv_nsec
				: 0;
		return 0;
	}
	/* Where it is not known, or not allowed, it never is. */
	if (errno != ENOSYS && errno != EPERM)
		return -1;
#endif
	if (fstatat(dir, name, &st, flags) < 0)
		return -1;
	*id = (struct io_id){.ino = st.st_ino};
	return 0;
}

/* A name beside PATH that nobody uses: hidden, recognisable, random. Owned by the caller. */
static char *temporary_name(const char *path)
{
	char *dir = io_dirname(path), *name = NULL;
	unsigned long long r = 0;
	int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (read(fd, &r, sizeof(r)) < 0)
			r = 0;
		close(fd);
	}
	if (dir && asprintf(&name, "%s/.%.200s.%016llx.tmp", dir, io_basename(path),
			    r ^ (unsigned long long)getpid()) < 0)
		name = NULL;
	free(dir);
	return name;
}

int io_sync_dir_of(const char *path, struct img_err *err)
{
	char *dir = io_dirname(path);
	int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	int rc = 0;

	if (fd < 0 || fsync(fd) < 0)
		rc = img_err_errno(err, dir ? errno : ENOMEM, "%s: cannot sync its folder", path);
	if (fd >= 0)
		close(fd);
	free(dir);
	return rc;
}

static int exists_error(const char *path, struct img_err *err)
{
	return img_err_set(err, IMG_CANTCREAT, "%s: exists; nothing is overwritten without --force",
			   path);
}

/* FLAGS and MODE for open(2). Owns TMP. */
static int create_as(struct io_new *n, struct io_file *f, const char *path, char *tmp, int flags,
		     mode_t mode, struct img_err *err)
{
	n->tmp = tmp;
	f->path = strdup(path);
	f->writable = true;
	if (!n->tmp || !f->path) {
		img_err_errno(err, ENOMEM, "%s", path);
		goto fail;
	}
	f->fd = open(n->tmp, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, mode);
	if (f->fd < 0) {
		int errnum = errno;

		free(n->tmp);
		n->tmp = NULL;
		if (errnum == ENOENT || errnum == ENOTDIR)
			img_err_set(err, IMG_CANTCREAT, "%s: cannot create: %s", path,
				    strerror(errnum));
		else
			img_err_errno(err, errnum, "%s: cannot create", path);
		goto fail;
	}
	f->real = realpath(n->tmp, NULL);
	return 0;
fail:
	io_discard(n);
	io_close(f);
	return -1;
}

/* .NAME. and what temporary_name() puts behind it. */
static bool is_temporary(const char *file, const char *name)
{
	size_t len = strlen(name);

	len = len < 200 ? len : 200;
	return file[0] == '.' && strncmp(file + 1, name, len) == 0 && file[len + 1] == '.' &&
	       strspn(file + len + 2, "0123456789abcdef") == 16 &&
	       strcmp(file + len + 2 + 16, ".tmp") == 0;
}

/* One of ours, whose creator does not live any more. */
static void remove_dead(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	struct stat st, name;

	if (fd < 0)
		return;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() &&
	    st.st_nlink == 1 && io_lock_temporary(fd) == 0 && lstat(path, &name) == 0 &&
	    name.st_dev == st.st_dev && name.st_ino == st.st_ino)
		unlink(path);
	close(fd);
}

/* What runs that were killed have left of earlier attempts to make PATH. */
static void collect(const char *path)
{
	char *dir = io_dirname(path), *file;
	DIR *d = dir ? opendir(dir) : NULL;
	struct dirent *e;

	while (d && (e = readdir(d))) {
		if (!is_temporary(e->d_name, io_basename(path)) ||
		    asprintf(&file, "%s/%s", dir, e->d_name) < 0)
			continue;
		remove_dead(file);
		free(file);
	}
	if (d)
		closedir(d);
	free(dir);
}

static int create_begin(struct io_new *n, struct io_file *f, const char *path, struct img_err *err)
{
	io_init(f);
	n->file = f;
	n->tmp = NULL;
	n->final = strdup(path);
	return n->final ? 0 : img_err_errno(err, ENOMEM, "%s", path);
}

/*
 * It is locked as long as its creator lives, by which collect() knows it. That may have come
 * between its creation and the lock: then once more. Where nothing can be locked nothing is
 * collected.
 */
static int create_temporary(struct io_new *n, struct io_file *f, const char *path,
			    struct img_err *err)
{
	struct stat st;

	for (;;) {
		if (create_as(n, f, path, temporary_name(path), O_CREAT | O_EXCL, 0666, err) < 0)
			return -1;
		if (io_lock_temporary(f->fd) <= 0 && (fstat(f->fd, &st) < 0 || st.st_nlink))
			return 0;
		io_discard(n);
		io_close(f);
		if (create_begin(n, f, path, err) < 0)
			return -1;
	}
}

int io_create(struct io_new *n, struct io_file *f, const char *path, bool force,
	      struct img_err *err)
{
	struct stat st;

	if (create_begin(n, f, path, err) < 0)
		return -1;
	if (lstat(path, &st) == 0 && !force) {
		exists_error(path, err);
		io_discard(n);
		io_close(f);
		return -1;
	}
	collect(path);
	return create_temporary(n, f, path, err);
}

int io_create_as(struct io_new *n, struct io_file *f, const char *path, const char *tmp,
		 bool reopen, struct img_err *err)
{
	if (create_begin(n, f, path, err) < 0)
		return -1;
	return create_as(n, f, path, strdup(tmp), reopen ? 0 : O_CREAT | O_EXCL, 0600, err);
}

void io_keep(struct io_new *n)
{
	free(n->tmp);
	n->tmp = NULL;
}

static int rename_new(const char *from, const char *to, bool force)
{
#if defined(HAVE_RENAMEAT2) && defined(RENAME_NOREPLACE)
	if (!force) {
		if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
			return 0;
		if (errno != EINVAL && errno != ENOSYS)
			return -1;
	}
#endif
	if (!force) {
		if (link(from, to) < 0)
			return -1;
		return unlink(from);
	}
	return rename(from, to);
}

/* A folder on the way may be another one by now, in which somebody else makes the same. */
static int check_named(const struct io_new *n, struct img_err *err)
{
	struct stat st, name;

	if (fstat(n->file->fd, &st) < 0 || lstat(n->tmp, &name) < 0)
		return img_err_errno(err, errno, "%s: the new file", n->final);
	return io_same(&st, &name)
		       ? 0
		       : img_err_set(err, IMG_CANTCREAT,
				     "%s: its folder is another one than when it was begun",
				     n->final);
}

int io_publish(struct io_new *n, bool force, struct img_err *err)
{
	if (fsync(n->file->fd) < 0)
		return img_err_errno(err, errno, "%s: sync failed", n->final);
	if (check_named(n, err) < 0)
		return -1;
	if (rename_new(n->tmp, n->final, force) < 0)
		return errno == EEXIST
			       ? exists_error(n->final, err)
			       : img_err_errno(err, errno, "%s: cannot give the new file its name",
					       n->final);
	free(n->tmp);
	n->tmp = NULL;
	return io_sync_dir_of(n->final, err);
}

int io_publish_soon(struct io_new *n, struct img_err *err)
{
	/* With its space taken it is not found empty after power loss, which would look like
	 * somebody else's file. */
	io_writeback(n->file, 0, 0);
	if (rename(n->tmp, n->final) < 0)
		return img_err_errno(err, errno, "%s: cannot give the new file its name", n->final);
	free(n->tmp);
	n->tmp = NULL;
	return 0;
}

int io_scratch(struct io_file *f, const char *beside, struct img_err *err)
{
	struct io_new n;

	if (create_begin(&n, f, beside, err) < 0 || create_temporary(&n, f, beside, err) < 0)
		return -1;
	/* This is what removes the name. */
	io_discard(&n);
	return 0;
}

void io_discard(struct io_new *n)
{
	if (n->tmp)
		unlink(n->tmp);
	free(n->tmp);
	free(n->final);
	n->tmp = n->final = NULL;
}

int io_rename_new(const char *from, const char *to, struct img_err *err)
{
	if (rename_new(from, to, false) < 0)
		return errno == EEXIST
			       ? exists_error(to, err)
			       : img_err_errno(err, errno, "%s: cannot rename to %s", from, to);
	return io_sync_dir_of(to, err);
}

int io_unlink(const char *path, struct img_err *err)
{
	if (unlink(path) < 0)
		return img_err_errno(err, errno, "%s: cannot remove", path);
	return io_sync_dir_of(path, err);
}

int io_symlink_replace(const char *path, const char *target, struct img_err *err)
{
	char *tmp = temporary_name(path);
	int rc = -1;

	if (!tmp)
		return img_err_errno(err, ENOMEM, "%s", path);
	if (symlink(target, tmp) < 0) {
		img_err_errno(err, errno, "%s: cannot create a symbolic link beside it", path);
	} else if (rename(tmp, path) < 0) {
		img_err_errno(err, errno, "%s: cannot replace", path);
		unlink(tmp);
	} else {
		rc = io_sync_dir_of(path, err);
	}
	free(tmp);
	return rc;
}

int io_access_like(struct io_file *f, const struct stat *st, struct img_err *err)
{
	if (geteuid() == 0 && fchown(f->fd, st->st_uid, st->st_gid) < 0)
		return img_err_errno(err, errno, "%s: cannot set the owner", f->path);
	if (fchmod(f->fd, 0600 | (st->st_mode & 0044)) < 0)
		return img_err_errno(err, errno, "%s: cannot set the mode", f->path);
	return 0;
}

int io_store(const char *path, const void *buf, size_t len, mode_t mode, struct img_err *err)
{
	struct io_file f;
	struct io_new n;
	int rc = -1;

	if (io_create(&n, &f, path, true, err) < 0)
		return -1;
	if (fchmod(f.fd, mode) < 0)
		img_err_errno(err, errno, "%s: cannot set the mode", path);
	else if (io_write(&f, buf, len, 0, err) == 0)
		rc = io_publish(&n, true, err);
	io_discard(&n);
	io_close(&f);
	return rc;
}
