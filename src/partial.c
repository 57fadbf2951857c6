/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "bytes.h"
#include "partial.h"

/*
 * Log: MAGIC, then records: u32 type, u32 length, payload, XXH3-64 of all that, seeded by that of
 * the record before. Little-endian. A mark only counts after a whole head, chunks only before a
 * mark. What an older transfer, or an older run, has left behind the end does not fit to what was
 * written since: a power cut may leave some of both.
 */
static const uint8_t magic[8] = {'q', 's', 'm', 'p', 'a', 'r', 't', '2'};
enum { HEAD = 1, CHUNKS = 2, MARK = 3, APPLY = 4, DONE = 5 };
enum { RECORD_HEAD = 8, RECORD_SUM = 8, MARK_LEN = 104 + 24, CHUNK_LEN = 32 };
enum { MAX_RECORD = 64 << 10, MAX_RUNS = (MAX_RECORD - 64) / CHUNK_LEN, WAIT_SECONDS = 10 };
enum { FLAG_COMPLETE = 1 };

/* N chunks with the same sum. */
struct run {
	uint64_t first, n;
	uint8_t sum[IMG_SUM_BYTES];
};

struct partial {
	const char *file;
	char *image, *child, *path; /* the last one: of the log */
	struct io_file log;
	uint64_t end;	/* of the log: behind the last mark, or where the next record goes */
	uint64_t chain; /* the sum of the record before that */
	bool begun, marked, complete, applied, done, in_use;
	struct partial_head head;
	struct stream_mark mark;
	uint64_t image_end, time, id; /* of the image, with whatever name: file_id() */
	struct run runs[MAX_RUNS];
	size_t nruns;
	/* the thread that waits for the disk */
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t change;
	bool started, quit;
	bool begin, beginning; /* what was written shall go to the disk; it does */
	/* the mark that is being made durable */
	bool busy;
	struct img_new *new;
	struct stream_mark next;
	bool next_complete;
	uint64_t next_end;
	struct img_err err; /* of the thread */
};

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

/*
 * What tells a file from all others. The inode of one that is removed soon belongs to another file:
 * with the time of birth, where the system tells it, it does not.
 */
static int file_id(const char *path, uint64_t *id)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return -1;
	*id = st.st_ino;
#ifdef STATX_BTIME
	struct statx sx;

	/* Where it is not known, or not allowed, it never is. */
	if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &sx) < 0) {
		if (errno != ENOSYS && errno != EPERM)
			return -1;
	} else if (sx.stx_mask & STATX_BTIME) {
		const uint64_t all[] = {sx.stx_ino, (uint64_t)sx.stx_btime.tv_sec,
					sx.stx_btime.tv_nsec};

		*id = XXH3_64bits(all, sizeof(all));
	}
#endif
	return 0;
}

/* The image has FILE's name already: the end of the work was interrupted. */
bool partial_is_published(const struct partial *p)
{
	uint64_t id;

	return partial_is_complete(p) &&
	       (p->done || (file_id(partial_final(p), &id) == 0 && id == p->id));
}

void partial_token(const struct partial *p, char out[STREAM_TOKEN_STR])
{
	struct stream_token t = p->head.what;

	t.mark = p->mark;
	stream_token_put(&t, out);
}

/* The records of the log */

static int append(struct partial *p, uint32_t type, const void *payload, size_t len,
		  struct img_err *err)
{
	uint8_t buf[MAX_RECORD + RECORD_HEAD + RECORD_SUM];
	size_t n = RECORD_HEAD + len;

	le32_put(buf, type);
	le32_put(buf + 4, (uint32_t)len);
	memcpy(buf + RECORD_HEAD, payload, len);
	le64_put(buf + n, XXH3_64bits_withSeed(buf, n, p->chain));
	if (io_write(&p->log, buf, n + RECORD_SUM, p->end, err))
		return -1;
	p->chain = le64_get(buf + n);
	p->end += n + RECORD_SUM;
	return 0;
}

/*
 * 1, or 0 at the end of what is whole: what cannot be read is no end. BUF has MAX_RECORD bytes;
 * *CHAIN begins with 0.
 */
static int next(struct partial *p, uint64_t *at, uint64_t *chain, uint32_t *type, uint8_t *buf,
		size_t *len, struct img_err *err)
{
	uint8_t rec[MAX_RECORD + RECORD_HEAD + RECORD_SUM];
	size_t got, n;

	if (io_read_upto(&p->log, rec, RECORD_HEAD, *at, &got, err))
		return -1;
	if (got < RECORD_HEAD)
		return 0;
	*type = le32_get(rec);
	*len = le32_get(rec + 4);
	if (*len > MAX_RECORD)
		return 0;
	n = RECORD_HEAD + *len;
	if (io_read_upto(&p->log, rec, n + RECORD_SUM, *at, &got, err))
		return -1;
	if (got < n + RECORD_SUM || le64_get(rec + n) != XXH3_64bits_withSeed(rec, n, *chain))
		return 0;
	memcpy(buf, rec + RECORD_HEAD, *len);
	*chain = le64_get(rec + n);
	*at += n + RECORD_SUM;
	return 1;
}

enum { HEAD_FIXED = 136 };

static size_t head_put(const struct partial_head *h, uint8_t *b)
{
	size_t n = strlen(h->parent);

	memset(b, 0, HEAD_FIXED);
	memcpy(b, h->what.stream_id, 16);
	memcpy(b + 16, h->what.uuid, 16);
	memcpy(b + 32, h->what.base_uuid, 16);
	memcpy(b + 48, h->what.source, 16);
	memcpy(b + 64, h->uuid, 16);
	le64_put(b + 80, h->what.size);
	le64_put(b + 88, h->began);
	le32_put(b + 96, h->block_size);
	le32_put(b + 100, (uint32_t)h->type);
	le32_put(b + 104, (uint32_t)h->what.kind);
	b[108] = h->what.has_source;
	b[109] = h->what.compressed;
	b[110] = h->onto;
	memcpy(b + 112, h->base, 16);
	memcpy(b + HEAD_FIXED, h->parent, n);
	return HEAD_FIXED + n;
}

static bool head_get(struct partial_head *h, const uint8_t *b, size_t len)
{
	memset(h, 0, sizeof(*h));
	if (len < HEAD_FIXED || len - HEAD_FIXED >= sizeof(h->parent))
		return false;
	memcpy(h->what.stream_id, b, 16);
	memcpy(h->what.uuid, b + 16, 16);
	memcpy(h->what.base_uuid, b + 32, 16);
	memcpy(h->what.source, b + 48, 16);
	memcpy(h->uuid, b + 64, 16);
	h->what.size = le64_get(b + 80);
	h->began = le64_get(b + 88);
	h->block_size = le32_get(b + 96);
	h->type = (enum img_type)le32_get(b + 100);
	h->what.kind = (enum stream_kind)le32_get(b + 104);
	h->what.has_source = b[108];
	h->what.compressed = b[109];
	h->onto = b[110];
	memcpy(h->base, b + 112, 16);
	memcpy(h->parent, b + HEAD_FIXED, len - HEAD_FIXED);
	return true;
}

static void mark_put(uint8_t *b, const struct stream_mark *m, uint64_t end, uint64_t id,
		     bool complete)
{
	memset(b, 0, MARK_LEN);
	le64_put(b, m->seq);
	le64_put(b + 8, m->wire_bytes);
	le64_put(b + 16, m->off);
	memcpy(b + 24, m->sum, 16);
	memcpy(b + 40, m->trail, 16);
	le64_put(b + 56, m->data_records);
	le64_put(b + 64, m->zero_records);
	le64_put(b + 72, m->data_bytes);
	le64_put(b + 80, m->zero_bytes);
	le64_put(b + 88, m->checkpoints);
	le64_put(b + 96, end);
	le64_put(b + 104, (uint64_t)time(NULL));
	le64_put(b + 112, id);
	b[120] = complete ? FLAG_COMPLETE : 0;
}

static void mark_get(struct partial *p, const uint8_t *b)
{
	struct stream_mark *m = &p->mark;

	m->seq = le64_get(b);
	m->wire_bytes = le64_get(b + 8);
	m->off = le64_get(b + 16);
	memcpy(m->sum, b + 24, 16);
	memcpy(m->trail, b + 40, 16);
	m->data_records = le64_get(b + 56);
	m->zero_records = le64_get(b + 64);
	m->data_bytes = le64_get(b + 72);
	m->zero_bytes = le64_get(b + 80);
	m->checkpoints = le64_get(b + 88);
	p->image_end = le64_get(b + 96);
	p->time = le64_get(b + 104);
	p->id = le64_get(b + 112);
	p->complete = b[120] & FLAG_COMPLETE;
	p->marked = true;
}

/* The image of the last mark is there, or a mark says nothing. */
static int check_image(struct partial *p, struct img_err *err)
{
	uint64_t id;

	if (!p->marked)
		return 0;
	if (p->complete && p->done)
		return 0;
	if (p->complete && file_id(partial_final(p), &id) == 0) {
		if (id == p->id)
			return 0;
	} else if (p->complete && errno != ENOENT) {
		return img_err_errno(err, errno, "%s", partial_final(p));
	}
	if (file_id(p->image, &id) == 0)
		p->marked = id == p->id;
	else if (errno == ENOENT)
		p->marked = false;
	else
		return img_err_errno(err, errno, "%s", p->image);
	return 0;
}

/* Up to the last mark. A log that cannot be read does not tell that nothing is there. */
static int load(struct partial *p, struct img_err *err)
{
	uint8_t buf[MAX_RECORD], start[8];
	uint64_t at = sizeof(magic), chain = 0;
	struct stat st;
	uint32_t type;
	size_t len;
	int more;

	if (io_read_upto(&p->log, start, sizeof(start), 0, &len, err))
		return -1;
	if (len < sizeof(start) || memcmp(start, magic, sizeof(magic)) != 0)
		return 0;
	while ((more = next(p, &at, &chain, &type, buf, &len, err)) > 0) {
		if (type == HEAD && at == sizeof(magic) + RECORD_HEAD + len + RECORD_SUM)
			p->begun = head_get(&p->head, buf, len);
		if (type == MARK && len == MARK_LEN && p->begun) {
			mark_get(p, buf);
			p->end = at;
			p->chain = chain;
		}
		if ((type == APPLY || type == DONE) && p->complete) {
			p->applied = true;
			p->done = type == DONE;
			p->end = at;
			p->chain = chain;
		}
	}
	/* Once it is being merged, only a merge that has come to its end removes the child. */
	if (p->marked && p->applied && lstat(p->child, &st) < 0 && errno == ENOENT)
		p->done = true;
	return more < 0 ? -1 : check_image(p, err);
}

/* Locks */

static bool same_file(const struct partial *p)
{
	struct stat a, b;

	return fstat(p->log.fd, &a) == 0 && lstat(p->path, &b) == 0 && a.st_ino == b.st_ino &&
	       a.st_dev == b.st_dev;
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

static int open_log(struct partial *p, bool make, struct img_err *err)
{
	return (make && make_log(p, err)) || io_open(&p->log, p->path, true, err) ? -1 : 0;
}

/* In a folder that others may write to: whoever made the log says what is in the image. */
static int check_owner(const struct partial *p, struct img_err *err)
{
	struct stat st;

	if (fstat(p->log.fd, &st) < 0)
		return img_err_errno(err, errno, "%s", p->path);
	if (st.st_uid == geteuid() || st.st_uid == 0)
		return 0;
	return img_err_set(err, IMG_PERM,
			   "%s: belongs to another user (%lu); go on as that one, or remove it",
			   p->path, (unsigned long)st.st_uid);
}

/* One that was just removed by its owner is no lock: then once more. 1: there is none. */
static int lock_log(struct partial *p, enum partial_open how, struct img_err *err)
{
	const struct timespec pause = {0, 100000000};
	const bool make = how == PARTIAL_MAKE;

	for (int tries = 0; tries < 10 * WAIT_SECONDS && !cli_interrupted(); tries++) {
		struct stat st;

		if (!make && lstat(p->path, &st) < 0 && errno == ENOENT)
			return 1;
		if (open_log(p, make, err))
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

static void end_thread(struct partial *p)
{
	if (!p->started)
		return;
	pthread_mutex_lock(&p->mutex);
	p->quit = true;
	pthread_cond_broadcast(&p->change);
	pthread_mutex_unlock(&p->mutex);
	pthread_join(p->thread, NULL);
	p->started = false;
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
	end_thread(p);
	forget(p);
}

static int unlink_if_there(const char *path, struct img_err *err)
{
	if (unlink(path) < 0 && errno != ENOENT)
		return img_err_errno(err, errno, "%s: cannot remove", path);
	return 0;
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

/*
 * Before the image changes: a mark that became durable, while something before it did not, would
 * count again as soon as that is written anew, and what it says of the image would not hold.
 */
static int forget_from(struct partial *p, uint64_t end, struct img_err *err)
{
	return io_truncate(&p->log, end, err) || io_sync(&p->log, err) ? -1 : 0;
}

int partial_begin(struct partial *p, const struct partial_head *head, struct img_err *err)
{
	uint8_t buf[MAX_RECORD];
	uint64_t size;

	if (head->onto && check_child(p, err))
		return -1;
	p->marked = p->complete = p->applied = p->done = false;
	p->head = *head;
	/* The old image's inode may be the new one's. */
	if (io_size(&p->log, &size, err) || (size && forget_from(p, 0, err)) ||
	    unlink_if_there(p->image, err) || (head->onto && unlink_if_there(p->child, err)) ||
	    io_write(&p->log, magic, sizeof(magic), 0, err))
		return -1;
	p->end = sizeof(magic);
	p->chain = 0;
	p->begun = true;
	return append(p, HEAD, buf, head_put(head, buf), err);
}

/* Sums of the chunks */

static int flush_runs(struct partial *p, struct img_err *err)
{
	uint8_t buf[MAX_RECORD];

	if (!p->nruns)
		return 0;
	for (size_t i = 0; i < p->nruns; i++) {
		le64_put(buf + i * CHUNK_LEN, p->runs[i].first);
		le64_put(buf + i * CHUNK_LEN + 8, p->runs[i].n);
		memcpy(buf + i * CHUNK_LEN + 16, p->runs[i].sum, IMG_SUM_BYTES);
	}
	if (append(p, CHUNKS, buf, p->nruns * CHUNK_LEN, err))
		return -1;
	p->nruns = 0;
	return 0;
}

void partial_chunks(struct partial *p, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	struct run *last = p->nruns ? &p->runs[p->nruns - 1] : NULL;

	if (last && first == last->first + last->n && memcmp(last->sum, sum, IMG_SUM_BYTES) == 0) {
		last->n += n;
		return;
	}
	/* A failure shows when the next mark is to be made. */
	if (p->nruns == MAX_RUNS && (partial_wait(p, &p->err) || flush_runs(p, &p->err)))
		return;
	p->runs[p->nruns++] = (struct run){.first = first, .n = n};
	memcpy(p->runs[p->nruns - 1].sum, sum, IMG_SUM_BYTES);
}

/* One record of sums, below chunk LIMIT; they must follow one another. */
static bool replay(const uint8_t *buf, size_t len, uint64_t *chunk, uint64_t limit,
		   struct img_sum *content)
{
	for (size_t i = 0; i + CHUNK_LEN <= len; i += CHUNK_LEN) {
		uint64_t first = le64_get(buf + i), n = le64_get(buf + i + 8);

		if (first != *chunk || n > limit - first)
			return false;
		img_sum_known(content, buf + i + 16, n);
		*chunk += n;
	}
	return true;
}

int partial_resume(struct partial *p, struct img_sum *content, struct img_err *err)
{
	uint64_t at = sizeof(magic), chain = 0, chunk = 0;
	uint64_t limit = (p->mark.off + IMG_SUM_CHUNK - 1) / IMG_SUM_CHUNK;
	uint8_t buf[MAX_RECORD];
	uint32_t type;
	size_t len;
	int more = 0;

	while (content && at < p->end && (more = next(p, &at, &chain, &type, buf, &len, err)) > 0)
		if (type == CHUNKS && at <= p->end && !replay(buf, len, &chunk, limit, content))
			break;
	if (more < 0)
		return -1;
	if (content && chunk != limit)
		return img_err_set(err, IMG_DATA,
				   "%s: the partial result is damaged; vhd-recv --abort drops it",
				   p->file);
	return forget_from(p, p->end, err);
}

void partial_each(struct partial *p,
		  void (*fn)(void *ctx, uint64_t first, uint64_t n,
			     const uint8_t sum[IMG_SUM_BYTES]),
		  void *ctx)
{
	uint8_t buf[MAX_RECORD];
	uint64_t at = sizeof(magic), chain = 0;
	struct img_err ignored = {0};
	uint32_t type;
	size_t len;

	/* Sums are not needed. */
	while (at < p->end && next(p, &at, &chain, &type, buf, &len, &ignored) > 0)
		for (size_t i = 0; type == CHUNKS && i + CHUNK_LEN <= len; i += CHUNK_LEN)
			fn(ctx, le64_get(buf + i), le64_get(buf + i + 8), buf + i + 16);
}

/* Marks */

static void settle(struct partial *p, struct img_new *new)
{
	uint8_t buf[MARK_LEN];

	mark_put(buf, &p->next, p->next_end, p->id, p->next_complete);
	if (img_create_sync(new, &p->err) || append(p, MARK, buf, sizeof(buf), &p->err) ||
	    io_sync(&p->log, &p->err))
		return;
	p->mark = p->next;
	p->image_end = p->next_end;
	p->complete = p->next_complete;
	p->marked = true;
}

/* The disk's work, beside the stream's: marks, and between them a start with what was written. */
static void *serve(void *arg)
{
	struct partial *p = arg;

	pthread_mutex_lock(&p->mutex);
	while (!p->quit) {
		struct img_new *new = p->new;

		if (p->busy) {
			pthread_mutex_unlock(&p->mutex);
			settle(p, new);
			pthread_mutex_lock(&p->mutex);
			p->busy = false;
			pthread_cond_broadcast(&p->change);
		} else if (p->begin) {
			p->begin = false;
			p->beginning = true;
			pthread_mutex_unlock(&p->mutex);
			img_writeback(img_new_chain(new));
			pthread_mutex_lock(&p->mutex);
			p->beginning = false;
			pthread_cond_broadcast(&p->change);
		} else {
			pthread_cond_wait(&p->change, &p->mutex);
		}
	}
	pthread_mutex_unlock(&p->mutex);
	return NULL;
}

static bool start(struct partial *p)
{
	if (!p->started)
		p->started = pthread_create(&p->thread, NULL, serve, p) == 0;
	return p->started;
}

/* For the mark that is under way; its failure is that of all that come. */
static int wait_mark(struct partial *p, struct img_err *err)
{
	pthread_mutex_lock(&p->mutex);
	while (p->busy)
		pthread_cond_wait(&p->change, &p->mutex);
	pthread_mutex_unlock(&p->mutex);
	return p->err.code ? img_err_set(err, p->err.code, "%s", p->err.msg) : 0;
}

int partial_wait(struct partial *p, struct img_err *err)
{
	int rc = wait_mark(p, err);

	pthread_mutex_lock(&p->mutex);
	p->begin = false;
	while (p->beginning)
		pthread_cond_wait(&p->change, &p->mutex);
	pthread_mutex_unlock(&p->mutex);
	return rc;
}

void partial_writeback(struct partial *p, struct img_new *new)
{
	if (!start(p))
		return;
	pthread_mutex_lock(&p->mutex);
	p->new = new;
	p->begin = true;
	pthread_cond_broadcast(&p->change);
	pthread_mutex_unlock(&p->mutex);
}

/* Hands the mark to the thread, or without one does what it would. */
static void hand_over(struct partial *p, struct img_new *new)
{
	if (!start(p)) {
		settle(p, new);
		return;
	}
	pthread_mutex_lock(&p->mutex);
	p->new = new;
	p->busy = true;
	p->begin = false;
	pthread_cond_broadcast(&p->change);
	pthread_mutex_unlock(&p->mutex);
}

int partial_set_mark(struct partial *p, struct img_new *new, const struct stream_mark *mark,
		     bool last, struct img_err *err)
{
	bool first;

	if (wait_mark(p, err) || flush_runs(p, err))
		return -1;
	first = !p->marked;
	if (img_create_settle(new, &p->next_end, err))
		return -1;
	if (file_id(p->image, &p->id))
		return img_err_errno(err, errno, "%s: somebody removed the partial result",
				     p->file);
	p->next = *mark;
	p->next_complete = last;
	/* The names must be durable before the mark counts. */
	if (first && io_sync_dir_of(p->path, err))
		return -1;
	hand_over(p, new);
	return last || !p->started ? partial_wait(p, err) : 0;
}

static int note(struct partial *p, uint32_t type, bool *what, struct img_err *err)
{
	if (*what)
		return 0;
	if (append(p, type, "", 0, err) || io_sync(&p->log, err))
		return -1;
	*what = true;
	return 0;
}

int partial_apply(struct partial *p, struct img_err *err)
{
	return note(p, APPLY, &p->applied, err);
}

int partial_done(struct partial *p, struct img_err *err)
{
	return note(p, DONE, &p->done, err);
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
	if (image && (unlink_if_there(p->image, err) || unlink_if_there(p->child, err)))
		return -1;
	if (unlink_if_there(p->path, err))
		return -1;
	/* A log that comes back after power loss only says that all is done. */
	return image ? io_sync_dir_of(p->path, err) : 0;
}
