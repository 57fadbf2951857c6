/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A child that was merged and not deleted. It shows what its parent shows, until somebody writes
 * to that: then it shows a mix, and merging it once more would bring back what the parent had
 * before. Nothing in either file tells, so a merge leaves FILE.absorbed beside the parent: whose
 * child it was, and what both files were at that time (inode, size, both times).
 *
 * Times say too little in three cases, and then the files have to be compared: the file was
 * written to in the same tick of the clock (so the note must be younger than the files); the
 * power was cut, and content is newer than times (so it must be of the same run of the system);
 * block devices. Our own writers also take back, durably, what the note says of a file, before
 * they write to it.
 */
#include "config.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "img_impl.h"
#include "sums.h"

/* How long a file system's clock may stand still, and how often we wait for it. */
#define TICK_NS 2000000
enum { TICKS = 12 };

static const uint8_t none[16];

static bool later(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec != b->tv_sec ? a->tv_sec > b->tv_sec : a->tv_nsec > b->tv_nsec;
}

/* Whatever is written to L from T on is seen by its times. */
static bool settled(const struct img *l, const struct timespec *t, dev_t dev)
{
	struct stat st;

	return !l->file.block_device && fstat(l->file.fd, &st) == 0 && st.st_dev == dev &&
	       later(t, &st.st_ctim);
}

/* Until a new file is younger than the layers. Where that cannot be, they will be compared. */
static void wait_for_clock(const struct img_chain *c, unsigned to)
{
	const struct timespec pause = {0, TICK_NS};
	struct timespec now;
	struct stat st;

	for (unsigned i = 0, n = 0; i <= to && n < TICKS; n++) {
#ifdef CLOCK_REALTIME_COARSE
		clock_gettime(CLOCK_REALTIME_COARSE, &now);
#else
		clock_gettime(CLOCK_REALTIME, &now);
#endif
		while (i <= to && fstat(c->layer[i]->file.fd, &st) == 0 && later(&now, &st.st_ctim))
			i++;
		if (i <= to)
			nanosleep(&pause, NULL);
	}
}

/* Which file L is. Zero where nobody knows. */
static void file_put(const struct img *l, uint8_t out[16])
{
	struct io_id id = {0};

	(void)io_id_get(l->file.fd, "", AT_EMPTY_PATH, &id);
	le64_put(out, id.ino);
	le64_put(out + 8, id.birth);
}

/*
 * A disk that was put back from a backup has not been written to since: it is another file, or its
 * times are older than the marker. In place, with the time of that, it cannot be told.
 */
static bool replaced(const struct img *l, const struct img_marker *m)
{
	uint8_t now[16];
	struct stat st;

	file_put(l, now);
	if (memcmp(m->file, none, sizeof(none)) != 0 && memcmp(m->file, now, sizeof(now)) != 0)
		return true;
	return fstat(l->file.fd, &st) == 0 && st.st_dev == m->st.st_dev &&
	       later(&m->st.st_mtim, &st.st_mtim);
}

int img_absorbed_note(struct img_chain *c, unsigned to, enum img_marker_state state,
		      struct img_err *err)
{
	const struct img *leaf = c->layer[0];
	struct img_marker m = {.state = state};

	memcpy(m.child_uuid, c->layer[to - 1]->info.uuid, 16);
	memcpy(m.leaf_uuid, leaf->info.uuid, 16);
	strncpy(m.leaf, leaf->file.real, sizeof(m.leaf) - 1);
	(void)sums_boot(m.boot);
	file_put(c->layer[to], m.file);
	if (img_identity(c, to, to + 1, m.target, err) < 0 ||
	    img_identity(c, 0, to, m.above, err) < 0)
		return -1;
	if (state == IMG_MARKER_KEPT)
		wait_for_clock(c, to);
	return img_marker_store(c->layer[to]->file.real, &m, err);
}

/* Anybody who may write to the folder can put a file there. */
static bool trusted(const struct img_marker *m, const struct img *l)
{
	struct stat st;

	return m->plain && fstat(l->file.fd, &st) == 0 && !(m->st.st_mode & 022) &&
	       (m->st.st_uid == st.st_uid || m->st.st_uid == 0 || m->st.st_uid == geteuid());
}

int img_absorbed_judge(struct img_chain *c, unsigned to, const struct img_marker *m,
		       struct img_absorbed *a, struct img_err *err)
{
	uint8_t target[IMG_SUM_BYTES], above[IMG_SUM_BYTES], boot[16];

	memset(a, 0, sizeof(*a));
	if (img_identity(c, to, to + 1, target, err) < 0 || img_identity(c, 0, to, above, err) < 0)
		return -1;
	a->same_leaf = memcmp(m->leaf_uuid, c->layer[0]->info.uuid, 16) == 0;
	a->target_same = memcmp(m->target, target, sizeof(target)) == 0;
	a->above_same = a->same_leaf && memcmp(m->above, above, sizeof(above)) == 0;
	a->trusted = trusted(m, c->layer[to]);
	a->replaced = !a->target_same && replaced(c->layer[to], m);
	a->sure = a->trusted && sums_boot(boot) && memcmp(m->boot, boot, sizeof(boot)) == 0 &&
		  settled(c->layer[to], &m->st.st_mtim, m->st.st_dev);
	for (unsigned i = 0; a->above_same && i < to; i++)
		a->sure &= settled(c->layer[i], &m->st.st_mtim, m->st.st_dev);
	return 0;
}

bool img_absorbed_there(const struct img_marker *m)
{
	struct img *l;
	bool yes;

	if (access(m->leaf, F_OK) < 0 ||
	    img_layer_open(&l, m->leaf, false, true, RAW_NEVER, NULL) < 0)
		return false;
	yes = memcmp(l->info.uuid, m->leaf_uuid, 16) == 0;
	img_layer_close(l);
	return yes;
}

void img_absorbed_warn(struct img *l, struct img *child, const struct img_open *opts)
{
	struct img_chain one = {.layer = {l}, .n = 1};
	uint8_t now[IMG_SUM_BYTES];
	struct img_err err = {0};
	struct img_marker m;

	/* A merge looks more closely, and says what to do. */
	if (!child || opts->merge)
		return;
	if (img_kept_read(l->file.real, &m, &err) < 0)
		img_warn(l, "%s", err.msg);
	else if (m.state == IMG_MARKER_KEPT && memcmp(m.child_uuid, child->info.uuid, 16) == 0 &&
		 img_identity(&one, 0, 1, now, NULL) == 0 &&
		 memcmp(now, m.target, sizeof(now)) != 0)
		img_warn(child,
			 "it was merged into %s, which was written to, or replaced, since: "
			 "what it shows is a mix of old and new",
			 l->file.path);
}

/* True: it said something of the file, and has to say otherwise. */
static bool take_back(struct img_marker *m, uint8_t id[16])
{
	bool had = m->state != IMG_MARKER_NONE && memcmp(id, none, sizeof(none)) != 0;

	memset(id, 0, 16);
	return had;
}

void img_absorbed_written(struct img_chain *c)
{
	struct img_marker m;

	for (unsigned i = 0; i < c->n; i++) {
		const char *real = c->layer[i]->file.real;
		bool about = false;

		for (int kept = 0; kept < 2; kept++) {
			if ((kept ? img_kept_read : img_marker_read)(real, &m, NULL) < 0 ||
			    (!kept && m.state != IMG_MARKER_MERGED))
				continue;
			about = i == 0 || memcmp(m.leaf_uuid, c->layer[0]->info.uuid, 16) == 0;
			/* Who may not write here changes times, which is nearly as good. */
			if (about && take_back(&m, i ? m.above : m.target))
				(void)img_marker_store(real, &m, NULL);
		}
	}
}
