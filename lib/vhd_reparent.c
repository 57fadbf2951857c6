/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The link of a child to its parent, written anew after a move: UUID, time, name and locators
 * (vhd-format §7, §8). The header has no second copy, so its old bytes and those of the
 * locators are saved first (undo.h); until the last write is durable every open puts them back.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "undo.h"
#include "vhd.h"

/* Names of the old parent that nobody reads any more; left as they are they could lead to another
 * disk. */
static const uint32_t stale[] = {VHD_WI2R, VHD_WI2K, 0x4d616320 /* Mac */, 0x4d163220,
				 0x4d163258 /* VirtualBox's Mac and MacX */};

#define NAME_MAX_LEN 65536u /* what is longer was no name */

struct name {
	uint32_t code;
	uint8_t *text;
	size_t len;
	uint64_t off, span; /* where it goes, with the zeros behind it */
};

struct link {
	struct img *child;
	struct vhd_header header;
	struct name name[3];
	unsigned n;
	uint64_t start, end; /* new space behind the file's content; equal: none */
};

/* Whether PARENT may be the parent of CHILD without force; WHY not. */
static bool is_the_one(const struct img_info *child, const struct img_info *parent, char *why,
		       size_t size)
{
	static const uint8_t none[16];
	bool wants_raw = memcmp(child->parent_uuid, none, 16) == 0;
	char want[IMG_UUID_STR], got[IMG_UUID_STR];

	img_uuid_str(child->parent_uuid, want);
	img_uuid_str(parent->uuid, got);
	if (wants_raw && parent->has_uuid)
		snprintf(why, size, "the child wants a raw parent, this is a VHD with UUID %s",
			 got);
	else if (!wants_raw && !parent->has_uuid)
		snprintf(why, size, "the child wants UUID %s, this is a raw disk", want);
	else if (memcmp(child->parent_uuid, parent->uuid, 16) != 0)
		snprintf(why, size, "its UUID is %s, the child wants %s", got, want);
	else if (parent->size > child->size && parent->size != child->original_size)
		snprintf(why, size, "%" PRIu64 " bytes, the child has %" PRIu64, parent->size,
			 child->size);
	else
		return true;
	return false;
}

static int check_parent(const struct img_chain *c, bool force, struct img_reparent_plan *p,
			struct img_err *err)
{
	static const uint8_t none[16];
	const struct img *child = c->layer[0], *parent = c->n > 1 ? c->layer[1] : NULL;
	char why[256] = "";

	if (!parent)
		return img_err_set(err, IMG_DATA, "%s: not a differencing disk, it has no parent",
				   child->file.path);
	for (unsigned i = 1; i < c->n; i++)
		if (c->layer[i]->info.has_uuid &&
		    memcmp(c->layer[i]->info.uuid, child->info.uuid, 16) == 0)
			return img_err_set(err, IMG_DATA,
					   "%s: loop: it has the UUID of %s, a copy of it",
					   c->layer[i]->file.path, child->file.path);
	if (parent->info.has_uuid && memcmp(parent->info.uuid, none, 16) == 0)
		return img_err_set(
			err, IMG_DATA,
			"%s: its UUID is all zeros, with which a child names a raw parent",
			parent->file.path);
	/* Size is all the identity that a raw parent has; with another one no child would open. */
	if (!parent->info.has_uuid && parent->info.size != child->info.size &&
	    parent->info.size != child->info.original_size)
		return img_err_set(err, IMG_DATA,
				   "%s: a raw disk of %" PRIu64 " bytes, the child %s has %" PRIu64,
				   parent->file.path, parent->info.size, child->file.path,
				   child->info.size);
	p->other = !is_the_one(&child->info, &parent->info, why, sizeof(why));
	if (p->other && !force)
		return img_err_set(err, IMG_DATA,
				   "%s: not the parent of %s: %s; --force makes it the parent",
				   parent->file.path, child->file.path, why);
	snprintf(p->why, sizeof(p->why), "%s", why);
	return 0;
}

static int find_slot(const struct vhd_header *h, uint32_t code)
{
	int i = 0;

	while (i < VHD_LOCATORS && h->loc[i].code != code)
		i++;
	return i;
}

/* Drops stale names and codes that stand twice. */
static void clean_slots(struct vhd_header *h)
{
	for (int i = 0; i < VHD_LOCATORS; i++) {
		uint32_t code = h->loc[i].code;
		bool drop = (code == VHD_W2RU || code == VHD_W2KU || code == VHD_MACX) &&
			    find_slot(h, code) < i;

		for (size_t s = 0; s < sizeof(stale) / sizeof(stale[0]); s++)
			drop |= code == stale[s];
		if (drop)
			h->loc[i] = (struct vhd_locator){0};
	}
}

static int make_names(struct link *k, const struct img *parent, struct img_err *err)
{
	struct name *rel = &k->name[0], *abs = &k->name[1], *url = &k->name[2];
	const char *child = k->child->file.real, *real = parent->file.real;

	rel->code = VHD_W2RU;
	abs->code = VHD_W2KU;
	url->code = VHD_MACX;
	k->n = 2;
	if (vhd_parent_names(child, real, &rel->text, &rel->len, &abs->text, &abs->len,
			     k->header.parent_name, err) < 0)
		return -1;
	/* XenServer reads the first locator that leads somewhere, and writes this one first. */
	if (find_slot(&k->header, VHD_MACX) < VHD_LOCATORS) {
		k->n = 3;
		url->text = (uint8_t *)vhd_parent_url(child, real);
		if (!url->text)
			return img_err_errno(err, ENOMEM, "%s", child);
		url->len = strlen((char *)url->text);
	}
	return 0;
}

/* In the space that the locator has, or behind all that the file holds. */
static int place_name(struct link *k, struct name *n, struct img_err *err)
{
	int slot = find_slot(&k->header, n->code);
	struct vhd_locator *loc;
	uint64_t room;
	bool fits = false;

	if (slot == VHD_LOCATORS)
		slot = find_slot(&k->header, VHD_NONE);
	if (slot == VHD_LOCATORS)
		return img_err_set(err, IMG_DATA, "%s: header: no free slot for another locator",
				   k->child->file.path);
	loc = &k->header.loc[slot];
	room = vhd_locator_room(loc);
	if (loc->code && loc->len <= NAME_MAX_LEN && room >= n->len && room >= loc->len &&
	    vhd_space_free(k->child, loc->off, room, slot, &fits, err) < 0)
		return -1;
	if (!fits) {
		loc->space = (uint32_t)u64_round_up(n->len, SECTOR);
		loc->off = k->end;
		loc->len = loc->space;
		k->end += loc->space;
	}
	n->off = loc->off;
	n->span = u64_max(n->len, loc->len);
	loc->code = n->code;
	loc->len = (uint32_t)n->len;
	return 0;
}

static int plan_link(struct link *k, const struct img *parent, struct img_err *err)
{
	struct vhd *v = k->child->state;
	struct stat st;

	k->header = v->header;
	k->start = k->end = u64_round_up(v->end, SECTOR);
	clean_slots(&k->header);
	memcpy(k->header.parent_uuid, parent->info.uuid, 16);
	k->header.parent_timestamp = 0;
	if (fstat(parent->file.fd, &st) == 0 && st.st_mtime > VHD_EPOCH)
		k->header.parent_timestamp = (uint32_t)(st.st_mtime - VHD_EPOCH);
	if (make_names(k, parent, err) < 0)
		return -1;
	for (unsigned i = 0; i < k->n; i++)
		if (place_name(k, &k->name[i], err) < 0)
			return -1;
	return 0;
}

/* Whether the file says all of it already. */
static int is_done(struct link *k, const uint8_t *old, const uint8_t *new, bool *done,
		   struct img_err *err)
{
	*done = k->end == k->start && memcmp(old, new, VHD_HEADER_LEN) == 0;
	for (unsigned i = 0; *done && i < k->n; i++) {
		uint8_t *buf = malloc(k->name[i].len);
		int rc = buf ? io_read(&k->child->file, buf, k->name[i].len, k->name[i].off, err)
			     : img_err_errno(err, ENOMEM, "%s", k->child->file.path);

		*done = rc == 0 && memcmp(buf, k->name[i].text, k->name[i].len) == 0;
		free(buf);
		if (rc < 0)
			return -1;
	}
	return 0;
}

/* The footer behind new space; of the old one nothing is left. */
static int write_footer(struct link *k, uint64_t old, uint64_t place, struct img_err *err)
{
	struct vhd *v = k->child->state;

	if (place == old)
		return 0;
	if (io_write(&k->child->file, v->footer_raw, VHD_FOOTER_LEN, place, err) < 0)
		return -1;
	return io_zero(&k->child->file, k->start, u64_max(k->end, old + VHD_FOOTER_LEN) - k->start,
		       err);
}

static int write_names(struct link *k, struct img_err *err)
{
	for (unsigned i = 0; i < k->n; i++) {
		struct name *n = &k->name[i];
		uint8_t *buf = calloc(1, n->span);
		int rc;

		if (!buf)
			return img_err_errno(err, ENOMEM, "%s", k->child->file.path);
		memcpy(buf, n->text, n->len);
		rc = io_write(&k->child->file, buf, n->span, n->off, err);
		free(buf);
		if (rc < 0)
			return -1;
	}
	return 0;
}

static int write_link(struct link *k, const uint8_t header[VHD_HEADER_LEN], struct img_err *err)
{
	struct vhd *v = k->child->state;
	struct io_file *f = &k->child->file;
	uint64_t old = v->footer_off,
		 place = k->end > k->start ? u64_max(old, vhd_footer_place(k->end)) : old;
	struct undo_range r[5] = {{v->footer.data_off, VHD_HEADER_LEN}};
	size_t n = 1;

	for (unsigned i = 0; i < k->n; i++)
		r[n++] = (struct undo_range){k->name[i].off, k->name[i].span};
	if (place != old)
		r[n++] = (struct undo_range){k->start,
					     u64_max(place, old) + VHD_FOOTER_LEN - k->start};
	if (undo_store(f, UNDO_ROLLBACK, r, n, err) < 0)
		return -1;
	if (write_footer(k, old, place, err) < 0 || write_names(k, err) < 0 ||
	    io_write(f, header, VHD_HEADER_LEN, v->footer.data_off, err) < 0 ||
	    io_sync(f, err) < 0) {
		undo_apply(f, NULL);
		return -1;
	}
	return undo_finish(f, err);
}

static int mend(struct img_chain *c, struct link *k, bool dry_run, struct img_reparent_plan *p,
		struct img_err *err)
{
	uint8_t old[VHD_HEADER_LEN], new[VHD_HEADER_LEN];
	struct vhd *v = k->child->state;
	bool done;

	if (plan_link(k, c->layer[1], err) < 0 ||
	    io_read(&k->child->file, old, sizeof(old), v->footer.data_off, err) < 0)
		return -1;
	memcpy(new, old, sizeof(new));
	vhd_header_patch(&k->header, new);
	if (is_done(k, old, new, &done, err) < 0)
		return -1;
	p->changes = !done;
	if (done || dry_run)
		return 0;
	return vhd_heal(k->child, err) < 0 ? -1 : write_link(k, new, err);
}

static int reparent(const char *child, const char *parent, const struct img_open *opts, bool force,
		    bool dry_run, struct img_reparent_plan *p, struct img_err *err)
{
	struct img_open o = *opts;
	struct link k = {0};
	struct img_chain *c;
	int rc = -1;

	memset(p, 0, sizeof(*p));
	o.writable = true;
	o.single = o.merge = o.raw = o.maybe_raw = false;
	o.parents_unlocked = o.unlocked;
	o.unlocked = false;
	o.parent = parent;
	if (img_open(&c, child, &o, err) < 0)
		return -1;
	if (check_parent(c, force, p, err) == 0) {
		k.child = c->layer[0];
		memcpy(p->old_uuid, k.child->info.parent_uuid, 16);
		memcpy(p->new_uuid, c->layer[1]->info.uuid, 16);
		pthread_mutex_lock(&k.child->mutex);
		rc = mend(c, &k, dry_run, p, err);
		pthread_mutex_unlock(&k.child->mutex);
	}
	for (unsigned i = 0; i < k.n; i++)
		free(k.name[i].text);
	img_close(c);
	return rc;
}

int img_reparent(const char *child, const char *parent, const struct img_open *opts, bool force,
		 struct img_err *err)
{
	struct img_reparent_plan p;

	return reparent(child, parent, opts, force, false, &p, err);
}

int img_reparent_plan(const char *child, const char *parent, const struct img_open *opts,
		      bool force, struct img_reparent_plan *plan, struct img_err *err)
{
	return reparent(child, parent, opts, force, true, plan, err);
}
