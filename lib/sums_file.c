/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * FILE.sums, all numbers little-endian:
 *
 *   head  "qsm-sums", u32 version (1), u32 bytes in a chunk, u64 size of the disk, the identity of
 *         the files that the disk is made of, the boot id, u64 number of runs
 *   runs  u32 first chunk, u32 chunks, their sum; ascending, without overlap, gaps are unknown
 *   sum   XXH3-128 of all before
 *
 * It is never changed: a new one takes its place by rename. It is not synced: one that is torn by
 * a power cut has a wrong sum, or another boot's id. Its owner is trusted to have told the truth:
 * so that must be the image's owner, root or us, and nobody else may write to it.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uuid.h>

#include "sums.h"

#define MAGIC "qsm-sums"
#define SUMS_VERSION 1u
#define SUFFIX ".sums"

enum { HEAD_LEN = 64, RUN_LEN = 24, SUM_LEN = 16, BUF_RUNS = 1024, BUF_LEN = BUF_RUNS * RUN_LEN };

#define BOOT_ID "/proc/sys/kernel/random/boot_id"

/* How long a file system's clock may stand still, and how often we wait for it. */
#define TICK_NS 5000000
enum { TICKS = 6 };
/* A file on another file system, whose clock we cannot ask: old enough whatever its unit is. */
enum { OTHER_CLOCK_SECONDS = 3 };

static char *sums_path(const char *real)
{
	char *path;

	return asprintf(&path, "%s" SUFFIX, real) < 0 ? NULL : path;
}

uint64_t sums_chunks(uint64_t size)
{
	return size / IMG_SUM_CHUNK + (size % IMG_SUM_CHUNK != 0);
}

bool sums_boot(uint8_t boot[16])
{
	char text[UUID_STR_LEN] = "";
	FILE *f = fopen(BOOT_ID, "re");
	bool good = f && fgets(text, sizeof(text), f) && uuid_parse(text, boot) == 0;

	if (f)
		fclose(f);
	return good;
}

/* Smaller files are read as quickly as their sums are looked at. */
bool sums_worth(uint64_t file_bytes)
{
	return file_bytes >= 64ull << 20;
}

bool sums_describe(struct sums_head *h, struct img_chain *c, unsigned from)
{
	memset(h, 0, sizeof(*h));
	h->size = c->layer[from]->info.size;
	return img_identity(c, from, c->n, h->identity, NULL) == 0 && sums_boot(h->boot);
}

bool sums_same(const struct sums_head *a, const struct sums_head *b)
{
	return a->size == b->size && memcmp(a->identity, b->identity, sizeof(a->identity)) == 0 &&
	       memcmp(a->boot, b->boot, sizeof(a->boot)) == 0;
}

static void head_put(uint8_t b[HEAD_LEN], const struct sums_head *h)
{
	memcpy(b, MAGIC, 8);
	le32_put(b + 8, SUMS_VERSION);
	le32_put(b + 12, IMG_SUM_CHUNK);
	le64_put(b + 16, h->size);
	memcpy(b + 24, h->identity, 16);
	memcpy(b + 40, h->boot, 16);
	le64_put(b + 56, h->runs);
}

static bool head_get(struct sums_head *h, const uint8_t b[HEAD_LEN])
{
	if (memcmp(b, MAGIC, 8) != 0 || le32_get(b + 8) != SUMS_VERSION ||
	    le32_get(b + 12) != IMG_SUM_CHUNK)
		return false;
	h->size = le64_get(b + 16);
	memcpy(h->identity, b + 24, 16);
	memcpy(h->boot, b + 40, 16);
	h->runs = le64_get(b + 56);
	return true;
}

static void run_put(uint8_t b[RUN_LEN], const struct sums_run *r)
{
	le32_put(b, (uint32_t)r->first);
	le32_put(b + 4, (uint32_t)r->n);
	memcpy(b + 8, r->sum, IMG_SUM_BYTES);
}

static void run_get(struct sums_run *r, const uint8_t b[RUN_LEN])
{
	r->first = le32_get(b);
	r->n = le32_get(b + 4);
	memcpy(r->sum, b + 8, IMG_SUM_BYTES);
}

/*
 * A regular file under exactly this name: no link is followed, nothing waits for the other end of a
 * FIFO. False with F closed.
 */
static bool open_plain(struct io_file *f, const char *path, struct stat *st)
{
	struct stat name;

	io_init(f);
	if (lstat(path, &name) < 0 || !S_ISREG(name.st_mode) || io_open(f, path, false, NULL) < 0)
		return false;
	if (fstat(f->fd, st) == 0 && S_ISREG(st->st_mode) && st->st_dev == name.st_dev &&
	    st->st_ino == name.st_ino)
		return true;
	io_close(f);
	return false;
}

/* Whether we made what has this name, whatever it is worth. */
static bool is_ours(const char *path)
{
	uint8_t magic[8] = "";
	struct io_file f;
	struct stat st;
	size_t got;
	bool yes;

	if (!open_plain(&f, path, &st))
		return false;
	yes = io_read_upto(&f, magic, sizeof(magic), 0, &got, NULL) == 0 &&
	      memcmp(magic, MAGIC, sizeof(magic)) == 0;
	io_close(&f);
	return yes;
}

void img_sums_remove(const char *real)
{
	char *path = sums_path(real);

	if (path && is_ours(path))
		(void)io_unlink(path, NULL);
	free(path);
}

/* --- writing ------------------------------------------------------------------------------ */

int sums_out_open(struct sums_out *o, const char *beside)
{
	memset(o, 0, sizeof(*o));
	io_init(&o->file);
	o->pos = HEAD_LEN;
	o->buf = malloc(BUF_LEN);
	if (!o->buf)
		return img_err_errno(&o->err, ENOMEM, "%s", beside);
	return io_scratch(&o->file, beside, &o->err);
}

void sums_out_close(struct sums_out *o)
{
	io_close(&o->file);
	free(o->buf);
	o->buf = NULL;
}

static void flush(struct sums_out *o)
{
	if (!o->err.code && io_write(&o->file, o->buf, o->used, o->pos, &o->err) == 0)
		o->pos += o->used;
	o->used = 0;
}

static void put_last(struct sums_out *o)
{
	if (!o->last.n)
		return;
	run_put(o->buf + o->used, &o->last);
	o->used += RUN_LEN;
	o->runs++;
	o->last.n = 0;
	if (o->used == BUF_LEN)
		flush(o);
}

void sums_out_add(struct sums_out *o, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	struct sums_run *r = &o->last;

	if (!n)
		return;
	if (first + n > UINT32_MAX || first < r->first + r->n) {
		img_err_set(&o->err, IMG_BUG, "sums out of order");
		return;
	}
	if (r->n && first == r->first + r->n && memcmp(r->sum, sum, IMG_SUM_BYTES) == 0) {
		r->n += n;
		return;
	}
	put_last(o);
	r->first = first;
	r->n = n;
	memcpy(r->sum, sum, IMG_SUM_BYTES);
}

static bool after(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec != b->tv_sec ? a->tv_sec > b->tv_sec : a->tv_nsec > b->tv_nsec;
}

/* The file without a name is on the same file system: what it gets is that one's time. */
bool sums_out_later(struct sums_out *o, dev_t dev, const struct timespec *t)
{
	const struct timespec pause = {0, TICK_NS};
	struct stat st;

	for (int i = 0; i < TICKS && !o->err.code; i++) {
		if (i)
			nanosleep(&pause, NULL);
		if (io_write(&o->file, "", 1, 0, &o->err) < 0 || fstat(o->file.fd, &st) < 0)
			return false;
		if (st.st_dev != dev)
			return st.st_mtim.tv_sec - t->tv_sec >= OTHER_CLOCK_SECONDS;
		if (after(&st.st_mtim, t))
			return true;
	}
	return false;
}

/* Head, runs, and the sum of both. */
static int copy_all(struct sums_out *o, struct io_file *to, const struct sums_head *h)
{
	XXH3_state_t *hash = XXH3_createState();
	XXH128_canonical_t sum;
	uint64_t at = HEAD_LEN;
	size_t n;
	int rc = -1;

	if (!hash)
		return img_err_errno(&o->err, ENOMEM, "%s", to->path);
	XXH3_128bits_reset(hash);
	head_put(o->buf, h);
	XXH3_128bits_update(hash, o->buf, HEAD_LEN);
	if (io_write(to, o->buf, HEAD_LEN, 0, &o->err) < 0)
		goto out;
	for (; at < o->pos; at += n) {
		n = (size_t)u64_min(o->pos - at, BUF_LEN);
		if (io_read(&o->file, o->buf, n, at, &o->err) < 0 ||
		    io_write(to, o->buf, n, at, &o->err) < 0)
			goto out;
		XXH3_128bits_update(hash, o->buf, n);
	}
	XXH128_canonicalFromHash(&sum, XXH3_128bits_digest(hash));
	rc = io_write(to, sum.digest, SUM_LEN, at, &o->err);
out:
	XXH3_freeState(hash);
	return rc;
}

int sums_out_publish(struct sums_out *o, const char *real, const struct sums_head *h,
		     const struct stat *st)
{
	char *path = sums_path(real);
	struct sums_head head = *h;
	struct stat there;
	struct io_file f;
	struct io_new n;
	int rc = -1;

	put_last(o);
	flush(o);
	head.runs = o->runs;
	if (!path || !o->runs || o->err.code || (lstat(path, &there) == 0 && !is_ours(path)) ||
	    io_create(&n, &f, path, true, &o->err) < 0) {
		free(path);
		return -1;
	}
	if (io_access_like(&f, st, &o->err) == 0 && copy_all(o, &f, &head) == 0)
		rc = io_publish_soon(&n, &o->err);
	io_discard(&n);
	io_close(&f);
	free(path);
	return rc;
}

/* --- reading ------------------------------------------------------------------------------ */

/* Runs from number FIRST on into the buffer. */
static int load(struct sums_in *s, uint64_t first, struct img_err *err)
{
	s->buf_first = first;
	s->buf_n = (size_t)u64_min(s->head.runs - first, BUF_RUNS);
	return io_read(&s->file, s->buf, s->buf_n * RUN_LEN, HEAD_LEN + first * RUN_LEN, err);
}

/* Every byte is right, and every run where it may be. */
static bool check_all(struct sums_in *s, const uint8_t head[HEAD_LEN])
{
	XXH3_state_t *hash = XXH3_createState();
	uint64_t chunk = 0, chunks = sums_chunks(s->head.size);
	uint8_t want[SUM_LEN];
	XXH128_canonical_t sum;
	struct sums_run r;
	bool good = hash;

	if (hash)
		XXH3_128bits_reset(hash);
	if (hash)
		XXH3_128bits_update(hash, head, HEAD_LEN);
	for (uint64_t i = 0; good && i < s->head.runs; i += s->buf_n) {
		good = load(s, i, NULL) == 0;
		if (good)
			XXH3_128bits_update(hash, s->buf, s->buf_n * RUN_LEN);
		for (size_t k = 0; good && k < s->buf_n; k++) {
			run_get(&r, s->buf + k * RUN_LEN);
			good = r.n && r.first >= chunk && r.first < chunks &&
			       r.n <= chunks - r.first;
			chunk = r.first + r.n;
		}
	}
	good = good &&
	       io_read(&s->file, want, SUM_LEN, HEAD_LEN + s->head.runs * RUN_LEN, NULL) == 0;
	if (good) {
		XXH128_canonicalFromHash(&sum, XXH3_128bits_digest(hash));
		good = memcmp(sum.digest, want, SUM_LEN) == 0;
	}
	XXH3_freeState(hash);
	return good;
}

/* Cheap questions first: most that do not fit need not be read. */
static bool check(struct sums_in *s, const struct img *l, const struct sums_head *want,
		  const struct stat *st)
{
	uint8_t head[HEAD_LEN];
	struct stat image;

	if (fstat(l->file.fd, &image) < 0 || (st->st_mode & 022) ||
	    (st->st_uid != image.st_uid && st->st_uid != 0 && st->st_uid != geteuid()))
		return false;
	if (io_read(&s->file, head, sizeof(head), 0, NULL) < 0 || !head_get(&s->head, head))
		return false;
	if (!sums_same(&s->head, want) || s->head.runs > sums_chunks(s->head.size) ||
	    (uint64_t)st->st_size != HEAD_LEN + s->head.runs * RUN_LEN + SUM_LEN)
		return false;
	s->buf = malloc(BUF_LEN);
	return s->buf && check_all(s, head);
}

bool sums_in_open(struct sums_in *s, const struct img *l, const struct sums_head *want)
{
	char *path = sums_path(l->file.real);
	struct stat st;
	bool good;

	memset(s, 0, sizeof(*s));
	io_init(&s->file);
	good = path && open_plain(&s->file, path, &st) && check(s, l, want, &st);
	free(path);
	if (good)
		sums_in_rewind(s);
	else
		sums_in_close(s);
	return good;
}

void sums_in_rewind(struct sums_in *s)
{
	s->next = s->buf_n = s->buf_first = 0;
	s->run = (struct sums_run){0};
}

void sums_in_close(struct sums_in *s)
{
	io_close(&s->file);
	free(s->buf);
	s->buf = NULL;
}

int sums_in_at(struct sums_in *s, uint64_t chunk, uint64_t *n, const uint8_t **sum,
	       struct img_err *err)
{
	const uint64_t chunks = sums_chunks(s->head.size);

	while (s->run.first + s->run.n <= chunk && s->next < s->head.runs) {
		if (s->next >= s->buf_first + s->buf_n && load(s, s->next, err) < 0)
			return -1;
		run_get(&s->run, s->buf + (s->next - s->buf_first) * RUN_LEN);
		s->next++;
	}
	*sum = NULL;
	if (s->run.first > chunk) {
		*n = s->run.first - chunk;
	} else if (s->run.first + s->run.n > chunk) {
		*n = s->run.first + s->run.n - chunk;
		*sum = s->run.sum;
	} else {
		*n = chunks - chunk;
	}
	return 0;
}
