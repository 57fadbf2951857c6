/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The live snapshot. The order that makes a death between any two steps harmless:
 *
 *   child durable (by whoever made it) → child verified and locked → pointer durable
 *   → flushes → guest held off → flush → push → guest goes on
 *
 * A server started after a death opens what the pointer names: the old leaf, or an empty child of
 * it, which masks nothing. No write reaches the child before the pointer names it.
 */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "io.h"
#include "plugin.h"

#define FLUSHES_AHEAD 5
#define SHORT_FLUSH_US 5000

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void forget(struct live *l)
{
	free(l->child);
	free(l->old_target);
	l->child = l->old_target = NULL;
	l->layer = NULL;
}

static char *read_link(const char *path, struct img_err *err)
{
	char buf[PATH_MAX];
	ssize_t n = readlink(path, buf, sizeof(buf) - 1);
	char *s;

	if (n < 0 && errno == EINVAL) {
		img_err_set(err, IMG_DATA,
			    "%s: no live snapshot, because this is the disk itself: the next start "
			    "would open it and not the child. Serve it through a symlink: ln -s %s "
			    "POINTER, and file=POINTER",
			    path, path);
		return NULL;
	}
	if (n < 0) {
		img_err_errno(err, errno, "%s: cannot read the symlink", path);
		return NULL;
	}
	buf[n] = '\0';
	s = strdup(buf);
	if (!s)
		img_err_errno(err, ENOMEM, "%s", path);
	return s;
}

static int same_file(const char *a, const char *b, bool *same, struct img_err *err)
{
	struct stat sa, sb;

	if (stat(a, &sa) < 0)
		return img_err_errno(err, errno, "%s", a);
	if (stat(b, &sb) < 0)
		return img_err_errno(err, errno, "%s", b);
	*same = sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
	return 0;
}

/* The pointer still names the leaf that is served. */
static int check_pointer(const struct disk *d, struct img_err *err)
{
	const char *leaf = img_layer_real(d->chain, 0);
	bool same;

	if (same_file(d->file, leaf, &same, err) < 0)
		return -1;
	if (!same)
		return img_err_set(
			err, IMG_DATA,
			"%s: this symlink was changed by someone else: it no longer names "
			"%s, which is being served",
			d->file, leaf);
	return 0;
}

/* The next start would find this whole chain through CHILD, by the rules in force. */
static int check_restart(const struct disk *d, const char *child, struct img_err *err)
{
	struct img_open opts = disk_open_opts(d);
	struct img_chain *c = NULL;
	unsigned i, n = img_layers(d->chain);
	bool same = true;
	int ret = -1;

	opts.writable = false;
	opts.unlocked = true;
	if (img_open(&c, child, &opts, err) < 0)
		goto out;
	if (img_layers(c) != n + 1) {
		img_err_set(err, IMG_DATA, "%s: opens as %u layers, expected %u", child,
			    img_layers(c), n + 1);
		goto out;
	}
	for (i = 0; i < n; i++) {
		if (same_file(img_layer_real(c, i + 1), img_layer_real(d->chain, i), &same, err) <
		    0)
			goto out;
		if (!same) {
			img_err_set(err, IMG_DATA, "%s: leads to %s where %s is served", child,
				    img_layer_real(c, i + 1), img_layer_real(d->chain, i));
			goto out;
		}
	}
	ret = 0;
out:
	img_close(c);
	return ret;
}

static int put_pointer_back(struct disk *d, struct live *l, struct img_err *err)
{
	if (io_symlink_replace(d->file, l->old_target, err) < 0) {
		l->keep_child = true;
		return -1;
	}
	return 0;
}

/* Once this began to change the pointer, a failure means that it may name either disk. */
static int switch_pointer(struct disk *d, struct live *l, struct img_err *err)
{
	if (io_symlink_replace(d->file, l->child, err) == 0)
		return 0;
	put_pointer_back(d, l, err);
	return -1;
}

int live_prepare(struct disk *d, struct live *l, const char *child, struct img_err *err)
{
	l->keep_child = false;
	if (l->layer)
		return img_err_set(err, IMG_AGAIN, "%s: a snapshot to %s is already prepared",
				   d->file, l->child);
	if (d->readonly)
		return img_err_set(err, IMG_PERM, "%s: no live snapshot: served read-only",
				   d->file);
	if (child[0] != '/')
		return img_err_set(err, IMG_USAGE, "%s: the child's path must be absolute", child);
	l->child = realpath(child, NULL);
	if (!l->child)
		return img_err_errno(err, errno, "%s", child);
	l->old_target = read_link(d->file, err);
	if (!l->old_target || check_pointer(d, err) < 0 ||
	    img_push_open(d->chain, l->child, &l->layer, err) < 0)
		goto fail;
	if (check_restart(d, l->child, err) < 0 || switch_pointer(d, l, err) < 0)
		goto fail;
	return 0;
fail:
	img_push_cancel(l->layer);
	forget(l);
	return -1;
}

/* Most of the work, while the guest goes on: again as long as that leaves less for the next one. */
static int flush_ahead(struct disk *d, struct img_err *err)
{
	uint64_t start, took, last = UINT64_MAX;

	for (int i = 0; i < FLUSHES_AHEAD; i++) {
		start = now_us();
		if (disk_flush(d, err) < 0)
			return -1;
		took = now_us() - start;
		if (took < SHORT_FLUSH_US || took >= last)
			break;
		last = took;
	}
	return 0;
}

static int push(struct disk *d, struct live *l, struct img_err *err)
{
	uint64_t start;
	int ret;

	if (flush_ahead(d, err) < 0)
		return -1;
	start = now_us();
	disk_hold_alone(d);
	ret = disk_flush_held(d, err);
	if (ret == 0)
		ret = img_push(d->chain, l->layer, err);
	disk_release_alone(d);
	l->blocked_us = now_us() - start;
	return ret;
}

int live_commit(struct disk *d, struct live *l, struct img_err *err)
{
	if (!l->layer)
		return img_err_set(err, IMG_USAGE, "%s: no snapshot is prepared on this connection",
				   d->file);
	if (push(d, l, err) < 0) {
		live_abort(d, l, err);
		return -1;
	}
	forget(l);
	return 0;
}

int live_abort(struct disk *d, struct live *l, struct img_err *err)
{
	int ret;

	l->keep_child = false;
	if (!l->layer)
		return 0;
	ret = put_pointer_back(d, l, err);
	img_push_cancel(l->layer);
	forget(l);
	return ret;
}
