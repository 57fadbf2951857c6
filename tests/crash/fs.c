/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include "fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "bytes.h"
#include "random.h"

void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("explore: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(70);
}

struct event *tape_add(struct tape *t, enum event_kind kind)
{
	if (t->n == t->room) {
		t->room = t->room ? t->room * 2 : 64;
		t->ev = realloc(t->ev, t->room * sizeof(*t->ev));
		if (!t->ev)
			die("out of memory");
	}
	memset(&t->ev[t->n], 0, sizeof(*t->ev));
	t->ev[t->n].kind = kind;
	return &t->ev[t->n++];
}

void tape_free(struct tape *t)
{
	for (unsigned i = 0; i < t->n; i++)
		free(t->ev[i].data);
	free(t->ev);
	memset(t, 0, sizeof(*t));
}

static void node_resize(struct node *n, uint64_t size)
{
	if (size > n->room) {
		uint64_t room = u64_max(size, n->room + n->room / 4);

		n->data = realloc(n->data, room);
		if (!n->data)
			die("out of memory");
		n->room = room;
	}
	if (size > n->size)
		memset(n->data + n->size, 0, size - n->size);
	n->size = size;
}

void fs_copy(struct fs *out, const struct fs *from)
{
	*out = *from;
	for (int i = 0; i < from->nodes; i++) {
		out->node[i].room = 0;
		out->node[i].data = NULL;
		out->node[i].size = 0;
		if (!from->node[i].used)
			continue;
		node_resize(&out->node[i], from->node[i].size);
		if (from->node[i].size)
			memcpy(out->node[i].data, from->node[i].data, from->node[i].size);
	}
}

void fs_free(struct fs *fs)
{
	for (int i = 0; i < fs->nodes; i++)
		free(fs->node[i].data);
	memset(fs, 0, sizeof(*fs));
}

int fs_find(const struct fs *fs, const char *path)
{
	for (int i = 0; i < fs->names; i++)
		if (strcmp(fs->name[i].path, path) == 0)
			return i;
	return -1;
}

static void set_name(struct fs *fs, const char *path, int node)
{
	int i = fs_find(fs, path);
	size_t len = strlen(path);

	if (i < 0) {
		if (fs->names == FS_NAMES)
			die("too many names");
		if (len >= FS_PATH)
			die("%s: too long a name", path);
		i = fs->names++;
		memcpy(fs->name[i].path, path, len + 1);
	}
	fs->name[i].node = node;
}

static void drop_name(struct fs *fs, const char *path)
{
	int i = fs_find(fs, path);

	if (i < 0)
		die("model: %s is not there", path);
	fs->name[i] = fs->name[--fs->names];
}

int fs_add(struct fs *fs, const char *path, const void *data, uint64_t size)
{
	int n = fs->nodes++;

	if (n == FS_NODES)
		die("too many files");
	memset(&fs->node[n], 0, sizeof(fs->node[n]));
	fs->node[n].used = true;
	node_resize(&fs->node[n], size);
	if (size && data)
		memcpy(fs->node[n].data, data, size);
	set_name(fs, path, n);
	return n;
}

/*
 * Replay. An event is durable when the next sync of its file (folder) succeeded; up for a decision
 * when there was none yet, or when that sync failed.
 */
struct replay {
	struct fs *fs;
	const struct tape *t;
	unsigned n, decisions;
	struct choice c;
	struct rng rng;
	unsigned lone; /* RANDOM: the only event that is (not) there */
	unsigned style;
};

static bool same_dir(const char *path, const char *dir)
{
	const char *slash = strrchr(path, '/');
	size_t len = slash ? (size_t)(slash - path) : 0;

	return strlen(dir) == len && strncmp(path, dir, len) == 0;
}

static bool decides(const struct event *sync, const struct event *e)
{
	if (e->kind < EV_SYNC)
		return sync->kind == EV_SYNC && sync->node == e->node;
	return e->kind >= EV_CREATE && sync->kind == EV_SYNC_DIR && !sync->failed &&
	       same_dir(e->path, sync->path);
}

void tape_seal(struct tape *t)
{
	for (unsigned i = 0; i < t->n; i++) {
		t->ev[i].covered = UINT_MAX;
		for (unsigned k = i + 1; k < t->n; k++)
			if (decides(&t->ev[k], &t->ev[i])) {
				t->ev[i].covered = k;
				break;
			}
	}
}

static bool durable(const struct replay *r, unsigned i)
{
	unsigned k = r->t->ev[i].covered;

	return k < r->n && !r->t->ev[k].failed;
}

/* How likely a sector of event I is there, in 256ths; decided once for each event. */
static unsigned likelihood(struct replay *r, unsigned i)
{
	static const unsigned some[] = {0, 0, 0, 256, 256, 256, 128, 24, 232};

	switch (r->style) {
	case 0: /* one alone */
		return i == r->lone ? 256 : 0;
	case 1: /* all but one */
		return i == r->lone ? 0 : 256;
	case 2:
		return i == r->lone ? 128 : 0;
	case 3:
		return i == r->lone ? 128 : 256;
	default:
		return some[rng_below(&r->rng, sizeof(some) / sizeof(some[0]))];
	}
}

static bool decide(struct replay *r, unsigned likely)
{
	unsigned k = r->decisions++;

	switch (r->c.how) {
	case TAKE_ALL:
		return true;
	case TAKE_NONE:
		return false;
	case TAKE_MASK:
		return k < 64 && (r->c.value >> k & 1);
	default:
		return likely == 256 || (likely && rng_below(&r->rng, 256) < likely);
	}
}

static void put_sectors(struct replay *r, const struct event *e, bool ask, unsigned likely)
{
	struct node *n = &r->fs->node[e->node];
	uint64_t end = e->off + e->len, at = e->off, stop;

	if (end > n->size && e->kind == EV_WRITE && ask && decide(r, likely ? 200 : 50))
		node_resize(n, end); /* grown, with or without the data */
	for (; at < end; at = stop) {
		stop = ask ? u64_min(end, (at / SECTOR + 1) * SECTOR) : end;
		if (ask && !decide(r, likely))
			continue;
		if (stop > n->size && e->kind == EV_WRITE)
			node_resize(n, stop);
		if (e->kind == EV_WRITE)
			memcpy(n->data + at, e->data + (at - e->off), stop - at);
		else if (at < n->size)
			memset(n->data + at, 0, u64_min(stop, n->size) - at);
	}
}

static void put_name(struct fs *fs, const struct event *e)
{
	int i;

	switch (e->kind) {
	case EV_CREATE:
	case EV_LINK:
		set_name(fs, e->path, e->node);
		break;
	case EV_RENAME:
		i = fs_find(fs, e->path);
		if (i < 0)
			die("model: %s is not there", e->path);
		set_name(fs, e->to, fs->name[i].node);
		drop_name(fs, e->path);
		break;
	default:
		drop_name(fs, e->path);
	}
}

/* The folders where a change of names did not come to be: nothing later did, there. */
struct stopped {
	const char *path[8];
	int n;
};

static bool is_stopped(const struct stopped *s, const char *path)
{
	for (int i = 0; i < s->n; i++) {
		const char *slash = strrchr(s->path[i], '/');
		char dir[FS_PATH];

		snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - s->path[i]) : 0,
			 s->path[i]);
		if (same_dir(path, dir))
			return true;
	}
	return false;
}

static void play_event(struct replay *r, unsigned i, struct stopped *stop)
{
	const struct event *e = &r->t->ev[i];
	bool ask = !durable(r, i) && e->fate == FATE_OPEN;

	if (e->fate == FATE_GONE)
		return;

	if (e->kind == EV_CREATE) {
		struct node *n = &r->fs->node[e->node];

		/* A link's text is written with its name. */
		n->used = true;
		n->link = e->data != NULL;
		node_resize(n, e->len);
		if (e->len)
			memcpy(n->data, e->data, e->len);
	}
	if (e->kind == EV_WRITE || e->kind == EV_ZERO) {
		put_sectors(r, e, ask, ask && r->c.how == TAKE_RANDOM ? likelihood(r, i) : 0);
	} else if (e->kind == EV_SIZE) {
		if (!ask || decide(r, r->c.how == TAKE_RANDOM ? likelihood(r, i) : 0))
			node_resize(&r->fs->node[e->node], e->len);
	} else if (e->kind >= EV_CREATE && e->kind < EV_SYNC_DIR) {
		if (is_stopped(stop, e->path))
			return;
		if (!ask || decide(r, 160))
			put_name(r->fs, e);
		else if (stop->n < 8)
			stop->path[stop->n++] = e->path;
		else
			die("too many folders");
	}
}

unsigned fs_replay(struct fs *out, const struct fs *base, const struct tape *t, unsigned n,
		   struct choice c)
{
	struct replay r = {.fs = out, .t = t, .n = n, .c = c};
	struct stopped stop = {.n = 0};
	unsigned pending = 0;

	fs_copy(out, base);
	if (t->nodes > FS_NODES)
		die("too many files");
	if (t->nodes > out->nodes)
		out->nodes = t->nodes;
	if (c.how == TAKE_RANDOM) {
		rng_seed(&r.rng, c.value);
		r.style = rng_below(&r.rng, 8);
		for (unsigned i = 0; i < n; i++)
			if (t->ev[i].kind < EV_SYNC && !durable(&r, i) &&
			    rng_below(&r.rng, ++pending) == 0)
				r.lone = i;
	}
	for (unsigned i = 0; i < n; i++)
		play_event(&r, i, &stop);
	return r.decisions;
}

void tape_print(const struct tape *t, unsigned n, struct choice c)
{
	static const char *const what[] = {"write",  "zero", "size",   "sync",	   "create",
					   "rename", "link", "unlink", "sync-dir", "note"};
	struct replay r = {.t = t, .n = n};
	unsigned dull = 0;

	for (unsigned i = 0; i < n; i++) {
		const struct event *e = &t->ev[i];
		bool data = e->kind < EV_SYNC;

		/* Of many writes that were all synced the first ones do. */
		dull = data && durable(&r, i) ? dull + 1 : 0;
		if (dull > 6)
			continue;

		printf("# %3u %-8s", i, what[e->kind]);
		if (data || e->kind == EV_SYNC)
			printf(" file %d", e->node);
		if (data)
			printf(" at %" PRIu64 " len %" PRIu64, e->off, e->len);
		if (e->kind == EV_NOTE)
			printf(" %" PRIu64, e->off);
		if (e->path[0])
			printf(" %s", e->path);
		if (e->to[0])
			printf(" -> %s", e->to);
		if (e->kind == EV_CREATE || e->kind == EV_LINK)
			printf(" = file %d", e->node);
		if (e->kind == EV_SYNC || e->kind == EV_SYNC_DIR)
			printf("%s", e->failed ? " FAILED" : "");
		else if (e->kind != EV_NOTE)
			printf("%s", e->fate == FATE_GONE ? " (lost by a failed sync)"
				     : durable(&r, i)	  ? ""
				     : c.how == TAKE_ALL  ? " (not synced: there)"
				     : c.how == TAKE_NONE ? " (not synced: lost)"
							  : " (not synced: perhaps in part)");
		printf("\n");
	}
}

uint64_t fs_hash(const struct fs *fs)
{
	uint64_t sum = 0;

	/* The order of names does not matter, and temporary ones are random. */
	for (int i = 0; i < fs->names; i++) {
		const struct node *n = &fs->node[fs->name[i].node];
		const char *p = fs->name[i].path, *slash = strrchr(p, '/');
		uint64_t h = (slash ? slash[1] : p[0]) == '.' ? 1 : XXH3_64bits(p, strlen(p));

		sum += XXH3_64bits_withSeed(n->data ? n->data : (const uint8_t *)"", n->size, h);
	}
	return sum;
}

void fs_empty(const char *path)
{
	struct dirent *d;
	char sub[2 * FS_PATH];
	DIR *dir = opendir(path);

	if (!dir)
		die("%s: %s", path, strerror(errno));
	while ((d = readdir(dir))) {
		if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0)
			continue;
		snprintf(sub, sizeof(sub), "%s/%s", path, d->d_name);
		if (d->d_type == DT_DIR)
			fs_empty(sub);
		else if (unlink(sub) < 0)
			die("%s: %s", sub, strerror(errno));
	}
	closedir(dir);
}

static void store_data(int fd, const struct node *n, const char *path)
{
	static const uint64_t step = 16384;
	int rc = ftruncate(fd, (off_t)n->size);

	for (uint64_t at = 0, len; rc == 0 && at < n->size; at += len) {
		len = u64_min(step, n->size - at);
		if (!bytes_are_zero(n->data + at, len) &&
		    pwrite(fd, n->data + at, len, (off_t)at) != (ssize_t)len)
			rc = -1;
	}
	if (rc < 0)
		die("%s: %s", path, strerror(errno));
}

static void pool_path(char path[2 * FS_PATH], const char *pool, int node)
{
	snprintf(path, 2 * FS_PATH, "%s/%d", pool, node);
}

/* The inodes of the pool, by node; 0: none yet. */
static ino_t kept_ino[FS_NODES];

static void store_file(const struct node *n, int k, const char *path, const char *kept, bool first)
{
	int fd = first ? open(kept, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;

	if (first && fd < 0)
		die("%s: %s", kept, strerror(errno));
	if (first) {
		struct stat st;

		store_data(fd, n, kept);
		if (!kept_ino[k] && fstat(fd, &st) == 0)
			kept_ino[k] = st.st_ino;
		close(fd);
	}
	if (link(kept, path) < 0)
		die("%s: %s", path, strerror(errno));
}

bool fs_pool_link(const char *pool, int k, const char *path, unsigned mode)
{
	char kept[2 * FS_PATH];
	mode_t mask = umask(0);
	struct stat st;
	bool ok;
	int fd;

	umask(mask);
	if (k >= FS_NODES)
		die("too many files");
	pool_path(kept, pool, k);
	fd = open(kept, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_nlink != 1)
		die("%s: in use already", kept);
	kept_ino[k] = st.st_ino;
	ok = fchmod(fd, mode & ~mask) == 0 && link(kept, path) == 0;
	close(fd);
	return ok;
}

/* The folder of PATH; there is one level below the root at the most. */
static void need_folder(const char *path, const char *name)
{
	const char *slash = strrchr(path, '/');
	char dir[2 * FS_PATH];

	if (!strchr(name, '/'))
		return;
	snprintf(dir, sizeof(dir), "%.*s", (int)(slash - path), path);
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		die("%s: %s", dir, strerror(errno));
}

static void store_link(const struct node *n, const char *path)
{
	char target[FS_PATH];

	snprintf(target, sizeof(target), "%.*s", (int)n->size, (const char *)n->data);
	if (symlink(target, path) < 0)
		die("%s: %s", path, strerror(errno));
}

void fs_store(const struct fs *fs, const char *root, const char *pool)
{
	bool stored[FS_NODES] = {false};
	char path[2 * FS_PATH], kept[2 * FS_PATH];

	fs_empty(root);
	for (int i = 0; i < fs->names; i++) {
		int k = fs->name[i].node;

		snprintf(path, sizeof(path), "%s/%s", root, fs->name[i].path);
		pool_path(kept, pool, k);
		need_folder(path, fs->name[i].path);
		if (fs->node[k].link)
			store_link(&fs->node[k], path);
		else
			store_file(&fs->node[k], k, path, kept, !stored[k]);
		stored[k] = true;
	}
}

/* The number that the file has in the pool, else one that no file of the folder has. */
static int node_number(const struct fs *fs, const struct stat *st, const char *pool)
{
	char kept[2 * FS_PATH];
	struct stat ks;

	for (int n = 0; n < FS_NODES; n++)
		if (kept_ino[n] == st->st_ino)
			return n;
	for (int n = 0; n < FS_NODES; n++) {
		pool_path(kept, pool, n);
		if (!fs->node[n].used &&
		    (!kept_ino[n] || (stat(kept, &ks) == 0 && ks.st_nlink == 1)))
			return n;
	}
	die("too many files");
}

static void load_file(struct fs *fs, const char *path, const char *name, const struct stat *st,
		      const char *pool)
{
	int k = node_number(fs, st, pool);
	struct node *n = &fs->node[k];

	set_name(fs, name, k);
	if (k >= fs->nodes)
		fs->nodes = k + 1;
	n->used = true;
	node_resize(n, (uint64_t)st->st_size);

	if (S_ISLNK(st->st_mode)) {
		n->link = true;
		if (readlink(path, (char *)n->data, n->size) != (ssize_t)n->size)
			die("%s: %s", path, strerror(errno));
	} else {
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd < 0 || pread(fd, n->data, n->size, 0) != (ssize_t)n->size)
			die("%s: %s", path, strerror(errno));
		close(fd);
	}
}

static void load_dir(struct fs *fs, const char *root, const char *sub, const char *pool)
{
	char path[3 * FS_PATH], name[2 * FS_PATH];
	struct dirent *d;
	struct stat st;
	DIR *dir;

	snprintf(path, sizeof(path), "%s/%s", root, sub);
	dir = opendir(path);
	if (!dir)
		die("%s: %s", path, strerror(errno));
	while ((d = readdir(dir))) {
		if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0)
			continue;
		snprintf(name, sizeof(name), "%s%s%s", sub, sub[0] ? "/" : "", d->d_name);
		snprintf(path, sizeof(path), "%s/%s", root, name);
		if (lstat(path, &st) < 0)
			die("%s: %s", path, strerror(errno));
		if (S_ISDIR(st.st_mode))
			load_dir(fs, root, name, pool);
		else
			load_file(fs, path, name, &st, pool);
	}
	closedir(dir);
}

void fs_load(struct fs *fs, const char *root, const char *pool)
{
	memset(fs, 0, sizeof(*fs));
	load_dir(fs, root, "", pool);
}

const char *fs_compare(const struct fs *a, const struct fs *b)
{
	static char why[3 * FS_PATH];

	for (int i = 0; i < a->names; i++) {
		int k = fs_find(b, a->name[i].path);
		const struct node *x = &a->node[a->name[i].node], *y;

		snprintf(why, sizeof(why), "%s: not in both", a->name[i].path);
		if (k < 0)
			return why;
		y = &b->node[b->name[k].node];
		snprintf(why, sizeof(why), "%s: %" PRIu64 " and %" PRIu64 " bytes", a->name[i].path,
			 x->size, y->size);
		if (x->size != y->size)
			return why;
		for (uint64_t at = 0; at < x->size; at += SECTOR) {
			snprintf(why, sizeof(why), "%s: the bytes at %" PRIu64 " differ",
				 a->name[i].path, at);
			if (memcmp(x->data + at, y->data + at, u64_min(SECTOR, x->size - at)) != 0)
				return why;
		}
	}
	snprintf(why, sizeof(why), "%d and %d names", a->names, b->names);
	return a->names == b->names ? NULL : why;
}
