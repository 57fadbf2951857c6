/* SPDX-License-Identifier: BSD-2-Clause */
/* The files of a partial result: their names, who works on them, and whether they are there. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "partial_impl.h"

enum { WAIT_SECONDS = 10 };

/*
 * Hidden, and found again: FILE's name and, where that is too long for a file name with more
 * behind it, its sum.
 */
static char *name_beside(const char *file, const char *what)
{
	char *dir = io_dirname(file), *name = NULL, sum[20] = "";
	const char *base = io_basename(file);

	if (strlen(base) > 200)
		snprintf(sum, sizeof(sum), ".%016" PRIx64, XXH3_64bits(base, strlen(base)));
	if (dir && asprintf(&name, "%s/.%.200s%s.%s.tmp", dir, base, sum, what) < 0)
		name = NULL;
	free(dir);
	return name;
}

const char *partial_image(const struct partial *p)
{
	return p->image;
}

const struct stream_mark *partial_mark(const struct partial *p)
{
	return p->marked ? &p->mark : NULL;
}

const struct partial_head *partial_get(const struct partial *p)
{
	return &p->head;
}

uint64_t partial_end(const struct partial *p)
{
	return p->image_end;
}

bool partial_in_use(const struct partial *p)
{
	return p->in_use;
}

uint64_t partial_time(const struct partial *p)
{
	return p->time;
}

bool partial_is_complete(const struct partial *p)
{
	return p->marked && p->complete;
}

const char *partial_final(const struct partial *p)
{
	return p->head.onto ? p->child : p->file;
}

char *partial_child(const char *file)
{
	return name_beside(file, "onto");
}

bool partial_is_applied(const struct partial *p)
{
	return p->marked && p->applied;
}

int partial_file_id(const char *path, bool follow, uint64_t *id)
{
	struct io_id of;

	if (io_id_get(AT_FDCWD, path, follow ? 0 : AT_SYMLINK_NOFOLLOW, &of) < 0)
		return -1;
	*id = of.birth ? XXH3_64bits(&of, sizeof(of)) : of.ino;
	return 0;
}

/* The image has FILE's name already: the end of the work was interrupted. */
bool partial_is_published(const struct partial *p)
{
	uint64_t id;

	return partial_is_complete(p) &&
	       (p->done || (partial_file_id(partial_final(p), false, &id) == 0 && id == p->id));
}

void partial_token(const struct partial *p, char out[STREAM_TOKEN_STR])
{
	struct stream_token t = p->head.what;

	t.mark = p->mark;
	stream_token_put(&t, out);
}

/* Locks */

static bool same_file(const struct partial *p)
{
	struct stat a, b;

	return fstat(p->log.fd, &a) == 0 && lstat(p->path, &b) == 0 && io_same(&a, &b);
}

static int make_log(const struct partial *p, struct img_err *err)
{
	struct stat st;
	int fd = -1, errnum;

	/* The log's name is made to fit, FILE's must. */
	if (lstat(p->file, &st) == 0 || errno != ENAMETOOLONG)
		fd = open(p->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	errnum = errno;
	if (fd >= 0) {
		close(fd);
		return 0;
	}
	if (errnum == ENOENT || errnum == ENOTDIR || errnum == ENAMETOOLONG)
		return img_err_set(err, IMG_CANTCREAT, "%s: cannot create: %s", p->file,
				   strerror(errnum));
	return img_err_errno(err, errnum, "%s: cannot create beside it", p->file);
}

/* Whoever only looks may do it on a file system that cannot be written to any more. */
static int open_log(struct partial *p, enum partial_open how, struct img_err *err)
{
	if (how == PARTIAL_MAKE && make_log(p, err))
		return -1;
	return io_open(&p->log, p->path, how != PARTIAL_PEEK, err);
}

/* Whoever made the log says what is in the image. Others must not, where they may write. */
static int check_owner(const struct partial *p, struct img_err *err)
{
	char *dir = io_dirname(p->path);
	struct stat log, folder;
	bool trusted;

	if (!dir || fstat(p->log.fd, &log) < 0 || stat(dir, &folder) < 0) {
		free(dir);
		return img_err_errno(err, errno, "%s", p->path);
	}
	free(dir);
	/* A file system may give what root makes to another user; a new log says nothing yet. */
	trusted = log.st_uid == geteuid() || log.st_uid == 0 || log.st_size == 0 ||
		  !(folder.st_mode & 022);
	return trusted ? 0
		       : img_err_set(
				 err, IMG_PERM,
				 "%s: belongs to another user (%lu); go on as that one, or remove it",
				 p->path, (unsigned long)log.st_uid);
}

/* One that was just removed by its owner is no lock: then once more. 1: there is none. */
static int lock_log(struct partial *p, enum partial_open how, struct img_err *err)
{
	const struct timespec pause = {0, 100000000};
	const bool make = how == PARTIAL_MAKE;

	/* io_lock() itself waits about as long as the pause. */
	for (int tries = 0; tries < 5 * WAIT_SECONDS && !cli_interrupted(); tries++) {
		struct stat st;

		if (!make && lstat(p->path, &st) < 0 && errno == ENOENT)
			return 1;
		if (open_log(p, how, err))
			return -1;
		img_err_clear(err);
		if (io_lock(&p->log, IO_LOCK_EXCLUSIVE, err) == 0) {
			if (same_file(p))
				return how == PARTIAL_PEEK ? 0 : check_owner(p, err);
		} else if (err->code != IMG_AGAIN) {
			return -1;
		} else if (how == PARTIAL_PEEK) {
			p->in_use = true;
			return 0;
		}
		io_close(&p->log);
		nanosleep(&pause, NULL);
	}
	img_err_clear(err);
	return img_err_set(
		err, IMG_AGAIN,
		"%s: another vhd-recv is still at work on it; try again when it has ended",
		p->file);
}

/* The image of the last mark is there, or a mark says nothing. */
static int check_image(struct partial *p, struct img_err *err)
{
	uint64_t id;

	if (!p->marked)
		return 0;
	if (p->complete && p->done)
		return 0;
	if (p->complete && partial_file_id(partial_final(p), false, &id) == 0) {
		if (id == p->id)
			return 0;
	} else if (p->complete && errno != ENOENT) {
		return img_err_errno(err, errno, "%s", partial_final(p));
	}
	if (partial_file_id(p->image, false, &id) == 0)
		p->marked = id == p->id;
	else if (errno == ENOENT)
		p->marked = false;
	else
		return img_err_errno(err, errno, "%s", p->image);
	return 0;
}

static int load(struct partial *p, struct img_err *err)
{
	struct stat st;

	if (partial_log_load(p, err))
		return -1;
	/* Once it is being merged, only a merge that has come to its end removes the child. */
	if (p->marked && p->applied && lstat(p->child, &st) < 0 && errno == ENOENT)
		p->done = true;
	return check_image(p, err);
}

static void forget(struct partial *p)
{
	io_close(&p->log);
	pthread_mutex_destroy(&p->mutex);
	pthread_cond_destroy(&p->change);
	free(p->image);
	free(p->child);
	free(p->path);
	free(p);
}

int partial_open(struct partial **out, const char *file, enum partial_open how, struct img_err *err)
{
	struct partial *p = calloc(1, sizeof(*p));
	int rc = -1;

	*out = NULL;
	if (!p)
		return img_err_errno(err, ENOMEM, "%s", file);
	io_init(&p->log);
	pthread_mutex_init(&p->mutex, NULL);
	pthread_cond_init(&p->change, NULL);
	p->file = file;
	p->image = name_beside(file, "partial");
	p->child = partial_child(file);
	p->path = name_beside(file, "partial-log");
	if (!p->image || !p->child || !p->path)
		img_err_errno(err, ENOMEM, "%s", file);
	else
		rc = lock_log(p, how, err);
	if (rc == 0)
		rc = load(p, err);
	if (rc) {
		forget(p);
		return rc < 0 ? -1 : 0;
	}
	*out = p;
	return 0;
}

void partial_close(struct partial *p)
{
	struct img_err ignored = {0};

	if (!p)
		return;
	(void)partial_wait(p, &ignored);
	partial_end_thread(p);
	forget(p);
}

static int unlink_if_there(const char *path, struct img_err *err)
{
	if (unlink(path) < 0 && errno != ENOENT)
		return img_err_errno(err, errno, "%s: cannot remove", path);
	return 0;
}

bool partial_is_left(const char *file)
{
	char *image = name_beside(file, "partial"), *child = partial_child(file);
	struct stat st;
	bool left = (image && lstat(image, &st) == 0) || (child && lstat(child, &st) == 0);

	free(image);
	free(child);
	return left;
}

/*
 * Once FILE is half merged it is no disk without the child. The marker beside FILE knows, whatever
 * the log says, or does not say any more.
 */
static int check_child(const struct partial *p, struct img_err *err)
{
	enum img_receiving state;
	struct stat st;

	if (lstat(p->child, &st) < 0 && errno == ENOENT)
		return 0;
	if (img_receive_state(p->file, &state, err))
		return -1;
	return state != IMG_RECEIVING_MERGE
		       ? 0
		       : img_err_set(
				 err, IMG_DATA,
				 "%s: all has come and is being merged into it; the command that "
				 "received it finishes that, or vhd-merge --delete %s",
				 p->file, p->child);
}

int partial_begin(struct partial *p, const struct partial_head *head, struct img_err *err)
{
	uint64_t size;

	if (head->onto && check_child(p, err))
		return -1;
	p->marked = p->complete = p->applied = p->done = false;
	p->head = *head;
	/* The old image's inode may be the new one's. */
	if (io_size(&p->log, &size, err) || (size && partial_log_cut(p, 0, err)) ||
	    unlink_if_there(p->image, err) || (head->onto && unlink_if_there(p->child, err)))
		return -1;
	return partial_log_begin(p, head, err);
}

bool partial_is_done(const struct partial *p)
{
	return p->marked && p->done;
}

int partial_remove(struct partial *p, bool image, struct img_err *err)
{
	struct img_err ignored = {0};

	(void)partial_wait(p, &ignored);
	if (image && check_child(p, err))
		return -1;
	p->marked = false;
	if (image)
		img_sums_remove(p->child);
	/* Where files get a new name by a link, a run that was killed may have left the old one. */
	if (unlink_if_there(p->image, err) || (image && unlink_if_there(p->child, err)) ||
	    unlink_if_there(p->path, err))
		return -1;
	/* A log that comes back after power loss only says that all is done. */
	return image ? io_sync_dir_of(p->path, err) : 0;
}
