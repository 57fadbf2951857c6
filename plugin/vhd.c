/* SPDX-License-Identifier: BSD-2-Clause */
/* nbdkit's side of the plugin: a thin adapter over img.h. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io.h"
#include "plugin.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define SECTOR 512u
#define PREFERRED_BLOCK 4096u
#define MAXIMUM_BLOCK (32u << 20)
/* Runs that one extents request walks while it holds the disk: a snapshot must not wait for it. */
#define EXTENT_RUNS 4096

/* nbdkit calls back without a context of our own before the first connection. */
static struct disk disk = {
	.gate = PTHREAD_MUTEX_INITIALIZER,
	.lock = PTHREAD_RWLOCK_INITIALIZER,
};

struct img_open disk_open_opts(const struct disk *d)
{
	return (struct img_open){
		.writable = !d->readonly,
		.parent_dirs = d->parent_dirs,
		.nparent_dirs = d->nparent_dirs,
	};
}

void disk_hold(struct disk *d)
{
	pthread_mutex_lock(&d->gate);
	pthread_rwlock_rdlock(&d->lock);
	pthread_mutex_unlock(&d->gate);
}

void disk_release(struct disk *d)
{
	pthread_rwlock_unlock(&d->lock);
}

void disk_hold_alone(struct disk *d)
{
	pthread_mutex_lock(&d->gate);
	pthread_rwlock_wrlock(&d->lock);
}

void disk_release_alone(struct disk *d)
{
	pthread_rwlock_unlock(&d->lock);
	pthread_mutex_unlock(&d->gate);
}

int disk_flush_held(struct disk *d, struct img_err *err)
{
	/* A change is counted when it is complete, so this flush covers all that are counted now.
	 */
	uint64_t covered = atomic_load(&d->writes);
	uint64_t seen = atomic_load(&d->flushed);

	if (img_flush(d->chain, err) < 0)
		return -1;
	while (seen < covered && !atomic_compare_exchange_weak(&d->flushed, &seen, covered))
		;
	return 0;
}

int disk_flush(struct disk *d, struct img_err *err)
{
	int ret;

	disk_hold(d);
	ret = d->readonly ? 0 : disk_flush_held(d, err);
	disk_release(d);
	return ret;
}

/*
 * Whether nbdkit was given -r. It tells a plugin only when a client connects; too late, since the
 * locks are taken before nbdkit leaves the foreground. A wrong guess is harmless: the disk
 * is then served read-only, or is locked more strictly than needed.
 */
static bool is_readonly_option(const char *arg)
{
	if (!strncmp(arg, "--", 2))
		return strlen(arg) >= strlen("--rea") &&
		       (!strncmp("--read-only", arg, strlen(arg)) ||
			!strncmp("--readonly", arg, strlen(arg)));
	return arg[0] == '-' && arg[1 + strspn(arg + 1, "fnosvV")] == 'r';
}

static bool asked_readonly(void)
{
	char *arg = NULL;
	size_t size = 0;
	bool found = false, first = true;
	FILE *f = fopen("/proc/self/cmdline", "re");

	if (!f)
		return false;
	while (!found && getdelim(&arg, &size, '\0', f) > 0 && strcmp(arg, "--") != 0) {
		found = !first && is_readonly_option(arg);
		first = false;
	}
	free(arg);
	fclose(f);
	return found;
}

/* Tells nbdkit, its log and the client. Every failure of ours ends here. */
static int report(const struct img_err *err)
{
	nbdkit_error("%s", err->msg);
	/* No space must arrive as that: QEMU then stops the guest until there is some. */
	switch (err->code) {
	case IMG_CANTCREAT:
		nbdkit_set_error(ENOSPC);
		break;
	case IMG_PERM:
		nbdkit_set_error(EPERM);
		break;
	case IMG_USAGE:
		nbdkit_set_error(EINVAL);
		break;
	default:
		nbdkit_set_error(EIO);
	}
	return -1;
}

static int vhd_config(const char *key, const char *value)
{
	const char **dirs;
	char **slot;

	if (!strcmp(key, "parent-dir")) {
		dirs = realloc(disk.parent_dirs, (disk.nparent_dirs + 1) * sizeof(*dirs));
		if (!dirs) {
			nbdkit_error("out of memory");
			return -1;
		}
		disk.parent_dirs = dirs;
		dirs[disk.nparent_dirs] = nbdkit_absolute_path(value);
		return dirs[disk.nparent_dirs] ? (disk.nparent_dirs++, 0) : -1;
	}
	if (!strcmp(key, "file"))
		slot = &disk.file;
	else if (!strcmp(key, "control"))
		slot = &disk.control;
	else if (!strcmp(key, "owner"))
		slot = &disk.owner;
	else {
		nbdkit_error("unknown parameter '%s'", key);
		return -1;
	}
	if (*slot) {
		nbdkit_error("parameter '%s' is given twice", key);
		return -1;
	}
	/* Absolute, since nbdkit changes its folder; not resolved, since file= is a pointer. */
	*slot = nbdkit_absolute_path(value);
	return *slot ? 0 : -1;
}

static int vhd_config_complete(void)
{
	if (!disk.file) {
		nbdkit_error("the parameter file=DISK is missing");
		return -1;
	}
	return 0;
}

#define vhd_config_help                                                                            \
	"[file=]DISK        (required) the leaf of a chain, or a symlink to it\n"                  \
	"control=SOCKET     Unix socket for status, flush and snapshot\n"                          \
	"parent-dir=DIR     where parents may lie (repeatable)\n"                                  \
	"owner=FILE         serve only while FILE exists"

static int check_owner(const struct disk *d, struct img_err *err)
{
	struct stat st;

	if (!d->owner)
		return 0;
	if (stat(d->owner, &st) < 0)
		return img_err_set(err, IMG_PERM,
				   "%s: not served: the ownership record %s cannot be read: %s",
				   d->file, d->owner, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return img_err_set(err, IMG_PERM,
				   "%s: not served: the ownership record %s is no regular file",
				   d->file, d->owner);
	return 0;
}

/* Before nbdkit forks: errors reach the terminal, and locks of open file descriptions survive. */
static int vhd_get_ready(void)
{
	struct img_err err = {0};
	struct img_open opts;

	disk.readonly = asked_readonly();
	opts = disk_open_opts(&disk);
	if (check_owner(&disk, &err) < 0 || img_open(&disk.chain, disk.file, &opts, &err) < 0)
		return report(&err);
	if (img_size(disk.chain) % SECTOR) {
		img_err_set(&err, IMG_DATA, "%s: its size, %llu bytes, is no multiple of 512",
			    disk.file, (unsigned long long)img_size(disk.chain));
		return report(&err);
	}
	if (disk.control && control_bind(&disk, &err) < 0)
		return report(&err);
	return 0;
}

static int vhd_after_fork(void)
{
	return disk.control ? control_start(&disk) : 0;
}

static void *vhd_open(int readonly)
{
	struct img_err err = {0};

	(void)readonly; /* vhd_can_write() knows what the disk was opened for */
	/* A virtual machine that moved away must not be started here by a new connection. */
	if (check_owner(&disk, &err) < 0) {
		report(&err);
		return NULL;
	}
	return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t vhd_get_size(void *handle)
{
	(void)handle;
	return (int64_t)img_size(disk.chain);
}

static int vhd_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
	(void)handle;
	*minimum = SECTOR;
	*preferred = PREFERRED_BLOCK;
	*maximum = MAXIMUM_BLOCK;
	return 0;
}

static int vhd_can_write(void *handle)
{
	(void)handle;
	return !disk.readonly;
}

static int yes(void *handle)
{
	(void)handle;
	return 1;
}

static int vhd_can_fua(void *handle)
{
	(void)handle;
	return NBDKIT_FUA_NATIVE;
}

static int vhd_pread(void *handle, void *buf, uint32_t count, uint64_t off, uint32_t flags)
{
	struct img_err err = {0};
	int ret;

	(void)handle, (void)flags;
	disk_hold(&disk);
	ret = img_read(disk.chain, buf, off, count, &err);
	disk_release(&disk);
	return ret < 0 ? report(&err) : 0;
}

/* The client was told that blocks have at least 512 bytes; the library changes nothing less. */
static int check_aligned(uint32_t count, uint64_t off, struct img_err *err)
{
	if (count % SECTOR || off % SECTOR)
		return img_err_set(err, IMG_USAGE,
				   "%s: request of %u bytes at %llu is not aligned to 512 bytes",
				   disk.file, count, (unsigned long long)off);
	return 0;
}

static int vhd_pwrite(void *handle, const void *buf, uint32_t count, uint64_t off, uint32_t flags)
{
	struct img_err err = {0};
	int ret;

	(void)handle;
	if (check_aligned(count, off, &err) < 0)
		return report(&err);
	disk_hold(&disk);
	ret = img_write(disk.chain, buf, off, count, flags & NBDKIT_FLAG_FUA, &err);
	atomic_fetch_add(&disk.writes, 1);
	disk_release(&disk);
	return ret < 0 ? report(&err) : 0;
}

/*
 * NBDKIT_FLAG_FAST_ZERO needs no care: zeroing costs bits and at most a hole punched, never more
 * than writing the zeros would.
 */
static int vhd_zero(void *handle, uint32_t count, uint64_t off, uint32_t flags)
{
	struct img_err err = {0};
	int ret;

	(void)handle;
	if (check_aligned(count, off, &err) < 0)
		return report(&err);
	disk_hold(&disk);
	ret = img_zero(disk.chain, off, count, flags & NBDKIT_FLAG_FUA, &err);
	atomic_fetch_add(&disk.writes, 1);
	disk_release(&disk);
	return ret < 0 ? report(&err) : 0;
}

static int vhd_trim(void *handle, uint32_t count, uint64_t off, uint32_t flags)
{
	struct img_err err = {0};
	int ret;

	(void)handle;
	if (check_aligned(count, off, &err) < 0)
		return report(&err);
	disk_hold(&disk);
	ret = img_trim(disk.chain, off, count, &err);
	atomic_fetch_add(&disk.writes, 1);
	if (ret == 0 && flags & NBDKIT_FLAG_FUA)
		ret = disk_flush_held(&disk, &err);
	disk_release(&disk);
	return ret < 0 ? report(&err) : 0;
}

static int vhd_flush(void *handle, uint32_t flags)
{
	struct img_err err = {0};

	(void)handle, (void)flags;
	return disk_flush(&disk, &err) < 0 ? report(&err) : 0;
}

/* Reports as many runs as may be walked at a time: at least the first, at most the range. */
static int walk_extents(uint64_t off, uint64_t end, bool one, struct nbdkit_extents *extents,
			struct img_err *err)
{
	unsigned layers = img_layers(disk.chain), n;
	struct img_run run;
	uint32_t type;

	for (n = 0; off < end && n < EXTENT_RUNS; n++, off += run.len) {
		if (img_map(disk.chain, off, end - off, layers, &run, err) < 0)
			return -1;
		type = run.kind == IMG_DATA_RUN ? 0 : NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO;
		if (nbdkit_add_extent(extents, off, run.len, type) < 0)
			return img_err_errno(err, errno, "%s: extents", disk.file);
		if (one)
			break;
	}
	return 0;
}

static int vhd_extents(void *handle, uint32_t count, uint64_t off, uint32_t flags,
		       struct nbdkit_extents *extents)
{
	struct img_err err = {0};
	int ret;

	(void)handle;
	disk_hold(&disk);
	ret = walk_extents(off, off + count, flags & NBDKIT_FLAG_REQ_ONE, extents, &err);
	disk_release(&disk);
	return ret < 0 ? report(&err) : 0;
}

/* The last connection is closed. */
static void vhd_cleanup(void)
{
	struct img_err err = {0};

	control_stop(&disk);
	if (disk.chain && disk_flush(&disk, &err) < 0)
		nbdkit_error("%s", err.msg);
}

static void vhd_unload(void)
{
	size_t i;

	control_stop(&disk);
	img_close(disk.chain);
	disk.chain = NULL;
	for (i = 0; i < disk.nparent_dirs; i++)
		free((char *)disk.parent_dirs[i]);
	free(disk.parent_dirs);
	free(disk.file);
	free(disk.control);
	free(disk.owner);
}

static struct nbdkit_plugin plugin = {
	.name = "vhd",
	.version = PACKAGE_VERSION,
	.longname = "qsm-tools VHD plugin",
	.description = "serves a VHD chain, with live snapshots",
	.config = vhd_config,
	.config_complete = vhd_config_complete,
	.config_help = vhd_config_help,
	.magic_config_key = "file",
	.get_ready = vhd_get_ready,
	.after_fork = vhd_after_fork,
	.cleanup = vhd_cleanup,
	.unload = vhd_unload,
	.open = vhd_open,
	.get_size = vhd_get_size,
	.block_size = vhd_block_size,
	.can_write = vhd_can_write,
	.can_flush = yes,
	.can_trim = yes,
	.can_zero = yes,
	.can_fast_zero = yes,
	.can_extents = yes,
	.can_multi_conn = yes,
	.can_fua = vhd_can_fua,
	.pread = vhd_pread,
	.pwrite = vhd_pwrite,
	.flush = vhd_flush,
	.zero = vhd_zero,
	.trim = vhd_trim,
	.extents = vhd_extents,
};

NBDKIT_REGISTER_PLUGIN(plugin)
