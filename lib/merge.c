/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Folding a child into its parent, in place. The child masks every sector that is being moved, so what the guest sees through it never
 * changes; it needs the parent's footers, header and BAT to be sound at every moment. While
 * the merge is under way the parent alone is neither the old disk nor the new one: a marker
 * beside it says so, and it opens through this child only.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "img_impl.h"

#define MARKER_SUFFIX ".merging"
#define MARKER_MAGIC "qsm-merge 1\nchild-uuid "
#define COPY_MAX (64u << 10) /* above it the kernel copies */
#define WRITEBACK_STEP (32u << 20)

static char *marker_path(const char *real)
{
	char *path;

	return asprintf(&path, "%s" MARKER_SUFFIX, real) < 0 ? NULL : path;
}

static int parse_marker(const char *path, const char *text, struct img_marker *m, struct img_err *err)
{
	const char *p = text + strlen(MARKER_MAGIC);

	if (strncmp(text, MARKER_MAGIC, strlen(MARKER_MAGIC)) != 0 || strlen(p) < 33)
		goto bad;
	for (int i = 0; i < 16; i++, p += 2) {
		unsigned byte;

		if (sscanf(p, "%2x", &byte) != 1)
			goto bad;
		m->child_uuid[i] = (uint8_t)byte;
	}
	if (strncmp(p, "\nchild ", 7) != 0)
		goto bad;
	snprintf(m->child, sizeof(m->child), "%s", p + 7);
	m->present = true;
	return 0;
bad:
	return img_err_set(err, IMG_DATA, "%s: not a merge marker; the disk beside it may be half merged", path);
}

int img_marker_read(const char *real, struct img_marker *m, struct img_err *err)
{
	char *path = marker_path(real), text[4096 + 128] = "";
	struct io_file f;
	struct stat st;
	size_t got;
	int rc = 0;

	memset(m, 0, sizeof(*m));
	if (!path)
		return img_err_errno(err, ENOMEM, "%s", real);
	/* No marker can have a name that is too long: the merge that would make it is refused. */
	if (lstat(path, &st) == 0 || (errno != ENOENT && errno != ENAMETOOLONG)) {
		rc = io_open(&f, path, false, err);
		if (rc == 0) {
			rc = io_read_upto(&f, text, sizeof(text) - 1, 0, &got, err);
			io_close(&f);
		}
		if (rc == 0)
			rc = parse_marker(path, text, m, err);
	}
	free(path);
	return rc;
}

static int marker_write(struct img *parent, const struct img *child, struct img_err *err)
{
	char *path = marker_path(parent->file.real), *text = NULL, hex[33];
	int rc;

	for (int i = 0; i < 16; i++)
		snprintf(hex + 2 * i, 3, "%02x", child->info.uuid[i]);
	if (!path || asprintf(&text, MARKER_MAGIC "%s\nchild %s", hex, child->file.real) < 0)
		rc = img_err_errno(err, ENOMEM, "%s", parent->file.path);
	else
		rc = io_store(path, text, strlen(text), 0600, err);
	free(text);
	free(path);
	return rc;
}

static int marker_remove(struct img *parent, struct img_err *err)
{
	char *path = marker_path(parent->file.real);
	int rc = path ? io_unlink(path, err) : img_err_errno(err, ENOMEM, "%s", parent->file.path);

	free(path);
	return rc;
}

/* One walk over what the child itself has: the same order and pieces every time. */
struct pass {
	struct img *child, *parent;
	int (*run)(struct pass *p, uint64_t off, uint64_t len, uint64_t child_off, struct img_err *err);
	int (*progress)(void *ctx, uint64_t done, uint64_t planned);
	void *ctx;
	struct img_merge_stats *stats;
	uint8_t *buf;
	uint64_t done, unwritten, first_unwritten;
};

static int walk(struct pass *p, struct img_err *err)
{
	uint64_t size = p->child->info.size, off = 0;
	struct img_ext ext;

	while (off < size) {
		if (p->child->ops->map(p->child, off, size - off, &ext, err) < 0)
			return -1;
		if (ext.kind == EXT_DATA && p->run(p, off, ext.len, ext.file_off, err) < 0)
			return -1;
		off += ext.len;
	}
	return 0;
}

static int run_place(struct pass *p, uint64_t off, uint64_t len, uint64_t child_off,
		     struct img_err *err)
{
	uint64_t file_off, n;

	(void)child_off;
	p->stats->bytes += len;
	for (; len; off += n, len -= n)
		if (p->parent->ops->absorb_place(p->parent, off, len, &file_off, &n, err) < 0)
			return -1;
	return 0;
}

static int run_mark(struct pass *p, uint64_t off, uint64_t len, uint64_t child_off,
		    struct img_err *err)
{
	(void)child_off;
	return p->parent->ops->absorb_mark(p->parent, off, len, err);
}

/* Starts writing out as soon as there is a fair amount, so that the final sync is short. */
static void note_written(struct pass *p, uint64_t to, uint64_t len)
{
	if (p->unwritten == 0)
		p->first_unwritten = to;
	p->first_unwritten = u64_min(p->first_unwritten, to);
	p->unwritten += len;
	if (p->unwritten >= WRITEBACK_STEP) {
		io_writeback(&p->parent->file, p->first_unwritten, 0);
		p->unwritten = 0;
	}
}

static int copy_piece(struct pass *p, uint64_t from, uint64_t to, uint64_t len, struct img_err *err)
{
	uint64_t n = len;
	bool hole = false;

	if (len >= COPY_MAX && io_extent(&p->child->file, from, &n, &hole, err) < 0)
		return -1;
	if (hole) {
		if (io_zero(&p->parent->file, to, n, err) < 0)
			return -1;
	} else if (n > COPY_MAX) {
		if (io_copy(&p->child->file, from, &p->parent->file, to, n, err) < 0)
			return -1;
	} else if (io_read(&p->child->file, p->buf, n, from, err) < 0 ||
		   io_write(&p->parent->file, p->buf, n, to, err) < 0) {
		return -1;
	}
	note_written(p, to, n);
	return n < len ? copy_piece(p, from + n, to + n, len - n, err) : 0;
}

static int run_copy(struct pass *p, uint64_t off, uint64_t len, uint64_t child_off,
		    struct img_err *err)
{
	uint64_t to, n;

	p->done += len;
	for (; len; off += n, len -= n, child_off += n)
		if (p->parent->ops->absorb_place(p->parent, off, len, &to, &n, err) < 0 ||
		    copy_piece(p, child_off, to, n, err) < 0)
			return -1;
	if (p->progress && p->progress(p->ctx, p->done, p->stats->bytes))
		return img_err_set(err, IMG_AGAIN, "%s: interrupted; the same command finishes the merge",
				   p->child->file.path);
	return 0;
}

static int check_pair(struct img_chain *c, struct img_err *err)
{
	struct img *child = c->layer[0], *parent = c->n > 1 ? c->layer[1] : NULL;
	struct img_marker m;

	if (!parent)
		return img_err_set(err, IMG_DATA, "%s: has no parent to be merged into", child->file.path);
	if (child->info.size != parent->info.size)
		return img_err_set(err, IMG_DATA, "%s: %" PRIu64 " bytes, its parent %s has %" PRIu64
				   ": not merged", child->file.path, child->info.size, parent->file.path,
				   parent->info.size);
	if (!c->ignore_saved_state && (child->info.saved_state || parent->info.saved_state))
		return img_err_set(err, IMG_DATA,
				   "%s: a saved state of a virtual machine depends on it (footer byte 84): merged only with --force",
				   child->info.saved_state ? child->file.path : parent->file.path);
	if (img_marker_read(parent->file.real, &m, err) < 0)
		return -1;
	if (!m.present && (parent->info.unsound || child->info.unsound))
		return img_err_set(err, IMG_DATA, "%s: %s: repair it before the merge",
				   parent->info.unsound ? parent->file.path : child->file.path,
				   parent->info.unsound ? parent->info.warning : child->info.warning);
	return 0;
}

/* An upper bound of what the merge writes to space that the parent does not have yet. */
static int check_space(struct img *parent, struct img_merge_stats *s, struct img_err *err)
{
	uint64_t need = s->bytes + s->new_blocks * SECTOR + (1u << 20);
	struct statvfs fs;

	if (s->new_blocks == 0 && parent->info.allocated >= parent->info.file_size)
		need = 1u << 20;
	if (parent->file.block_device || fstatvfs(parent->file.fd, &fs) < 0)
		return 0;
	s->space_free = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (need > s->space_free)
		return img_err_set(err, IMG_CANTCREAT,
				   "%s: the merge may need %" PRIu64 " bytes, the file system has %" PRIu64
				   " free; nothing was changed", parent->file.path, need, s->space_free);
	return 0;
}

/* Places, sizes, blockers; changes nothing. */
static int plan(struct img_chain *c, struct pass *p, struct img_err *err)
{
	memset(p->stats, 0, sizeof(*p->stats));
	if (check_pair(c, err) < 0)
		return -1;
	p->child = c->layer[0];
	p->parent = c->layer[1];
	p->run = run_place;
	if (p->parent->ops->absorb_begin(p->parent, err) < 0 || walk(p, err) < 0 ||
	    p->parent->ops->absorb_extend(p->parent, p->stats, true, err) < 0)
		return -1;
	return check_space(p->parent, p->stats, err);
}

int img_merge_plan(struct img_chain *c, struct img_merge_stats *stats, struct img_err *err)
{
	struct pass p = { .stats = stats };
	int rc = plan(c, &p, err);

	if (c->n > 1)
		c->layer[1]->ops->absorb_end(c->layer[1]);
	return rc;
}

static int execute(struct pass *p, struct img_err *err)
{
	struct img *parent = p->parent;

	if (marker_write(parent, p->child, err) < 0 ||
	    parent->ops->absorb_extend(parent, p->stats, false, err) < 0)
		return -1;
	p->run = run_copy;
	if (walk(p, err) < 0 || io_sync(&parent->file, err) < 0)
		return -1;
	p->run = run_mark;
	if (walk(p, err) < 0 || parent->ops->absorb_publish(parent, err) < 0)
		return -1;
	return marker_remove(parent, err);
}

int img_merge(struct img_chain *c, int (*progress)(void *ctx, uint64_t done, uint64_t planned),
	      void *ctx, struct img_merge_stats *stats, struct img_err *err)
{
	struct pass p = { .stats = stats, .progress = progress, .ctx = ctx };
	int rc = -1;

	p.buf = aligned_alloc(4096, COPY_MAX);
	if (!p.buf)
		img_err_errno(err, ENOMEM, "merge");
	else if (plan(c, &p, err) == 0)
		rc = execute(&p, err);
	free(p.buf);
	if (c->n > 1)
		c->layer[1]->ops->absorb_end(c->layer[1]);
	return rc;
}
