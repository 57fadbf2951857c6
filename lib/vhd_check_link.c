/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The link of a child to its parent (vhd-format §8.6, §15), and what other tools left beside
 * the file.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "undo.h"
#include "vhd_check.h"

#define SCAN_MAX 4096 /* files looked at in one folder */

/* A layer made of what was decoded: the file itself may be one that vhd_open() refuses. */
static struct img *make_layer(struct check *c, struct img_err *err)
{
	struct img *l = calloc(1, sizeof(*l));
	struct vhd *v = calloc(1, sizeof(*v));

	if (!l || !v) {
		img_err_errno(err, ENOMEM, "%s", c->file.path);
		goto fail;
	}
	if (io_open(&l->file, c->file.real, false, err) < 0)
		goto fail;
	l->state = v;
	v->footer = c->footer;
	v->header = c->header;
	v->parent_name = vhd_utf16_get(c->header.parent_name, sizeof(c->header.parent_name), true);
	l->info = (struct img_info){.type = IMG_DIFFERENCING,
				    .size = c->footer.size,
				    .original_size = c->footer.original_size,
				    .has_uuid = true,
				    .has_parent = true};
	memcpy(l->info.uuid, c->footer.uuid, 16);
	memcpy(l->info.parent_uuid, c->header.parent_uuid, 16);
	return l;
fail:
	free(l);
	free(v);
	return NULL;
}

static void free_layer(struct img *l)
{
	struct vhd *v = l->state;

	io_close(&l->file);
	free(v->parent_name);
	free(v);
	free(l);
}

static bool has_uuid(const char *path, const uint8_t uuid[16])
{
	struct img *l;
	bool yes;

	if (img_layer_open(&l, path, false, true, RAW_NEVER, NULL) < 0)
		return false;
	yes = l->info.has_uuid && memcmp(l->info.uuid, uuid, 16) == 0;
	img_layer_close(l);
	return yes;
}

/* The parent under another name: the only file in the folder that has its UUID. */
static void scan_folder(struct check *c, const char *dir, unsigned *found)
{
	struct dirent *d;
	DIR *dp = opendir(dir);

	for (int n = 0; dp && n < SCAN_MAX && (d = readdir(dp)); n++) {
		char *path = NULL, *real = NULL;
		struct stat st;

		if (asprintf(&path, "%s/%s", dir, d->d_name) < 0)
			break;
		if (lstat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > VHD_FOOTER_LEN)
			real = realpath(path, NULL);
		if (real && strcmp(real, c->file.real) != 0 &&
		    has_uuid(real, c->header.parent_uuid) &&
		    (!c->link.path || strcmp(real, c->link.path) != 0) && ++*found == 1) {
			free(c->link.path);
			c->link.path = real;
			c->link.mtime = st.st_mtime;
			real = NULL;
		}
		free(real);
		free(path);
	}
	if (dp)
		closedir(dp);
}

/* Two that could be it: which one is not for us to say. */
static void scan_folders(struct check *c)
{
	static const uint8_t none[16];
	char *dir = io_dirname(c->file.real);
	unsigned found = 0;

	if (dir && memcmp(c->header.parent_uuid, none, 16) != 0 &&
	    memcmp(c->header.parent_uuid, c->footer.uuid, 16) != 0) {
		scan_folder(c, dir, &found);
		for (size_t i = 0; i < c->opts->open.nparent_dirs; i++)
			scan_folder(c, c->opts->open.parent_dirs[i], &found);
	}
	if (found != 1) {
		free(c->link.path);
		c->link.path = NULL;
	}
	c->renamed = found == 1;
	free(dir);
}

int check_find_parent(struct check *c, struct img_err *err)
{
	struct img_open o = c->opts->open;
	struct img *l;
	int rc;

	if (c->link_known)
		return 0;
	c->link_known = true;
	l = make_layer(c, err);
	if (!l)
		return -1;
	o.parents_unlocked = true; /* a check does not even put back what was cut short */
	rc = img_parent_find(l, &o, &c->link, err);
	if (rc == 0 && !c->link.path && !c->quiet)
		scan_folders(c);
	free_layer(l);
	return rc;
}

static void report_missing(struct check *c)
{
	const struct img_parent *p = &c->link;
	struct img_fault f;

	if (p->damaged && !p->wrong && !c->renamed) {
		f = fault_make(c, F_PARENT_DAMAGED, NOWHERE);
	} else if (p->wrong) {
		f = fault_make(c, F_PARENT_WRONG_UUID, c->footer.data_off + 40);
	} else if (p->refused) {
		f = fault_make(c, F_PARENT_NOT_ALLOWED, NOWHERE);
	} else {
		bool named = p->tried[0];

		f = fault_make(c, named ? F_PARENT_MISSING : F_PARENT_UNNAMED,
			       c->footer.data_off + 64);
	}
	/* Alone, a child is as sound as it can be; as a chain it is broken. */
	if (c->opts->chain)
		f.severity = IMG_ERROR;
	FOUND(&f, "%s", p->tried[0] == '\n' ? p->tried + 3 : p->tried);
	if (c->renamed) {
		EXPECTED(&f, "%s, which has the right UUID", p->path);
		f.mendable = c->mend.link = true;
	} else {
		char uuid[IMG_UUID_STR];

		img_uuid_str(c->header.parent_uuid, uuid);
		EXPECTED(&f, "UUID %s", uuid);
	}
	fault_report(c, &f);
}

/* A child that has grown after it was made reads zeros there, one that has shrunk shows less of the
 * parent; anything else is a parent that was changed. */
static void check_parent_size(struct check *c)
{
	struct img_fault f = fault_make(c, F_PARENT_WRONG_SIZE, NOWHERE);
	const struct img_parent *p = &c->link;

	if (c->renamed || p->size == c->footer.size)
		return;
	if (c->footer.original_size == p->size ||
	    (p->size < c->footer.size && c->footer.original_size <= p->size))
		f.severity = IMG_WARNING;
	FOUND(&f, "%" PRIu64 " bytes in %s", p->size, p->path);
	EXPECTED(&f, "%" PRIu64 ", which the child has", c->footer.size);
	fault_report(c, &f);
}

static void check_parent_time(struct check *c)
{
	struct img_fault f = fault_make(c, F_PARENT_TIMESTAMP, c->footer.data_off + 56);
	int64_t want = (int64_t)c->header.parent_timestamp + VHD_EPOCH,
		delta = c->link.mtime - want;

	if (c->header.parent_timestamp == 0 || delta == 0)
		return;
	FOUND(&f, "written %" PRId64 " s %s%s", delta < 0 ? -delta : delta,
	      delta < 0 ? "before" : "after",
	      delta == 3600 || delta == -3600 ? ": daylight saving?" : "");
	EXPECTED(&f, "the time that the child has noted");
	fault_report(c, &f);
}

/* What the child shows is worth something as long as nobody writes to the parent. */
static int check_absorbed(struct check *c, struct img_err *err)
{
	struct img_chain parent = {.n = 1};
	uint8_t now[IMG_SUM_BYTES];
	struct img_err e = {0};
	struct img_marker m;
	struct img_fault f;

	if (img_kept_read(c->link.path, &m, &e) < 0) {
		f = fault_make(c, F_ABSORBED_DAMAGED, NOWHERE);
		FOUND(&f, "%s", e.msg);
		fault_report(c, &f);
		return 0;
	}
	if (m.state != IMG_MARKER_KEPT || memcmp(m.child_uuid, c->footer.uuid, 16) != 0 ||
	    img_layer_open(&parent.layer[0], c->link.path, false, true, RAW_MAYBE, &e) < 0)
		return 0;
	if (img_identity(&parent, 0, 1, now, err) == 0) {
		f = fault_make(c, memcmp(now, m.target, 16) == 0 ? F_ABSORBED : F_PARENT_WRITTEN,
			       NOWHERE);
		FOUND(&f, "merged into %.200s", c->link.path);
		fault_report(c, &f);
	}
	img_layer_close(parent.layer[0]);
	return err && err->code ? -1 : 0;
}

int check_link(struct check *c, struct img_err *err)
{
	static const uint8_t none[16];
	struct img_fault f;

	if (!c->has_header || c->footer.type != VHD_DIFFERENCING)
		return 0;
	if (check_find_parent(c, err) < 0)
		return -1;
	if (memcmp(c->header.parent_uuid, none, 16) == 0) {
		f = fault_make(c, F_PARENT_RAW, c->footer.data_off + 40);
		fault_report(c, &f);
	}
	if (!c->link.path || c->renamed) {
		report_missing(c);
		return 0;
	}
	check_parent_size(c);
	check_parent_time(c);
	return check_absorbed(c, err);
}

void check_report_loop(struct check *c, const char *path)
{
	struct img_fault f = fault_make(c, F_PARENT_LOOP, NOWHERE);

	FOUND(&f, "%s again", path);
	fault_report(c, &f);
}

void check_report_depth(struct check *c, unsigned layers)
{
	struct img_fault f = fault_make(c, F_PARENT_TOO_DEEP, NOWHERE);

	FOUND(&f, "more than %u layers", layers);
	EXPECTED(&f, "at most %d", IMG_MAX_LAYERS);
	fault_report(c, &f);
}

/* --- beside the file ------------------------------------------------------------------------ */

static void check_marker(struct check *c, struct img_err *marker_err)
{
	struct img_marker m;
	struct img_fault f;

	if (img_marker_read(c->file.real, &m, marker_err) < 0) {
		f = fault_make(c, F_MERGE_MARKER_DAMAGED, NOWHERE);
		FOUND(&f, "%s", marker_err->msg);
		fault_report(c, &f);
		return;
	}
	if (m.state == IMG_MARKER_NONE)
		return;
	if (m.state == IMG_MARKER_RECEIVING) {
		f = fault_make(c, F_RECEIVE_UNFINISHED, NOWHERE);
		EXPECTED(&f, "the same vhd-recv --onto again, or vhd-recv --abort");
		fault_report(c, &f);
		return;
	}
	f = fault_make(c, F_MERGE_UNFINISHED, NOWHERE);
	/* Seen through the child, or when only files are left to be removed, all is well. */
	if (m.state == IMG_MARKER_MERGED ||
	    (c->child_uuid && memcmp(c->child_uuid, m.child_uuid, 16) == 0))
		f.severity = IMG_WARNING;
	FOUND(&f, "a merge of %.200s", m.leaf);
	EXPECTED(&f, "the same vhd-merge again, which finishes it");
	fault_report(c, &f);
}

int check_leftovers(struct check *c, struct img_err *err)
{
	struct img_err marker_err = {0};
	struct img_fault f;
	struct stat st;
	bool pending;
	char *path;

	if (undo_pending(c->file.real, &pending, err) < 0)
		return -1;
	if (pending) {
		f = fault_make(c, F_ROLLBACK_PENDING, NOWHERE);
		EXPECTED(
			&f,
			"vhd-check --undo, or the next tool that opens the disk, to put the old bytes back");
		f.mendable = true;
		fault_report(c, &f);
	}
	check_marker(c, &marker_err);
	if (asprintf(&path, "%s.undo", c->file.real) < 0)
		return img_err_errno(err, ENOMEM, "%s", c->file.path);
	if (lstat(path, &st) == 0) {
		f = fault_make(c, F_UNDO_LEFT, NOWHERE);
		FOUND(&f, "%s", path);
		fault_report(c, &f);
	}
	free(path);
	return 0;
}
