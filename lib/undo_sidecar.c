/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The sidecar, all numbers big-endian:
 *
 *   head     "qsm-undo", u32 version, u32 kind, u64 inode, u64 birth time in ns, u64 old length
 *   records  u64 offset, u64 length, u64 type (1: the bytes follow, 2: zeros); type 0 is the
 *            last one, its offset is the number of records before
 *   sum      XXH3-128 of all before
 *   tail     only of a finished UNDO_KEEP: "qsm-done", u64 length of the file after the change,
 *            XXH3-128 of what it then held where the records point to
 *
 * A change ends with one write to its sidecar, synced: "qsm-void" over the first bytes, or the
 * tail. Names are only tidied up after that: should the old name be back after a crash, it says
 * of itself that it is void.
 *
 * It appears under its name whole and durable or not at all. Anybody who may write to the folder
 * can put a file there: so it must belong to the file's owner, root or us, be writable to nobody
 * else, be a regular file and no symbolic link, name the inode that it was made for, and be
 * right to the last bit before the first byte is written.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bytes.h"
#include "undo_sidecar.h"

#define HEAD_LEN 40u
#define RECORD_LEN 24u
#define SUM_LEN 16u
#define TAIL_LEN 32u
#define BUF_LEN (256u << 10)

enum record_type { REC_END, REC_BYTES, REC_ZEROS };

struct record {
	uint64_t off, len, type;
};

static int sidecar_init(struct sidecar *s, struct img_err *err)
{
	memset(s, 0, sizeof(*s));
	io_init(&s->file);
	s->buf = malloc(BUF_LEN);
	s->hash = XXH3_createState();
	if (!s->buf || !s->hash)
		return img_err_errno(err, ENOMEM, "undo");
	XXH3_128bits_reset(s->hash);
	return 0;
}

void sidecar_free(struct sidecar *s)
{
	io_close(&s->file);
	XXH3_freeState(s->hash);
	free(s->buf);
}

static void hash_final(const XXH3_state_t *h, uint8_t out[SUM_LEN])
{
	XXH128_canonical_t c;

	XXH128_canonicalFromHash(&c, XXH3_128bits_digest(h));
	memcpy(out, c.digest, SUM_LEN);
}

static int identity(struct io_file *f, struct io_id *id, struct img_err *err)
{
	return io_id_get(f->fd, "", AT_EMPTY_PATH, id) < 0
		       ? img_err_errno(err, errno, "%s: cannot stat", f->path)
		       : 0;
}

static int put(struct sidecar *s, const void *buf, size_t len, struct img_err *err)
{
	XXH3_128bits_update(s->hash, buf, len);
	if (io_write(&s->file, buf, len, s->pos, err) < 0)
		return -1;
	s->pos += len;
	return 0;
}

static int put_record(struct sidecar *s, uint64_t off, uint64_t len, enum record_type type,
		      struct img_err *err)
{
	uint8_t r[RECORD_LEN];

	be64_put(r, off);
	be64_put(r + 8, len);
	be64_put(r + 16, type);
	return put(s, r, sizeof(r), err);
}

static int put_head(struct sidecar *s, struct io_file *f, struct img_err *err)
{
	uint8_t h[HEAD_LEN] = "qsm-undo";

	if (identity(f, &s->id, err) < 0)
		return -1;
	be32_put(h + 8, 1);
	be32_put(h + 12, s->kind);
	be64_put(h + 16, s->id.ino);
	be64_put(h + 24, s->id.birth);
	be64_put(h + 32, s->length);
	return put(s, h, sizeof(h), err);
}

/* One record for each run of data or hole. */
static int put_range(struct sidecar *s, struct io_file *f, uint64_t off, uint64_t len,
		     uint64_t *records, struct img_err *err)
{
	while (len) {
		uint64_t n = len;
		bool hole;

		if (io_extent(f, off, &n, &hole, err) < 0 ||
		    put_record(s, off, n, hole ? REC_ZEROS : REC_BYTES, err) < 0)
			return -1;
		++*records;
		for (uint64_t done = 0; !hole && done < n;) {
			size_t part = (size_t)u64_min(n - done, BUF_LEN);

			if (io_read(f, s->buf, part, off + done, err) < 0 ||
			    put(s, s->buf, part, err) < 0)
				return -1;
			done += part;
		}
		off += n;
		len -= n;
	}
	return 0;
}

static int put_all(struct sidecar *s, struct io_file *f, const struct undo_range *r, size_t n,
		   struct img_err *err)
{
	uint64_t records = 0;
	uint8_t sum[SUM_LEN];

	if (io_size(f, &s->length, err) < 0 || put_head(s, f, err) < 0)
		return -1;
	for (size_t i = 0; i < n; i++)
		if (r[i].off < s->length &&
		    put_range(s, f, r[i].off, u64_min(r[i].len, s->length - r[i].off), &records,
			      err) < 0)
			return -1;
	if (put_record(s, records, 0, REC_END, err) < 0)
		return -1;
	hash_final(s->hash, sum);
	return put(s, sum, sizeof(sum), err);
}

/* Secret like the disk, and its owner's: whoever opens the disk must be able to use it. */
static int set_access(struct sidecar *s, struct io_file *f, struct img_err *err)
{
	struct stat st;

	if (fstat(f->fd, &st) < 0 || fchmod(s->file.fd, 0600) < 0)
		return img_err_errno(err, errno, "%s: cannot set the mode", s->file.path);
	if (geteuid() == 0 && fchown(s->file.fd, st.st_uid, st.st_gid) < 0)
		return img_err_errno(err, errno, "%s: cannot set the owner", s->file.path);
	return 0;
}

int sidecar_save(const char *path, struct io_file *f, enum undo_kind kind,
		 const struct undo_range *r, size_t n, struct img_err *err)
{
	struct sidecar s;
	struct io_new new;
	int rc = -1;

	if (sidecar_init(&s, err) < 0)
		goto out;
	s.kind = kind;
	if (io_create(&new, &s.file, path, false, err) < 0)
		goto out;
	if (set_access(&s, f, err) == 0 && put_all(&s, f, r, n, err) == 0)
		rc = io_publish(&new, false, err);
	io_discard(&new);
out:
	sidecar_free(&s);
	return rc;
}

static int bad(struct sidecar *s, const char *why, struct img_err *err)
{
	return img_err_set(err, IMG_DATA, "%s: %s; not used, the file beside it was not touched",
			   s->file.path, why);
}

static int get(struct sidecar *s, void *buf, size_t len, struct img_err *err)
{
	if (s->size - s->pos < len)
		return bad(s, "cut off", err);
	if (io_read(&s->file, buf, len, s->pos, err) < 0)
		return -1;
	XXH3_128bits_update(s->hash, buf, len);
	s->pos += len;
	return 0;
}

static int check_owner(struct sidecar *s, struct io_file *f, const struct stat *link,
		       struct img_err *err)
{
	struct stat st, disk;

	if (fstat(s->file.fd, &st) < 0 || fstat(f->fd, &disk) < 0)
		return img_err_errno(err, errno, "%s: cannot stat", s->file.path);
	if (st.st_dev != link->st_dev || st.st_ino != link->st_ino)
		return bad(s, "a symbolic link, or it was replaced just now", err);
	if (st.st_uid != disk.st_uid && st.st_uid != geteuid() && st.st_uid != 0)
		return bad(s, "belongs to another user than the disk", err);
	if (st.st_mode & 022)
		return bad(s, "others may write to it", err);
	return 0;
}

int sidecar_open(struct sidecar *s, struct io_file *f, const char *path, bool writable,
		 struct img_err *err)
{
	uint8_t h[HEAD_LEN];
	struct stat link;

	if (sidecar_init(s, err) < 0)
		return -1;
	if (lstat(path, &link) < 0)
		return img_err_errno(err, errno, "%s", path);
	if (!S_ISREG(link.st_mode))
		return img_err_set(err, IMG_DATA, "%s: not a regular file", path);
	if (io_open(&s->file, path, writable, err) < 0 || io_size(&s->file, &s->size, err) < 0 ||
	    check_owner(s, f, &link, err) < 0 || get(s, h, sizeof(h), err) < 0)
		return -1;
	s->kind = be32_get(h + 12);
	if (memcmp(h, "qsm-undo", 8) != 0 || be32_get(h + 8) != 1 ||
	    (s->kind != UNDO_ROLLBACK && s->kind != UNDO_KEEP))
		return bad(s, "not what this version saves", err);
	s->id.ino = be64_get(h + 16);
	s->id.birth = be64_get(h + 24);
	s->length = be64_get(h + 32);
	return s->length > INT64_MAX ? bad(s, "an impossible length", err) : 0;
}

int sidecar_check_identity(struct sidecar *s, struct io_file *f, struct img_err *err)
{
	struct io_id id;

	if (identity(f, &id, err) < 0)
		return -1;
	if (id.ino == s->id.ino && id.birth == s->id.birth)
		return 0;
	return img_err_set(
		err, IMG_DATA,
		"%s: saved from another file (inode %" PRIu64 ") than %s (inode %" PRIu64
		"); if both were copied together use vhd-check --undo --force, else remove it",
		s->file.path, s->id.ino, f->path, id.ino);
}

/* Calls FN (may be NULL) for each record, positioned at its bytes, which FN may leave unread. */
static int each_record(struct sidecar *s,
		       int (*fn)(void *ctx, struct sidecar *s, const struct record *r,
				 struct img_err *err),
		       void *ctx, struct img_err *err)
{
	uint8_t h[RECORD_LEN];

	for (uint64_t n = 0;; n++) {
		if (get(s, h, sizeof(h), err) < 0)
			return -1;
		struct record r = {be64_get(h), be64_get(h + 8), be64_get(h + 16)};
		uint64_t end;

		if (r.type == REC_END)
			return r.off == n ? 0 : bad(s, "a wrong number of records", err);
		if (r.type > REC_ZEROS || !u64_add(r.off, r.len, &end) || end > s->length ||
		    (r.type == REC_BYTES && r.len > s->size - s->pos))
			return bad(s, "a record outside the file", err);
		end = s->pos + (r.type == REC_BYTES ? r.len : 0);
		if (fn && fn(ctx, s, &r, err) < 0)
			return -1;
		s->pos = end;
	}
}

/* Reading is all: get() adds to the hash. */
static int hash_record(void *ctx, struct sidecar *s, const struct record *r, struct img_err *err)
{
	(void)ctx;
	for (uint64_t left = r->type == REC_BYTES ? r->len : 0; left;) {
		size_t n = (size_t)u64_min(left, BUF_LEN);

		if (get(s, s->buf, n, err) < 0)
			return -1;
		left -= n;
	}
	return 0;
}

/* Every bit is what was saved; afterwards S stands behind the head again. */
static int verify(struct sidecar *s, struct img_err *err)
{
	uint8_t want[SUM_LEN], got[SUM_LEN];

	if (each_record(s, hash_record, NULL, err) < 0)
		return -1;
	hash_final(s->hash, want);
	if (get(s, got, sizeof(got), err) < 0)
		return -1;
	if (memcmp(want, got, SUM_LEN) != 0)
		return bad(s, "wrong checksum", err);
	s->pos = HEAD_LEN;
	return 0;
}

static int restore_record(void *ctx, struct sidecar *s, const struct record *r, struct img_err *err)
{
	struct io_file *f = ctx;

	if (r->type == REC_ZEROS)
		return io_zero(f, r->off, r->len, err);
	for (uint64_t done = 0; done < r->len;) {
		size_t n = (size_t)u64_min(r->len - done, BUF_LEN);

		if (get(s, s->buf, n, err) < 0 || io_write(f, s->buf, n, r->off + done, err) < 0)
			return -1;
		done += n;
	}
	return 0;
}

int sidecar_restore(struct sidecar *s, struct io_file *f, struct img_err *err)
{
	uint64_t size;

	if (verify(s, err) < 0 || each_record(s, restore_record, f, err) < 0 ||
	    io_size(f, &size, err) < 0)
		return -1;
	return size == s->length ? 0 : io_truncate(f, s->length, err);
}

/* What the file holds now where the records point to. */
struct present {
	struct io_file *f;
	XXH3_state_t *hash;
	uint64_t size;
};

static int hash_present(void *ctx, struct sidecar *s, const struct record *r, struct img_err *err)
{
	struct present *p = ctx;
	uint64_t end = u64_min(r->off + r->len, p->size);

	for (uint64_t off = r->off; off < end;) {
		uint64_t n = end - off;
		bool hole;

		if (io_extent(p->f, off, &n, &hole, err) < 0)
			return -1;
		/* A hole is as good as the zeros that it reads as, but may be large. */
		n = hole && r->type == REC_ZEROS ? n : u64_min(n, BUF_LEN);
		if (!hole || r->type != REC_ZEROS) {
			if (io_read(p->f, s->buf, (size_t)n, off, err) < 0)
				return -1;
			XXH3_128bits_update(p->hash, s->buf, (size_t)n);
		}
		off += n;
	}
	return 0;
}

/* S stands behind its head, and behind its sum afterwards. */
static int make_tail(struct sidecar *s, struct io_file *f, uint8_t tail[TAIL_LEN],
		     struct img_err *err)
{
	struct present p = {.f = f, .hash = XXH3_createState()};
	int rc = -1;

	if (!p.hash)
		return img_err_errno(err, ENOMEM, "undo");
	XXH3_128bits_reset(p.hash);
	if (io_size(f, &p.size, err) == 0 && each_record(s, hash_present, &p, err) == 0) {
		memcpy(tail, "qsm-done", 8);
		be64_put(tail + 8, p.size);
		hash_final(p.hash, tail + 16);
		s->pos += SUM_LEN;
		rc = 0;
	}
	XXH3_freeState(p.hash);
	return rc;
}

int sidecar_check_unchanged(struct sidecar *s, struct io_file *f, struct img_err *err)
{
	uint8_t want[TAIL_LEN], got[TAIL_LEN];

	if (verify(s, err) < 0 || make_tail(s, f, want, err) < 0 ||
	    get(s, got, sizeof(got), err) < 0)
		return -1;
	if (memcmp(want, got, TAIL_LEN) == 0)
		return 0;
	return img_err_set(err, IMG_DATA,
			   "%s: changed since %s was saved; only --force puts the old bytes back",
			   f->path, s->file.path);
}

int sidecar_end(struct sidecar *s, struct io_file *f, struct img_err *err)
{
	uint8_t tail[TAIL_LEN];

	if (s->kind != UNDO_KEEP) {
		if (io_write(&s->file, "qsm-void", 8, 0, err) < 0)
			return -1;
	} else if (make_tail(s, f, tail, err) < 0 ||
		   io_write(&s->file, tail, sizeof(tail), s->pos, err) < 0) {
		return -1;
	}
	return io_sync(&s->file, err);
}

int sidecar_state(const char *path, enum sidecar_state *state, struct img_err *err)
{
	uint8_t head[8] = "", tail[8] = "";
	struct io_file f;
	struct stat st;
	uint64_t size;
	size_t got;
	int rc = -1;

	*state = SIDECAR_WANTED;
	if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode) || io_open(&f, path, false, NULL) < 0)
		return 0; /* whoever wants to use it finds out, and reports, why it cannot be */
	if (io_size(&f, &size, err) < 0 || io_read_upto(&f, head, sizeof(head), 0, &got, err) < 0 ||
	    (size >= TAIL_LEN && io_read(&f, tail, sizeof(tail), size - TAIL_LEN, err) < 0))
		goto out;
	/* Without a tail, the length of the last record stands there: 0. */
	if (memcmp(head, "qsm-void", 8) == 0)
		*state = SIDECAR_VOID;
	else if (memcmp(head, "qsm-undo", 8) == 0 && memcmp(tail, "qsm-done", 8) == 0)
		*state = SIDECAR_DONE;
	/* The word must be on the disk before anybody relies on it. */
	rc = *state == SIDECAR_WANTED ? 0 : io_sync(&f, err);
out:
	io_close(&f);
	return rc;
}

int sidecar_drop_tail(const char *path, struct img_err *err)
{
	struct io_file f;
	uint64_t size;
	enum sidecar_state state;
	int rc = -1;

	if (sidecar_state(path, &state, err) < 0 || io_open(&f, path, true, err) < 0)
		return -1;
	if (state != SIDECAR_DONE)
		rc = 0;
	else if (io_size(&f, &size, err) == 0 && io_truncate(&f, size - TAIL_LEN, err) == 0)
		rc = io_sync(&f, err);
	io_close(&f);
	return rc;
}
